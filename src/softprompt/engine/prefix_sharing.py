"""What token sequences share at their start, so that it is computed once. Lists of integers only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from .tree import ROOT

MIN_SAVING = 24
"""Tokens that a shared prefix must save to get a node of its own. One more node takes about as long as 24 tokens."""


class Segment(NamedTuple):
    """Tokens ``start .. stop`` of a row, and of all rows below this segment.

    Attributes:
        parent: index of the segment before it; ``ROOT`` for none.
        row: a row that contains it.
        is_leaf: whether it is the last segment of that row.
    """

    parent: int
    row: int
    start: int
    stop: int
    is_leaf: bool


def share_prefixes(rows: Sequence[Sequence[int]]) -> list[Segment]:
    """Segments of rows in preorder; a prefix that several rows share is one segment if it saves ``MIN_SAVING`` tokens.

    Each row has one leaf, which may be empty.
    """
    order = sorted(range(len(rows)), key=lambda row: tuple(rows[row]))
    common = [common_prefix(rows[a], rows[b]) for a, b in pairwise(order)]
    segments: list[Segment] = []
    # Parts of the order to place: low, high, number of tokens already placed, the segment that ends with them.
    waiting = [(0, len(order), 0, ROOT)] if order else []
    while waiting:
        low, high, start, parent = waiting.pop()
        row = order[low]
        if high - low == 1:
            segments.append(Segment(parent, row, start, len(rows[row]), True))
            continue
        shared = min(common[low : high - 1])
        if (high - low - 1) * (shared - start) >= MIN_SAVING:
            segments.append(Segment(parent, row, start, shared, False))
            start, parent = shared, len(segments) - 1
        cuts = [low, *(i + 1 for i in range(low, high - 1) if common[i] == shared), high]
        waiting += [(a, b, start, parent) for a, b in reversed(list(pairwise(cuts)))]
    return segments


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class CandidateTree:
    """Label candidates as a tree of their shared prefixes; their last tokens are predicted, not read.

    Attributes:
        nodes: parent (``ROOT`` for the text or prompt before the candidates) and tokens of each node, in preorder.
        predictors: for each token of each candidate, the token of the tree that predicts it, by its place in flat
            order; -1 for the last token before the tree.
        targets: all tokens of all candidates.
        groups: candidate of each of these.
        num_candidates: C.
    """

    def __init__(self, candidates: Sequence[Sequence[int]]) -> None:
        self.nodes: list[tuple[int, list[int]]] = []
        self.targets = [token for candidate in candidates for token in candidate]
        self.groups = [j for j, candidate in enumerate(candidates) for _ in candidate]
        self.num_candidates = len(candidates)
        ends: dict[tuple[int, ...], tuple[int, int]] = {(): (ROOT, -1)}  # prefix -> its node, place of its last token
        prefixes = sorted(_read_prefixes(candidates))
        children = Counter(prefix[:-1] for prefix in prefixes)
        for place, prefix in enumerate(prefixes):
            node, _ = ends[prefix[:-1]]
            if node == ROOT or children[prefix[:-1]] > 1:
                self.nodes.append((node, []))
                node = len(self.nodes) - 1
            self.nodes[node][1].append(prefix[-1])
            ends[prefix] = node, place
        self.predictors = [ends[tuple(candidate[:n])][1] for candidate in candidates for n in range(len(candidate))]


def branch_tokens(candidates: Sequence[Sequence[int]]) -> int:
    """Tokens that candidates add after each text: shared prefixes count once, last tokens not at all."""
    return len(_read_prefixes(candidates))


def _read_prefixes(candidates: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
    """Prefixes that a token of some candidate attends to."""
    return {tuple(candidate[:n]) for candidate in candidates for n in range(1, len(candidate))}
