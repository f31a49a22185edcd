"""Forward pass of a padded ``[B, T]`` batch, as collators make it; results have PEFT's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..engine.accumulate import mean_loss
from ..engine.loss import hidden_states, losses_of
from ..engine.plans import default_tokens_per_pack, packs, plan_rows, split_rows
from ..engine.row_prompts import RowPrompts, columns
from ..engine.runner import ModelRunner
from ..engine.surgery.lm_head import is_frozen
from ..engine.text_cache import read_for
from ..engine.tree import Plan
from ..errors import ConfigError
from ..types import IGNORE_INDEX
from .generate import prompted_call, real_tokens
from .output import LazyLogits, PromptedCausalLMOutput


@dataclass(frozen=True)
class Batch:
    """The arguments of ``forward``.

    Attributes:
        input_ids: ``[B, T]``.
        inputs_embeds: ``[B, T, D]``; used in place of ``input_ids`` if both are given.
        attention_mask: ``[B, T]``, zeros at padding; ``None`` for no padding.
        labels: ``[B, T]``, the label of the token at the same position; ``None`` for no loss.
        num_items: divisor of the summed loss; ``None`` for the number of supervised tokens.
        logits_to_keep: number of positions at the end of ``[P + T]`` that get logits (0: all), or their indices.
        position_ids: ``[B, T]`` or ``[1, T]``; used only to find the texts of packed rows, where they restart at 0.
    """

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    attention_mask: Tensor | None
    labels: Tensor | None
    num_items: Tensor | int | None
    logits_to_keep: int | Tensor = 0
    position_ids: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """Embeddings if given, ids otherwise.

        Raises:
            ConfigError: neither is given.
        """
        tokens = self.inputs_embeds if self.inputs_embeds is not None else self.input_ids
        if tokens is None:
            raise ConfigError("You have to provide either input_ids or inputs_embeds")
        return tokens

    @property
    def asked(self) -> dict[str, Any]:
        """The given inputs, under transformers' names."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given["num_items_in_batch"] = given.pop("num_items")
        keep = given.pop("logits_to_keep")
        given |= {} if isinstance(keep, int) and not keep else {"logits_to_keep": keep}
        return {name: value for name, value in given.items() if value is not None}

    @cached_property
    def real(self) -> Tensor:
        """``[B, T]``, false at padding.

        Raises:
            ConfigError: the mask has another shape.
        """
        return real_tokens(self.tokens, self.attention_mask)

    @cached_property
    def _fetched(self) -> dict[str, Tensor]:
        """``mask`` and, if given, ``ids``, ``labels`` and ``starts`` of packed texts, all ``[B, T]``, copied from the
        device to the CPU in one transfer.
        """
        real = self.real
        given = {"mask": real}
        if self.inputs_embeds is None:
            given["ids"] = self.tokens
        if self.labels is not None:
            given["labels"] = self.labels
        if self.position_ids is not None and self.position_ids.ndim == 2:  # three for images: [3, B, T]
            given["starts"] = (self.position_ids.to(real.device) == 0) & (real.cumsum(1) > 1)
        together = torch.stack([each.to(real.device, torch.long) for each in given.values()]).cpu()
        return dict(zip(given, together, strict=True)) | {"mask": together[0].bool()}

    @cached_property
    def packed(self) -> bool:
        """Whether a row contains several texts, one after the other: its ``position_ids`` restart at 0."""
        return self.position_ids is not None and len(self.lengths) > len(self.real)

    @cached_property
    def lengths(self) -> list[int]:
        """Number of tokens of each text: of each row without padding, or of each part of a packed row."""
        mask, starts = self._fetched["mask"], self._fetched.get("starts")
        lengths: list[int] = mask.sum(1).tolist()
        if starts is None:
            return lengths
        rows = torch.split(starts[mask], lengths)
        cuts = ([0, *row.nonzero()[:, 0].tolist(), len(row)] for row in rows)
        return [end - start for cut in cuts for start, end in pairwise(cut)]

    @cached_property
    def rows(self) -> list[list[int]]:
        """Token ids of each text; for embeddings, distinct numbers, so that no prefix is shared."""
        ids = range(sum(self.lengths)) if self.inputs_embeds is not None else self._values("ids")
        return split_rows(ids, self.lengths)

    @cached_property
    def row_labels(self) -> list[list[int]] | None:
        """Labels of each text; ``None`` for no loss."""
        return None if self.labels is None else split_rows(self._values("labels"), self.lengths)

    def _values(self, name: str) -> list[int]:
        values: list[int] = self._fetched[name][self._fetched["mask"]].tolist()
        return values

    @cached_property
    def text_lengths(self) -> list[int]:
        """Tokens of each row before its first label, where a suffix prompt stands; all tokens of a row without one."""
        if self.row_labels is None:
            return self.lengths
        supervised = [[label != IGNORE_INDEX for label in labels] for labels in self.row_labels]
        return [row.index(True) if True in row else len(row) for row in supervised]

    @cached_property
    def embeds(self) -> Tensor | None:
        """``[t, D]`` embeddings of all rows without padding; ``None`` where ids are given."""
        return None if self.inputs_embeds is None else self.inputs_embeds[self.real]

    def kept(self, positions: Tensor) -> Tensor:
        """The positions of ``[B, P + T, ...]`` that ``logits_to_keep`` selects."""
        keep = self.logits_to_keep
        return positions[:, slice(-keep, None) if isinstance(keep, int) else keep.to(positions.device)]


