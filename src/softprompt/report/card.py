"""The model card: ``README.md`` of an adapter folder, made from its records.

A card is YAML front matter, which the Hub reads, and a Markdown body between two comment marks. A
README that a person wrote is kept around the marks. To tell, on the next run, our old front matter
from what a person put there, the body remembers in a comment what we wrote.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics import perplexity
from ..record import ENSEMBLE_NAME, READOUT_NAME
from ..task import Task
from .update import BEGIN, END, MEMORY, to_yaml

_HUB_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"{_HUB_PART}/{_HUB_PART}")
_SCORES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "exact_match": "Exact match",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "eval_loss": "Loss",
    "perplexity": "Perplexity",
}
_BESIDE = {
    ENSEMBLE_NAME: f"an ensemble of prompts (`{ENSEMBLE_NAME}`)",
    READOUT_NAME: f"a read-out of the hidden states (`{READOUT_NAME}`)",
}
_HUB_METRICS = {"macro_f1": "f1", "eval_loss": "loss"}
_FOLD_ABOVE = 12  # labels: a longer table is folded away


def model_card(
    *,
    config: Mapping[str, Any],
    task: Task | None,
    options: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
    state: Mapping[str, Any] | None,
    files: Sequence[str],
    repo_id: str | None,
    versions: Mapping[str, str],
) -> str:
    """Write the card of an adapter; it names no local folder.

    Args:
        config: content of ``adapter_config.json``.
        task: how rows become text; ``None`` for an adapter made without one.
        options: resolved options of the training run.
        metrics: content of ``metrics.json``.
        state: content of ``trainer_state.json``.
        files: names of the files in the folder; pictures among them are shown.
        repo_id: ``owner/name`` on the Hub, when the adapter is meant for it.
        versions: framework -> version.

    Returns:
        The text of ``README.md``.
    """
    options, metrics, state = options or {}, metrics or {}, state or {}
    name = _card_name(repo_id, options)
    front = _front_matter(name, config, task, options, metrics)
    sections = [
        f"# {_escape(name)}",
        _summary(config, task),
        _results(metrics, files),
        _rendering(config, task),
        _usage(config, task, files, repo_id),
        _training(config, options, state, files),
        _limits(config, task, _data_seen(options, state), metrics),
        "## Framework versions\n\n" + "\n".join(f"- {k}: {v}" for k, v in versions.items()) if versions else "",
    ]
    body = "\n\n".join(section for section in sections if section)
    # A label could hold our marks; a card must not be able to end itself early.
    body = body.replace("<!-- softprompt:", "<!- - softprompt:")
    memory = json.dumps(front).replace(">", "\\u003e")  # so that no "-->" ends the comment
    return f"---\n{to_yaml(front)}---\n\n{BEGIN}\n{MEMORY}{memory} -->\n\n{body}\n\n{END}\n"


def _front_matter(
    name: str,
    config: Mapping[str, Any],
    task: Task | None,
    options: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """What the Hub reads. ``library_name`` is PEFT's where that loads the folder, since the Hub knows it."""
    base = str(config.get("base_model_name_or_path") or "")
    tags = ["prompt-tuning", "softprompt", "transformers"]
    front: dict[str, Any] = {"library_name": "softprompt" if _stands_behind(config) else "peft"}
    if _is_hub_id(base):
        front["base_model"] = base
        tags.append(f"base_model:adapter:{base}")
    front["pipeline_tag"] = "text-generation"
    front["tags"] = sorted(tags)
    dataset = str(options.get("dataset_name") or "")
    if _is_hub_id(dataset):
        front["datasets"] = [dataset]
    scores = [
        {"type": _HUB_METRICS.get(key, key), "name": title, "value": round(metrics[key], 4)}
        for key, title in _SCORES.items()
        if _is_number(metrics.get(key))
    ]
    if scores:
        kind = "text-classification" if task and task.is_classification else "text-generation"
        data = _data_name(options)
        about: dict[str, Any] = {"name": data, "type": dataset if _is_hub_id(dataset) else data}
        about["split"] = str(metrics.get("split") or "test")
        result = {"task": {"type": kind}, "dataset": about, "metrics": scores}
        front["model-index"] = [{"name": name, "results": [result]}]
    return front


