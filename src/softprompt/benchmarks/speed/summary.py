"""One result of the speed benchmark as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from .catalog import GUIDE, KEY_PREFIX, OURS, PEFT_GUIDE, PREFIX, TITLES

_BASELINES = {"suffix": PREFIX, "classes": GUIDE}
"""What softprompt is compared with; PEFT for all other workloads."""


def result_table(result: dict[str, Any]) -> Table:
    """The table of a result (``registry.measure_workload``): one line per implementation."""
    workload = result["workload"]
    baseline = _BASELINES.get(workload, PEFT_GUIDE)
    against = "PEFT" if baseline == PEFT_GUIDE else baseline
    title = f"{workload}: {result['model']}, {result['num_virtual_tokens']} virtual tokens"
    table = Table(title=title, box=None, header_style="bold", title_justify="left")
    for name in ("", "rows/s", f"against {against}", "spread", "peak memory"):
        table.add_column(name, justify="right" if name else "left")
    baseline_speed = result.get(f"{KEY_PREFIX[baseline]}rows_per_second")
    memory = {OURS: result.get("peak_memory_bytes"), baseline: result.get(f"{against.lower()}_peak_memory_bytes")}
    for name, line in TITLES[workload].items():
        speed = result.get(f"{KEY_PREFIX[name]}rows_per_second")
        if speed is None:
            continue
        peak = memory.get(name)
        table.add_row(
            line,
            f"{speed:.2f}",
            "" if baseline_speed is None else f"{speed / baseline_speed:.2f}x",
            f"±{100 * result['spread'][name]:.0f}%",
            "" if peak is None else f"{peak / 2**30:.2f} GiB",
        )
    table.caption = _caption(result)
    table.caption_justify = "left"
    return table


def _caption(result: dict[str, Any]) -> str:
    """Agreement with rows computed one by one, and other figures of the workload."""
    if result["workload"] == "train":
        return (
            f"gradients agree with rows computed one by one to {result['max_relative_gradient_difference']:.0e}; "
            f"{result['roofline_fraction']:.2f} of the roofline of {result['gemm_library']}'s matrix products, "
            f"{result['torch_roofline_fraction']:.2f} of torch's; plans take {result['plan_seconds_fraction']:.1%}"
        )
    if result["workload"] == "suffix":
        return (
            f"gradients agree with rows computed one by one to {result['max_relative_gradient_difference']:.0e}; "
            f"caching {result['texts_read']} texts took {result['read_texts_seconds']:.2f} seconds, once for all epochs"
        )
    if result["workload"] == "classes":
        return (
            f"the gradient agrees with that of {result['num_classes']} labels computed one by one to "
            f"{result['max_relative_gradient_difference']:.0e}; a step has {result['tokens_per_step']} tokens, "
            f"{result['positions_per_step']} of them with logits"
        )
    if result["workload"] == "generate":
        counts = {name: result.get(f"{KEY_PREFIX[name]}rows_equal_alone") for name in TITLES["generate"]}
        parts = [f"{TITLES['generate'][name]}: {count}" for name, count in counts.items() if count is not None]
        return f"rows of {result['rows_compared']} with the same tokens as when computed alone: {'; '.join(parts)}"
    worst = result["max_relative_label_probability_difference"]
    if result["workload"] == "serve":
        shown = (f"{share} {result[f'latency_ms_{share}']:.0f} ms" for share in ("p50", "p95", "p99"))
        return (
            f"{result['concurrency']} requests in flight: {', '.join(shown)}; label probabilities agree with rows "
            f"computed one by one to {worst:.0e}, {result['texts_equal']} of {result['texts_compared']} texts are equal"
        )
    return f"label probabilities agree with rows computed one by one to {worst:.0e}"
