"""The recipes: what ``softprompt train`` does where nothing else is asked for. Plain sets of options.

Each choice can be made, or unmade, by its own option. ``docs/recipes.md`` says what each is worth, with figures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config.options import TrainOptions
from ..data.task import Task
from ..errors import ConfigError

GUIDE = "guide"
EPOCHS = ("num_train_epochs", "fold_epochs")
FOLD_OPTIONS = ("fold_repeats", "fold_epochs", "fold_learning_rate")
MANY_ROWS, LEAST_EPOCHS = 100, 3
SCHEDULE: dict[str, Any] = {
    "learning_rate": 0.07,
    "scale_learning_rate": True,  # embeddings of one family are a hundred times as large as those of another
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,  # towards zero, which is no word
}
CLASSES: dict[str, Any] = {
    **SCHEDULE,
    "objective": "classes",
    "class_weights": "balanced",
    "linear_probe": True,
    "num_virtual_tokens": 8,
    "num_train_epochs": 25,
}
FREE_TEXT: dict[str, Any] = {**SCHEDULE, "learning_rate": 0.3, "num_virtual_tokens": 16, "num_train_epochs": 20}
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    GUIDE: {"classification": {}, "generation": {}},  # the options' own defaults
    "default": {
        "classification": CLASSES,
        "generation": FREE_TEXT,
    },
    "best": {
        "classification": {**CLASSES, "num_folds": 5, "fold_repeats": 2, "fold_epochs": 15},
        "generation": FREE_TEXT,  # twice the tokens and the epochs only learn the training rows by heart
    },
}


def follow(options: TrainOptions, task: Task, num_rows: int) -> tuple[TrainOptions, Task]:
    """Options and task with all that the recipe sets and nobody has given.

    Args:
        num_rows: training rows; beyond ``MANY_ROWS`` they are gone through fewer times.

    Raises:
        ConfigError: options that were given exclude each other.
    """
    given = {name for name in options.model_fields_set if getattr(options, name) is not None}
    kind = "classification" if task.is_classification else "generation"
    values = {name: value for name, value in RECIPES[options.recipe][kind].items() if name not in given}
    values |= {name: _fewer(values[name], num_rows) for name in EPOCHS if name in values}
    if "learning_rate" in given:
        values.pop("scale_learning_rate", None)  # a rate is meant as it was given
    if "warmup_steps" in given:
        values.pop("warmup_ratio", None)  # 0 means no warm-up
    chosen = options.model_copy(update=values)
    _check(chosen, given, task, num_rows)
    if options.recipe != GUIDE and options.template is None:
        task = replace(
            task,
            template=_template(task),
            answer_prefix=_answer_prefix(task) if chosen.prompt_placement == "prefix" else "",
        )
    if options.recipe != GUIDE and not (task.template + task.answer_prefix)[-1:].isspace():
        task = replace(task, label_prefix=" ")  # so that a label has the tokens that it has in running text
    by_start = chosen.objective == "classes" or chosen.num_folds
    return chosen, replace(task, label_scoring="unique_prefix" if by_start else "text")


def _check(chosen: TrainOptions, given: set[str], task: Task, num_rows: int) -> None:
    """Refuse what cannot be had together."""
    by_classes, folds = chosen.objective == "classes", bool(chosen.num_folds)
    asked = {"linear_probe": chosen.linear_probe, "objective=classes": by_classes, "num_folds": folds}
    asked["unlabeled_file"] = chosen.unlabeled_file is not None
    for what, wanted in asked.items():
        if wanted and not task.is_classification:
            raise ConfigError(f"{what} needs classes, but this task is to write free text; leave it out")
    if chosen.unlabeled_file and not folds:
        raise ConfigError("unlabeled_file teaches the prompts of num_folds; take recipe=best, or leave it out")
    if folds and num_rows < 2:
        raise ConfigError("num_folds leaves rows out, and there is but one; give more rows, or num_folds=0")
    fields = TrainOptions.model_fields
    idle = [name for name in FOLD_OPTIONS if name in given and getattr(chosen, name) != fields[name].default]
    if idle and not folds and "num_folds" not in given:  # who says num_folds=0 knows
        raise ConfigError(f"{idle[0]} is for prompts of num_folds, but there are none; take recipe=best, or leave it")
    if "class_weights" in given and chosen.class_weights != "none" and not (by_classes or folds):
        raise ConfigError("class_weights=balanced needs objective=classes: the other loss is a mean over tokens")


def _fewer(epochs: int, num_rows: int) -> int:
    """About as many steps for any number of rows beyond ``MANY_ROWS``; each row is seen a few times at least."""
    return max(min(epochs, LEAST_EPOCHS), epochs * MANY_ROWS // max(num_rows, MANY_ROWS))


def _template(task: Task) -> str:
    """Text in lines of its own. The first is empty: models park attention on a first token, which should be no word."""
    alone = len(task.text_columns) == 1 and task.is_classification
    lines = [f"{{{name}}}" if alone else f"{name}: {{{name}}}" for name in task.text_columns]
    return "".join(f"\n{line}" for line in lines)


def _answer_prefix(task: Task) -> str:
    return "\nLabel:" if task.is_classification else f"\n{task.label_column}:"
