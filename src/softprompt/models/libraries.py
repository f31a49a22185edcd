"""What transformers and huggingface_hub raise and print, in our manner: one line, or nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from huggingface_hub import utils as hub_utils
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from ..errors import BaseModelError, SoftPromptError


def say(line: str) -> None:
    """Print one line for the user on stderr; characters that it cannot encode are escaped."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)


def essence(error: BaseException) -> str:
    """The first line of a message, and not too much of it."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


@contextlib.contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn what libraries raise over a model's files into BaseModelError, in one line."""
    try:
        yield
    except (SoftPromptError, RuntimeError, MemoryError):  # too little memory is torch's to say
        raise
    except SafetensorError as error:
        raise BaseModelError(f"{what} cannot be read, a file is damaged: {essence(error)}") from error
    except Exception as error:  # anything, down to the bare Exception of tokenizers
        if "trust_remote_code" in str(error):
            raise BaseModelError(f"{what} needs Python code of its own; trust_remote_code runs it") from error
        raise BaseModelError(f"{what} cannot be read: {essence(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log lines and progress bars of transformers and huggingface_hub; afterwards all is as it was."""
    logs = [(log, log.get_verbosity()) for log in (transformers_logging, hub_utils.logging)]
    bars = transformers_logging.is_progress_bar_enabled()
    hub_bars = not hub_utils.are_progress_bars_disabled()
    for log, _ in logs:
        log.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # and with it those of the Hub
    try:
        yield
    finally:
        for log, level in logs:
            log.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
        if hub_bars:
            hub_utils.enable_progress_bars()
