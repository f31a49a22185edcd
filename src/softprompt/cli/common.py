"""What ``evaluate``, ``predict`` and ``inspect`` share: an adapter and its base model, from the options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.options import ModelOptions, build_options
from ..data.task import TASK_NAME, Task
from ..errors import ConfigError
from ..storage.atomic import expand
from .show import working

if TYPE_CHECKING:
    from ..inference.pipeline import Prompted

_HELP = "Adapter: a folder, or a repository of the Hub (owner/name)."
Adapter = Annotated[str, typer.Option("--adapter", help=_HELP, callback=expand)]
AdapterArgument = Annotated[str, typer.Argument(help=_HELP, callback=expand)]


def load(adapter: str, given: dict[str, Any]) -> Prompted:
    """Load the adapter on the base model it names, or on the one that was given."""
    values = {name: value for name, value in given.items() if name in ModelOptions.model_fields}
    options = build_options(ModelOptions, values)
    with working("loading the base model ..."):
        from ..inference.pipeline import fetch_adapter, load_prompted

        fetch_adapter(adapter)
        return load_prompted(adapter, options, model_given="model_name_or_path" in values)


def need_task(adapter: str) -> Task:
    """The adapter's task.

    Raises:
        ConfigError: the adapter does not say how to render text.
    """
    from ..inference.pipeline import fetch_adapter, read_task

    fetch_adapter(adapter)
    task = read_task(adapter)
    if task is None:
        from ..config.compatibility import read_config

        read_config(adapter)  # raises if this is not a prompt-tuning adapter
        raise ConfigError(
            f"{adapter} has no {TASK_NAME} (PEFT writes none), so it does not say how a row becomes text; put one "
            "beside it, such as that of a softprompt run on the same data"
        )
    return task
