"""What is known of texts that stand before a prompt: read once, kept in memory up to a bound, and on disk beyond.

The keys and values of a text depend on nothing but the text. They are computed without gradient; training
then costs the prompt and the label of a row. In a 135M model they take 46 kB a token in float32 (23 kB in 16
bits), so a large data set needs the disk: a file without a name, which the system removes however the
process ends.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..models.families import check_depth
from .execute import compute
from .kv_cache import KVCache
from .plans import packs
from .tree import ROOT, Plan, Tree

TOKENS_AT_ONCE = 1024
"""Tokens of one reading. It is fixed, and texts are read in one order, so that a run that is resumed knows the
same numbers to the last bit, whatever its batches."""
SPARE_BYTES = 1 << 30
"""What is left free on a disk."""

Text = tuple[int, ...]


@torch.no_grad()
def read_texts(base: PreTrainedModel, texts: Sequence[Text]) -> list[KVCache]:
    """What is known of texts, none of them empty, each of which is a tree of its own."""
    check_depth(base.config, max(map(len, texts), default=0))
    embeddings = base.get_input_embeddings()
    ids = [token for text in texts for token in text]
    embeds = embeddings(torch.tensor(ids, dtype=torch.long, device=next(embeddings.parameters()).device))
    found = compute(base.base_model, Tree((ROOT,) * len(texts), tuple(map(len, texts))), embeds)
    return [found[i] for i in range(len(texts))]


def known_texts(base: PreTrainedModel, plan: Plan, cache: TextCache | None) -> dict[int, KVCache]:
    """KV caches of the texts of a plan with suffix prompts, by node.

    Without a text cache they are computed apart if gradients are on, since no gradient goes through a text; otherwise
    none are returned, and the texts are computed with the rest of the plan.
    """
    if cache is not None:
        return {node: cache.get(text) for node, text in plan.texts.items() if text}
    return read_for(base, plan) if torch.is_grad_enabled() else {}


def read_for(base: PreTrainedModel, plan: Plan) -> dict[int, KVCache]:
    """KV caches of the texts of a plan, by node, computed now and not kept."""
    new = sorted({text for text in plan.texts.values() if text})
    found = dict(zip(new, read_texts(base, new), strict=True)) if new else {}
    return {node: found[text] for node, text in plan.texts.items() if text}


class TextCache:
    """Keeps what is known of texts; closed, it forgets all of it.

    Args:
        base: the frozen causal language model; it must not change meanwhile.
        memory: bytes to keep where the base computes. What comes later goes to disk.
        folder: where the nameless file lies; ``None`` for the system's temporary folder.
    """

    def __init__(self, base: PreTrainedModel, memory: int, folder: Path | None = None) -> None:
        self._base, self._free = base, memory
        self._shelf = _Shelf(Path(tempfile.gettempdir()) if folder is None else folder)
        self._held: dict[Text, Tensor] = {}
        self._shelved: dict[Text, int] = {}  # place on the shelf
        self._layout: _Layout | None = None

    def __enter__(self) -> TextCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give memory and disk back."""
        self._held.clear()
        self._shelved.clear()
        self._shelf.close()

    def read(self, texts: Iterable[Sequence[int]], progress: Callable[[int], None] | None = None) -> None:
        """Read texts and keep them; those that are known already, and empty ones, take no time.

        Args:
            progress: called with the number of texts just done.
        """
        new = {tuple(text) for text in texts} - self._held.keys() - self._shelved.keys() - {()}
        ordered = sorted(new, key=lambda text: (len(text), text))  # one order, whatever that of the rows
        for rows in packs([len(text) for text in ordered], TOKENS_AT_ONCE):
            part = ordered[rows.start : rows.stop]
            for text, found in zip(part, read_texts(self._base, part), strict=True):
                self._keep(text, found)
            if progress:
                progress(len(part))

    def get(self, text: Sequence[int]) -> KVCache:
        """What is known of a text; one that is not kept is read now."""
        text = tuple(text)
        if self._layout is not None and text in self._held:
            return self._layout.restore(self._held[text], len(text))
        if self._layout is not None and text in self._shelved:
            size = self._layout.bytes_per_token * len(text)
            return self._layout.restore(self._shelf.get(self._shelved[text], size), len(text))
        return read_texts(self._base, [text])[0]

    def _keep(self, text: Text, known: KVCache) -> None:
        self._layout = self._layout or _Layout.of(known)
        size = self._layout.bytes_per_token * len(text)
        if size <= self._free:
            self._held[text] = self._layout.flatten(known)
            self._free -= size
        elif not self._shelf.full and (place := self._shelf.put(self._layout.flatten(known))) is not None:
            self._shelved[text] = place


