"""``softprompt bench``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from ..benchmarks.speed.names import GUIDE, KEY_PREFIX, OURS, PEFT_GUIDE, PREFIX, SUBJECTS, TITLES
from ..config.options import build_options, nearest
from ..errors import ConfigError
from .show import console, working


def command(
    what: Annotated[str, typer.Argument(help=f"What to measure: {', '.join(SUBJECTS)}.")],
    model: Annotated[str | None, typer.Option(help="Base model, as in train.")] = None,
    shape: Annotated[str | None, typer.Option(help="Random weights of a known shape: bloomz-560m.")] = None,
    against: Annotated[str, typer.Option(help="peft, or none: our side alone.")] = "peft",
    num_virtual_tokens: Annotated[int, typer.Option("--num_virtual_tokens", min=1)] = 8,
    batch_size: Annotated[int, typer.Option("--per_device_train_batch_size", min=1)] = 8,
    train_file: Annotated[str | None, typer.Option("--train_file", help="Rows [default: the packaged ones].")] = None,
    text_column: Annotated[list[str] | None, typer.Option("--text_column")] = None,
    label_column: Annotated[str, typer.Option("--label_column")] = "label",
    device: Annotated[str, typer.Option(help="auto, or a torch device.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Number type of the base model, as in train.")] = "auto",
    max_length: Annotated[int, typer.Option("--max_length", help="Length that the guide pads to.")] = 64,
    text_tokens: Annotated[
        int | None, typer.Option("--text_tokens", min=1, help="Texts of exactly so many tokens, made of the rows.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side; the medians count.")] = 7,
    num_threads: Annotated[int, typer.Option("--num_threads", min=1, help="CPU threads, the same for all.")] = 2,
    memory: Annotated[bool, typer.Option("--memory/--no_memory", help="Measure peak memory too.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure speed and memory against PEFT, in turn, on the same rows."""
    if what not in SUBJECTS:
        raise ConfigError(f"cannot measure {what!r}{nearest(what, SUBJECTS)} (there is {', '.join(SUBJECTS)})")
    from ..benchmarks.speed.settings import BenchOptions

    source = {"train_file": train_file} if train_file else {"dataset_name": "complaints"}
    values: dict[str, Any] = {
        **source,
        **({"model_name_or_path": model} if model else {}),
        "shape": shape,
        "against": against,
        "num_virtual_tokens": num_virtual_tokens,
        "per_device_train_batch_size": batch_size,
        "text_column": text_column or ["text"],
        "label_column": label_column,
        "device": device,
        "dtype": dtype,
        "max_length": max_length,
        "text_tokens": text_tokens,
        "rounds": rounds,
        "num_threads": num_threads,
        "memory": memory,
    }
    options = build_options(BenchOptions, values)
    with working("loading ...") as status:
        from ..benchmarks.speed.workloads import bench

        result = bench(what, options, lambda text: status.update(text))
    if as_json:
        typer.echo(json.dumps(result))
    else:
        console.print(_table(result))


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['subject']}: {result['model']}, {result['num_virtual_tokens']} virtual tokens"
    table = Table(title=title, box=None, header_style="bold", title_justify="left")
    ours = {"suffix": PREFIX, "classes": GUIDE}
    other = ours.get(result["subject"], PEFT_GUIDE)
    against = "PEFT" if other == PEFT_GUIDE else other
    for name in ("", "rows/s", f"against {against}", "spread", "peak memory"):
        table.add_column(name, justify="right" if name else "left")
    guide = result.get(f"{KEY_PREFIX[other]}rows_per_second")
    memory = {OURS: result.get("peak_memory_bytes"), other: result.get(f"{against.lower()}_peak_memory_bytes")}
    for side, line in TITLES[result["subject"]].items():
        speed = result.get(f"{KEY_PREFIX[side]}rows_per_second")
        if speed is None:
            continue
        peak = memory.get(side)
        table.add_row(
            line,
            f"{speed:.2f}",
            "" if guide is None else f"{speed / guide:.2f}x",
            f"±{100 * result['spread'][side]:.0f}%",
            "" if peak is None else f"{peak / 2**30:.2f} GiB",
        )
    table.caption = _caption(result)
    table.caption_justify = "left"
    return table


def _caption(result: dict[str, Any]) -> str:
    """How near to each row alone, and to the machine's bound."""
    if result["subject"] == "train":
        return (
            f"gradients agree with each row alone to {result['max_relative_gradient_difference']:.0e}; "
            f"{result['gemm_bound_fraction']:.2f} of the bound of {result['gemm_library']}'s matrix products, "
            f"{result['torch_gemm_bound_fraction']:.2f} of torch's; plans take {result['plan_seconds_fraction']:.1%}"
        )
    if result["subject"] == "suffix":
        return (
            f"gradients agree with each row alone to {result['max_relative_gradient_difference']:.0e}; reading "
            f"{result['texts_read']} texts, once for all epochs, took {result['read_texts_seconds']:.2f} seconds"
        )
    if result["subject"] == "classes":
        return (
            f"the gradient agrees with that of the {result['num_classes']} labels computed one by one to "
            f"{result['max_relative_gradient_difference']:.0e}; a step has {result['tokens_per_step']} tokens, "
            f"{result['positions_per_step']} of them with logits"
        )
    rows = result["rows_compared"]
    if result["subject"] == "generate":
        counts = {side: result.get(f"{KEY_PREFIX[side]}rows_equal_alone") for side in TITLES["generate"]}
        said = [f"{TITLES['generate'][side]}: {count}" for side, count in counts.items() if count is not None]
        return f"of {rows} rows, so many have the tokens they get alone: {'; '.join(said)}"
    worst = result["max_relative_label_probability_difference"]
    return f"label probabilities agree with each row alone to {worst:.0e}"
