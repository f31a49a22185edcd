"""The card of an adapter folder, from the records that lie in it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from ..config import CONFIG_NAME
from ..files import read_json, write_text
from ..record import METRICS_NAME, OPTIONS_NAME, STATE_NAME, TRAIN_METRICS_NAME
from ..task import Task
from ..version import __version__
from .card import model_card
from .update import update_card

CARD_NAME = "README.md"


def write_card(folder: Path, repo_id: str | None = None) -> None:
    """Write or renew ``README.md`` of an adapter folder; what a person wrote in it stays.

    Raises:
        SoftPromptError: a record of the folder is damaged.
    """
    path = folder / CARD_NAME
    card = model_card(
        config=read_json(folder / CONFIG_NAME),
        task=Task.load(folder),
        options=_maybe(folder / OPTIONS_NAME, lambda p: yaml.safe_load(p.read_text(encoding="utf-8"))),
        metrics=_maybe(folder / TRAIN_METRICS_NAME, read_json) or _maybe(folder / METRICS_NAME, read_json),
        state=_maybe(folder / STATE_NAME, lambda p: read_json(p, max_bytes=64 << 20)),
        files=sorted(entry.name for entry in folder.iterdir()),
        repo_id=repo_id,
        versions=library_versions(),
    )
    write_text(path, update_card(path.read_text(encoding="utf-8"), card) if path.is_file() else card)


def library_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"softprompt": __version__}
    for name in ("transformers", "torch", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _maybe(path: Path, read: Callable[[Path], Any]) -> Any:
    return read(path) if path.is_file() else None
