"""``softprompt bench train``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from ..errors import ConfigError
from ..options import build_options, nearest
from .show import console

SUBJECTS = ("train",)


def command(
    what: Annotated[str, typer.Argument(help=f"What to measure: {', '.join(SUBJECTS)}.")],
    model: Annotated[str | None, typer.Option(help="Base model, as in train.")] = None,
    shape: Annotated[str | None, typer.Option(help="Random weights of a known shape: bloomz-560m.")] = None,
    num_virtual_tokens: Annotated[int, typer.Option("--num_virtual_tokens", min=1)] = 8,
    batch_size: Annotated[int, typer.Option("--per_device_train_batch_size", min=1)] = 8,
    train_file: Annotated[str | None, typer.Option("--train_file", help="Rows [default: the packaged ones].")] = None,
    text_column: Annotated[list[str] | None, typer.Option("--text_column")] = None,
    label_column: Annotated[str, typer.Option("--label_column")] = "label",
    max_length: Annotated[int, typer.Option("--max_length", help="Length that the guide pads to.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each side; the medians count.")] = 7,
    num_threads: Annotated[int, typer.Option("--num_threads", min=1, help="CPU threads, the same for all.")] = 2,
    memory: Annotated[bool, typer.Option("--memory/--no_memory", help="Measure peak memory too.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure speed and memory against PEFT, in turn, on the same rows."""
    if what not in SUBJECTS:
        raise ConfigError(f"cannot measure {what!r}{nearest(what, SUBJECTS)} (there is {', '.join(SUBJECTS)})")

    from ..bench.train import BenchOptions, bench_train

    source = {"train_file": train_file} if train_file else {"dataset_name": "complaints"}
    values: dict[str, Any] = {
        **source,
        **({"model_name_or_path": model} if model else {}),
        "shape": shape,
        "num_virtual_tokens": num_virtual_tokens,
        "per_device_train_batch_size": batch_size,
        "text_column": text_column or ["text"],
        "label_column": label_column,
        "max_length": max_length,
        "rounds": rounds,
        "num_threads": num_threads,
        "memory": memory,
    }
    options = build_options(BenchOptions, values)
    with console.status("loading ...") as status:
        result = bench_train(options, lambda text: status.update(text))
    if as_json:
        typer.echo(json.dumps(result))
    else:
        console.print(_table(result))


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['model']}, {result['num_virtual_tokens']} virtual tokens"
    table = Table(title=title, box=None, header_style="bold", title_justify="left")
    for name in ("training", "rows/s", "against PEFT", "spread", "peak memory"):
        table.add_column(name, justify="left" if name == "training" else "right")
    guide = result["peft_guide_rows_per_second"]
    rows = (
        ("PEFT, the guide's loop", "peft guide", "peft_guide_rows_per_second", "peft_peak_memory_bytes"),
        ("PEFT, padded to the longest", "peft best", "peft_best_rows_per_second", ""),
        ("softprompt, import changed", "drop-in", "drop_in_rows_per_second", ""),
        ("softprompt train", "softprompt", "rows_per_second", "peak_memory_bytes"),
    )
    for name, side, speed, memory in rows:
        peak = f"{result[memory] / 2**30:.2f} GiB" if memory in result else ""
        ratio = f"{result[speed] / guide:.2f}x"
        table.add_row(name, f"{result[speed]:.2f}", ratio, f"±{100 * result['spread'][side]:.0f}%", peak)
    table.caption = f"gradients agree to {result['max_relative_gradient_difference']:.0e}"
    return table
