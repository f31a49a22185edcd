"""Log-probabilities in place of logits, for the trainers of trl.

``trl.trainer.utils.add_fused_lm_head`` replaces the ``forward`` of a base model. Called with
``fused_lm_head=True``, the new one returns ``log_probs``, ``entropy`` and more of each supervised token, and no
logits. Here the engine computes the hidden states, and trl's code everything after them.
"""

from __future__ import annotations

import inspect

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..engine.loss import hidden_states
from ..engine.row_prompts import RowPrompts
from ..engine.surgery.lm_head import without_backbone
from ..errors import ConfigError
from ..types import IGNORE_INDEX
from .forward import Batch, plan_batch


def is_fused(base: PreTrainedModel) -> bool:
    """Whether trl has replaced the base's ``forward``."""
    function = getattr(base.forward, "__func__", None)
    return function is not None and "fused_lm_head" in inspect.signature(function, follow_wrapped=False).parameters


def forward_fused(base: PreTrainedModel, prompts: RowPrompts, batch: Batch) -> ModelOutput:
    """The output of trl's ``forward`` (see ``is_fused``) for a batch with a prefix prompt.

    Args:
        prompts: a single one, for all rows.
        batch: with labels.

    Returns:
        trl's output. Its fields per token are ``[B, P + T - 1]``: column ``j`` belongs to the token at column
        ``j + 1`` of prompt and row; zeros where a token has no label.

    Raises:
        ConfigError: there are no labels.
    """
    if batch.labels is None:
        raise ConfigError("fused_lm_head returns log-probabilities of labels; give labels")
    plan = plan_batch(prompts, batch)
    hidden = hidden_states(base, plan, prompts.matrix, batch.embeds)[plan.predictors]
    asked = {} if batch.num_items is None else {"num_items_in_batch": batch.num_items}
    found = base.forward.__func__(
        without_backbone(base),
        inputs_embeds=hidden[None],
        shift_labels=plan.targets[None],
        fused_lm_head=True,
        **asked,
    )
    return _spread(found, batch.real, batch.labels[batch.real] != IGNORE_INDEX, prompts.width)


def _spread(found: ModelOutput, real: Tensor, supervised: Tensor, num_virtual_tokens: int) -> ModelOutput:
    """Fields ``[1, S]`` of the supervised tokens, spread to ``[B, P + T - 1]``; other fields unchanged."""
    row, column = real.nonzero()[supervised].unbind(1)
    where = (row, column + num_virtual_tokens - 1)
    shape = (len(real), num_virtual_tokens + real.shape[1] - 1)
    fields = {
        name: value.new_zeros(shape).index_put(where, value[0]) if value.shape == (1, len(row)) else value
        for name, value in ((name, value.to(real.device)) for name, value in found.items())
    }
    return type(found)(**fields)
