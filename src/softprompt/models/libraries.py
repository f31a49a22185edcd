"""Errors of transformers and safetensors as one line, and lines on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from safetensors import SafetensorError

from ..errors import BaseModelError, SoftPromptError


def say(line: str) -> None:
    """Print one line for the user on stderr; characters that it cannot encode are escaped."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)


def essence(error: BaseException) -> str:
    """The first line of a message, at most 200 characters of it."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


@contextlib.contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn errors that libraries raise while reading a model's files into a BaseModelError of one line."""
    try:
        yield
    except (SoftPromptError, RuntimeError, MemoryError):  # torch's own message says that memory is full
        raise
    except SafetensorError as error:
        raise BaseModelError(f"{what} cannot be read, a file is damaged: {essence(error)}") from error
    except Exception as error:  # anything, down to the bare Exception of tokenizers
        if "trust_remote_code" in str(error):
            raise BaseModelError(f"{what} needs Python code of its repository; trust_remote_code runs it") from error
        raise BaseModelError(f"{what} cannot be read: {essence(error)}") from error


def check_complete(info: dict[str, Any], name: str) -> None:
    """Refuse a checkpoint that lacks weights. transformers sets them to random values, with a warning.

    Args:
        info: from ``from_pretrained(output_loading_info=True)``.
    """
    absent = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if absent:
        raise BaseModelError(
            f"the weights of {name} do not fill the model: {len(absent)} are missing or of another shape,"
            f" the first is {absent[0]}"
        )
