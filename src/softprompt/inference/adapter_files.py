"""The adapter of a folder or Hub repository, checked before torch is imported: its config and its task."""

from __future__ import annotations

from pathlib import Path

from ..config.adapter_config import CONFIG_NAME, PromptTuningConfig
from ..config.compatibility import read_config
from ..data.task import TASK_NAME, Task
from ..errors import AdapterError
from ..storage.hub import FileAbsentError, find_file, looks_like_path, snapshot_adapter

RAW_TASK = Task(text_columns=("text",), label_column="label", template="{text}")
"""The task of an adapter without ``task.json`` (PEFT writes none): the text is the input, unchanged."""
WITHOUT_TASK = f"no {TASK_NAME}; texts are passed to the model unchanged, so format them as in training"
"""The message for such an adapter."""


def fetch_adapter(adapter: str) -> PromptTuningConfig:
    """The config of an adapter, checked to be of a supported type; one on the Hub is downloaded into the cache.

    Raises:
        AdapterError: there is no such adapter, it is of another type, or the Hub cannot be reached and the adapter is
            not cached.
    """
    if not Path(adapter).exists() and not looks_like_path(adapter):
        snapshot_adapter(adapter, [CONFIG_NAME, TASK_NAME, "*.safetensors"])
    return read_config(adapter)


def read_task(adapter: str) -> Task | None:
    """The task of an adapter, ``None`` if it has no ``task.json``.

    Raises:
        AdapterError: the file is damaged.
    """
    path = find_optional(adapter, TASK_NAME)
    return None if path is None else Task.read(path)


def check_same_base(adapter: str, trained_on: str, given: str, advice: str) -> None:
    """Refuse a base model of another name; two paths or Hub ids are the same if their last parts are.

    Args:
        advice: ends the message.

    Raises:
        AdapterError: the names differ.
    """
    if Path(trained_on).name.lower() != Path(given).name.lower():
        raise AdapterError(
            f"{adapter} was trained on {trained_on}, not on {given}; a prompt works only with the base model it was "
            f"trained on: {advice}"
        )


def find_optional(adapter: str, name: str) -> Path | None:
    """Path of a file of an adapter, ``None`` if the adapter does not have it."""
    try:
        return find_file(adapter, name)
    except FileAbsentError:
        return None
