"""Silence for benchmarks, which call libraries that print at each call. It changes settings of the whole process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from huggingface_hub import utils as hub_utils
from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside this context transformers and huggingface_hub print no log lines and progress bars."""
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
