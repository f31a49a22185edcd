"""``softprompt evaluate --adapter DIR --test_file F``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..config.options import DataOptions, ModelOptions
from ..errors import ConfigError
from ..inference.evaluate_adapter import DATA_OPTIONS, evaluate, save_metrics
from .arguments import takes
from .common import Adapter
from .show import console, metrics_table
from .terminal import Terminal


@takes(ModelOptions, DataOptions, only=(*ModelOptions.model_fields, *DATA_OPTIONS))
def command(
    adapter: Adapter,
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Folder for metrics.json [default: the adapter's].")
    ] = None,
    batch_size: Annotated[int, typer.Option("--per_device_eval_batch_size", min=1, help="Rows per forward pass.")] = 32,
    generate: Annotated[
        bool, typer.Option("--generate", help="Also generate texts: exact matches, ROUGE-L, BLEU.")
    ] = False,
    after: Annotated[
        str | None,
        typer.Option("--exact_match_after", help="Compare only what follows this mark in both texts, such as '####'."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max_new_tokens", min=1, help="Most tokens to generate [default: 64, less in a short context]."),
    ] = None,
    **given: Any,
) -> None:
    """Score an adapter on labelled rows."""
    if output_dir is not None and output_dir.is_file():
        raise ConfigError(f"output_dir {output_dir} is a file; give a folder")
    how: dict[str, Any] = {"generate": generate, "exact_match_after": after, "max_new_tokens": max_new_tokens}
    metrics = evaluate(adapter, callback=Terminal(), batch_size=batch_size, **{**how, **given})
    console.print(metrics_table(metrics))
    if output_dir is not None or Path(adapter).is_dir():  # an adapter on the Hub has no folder here
        console.print(f"\nmetrics     {save_metrics(metrics, output_dir or Path(adapter))}", soft_wrap=True)
