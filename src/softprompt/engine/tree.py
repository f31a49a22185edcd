"""The token tree: which token attends to which, in integers. No model, no floats.

A batch is a list of *nodes*, runs of tokens with a parent. A token attends causally to the tokens of its own node, and
to all tokens of the node's ancestors::

    training   prompt ─┬─ row 1            scoring   prompt ─┬─ text 1 ─┬─ " complaint"
                       ├─ row 2                              │          └─ " no complaint"
                       └─ row 3                              └─ text 2 ─┬─ ...

Tokens have one flat order: preorder, in which a node is followed by its descendants. A token's *flat position* is its
index in this order. Its position for the model is another number, its depth in the tree, so the result for a row never
depends on the other rows of its batch or on a collator's padding.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

ROOT = -1


@dataclass(frozen=True)
class Tree:
    """Nodes of a token forest in preorder, so that each subtree is contiguous.

    Attributes:
        parents: parent of each node, ``ROOT`` for none.
        lengths: number of tokens of each node, which may be 0.
    """

    parents: tuple[int, ...]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.parents) != len(self.lengths):
            raise ValueError(f"{len(self.parents)} parents but {len(self.lengths)} lengths")
        if any(not ROOT <= parent < node for node, parent in enumerate(self.parents)):
            raise ValueError("a parent must come before its children")
        branch = [ROOT]
        for node, parent in enumerate(self.parents):
            while branch[-1] != parent:
                branch.pop()
                if not branch:
                    raise ValueError(f"node {node} does not follow its parent {parent} or a node below that")
            branch.append(node)

    @property
    def num_tokens(self) -> int:
        """T, the tokens of all nodes."""
        return sum(self.lengths)

    @cached_property
    def starts(self) -> list[int]:
        """Flat position of each node's first token."""
        return self.starts_without(())[:-1]

    def starts_without(self, left_out: Container[int]) -> list[int]:
        """Flat position of each node's first token if some nodes had no tokens; the last entry is the total."""
        starts = [0]
        for node, length in enumerate(self.lengths):
            starts.append(starts[-1] + (0 if node in left_out else length))
        return starts

    @cached_property
    def depths(self) -> list[int]:
        """Number of tokens of each node's ancestors, which is the (model's) position of its first token."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent == ROOT else depths[parent] + self.lengths[parent])
        return depths

    @property
    def depth(self) -> int:
        """Number of tokens on the longest path from a root to a leaf."""
        return max((above + own for above, own in zip(self.depths, self.lengths, strict=True)), default=0)

    @cached_property
    def levels(self) -> list[list[int]]:
        """Nodes by number of ancestors, without empty nodes, which have nothing to compute."""
        level_of: list[int] = []
        levels: list[list[int]] = []
        for node, parent in enumerate(self.parents):
            level_of.append(0 if parent == ROOT else level_of[parent] + 1)
            while len(levels) <= level_of[node]:
                levels.append([])
            if self.lengths[node]:
                levels[level_of[node]].append(node)
        return [level for level in levels if level]

    @cached_property
    def roots(self) -> list[int]:
        """Nodes without a parent."""
        return [node for node, parent in enumerate(self.parents) if parent == ROOT]

    @cached_property
    def inner(self) -> set[int]:
        """Nodes with children."""
        return {parent for parent in self.parents if parent != ROOT}

    @cached_property
    def ends(self) -> list[int]:
        """Flat position after each node's subtree. Tokens ``j <= i < ends[n]`` attend to token ``j`` of node ``n``."""
        ends = [start + length for start, length in zip(self.starts, self.lengths, strict=True)]
        for node in reversed(range(len(ends))):
            if (parent := self.parents[node]) != ROOT:
                ends[parent] = max(ends[parent], ends[node])
        return ends

    def span(self, node: int) -> range:
        """Flat positions of a node's tokens."""
        return range(self.starts[node], self.starts[node] + self.lengths[node])

    def path(self, node: int) -> list[int]:
        """Flat positions of the tokens of a node's ancestors, in order."""
        above: list[int] = []
        while (node := self.parents[node]) != ROOT:
            above[:0] = self.span(node)
        return above


@dataclass(frozen=True)
class Plan:
    """A tree, the tokens it reads and the tokens it predicts.

    Attributes:
        tree: the nodes.
        tokens: ``[T]`` in flat order: token ids, and ``-1 - i`` for row ``i`` of the prompt matrix.
        predictors: ``[S]`` flat position whose hidden state predicts each supervised token.
        targets: ``[S]`` id of each supervised token.
        groups: ``[S]`` group of each supervised token: its row, or its pair of text and label candidate.
        num_groups: number of groups.
        places: flat position of each token of the rows or texts, in the caller's order.
        texts: the nodes before suffix prompts, and their token ids; a text cache can supply their keys and values.
            Empty for prefix prompts.
    """

    tree: Tree
    tokens: Tensor
    predictors: Tensor
    targets: Tensor
    groups: Tensor
    num_groups: int
    places: Tensor
    texts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        tree: Tree,
        num_groups: int,
        device: torch.device,
        texts: Mapping[int, tuple[int, ...]],
        **columns: Sequence[int],
    ) -> Plan:
        """A plan from lists of integers (``tokens``, ``predictors``, ``targets``, ``groups``, ``places``).

        All go to the device in one transfer and are then cloned, so that a tensor kept for the backward pass does not
        keep the memory of the others.
        """
        together = torch.tensor([*chain.from_iterable(columns.values())], dtype=torch.long).to(device)
        parts = torch.split(together, [len(column) for column in columns.values()])
        tensors = {name: part.clone() for name, part in zip(columns, parts, strict=True)}
        return cls(tree, num_groups=num_groups, texts=texts, **tensors)
