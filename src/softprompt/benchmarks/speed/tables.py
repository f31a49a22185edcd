"""``benchmarks/results.md``: the results as tables. Reads the records only, measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

SMOLLM2, GEMMA, BLOOM = "SmolLM2-135M", "Gemma 3 270M", "bloomz-560m's shape (random weights)"

Result = dict[str, Any]

AIMS = {
    (SMOLLM2, 8): (2.8, 0.55),
    (SMOLLM2, 100): (5.0, 0.35),
    (GEMMA, 8): (6.0, 0.45),
    (GEMMA, 100): (8.5, 0.25),
    (BLOOM, 8): (3.3, 0.6),
    (BLOOM, 100): (6.5, 0.4),
}
"""What was aimed at: training speed against the guide's loop, and peak memory relative to PEFT's."""

SUFFIX_AIM, EVALUATION_AIM, TASKS_AIM, SCALING_AIM, CLASSES_AIM = 2.5, 10.0, 5.0, 0.25, 3.0


_TEXTS = {
    "Training": """\
Forward and backward of a batch of 8 rows; rows per second. *Gradient*: largest relative difference from the gradient
of the rows alone, unpadded, by plain calls of the model.""",
    "Training, only the import changed": """\
`get_peft_model(...)` of either package on the guide's padded batches, in turn: `model(**batch).loss.backward()`.""",
    "The bound": """\
The time of a step's matrix products alone, each unique token once (linear layers forward and backward, output matrix at
supervised positions): run bare, each layer's own weights one after the other, in turn with the steps. Attention, norms
and all else count as nothing. The share is of the faster library's bound; in brackets, of torch's own products.""",
    "The prompt behind the text": f"""\
`softprompt train --prompt_placement suffix` (text, prompt, label; each text is read once, before the clock) against our
own `softprompt train`: forward and backward of a batch of 8 rows, all with texts of at least 30 tokens, template
included. PEFT has no such thing. Aimed at: {SUFFIX_AIM:g}x. *Reading*: texts a second, paid once for all epochs.
*Gradient*: as above, of rows in the order text, prompt, label.""",
    "Many classes": f"""\
`softprompt train --recipe default`, cross-entropy between the labels, against `--recipe guide`, the loss of the right
label: forward and backward of a batch of 8 rows. *A step*: its time relative to a step of `guide`. Aimed at: at most
{CLASSES_AIM:g}. *Gradient*: as above, against a row whose labels are computed one by one.""",
    "Evaluation": f"""\
A turn is four batches of the guide. PEFT: the guide's loop over them (logits of all positions, the most probable tokens
decoded). softprompt: the probability of every label, as `softprompt evaluate` does by default: 32 rows at a time, the
longest first; nothing is padded there, so a larger batch wastes nothing. Aimed at: {EVALUATION_AIM:g}x.
*Probabilities*: largest relative difference from each row alone.""",
    "Generation": """\
Greedy, ten new tokens a row. *Guide*: its own call, row by row. *Longest*: one batch of 8 rows, left-padded. *Equal*:
rows whose tokens are those that the row gets alone (guide / longest / softprompt).""",
    "Sixteen tasks in one stream": f"""\
Rows of 16 prompts, shuffled. PEFT: grouped by task, `set_adapter` for each group. softprompt: one stream. Aimed at:
{TASKS_AIM:g}x.""",
    "Peak memory": """\
Of a whole process, weights included, that goes through four batches; GiB.""",
    "Scaling": f"""\
`softprompt train` alone. Aimed at: rows per second within {SCALING_AIM:.0%} of the bound's own growth, that is, a share
relative to the first (in brackets) between {1 - SCALING_AIM:g} and {1 + SCALING_AIM:g}. Attention grows with the square
of the text and is not in the bound; *attention counted* adds its operations to those of the step.""",
}


