"""The text cache: KV caches of texts that precede a suffix prompt, in memory up to a bound and on disk beyond it.

The keys and values of a text depend on nothing but the text. They are computed once, without gradient; a training step
then costs the prompt and the label of each row. In a 135M model they take 46 kB per token in float32 (23 kB in 16
bits), so a large data set needs the disk.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..models.families import check_depth
from .disk_spill import DiskSpill
from .kv_cache import KVCache
from .plans import packs
from .runner import BaseOrRunner, ModelRunner
from .tree import ROOT, Plan, Tree

TOKENS_AT_ONCE = 1024
"""Tokens of texts that are computed together. It is fixed, and texts come in one order, so that a resumed run has the
same numbers to the last bit, whatever its batches."""

Text = tuple[int, ...]


@torch.no_grad()
def read_texts(base: BaseOrRunner, texts: Sequence[Text]) -> list[KVCache]:
    """KV caches of texts, none of them empty, each of which is a tree of its own."""
    runner = ModelRunner.of(base)
    check_depth(runner.base.config, max(map(len, texts), default=0))
    embeddings = runner.base.get_input_embeddings()
    ids = [token for text in texts for token in text]
    embeds = embeddings(torch.tensor(ids, dtype=torch.long, device=next(embeddings.parameters()).device))
    found = runner.prefill(Tree((ROOT,) * len(texts), tuple(map(len, texts))), embeds)
    return [found[i] for i in range(len(texts))]


def cached_texts(base: BaseOrRunner, plan: Plan, cache: TextCache | None) -> dict[int, KVCache]:
    """KV caches of the texts of a plan with suffix prompts, by node.

    Without a text cache they are computed apart if gradients are on, since no gradient goes through a text; otherwise
    none are returned, and the texts are computed with the rest of the plan.
    """
    if cache is not None:
        return {node: cache.get(text) for node, text in plan.texts.items() if text}
    return read_for(base, plan) if torch.is_grad_enabled() else {}


def read_for(base: BaseOrRunner, plan: Plan) -> dict[int, KVCache]:
    """KV caches of the texts of a plan, by node, computed now and not kept."""
    new = sorted({text for text in plan.texts.values() if text})
    found = dict(zip(new, read_texts(base, new), strict=True)) if new else {}
    return {node: found[text] for node, text in plan.texts.items() if text}


class TextCache:
    """KV caches of texts, in memory up to a bound and on disk beyond it; closed, it forgets all of them.

    Any number of threads may ``get``.

    Args:
        base: the frozen causal language model, or the runner that owns it; it must not change meanwhile.
        memory: bytes to keep on the base's device. The rest goes to disk.
        folder: of the file without a name; ``None`` for the system's temporary folder.

    Attributes:
        runner: computes the texts.
    """

    def __init__(self, base: BaseOrRunner, memory: int, folder: Path | None = None) -> None:
        self.runner, self._free = ModelRunner.of(base), memory
        self._spill = DiskSpill(Path(tempfile.gettempdir()) if folder is None else folder)
        self._in_memory: dict[Text, Tensor] = {}
        self._on_disk: dict[Text, int] = {}  # position in the spill
        self._layout: _Layout | None = None

    def __enter__(self) -> TextCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give memory and disk back."""
        self._in_memory.clear()
        self._on_disk.clear()
        self._spill.close()

    def read(self, texts: Iterable[Sequence[int]], progress: Callable[[int], None] | None = None) -> None:
        """Compute and keep the KV caches of texts; empty texts and those that are kept already are skipped.

        Args:
            progress: called with the number of texts just done.
        """
        new = {tuple(text) for text in texts} - self._in_memory.keys() - self._on_disk.keys() - {()}
        ordered = sorted(new, key=lambda text: (len(text), text))  # one order, whatever that of the rows
        for rows in packs([len(text) for text in ordered], TOKENS_AT_ONCE):
            part = ordered[rows.start : rows.stop]
            for text, cache in zip(part, read_texts(self.runner, part), strict=True):
                self._keep(text, cache)
            if progress:
                progress(len(part))

    def get(self, text: Sequence[int]) -> KVCache:
        """The KV cache of a text; computed now if it is not kept."""
        text = tuple(text)
        if self._layout is not None and text in self._in_memory:
            return self._layout.restore(self._in_memory[text], len(text))
        if self._layout is not None and text in self._on_disk:
            size = self._layout.bytes_per_token * len(text)
            return self._layout.restore(self._spill.get(self._on_disk[text], size), len(text))
        return read_texts(self.runner, [text])[0]

    def _keep(self, text: Text, cache: KVCache) -> None:
        self._layout = self._layout or _Layout.of(cache)
        size = self._layout.bytes_per_token * len(text)
        if size <= self._free:
            self._in_memory[text] = self._layout.flatten(cache)
            self._free -= size
        elif not self._spill.full and (position := self._spill.put(self._layout.flatten(cache))) is not None:
            self._on_disk[text] = position


@dataclass(frozen=True)
class _Layout:
    """Layout of a text's keys and values in a row of bytes, the same for all texts of a base.

    Hidden states are not kept, since the prompt separates a text from all that is predicted. A text has NaN in their
    place, so that a plan which reads them by mistake gives NaN.

    Attributes:
        parts: heads, head width, dtype and device, of the keys and of the values of each layer.
        hidden: hidden size, dtype and device of hidden states.
    """

    parts: tuple[tuple[int, int, torch.dtype, torch.device], ...]
    hidden: tuple[int, torch.dtype, torch.device]

    @classmethod
    def of(cls, cache: KVCache) -> _Layout:
        states = [each for pair in cache.layers for each in pair]
        parts = tuple((each.shape[1], each.shape[3], each.dtype, each.device) for each in states)
        return cls(parts, (cache.hidden.shape[1], cache.hidden.dtype, cache.hidden.device))

    @property
    def bytes_per_token(self) -> int:
        return sum(heads * width * dtype.itemsize for heads, width, dtype, _ in self.parts)

    def flatten(self, cache: KVCache) -> Tensor:
        """Keys and values as bytes, copied: texts that were computed together share tensors."""
        states = [each for pair in cache.layers for each in pair]
        device = self.parts[0][3]
        return torch.cat([each.to(device).reshape(-1).view(torch.uint8) for each in states])

    def restore(self, data: Tensor, length: int) -> KVCache:
        """The KV cache, from its bytes on any device."""
        on = {device: data.to(device) for *_, device in self.parts}
        states, start = [], 0
        for heads, width, dtype, device in self.parts:
            stop = start + heads * length * width * dtype.itemsize
            states.append(on[device][start:stop].view(dtype).view(1, heads, length, width))
            start = stop
        width, dtype, device = self.hidden
        nothing = torch.full((1, 1), math.nan, dtype=dtype, device=device).expand(length, width)
        return KVCache(tuple(zip(states[0::2], states[1::2], strict=True)), nothing)