def _summary(config: Mapping[str, Any], task: Task | None) -> str:
    tokens, width = config.get("num_virtual_tokens"), config.get("token_dim")
    size = f" of {tokens} virtual tokens" if tokens else ""
    size += f" ({tokens * width:,} trained numbers)" if tokens and width else ""
    goal = ", trained to write an answer to a text" if task else ""
    if task and task.is_classification:
        more = f" and {len(task.labels) - 6} more" if len(task.labels) > 6 else ""
        shown = ", ".join(_escape(label) for label in task.labels[:6])
        goal = f", trained to answer with one of {len(task.labels)} labels: {shown}{more}"
    where = " that stands behind the text" if _stands_behind(config) else ""
    return f"A soft prompt{size}{where} for {_base_link(config)}{goal}. The base model itself is unchanged."


def _stands_behind(config: Mapping[str, Any]) -> bool:
    return str(getattr(config.get("peft_type"), "value", config.get("peft_type"))) == "SUFFIX_PROMPT_TUNING"


def _results(metrics: Mapping[str, Any], files: Sequence[str]) -> str:
    columns = [key for key in _SCORES if _is_number(metrics.get(key))]
    if not columns:
        return ""
    rows = [["**this prompt**", *(f"**{_number(metrics[key])}**" for key in columns)]]
    for name, scores in (metrics.get("baselines") or {}).items():
        loss = scores.get("eval_loss")
        scores = {"perplexity": perplexity(loss) if _is_number(loss) else None, **scores}
        rows.append([_escape(name), *(_number(scores.get(key)) for key in columns)])
    parts = [_table(["", *(_SCORES[key] for key in columns)], rows), _result_notes(metrics)]
    parts.append(_class_table(metrics.get("per_class") or []))
    if "confusion_matrix.png" in files:
        parts.append("![Confusion matrix](confusion_matrix.png)")
    return "\n\n".join(["## Results", *filter(None, parts)])


def _result_notes(metrics: Mapping[str, Any]) -> str:
    notes, count = [], metrics.get("num_examples")
    if count:
        notes.append(f"Measured on {count:,} {_escape(str(metrics.get('split') or 'test'))} rows.")
    if count and _is_number(metrics.get("accuracy")):
        low, high = _interval(metrics["accuracy"], count)
        notes.append(f"With so many rows the 95% interval of the accuracy is {low:.3f} to {high:.3f}.")
    if _is_number(metrics.get("eval_loss")):
        notes.append("Loss is in nats per token of the answer.")
    if _is_number(metrics.get("expected_calibration_error")):
        notes.append(f"Expected calibration error: {metrics['expected_calibration_error']:.3f}.")
    if _is_number(metrics.get("examples_per_second")):
        notes.append(f"Speed: {metrics['examples_per_second']:.1f} rows per second.")
    return " ".join(notes)


def _class_table(classes: Sequence[Mapping[str, Any]]) -> str:
    if not classes:
        return ""
    rows = []
    for scores in classes:
        shares = (_number(scores.get(key)) for key in ("precision", "recall", "f1"))
        rows.append([_escape(str(scores.get("label"))), *shares, str(scores.get("support", ""))])
    table = _table(["Label", "Precision", "Recall", "F1", "Rows"], rows)
    if len(classes) <= _FOLD_ABOVE:
        return table
    return f"<details>\n<summary>Each of the {len(classes)} labels</summary>\n\n{table}\n\n</details>"


