"""Plans for what is trained, scored and read: rows, choices behind texts, several prompts side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from ..types import IGNORE_INDEX
from .tree import ROOT, Plan, Tree

TOKENS_PER_PACK = {"cpu": 1024, "cuda": 16_384}
"""Most tokens computed at once with a gradient, by kind of device: enough to keep it busy."""

MIN_SAVING = 24
"""Tokens that sharing a prefix must save. One more node costs about so much in time."""


def plan_rows(num_virtual_tokens: int, lengths: Sequence[int], input_ids: Tensor, labels: Tensor | None) -> Plan:
    """Rows under one prompt; prefixes that rows share (a template's first words) are read once::

        prompt -> row 1 | shared -> row 2 | row 3 | ...

    A label stands at the position of its own token (``IGNORE_INDEX`` where there is no loss) and is
    predicted one token earlier; a row's first token is predicted by the last virtual token, and has no loss
    without a prompt.

    Args:
        num_virtual_tokens: of the prompt; 0 for rows without one.
        lengths: tokens of each of the B rows.
        input_ids: ``[t]`` ids of all rows, one after the other.
        labels: ``[t]`` beside them, or ``None`` for no supervision.
    """
    rows = [row.tolist() for row in torch.split(input_ids, list(lengths))]
    builder = _Builder(num_virtual_tokens)
    tree = builder.grow(rows)
    device = input_ids.device
    counts = torch.tensor(lengths, dtype=torch.long)
    places = torch.cat([torch.empty(0, dtype=torch.long), *(builder.places(row, tree) for row in range(len(rows)))])
    row = torch.repeat_interleave(counts)  # [t] row of each token
    first = torch.zeros_like(places, dtype=torch.bool)
    first[(counts.cumsum(0) - counts)[counts > 0]] = True
    predictors = places.roll(1).masked_fill(first, num_virtual_tokens - 1)
    tokens = torch.arange(-1, -1 - tree.num_tokens, -1)  # where no row writes, the prompt stands
    tokens[places] = input_ids.cpu()
    places, tokens = places.to(device), tokens.to(device)
    if labels is None:
        nothing = torch.empty(0, dtype=torch.long, device=device)
        return Plan(tree, tokens, nothing, nothing, nothing, len(rows), places)
    kept = labels != IGNORE_INDEX
    if not num_virtual_tokens:
        kept &= ~first.to(device)
    return Plan(tree, tokens, predictors.to(device)[kept], labels[kept], row.to(device)[kept], len(rows), places)


def plan_mixed(
    num_virtual_tokens: Sequence[int],
    prompt_of_row: Sequence[int],
    lengths: Sequence[int],
    input_ids: Tensor,
    labels: Tensor | None,
) -> Plan:
    """A forest of rows with several prompts: row ``i`` has prompt ``prompt_of_row[i]``; otherwise as ``plan_rows``.

    Args:
        num_virtual_tokens: of each prompt; 0 for none.
    """
    order = sorted(range(len(lengths)), key=prompt_of_row.__getitem__)
    pieces = torch.split(torch.arange(len(input_ids), device=input_ids.device), list(lengths))
    moved = torch.cat([input_ids.new_empty(0), *(pieces[row] for row in order)])
    plans, start = [], 0
    for prompt, count in enumerate(num_virtual_tokens):
        own = [lengths[row] for row in order if prompt_of_row[row] == prompt]
        part = moved[start : start + sum(own)]
        start += len(part)
        plans.append(plan_rows(count, own, input_ids[part], None if labels is None else labels[part]))
    plan = join(plans)
    places = torch.empty_like(plan.places).index_copy(0, moved, plan.places)
    return replace(plan, places=places, groups=torch.tensor(order, device=places.device)[plan.groups])


class _Builder:
    """Grows a tree of shared prefixes."""

    def __init__(self, num_virtual_tokens: int, branches: _Branches | None = None) -> None:
        self.parents, self.lengths = [ROOT], [num_virtual_tokens]
        self._nodes: dict[int, list[int]] = {}  # row -> nodes that hold its tokens, from the top
        self._branches = branches  # what hangs on each row

    def grow(self, rows: Sequence[Sequence[int]]) -> Tree:
        """The tree of some rows below the prompt."""
        order = sorted(range(len(rows)), key=lambda row: tuple(rows[row]))
        common = [_common(rows[a], rows[b]) for a, b in pairwise(order)]
        # Stretches of the order that remain to be placed: [low, high), tokens above, the nodes above.
        waiting: list[tuple[int, int, int, list[int]]] = [(0, len(order), 0, [0])]
        while waiting:
            low, high, above, path = waiting.pop()
            if high - low == 1:
                self._nodes[order[low]] = [*path[1:], self._leaf(path[-1], len(rows[order[low]]) - above)]
                continue
            if high == low:
                continue
            shared = min(common[low : high - 1])
            if (high - low - 1) * (shared - above) >= MIN_SAVING:
                path = [*path, self._node(path[-1], shared - above)]
                above = shared
            cuts = [low, *(i + 1 for i in range(low, high - 1) if common[i] == shared), high]
            waiting += [(a, b, above, path) for a, b in reversed(list(pairwise(cuts)))]
        return Tree(tuple(self.parents), tuple(self.lengths))

    def _leaf(self, parent: int, length: int) -> int:
        leaf = self._node(parent, length)
        if self._branches:
            for above, size in zip(self._branches.parents, self._branches.lengths, strict=True):
                self._node(leaf + 1 + above if above != ROOT else leaf, size)
        return leaf

    def _node(self, parent: int, length: int) -> int:
        self.parents.append(parent)
        self.lengths.append(length)
        return len(self.parents) - 1

    def places(self, row: int, tree: Tree) -> Tensor:
        """Flat position of each token of a row."""
        return torch.cat([torch.arange(tree.starts[n], tree.starts[n] + tree.lengths[n]) for n in self._nodes[row]])

    def below(self, row: int, tree: Tree) -> int:
        """Flat position behind a row's last token: of the first that hangs on it."""
        return tree.span(self._nodes[row][-1]).stop


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def plan_candidates(
    num_virtual_tokens: int,
    texts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[int]],
    device: torch.device,
) -> Plan:
    """Every choice behind every text: ``prompt -> text i -> candidate j``; group ``i * len(candidates) + j``.

    The text is computed once, whatever the number of choices, and so is what choices share at their start, and what
    texts do. A choice's last token is predicted but never read, so it is not part of the tree.
    """
    branches = _Branches(candidates)
    builder = _Builder(num_virtual_tokens, branches)
    tree = builder.grow(texts)
    tokens = [*range(-1, -1 - tree.num_tokens, -1)]  # where no text writes, the prompt stands
    places, predictors = list[int](), list[int]()
    for i, text in enumerate(texts):
        own, below = builder.places(i, tree).tolist(), builder.below(i, tree)
        for at, token in zip(own, text, strict=True):
            tokens[at] = token
        tokens[below : below + len(branches.tokens)] = branches.tokens
        places += own
        last = own[-1] if text else num_virtual_tokens - 1
        predictors += [below + predictor if predictor >= 0 else last for predictor in branches.predictors]
    groups = [
        i * len(candidates) + j for i in range(len(texts)) for j, candidate in enumerate(candidates) for _ in candidate
    ]
    targets = [token for candidate in candidates for token in candidate] * len(texts)
    columns = {"tokens": tokens, "predictors": predictors, "targets": targets, "groups": groups, "places": places}
    return Plan.of(tree, len(texts) * len(candidates), device, **columns)


