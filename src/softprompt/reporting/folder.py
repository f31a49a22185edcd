"""The model card of an adapter folder, made from the files in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..config.adapter_config import CONFIG_NAME
from ..config.yaml_file import read_yaml
from ..data.task import TASK_NAME, Task
from ..errors import SoftPromptError
from ..storage.atomic import read_json, write_text
from ..storage.record import METRICS_NAME, OPTIONS_NAME, STATE_NAME, TRAIN_METRICS_NAME, Metrics, TrainerState
from ..version import __version__
from .card import model_card
from .merge import update_card

CARD_NAME = "README.md"


def write_card(folder: Path, repo_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
    """Write or update ``README.md`` of an adapter folder; text that a person wrote is kept.

    Args:
        repo_id: ``owner/name`` on the Hub, if the card is for a repository.
        config: config of an adapter in memory [default: ``adapter_config.json``]; its base and library replace those
            that ``Trainer`` writes.

    A file that cannot be read is omitted, and a card that cannot be made is not written. Both are warnings, not
    errors, since the adapter itself is valid.
    """
    try:
        _write(folder, repo_id, config)
    except Exception as error:  # any error that an unexpected file or README causes
        warnings.warn(f"{folder / CARD_NAME} was not written: {_reason(error)}", stacklevel=2)


def _write(folder: Path, repo_id: str | None, config: Mapping[str, Any] | None) -> None:
    path = folder / CARD_NAME
    metrics = TRAIN_METRICS_NAME if (folder / TRAIN_METRICS_NAME).is_file() else METRICS_NAME
    card = model_card(
        config=read_json(folder / CONFIG_NAME) if config is None else config,
        task=_maybe(folder / TASK_NAME, Task.read),
        options=_maybe(folder / OPTIONS_NAME, read_yaml),
        metrics=_maybe(folder / metrics, lambda path: Metrics.load(path.parent, path.name).to_dict()),
        state=_maybe(folder / STATE_NAME, lambda path: TrainerState.load(path.parent).to_dict()),
        files=sorted(entry.name for entry in folder.iterdir()),
        repo_id=repo_id,
        versions=library_versions(),
    )
    settled = () if config is None else ("library_name", "base_model")
    write_text(path, update_card(path.read_text(encoding="utf-8"), card, settled) if path.is_file() else card)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    found = {"softprompt": __version__}
    for name in ("transformers", "torch", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _maybe(path: Path, read: Callable[[Path], Any]) -> Any:
    """The content of a file; ``None`` if it does not exist or, with a warning, if it cannot be read."""
    if not path.is_file():
        return None
    try:
        return read(path)
    except (SoftPromptError, OSError) as error:
        warnings.warn(f"the card leaves out {path.name}: {_reason(error)}", stacklevel=4)
        return None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
