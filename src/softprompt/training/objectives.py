"""Training objectives: the packs of a batch, and the summed loss of one pack.

========================  ======================================  ===============
objective                 loss of a row                           mean over
========================  ======================================  ===============
``LanguageModeling``      cross-entropy of the label's tokens     supervised tokens
``Classification``        cross-entropy between the class labels  rows
``EnsembleClassification``  the same, for several suffix prompts  rows
========================  ======================================  ===============

The language-modeling loss also rewards making the labels likely among all texts; with a few dozen rows most of its
gradient goes there. The other two compare the labels with each other and with nothing else.

Prefix and suffix prompts differ only in the plan of a pack, and in what its packs share: below a prefix all of them
share the prompt, which is computed once per step; suffix prompts share nothing, and read texts from the KV cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.kv_cache import KVCache
from ..engine.loss import group_log_probs, token_losses
from ..engine.plans import packs, plan_candidates, plan_examples
from ..engine.prefix_sharing import branch_tokens
from ..engine.runner import BaseOrRunner
from ..engine.text_cache import TextCache, cached_texts
from ..engine.tree import Plan
from ..inference.classifier import Classes
from ..types import Example, Placement

CACHED_TOKENS = 16
"""This many tokens of a cached text take the memory of one computed token, or less."""

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Pack:
    """Rows that are computed together.

    Attributes:
        plan: their plan.
        targets: of classification, what the rows' scores are compared with: class indices ``[b]``, or probabilities
            ``[pairs, C]``.
        weights: ``[pairs]`` weight of each pair of row and prompt, where there are several prompts.
    """

    plan: Plan
    targets: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Objective(ABC, Generic[RowT]):
    """What a step minimises.

    Attributes:
        base: the frozen causal language model, or the runner that owns it.
        placement: where the prompt stands.
        tokens_per_pack: most tokens of a pack that are computed; a pack has at least one row.
        texts: KV cache of the texts before suffix prompts; without one, texts are computed in each step.
    """

    base: BaseOrRunner
    placement: Placement
    tokens_per_pack: int
    texts: TextCache | None = None

    @property
    def shares_prompt(self) -> bool:
        """Whether all packs of a step attend to one and the same computed prompt."""
        return self.placement == "prefix"

    @abstractmethod
    def count(self, rows: Sequence[RowT]) -> int:
        """The divisor of the summed loss of some rows."""

    @abstractmethod
    def packs(self, rows: Sequence[RowT], prompt: Tensor) -> list[Pack]:
        """Planned packs of a batch.

        Args:
            prompt: ``[P, D]`` (``[M, P, D]`` for an ensemble); only its shape and device are read.
        """

    @abstractmethod
    def loss(self, pack: Pack, prompt: Tensor | KVCache) -> Tensor:
        """Summed loss of a pack, a scalar in nats; differentiable in the prompt.

        Args:
            prompt: as for ``packs``, or its KV cache.
        """

    def _cached(self, pack: Pack) -> Mapping[int, KVCache]:
        """KV caches of the nodes of a pack's texts; empty for a prefix prompt."""
        return cached_texts(self.base, pack.plan, self.texts) if self.placement == "suffix" else {}

    def _cut(self, sizes: Sequence[int]) -> list[slice]:
        """Consecutive rows whose sizes add up to at most ``tokens_per_pack``."""
        return [slice(rows.start, rows.stop) for rows in packs(sizes, self.tokens_per_pack)]


