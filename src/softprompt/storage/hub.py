"""Finding the files of an adapter: in a folder, else in a repository of the Hub."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from .atomic import expand


class FileAbsentError(AdapterError):
    """A folder or repository without the file that was looked for."""


def find_file(repo_or_folder: str, name: str, *, subfolder: str | None = None, **kwargs: Any) -> Path:
    """The local path of ``name`` in a folder, or its download from the Hub's cache.

    Keyword arguments that ``snapshot_download`` does not take are ignored.

    Raises:
        FileAbsentError: the folder or repository is there, the file is not.
        AdapterError: there is no such folder or repository, or the Hub cannot be reached.
    """
    folder = Path(expand(repo_or_folder), subfolder or "")
    if (folder / name).is_file():
        return folder / name
    if folder.is_dir():
        raise FileAbsentError(f"Can't find '{name}' at '{folder}': the folder has no such file")
    if folder.exists():
        raise AdapterError(f"{folder} is a file; an adapter is a folder")
    if looks_like_path(repo_or_folder):
        raise AdapterError(f"Can't find '{name}' at '{folder}': there is no such folder")
    inside = f"{subfolder}/{name}" if subfolder else name
    try:
        path = snapshot(repo_or_folder, [inside], **kwargs) / inside
    except AdapterError as error:  # PEFT's message begins so
        raise AdapterError(f"Can't find '{name}' at '{repo_or_folder}': {error}") from error
    if not path.is_file():
        where = f"{repo_or_folder}/{subfolder}" if subfolder else repo_or_folder
        raise FileAbsentError(f"Can't find '{name}' at '{where}': the repository has no such file")
    return path


def snapshot(repo_id: str, patterns: Sequence[str], **kwargs: Any) -> Path:
    """Download an adapter's files that match the patterns into the cache, and return their folder.

    The Hub is asked once, without retries: ``hf_hub_download`` retries for half a minute. Without a network the cache
    is used.

    Args:
        **kwargs: ``revision``, ``token``, ``cache_dir``, ``local_files_only``; others are ignored.

    Raises:
        AdapterError: there is no such repository or no access to it, or the Hub cannot be reached and it is not cached.
    """
    if "/" not in repo_id:
        raise AdapterError(f"there is no folder {repo_id!r}; an adapter on the Hub is named owner/name")
    import huggingface_hub

    known = inspect.signature(huggingface_hub.snapshot_download).parameters
    options = {k: v for k, v in kwargs.items() if k in known and v is not None}
    if kwargs.get("use_auth_token") is not None:
        options.setdefault("token", kwargs["use_auth_token"])
    try:
        with _quiet():
            return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(patterns), **options))
    except Exception as error:  # the Hub client's errors, and those of its HTTP library
        partial = getattr(error, "snapshot_path", None)  # no network, and some of the files are not cached
        if partial is not None:
            return Path(partial)
        raise AdapterError(_reason(error, repo_id, options.get("revision"))) from error


def looks_like_path(name: str) -> bool:
    """Whether ``name`` is a path rather than a repository (``owner/name``) or a bare name."""
    return os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1 or name.endswith("/")


def _reason(error: Exception, repo_id: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        address = f"{constants.ENDPOINT}/{repo_id}"
        return f"{repo_id} is gated; ask for access at {address} and log in (hf auth login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r} on the Hub"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{repo_id} is neither a folder here nor an adapter on the Hub (if it is private: hf auth login)"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{repo_id} is neither a folder here nor in the Hub's cache, and the Hub cannot be reached (no network?)"
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{repo_id} is not a folder here, and the download from the Hub failed: {reason}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence log lines and progress bars of the Hub's client inside this context."""
    from huggingface_hub import utils

    level, bars = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity_error()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(level)
        if bars:
            utils.enable_progress_bars()
