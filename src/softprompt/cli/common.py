"""What ``evaluate``, ``predict`` and ``inspect`` share: an adapter and its base model, from the options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..options import ModelOptions, build_options
from .show import console

if TYPE_CHECKING:
    from ..loading import Prompted

Adapter = Annotated[str, typer.Option("--adapter", help="Adapter: a folder, or a repository of the Hub.")]


def load(adapter: str, given: dict[str, Any]) -> Prompted:
    """Load the adapter on the base model it names, or on the one that was given."""
    values = {name: value for name, value in given.items() if name in ModelOptions.model_fields}
    options = build_options(ModelOptions, values)
    with console.status("loading the base model ..."):
        from ..loading import load_prompted

        return load_prompted(adapter, options, model_given="model_name_or_path" in values)


def need_task(prompted: Prompted, adapter: str) -> Any:
    """The adapter's task.

    Raises:
        ConfigError: the adapter does not say how to render text.
    """
    if prompted.task is None:
        raise ConfigError(
            f"{adapter} has no task.json (PEFT writes none), so it does not say how a row becomes text; "
            "run 'softprompt evaluate' on it with --test_file, --text_column and --label_column instead"
        )
    return prompted.task