class _Shelf:
    """Rows of bytes on disk, in a file that has no name: nobody can mistake it, and it cannot outlive the process.

    Attributes:
        full: whether a row did not fit; then no more are taken.
    """

    def __init__(self, folder: Path) -> None:
        self.full = False
        self._folder = folder
        self._file: FileIO | None = None
        self._end = 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def put(self, data: Tensor) -> int | None:
        """Write a row; returns its place, or ``None``, after a warning, when the disk has no room for it."""
        place = self._end
        try:
            if shutil.disk_usage(self._folder).free < len(data) + SPARE_BYTES:
                raise OSError("no space left")
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (close() does)
            self._file.seek(place)
            rest = data.cpu().numpy().data
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.full = True
            warnings.warn(
                f"Not all keys and values of the texts fit into {self._folder} ({error.strerror or error}). The others "
                "are computed anew in each epoch, which is slow: allow more text_cache_memory, or make room there.",
                stacklevel=4,
            )
            return None
        self._end += len(data)
        return place

    def get(self, place: int, size: int) -> Tensor:
        """The row at a place."""
        assert self._file is not None
        data = torch.empty(size, dtype=torch.uint8)
        rest = data.numpy().data
        self._file.seek(place)
        while rest:
            count = self._file.readinto(rest)
            if not count:
                raise OSError(f"what was kept of the texts in {self._folder} has become shorter")
            rest = rest[count:]
        return data


@dataclass(frozen=True)
class _Layout:
    """How the keys and values of a text are laid out in a row of bytes: the same for all texts of a base.

    Hidden states are not kept, since the prompt stands between a text and all that is predicted. In their place
    a text has NaN: whoever should read one after all is told.

    Attributes:
        parts: heads, width, number type and device, of the keys and of the values of each layer.
        hidden: width, number type and device of hidden states.
    """

    parts: tuple[tuple[int, int, torch.dtype, torch.device], ...]
    hidden: tuple[int, torch.dtype, torch.device]

    @classmethod
    def of(cls, known: KVCache) -> _Layout:
        states = [each for pair in known.layers for each in pair]
        parts = tuple((each.shape[1], each.shape[3], each.dtype, each.device) for each in states)
        return cls(parts, (known.hidden.shape[1], known.hidden.dtype, known.hidden.device))

    @property
    def bytes_per_token(self) -> int:
        return sum(heads * width * dtype.itemsize for heads, width, dtype, _ in self.parts)

    def flatten(self, known: KVCache) -> Tensor:
        """All numbers as bytes, in memory of their own (a reading's tensors are shared by its texts)."""
        states = [each for pair in known.layers for each in pair]
        device = self.parts[0][3]
        return torch.cat([each.to(device).reshape(-1).view(torch.uint8) for each in states])

    def restore(self, data: Tensor, length: int) -> KVCache:
        """The text again, from its bytes, wherever these are."""
        on = {device: data.to(device) for *_, device in self.parts}
        states, start = [], 0
        for heads, width, dtype, device in self.parts:
            stop = start + heads * length * width * dtype.itemsize
            states.append(on[device][start:stop].view(dtype).view(1, heads, length, width))
            start = stop
        width, dtype, device = self.hidden
        nothing = torch.full((1, 1), math.nan, dtype=dtype, device=device).expand(length, width)
        return KVCache(tuple(zip(states[0::2], states[1::2], strict=True)), nothing)
