"""Finding a file of an adapter: in a folder, else in a repository of the Hub."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from .errors import AdapterError


def find_file(
    repo_or_folder: str, name: str, *, subfolder: str | None = None, required: bool = True, **kwargs: Any
) -> Path | None:
    """The local path of ``name`` in a folder, or its download from the Hub's cache.

    Keyword arguments that ``hf_hub_download`` does not take are left aside.

    Returns:
        The path; ``None`` when the file is absent and ``required`` is false.

    Raises:
        AdapterError: the file is not in the folder, or cannot be had from the Hub.
    """
    folder = Path(repo_or_folder, subfolder or "")
    if (folder / name).is_file():
        return folder / name
    if folder.is_dir() or _looks_like_path(repo_or_folder):
        if not required:
            return None
        what = "has no" if folder.is_dir() else "does not exist, so there is no"
        raise AdapterError(f"Can't find '{name}' at '{repo_or_folder}': the folder {folder} {what} {name}")
    return _download(repo_or_folder, name, subfolder=subfolder, required=required, **kwargs)


def _download(repo_id: str, name: str, *, required: bool, **kwargs: Any) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    known = inspect.signature(hf_hub_download).parameters
    options = {k: v for k, v in kwargs.items() if k in known and v is not None}
    if "use_auth_token" in kwargs:
        options.setdefault("token", kwargs["use_auth_token"])
    try:
        return Path(hf_hub_download(repo_id, name, **options))
    except Exception as error:
        absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        if absent and not required:
            return None
        reason = str(error).strip().split("\n")[0]
        raise AdapterError(
            f"Can't find '{name}' at '{repo_id}': it is neither a folder here nor to be had from the Hub ({reason})"
        ) from error


def _looks_like_path(name: str) -> bool:
    """Whether ``name`` cannot be a repository id (``owner/name`` or ``name``)."""
    return os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1 or name.endswith("/")