def forward_rows(base: PreTrainedModel, prompts: RowPrompts, batch: Batch) -> PromptedCausalLMOutput:
    """Loss and logits with prefix prompts: no padding, each prompt computed once, logits only when they are read."""
    runner = ModelRunner(base)
    can_be_cut = batch.inputs_embeds is None and batch.labels is not None and prompts.is_one and is_frozen(base)
    if can_be_cut and torch.is_grad_enabled():
        plans = plan_packs(prompts, batch, default_tokens_per_pack(prompts.matrix.device))
        if len(plans) > 1:
            return _forward_packs(runner, prompts, batch, plans)
    plan = plan_batch(prompts, batch)
    hidden = hidden_states(runner, plan, prompts.matrix, batch.embeds)
    return output_of(runner, plan, hidden, columns(plan, prompts, batch.real), batch)


def _forward_packs(
    runner: ModelRunner, prompts: RowPrompts, batch: Batch, plans: Sequence[Plan]
) -> PromptedCausalLMOutput:
    """Loss of a batch of several packs, one pack at a time; reading the logits computes the batch again."""
    loss = mean_loss(runner, plans, prompts.matrix, batch.num_items)
    whole = plan_batch(prompts, batch)
    places = batch.kept(columns(whole, prompts, batch.real))
    matrix = prompts.matrix.clone()  # an optimizer may change the prompt before the logits are read
    logits = LazyLogits(lambda: spread_logits(runner, hidden_states(runner, whole, matrix), places))
    return PromptedCausalLMOutput(loss=loss, logits=logits)


def output_of(runner: ModelRunner, plan: Plan, hidden: Tensor, places: Tensor, batch: Batch) -> PromptedCausalLMOutput:
    """Loss and logits of flat hidden states ``[T, D]``; with a loss, logits are computed when they are read.

    Args:
        places: ``[B, P + T]`` flat position of each token, -1 at padding.
    """
    places = batch.kept(places)
    if batch.labels is None:
        return PromptedCausalLMOutput(logits=spread_logits(runner, hidden, places))
    count = len(plan.targets) if batch.num_items is None else batch.num_items
    loss = losses_of(runner, hidden, plan).sum() / count
    return PromptedCausalLMOutput(loss=loss, logits=LazyLogits(lambda: spread_logits(runner, hidden, places)))


def plan_batch(prompts: RowPrompts, batch: Batch) -> Plan:
    """The plan of a batch: each text after its prompt, and each text of a packed row by itself."""
    return prompts.plan(batch.rows, batch.row_labels, batch.tokens.device)


def plan_packs(prompts: RowPrompts, batch: Batch, tokens_per_pack: int) -> list[Plan]:
    """Plans of a batch's texts after one prompt, each of at most ``tokens_per_pack`` tokens or of one text."""
    plans = []
    for part in packs(batch.lengths, tokens_per_pack):
        own = slice(part.start, part.stop)
        labels = None if batch.row_labels is None else batch.row_labels[own]
        plans.append(prompts.plan(batch.rows[own], labels, batch.tokens.device))
    return plans


