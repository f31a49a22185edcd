"""Uploading adapters to the Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..config.adapter_config import CONFIG_NAME
from ..config.compatibility import read_config
from ..data.task import TASK_NAME
from ..errors import AdapterError
from ..reporting.folder import CARD_NAME, write_card
from ..reporting.merge import update_card
from ..storage.adapter import START_NAME, WEIGHTS_NAME, find_weights, read_prompt
from ..storage.atomic import write_text
from ..storage.hub import upload_errors
from ..storage.record import (
    CLASSIFIER_FILES,
    CONFUSION_PICTURE,
    LOSS_PICTURE,
    METRICS_NAME,
    STATE_NAME,
    TRAIN_METRICS_NAME,
)
from .adapters import AdapterModel
from .saving import save_adapters

SHARED = [
    WEIGHTS_NAME,
    START_NAME,
    *CLASSIFIER_FILES,
    CONFIG_NAME,
    TASK_NAME,
    CARD_NAME,
    METRICS_NAME,
    TRAIN_METRICS_NAME,
    STATE_NAME,
    LOSS_PICTURE,
    CONFUSION_PICTURE,
]
"""Files of an adapter folder that are uploaded: no checkpoints, no options with local paths, no data."""


def push_model(
    model: AdapterModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    use_auth_token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    **_: Any,
) -> Any:
    """Upload a model's adapters; see ``PeftModel.push_to_hub``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_adapters(model, folder)
        write_card(folder, repo_id)
        return push_folder(
            folder,
            repo_id,
            commit_message=commit_message or "Upload soft prompt",
            commit_description=commit_description,
            private=private,
            token=token if token is not None else use_auth_token,
            revision=revision,
            create_pr=create_pr,
        )


def push_adapter(folder: Path, repo_id: str, *, private: bool, revision: str | None, commit_message: str) -> str:
    """Upload an adapter folder, without its checkpoints; returns the address of the repository.

    Raises:
        AdapterError: the folder is not an adapter or is damaged; the Hub cannot be reached, or refuses.
    """
    if not folder.is_dir():
        raise AdapterError(f"there is no folder {folder}; give the folder of an adapter")
    config = read_config(folder)
    read_prompt(find_weights(folder), config.prompt_placement)
    write_card(folder, repo_id)
    commit = {"commit_message": commit_message, "revision": revision, "create_pr": False}
    info = push_folder(folder, repo_id, private=private, token=None, allow_patterns=SHARED, **commit)
    return str(info.repo_url)


def push_folder(folder: Path, repo_id: str, *, private: bool | None, token: bool | str | None, **commit: Any) -> Any:
    """Upload a folder to a repository of the Hub, created if it does not exist; returns its ``CommitInfo``.

    Raises:
        AdapterError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with upload_errors(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if commit.get("revision") and not commit["create_pr"]:
            api.create_branch(repo_id, branch=commit["revision"], exist_ok=True)
        _keep_card(api, repo_id, folder, commit.get("revision"))
        # A linear probe or an ensemble of an older prompt would be wrong beside this one; new ones are uploaded.
        older = list(CLASSIFIER_FILES)
        return api.upload_folder(repo_id=repo_id, folder_path=folder, delete_patterns=older, **commit)


def _keep_card(api: Any, repo_id: str, folder: Path, revision: str | None) -> None:
    """Merge the new model card into the README that is in the repository."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    card = folder / CARD_NAME
    try:
        there = Path(api.hf_hub_download(repo_id, card.name, revision=revision)).read_text(encoding="utf-8")
    except LocalEntryNotFoundError:
        raise  # the Hub was not reached, so its README is unknown
    except EntryNotFoundError:
        return
    write_text(card, update_card(there, card.read_text(encoding="utf-8")))