def _rendering(config: Mapping[str, Any], task: Task | None) -> str:
    if task is None:
        return ""
    lines, answer = [f"template = {_literal(task.template + task.cue)}"], "the answer"
    if task.is_classification:
        lines += ["labels = [", *(f"    {_literal(label)}," for label in task.labels), "]"]
        answer = "one of the labels"
    columns = " and ".join(_code(column) for column in task.text_columns)
    made = f"a text made from {columns}"
    reads = f"{made}, then the prompt" if _stands_behind(config) else f"the prompt, then {made}"
    text = f"The model reads {reads}, and goes on with {answer}:"
    parts = ["## Text and labels", text, _fenced("python", lines)]
    if task.max_length:
        parts.append(f"Texts are cut so that text and answer have at most {task.max_length} tokens.")
    return "\n\n".join(parts)


def _usage(config: Mapping[str, Any], task: Task | None, files: Sequence[str], repo_id: str | None) -> str:
    adapter = repo_id or "path/to/this/folder"
    base = str(config.get("base_model_name_or_path") or "")
    where = _literal(base if _is_hub_id(base) else f"path/to/{_basename(base) or 'base-model'}")
    text = _literal(_filled(task.template + task.cue) if task else "...")
    end = f", eos_token_id={task.end_token_id}" if task and task.end_token_id is not None else ""
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "from softprompt import PeftModel",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({where})",
        f"base = AutoModelForCausalLM.from_pretrained({where})",
        f"model = PeftModel.from_pretrained(base, {_literal(adapter)})",
        "",
        f'inputs = tokenizer({text}, return_tensors="pt")',
        f"output = model.generate(**inputs, max_new_tokens=20{end})",
        'answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)',
    ]
    shell = ["pip install softprompt", f'softprompt predict --adapter {adapter} --text "..."']
    peft = [
        "PEFT loads the same files; its import is the only line that differs:",
        _fenced("python", ["from peft import PeftModel"]),
    ]
    if _stands_behind(config):
        peft = ["PEFT cannot load it: there a prompt stands in front of the text."]
    beside = [what for name, what in _BESIDE.items() if name in files]
    if beside:
        peft.append(
            f"`softprompt predict` and `evaluate` read {' and '.join(beside)} too, and the figures above are of all "
            f"together. {'In Python' if _stands_behind(config) else 'In Python and in PEFT'}, the prompt answers alone."
        )
    return "\n\n".join([
        "## Use",
        "On the command line:", _fenced("bash", shell),
        "In Python:", _fenced("python", code),
        *peft,
    ])  # fmt: skip


def _training(
    config: Mapping[str, Any], options: Mapping[str, Any], state: Mapping[str, Any], files: Sequence[str]
) -> str:
    start = str(getattr(config.get("prompt_tuning_init"), "value", config.get("prompt_tuning_init") or ""))
    if start == "TEXT" and config.get("prompt_tuning_init_text"):
        start = f"the text {_code(str(config['prompt_tuning_init_text']))}"
    rate, schedule = options.get("learning_rate"), options.get("lr_scheduler_type")
    epochs, best = state.get("num_train_epochs", options.get("num_train_epochs")), _best_epoch(state)
    batch, parts = options.get("per_device_train_batch_size"), options.get("gradient_accumulation_steps") or 1
    unit = " x RMS of the embeddings" if options.get("scale_learning_rate") else ""
    facts = {
        "Base model": _base_link(config),
        "Virtual tokens": config.get("num_virtual_tokens"),
        "Place of the prompt": "behind the text" if _stands_behind(config) else None,
        "Start of the prompt": start,
        "Data": _escape(_data_name(options)) if options else None,
        "Training rows": state.get("num_train_examples"),
        "Epochs": f"{epochs} (best: epoch {best:g})" if epochs and best is not None else epochs,
        "Optimiser steps": state.get("global_step"),
        "Recipe": options.get("recipe"),
        "Learning rate": f"{rate:g}{unit}, {schedule}" if rate and schedule else rate,
        "Batch size": f"{batch} x {parts} accumulated" if batch and parts > 1 else batch,
        "Seed": options.get("seed"),
        "Time": _duration(state["seconds"]) if state.get("seconds") else None,
    }
    rows = [[name, str(value)] for name, value in facts.items() if value not in (None, "")]
    picture = "\n\n![Loss of each epoch](training_loss.png)" if "training_loss.png" in files else ""
    return "## Training\n\n" + _table(["Setting", "Value"], rows) + picture


