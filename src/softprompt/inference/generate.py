"""Generation with a prompt, by transformers' own ``generate``.

``generate`` runs on a variant of the base whose ``forward`` adds the prompt. The base is not touched. Rows of a batch
are laid out as ``[ pads | prompt | tokens ]``: no padding separates a row's prompt from its tokens, so every row
continues as it would alone, sliding windows and ALiBi included.

The first call is the prefill; each further call reads one token per row. The engine computes the prefill and fills
the KV cache for the calls that follow.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..engine.loss import embed
from ..engine.plans import split_rows
from ..engine.row_prompts import RowPrompts, columns
from ..engine.runner import BaseOrRunner, ModelRunner
from ..engine.surgery.lm_head import is_hooked
from ..engine.surgery.view import variant, without_hooks
from ..errors import ConfigError
from ..models.families import check_depth
from .generation_overrides import check_static_cache, overrides, with_guidance

UNSUPPORTED = ("assistant_model", "prompt_lookup_num_tokens")


@dataclass(frozen=True)
class Layout:
    """Where a batch's tokens go.

    Attributes:
        order: ``[B, P + T]``; output column ``c`` of PEFT's order (prompt first, then the caller's columns)
            is found at column ``order[b, c]`` of the layout.
        attention_mask: ``[B, P + T]``, zeros on the far left.
        position_ids: ``[B, P + T]``.
    """

    order: Tensor
    attention_mask: Tensor
    position_ids: Tensor


def real_tokens(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    """``[B, T]``, true where ``tokens`` (ids or embeddings) are not padding.

    Raises:
        ConfigError: the mask has another shape.
    """
    shape = tokens.shape[:2]
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.bool, device=tokens.device)
    if attention_mask.shape != shape:
        raise ConfigError(
            f"attention_mask must be [B, T] = {list(shape)}, one entry a token without the virtual ones; "
            f"it is {list(attention_mask.shape)}"
        )
    return attention_mask.bool()


def lay_out(real: Tensor, virtual: Tensor, before: Tensor | None = None) -> Layout:
    """Lay out rows as ``[ pads | prompt | tokens ]``.

    Args:
        real: ``[B, T]``, true at tokens.
        virtual: ``[B, P]``, true at virtual tokens.
        before: ``[B]`` tokens of each row that precede the prompt; none by default.
    """
    before = real.new_zeros(len(real), 1, dtype=torch.long) if before is None else before[:, None]
    rank = real.cumsum(1) - 1  # [B, T]
    places = torch.cat([before + virtual.cumsum(1) - 1, rank + (rank >= before) * virtual.sum(1, keepdim=True)], dim=1)
    together = torch.cat([virtual, real], dim=1)
    pads = (~together).sum(1, keepdim=True)
    order = torch.where(together, pads + places, (~together).cumsum(1) - 1)
    columns = torch.arange(together.shape[1], device=real.device)
    return Layout(order, (columns >= pads).long(), (columns - pads).clamp_min(0))


def prompted_call(
    base: PreTrainedModel,
    prompts: RowPrompts,
    *,
    input_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    position_ids: Tensor | None = None,
    runner: ModelRunner | None = None,
    suffix: bool | Tensor = False,
    **kwargs: Any,
) -> tuple[Any, Tensor | None]:
    """One call of the base with a prompt in each row; with a filled cache, a continuation of such a call.

    Args:
        input_ids: ``[B, T]``, or ``inputs_embeds`` ``[B, T, D]``; only the new tokens when the cache is filled.
        attention_mask: ``[B, tokens so far]``, padding anywhere in the first call, none after it.
        position_ids: ignored; positions follow from the layout.
        runner: computes the prefill, if given and only the last logits are asked for.
        suffix: the prompt follows the tokens of the first call; or the first so many of each row, ``[B]``.

    Returns:
        The base's output, and ``Layout.order`` of a first call (``None`` for a continuation).
    """
    new = inputs_embeds if inputs_embeds is not None else input_ids
    if new is None:
        raise ValueError("You have to provide either input_ids or inputs_embeds")
    prompts = prompts.for_rows(len(new))
    if past_key_values is not None and past_key_values.get_seq_length():
        return base(**further_inputs(base, prompts, new, attention_mask, past_key_values), **kwargs), None
    real = real_tokens(new, attention_mask)
    before = suffix if isinstance(suffix, Tensor) else real.sum(1) if suffix else None
    layout = lay_out(real, prompts.index >= 0, before)
    if runner and before is None and not is_hooked(base) and _can_be_filled(past_key_values, kwargs):
        return _read_rows(runner, prompts, new, real, layout, past_key_values), layout.order
    return base(**first_inputs(base, prompts, new, layout, past_key_values), **kwargs), layout.order


def first_inputs(
    base: PreTrainedModel, prompts: RowPrompts, new: Tensor, layout: Layout, cache: Cache | None
) -> dict[str, Any]:
    """The base's inputs for the prefill: embeddings ``[B, P + T, D]`` of prompts and rows, and their mask.

    Args:
        new: ids ``[B, T]``, or embeddings ``[B, T, D]``.
    """
    check_depth(base.config, layout.order.shape[1])
    embeds = new if new.ndim == 3 else base.get_input_embeddings()(new)
    virtual = prompts.matrix.to(embeds.dtype)[prompts.index]  # [B, P, D]; any row at padding, which is masked
    together = torch.cat([virtual, embeds], dim=1)
    placed = torch.zeros_like(together).scatter(1, layout.order[..., None].expand_as(together), together)
    return {
        "inputs_embeds": placed,
        "attention_mask": _as_wide_as(cache, layout.attention_mask),
        "position_ids": layout.position_ids,
        "past_key_values": cache,
    }


def further_inputs(
    base: PreTrainedModel, prompts: RowPrompts, new: Tensor, attention_mask: Tensor | None, cache: Cache
) -> dict[str, Any]:
    """The base's inputs for tokens that continue a filled cache.

    Args:
        new: ids ``[B, L]``, or embeddings ``[B, L, D]``.
        attention_mask: ``[B, tokens so far]`` of the caller's tokens.
    """
    rows, width = new.shape[:2]
    total = int(cache.get_seq_length()) + width
    check_depth(base.config, total)
    virtual = (prompts.index >= 0).sum(1, keepdim=True)  # [B, 1]
    seen = torch.full((rows, 1), total - prompts.width, device=new.device)
    if attention_mask is not None:
        if width > 1 and not attention_mask[:, -width:].bool().all():
            raise ConfigError(
                "padding among tokens that continue a filled cache is not supported; pad on the left once"
            )
        seen = attention_mask.sum(1, keepdim=True)
    pads = total - virtual - seen
    columns = torch.arange(total, device=new.device)
    return {
        "input_ids" if new.ndim == 2 else "inputs_embeds": new,
        "attention_mask": _as_wide_as(cache, (columns >= pads).long()),
        "position_ids": columns[-width:] - pads,
        "past_key_values": cache,
    }


def prepare_inputs(
    base: PreTrainedModel, prompts: RowPrompts, input_ids: Tensor, *args: Any, **kwargs: Any
) -> dict[str, Any]:
    """``base.prepare_inputs_for_generation`` with the prompts, for decoding loops that call the base themselves.

    Args:
        input_ids: ``[B, T]``, all tokens so far; those already in the cache are dropped.
        **kwargs: transformers'. ``attention_mask`` may be 4-D, as those of static caches are.

    Returns:
        ``inputs_embeds`` ``[B, P + T, D]`` with ``input_ids`` ``None`` for a first call, ``input_ids`` of the new
        tokens afterwards; a 2-D mask that counts the virtual tokens.
    """
    mask = kwargs.pop("attention_mask", None)
    prepared: dict[str, Any] = base.prepare_inputs_for_generation(input_ids, *args, attention_mask=None, **kwargs)
    prompts, cache = prompts.for_rows(len(input_ids)), prepared.get("past_key_values")
    filled = 0 if cache is None else int(cache.get_seq_length())
    if mask is not None and mask.ndim == 4:
        mask = _flat_mask(mask, input_ids.shape[1])
    if filled:
        read = min(filled - prompts.width, input_ids.shape[1] - 1)
        return prepared | further_inputs(base, prompts, input_ids[:, read:], mask, cache)
    new = prepared.get("inputs_embeds")
    new = input_ids if new is None else new
    layout = lay_out(real_tokens(new, mask), prompts.index >= 0)
    return prepared | {"input_ids": None} | first_inputs(base, prompts, new, layout, cache)


def _flat_mask(mask: Tensor, width: int) -> Tensor:
    """A causal mask ``[B, 1, T, keys]``, boolean or additive, as ``[B, T]``.

    Raises:
        ConfigError: it hides more than padding and later tokens.
    """
    seen = mask[:, 0, :, :width]
    seen = seen > torch.finfo(seen.dtype).min / 2 if seen.is_floating_point() else seen.bool()
    real = seen[:, -1]
    causal = real[:, None] & torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
    if seen.shape[1] != width or not torch.equal(seen & real[..., None], causal & real[..., None]):
        raise ConfigError("a 4-D attention_mask must be [B, 1, T, T] and causal apart from padding; give a 2-D one")
    return real.long()


def _can_be_filled(cache: Cache | None, asked: dict[str, Any]) -> bool:
    """Whether the engine can compute a first call: it fills a plain growing cache, and returns the last logits."""
    usual = {"use_cache": True, "return_dict": True, "logits_to_keep": 1, "mm_encoder_outputs": {}}
    others = {name: value for name, value in asked.items() if value is not None and value is not False}
    return (
        cache is not None
        and type(cache) is DynamicCache
        and not cache.offloading
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
        and not torch.is_grad_enabled()
        and all(name in usual and value == usual[name] for name, value in others.items())
    )


def _read_rows(
    runner: ModelRunner, prompts: RowPrompts, new: Tensor, real: Tensor, layout: Layout, cache: Cache | None
) -> CausalLMOutputWithPast:
    """The prefill by the engine: the same cache, and logits ``[B, 1, V]`` of the last position.

    Padding is skipped; each prompt, and prefixes that rows share (beams: all of it), are computed once.

    Args:
        new: ids ``[B, T]``, or embeddings ``[B, T, D]``.
        real: ``[B, T]``, true where ``new`` is not padding.
    """
    assert cache is not None
    given = new[real]  # [t] or [t, D]
    ids, embeds = (given.tolist(), None) if new.ndim == 2 else (range(len(given)), given)
    rows = split_rows(ids, real.sum(1).tolist())  # embeddings are not compared, so all count as different
    plan = prompts.plan(rows, None, new.device)
    found = runner.prefill(plan.tree, embed(runner.base, plan, prompts.matrix, embeds))
    nodes = [found[node] for node in sorted(found)]  # in flat order
    places = columns(plan, prompts, real)  # [B, P + T]
    slots = torch.zeros_like(places).scatter(1, layout.order, 1 + places)  # 0 for a pad, 1 + i for flat token i
    for layer in range(len(nodes[0].layers)):
        keys, values = (_placed([node.layers[layer][side] for node in nodes], slots) for side in (0, 1))
        cache.update(keys, values, layer)
    hidden = torch.cat([node.hidden for node in nodes])[slots[:, -1] - 1]
    return CausalLMOutputWithPast(logits=runner.logits(hidden)[:, None], past_key_values=cache)


def _placed(states: Sequence[Tensor], slots: Tensor) -> Tensor:
    """States ``[1, heads, n, d]`` of nodes, in sequence, placed by ``slots`` ``[B, S]``: ``[B, heads, S, d]``."""
    together = F.pad(torch.cat(list(states), dim=2), (0, 0, 1, 0))  # slot 0: zeros, for a pad
    return together[0][:, slots.to(together.device)].transpose(0, 1)


def _as_wide_as(cache: Cache | None, mask: Tensor) -> Tensor:
    """The mask, with zeros for positions of a static cache that are still empty (ALiBi is computed from it)."""
    if cache is None or not cache.is_compileable or any(layer.is_sliding for layer in cache.layers):
        return mask
    return F.pad(mask, (0, cache.get_max_length() - mask.shape[1]))


def generate(base: BaseOrRunner, prompts: RowPrompts, *args: Any, suffix: bool = False, **kwargs: Any) -> Any:
    """``base.generate`` with a prompt in each row. Arguments and return value are those of transformers.

    Returned sequences hold the caller's ids and the new ones; virtual tokens do not appear in them, nor do they
    count towards ``max_length``.

    Args:
        base: the base model, or the runner that owns it.
        suffix: text, prompt, new tokens.

    Raises:
        ConfigError: assisted decoding or prompt look-up, which count cache positions themselves; a static cache where
            it would be wrong; a suffix prompt with a filled cache.
    """
    runner = ModelRunner.of(base)
    config = kwargs.get("generation_config") or runner.base.generation_config
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None or getattr(config, name, None) is not None:
            raise ConfigError(f"{name} is not supported with a soft prompt; leave it out")
    if suffix:
        kwargs["use_cache"] = True  # without, each call would be a first one, and the prompt would move
    if (cache := kwargs.get("past_key_values")) is not None:
        if suffix and int(cache.get_seq_length()):
            raise ConfigError("a suffix prompt works for one turn only; leave the filled past_key_values out")
        kwargs.setdefault("use_cache", True)  # MPT's own default is not to
    static = kwargs.get("cache_implementation") or getattr(config, "cache_implementation", None)
    check_static_cache(runner.base, static or "")
    kwargs["prefill_chunk_size"] = None  # chunks would separate a padded row from its prompt; the result is the same
    return _prompted(runner, prompts, suffix).generate(*args, **with_guidance(runner.fused_base, kwargs))


def _prompted(runner: ModelRunner, prompts: RowPrompts, suffix: bool) -> PreTrainedModel:
    """A variant of the base whose calls include the prompts, for transformers' ``generate``."""
    base, length = runner.fused_base, prompts.width

    @functools.wraps(base.forward)
    def forward(**inputs: Any) -> Any:
        return prompted_call(base, prompts, runner=runner, suffix=suffix, **inputs)[0]

    @functools.wraps(base.prepare_inputs_for_generation)
    def prepare(
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        attention_mask: Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, Any]:
        cache = inputs.get("past_key_values")
        if next_sequence_length is not None and inputs.get("is_first_iteration") and cache is not None:
            # A new turn on an old cache: transformers counts the virtual tokens in it as ids already read.
            next_sequence_length += length if int(cache.get_seq_length()) else 0
        prepared: dict[str, Any] = base.prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, attention_mask=None, **inputs
        )
        return {**prepared, "attention_mask": attention_mask}  # 2-D always: the layout is ours to mask

    return without_hooks(  # the base's own call runs them
        variant(base, forward=forward, prepare_inputs_for_generation=prepare, **overrides(base, length))
    )