def branch_tokens(candidates: Sequence[Sequence[int]]) -> int:
    """Tokens that choices put behind a text: what they share at their start once, their last tokens not at all."""
    return len(_beginnings(candidates))


def _beginnings(candidates: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
    """What stands before a choice's later tokens."""
    return {tuple(candidate[:n]) for candidate in candidates for n in range(1, len(candidate))}


class _Branches:
    """What stands below each text: choices without their last token, as a tree of what they share.

    Attributes:
        parents: of each node; -1 for the text.
        lengths, tokens: of the nodes, in preorder.
        predictors: token (from the first behind the text) before each token of each choice; -1 for the text's last.
    """

    def __init__(self, candidates: Sequence[Sequence[int]]) -> None:
        self.parents, self.lengths, self.tokens = list[int](), list[int](), list[int]()
        paths: dict[tuple[int, ...], tuple[int, int]] = {(): (ROOT, -1)}  # prefix -> (its node, its last token)
        prefixes = sorted(_beginnings(candidates))
        children = Counter(prefix[:-1] for prefix in prefixes)
        for prefix in prefixes:
            above, _ = paths[prefix[:-1]]
            if above == ROOT or children[prefix[:-1]] > 1:
                self.parents.append(above)
                self.lengths.append(0)
                above = len(self.parents) - 1
            self.lengths[above] += 1
            self.tokens.append(prefix[-1])
            paths[prefix] = above, len(self.tokens) - 1
        self.predictors = [paths[tuple(candidate[:n])][1] for candidate in candidates for n in range(len(candidate))]


def join(plans: Sequence[Plan]) -> Plan:
    """Plans side by side, each under its own prompt: a forest for one run, with the prompts one after the other."""
    parents, lengths = list[int](), list[int]()
    columns: dict[str, list[Tensor]] = {name: [] for name in ("tokens", "predictors", "groups", "places")}
    flat = virtual = groups = 0
    for plan in plans:
        parents += [parent if parent == ROOT else parent + len(lengths) for parent in plan.tree.parents]
        columns["tokens"].append(torch.where(plan.tokens < 0, plan.tokens - virtual, plan.tokens))
        columns["predictors"].append(plan.predictors + flat)
        columns["groups"].append(plan.groups + groups)
        columns["places"].append(plan.places + flat)
        lengths += plan.tree.lengths
        flat, virtual, groups = flat + plan.tree.num_tokens, virtual + plan.num_virtual, groups + plan.num_groups
    together = {name: torch.cat(parts) for name, parts in columns.items()}
    tree = Tree(tuple(parents), tuple(lengths))
    return Plan(tree, targets=torch.cat([plan.targets for plan in plans]), num_groups=groups, **together)


def default_tokens_per_pack(device: torch.device) -> int:
    """``TOKENS_PER_PACK`` of a device."""
    return TOKENS_PER_PACK.get(device.type, TOKENS_PER_PACK["cuda"])


def packs(lengths: Sequence[int], tokens_per_pack: int) -> Iterator[range]:
    """Cut rows into stretches of at most so many tokens (at least one row each)."""
    start = total = 0
    for row, length in enumerate(lengths):
        if row > start and total + length > tokens_per_pack:
            yield range(start, row)
            start, total = row, 0
        total += length
    if len(lengths) > start:
        yield range(start, len(lengths))
