"""Log-probabilities in place of logits, as the trainers of trl ask for them.

``trl.trainer.utils.add_fused_lm_head`` exchanges the ``forward`` of a base model. Called with
``fused_lm_head=True``, the new one returns ``log_probs``, ``entropy`` and more of each supervised token, and no
logits. What happens behind the hidden states stays trl's; the hidden states are the engine's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .engine.head import with_hidden_states
from .engine.known import Known
from .engine.loss import hidden_states
from .errors import ConfigError
from .forward import Batch, plan_batch
from .types import IGNORE_INDEX


def forward_fused(
    base: PreTrainedModel, prompt: Tensor | Known, batch: Batch, output_router_logits: bool = False, **_: Any
) -> ModelOutput:
    """What the base's exchanged ``forward`` returns for a batch behind a prompt.

    Args:
        prompt: ``[P, D]``, or the compiled prompt.
        batch: with labels.
        output_router_logits: must be false; the routers of a frozen base have no load to balance.

    Returns:
        trl's output. Its fields per token are ``[B, P + T - 1]``: column ``j`` belongs to the token at column
        ``j + 1`` of prompt and row; zeros where a token has no label.

    Raises:
        TypeError: the base's ``forward`` does not take ``fused_lm_head``.
        ConfigError: no labels, or router logits are asked for.
    """
    forward = _exchanged(base)
    if batch.flat_labels is None:
        raise ConfigError("fused_lm_head returns log-probabilities of labels; give labels")
    if output_router_logits:
        raise ConfigError(
            "output_router_logits: the base is frozen, so there is no load-balancing loss; set router_aux_loss_coef=0.0"
        )
    plan = plan_batch(len(prompt), batch)
    hidden = hidden_states(base, plan, prompt, batch.embeds)[plan.predictors]
    asked = {} if batch.num_items is None else {"num_items_in_batch": batch.num_items}
    found = forward(
        with_hidden_states(base, hidden), inputs_embeds=hidden[None], shift_labels=plan.targets[None],
        fused_lm_head=True, **asked
    )  # fmt: skip
    return _spread(found, batch.real, batch.flat_labels != IGNORE_INDEX, len(prompt))


def _exchanged(base: PreTrainedModel) -> Callable[..., ModelOutput]:
    """The function behind the base's ``forward``, if it is the one that trl puts there."""
    function = getattr(base.forward, "__func__", None)
    if function is None or "fused_lm_head" not in inspect.signature(function, follow_wrapped=False).parameters:
        raise TypeError(f"{type(base).__name__}.forward() got an unexpected keyword argument 'fused_lm_head'")
    return function  # type: ignore[no-any-return]


def _spread(found: ModelOutput, real: Tensor, supervised: Tensor, num_virtual_tokens: int) -> ModelOutput:
    """Fields ``[1, S]`` of the supervised tokens, spread to ``[B, P + T - 1]``; other fields as they are."""
    row, column = real.nonzero()[supervised].unbind(1)
    where = (row, column + num_virtual_tokens - 1)
    shape = (len(real), num_virtual_tokens + real.shape[1] - 1)
    fields = {
        name: value.new_zeros(shape).index_put(where, value[0]) if value.shape == (1, len(row)) else value
        for name, value in ((name, value.to(real.device)) for name, value in found.items())
    }
    return type(found)(**fields)
