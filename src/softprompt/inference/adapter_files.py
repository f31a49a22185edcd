"""The adapter of a folder or Hub repository, checked before torch is imported: its config and its task."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from ..config.adapter_config import CONFIG_NAME, PromptTuningConfig
from ..config.compatibility import read_config
from ..data.task import TASK_NAME, Task
from ..errors import AdapterError, ConfigError
from ..storage.atomic import expand
from ..storage.hub import FileAbsentError, find_file, looks_like_path, snapshot_adapter

Adapters: TypeAlias = "Mapping[str, str | os.PathLike[str]] | Sequence[str | os.PathLike[str]]"
"""Folders or Hub ids of adapters, with or without names."""

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


def named_adapters(adapters: Adapters) -> dict[str, str]:
    """Folders or Hub ids by name. In a list, an entry is ``NAME=DIR``, or its name is the last part of the path.

    Raises:
        ConfigError: a name cannot be one, or two are equal.
    """
    if isinstance(adapters, Mapping):
        return {checked_name(name): expand(os.fspath(source)) for name, source in adapters.items()}
    found = dict[str, str]()
    for given in adapters:
        name, source = _name_of(os.fspath(given))
        if name in found:
            raise ConfigError(f"two adapters are named {name!r}: {found[name]} and {source}; give them as NAME=DIR")
        found[checked_name(name)] = source
    return found


def _name_of(given: str) -> tuple[str, str]:
    path = Path(expand(given))
    if path.exists():
        return path.resolve().name, expand(given)
    name, separator, source = given.partition("=")
    return (name, expand(source)) if separator else (path.name, expand(given))


def checked_name(name: str) -> str:
    """The name of an adapter.

    Raises:
        ConfigError: it is empty, or contains characters that cannot be printed.
    """
    if not name or name != name.strip() or not name.isprintable():
        raise ConfigError(f"{name!r} cannot be the name of an adapter; give it as NAME=DIR")
    return name
