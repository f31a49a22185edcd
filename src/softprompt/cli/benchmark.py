"""``softprompt benchmark speed WORKLOAD`` and ``softprompt benchmark quality CONFIG.yaml``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..benchmarks.quality.runner import make_schedule, run_trials
from ..benchmarks.quality.specification import read_spec
from ..benchmarks.speed.catalog import WORKLOADS
from ..config.options import build_options, nearest
from ..errors import ConfigError
from .show import console, working

if TYPE_CHECKING:
    from ..benchmarks.quality.report import Report


def speed(
    workload: Annotated[str, typer.Argument(help=f"What to measure: {', '.join(WORKLOADS)}.")],
    model: Annotated[str | None, typer.Option(help="Base model, as in train.")] = None,
    shape: Annotated[str | None, typer.Option(help="Random weights of a known shape: bloomz-560m.")] = None,
    against: Annotated[str, typer.Option(help="peft, or none to measure softprompt only.")] = "peft",
    num_virtual_tokens: Annotated[
        int, typer.Option("--num_virtual_tokens", min=1, help="Number of virtual tokens.")
    ] = 8,
    batch_size: Annotated[int, typer.Option("--per_device_train_batch_size", min=1, help="Rows per batch.")] = 8,
    train_file: Annotated[str | None, typer.Option("--train_file", help="Rows [default: the packaged rows].")] = None,
    text_column: Annotated[
        list[str] | None, typer.Option("--text_column", help="Column of the text; may be repeated [default: text].")
    ] = None,
    label_column: Annotated[str, typer.Option("--label_column", help="Column of the label.")] = "label",
    device: Annotated[str, typer.Option(help="auto, or a torch device.")] = "auto",
    dtype: Annotated[str, typer.Option(help="dtype of the base model, as in train.")] = "auto",
    max_length: Annotated[int, typer.Option("--max_length", help="Length to which the guide pads.")] = 64,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight, for serve.")] = 8,
    text_tokens: Annotated[
        int | None, typer.Option("--text_tokens", min=1, help="Build texts of exactly this many tokens from the rows.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each implementation; medians are compared.")] = 7,
    num_threads: Annotated[int, typer.Option("--num_threads", min=1, help="CPU threads of every implementation.")] = 2,
    memory: Annotated[bool, typer.Option("--memory/--no_memory", help="Also measure peak memory.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure speed and memory against PEFT on the same rows."""
    if workload not in WORKLOADS:
        raise ConfigError(
            f"unknown workload {workload!r}{nearest(workload, WORKLOADS)} (known: {', '.join(WORKLOADS)})"
        )
    from ..benchmarks.speed.settings import SpeedOptions

    values: dict[str, Any] = {
        **({"train_file": train_file} if train_file else {"dataset_name": "complaints"}),
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
        "concurrency": concurrency,
        "text_tokens": text_tokens,
        "rounds": rounds,
        "num_threads": num_threads,
        "memory": memory,
    }
    options = build_options(SpeedOptions, values)
    with working("loading ...") as status:
        from ..benchmarks.speed.registry import measure_workload
        from ..benchmarks.speed.summary import result_table

        result = measure_workload(workload, options, lambda text: status.update(text))
    if as_json:
        typer.echo(json.dumps(result))
    else:
        console.print(result_table(result))


def quality(
    config: Annotated[Path, typer.Argument(help="YAML file of tasks, methods, seeds and numbers of training rows.")],
    table: Annotated[bool, typer.Option("--table", help="Measure nothing; write tables and plots again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="List the missing results, and stop.")] = False,
) -> None:
    """Compare methods on classification tasks."""
    spec = read_spec(config)
    failed = 0
    if not table:
        with working("reading the tasks ..."):
            schedule = make_schedule(spec)
        if dry_run:
            _print("\n".join(str(trial.key) for trial in schedule.missing))
            _print(f"{len(schedule.missing)} of {len(schedule.trials)} results are missing")
            return
        from ..benchmarks.quality.page import write_page

        failed = run_trials(spec, schedule, _print, after_task=lambda: write_page(spec))
    from ..benchmarks.quality.report import write_report

    _show(write_report(spec))
    if failed:
        _print(f"{failed} results failed; run the command again to retry them")
        raise typer.Exit(1)


SUBCOMMANDS = {"speed": speed, "quality": quality}


def _show(report: Report) -> None:
    for shots, scores in report.tables.items():
        _print(f"\n{shots} training rows, macro-F1 (%)\n{scores}")
    _print("")
    for path in report.files:
        _print(str(path))
    if report.no_plots:
        _print(f"no plots: {report.no_plots}")


def _print(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