def _data_seen(options: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    count = state.get("num_train_examples")
    rows = f"{count:,} rows" if count else "the rows"
    return f"{rows} of {_escape(_data_name(options))}" if options else f"{rows} it was trained on"


def _limits(config: Mapping[str, Any], task: Task | None, data: str, metrics: Mapping[str, Any]) -> str:
    base = _public_name(str(config.get("base_model_name_or_path") or "")) or "its base model"
    points = [
        f"It has seen {data}; texts of another kind, language or time may go worse.",
        "Its answers are only as good as the labels it was trained on, and inherit the base model's biases.",
        f"It works with {_escape(base)} alone: a prompt means nothing to another model.",
    ]
    if task and task.is_classification:
        points.append("It chooses one of its labels for every text, also where none fits.")
    for name, scores in (metrics.get("baselines") or {}).items():
        ours, theirs = metrics.get("accuracy"), scores.get("accuracy")
        if _is_number(ours) and _is_number(theirs) and theirs >= ours:
            points.append(f'In accuracy it does not beat the baseline "{_escape(name)}".')
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


# --- names, words and figures ---------------------------------------------------------------------


def _is_hub_id(name: str) -> bool:
    """Whether ``name`` reads as ``owner/name``, and not as a file or folder."""
    is_file = name.endswith((".gguf", ".json", ".jsonl", ".csv", ".tsv", ".parquet"))
    return bool(_HUB_ID.fullmatch(name)) and "--" not in name and ".." not in name and not is_file


def _basename(path: str) -> str:
    """The last part of a path, of whatever system; it tells nothing of the machine."""
    return re.split(r"[\\/]+", path.rstrip("\\/"))[-1]


def _public_name(name: str) -> str:
    """A Hub id as it is; of a local path the last part."""
    return name if _is_hub_id(name) else _basename(name)


def _card_name(repo_id: str | None, options: Mapping[str, Any]) -> str:
    return _basename(repo_id or str(options.get("output_dir") or "")) or "soft prompt"


def _data_name(options: Mapping[str, Any]) -> str:
    source = _public_name(str(options.get("dataset_name") or ""))
    return source or _basename(str(options.get("train_file") or "")) or "unnamed data"


def _base_link(config: Mapping[str, Any]) -> str:
    base, revision = str(config.get("base_model_name_or_path") or ""), config.get("revision")
    text = _escape(_basename(base) or "its base model")
    if _is_hub_id(base):
        text = f"[{_escape(base)}](https://huggingface.co/{base})"
    return f"{text} (revision {_escape(str(revision))})" if revision else text


def _best_epoch(state: Mapping[str, Any]) -> float | None:
    history = state.get("history") or ()
    best = state.get("best_step")
    return next((record["epoch"] for record in history if best is not None and record.get("step") == best), None)


def _interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share seen in ``count`` rows; it holds near 0 and 1 too."""
    z2 = 1.96**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count * count))) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def _filled(template: str) -> str:
    """The template with ``<column>`` where a text goes."""
    return re.sub(r"\{\{|\}\}|\{([^{}]*)\}", lambda m: m[0][0] if m[1] is None else f"<{m[1]}>", template)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> str:
    if not _is_number(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---"] + ["---:"] * (len(head) - 1) if len(head) > 2 else ["---"] * len(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ruler, *rows])


def _escape(text: str) -> str:
    """``text`` on one line, with what Markdown, HTML or a table would take for markup disarmed."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", line)


def _code(text: str) -> str:
    """``text`` as inline code that may stand in a table cell."""
    line = " ".join(text.split()).replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{ticks} {line} {ticks}" if "`" in line else f"`{line}`"


def _literal(text: str) -> str:
    """``text`` as a Python string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _fenced(language: str, lines: Sequence[str]) -> str:
    code = "\n".join(lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"
