"""Files: atomic writes, size limits, safe joins. A crash during a write loses no file."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ConfigError, SoftPromptError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is moved over ``path`` in one step.

    On any error the temporary file is removed and ``path`` keeps its old content.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 in one atomic step."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON in one atomic step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_folder(path: str | os.PathLike[str], fill: Callable[[Path], None]) -> None:
    """Create the folder ``path`` with the files that ``fill(folder)`` writes: all of them or none.

    An existing folder at ``path`` is replaced after ``fill`` has succeeded.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    temporary.mkdir()
    try:
        fill(temporary)
        old = temporary.with_suffix(".old")
        if target.exists():
            os.replace(target, old)  # deleted only once the new folder is in its place
        os.replace(temporary, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json(path: str | os.PathLike[str], *, max_bytes: int = 1 << 20) -> dict[str, Any]:
    """Read a small JSON object from an untrusted file.

    Raises:
        SoftPromptError: the file is missing, larger than ``max_bytes``, not JSON, or not an object.
    """
    source = Path(path)
    try:
        size = source.stat().st_size
        if size > max_bytes:
            raise SoftPromptError(f"{source} has {size:,} bytes; such a file has at most {max_bytes:,}")
        value = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SoftPromptError(f"{source} does not exist") from None
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, or a number of 5,000 digits
        raise SoftPromptError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise SoftPromptError(f"{source} must hold a JSON object, not {type(value).__name__}")
    return value


def expand(path: str) -> str:
    """``path`` with a leading ``~`` or ``~user`` expanded, unless a file of just that name exists.

    Raises:
        ConfigError: there is no such user.
    """
    if not path.startswith("~") or os.path.lexists(path):
        return path
    found = os.path.expanduser(path)
    if found == path:
        user = path[1:].replace("\\", "/").split("/")[0]
        raise ConfigError(f"{path}: there is no user {user!r}; write ./{path} for a folder of that name")
    return found


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """Join ``name`` to ``folder``, refusing a name that leads out of it.

    Raises:
        SoftPromptError: ``name`` is absolute, or leads out with ``..``.
    """
    root = Path(folder).resolve()
    joined = (root / name).resolve()
    if joined != root and root not in joined.parents:
        raise SoftPromptError(f"{name!r} leads out of the folder {folder}")
    return joined


def _temporary(target: Path) -> Path:
    """An unused name beside ``target``. Unlike with ``tempfile``, what is created there has the usual permissions."""
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.part"


def _sync(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
