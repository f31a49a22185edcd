"""Finding a file of an adapter: in a folder, else in a repository of the Hub."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from .errors import AdapterError


class FileAbsentError(AdapterError):
    """A folder or repository without the file that was looked for."""


def find_file(repo_or_folder: str, name: str, *, subfolder: str | None = None, **kwargs: Any) -> Path:
    """The local path of ``name`` in a folder, or its download from the Hub's cache.

    Keyword arguments that ``hf_hub_download`` does not take are left aside.

    Raises:
        FileAbsentError: the folder or repository is there, the file is not.
        AdapterError: there is no such folder or repository, or the Hub cannot be reached.
    """
    folder = Path(repo_or_folder, subfolder or "")
    if (folder / name).is_file():
        return folder / name
    if folder.is_dir():
        raise FileAbsentError(f"Can't find '{name}' at '{folder}': the folder has no such file")
    if _looks_like_path(repo_or_folder):
        raise AdapterError(f"Can't find '{name}' at '{folder}': there is no such folder")
    return _download(repo_or_folder, name, subfolder=subfolder, **kwargs)


def _download(repo_id: str, name: str, **kwargs: Any) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    known = inspect.signature(hf_hub_download).parameters
    options = {k: v for k, v in kwargs.items() if k in known and v is not None}
    if "use_auth_token" in kwargs:
        options.setdefault("token", kwargs["use_auth_token"])
    try:
        return Path(hf_hub_download(repo_id, name, **options))
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            folder = f"{repo_id}/{options['subfolder']}" if options.get("subfolder") else repo_id
            raise FileAbsentError(f"Can't find '{name}' at '{folder}': the repository has no such file") from error
        if isinstance(error, LocalEntryNotFoundError) and _is_known_to_be_absent(repo_id, name, options):
            raise FileAbsentError(f"Can't find '{name}' at '{repo_id}': the repository has no such file") from error
        if isinstance(error, RevisionNotFoundError):
            raise AdapterError(
                f"Can't find '{name}' at '{repo_id}': the repository has no revision {options['revision']!r}"
            ) from error
        if isinstance(error, RepositoryNotFoundError):
            raise AdapterError(
                f"Can't find '{name}' at '{repo_id}': it is not a folder here, and there is no such repository on the "
                "Hub, or it is private and you are not logged in (hf auth login)"
            ) from error
        reason = str(error).strip().split("\n")[0]
        raise AdapterError(
            f"Can't find '{name}' at '{repo_id}': it is neither a folder here nor to be had from the Hub ({reason})"
        ) from error


def _is_known_to_be_absent(repo_id: str, name: str, options: dict[str, Any]) -> bool:
    """Whether the Hub, when it could be reached, said that there is no such file."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    path = f"{options['subfolder']}/{name}" if options.get("subfolder") else name
    where = {key: options[key] for key in ("cache_dir", "revision", "repo_type") if key in options}
    return try_to_load_from_cache(repo_id, path, **where) is _CACHED_NO_EXIST


def _looks_like_path(name: str) -> bool:
    """Whether ``name`` cannot be a repository id (``owner/name`` or ``name``)."""
    return os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1 or name.endswith("/")
