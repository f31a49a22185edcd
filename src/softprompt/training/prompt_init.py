"""The initial prompt: a base model with a new, seeded prompt."""

from __future__ import annotations

from pathlib import Path

from ..config.adapter_config import PromptTuningConfig, PromptTuningInit, TaskType
from ..config.options import EMBEDDED_MODEL, TrainOptions
from ..data.task import Task
from ..models.device import seed_everything
from ..models.loading import Base
from ..peft.factory import get_peft_model
from ..peft.model import PeftModelForCausalLM


def add_prompt(options: TrainOptions, base: Base, task: Task) -> PeftModelForCausalLM:
    """The base model with a new prompt, seeded."""
    seed_everything(options.seed, full_determinism=options.full_determinism)
    if options.gradient_checkpointing:
        base.model.gradient_checkpointing_enable()
    is_text = options.prompt_tuning_init == PromptTuningInit.TEXT
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=options.num_virtual_tokens,
        prompt_tuning_init=options.prompt_tuning_init,
        prompt_tuning_init_text=(options.prompt_tuning_init_text or default_init_text(task)) if is_text else None,
        tokenizer_name_or_path=base.name if is_text else None,
        revision=options.revision,
        prompt_placement=options.prompt_placement,
    )
    model = get_peft_model(base.model, config, tokenizer=base.tokenizer)
    folder = Path(base.name)
    # The config names a folder by its absolute path; other names are Hub ids or the embedded model.
    config.base_model_name_or_path = (
        str(folder.resolve()) if folder.exists() and base.name != EMBEDDED_MODEL else base.name
    )
    return model


def default_init_text(task: Task) -> str:
    """An instruction made of the columns and labels of a task."""
    columns = " and ".join(column.replace("_", " ") for column in task.text_columns)
    if not task.is_classification:
        return f"Write the {task.label_column.replace('_', ' ')} of the {columns}:"
    *others, last = task.labels
    return f"Classify the {columns} as {', '.join(others) + ' or ' if others else ''}{last}:"
