"""How an adapter is used: a section of its card, with code that runs as it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.task import Task
from ..storage.record import ENSEMBLE_NAME, PROBE_NAME
from .markdown import basename, fenced, is_hub_id, literal

_BESIDE = {
    ENSEMBLE_NAME: f"an ensemble of prompts (`{ENSEMBLE_NAME}`)",
    PROBE_NAME: f"a read-out of the hidden states (`{PROBE_NAME}`)",
}


def usage(config: Mapping[str, Any], task: Task | None, files: Sequence[str], repo_id: str | None) -> str:
    """The section: on the command line, in Python, in PEFT."""
    adapter = repo_id or "path/to/this/folder"
    base = str(config.get("base_model_name_or_path") or "")
    where = literal(base if is_hub_id(base) else f"path/to/{basename(base) or 'base-model'}")
    text = literal(_filled(task.template + task.answer_prefix) if task else "...")
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        *_imports(task),
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({where})",
        f"base = AutoModelForCausalLM.from_pretrained({where})",
        f"model = PeftModel.from_pretrained(base, {literal(adapter)})",
        "",
        f'inputs = tokenizer({text}, return_tensors="pt")',
        *(_chosen(task, suffix=is_suffix(config)) if task and is_choice(task) else _written(task)),
    ]
    shell = ["pip install softprompt", f"softprompt predict --adapter {adapter} {_given(task)}"]
    peft = [
        "PEFT loads the same files; its import is the only line that differs:",
        fenced("python", ["from peft import PeftModel"]),
    ]
    if is_choice(task):
        peft = [
            "PEFT loads the same prompt (`from peft import PeftModel`). It has learned which label to prefer, not to "
            "write one: there, compare the logits of the labels' first tokens behind the text."
        ]
    if is_suffix(config):
        peft = ["PEFT cannot load it: there a prompt stands in front of the text."]
    beside = [what for name, what in _BESIDE.items() if name in files]
    if beside:
        peft.append(
            f"`softprompt predict` and `evaluate` read {' and '.join(beside)} too, and the figures above are of all "
            f"together. {'In Python' if is_suffix(config) else 'In Python and in PEFT'}, the prompt answers alone."
        )
    return "\n\n".join([
        "## Use",
        "On the command line:", fenced("bash", shell),
        "In Python:", fenced("python", code),
        *peft,
    ])  # fmt: skip


def _given(task: Task | None) -> str:
    """How ``predict`` is given rows: one text by itself, several columns in a file."""
    return '--text "..."' if task is None or len(task.text_columns) == 1 else "--input_file rows.csv"


def _imports(task: Task | None) -> list[str]:
    if task is None or not is_choice(task):
        return ["from softprompt import PeftModel"]
    starts = f"from softprompt.data.tokenize import {'running_ids, ' if task.label_prefix else ''}unique_prefixes"
    return ["from softprompt import PeftModel, score_labels", starts]


def _written(task: Task | None) -> list[str]:
    """Code that lets the model write."""
    end = f", eos_token_id={task.end_token_id}" if task and task.end_token_id is not None else ""
    return [
        f"output = model.generate(**inputs, max_new_tokens=20{end})",
        'answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)',
    ]


def _chosen(task: Task, *, suffix: bool) -> list[str]:
    """Code that chooses a label by the tokens that tell it from the others."""
    labels = ", ".join(literal(task.label_prefix + label) for label in task.labels)
    alone = "tuple(tokenizer(label, add_special_tokens=False).input_ids)"
    ids = "running_ids(tokenizer, label)" if task.label_prefix else alone  # as encode.py has them
    place = ', placement="suffix"' if suffix else ""
    return [
        f"labels = [{labels}]",
        f"tokens = [{ids} for label in labels]",
        f"scores = score_labels(base, model.prompt, inputs.input_ids.tolist(), unique_prefixes(tokens){place})",
        "answer = labels[scores.argmax()].strip()",
    ]


def is_choice(task: Task | None) -> bool:
    """Whether the prompt has learned which label to prefer, and not to write one."""
    return task is not None and task.label_scoring == "unique_prefix"


def _filled(template: str) -> str:
    """The template with ``<column>`` where a text goes."""
    return re.sub(r"\{\{|\}\}|\{([^{}]*)\}", lambda m: m[0][0] if m[1] is None else f"<{m[1]}>", template)


def is_suffix(config: Mapping[str, Any]) -> bool:
    """Whether the prompt of an ``adapter_config.json`` stands behind the text."""
    return str(getattr(config.get("peft_type"), "value", config.get("peft_type"))) == "SUFFIX_PROMPT_TUNING"
