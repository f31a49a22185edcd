"""Decoding with a prompt in front, by transformers' own ``generate``.

``generate`` runs on a variant of the base whose ``forward`` places the prompt. The base is not touched.
Rows of a batch are laid out as ``[ pads | prompt | tokens ]``: no padding ever stands between a row's
prompt and its tokens, so every row continues as it would alone, sliding windows and ALiBi included.

The first call reads the rows; each further call, one token a row. The engine makes the first one, behind
the compiled prompt, and fills the cache that the others go on from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from .engine.compiled import compile_prompt
from .engine.head import logits_of
from .engine.kernels import faster
from .engine.known import Known
from .engine.plans import plan_rows
from .engine.run import compute
from .engine.view import variant, view
from .errors import ConfigError
from .families import check_depth

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


def lay_out(real: Tensor, num_virtual_tokens: int, behind: bool = False) -> Layout:
    """Lay out rows whose real tokens are marked in ``real`` ``[B, T]`` as ``[ pads | prompt | tokens ]``.

    With ``behind`` it is ``[ pads | tokens | prompt ]``.
    """
    width, count = real.shape[1], real.sum(1, keepdim=True)
    pads = width - count  # [B, 1]
    virtual = pads + count * behind + torch.arange(num_virtual_tokens, device=real.device)
    first = pads + num_virtual_tokens * (not behind)
    tokens = torch.where(real, first + real.cumsum(1) - 1, (~real).cumsum(1) - 1)
    columns = torch.arange(num_virtual_tokens + width, device=real.device)
    visible = (columns >= pads).long()
    return Layout(torch.cat([virtual, tokens], dim=1), visible, (columns - pads).clamp_min(0))


def prompted_call(
    base: PreTrainedModel,
    prompt: Tensor,
    *,
    input_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    position_ids: Tensor | None = None,
    compiled: Callable[[], Known] | None = None,
    behind: bool = False,
    **kwargs: Any,
) -> tuple[Any, Tensor | None]:
    """One call of the base with the prompt in front; with a filled cache, a continuation of such a call.

    Args:
        prompt: ``[P, D]``.
        input_ids: ``[B, T]``, or ``inputs_embeds`` ``[B, T, D]``; only the new tokens when the cache is filled.
        attention_mask: ``[B, tokens so far]``, padding anywhere in the first call, none after it.
        position_ids: ignored; positions follow from the layout.
        compiled: gives what is known of the prompt, for a caller who needs no more than the last logits of a
            first call; the engine makes that call where it can.
        behind: the prompt stands behind the tokens of the first call.

    Returns:
        The base's output, and ``Layout.order`` of a first call (``None`` for a continuation).
    """
    new = inputs_embeds if inputs_embeds is not None else input_ids
    if new is None:
        raise ValueError("You have to provide either input_ids or inputs_embeds")
    rows = len(new)
    filled = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    if filled:
        return _continue(base, prompt, new, attention_mask, past_key_values, filled, **kwargs), None
    check_depth(base.config, len(prompt) + new.shape[1])
    real = real_tokens(new, attention_mask)
    layout = lay_out(real, len(prompt), behind)
    if compiled is not None and not behind and _can_be_filled(past_key_values, kwargs):
        return _read_rows(base, compiled(), new, real, layout, past_key_values), layout.order
    embeds = inputs_embeds if inputs_embeds is not None else base.get_input_embeddings()(input_ids)
    together = torch.cat([prompt.to(embeds.dtype).expand(rows, -1, -1), embeds], dim=1)
    placed = torch.zeros_like(together).scatter(1, layout.order[..., None].expand_as(together), together)
    output = base(
        inputs_embeds=placed,
        attention_mask=_as_wide_as(past_key_values, layout.attention_mask),
        position_ids=layout.position_ids,
        past_key_values=past_key_values,
        **kwargs,
    )
    return output, layout.order


def _can_be_filled(cache: Cache | None, asked: dict[str, Any]) -> bool:
    """Whether the engine can make a first call: it fills a plain growing cache, and answers with the last logits."""
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
    base: PreTrainedModel, known: Known, new: Tensor, real: Tensor, layout: Layout, cache: Cache | None
) -> CausalLMOutputWithPast:
    """A first call by the engine: the same cache, and logits ``[B, 1, V]`` of the last position.

    No padding is computed, and the prompt is not either. What rows share at their start (beams: all) is read once.

    Args:
        new: ids ``[B, T]``, or embeddings ``[B, T, D]``.
        real: ``[B, T]``, true where ``new`` is not padding.
    """
    assert cache is not None
    given = new[real]  # [t] or [t, D]
    ids, embeds = given, given
    if new.ndim == 2:
        embeds = base.get_input_embeddings()(ids)
    else:
        ids = torch.arange(len(given), device=given.device)  # all different: embeddings are not compared
    plan = plan_rows(len(known), real.sum(1).tolist(), ids, None)
    unique = embeds.new_zeros(plan.tree.num_tokens - len(known), embeds.shape[-1])
    unique[plan.places - len(known)] = embeds
    found = compute(base.base_model, plan.tree, unique, {0: known})
    nodes = [known, *(found[node] for node in sorted(found))]  # in flat order
    sources = torch.zeros_like(layout.order)  # [B, P + T]; 0 for a pad, 1 + i for flat token i
    sources[:, : len(known)] = torch.arange(1, 1 + len(known), device=new.device)
    sources[:, len(known) :][real] = 1 + plan.places
    slots = torch.zeros_like(sources).scatter(1, layout.order, sources)
    for layer in range(len(known.layers)):
        keys, values = (_placed([node.layers[layer][side] for node in nodes], slots) for side in (0, 1))
        cache.update(keys, values, layer)
    hidden = torch.cat([node.hidden for node in nodes])[slots[:, -1] - 1]
    return CausalLMOutputWithPast(logits=logits_of(base, hidden)[:, None], past_key_values=cache)


def _placed(states: Sequence[Tensor], slots: Tensor) -> Tensor:
    """States ``[1, heads, n, d]`` of nodes, one after the other, as ``slots`` ``[B, S]`` say: ``[B, heads, S, d]``."""
    together = F.pad(torch.cat(list(states), dim=2), (0, 0, 1, 0))  # a pad's are zero
    return together[0][:, slots.to(together.device)].transpose(0, 1)


def _continue(
    base: PreTrainedModel,
    prompt: Tensor,
    new: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Cache | None,
    filled: int,
    **kwargs: Any,
) -> Any:
    """Further tokens behind what the cache holds."""
    rows, width = new.shape[:2]
    total = filled + width
    check_depth(base.config, total)
    seen = torch.full((rows, 1), total - len(prompt), device=new.device)
    if attention_mask is not None:
        if width > 1 and not attention_mask[:, -width:].bool().all():
            raise ConfigError(
                "padding among tokens that continue a filled cache is not supported; pad on the left once"
            )
        seen = attention_mask.sum(1, keepdim=True)
    pads = total - len(prompt) - seen
    columns = torch.arange(total, device=new.device)
    return base(
        **{"input_ids" if new.ndim == 2 else "inputs_embeds": new},
        attention_mask=_as_wide_as(past_key_values, (columns >= pads).long()),
        position_ids=columns[-width:] - pads,
        past_key_values=past_key_values,
        **kwargs,
    )


def _as_wide_as(cache: Cache | None, mask: Tensor) -> Tensor:
    """The mask, with zeros for the places of a static cache that are still empty (ALiBi is made from it)."""
    if cache is None or not cache.is_compileable or any(layer.is_sliding for layer in cache.layers):
        return mask
    return F.pad(mask, (0, cache.get_max_length() - mask.shape[1]))


def generate(
    base: PreTrainedModel,
    prompt: Tensor,
    *args: Any,
    compiled: Callable[[], Known] | None = None,
    behind: bool = False,
    **kwargs: Any,
) -> Any:
    """``base.generate`` with the prompt in front. Arguments and return value are those of transformers.

    Returned sequences hold the caller's ids and the new ones; virtual tokens never appear, nor do they
    count towards ``max_length``.

    Args:
        compiled: gives the compiled prompt, for a caller who keeps it; without it, it is computed here.
        behind: text, prompt, new tokens.

    Raises:
        ConfigError: assisted decoding or prompt look-up, which count cache positions themselves; a filled cache
            behind which a prompt would have to stand.
    """
    config = kwargs.get("generation_config") or base.generation_config
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None or getattr(config, name, None) is not None:
            raise ConfigError(f"{name} is not supported with a soft prompt; leave it out")
    if behind:
        kwargs["use_cache"] = True  # without, each call would be a first one, and the prompt would move along
    if (cache := kwargs.get("past_key_values")) is not None:
        if behind and int(cache.get_seq_length()):
            raise ConfigError("a prompt behind the text stands in one turn only; leave the filled past_key_values out")
        kwargs.setdefault("use_cache", True)  # MPT's own default is not to
    if base.config.model_type == "gpt_neo" and "static" in (kwargs.get("cache_implementation") or ""):
        raise ConfigError(
            "gpt_neo gives wrong tokens with a static cache in transformers; leave cache_implementation out"
        )
    kwargs["prefill_chunk_size"] = None  # chunks would part a padded row from its prompt; the result is the same
    compiled = compiled or functools.partial(compile_prompt, base, prompt)
    return _prompted(view(base, faster), prompt, compiled, behind).generate(*args, **kwargs)


def _prompted(base: PreTrainedModel, prompt: Tensor, compiled: Callable[[], Known], behind: bool) -> PreTrainedModel:
    """A variant of the base whose calls have the prompt in front (or behind), for transformers' ``generate``."""
    length = len(prompt)

    @functools.wraps(base.forward)
    def forward(**inputs: Any) -> Any:
        return prompted_call(base, prompt, compiled=compiled, behind=behind, **inputs)[0]

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

    @functools.wraps(base._prepare_static_cache)
    def static_cache(*, max_cache_len: int, **inputs: Any) -> Cache:
        return base._prepare_static_cache(max_cache_len=max_cache_len + length, **inputs)

    return variant(base, forward=forward, prepare_inputs_for_generation=prepare, _prepare_static_cache=static_cache)
