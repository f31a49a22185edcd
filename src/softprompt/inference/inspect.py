"""Properties of a trained prompt: nearest vocabulary entries, norms, distance from the initial prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.embeddings import embed, vocabulary_size

_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class TokenReport:
    """One virtual token.

    Attributes:
        norm: Euclidean length.
        start_distance: Euclidean distance from the initial virtual token; ``None`` if the initial prompt was not kept.
        by_cosine, by_distance: nearest vocabulary entries as ``(token id, cosine or distance)``, nearest first.
    """

    norm: float
    start_distance: float | None
    by_cosine: tuple[tuple[int, float], ...]
    by_distance: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class PromptReport:
    """All virtual tokens, their cosine similarities ``[P, P]``, and the median norm of the vocabulary."""

    tokens: tuple[TokenReport, ...]
    similarity: tuple[tuple[float, ...], ...]
    vocabulary_norm: float


@torch.no_grad()
def inspect_prompt(
    prompt: Tensor, start: Tensor | None, word_embeddings: nn.Module, *, nearest: int = 5
) -> PromptReport:
    """Compare a prompt ``[P, D]`` with the vocabulary and with the initial prompt ``[P, D]``."""
    prompt = prompt.detach().float()
    cosines, distances, norms = [], [], []
    for first in range(0, vocabulary_size(word_embeddings), _ROWS_AT_ONCE):
        ids = torch.arange(first, min(first + _ROWS_AT_ONCE, vocabulary_size(word_embeddings)))
        rows = embed(ids, word_embeddings)
        cosines.append(F.normalize(prompt, dim=1) @ F.normalize(rows, dim=1).T)
        distances.append(torch.cdist(prompt, rows))
        norms.append(rows.norm(dim=1))
    best = torch.cat(cosines, 1).topk(nearest, dim=1)
    closest = torch.cat(distances, 1).topk(nearest, dim=1, largest=False)
    moved = None if start is None or start.shape != prompt.shape else (prompt - start.to(prompt)).norm(dim=1)
    tokens = tuple(
        TokenReport(
            norm=float(prompt[i].norm()),
            start_distance=None if moved is None else float(moved[i]),
            by_cosine=_pairs(best.indices[i], best.values[i]),
            by_distance=_pairs(closest.indices[i], closest.values[i]),
        )
        for i in range(len(prompt))
    )
    unit = F.normalize(prompt, dim=1)
    similarity = tuple(map(tuple, (unit @ unit.T).tolist()))
    return PromptReport(tokens, similarity, float(torch.cat(norms).median()))


def _pairs(ids: Tensor, values: Tensor) -> tuple[tuple[int, float], ...]:
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))
