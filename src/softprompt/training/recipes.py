"""Recipes: defaults for the options of ``softprompt train`` that are omitted, and the text format of the task.

Each value of a recipe can be overridden by its own option. ``docs/recipes.md`` gives their effects, measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..config.options import TrainOptions
from ..data.sources import find_template
from ..data.task import Task
from ..errors import ConfigError

GUIDE = "guide"
EPOCHS = ("num_train_epochs", "fold_epochs")
FOLD_OPTIONS = ("fold_repeats", "fold_epochs", "fold_learning_rate")
MANY_ROWS, MIN_EPOCHS = 100, 3
SCHEDULE: dict[str, Any] = {
    "learning_rate": 0.07,
    "scale_learning_rate": True,  # the size of embeddings differs a hundredfold between families
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,  # it pulls towards zero, which is not a word's embedding
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
        "generation": FREE_TEXT,  # more tokens or epochs only overfit
    },
}


def apply_recipe(options: TrainOptions, *, is_classification: bool, num_rows: int) -> TrainOptions:
    """Options with the recipe's values for those that are omitted.

    Args:
        num_rows: training rows; beyond ``MANY_ROWS`` there are fewer epochs.

    Raises:
        ConfigError: options that exclude each other, or that need classes.
    """
    given = {name for name in options.model_fields_set if getattr(options, name) is not None}
    kind = "classification" if is_classification else "generation"
    values = {name: value for name, value in RECIPES[options.recipe][kind].items() if name not in given}
    values |= {name: _scaled_epochs(values[name], num_rows) for name in EPOCHS if name in values}
    if "learning_rate" in given:
        values.pop("scale_learning_rate", None)  # a given rate is absolute unless scale_learning_rate is given too
    if "warmup_steps" in given:
        values.pop("warmup_ratio", None)  # 0 means no warm-up
    resolved = options.model_copy(update=values)
    _check(resolved, given, is_classification, num_rows)
    return resolved


def build_task(options: TrainOptions, columns: Sequence[str], labels: Sequence[str], end_token_id: int | None) -> Task:
    """The task of a run: how a row becomes text, and which labels there are.

    Args:
        options: with the recipe applied. The guide's format is that of the template alone; other recipes add an
            answer prefix, and a space before each label so that it has the tokens it has in running text.
        columns: names of the columns of the rows.
        labels: of a classification task; empty for generation.
        end_token_id: the token that ends a label.

    Raises:
        DataError: the template does not fit the columns, or reads the label.
    """
    template, answer_prefix, label_prefix = find_template(columns, options), "", ""
    if options.recipe != GUIDE:
        if options.template is None:
            template = _template(options.text_column, bool(labels))
            if options.prompt_placement == "prefix":
                answer_prefix = "\nLabel:" if labels else f"\n{options.label_column}:"
        if not (template + answer_prefix)[-1:].isspace():
            label_prefix = " "
    by_prefix = options.objective == "classes" or options.num_folds
    return Task(
        text_columns=tuple(options.text_column),
        label_column=options.label_column,
        template=template,
        labels=tuple(labels),
        max_length=options.max_length,
        end_token_id=end_token_id,
        answer_prefix=answer_prefix,
        label_prefix=label_prefix,
        label_scoring="unique_prefix" if by_prefix else "text",
    )


def _check(resolved: TrainOptions, given: set[str], is_classification: bool, num_rows: int) -> None:
    """Refuse options that exclude each other."""
    by_classes, folds = resolved.objective == "classes", bool(resolved.num_folds)
    needs_classes = {"linear_probe": resolved.linear_probe, "objective=classes": by_classes, "num_folds": folds}
    needs_classes["unlabeled_file"] = resolved.unlabeled_file is not None
    for name, used in needs_classes.items():
        if used and not is_classification:
            raise ConfigError(f"{name} needs classes, but this is a generation task; omit it")
    if resolved.unlabeled_file and not folds:
        raise ConfigError("unlabeled_file needs num_folds, whose prompts train on it; use recipe=best, or omit it")
    if folds and num_rows < 2:
        raise ConfigError("num_folds needs at least 2 training rows; give more rows, or num_folds=0")
    fields = TrainOptions.model_fields
    unused = [name for name in FOLD_OPTIONS if name in given and getattr(resolved, name) != fields[name].default]
    if unused and not folds and "num_folds" not in given:  # num_folds=0 in a YAML file may leave the others in it
        raise ConfigError(f"{unused[0]} needs num_folds; use recipe=best, or omit it")
    if "class_weights" in given and resolved.class_weights != "none" and not (by_classes or folds):
        raise ConfigError("class_weights=balanced needs objective=classes: the other loss is a mean over tokens")


def _scaled_epochs(epochs: int, num_rows: int) -> int:
    """Epochs that take about as many steps for any number of rows beyond ``MANY_ROWS``; at least ``MIN_EPOCHS``."""
    return max(min(epochs, MIN_EPOCHS), epochs * MANY_ROWS // max(num_rows, MANY_ROWS))


def _template(text_columns: Sequence[str], is_classification: bool) -> str:
    """Each text column on a line of its own. The first line is empty, since models attend strongly to a first token."""
    alone = len(text_columns) == 1 and is_classification
    lines = [f"{{{name}}}" if alone else f"{name}: {{{name}}}" for name in text_columns]
    return "".join(f"\n{line}" for line in lines)
