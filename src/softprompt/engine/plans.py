"""Plans from token ids: rows, encoded examples and label candidates, with a prefix prompt or with suffix prompts.

::

    prefix, rows         prompt ─┬─ row 1               prefix, candidates   prompt ─── text 1 ─┬─ " complaint"
                                 └─ shared ─┬─ row 2                                            └─ " no complaint"
                                            └─ row 3
    suffix, rows         text 1 ─── prompt | label 1    suffix, candidates   text 1 ─── prompt ─┬─ " complaint"
                         text 2 ─── prompt | label 2                                            └─ " no complaint"

A prefix prompt is computed once, and so are the prefixes that texts share. A suffix prompt attends to the text, so it
is computed for each text: the same virtual tokens occur in many nodes, and their gradients add up. The text does not
depend on the prompt, so its keys and values can come from a cache (``text_cache.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import torch

from ..errors import ConfigError
from ..types import IGNORE_INDEX, Example, Placement
from .prefix_sharing import CandidateTree, share_prefixes
from .tree import ROOT, Plan, Tree

TOKENS_PER_PACK = {"cpu": 1024, "cuda": 16_384}
"""Maximum tokens computed at once with a gradient, by device type: enough to keep the device busy."""

NOTHING = -1
"""Stands for the flat position of a preceding token where there is none."""


def plan_examples(
    examples: Sequence[Example], num_virtual_tokens: int, device: torch.device, placement: Placement = "prefix"
) -> Plan:
    """The plan of encoded examples under one prompt: each is supervised on its label; group ``i`` is example ``i``.

    With a suffix prompt, the last token of a label is predicted but not read, so it is not part of the tree.
    """
    unread = 1 if placement == "suffix" else 0
    rows = [(*row.input_ids, *row.label_ids[: len(row.label_ids) - unread]) for row in examples]
    labels = [(*(IGNORE_INDEX,) * len(row.input_ids), *row.label_ids) for row in examples]
    text_lengths = [len(row.input_ids) for row in examples] if placement == "suffix" else None
    return plan_rows(num_virtual_tokens, rows, labels, device, text_lengths)


def plan_rows(
    num_virtual_tokens: int,
    rows: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]] | None,
    device: torch.device,
    text_lengths: Sequence[int] | None = None,
) -> Plan:
    """Rows under one prompt; group ``i`` is row ``i``. Arguments as for ``Forest.add_rows``."""
    forest = Forest()
    forest.add_rows(num_virtual_tokens, rows, labels, text_lengths)
    return forest.plan(device)


def plan_mixed(
    num_virtual_tokens: Sequence[int],
    prompt_of_row: Sequence[int],
    rows: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]] | None,
    device: torch.device,
) -> Plan:
    """Rows under several prefix prompts: row ``i``, which is group ``i``, has prompt ``prompt_of_row[i]``.

    Args:
        num_virtual_tokens: length of each prompt; 0 for none.
        rows, labels: as for ``Forest.add_rows``.
    """
    forest = Forest()
    order = sorted(range(len(rows)), key=prompt_of_row.__getitem__)
    for prompt, length in enumerate(num_virtual_tokens):
        own = [row for row in order if prompt_of_row[row] == prompt]
        forest.add_rows(length, [rows[row] for row in own], None if labels is None else [labels[row] for row in own])
    return forest.plan(device, order)


def plan_candidates(
    num_virtual_tokens: int,
    texts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[int]],
    device: torch.device,
    suffix_prompts: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """Every label candidate after every text. Arguments and groups as for ``Forest.add_candidates``."""
    forest = Forest()
    forest.add_candidates(num_virtual_tokens, texts, candidates, suffix_prompts)
    return forest.plan(device)


class Tail(NamedTuple):
    """A suffix prompt and the label candidates after it.

    Attributes:
        start: the prompt's first row of the prompt matrix, counted from the first row that is not taken yet.
        num_virtual_tokens: P.
        candidates: may be empty.
    """

    start: int
    num_virtual_tokens: int
    candidates: CandidateTree


class Forest:
    """A plan under construction: trees side by side, as lists of integers.

    Each call of ``add_...`` takes the next rows of the prompt matrix as its virtual tokens, makes new groups, and
    returns the flat positions of the tokens of each row or text.
    """

    def __init__(self) -> None:
        self._parents, self._lengths, self._ends = list[int](), list[int](), list[int]()  # of nodes, in preorder
        self._tokens = list[int]()
        self._predictors, self._targets, self._groups = list[int](), list[int](), list[int]()
        self._positions = list[list[int]]()  # flat positions of the tokens of each row or text
        self._texts = dict[int, tuple[int, ...]]()
        self._num_virtual = self._num_groups = 0

    @property
    def num_nodes(self) -> int:
        """Nodes so far; the next call adds its prefix prompt as the node of this number."""
        return len(self._parents)

    @property
    def num_tokens(self) -> int:
        """Tokens so far, virtual ones included: the flat position of the next one."""
        return len(self._tokens)

    @property
    def num_groups(self) -> int:
        """Groups so far."""
        return self._num_groups

    def add_rows(
        self,
        num_virtual_tokens: int,
        rows: Sequence[Sequence[int]],
        labels: Sequence[Sequence[int]] | None,
        text_lengths: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Add rows with one prompt; each is a group.

        As in transformers, the label at index ``j`` is the id of token ``j`` itself (``IGNORE_INDEX`` for no loss), and
        the token before it predicts it. In a row without a prompt nothing predicts the first label, so it has no loss.

        Args:
            num_virtual_tokens: P; 0 for rows without a prompt.
            rows: token ids of each row.
            labels: labels of each row, one per token; one more for a last token that is predicted but not read.
                ``None`` for no supervision.
            text_lengths: for a suffix prompt: number of tokens of each row before the prompt. ``None`` for a prefix
                prompt.
        """
        if text_lengths is None:
            last = self._last(root := self._add_prompt(ROOT, num_virtual_tokens))
            positions, _ = self._add_shared(root, rows)
            predictors = [[last, *own] for own in positions]
        else:
            positions, predictors = [], []
            for row, length in zip(rows, text_lengths, strict=True):
                own, before = self._add_suffix_row(num_virtual_tokens, row, length)
                positions.append(own)
                predictors.append(before)
        for group, (before, targets) in enumerate(zip(predictors, labels or [], strict=labels is not None)):
            self._supervise(before, targets, self._num_groups + group)
        self._positions += positions
        self._num_virtual += num_virtual_tokens
        self._num_groups += len(rows)
        return positions

    def add_candidates(
        self,
        num_virtual_tokens: int,
        texts: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[int]],
        suffix_prompts: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        """Add every candidate after every text; group ``i * C + j`` is candidate ``j`` after text ``i``.

        Prompts, texts and prefixes that candidates share are computed once, whatever the number of candidates.

        Args:
            num_virtual_tokens: P, of each prompt; 0 for none.
            texts: B texts of token ids, which may be empty if there is a prompt.
            candidates: C labels of token ids. The last token of each is predicted but not read.
            suffix_prompts: for suffix prompts: indices of the prompts that follow each text, each as if it were alone.
                Prompt ``k`` is rows ``k P .. (k + 1) P - 1`` of the prompt matrix ``[M * P, D]``. ``i`` then counts
                pairs of text and prompt, in this order. ``None`` for one prefix prompt.

        Raises:
            ConfigError: nothing precedes a candidate.
        """
        tree = CandidateTree(candidates)
        if suffix_prompts is None:
            root = self._add_prompt(ROOT, num_virtual_tokens)
            positions, leaves = self._add_shared(root, texts, lambda _, node: self._add_branches(node, tree))
            for leaf in leaves:
                self._supervise_candidates(leaf, tree)
            self._positions += positions
            self._num_virtual += num_virtual_tokens
            return positions
        positions = []
        for text, prompts in zip(texts, suffix_prompts, strict=True):
            node = self._add_text(text)
            for prompt in prompts:
                tail = Tail(prompt * num_virtual_tokens, num_virtual_tokens, tree)
                self._supervise_candidates(self._add_tail(node, tail), tree)
            positions.append(self._span(node))
        self._positions += positions
        self._num_virtual += num_virtual_tokens * (1 + max(chain.from_iterable(suffix_prompts), default=-1))
        return positions

    def add_tails(
        self, texts: Sequence[Sequence[int]], tails: Sequence[Sequence[Tail]]
    ) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Add texts, each with suffix prompts of its own, which may differ in length and candidates.

        Prefixes that texts share, or whole texts, are computed once. Groups are the candidates after each tail of each
        text, in this order.

        Args:
            texts: B texts of token ids.
            tails: what follows each text, each tail as if it were alone.

        Returns:
            Flat positions of each text's tokens, and of the virtual tokens of each of its tails.

        Raises:
            ConfigError: nothing precedes a candidate.
        """
        leaves = [list[int]() for _ in texts]

        def below(row: int, node: int) -> None:
            leaves[row] += [self._add_tail(node, tail) for tail in tails[row]]

        positions, _ = self._add_shared(ROOT, texts, below)
        for own, of_row in zip(tails, leaves, strict=True):
            for tail, leaf in zip(own, of_row, strict=True):
                self._supervise_candidates(leaf, tail.candidates)
        self._positions += positions
        every = chain.from_iterable(tails)
        self._num_virtual += max((tail.start + tail.num_virtual_tokens for tail in every), default=0)
        return positions, [[self._span(leaf) for leaf in of_row] for of_row in leaves]

    def plan(self, device: torch.device, order: Sequence[int] | None = None) -> Plan:
        """The finished plan, on a device.

        Args:
            order: for rows that were added in an order of their own: index of each in the caller's order.
        """
        groups, positions = self._groups, self._positions
        if order is not None:
            groups = [order[group] for group in groups]
            positions = [positions[row] for row in sorted(range(len(order)), key=order.__getitem__)]
        return Plan.of(
            Tree(tuple(self._parents), tuple(self._lengths)),
            self._num_groups,
            device,
            texts=self._texts,
            tokens=self._tokens,
            predictors=self._predictors,
            targets=self._targets,
            groups=groups,
            places=list(chain.from_iterable(positions)),
        )

    def _add(self, parent: int, tokens: Sequence[int]) -> int:
        self._parents.append(parent)
        self._lengths.append(len(tokens))
        self._tokens += tokens
        self._ends.append(len(self._tokens))
        return len(self._parents) - 1

    def _add_prompt(self, parent: int, length: int, skipped: int = 0) -> int:
        """A node of virtual tokens, which skips the next ``skipped`` rows of the prompt matrix."""
        return self._add(parent, self._virtual(length, skipped))

    def _virtual(self, length: int, skipped: int = 0) -> range:
        first = -1 - self._num_virtual - skipped
        return range(first, first - length, -1)

    def _add_tail(self, node: int, tail: Tail) -> int:
        """A suffix prompt below a text, and its candidates; the prompt's node."""
        leaf = self._add_prompt(node, tail.num_virtual_tokens, tail.start)
        self._add_branches(leaf, tail.candidates)
        return leaf

    def _add_text(self, tokens: Sequence[int]) -> int:
        """A text before suffix prompts, whose keys and values a text cache can supply."""
        node = self._add(ROOT, tokens)
        self._texts[node] = tuple(tokens)
        return node

    def _add_shared(
        self, root: int, rows: Sequence[Sequence[int]], add_below: Callable[[int, int], None] | None = None
    ) -> tuple[list[list[int]], list[int]]:
        """Rows below a prompt, shared prefixes once; positions and leaf of each row.

        Args:
            root: node of the prompt.
            add_below: adds nodes below a row, given its index and leaf.
        """
        nodes, above = list[int](), list[list[int]]()
        positions, leaves = [list[int]()] * len(rows), [root] * len(rows)
        for segment in share_prefixes(rows):
            top = segment.parent == ROOT
            node = self._add(root if top else nodes[segment.parent], rows[segment.row][segment.start : segment.stop])
            nodes.append(node)
            above.append(self._span(node) if top else above[segment.parent] + self._span(node))
            if segment.is_leaf:
                positions[segment.row], leaves[segment.row] = above[-1], node
                if add_below:
                    add_below(segment.row, node)
        return positions, leaves

    def _add_suffix_row(
        self, num_virtual_tokens: int, row: Sequence[int], text_length: int
    ) -> tuple[list[int], list[int]]:
        """One row with a suffix prompt; positions of its tokens, and of what predicts each token and the next one."""
        text = self._span(self._add_text(row[:text_length]))
        node = self._add(len(self._parents) - 1, [*self._virtual(num_virtual_tokens), *row[text_length:]])
        prompt, answer = self._span(node)[:num_virtual_tokens], self._span(node)[num_virtual_tokens:]
        return text + answer, [*[NOTHING, *text][: len(text)], prompt[-1], *answer]

    def _add_branches(self, node: int, candidates: CandidateTree) -> None:
        first = len(self._parents)
        for parent, tokens in candidates.nodes:
            self._add(node if parent == ROOT else first + parent, tokens)

    def _supervise(self, predictors: Sequence[int], labels: Sequence[int], group: int) -> None:
        for predictor, label in zip(predictors, labels, strict=False):
            if label != IGNORE_INDEX and predictor != NOTHING:
                self._predictors.append(predictor)
                self._targets.append(label)
                self._groups.append(group)

    def _supervise_candidates(self, node: int, candidates: CandidateTree) -> None:
        """Predict all candidates, whose nodes follow ``node``."""
        last, first = self._last(node), self._ends[node]
        if candidates.targets and last == NOTHING:
            raise ConfigError("a text without tokens and without a prompt: nothing precedes the label candidates")
        self._predictors += [first + place if place >= 0 else last for place in candidates.predictors]
        self._targets += candidates.targets
        self._groups += [self._num_groups + group for group in candidates.groups]
        self._num_groups += candidates.num_candidates

    def _span(self, node: int) -> list[int]:
        """Flat positions of a node's tokens."""
        return list(range(self._ends[node] - self._lengths[node], self._ends[node]))

    def _last(self, node: int) -> int:
        """Flat position of the last token of a node, or above it if it is empty."""
        while node != ROOT and not self._lengths[node]:
            node = self._parents[node]
        return NOTHING if node == ROOT else self._ends[node] - 1


def split_rows(flat: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Values of all rows, one row after the other, as a list for each row."""
    return [list(flat[start:stop]) for start, stop in pairwise([0, *accumulate(lengths)])]


def default_tokens_per_pack(device: torch.device) -> int:
    """``TOKENS_PER_PACK`` of a device."""
    return TOKENS_PER_PACK.get(device.type, TOKENS_PER_PACK["cuda"])


def packs(lengths: Sequence[int], tokens_per_pack: int) -> Iterator[range]:
    """Cut rows into consecutive packs of at most ``tokens_per_pack`` tokens, or of one row."""
    start = total = 0
    for row, length in enumerate(lengths):
        if row > start and total + length > tokens_per_pack:
            yield range(start, row)
            start, total = row, 0
        total += length
    if len(lengths) > start:
        yield range(start, len(lengths))
