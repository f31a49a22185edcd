"""``benchmarks/results.md`` of the speed benchmark, from stored results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

SMOLLM2, GEMMA, BLOOM = "SmolLM2-135M", "Gemma 3 270M", "bloomz-560m's shape (random weights)"

Result = dict[str, Any]

GOALS = {
    (SMOLLM2, 8): (2.8, 0.55),
    (SMOLLM2, 100): (5.0, 0.35),
    (GEMMA, 8): (6.0, 0.45),
    (GEMMA, 100): (8.5, 0.25),
    (BLOOM, 8): (3.3, 0.6),
    (BLOOM, 100): (6.5, 0.4),
}
"""Goals: training speed relative to the guide's loop, and peak memory relative to PEFT's."""

SUFFIX_GOAL, EVALUATION_GOAL, TASKS_GOAL, SCALING_GOAL, CLASSES_GOAL = 2.5, 10.0, 5.0, 0.25, 3.0
SERVE_GOAL = 4.0


_TEXTS = {
    "Training": """\
Forward and backward pass of a batch of 8 rows; rows per second. *Gradient*: largest relative difference from the
gradient of the same rows computed one by one, without padding, with plain calls of the model.""",
    "Training, only the import changed": """\
`get_peft_model(...)` of either package on the guide's padded batches: `model(**batch).loss.backward()`.""",
    "Roofline": """\
The time of a step's matrix products (linear layers forward and backward for each unique token, output matrix at
supervised positions), timed alone in turn with the steps, with each layer's own weights. Attention, norms and
everything else count as zero. *Share*: roofline time of the faster library relative to the time of a step; in brackets,
that of torch's own products.""",
    "Suffix prompt": f"""\
`softprompt train --prompt_placement suffix` (text, prompt, label; the text cache is filled before the clock starts)
against `softprompt train` with a prefix prompt: forward and backward pass of a batch of 8 rows, all with texts of at
least 30 tokens, template included. PEFT has no suffix prompts. Goal: {SUFFIX_GOAL:g}x. *Reading*: texts per second
while filling the cache, paid once for all epochs. *Gradient*: as above, for rows in the order text, prompt, label.""",
    "Many classes": f"""\
`softprompt train --recipe default`, cross-entropy over the labels, against `--recipe guide`, the loss of the correct
label: forward and backward pass of a batch of 8 rows. *Relative time*: of a step, relative to `guide`. Goal: at most
{CLASSES_GOAL:g}. *Gradient*: as above, against a row whose labels are computed one by one.""",
    "Evaluation": f"""\
A turn is four batches of the guide. PEFT: the guide's loop over them (logits at all positions, the most probable tokens
decoded). softprompt: the probability of every label, as in `softprompt evaluate`: 32 rows at a time, the longest first,
without padding. Goal: {EVALUATION_GOAL:g}x. *Probabilities*: largest relative difference from rows computed one by
one.""",
    "Generation": """\
Greedy decoding, ten new tokens per row. *Guide*: its own call, row by row. *Longest*: one batch of 8 rows, left-padded.
*Equal*: rows with the same tokens as when computed alone (guide / longest / softprompt).""",
    "Sixteen tasks in one batch": f"""\
Rows of 16 prompts, shuffled. PEFT: grouped by task, `set_adapter` for each group. softprompt: one run of the model.
Goal: {TASKS_GOAL:g}x.""",
    "Server": f"""\
Requests for eight tasks over loopback, six that classify and two that generate ten tokens; requests per second. PEFT:
behind the same HTTP application, grouped by task, `set_adapter` for each group; *guide* generates labels, *first token*
chooses them by the logits of their first tokens. *Direct*: softprompt's engine without a server, as many rows at a time
as requests are in flight. Goal: {SERVE_GOAL:g}x on AMD processors, 2.2x on Intel's. Latencies in milliseconds.""",
    "Peak memory": """\
Peak memory in GiB of a process that computes four batches, weights included.""",
    "Scaling": f"""\
`softprompt train` without PEFT. Goal: rows per second within {SCALING_GOAL:.0%} of the growth of the roofline, that is,
a share relative to the first (in brackets) between {1 - SCALING_GOAL:g} and {1 + SCALING_GOAL:g}. Attention grows with
the square of the text length and is not part of the roofline; *with attention* adds its operations.""",
}


def as_markdown(stored: dict[str, Any], notes: str = "") -> str:
    """The whole page.

    Args:
        stored: content of ``results.json`` (``suite.read_stored``).
        notes: Markdown to append.
    """
    results = [entry["result"] for entry in stored["measurements"].values()]
    against = [result for result in results if "peft_guide_rows_per_second" in result]
    alone = [result for result in results if result["workload"] == "train" and "text_tokens" in result]
    own = ("prefix_rows_per_second", "guide_rows_per_second")
    compared = [*against, *(result for result in results if any(key in result for key in own))]
    of = {name: [result for result in compared if result["workload"] == name] for name in _SECTIONS}
    parts = [_head(stored)]
    parts += [_SECTIONS[name](rows) for name, rows in of.items() if rows]
    if of["train"]:
        parts += [_drop_in(of["train"]), _roofline(of["train"])]
    parts += [_memory([*of["train"], *of["evaluate"]])] if against else []
    parts += [_scaling(alone)] if alone else []
    parts += [notes.strip()] if notes.strip() else []
    return "\n\n".join([*parts, _commands(stored["measurements"])]) + "\n"