def as_markdown(stored: dict[str, Any], notes: str = "") -> str:
    """The whole page.

    Args:
        stored: what ``results.json`` holds.
        notes: put at the end.
    """
    results = [entry["result"] for entry in stored["measurements"].values()]
    against = [result for result in results if "peft_guide_rows_per_second" in result]
    alone = [result for result in results if result["subject"] == "train" and "text_tokens" in result]
    own = ("prefix_rows_per_second", "guide_rows_per_second")
    compared = [*against, *(result for result in results if any(key in result for key in own))]
    of = {name: [result for result in compared if result["subject"] == name] for name in _SECTIONS}
    parts = [_head(stored)]
    parts += [_SECTIONS[name](rows) for name, rows in of.items() if rows]
    if of["train"]:
        parts += [_drop_in(of["train"]), _bound(of["train"])]
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
    return f"""# Measured

{" to ".join(dict.fromkeys((dates[0], dates[-1])))}, by `make bench`; do not edit, write into `notes.md` beside it.

{machine["cpu"]}, {machine["cores"]} cores, {machine["memory_gib"]} GiB; {machine["system"]}; {versions};
{threads} threads, {dtypes}. Rows: {stored["rows"]}, in the guide's template, cut at 64 tokens.

All sides of a line take turns in one process, on the same rows and the same weights in memory; figures are medians of
the turns. The spread is half the distance of the quartiles, relative to the median, the largest of the sides.
*Guide* is PEFT as Hugging Face's guide runs it, padded to 64 tokens; *longest* is PEFT padded to the longest row of
each batch."""


def _training(results: Sequence[Result]) -> str:
    def aim(result: Result) -> str:
        known = AIMS.get((result["model"], result["num_virtual_tokens"]))
        return f"{known[0]:g}x" if known else "-"

    return _table(
        "Training",
        results,
        {**_SPEEDS, "against guide": _times("speedup_vs_peft_guide"), "aim": aim, **_BEST_AND_SPREAD, **_GRADIENT},
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
        "The prompt behind the text",
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
            "a step": lambda result: f"**{1 / result['speedup_vs_guide']:.2f}**",
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
        counts = [result[f"{side}rows_equal_alone"] for side in ("peft_guide_", "peft_best_", "")]
        return f"{' / '.join(map(str, counts))} of {result['rows_compared']}"

    return _table(
        "Generation",
        results,
        {**_SPEEDS, "against guide": _times("speedup_vs_peft_guide"), **_BEST_AND_SPREAD, "equal": equal},
    )


def _tasks(results: Sequence[Result]) -> str:
    return _table(
        "Sixteen tasks in one stream",
        results,
        {
            **_ROWS,
            **_SPEEDS,
            "against guide": _times("speedup_vs_peft_guide"),
            **_BEST_AND_SPREAD,
            **_PROBABILITIES,
        },
    )


def _bound(results: Sequence[Result]) -> str:
    return _table(
        "The bound",
        results,
        {
            "unique tokens": lambda result: f"{result['unique_tokens_per_step']:.0f}",
            "GFLOP a step": lambda result: f"{result['gflop_per_step']:.0f}",
            "torch, GFLOPS": _number("torch_gflops", 0),
            "oneDNN, GFLOPS": _number("onednn_gflops", 0),
            "share of the bound": lambda result: (
                f"{result['gemm_bound_fraction']:.2f} ({result['torch_gemm_bound_fraction']:.2f})"
            ),
            "plans, of a step": lambda result: f"{result['plan_seconds_fraction']:.1%}",
        },
    )


def _memory(results: Sequence[Result]) -> str:
    def aim(result: Result) -> str:
        known = AIMS.get((result["model"], result["num_virtual_tokens"]))
        return f"{known[1]:g}" if known and result["subject"] == "train" else "-"

    return _table(
        "Peak memory",
        [result for result in results if "memory_ratio" in result],
        {
            "what": lambda result: result["subject"],
            "PEFT, guide": lambda result: f"{result['peft_peak_memory_bytes'] / 2**30:.2f}",
            "softprompt": lambda result: f"{result['peak_memory_bytes'] / 2**30:.2f}",
            "ratio": _number("memory_ratio"),
            "aim": aim,
        },
    )


def _scaling(results: Sequence[Result]) -> str:
    ordered = sorted(results, key=lambda result: (result["per_device_train_batch_size"], result["text_tokens"]))

    def speed_of_bound(result: Result) -> str:
        return f"{result['rows_per_batch'] / result['bound_seconds']:.2f}"

    def share(result: Result) -> float:
        return float(result["gemm_bound_fraction"])

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
            "bound, rows/s": speed_of_bound,
            "share of the bound": relative(share),
            "attention counted": relative(with_attention),
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
}
