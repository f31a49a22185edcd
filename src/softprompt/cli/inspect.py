"""``softprompt inspect DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..config.options import ModelOptions
from ..errors import ConfigError, MissingExtraError
from .arguments import takes
from .common import AdapterArgument, load
from .show import console, number

if TYPE_CHECKING:
    from ..inference.inspect import PromptReport
    from ..inference.pipeline import Prompted

PICTURE = "prompt.png"


@takes(ModelOptions)
def command(
    adapter: AdapterArgument,
    nearest: Annotated[int, typer.Option(min=1, max=50, help="Vocabulary entries per virtual token.")] = 5,
    output_file: Annotated[
        Path | None, typer.Option("--output_file", help="The picture [default: prompt.png in DIR].")
    ] = None,
    **given: Any,
) -> None:
    """Show what the virtual tokens have become."""
    prompted = load(adapter, given)

    from ..inference.inspect import inspect_prompt
    from ..inference.pipeline import read_start
    from ..models.embeddings import vocabulary_size

    size = vocabulary_size(prompted.model.word_embeddings)
    if nearest > size:
        raise ConfigError(f"nearest={nearest}, but the vocabulary has {size} entries; ask for at most that many")
    report = inspect_prompt(prompted.model.prompt, read_start(adapter), prompted.model.word_embeddings, nearest=nearest)
    console.print(_table(report, prompted.tokenizer))
    console.print(f"\nmedian norm of the vocabulary: {report.vocabulary_norm:.3f}")
    if prompted.model.prompt_placement == "suffix":
        console.print("the prompt stands behind the text")
    for what in _beside(prompted):
        console.print(f"beside it   {what}", soft_wrap=True)
    path = output_file or (Path(adapter) / PICTURE if Path(adapter).is_dir() else Path(PICTURE))
    _draw(report, path)


def _beside(prompted: Prompted) -> list[str]:
    """What else of the adapter decides between labels."""
    found = []
    if prompted.ensemble is not None:
        number, length, _ = prompted.ensemble.prompts.shape
        temperature = float(prompted.ensemble.temperature)
        found.append(f"{number} prompts of {length} tokens behind the text, temperature {temperature:.2g}")
    if prompted.linear_probe is not None:
        layers, share = prompted.linear_probe.layers.tolist(), float(prompted.linear_probe.share)
        found.append(f"a read-out of layers {layers[0]} to {layers[-1]}, which decides to {share:.0%}")
    return found


def _table(report: PromptReport, tokenizer: Any) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("#", "norm", "from start"):
        table.add_column(name, justify="right")
    table.add_column("nearest by cosine", overflow="fold")
    table.add_column("nearest by distance", overflow="fold")
    for i, token in enumerate(report.tokens, 1):
        pairs = (token.by_cosine, token.by_distance)
        cells = [Text(", ".join(f"{tokenizer.decode([k])!r} {v:.2f}" for k, v in pair)) for pair in pairs]
        table.add_row(str(i), number(token.norm, 3), number(token.start_distance, 3), *cells)
    return table


def _draw(report: PromptReport, path: Path) -> None:
    from ..reporting.plots import plot_prompt

    moved = [token.start_distance for token in report.tokens]
    distances = [distance for distance in moved if distance is not None]
    try:
        plot_prompt(
            [token.norm for token in report.tokens],
            distances if len(distances) == len(moved) else None,
            report.similarity,
            path,
            vocabulary_norm=report.vocabulary_norm,
        )
        console.print(f"picture     {path}", soft_wrap=True)
    except MissingExtraError as missing:
        console.print(f"no picture: {missing}", markup=False, soft_wrap=True)