def _head(stored: dict[str, Any]) -> str:
    machine = stored["machine"]
    dates = sorted({entry["date"] for entry in stored["measurements"].values()})
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    threads, dtypes = (
        ", ".join(sorted({str(entry["result"][key]) for entry in stored["measurements"].values()}))
        for key in ("num_threads", "dtype")
    )
    return f"""# Speed and memory

{" to ".join(dict.fromkeys((dates[0], dates[-1])))}, written by `make bench`. Do not edit; add text to `notes.md`.

{machine["cpu"]}, {machine["cores"]} cores, {machine["memory_gib"]} GiB; {machine["system"]}; {versions};
{threads} threads, {dtypes}. Rows: {stored["rows"]}, in the guide's template, truncated to 64 tokens.

The implementations of a line take turns in one process, on the same rows and the same weights in memory; figures are
medians of the turns. *Spread* is half the interquartile range relative to the median, the largest of all
implementations. *Guide* is PEFT as in Hugging Face's guide, padded to 64 tokens; *longest* is PEFT padded to the
longest row of each batch."""


def _training(results: Sequence[Result]) -> str:
    def goal(result: Result) -> str:
        known = GOALS.get((result["model"], result["num_virtual_tokens"]))
        return f"{known[0]:g}x" if known else "-"

    return _table(
        "Training",
        results,
        {**_SPEEDS, "against guide": _times("speedup_vs_peft_guide"), "goal": goal, **_BEST_AND_SPREAD, **_GRADIENT},
    )


def _drop_in(results: Sequence[Result]) -> str:
    def kept(result: Result) -> str:
        return f"{result['drop_in_rows_per_second'] / result['rows_per_second']:.2f}"

    return _table(
        "Training, only the import changed",
        results,
        {
            "PEFT, guide": _number("peft_guide_rows_per_second"),
            "softprompt": _number("drop_in_rows_per_second"),
            "against guide": _times("drop_in_speedup_vs_peft_guide"),
            "relative to `softprompt train`": kept,
        },
    )


def _suffix(results: Sequence[Result]) -> str:
    return _table(
        "Suffix prompt",
        results,
        {
            "prefix": _number("prefix_rows_per_second"),
            "suffix": _number("rows_per_second"),
            "against prefix": _times("speedup_vs_prefix"),
            **_SPREAD,
            "reading": lambda result: f"{result['texts_read'] / result['read_texts_seconds']:.1f}",
            **_GRADIENT,
        },
    )


def _classes(results: Sequence[Result]) -> str:
    return _table(
        "Many classes",
        results,
        {
            "classes": lambda result: str(result["num_classes"]),
            **_ROWS,
            "guide": _number("guide_rows_per_second"),
            "default": _number("rows_per_second"),
            "relative time": lambda result: f"**{1 / result['speedup_vs_guide']:.2f}**",
            "tokens": lambda result: str(result["tokens_per_step"]),
            "with logits": lambda result: str(result["positions_per_step"]),
            **_SPREAD,
            **_GRADIENT,
        },
    )


def _evaluation(results: Sequence[Result]) -> str:
    return _table(
        "Evaluation",
        results,
        {**_ROWS, **_SPEEDS, "against guide": _times("speedup_vs_peft_guide"), **_BEST_AND_SPREAD, **_PROBABILITIES},
    )


def _generation(results: Sequence[Result]) -> str:
    def equal(result: Result) -> str:
        counts = [result[f"{implementation}rows_equal_alone"] for implementation in ("peft_guide_", "peft_best_", "")]
        return f"{' / '.join(map(str, counts))} of {result['rows_compared']}"

    return _table(
        "Generation",
        results,
        {**_SPEEDS, "against guide": _times("speedup_vs_peft_guide"), **_BEST_AND_SPREAD, "equal": equal},
    )


def _tasks(results: Sequence[Result]) -> str:
    return _table(
        "Sixteen tasks in one batch",
        results,
        {
            **_ROWS,
            **_SPEEDS,
            "against guide": _times("speedup_vs_peft_guide"),
            **_BEST_AND_SPREAD,
            **_PROBABILITIES,
        },
    )


def _serve(results: Sequence[Result]) -> str:
    def latencies(prefix: str) -> Column:
        return lambda result: " / ".join(
            f"{result[f'{prefix}latency_ms_{share}']:.0f}" for share in ("p50", "p95", "p99")
        )

    return _table(
        "Server",
        results,
        {
            "in flight": lambda result: str(result["concurrency"]),
            "PEFT, guide": _number("peft_guide_rows_per_second"),
            "PEFT, first token": _number("peft_best_rows_per_second"),
            "direct": _number("direct_rows_per_second"),
            "softprompt": _number("rows_per_second"),
            "against guide": _times("speedup_vs_peft_guide"),
            **_SPREAD,
            "p50 / p95 / p99": latencies(""),
            "PEFT's, guide": latencies("peft_guide_"),
            "probabilities": lambda result: f"{result['max_relative_label_probability_difference']:.0e}",
        },
    )


