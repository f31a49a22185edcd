"""The Hub: whether a name is a path or a repository, finding and downloading files, and the messages of its errors."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import AdapterError, BaseModelError
from .atomic import expand


class FileAbsentError(AdapterError):
    """The folder or repository has no such file."""


def find_file(repo_or_folder: str, name: str, *, subfolder: str | None = None, **kwargs: Any) -> Path:
    """The local path of an adapter's file: in a folder, or downloaded from the Hub into the cache.

    Keyword arguments that ``snapshot_download`` does not take are ignored.

    Raises:
        FileAbsentError: the folder or repository exists, the file does not.
        AdapterError: the folder or repository does not exist, or the Hub cannot be reached.
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
        path = snapshot_adapter(repo_or_folder, [inside], **kwargs) / inside
    except AdapterError as error:  # the message begins as PEFT's does
        raise AdapterError(f"Can't find '{name}' at '{repo_or_folder}': {error}") from error
    if not path.is_file():
        where = f"{repo_or_folder}/{subfolder}" if subfolder else repo_or_folder
        raise FileAbsentError(f"Can't find '{name}' at '{where}': the repository has no such file")
    return path


def snapshot_adapter(repo_id: str, patterns: Sequence[str], **kwargs: Any) -> Path:
    """Download an adapter's files that match the patterns into the cache, and return their folder.

    Args:
        **kwargs: ``revision``, ``token`` (or the older ``use_auth_token``), ``cache_dir``, ``local_files_only``;
            others are ignored.

    Raises:
        AdapterError: the repository does not exist or cannot be accessed, or it is not cached and the Hub is offline.
    """
    if "/" not in repo_id:
        raise AdapterError(f"there is no folder {repo_id!r}; an adapter on the Hub is named owner/name")
    if kwargs.get("use_auth_token") is not None:
        kwargs = {"token": kwargs["use_auth_token"], **kwargs}
    return _snapshot(repo_id, patterns, AdapterError, **kwargs)


def snapshot_model(repo_id: str, patterns: Sequence[str], **kwargs: Any) -> Path:
    """Download a base model's files that match the patterns into the cache, and return their folder.

    Raises:
        BaseModelError: as :func:`snapshot_adapter`.
    """
    return _snapshot(repo_id, patterns, BaseModelError, **kwargs)


def _snapshot(
    repo_id: str, patterns: Sequence[str], error_class: type[AdapterError | BaseModelError], **kwargs: Any
) -> Path:
    """Download files in one request for the revision; without a network, use the cache.

    ``hf_hub_download`` and ``from_pretrained`` ask for each file, and retry for half a minute without a network.
    """
    import huggingface_hub

    known = inspect.signature(huggingface_hub.snapshot_download).parameters
    options = {k: v for k, v in kwargs.items() if k in known and v is not None}
    try:
        with _patience():
            return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(patterns), **options))
    except Exception as error:  # the Hub client's errors, and those of its HTTP library
        partial = getattr(error, "snapshot_path", None)  # no network, and some of the files are not cached
        if partial is not None:
            return Path(partial)
        kind = "an adapter" if error_class is AdapterError else "a model"
        raise error_class(_reason(error, repo_id, options.get("revision"), kind)) from error


@contextmanager
def _patience() -> Iterator[None]:
    """Give up on a Hub that accepts a request and does not answer: its client asks for a revision without a timeout.

    The seconds are those of ``HF_HUB_ETAG_TIMEOUT``. Timeouts that the client sets itself are kept.
    """
    from huggingface_hub import constants, utils

    def bound(request: Any) -> None:
        given = request.extensions.get("timeout", {})
        if request.method in ("GET", "HEAD"):
            limits = {kind: constants.HF_HUB_ETAG_TIMEOUT if value is None else value for kind, value in given.items()}
            request.extensions["timeout"] = limits

    session: Any = utils.get_session()
    hooks = getattr(session, "event_hooks", None)
    if hooks is None:  # requests, which huggingface_hub used before 1.0
        yield
        return
    session.event_hooks = {**hooks, "request": [*hooks["request"], bound]}
    try:
        yield
    finally:
        session.event_hooks = hooks


@contextmanager
def upload_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub's client in this context into one line.

    Raises:
        AdapterError: in their place.
    """
    try:
        yield
    except Exception as error:  # the Hub client's errors, and those of its HTTP library
        raise AdapterError(
            f"cannot upload to {repo_id}: {_essence(error, 300)}. Check the name, the network and your log-in "
            "(hf auth login)"
        ) from error


def looks_like_path(name: str) -> bool:
    """Whether ``name`` can only be a path: neither a repository (``owner/name``) nor a bare name."""
    return (
        os.path.isabs(name)
        or name.startswith((".", "~", "/"))
        or name.endswith("/")
        or name.count("/") > 1
        or "\\" in name
    )


def _reason(error: Exception, repo_id: str, revision: str | None, kind: str) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.HFValidationError):
        return f"{repo_id!r} is neither a folder here nor a name that the Hub allows (owner/name)"
    if isinstance(error, errors.GatedRepoError):
        address = f"{constants.ENDPOINT}/{repo_id}"
        return f"{repo_id} is gated; ask for access at {address} and log in (hf auth login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r} on the Hub"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{repo_id} is neither a folder here nor {kind} on the Hub (if it is private: hf auth login)"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{repo_id} is neither a folder here nor in the Hub's cache, and the Hub cannot be reached (no network?)"
    return f"{repo_id} is not a folder here, and the download from the Hub failed: {_essence(error, 200)}"


def _essence(error: Exception, most_characters: int) -> str:
    return " ".join(str(error).split())[:most_characters] or type(error).__name__
