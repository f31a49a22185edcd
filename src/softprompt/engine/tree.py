"""The token tree: which token attends to which, as integers. No model, no floats.

A batch is a list of *nodes*, each a run of tokens with a parent; a token attends to its own run
(causally) and to all its ancestors::

    training   prompt ─┬─ row 1            scoring   prompt ─┬─ text 1 ─┬─ " complaint"
                       ├─ row 2                              │          └─ " no complaint"
                       └─ row 3                              └─ text 2 ─┬─ ...

All tokens lie in one flat order, node after node, parents before children. A token's position is its
depth in the tree, so what a row computes never depends on its batch mates or on a collator's padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..types import IGNORE_INDEX

ROOT = -1


@dataclass(frozen=True)
class Tree:
    """Nodes of a token forest, parents before children.

    Attributes:
        parents: parent of each node, ``ROOT`` for none.
        lengths: tokens of each node; a node may be empty.
    """

    parents: tuple[int, ...]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.parents) != len(self.lengths):
            raise ValueError(f"{len(self.parents)} parents but {len(self.lengths)} lengths")
        if any(not ROOT <= parent < node for node, parent in enumerate(self.parents)):
            raise ValueError("a parent must come before its children")

    @property
    def num_tokens(self) -> int:
        """T, the tokens of all nodes."""
        return sum(self.lengths)

    @cached_property
    def starts(self) -> list[int]:
        """Flat index of each node's first token."""
        starts, total = [], 0
        for length in self.lengths:
            starts.append(total)
            total += length
        return starts

    @cached_property
    def depths(self) -> list[int]:
        """Tokens above each node: the position of its first token."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent == ROOT else depths[parent] + self.lengths[parent])
        return depths

    @property
    def depth(self) -> int:
        """Tokens of the longest path: the longest row with all that is above it."""
        return max((above + own for above, own in zip(self.depths, self.lengths, strict=True)), default=0)

    @cached_property
    def levels(self) -> list[list[int]]:
        """Nodes by number of ancestors; empty nodes have nothing to compute and are left out."""
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
    def inner(self) -> set[int]:
        """Nodes that some other node attends to."""
        return {parent for parent in self.parents if parent != ROOT}

    def span(self, node: int) -> range:
        """Flat indices of a node's tokens."""
        return range(self.starts[node], self.starts[node] + self.lengths[node])

    def path(self, node: int) -> list[int]:
        """Flat indices of all tokens above ``node``, in reading order."""
        above: list[int] = []
        while (node := self.parents[node]) != ROOT:
            above[:0] = self.span(node)
        return above

    def before(self, node: int) -> int:
        """Flat index of the token just before ``node``'s first one: the position that predicts it.

        Raises:
            ValueError: nothing precedes it.
        """
        while (node := self.parents[node]) != ROOT:
            if self.lengths[node]:
                return self.starts[node] + self.lengths[node] - 1
        raise ValueError("no token precedes this node, so nothing can predict its first token")


@dataclass(frozen=True)
class Plan:
    """A tree under one prompt, with the tokens it reads and the ones it is asked to predict.

    Node 0 is the prompt: the flat positions ``0 .. P-1`` are virtual, the others hold ``input_ids``.

    Attributes:
        tree: the nodes.
        input_ids: ``[T - P]`` ids behind the prompt, in flat order.
        predictors: ``[S]`` flat position whose hidden state predicts each supervised token.
        targets: ``[S]`` id of each supervised token.
        groups: ``[S]`` what each supervised token counts for: its row, or its (row, label) pair.
        num_groups: number of those.
    """

    tree: Tree
    input_ids: Tensor
    predictors: Tensor
    targets: Tensor
    groups: Tensor
    num_groups: int

    @property
    def num_virtual_tokens(self) -> int:
        """P."""
        return self.tree.lengths[0]


def plan_rows(num_virtual_tokens: int, lengths: Sequence[int], input_ids: Tensor, labels: Tensor | None) -> Plan:
    """Rows under one prompt: ``prompt -> row 1 | row 2 | ...``.

    A label stands at the position of its own token (``IGNORE_INDEX`` where there is no loss) and is
    predicted one token earlier; a row's first token is predicted by the last virtual token::

        flat      v0 v1 | a0 a1 a2 | b0 b1         labels    a0→-100  a1→-100  a2→a2 | b0→b0  b1→b1
        predictor              a1→a2    v1→b0  b0→b1

    Args:
        lengths: tokens of each of the B rows.
        input_ids: ``[T - P]`` ids of all rows, one after the other.
        labels: ``[T - P]`` beside them, or ``None`` for no supervision.
    """
    tree = Tree((ROOT, *(0 for _ in lengths)), (num_virtual_tokens, *lengths))
    device = input_ids.device
    if labels is None:
        nothing = torch.empty(0, dtype=torch.long, device=device)
        return Plan(tree, input_ids, nothing, nothing, nothing, len(lengths))
    counts = torch.tensor(lengths, dtype=torch.long, device=device)
    flat = torch.arange(num_virtual_tokens, tree.num_tokens, device=device)
    row = torch.repeat_interleave(counts)  # [T - P] row of each token
    first = num_virtual_tokens + counts.cumsum(0) - counts  # [B] flat position of each row's first token
    predictor = torch.where(flat == first[row], num_virtual_tokens - 1, flat - 1)
    supervised = labels != IGNORE_INDEX
    return Plan(tree, input_ids, predictor[supervised], labels[supervised], row[supervised], len(lengths))


def plan_choices(
    num_virtual_tokens: int,
    texts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[int]],
    device: torch.device,
) -> Plan:
    """Every choice behind every text: ``prompt -> text i -> choice j``; group ``i * len(choices) + j``.

    The text is computed once, whatever the number of choices. A choice's last token is predicted but
    never read (nothing comes after it), so it is not part of the tree.
    """
    parents, lengths, input_ids = [ROOT], [num_virtual_tokens], list[int]()
    for text in texts:
        node = len(parents)
        parents += [0, *(node for _ in choices)]
        lengths += [len(text), *(len(choice) - 1 for choice in choices)]
        input_ids += [*text, *(token for choice in choices for token in choice[:-1])]
    tree = Tree(tuple(parents), tuple(lengths))
    predictors, targets, groups = list[int](), list[int](), list[int]()
    for i in range(len(texts)):
        for j, choice in enumerate(choices):
            node = 1 + i * (len(choices) + 1) + 1 + j
            predictors += [tree.before(node), *tree.span(node)]
            targets += choice
            groups += [i * len(choices) + j] * len(choice)
    ids, before, after, group = (torch.tensor(x, device=device) for x in (input_ids, predictors, targets, groups))
    return Plan(tree, ids.long(), before.long(), after.long(), group.long(), len(texts) * len(choices))
