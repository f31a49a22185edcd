"""The model card: ``README.md`` of an adapter folder, made from its records.

A card is YAML front matter, which the Hub reads, and a Markdown body between two comment marks. Text
outside the marks, which a person wrote, is kept. A comment in the body records the front matter as it
was generated, so that the next run can tell it from what a person added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.task import Task
from ..metrics import perplexity
from .markdown import (
    base_link,
    basename,
    code,
    duration,
    escape,
    fenced,
    interval,
    is_hub_id,
    is_number,
    literal,
    number,
    public_name,
    table,
)
from .merge import BEGIN, END, MEMORY, to_yaml
from .usage import is_relative, is_suffix, usage

_SCORES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "exact_match": "Exact match",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "eval_loss": "Loss",
    "perplexity": "Perplexity",
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
    """The card of an adapter; it contains no local paths.

    Args:
        config: content of ``adapter_config.json``.
        task: content of ``task.json``; ``None`` for an adapter without one.
        options: resolved options of the training run.
        metrics: content of ``metrics.json``.
        state: content of ``trainer_state.json``.
        files: names of the files in the folder; plots among them are shown.
        repo_id: ``owner/name``, for an adapter that is uploaded to the Hub.
        versions: framework -> version.

    Returns:
        The text of ``README.md``.
    """
    options, metrics, state = options or {}, metrics or {}, state or {}
    name = _card_name(repo_id, options)
    front = _front_matter(name, config, task, options, metrics)
    sections = [
        f"# {escape(name)}",
        _summary(config, task),
        _results(metrics, task, files),
        _rendering(config, task),
        usage(config, task, files, repo_id),
        _training(config, options, state, files),
        _limits(config, task, _data_seen(options, state), metrics),
        "## Framework versions\n\n" + "\n".join(f"- {k}: {v}" for k, v in versions.items()) if versions else "",
    ]
    body = "\n\n".join(section for section in sections if section)
    # A label may contain a mark, which must not end the card.
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
    """The YAML that the Hub reads. ``library_name`` is ``peft``, which the Hub knows, if PEFT can load the adapter."""
    base = str(config.get("base_model_name_or_path") or "")
    tags = ["prompt-tuning", "softprompt", "transformers"]
    front: dict[str, Any] = {"library_name": "softprompt" if is_suffix(config) else "peft"}
    if is_hub_id(base):
        front["base_model"] = base
        tags.append(f"base_model:adapter:{base}")
    front["pipeline_tag"] = "text-generation"
    front["tags"] = sorted(tags)
    dataset = str(options.get("dataset_name") or "")
    if is_hub_id(dataset):
        front["datasets"] = [dataset]
    scores = [
        {"type": _HUB_METRICS.get(key, key), "name": title, "value": round(metrics[key], 4)}
        for key, title in _SCORES.items()
        if is_number(metrics.get(key))
    ]
    if scores:
        kind = "text-classification" if task and task.is_classification else "text-generation"
        data = _data_name(options)
        about: dict[str, Any] = {"name": data, "type": dataset if is_hub_id(dataset) else data}
        about["split"] = str(metrics.get("split") or "test")
        result = {"task": {"type": kind}, "dataset": about, "metrics": scores}
        front["model-index"] = [{"name": name, "results": [result]}]
    return front


def _summary(config: Mapping[str, Any], task: Task | None) -> str:
    tokens, width = config.get("num_virtual_tokens"), config.get("token_dim")
    size = f" of {tokens} virtual tokens" if tokens else ""
    size += f" ({tokens * width:,} trained parameters)" if tokens and width else ""
    goal = ", trained to generate an answer to a text" if task else ""
    if task and task.is_classification:
        more = f" and {len(task.labels) - 6} more" if len(task.labels) > 6 else ""
        shown = ", ".join(escape(label) for label in task.labels[:6])
        goal = f", trained to classify texts into {len(task.labels)} labels: {shown}{more}"
    kind = "suffix soft prompt" if is_suffix(config) else "soft prompt"
    return f"A {kind}{size} for {base_link(config)}{goal}. The base model is unchanged."


def _results(metrics: Mapping[str, Any], task: Task | None, files: Sequence[str]) -> str:
    columns = [key for key in _SCORES if is_number(metrics.get(key))]
    if not columns:
        return ""
    rows = [["**this prompt**", *(f"**{number(metrics[key])}**" for key in columns)]]
    for name, scores in (metrics.get("baselines") or {}).items():
        loss = scores.get("eval_loss")
        scores = {"perplexity": perplexity(loss) if is_number(loss) else None, **scores}
        rows.append([escape(name), *(number(scores.get(key)) for key in columns)])
    parts = [table(["", *(_SCORES[key] for key in columns)], rows), _result_notes(metrics, task)]
    parts.append(_class_table(metrics.get("per_class") or []))
    if "confusion_matrix.png" in files:
        parts.append("![Confusion matrix](confusion_matrix.png)")
    return "\n\n".join(["## Results", *filter(None, parts)])


def _result_notes(metrics: Mapping[str, Any], task: Task | None) -> str:
    notes, count = [], metrics.get("num_examples")
    if count:
        notes.append(f"Measured on {count:,} {escape(str(metrics.get('split') or 'test'))} rows.")
    if count and is_number(metrics.get("accuracy")):
        low, high = interval(metrics["accuracy"], count)
        notes.append(f"95% confidence interval of the accuracy: {low:.3f} to {high:.3f}.")
    if is_number(metrics.get("eval_loss")):
        of_what = "row, over the labels" if is_relative(task) else "token of the answer"
        notes.append(f"Loss is in nats per {of_what}.")
    if is_number(metrics.get("expected_calibration_error")):
        notes.append(f"Expected calibration error: {metrics['expected_calibration_error']:.3f}.")
    if is_number(metrics.get("examples_per_second")):
        notes.append(f"Speed: {metrics['examples_per_second']:.1f} rows per second.")
    return " ".join(notes)


def _class_table(classes: Sequence[Mapping[str, Any]]) -> str:
    if not classes:
        return ""
    rows = []
    for scores in classes:
        shares = (number(scores.get(key)) for key in ("precision", "recall", "f1"))
        rows.append([escape(str(scores.get("label"))), *shares, str(scores.get("support", ""))])
    rendered = table(["Label", "Precision", "Recall", "F1", "Rows"], rows)
    if len(classes) <= _FOLD_ABOVE:
        return rendered
    return f"<details>\n<summary>Each of the {len(classes)} labels</summary>\n\n{rendered}\n\n</details>"


def _rendering(config: Mapping[str, Any], task: Task | None) -> str:
    if task is None:
        return ""
    lines, answer = [f"template = {literal(task.template + task.answer_prefix)}"], "the answer"
    if task.is_classification:
        lines += ["labels = [", *(f"    {literal(label)}," for label in task.labels), "]"]
        answer = "one of the labels"
    columns = " and ".join(code(column) for column in task.text_columns)
    made = f"a text made from {columns}"
    reads = f"{made}, then the prompt" if is_suffix(config) else f"the prompt, then {made}"
    output = "The most probable label is the prediction" if is_relative(task) else f"It then generates {answer}"
    text = f"The model reads {reads}. {output}."
    parts = ["## Text and labels", text, fenced("python", lines)]
    if task.max_length:
        parts.append(f"Texts are cut so that input and answer have at most {task.max_length} tokens.")
    return "\n\n".join(parts)


def _training(
    config: Mapping[str, Any], options: Mapping[str, Any], state: Mapping[str, Any], files: Sequence[str]
) -> str:
    start = str(getattr(config.get("prompt_tuning_init"), "value", config.get("prompt_tuning_init") or ""))
    if start == "TEXT" and config.get("prompt_tuning_init_text"):
        start = f"the text {code(str(config['prompt_tuning_init_text']))}"
    rate, schedule = options.get("learning_rate"), options.get("lr_scheduler_type")
    best, done = _best_epoch(state), state.get("epoch") or options.get("num_train_epochs")
    epochs = f"{round(float(done), 2):g}" if done and is_number(done) else None
    batch, parts = options.get("per_device_train_batch_size"), options.get("gradient_accumulation_steps") or 1
    unit = " x RMS of the embeddings" if options.get("scale_learning_rate") else ""
    facts = {
        "Base model": base_link(config),
        "Virtual tokens": config.get("num_virtual_tokens"),
        "Prompt placement": "suffix" if is_suffix(config) else None,
        "Initial prompt": start,
        "Data": escape(_data_name(options)) if options else None,
        "Training rows": state.get("num_train_examples"),
        "Epochs": f"{epochs} (best: epoch {round(best, 2):g})" if epochs and best is not None else epochs,
        "Optimizer steps": state.get("global_step"),
        "Recipe": options.get("recipe"),
        "Learning rate": f"{rate:g}{unit}, {schedule}" if rate and schedule else rate,
        "Batch size": f"{batch} x {parts} accumulated" if batch and parts > 1 else batch,
        "Seed": options.get("seed"),
        "Time": duration(state["seconds"]) if state.get("seconds") else None,
    }
    rows = [[name, str(value)] for name, value in facts.items() if value not in (None, "")]
    picture = "\n\n![Loss of each epoch](training_loss.png)" if "training_loss.png" in files else ""
    return "## Training\n\n" + table(["Setting", "Value"], rows) + picture


def _data_seen(options: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    count = state.get("num_train_examples")
    rows = f"{count:,} rows" if count else "the rows"
    return f"{rows} of {escape(_data_name(options))}" if options else f"{rows} it was trained on"


def _limits(config: Mapping[str, Any], task: Task | None, data: str, metrics: Mapping[str, Any]) -> str:
    base = public_name(str(config.get("base_model_name_or_path") or "")) or "its base model"
    points = [
        f"It was trained on {data}; accuracy may be lower on other kinds of text, languages or times.",
        "Errors in the training labels and biases of the base model affect its predictions.",
        f"It works only with {escape(base)}.",
    ]
    if task and task.is_classification:
        points.append("It predicts one of its labels for every text, even if none applies.")
    for name, scores in (metrics.get("baselines") or {}).items():
        ours, theirs = metrics.get("accuracy"), scores.get("accuracy")
        if is_number(ours) and is_number(theirs) and theirs >= ours:
            points.append(f'Its accuracy does not exceed that of the baseline "{escape(name)}".')
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _card_name(repo_id: str | None, options: Mapping[str, Any]) -> str:
    return basename(repo_id or str(options.get("output_dir") or "")) or "soft prompt"


def _data_name(options: Mapping[str, Any]) -> str:
    source = public_name(str(options.get("dataset_name") or ""))
    return source or basename(str(options.get("train_file") or "")) or "unnamed data"


def _best_epoch(state: Mapping[str, Any]) -> float | None:
    history = state.get("history") or ()
    best = state.get("best_step")
    return next((record["epoch"] for record in history if best is not None and record.get("step") == best), None)
