"""Rows of different adapters in one run of the model: label scoring, hidden states, and prefill for generation.

All rows of a call form one forest. A prefix prompt is computed once for all its rows, or comes prefilled. Texts before
suffix prompts are computed once, however many prompts follow them::

    prompt A ─┬─ text 1 ─┬─ " complaint"              text 3 ─┬─ prompt B ─┬─ " complaint"
              │          └─ " no complaint"                   │            └─ " no complaint"
              └─ text 2 (to be continued)                     └─ prompt C ─┬─ " spam"
    text 4 (no prompt)                                                     └─ " ham"

No result depends on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..engine.kv_cache import KVCache, joined
from ..engine.loss import embed, losses_of, no_outputs, to_compute
from ..engine.plans import Forest, Tail
from ..engine.prefix_sharing import CandidateTree
from ..engine.runner import BaseOrRunner, Computed, ModelRunner, with_cached
from ..engine.surgery.capture import Means, but_first
from ..engine.tree import Plan
from ..errors import ConfigError
from ..models.families import check_depth
from .mixed_rows import Back, LabelRow, MixedRow, Parts, Prefilled, StatesRow, StepRow, TextRow, divide, parts_of


@torch.no_grad()
def run_mixed(base: BaseOrRunner, rows: Sequence[MixedRow]) -> list[Any]:
    """The results of rows of any kind, in order; see the classes of the rows.

    Rows that are too many for the memory of one run are divided among several.

    Raises:
        ConfigError: a row has neither a text nor a prompt, or exceeds the model's context.
    """
    runner = ModelRunner.of(base)
    found: list[Any] = [None] * len(rows)
    parts = [parts_of(row) for row in rows]
    for call in divide(runner, rows, parts):
        run = _Run(runner, [rows[row] for row in call], [parts[row] for row in call])
        for row, result in zip(call, run.results(), strict=True):
            found[row] = result
    return found


@dataclass(eq=False)
class _Places:
    """Where the results of a row are in the forest.

    Attributes:
        tokens: flat positions of the row's tokens in reading order, without those of a prefilled prompt.
        prefix: the prefilled prompt before them, which is part of the result.
        last: flat position of the last token, which may be the prompt's.
        states: flat positions of the tokens whose hidden states are averaged.
        groups: the groups of its label candidates.
    """

    tokens: list[int] = field(default_factory=list)
    prefix: KVCache | None = None
    last: int = -1
    states: list[int] = field(default_factory=list)
    groups: slice = field(default_factory=lambda: slice(0, 0))


class _Run:
    """One run of the model: a forest of rows, and what was computed for it."""

    def __init__(self, runner: ModelRunner, rows: Sequence[MixedRow], parts: Sequence[Parts]) -> None:
        self._runner, self._rows = runner, rows
        self._places = [_Places() for _ in rows]
        self._forest, self._cached, self._matrices = Forest(), dict[int, KVCache](), list[Tensor]()
        self._trees = dict[int, CandidateTree]()
        width = next(runner.base.get_input_embeddings().parameters()).shape[1]
        self._unread = torch.zeros(1, width, device=runner.base.device)  # stands for embeddings of prefilled prompts
        if any(part.front and part.front.prompt is None and not part.front.ids for part in parts):
            raise ConfigError("a row has neither a text nor a prompt, so there is nothing for the model to read")
        self._reads_states = any(part.states_of for part in parts)
        self._add_fronts(parts)
        self._add_backs(parts)

    def _add_fronts(self, parts: Sequence[Parts]) -> None:
        """Add texts after prefix prompts; those with the same prompt and candidates share a tree."""
        together = dict[tuple[int, int], list[int]]()
        for row, part in enumerate(parts):
            if part.front:
                together.setdefault((id(part.front.prompt), id(part.front.candidates)), []).append(row)
        for rows in together.values():
            fronts = {row: front for row in rows if (front := parts[row].front)}
            prompt, _, candidates = fronts[rows[0]]
            node, start, group = self._forest.num_nodes, self._forest.num_tokens, self._forest.num_groups
            length = 0 if prompt is None else len(prompt.matrix)
            texts = self._forest.add_candidates(length, [front.ids for front in fronts.values()], candidates)
            virtual = list(range(start, start + length))
            if prompt is not None and prompt.cache is None:
                self._matrices.append(prompt.matrix)
            elif prompt is not None and prompt.cache is not None:
                self._matrices.append(self._unread.expand(length, -1))
                self._cached[node], virtual = prompt.cache, []
            for number, (row, own) in enumerate(zip(rows, texts, strict=True)):
                places = self._places[row]
                places.tokens = virtual + own
                places.prefix = None if isinstance(self._rows[row], StepRow) else self._cached.get(node)
                places.last = own[-1] if own else start + length - 1
                if parts[row].states_of is parts[row].front:
                    places.states = own
                if candidates:
                    places.groups = slice(group + number * len(candidates), group + (number + 1) * len(candidates))

    def _add_backs(self, parts: Sequence[Parts]) -> None:
        """Add texts before suffix prompts."""
        backs = {row: part.back for row, part in enumerate(parts) if part.back}
        starts, total, group = dict[int, int](), 0, self._forest.num_groups
        for back in backs.values():
            if id(back.prompts) not in starts:
                starts[id(back.prompts)] = total
                self._matrices.append(back.prompts.flatten(0, 1))
                total += back.prompts.shape[0] * back.prompts.shape[1]
        tails = [self._tails(back, starts[id(back.prompts)]) for back in backs.values()]
        texts, prompts = self._forest.add_tails([back.ids for back in backs.values()], tails)
        for (row, back), text, after in zip(backs.items(), texts, prompts, strict=True):
            places, size = self._places[row], len(back.prompts) * len(back.candidates)
            if parts[row].states_of is back:
                places.states = text
            if not back.candidates:
                places.tokens, places.last = text + after[0], after[0][-1]
            else:
                places.groups = slice(group, group + size)
            group += size

    def _tails(self, back: Back, start: int) -> list[Tail]:
        key, length = id(back.candidates), back.prompts.shape[1]
        if key not in self._trees:
            self._trees[key] = CandidateTree(back.candidates)
        tree = self._trees[key]
        return [Tail(start + number * length, length, tree) for number in range(len(back.prompts))]

    def results(self) -> list[Any]:
        """The results of all rows, in order."""
        runner, device = self._runner, self._runner.base.device
        plan = self._forest.plan(device)
        check_depth(runner.base.config, plan.tree.depth)
        flat = to_compute(plan, self._cached)
        inputs = embed(runner.base, plan, torch.cat(self._matrices) if self._matrices else (), flat=flat)
        keep = any(isinstance(row, (TextRow, StepRow)) for row in self._rows)
        found = runner.compute(plan.tree, inputs, self._cached, keep=keep, capture=self._reads_states)
        hidden = with_cached(found.hidden, plan.tree, self._cached)
        prefilled = self._prefilled(found, hidden, flat)
        log_probs, states = self._log_probs(plan, hidden), self._states(found, flat)
        return [
            prefilled[number]
            if isinstance(row, (TextRow, StepRow))
            else states[number]
            if isinstance(row, StatesRow)
            else _label_log_probs(row, log_probs[places.groups], states[number])
            for number, (row, places) in enumerate(zip(self._rows, self._places, strict=True))
        ]

    def _log_probs(self, plan: Plan, hidden: Tensor) -> Tensor:
        """Log-probability of each group, on the CPU."""
        losses = losses_of(self._runner, hidden, plan)
        return losses.new_zeros(plan.num_groups).index_add(0, plan.groups, -losses).cpu()

    def _states(self, found: Computed, flat: Tensor) -> Tensor:
        """Mean hidden states of each row ``[rows, layers, D]``, on the CPU; zeros for a row without."""
        if not self._reads_states:
            return torch.zeros(len(self._rows), 0)
        lengths = [len(places.states) for places in self._places]
        places = torch.tensor(
            [*chain.from_iterable(each.states for each in self._places)], dtype=torch.long, device=flat.device
        )
        means = Means(*but_first(places, lengths), len(self._rows))
        means.take(found.layer_outputs or no_outputs(self._runner, found.hidden), flat)
        return means.found.cpu()

    def _prefilled(self, found: Computed, hidden: Tensor, flat: Tensor) -> dict[int, Prefilled]:
        """KV cache and logits of each row to be continued."""
        rows = [number for number, row in enumerate(self._rows) if isinstance(row, (TextRow, StepRow))]
        if not rows:
            return {}
        logits = self._runner.logits(hidden[[self._places[row].last for row in rows]])
        return {
            row: Prefilled(self._cache(found, self._places[row], flat), each)
            for row, each in zip(rows, logits, strict=True)
        }

    def _cache(self, found: Computed, places: _Places, flat: Tensor) -> KVCache:
        at = torch.searchsorted(flat, torch.tensor(places.tokens, dtype=torch.long, device=flat.device))
        own = KVCache(tuple((keys[:, :, at], values[:, :, at]) for keys, values in found.layers), found.hidden[at])
        return own if places.prefix is None else joined(places.prefix, own)


def _label_log_probs(row: LabelRow, scores: Tensor, states: Tensor) -> Tensor:
    """Log-probabilities ``[C]`` of a row's classes.

    Args:
        scores: ``[C]``, or ``[M * C]`` of an ensemble's members: log-probability of each candidate.
        states: ``[layers, D]`` mean hidden states, for a linear probe.
    """
    classes = row.classes
    scores = scores[None]
    if classes.ensemble is not None:
        scores = classes.ensemble.join(scores.view(1, -1, len(classes.ids)))
    if classes.linear_probe is not None:
        scores = classes.linear_probe.mix(scores, states[None])
    return (scores.log_softmax(-1) if classes.relative else scores)[0]