def forward_suffix(base: PreTrainedModel, prompt: Tensor, batch: Batch) -> PromptedCausalLMOutput:
    """Loss and logits of a padded batch with a suffix prompt ``[P, D]``; see ``forward_rows``.

    The prompt stands before the first supervised token of a row; at its end where there is none, or no labels.
    """
    runner = ModelRunner(base)
    plan = plan_rows(len(prompt), batch.rows, batch.row_labels, batch.tokens.device, batch.text_lengths)
    # Embeddings and weights may take a gradient; their texts are computed with the rest.
    cached = read_for(runner, plan) if batch.embeds is None and is_frozen(base) else None
    hidden = hidden_states(runner, plan, prompt, batch.embeds, cached=cached)
    virtual = (plan.tokens < 0).nonzero()[:, 0].view(len(batch.rows), len(prompt))
    given = torch.full_like(batch.real, -1, dtype=torch.long).masked_scatter(batch.real, plan.places)
    return output_of(runner, plan, hidden, torch.cat([virtual, given], dim=1), batch)


def text_lengths(batch: Batch) -> Tensor:
    """``[B]`` tokens of each row before a suffix prompt; see ``Batch.text_lengths``."""
    return torch.tensor(batch.text_lengths, device=batch.real.device)


def spread_logits(runner: ModelRunner, hidden: Tensor, places: Tensor) -> Tensor:
    """Logits ``[B, C, V]`` of hidden states ``[T, D]`` at flat ``places`` ``[B, C]``; zeros where these are -1."""
    real = places >= 0
    wanted, back = torch.unique(places[real], return_inverse=True)
    found = runner.logits(hidden[wanted]).to(places.device)
    logits = found.new_zeros(*places.shape, found.shape[-1])
    logits[real] = found[back]
    return logits


def forward_plain(
    base: PreTrainedModel, prompts: RowPrompts, batch: Batch, suffix: bool | Tensor = False, **asked: Any
) -> PromptedCausalLMOutput:
    """One padded batch with the prompt in each row, through transformers' own code: for caches, attentions and hidden
    states of all layers.

    Args:
        suffix: as for ``prompted_call``.
        **asked: keywords of the base model.

    Raises:
        ConfigError: labels together with a filled cache.
    """
    output, order = prompted_call(
        base,
        prompts,
        input_ids=batch.input_ids,
        inputs_embeds=batch.inputs_embeds,
        attention_mask=batch.attention_mask,
        suffix=suffix,
        **asked,
    )
    if order is None:
        if batch.labels is not None:
            raise ConfigError("labels together with a filled past_key_values are not supported; score in one call")
        found = {k: v for k, v in output.items() if k in _FIELDS}
        return PromptedCausalLMOutput(**found | {"logits": batch.kept(output.logits)})
    ours = torch.cat([prompts.for_rows(len(order)).index >= 0, batch.real], dim=1)[..., None]
    states, attentions = output.get("hidden_states"), output.get("attentions")
    return PromptedCausalLMOutput(
        loss=None if batch.labels is None else _plain_loss(output.logits, batch, order, ours[..., 0]),
        logits=batch.kept(_reorder(output.logits, order) * ours),
        past_key_values=output.get("past_key_values"),
        hidden_states=states and tuple(_reorder(state, order) * ours for state in states),
        attentions=attentions and tuple(_reorder_pairs(weights, order) for weights in attentions),
    )


def _plain_loss(logits: Tensor, batch: Batch, order: Tensor, ours: Tensor) -> Tensor:
    """Loss from logits ``[B, P + T, V]`` in the layout's order, where position ``i`` predicts position ``i + 1``.

    Args:
        ours: ``[B, P + T]`` in PEFT's order, false at padding.
    """
    assert batch.labels is not None
    length = order.shape[1] - batch.labels.shape[1]
    labels = F.pad(batch.labels, (length, 0), value=IGNORE_INDEX)
    first = order == order.masked_fill(~ours, order.shape[1]).min(1, keepdim=True).values  # nothing predicts it
    labels = labels.masked_fill(~ours | first, IGNORE_INDEX)
    targets = torch.zeros_like(labels).scatter(1, order, labels)[:, 1:]
    summed = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, reduction="sum")
    return summed / ((targets != IGNORE_INDEX).sum() if batch.num_items is None else batch.num_items)


_FIELDS = ("logits", "past_key_values", "hidden_states", "attentions")


def _reorder(states: Tensor, order: Tensor) -> Tensor:
    """``[B, P + T, D]``, from the layout's order to PEFT's."""
    return states.gather(1, order[..., None].expand(-1, -1, states.shape[-1]))


def _reorder_pairs(weights: Tensor, order: Tensor) -> Tensor:
    """``[B, heads, P + T, P + T]``, from the layout's order to PEFT's in both dimensions."""
    rows = order[:, None, :, None].expand_as(weights)
    return weights.gather(2, rows).gather(3, order[:, None, None, :].expand_as(weights))