def _roofline(results: Sequence[Result]) -> str:
    return _table(
        "Roofline",
        results,
        {
            "unique tokens": lambda result: f"{result['unique_tokens_per_step']:.0f}",
            "GFLOP a step": lambda result: f"{result['gflop_per_step']:.0f}",
            "torch, GFLOPS": _number("torch_gflops", 0),
            "oneDNN, GFLOPS": _number("onednn_gflops", 0),
            "share": lambda result: f"{result['roofline_fraction']:.2f} ({result['torch_roofline_fraction']:.2f})",
            "plans, share of a step": lambda result: f"{result['plan_seconds_fraction']:.1%}",
        },
    )


def _memory(results: Sequence[Result]) -> str:
    def goal(result: Result) -> str:
        known = GOALS.get((result["model"], result["num_virtual_tokens"]))
        return f"{known[1]:g}" if known and result["workload"] == "train" else "-"

    return _table(
        "Peak memory",
        [result for result in results if "memory_ratio" in result],
        {
            "workload": lambda result: result["workload"],
            "PEFT, guide": lambda result: f"{result['peft_peak_memory_bytes'] / 2**30:.2f}",
            "softprompt": lambda result: f"{result['peak_memory_bytes'] / 2**30:.2f}",
            "ratio": _number("memory_ratio"),
            "goal": goal,
        },
    )


def _scaling(results: Sequence[Result]) -> str:
    ordered = sorted(results, key=lambda result: (result["per_device_train_batch_size"], result["text_tokens"]))

    def roofline_speed(result: Result) -> str:
        return f"{result['rows_per_batch'] / result['roofline_seconds']:.2f}"

    def share(result: Result) -> float:
        return float(result["roofline_fraction"])

    def with_attention(result: Result) -> float:
        return share(result) * (1 + float(result["attention_gflop_per_step"] / result["gflop_per_step"]))

    def relative(of: Callable[[Result], float]) -> Column:
        return lambda result: f"{of(result):.2f} ({of(result) / of(ordered[0]):.2f})"

    return _table(
        "Scaling",
        ordered,
        {
            "batch": lambda result: str(result["per_device_train_batch_size"]),
            "text tokens": lambda result: str(result["text_tokens"]),
            "rows/s": _number("rows_per_second"),
            "roofline, rows/s": roofline_speed,
            "share": relative(share),
            "with attention": relative(with_attention),
            "GiB": lambda result: (
                f"{result['peak_memory_bytes'] / 2**30:.2f}" if "peak_memory_bytes" in result else "-"
            ),
        },
    )


def _commands(measurements: Iterable[str]) -> str:
    return "\n".join(["## Commands", "", "```", *(f"softprompt {command}" for command in measurements), "```"])


Column = Callable[[Result], str]


def _table(title: str, results: Sequence[Result], columns: dict[str, Column]) -> str:
    columns = {"model": lambda result: result["model"], "virtual": lambda r: str(r["num_virtual_tokens"]), **columns}
    lines = [list(columns), ["---" if name == "model" else "---:" for name in columns]]
    lines += [[column(result) for column in columns.values()] for result in results]
    return "\n".join([f"## {title}", "", _TEXTS[title], "", *(f"| {' | '.join(cells)} |" for cells in lines)])


def _number(key: str, digits: int = 2) -> Column:
    return lambda result: "-" if result.get(key) is None else f"{result[key]:.{digits}f}"


def _times(key: str) -> Column:
    return lambda result: f"**{result[key]:.2f}x**"


def _labels_equal(result: Result) -> str:
    return f"{result['predicted_labels_equal']} of {result['rows_compared']}"


_SPEEDS: dict[str, Column] = {
    "PEFT, guide": _number("peft_guide_rows_per_second"),
    "PEFT, longest": _number("peft_best_rows_per_second"),
    "softprompt": _number("rows_per_second"),
}
_ROWS: dict[str, Column] = {"rows": lambda result: str(result["rows_per_batch"])}
_SPREAD: dict[str, Column] = {"spread": lambda result: f"{max(result['spread'].values()):.0%}"}
_BEST_AND_SPREAD: dict[str, Column] = {
    "against longest": lambda result: f"{result['speedup_vs_peft_best']:.2f}x",
    **_SPREAD,
}
_GRADIENT: dict[str, Column] = {"gradient": lambda result: f"{result['max_relative_gradient_difference']:.0e}"}
_PROBABILITIES: dict[str, Column] = {
    "probabilities": lambda result: f"{result['max_relative_label_probability_difference']:.0e}",
    "labels equal": _labels_equal,
}
_SECTIONS: dict[str, Callable[[Sequence[Result]], str]] = {
    "train": _training,
    "suffix": _suffix,
    "classes": _classes,
    "evaluate": _evaluation,
    "generate": _generation,
    "tasks": _tasks,
    "serve": _serve,
}