class LanguageModeling(Objective[Example]):
    """Cross-entropy of the label's tokens."""

    def count(self, rows: Sequence[Example]) -> int:
        """Supervised tokens."""
        return sum(len(row.label_ids) for row in rows)

    def packs(self, rows: Sequence[Example], prompt: Tensor) -> list[Pack]:
        """See ``Objective``."""
        length, device = len(prompt), prompt.device
        if self.placement == "prefix":
            sizes = [len(row.input_ids) + len(row.label_ids) for row in rows]
        else:
            sizes = [length + len(row.label_ids) + len(row.input_ids) // CACHED_TOKENS for row in rows]
        return [Pack(plan_examples(rows[part], length, device, self.placement)) for part in self._cut(sizes)]

    def loss(self, pack: Pack, prompt: Tensor | KVCache) -> Tensor:
        """See ``Objective``."""
        return token_losses(self.base, pack.plan, prompt, self._cached(pack)).sum()


@dataclass(frozen=True, kw_only=True)
class Classification(Objective[Example]):
    """Cross-entropy between the labels of the classes.

    Attributes:
        classes: the C labels in tokens.
        weights: ``[C]`` weight of the rows of each class; ``None`` for 1.
    """

    classes: Classes
    weights: Tensor | None = None

    def count(self, rows: Sequence[Example]) -> int:
        """Rows."""
        return len(rows)

    def packs(self, rows: Sequence[Example], prompt: Tensor) -> list[Pack]:
        """See ``Objective``."""
        length, device, labels = len(prompt), prompt.device, self.classes.ids
        branches = branch_tokens(labels)
        if self.placement == "prefix":
            sizes = [len(row.input_ids) + branches for row in rows]
        else:
            sizes = [length + branches + len(row.input_ids) // CACHED_TOKENS for row in rows]
        found = []
        for part in self._cut(sizes):
            texts = [row.input_ids for row in rows[part]]
            gold = torch.tensor(class_indices(rows[part], self.classes), device=device)
            suffix_prompts = [[0]] * len(texts) if self.placement == "suffix" else None
            found.append(Pack(plan_candidates(length, texts, labels, device, suffix_prompts), gold))
        return found

    def loss(self, pack: Pack, prompt: Tensor | KVCache) -> Tensor:
        """See ``Objective``."""
        scores = group_log_probs(self.base, pack.plan, prompt, self._cached(pack)).view(-1, len(self.classes.ids))
        assert pack.targets is not None
        return F.cross_entropy(scores, pack.targets, weight=self.weights, reduction="sum")


@dataclass(frozen=True, kw_only=True)
class EnsembleClassification(Objective[int]):
    """Weighted cross-entropy of M suffix prompts ``[M, P, D]``, summed over the prompts.

    A row is its number in ``examples``. All prompts stand next to each other after each text.

    Attributes:
        classes: the C labels in tokens.
        examples: N rows; their own labels are not read.
        targets: ``[N, C]`` probability of each class.
        weights: ``[M, N]`` weight of each row for each prompt; 0 where a prompt must not see the row.
    """

    classes: Classes
    examples: Sequence[Example]
    targets: Tensor
    weights: Tensor

    def count(self, rows: Sequence[int]) -> int:
        """Rows."""
        return len(rows)

    def packs(self, rows: Sequence[int], prompt: Tensor) -> list[Pack]:
        """See ``Objective``."""
        number, length, _ = prompt.shape
        below = number * (length + branch_tokens(self.classes.ids))
        sizes = [below + len(self.examples[row].input_ids) // CACHED_TOKENS for row in rows]
        return [self._pack(rows[part], length, prompt.device) for part in self._cut(sizes)]

    def _pack(self, rows: Sequence[int], num_virtual_tokens: int, device: torch.device) -> Pack:
        used = self.weights[:, rows].T > 0  # [b, M]
        row, member = used.nonzero(as_tuple=True)  # of each pair, in the order of the plan
        texts = [self.classes.text_of(self.examples[each]) for each in rows]
        prompts = [each.nonzero()[:, 0].tolist() for each in used]
        plan = plan_candidates(num_virtual_tokens, texts, self.classes.ids, device, prompts)
        return Pack(plan, self.targets[rows][row].to(device), self.weights[:, rows][member, row].to(device))

    def loss(self, pack: Pack, prompt: Tensor | KVCache) -> Tensor:
        """See ``Objective``."""
        assert isinstance(prompt, Tensor)
        assert pack.targets is not None
        assert pack.weights is not None
        scores = group_log_probs(self.base, pack.plan, prompt.flatten(0, 1), self._cached(pack))
        log_probs = scores.view(-1, len(self.classes.ids)).log_softmax(-1)
        losses = -(pack.targets.to(log_probs) * log_probs).sum(-1) * pack.weights.to(log_probs)
        return losses.sum()


def class_indices(examples: Sequence[Example], classes: Classes) -> list[int]:
    """Index of each example's class."""
    return [classes.names.index(str(example.label)) for example in examples]
