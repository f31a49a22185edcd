"""Disk spill of the text cache: rows of bytes in a file without a name, which any number of threads can read."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from io import FileIO
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from ..errors import SoftPromptError

SPARE_BYTES = 1 << 30
"""Left free on a disk."""
POSITIONED_READS = hasattr(os, "preadv")
"""Whether the system reads at a position without moving the file's own; elsewhere reads take turns."""


class DiskSpill:
    """A file of rows of bytes. The system removes it however the process ends.

    Args:
        folder: of the file.

    Attributes:
        full: whether a row did not fit.
    """

    def __init__(self, folder: Path) -> None:
        self.full = False
        self._folder = folder
        self._file: FileIO | None = None
        self._end = 0
        self._lock = Lock()

    def close(self) -> None:
        """Give the space back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def put(self, data: Tensor) -> int | None:
        """Write a row; returns its position, or ``None``, after a warning, if the disk has no room for it."""
        try:
            if shutil.disk_usage(self._folder).free < len(data) + SPARE_BYTES:
                raise OSError("no space left")
            with self._lock:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
                position = self._end
                self._file.seek(position)
                rest = data.cpu().numpy().data
                while rest:
                    rest = rest[self._file.write(rest) :]
                self._end += len(data)
        except OSError as error:
            self.full = True
            warnings.warn(
                f"{self._folder} has no room for the keys and values of all texts ({error.strerror or error}). Those "
                "of the other texts are recomputed in each epoch, which is slow: raise text_cache_memory, or free "
                "space there.",
                stacklevel=4,
            )
            return None
        return position

    def get(self, position: int, size: int) -> Tensor:
        """The row of ``size`` bytes at a position, as ``uint8``.

        Raises:
            SoftPromptError: the file has become shorter.
        """
        data = torch.empty(size, dtype=torch.uint8)
        rest = data.numpy().data
        while rest:
            count = self._read(rest, position + size - len(rest))
            if not count:
                raise SoftPromptError(f"the text cache's file in {self._folder} has become shorter; start again")
            rest = rest[count:]
        return data

    def _read(self, buffer: memoryview, position: int) -> int:
        assert self._file is not None
        if POSITIONED_READS:
            return os.preadv(self._file.fileno(), [buffer], position)
        with self._lock:
            self._file.seek(position)
            return self._file.readinto(buffer) or 0
