"""Plans for a prompt behind the text: a forest with a tree for each text.

::

    training   text 1 -> [ prompt | label 1 ]          scoring   text 1 -> prompt ─┬─ " complaint"
               text 2 -> [ prompt | label 2 ]                                      └─ " no complaint"

No text depends on the prompt, so what it leaves behind in each layer can be known once for all (``texts.py``).
What then remains of a row is the prompt and its label. The prompt reads the text, so it is computed for each
row; the same row ``-1 - i`` of the prompt stands in many nodes, and their gradients add up there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..types import IGNORE_INDEX
from .plans import plan_candidates
from .tree import ROOT, Plan, Tree


class _Below(NamedTuple):
    """What stands behind one text: nodes in preorder, and what they predict.

    Attributes:
        parents: of each node; ``ROOT`` for the text.
        lengths, tokens: of the nodes.
        predictors: token (counted from the first behind the text) before each supervised one.
        targets, groups: of each supervised token.
    """

    parents: list[int]
    lengths: list[int]
    tokens: list[int]
    predictors: list[int]
    targets: list[int]
    groups: list[int]


def plan_suffix_rows(
    num_virtual_tokens: int,
    texts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    device: torch.device,
    labels: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """Rows of text, prompt and answer: ``text i -> [prompt | answer i]``; group ``i``.

    An answer's last token is predicted but never read, so it is not part of the tree.

    Args:
        texts: B rows of token ids, which may be empty.
        answers: B rows of token ids.
        labels: beside the answers' tokens, ``IGNORE_INDEX`` where there is no loss; ``None`` for a loss on all.
    """
    virtual = [*range(-1, -1 - num_virtual_tokens, -1)]
    suffix = []
    for row, (answer, label) in enumerate(zip(answers, answers if labels is None else labels, strict=True)):
        read = [*virtual, *answer[:-1]]
        kept = [i for i, target in enumerate(label) if target != IGNORE_INDEX]
        predictors = [num_virtual_tokens - 1 + i for i in kept]
        suffix.append(_Below([ROOT], [len(read)], read, predictors, [label[i] for i in kept], [row] * len(kept)))
    return _forest(texts, suffix, len(texts), device)


def plan_suffix_candidates(
    num_virtual_tokens: int,
    texts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[int]],
    device: torch.device,
    prompts: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """Every choice behind a prompt behind every text; group ``i * len(candidates) + j``.

    Text and prompt are computed once, whatever the number of choices, and so is what choices share at their start.
    Several prompts may stand side by side behind a text, each as if it were alone.

    Args:
        num_virtual_tokens: P, of each prompt.
        prompts: which prompts stand behind each text: prompt k is rows ``k P .. (k + 1) P - 1`` of the matrix
            ``[prompts * P, D]``. Groups then count pairs i of text and prompt, in this order. ``None``: the first.
    """
    # Choices under a prompt alone are just what hangs on each text.
    one = plan_candidates(num_virtual_tokens, [()], candidates, torch.device("cpu"))
    tokens, predictors, targets, groups = (
        column.tolist() for column in (one.tokens, one.predictors, one.targets, one.groups)
    )
    first = _Below([*one.tree.parents], [*one.tree.lengths], tokens, predictors, targets, groups)
    suffix, pairs = [], 0
    for mine in [[0]] * len(texts) if prompts is None else prompts:
        rows = [prompt * num_virtual_tokens for prompt in mine]
        parts = [first._replace(tokens=[token - row if token < 0 else token for token in tokens]) for row in rows]
        suffix.append(_side_by_side(parts, pairs, one.num_groups))
        pairs += len(parts)
    return _forest(texts, suffix, pairs * one.num_groups, device)


def _side_by_side(parts: Sequence[_Below], first: int, num_groups: int) -> _Below:
    """What stands behind one text; the groups of part k begin at ``(first + k) * num_groups``."""
    together = _Below([], [], [], [], [], [])
    for k, part in enumerate(parts, first):
        nodes, start = len(together.parents), len(together.tokens)
        together.parents.extend(parent if parent == ROOT else parent + nodes for parent in part.parents)
        together.lengths.extend(part.lengths)
        together.tokens.extend(part.tokens)
        together.predictors.extend(start + predictor for predictor in part.predictors)
        together.targets.extend(part.targets)
        together.groups.extend(k * num_groups + group for group in part.groups)
    return together


def _forest(texts: Sequence[Sequence[int]], suffix: Sequence[_Below], num_groups: int, device: torch.device) -> Plan:
    parents, lengths, tokens = list[int](), list[int](), list[int]()
    predictors, targets, groups = list[int](), list[int](), list[int]()
    for text, below in zip(texts, suffix, strict=True):
        node, start = len(parents), len(tokens) + len(text)
        parents += [ROOT, *(node if parent == ROOT else node + 1 + parent for parent in below.parents)]
        lengths += [len(text), *below.lengths]
        tokens += [*text, *below.tokens]
        predictors += [start + predictor for predictor in below.predictors]
        targets += below.targets
        groups += below.groups
    places = [at for at, token in enumerate(tokens) if token >= 0]
    columns = {"tokens": tokens, "predictors": predictors, "targets": targets, "groups": groups, "places": places}
    return Plan.of(Tree(tuple(parents), tuple(lengths)), num_groups, device, **columns)


def texts_of(plan: Plan) -> list[int]:
    """The nodes that hold the texts of a plan, in their order."""
    return [node for node, parent in enumerate(plan.tree.parents) if parent == ROOT]


def text_places(plan: Plan) -> Tensor:
    """Flat positions of the tokens of all texts, in their order."""
    places = [place for node in texts_of(plan) for place in plan.tree.span(node)]
    return torch.tensor(places, dtype=torch.long, device=plan.tokens.device)
