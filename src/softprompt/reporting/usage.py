"""The section of a model card that shows how to use the adapter, with code that runs as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.options import EMBEDDED_MODEL
from ..data.task import Task
from ..storage.record import ENSEMBLE_NAME, PROBE_NAME
from .markdown import basename, fenced, is_hub_id, literal

_MAX_NEW_TOKENS = 20


def usage(config: Mapping[str, Any], task: Task | None, files: Sequence[str], repo_id: str | None) -> str:
    """The section: on the command line, in Python, in PEFT."""
    adapter = repo_id or "path/to/this/folder"
    base = str(config.get("base_model_name_or_path") or "")
    is_public = is_hub_id(base) or base == EMBEDDED_MODEL
    where = base if is_public else f"path/to/{basename(base) or 'base-model'}"
    return "\n\n".join([
        "## Use",
        "On the command line:", fenced("bash", _shell(adapter, where, is_public, task)),
        "In Python:", fenced("python", _python(adapter, where, is_public, task)),
        _peft(adapter, config, task),
        *_parts_note(files),
    ])  # fmt: skip


def _shell(adapter: str, base: str, is_public: bool, task: Task | None) -> list[str]:
    given = '--text "..."'
    if task and len(task.text_columns) > 1:
        given = "--input_file rows.csv --output_file predictions.csv"
    elif task is None or not task.is_classification:
        given += f" --max_new_tokens {_MAX_NEW_TOKENS}"
    base_option = "" if is_public else f" --model_name_or_path {base}"
    return ["pip install softprompt", f"softprompt predict --adapter {adapter}{base_option} {given}"]


def _python(adapter: str, base: str, is_public: bool, task: Task | None) -> list[str]:
    options = "" if is_public else f", model_name_or_path={literal(base)}"
    text = literal("...")
    if task and len(task.text_columns) > 1:
        text = f"{{{', '.join(f'{literal(column)}: {text}' for column in task.text_columns)}}}"
    lines = ["import softprompt", ""]
    if task and task.is_classification:
        return [
            *lines,
            f"classifier = softprompt.load({literal(adapter)}{options})",
            f"prediction = classifier.predict({text})",
            "print(prediction.label, prediction.probability)",
        ]
    comment = "" if task else "  # the text as it is: format it as in training"
    return [
        *lines,
        f"generator = softprompt.load({literal(adapter)}{options})",
        f"answer = generator.generate({text}, max_new_tokens={_MAX_NEW_TOKENS}){comment}",
        "print(answer)",
    ]


def _peft(adapter: str, config: Mapping[str, Any], task: Task | None) -> str:
    """How to use the files in PEFT."""
    if is_suffix(config):
        return "PEFT cannot load it: it supports only prompts that precede the text."
    if is_relative(task):
        return (
            "PEFT loads the prompt (`from peft import PeftModel`). The prompt was trained to rank the labels, not to "
            "generate them: in PEFT, compare the logits of the labels' first tokens after the text."
        )
    base = str(config.get("base_model_name_or_path") or "")
    base = base if is_hub_id(base) else f"path/to/{basename(base) or 'base-model'}"
    text = literal(_filled(task.template + task.answer_prefix) if task else "...")
    end = f", eos_token_id={task.end_token_id}" if task and task.end_token_id is not None else ""
    code = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({literal(base)})",
        f"base = AutoModelForCausalLM.from_pretrained({literal(base)})",
        f"model = PeftModel.from_pretrained(base, {literal(adapter)})",
        "",
        f'inputs = tokenizer({text}, return_tensors="pt")',
        f"output = model.generate(**inputs, max_new_tokens={_MAX_NEW_TOKENS}{end})",
        'answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)',
    ]
    return "\n\n".join(["In PEFT, or with `from softprompt import PeftModel`:", fenced("python", code)])


def _parts_note(files: Sequence[str]) -> list[str]:
    """A note on the parts that only softprompt reads."""
    ensemble, probe = f"the ensemble (`{ENSEMBLE_NAME}`)", f"the linear probe (`{PROBE_NAME}`)"
    if ENSEMBLE_NAME in files and PROBE_NAME in files:
        how = f"with {ensemble}, averaged with {probe} and calibrated on held-out rows"
    elif ENSEMBLE_NAME in files:
        how = f"with {ensemble}, calibrated on held-out rows"
    elif PROBE_NAME in files:
        how = f"with the prompt, averaged with {probe}"
    else:
        return []
    return [f"softprompt predicts {how}; the results above are those of this classifier. PEFT reads the prompt alone."]


def is_relative(task: Task | None) -> bool:
    """Whether the prompt was trained to rank the labels, not to generate them."""
    return task is not None and task.label_scoring == "unique_prefix"


def _filled(template: str) -> str:
    """The template with ``<column>`` in place of each field."""
    return re.sub(r"\{\{|\}\}|\{([^{}]*)\}", lambda m: m[0][0] if m[1] is None else f"<{m[1]}>", template)


def is_suffix(config: Mapping[str, Any]) -> bool:
    """Whether an ``adapter_config.json`` is that of a suffix prompt."""
    return str(getattr(config.get("peft_type"), "value", config.get("peft_type"))) == "SUFFIX_PROMPT_TUNING"
