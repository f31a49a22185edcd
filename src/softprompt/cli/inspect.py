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
    from ..inference.load_adapter import LoadedAdapter

PICTURE = "prompt.png"


@takes(ModelOptions)
def command(
    adapter: AdapterArgument,
    nearest: Annotated[int, typer.Option(min=1, max=50, help="Vocabulary entries per virtual token.")] = 5,
    output_file: Annotated[
        Path | None, typer.Option("--output_file", help="File for the plot [default: prompt.png in DIR].")
    ] = None,
    **given: Any,
) -> None:
    """Show the virtual tokens: nearest vocabulary entries, norms, distance from the initial prompt."""
    loaded = load(adapter, given)

    from ..inference.inspect import inspect_prompt
    from ..inference.load_adapter import read_initial_prompt
    from ..models.embeddings import vocabulary_size

    embeddings = loaded.model.base.get_input_embeddings()
    size = vocabulary_size(embeddings)
    if nearest > size:
        raise ConfigError(f"nearest={nearest}, but the vocabulary has {size} entries; ask for at most that many")
    report = inspect_prompt(loaded.model.prompt, read_initial_prompt(adapter), embeddings, nearest=nearest)
    console.print(_table(report, loaded.tokenizer))
    console.print(f"\nmedian norm of the vocabulary: {report.vocabulary_norm:.3f}")
    if loaded.model.placement == "suffix":
        console.print("suffix prompt: it follows the text")
    for part in _other_parts(loaded):
        console.print(part, soft_wrap=True)
    path = output_file or (Path(adapter) / PICTURE if Path(adapter).is_dir() else Path(PICTURE))
    _draw(report, path)


def _other_parts(loaded: LoadedAdapter) -> list[str]:
    """The parts of the adapter beside its prompt."""
    found = []
    if loaded.ensemble is not None:
        count, length, _ = loaded.ensemble.prompts.shape
        temperature = float(loaded.ensemble.temperature)
        found.append(f"ensemble    {count} suffix prompts of {length} virtual tokens, temperature {temperature:.2g}")
    if loaded.linear_probe is not None:
        layers, share = loaded.linear_probe.layers.tolist(), float(loaded.linear_probe.share)
        found.append(f"linear probe on layers {layers[0]} to {layers[-1]}, weight {share:.0%}")
    return found


def _table(report: PromptReport, tokenizer: Any) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("#", "norm", "from initial"):
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
