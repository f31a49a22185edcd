"""Running a token tree in one sequence: every token once, no padding, one call of the model.

The call is made on a view of the base whose attention layers read the tree (``attention.py``); their
other layers are stock code, or its faster equal (``kernels.py``). Nothing is installed on the base.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor

from ..kv_cache import KVCache, Layers
from ..surgery.capture import recording
from ..surgery.checkpointing import checkpointed
from ..surgery.fused import fused
from ..surgery.view import view
from ..tree import Tree
from .attention_cpu import Packing, Rule, attend
from .attention_cuda import attend_padded_blocks

PACKED = frozenset(
    (
        *("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2"),
        *("gpt_bigcode", "opt", "gpt_neox", "bloom", "stablelm", "olmo2", "granite", "cohere"),
    )
)
"""Model types that run packed: their attention layers can be exchanged, and the tests compare them."""

NAME = "softprompt_tree"
"""Our attention in transformers' registry; only views of a base ever name it."""


def run_packed(
    backbone: nn.Module,
    tree: Tree,
    embeds: Tensor,
    known: Mapping[int, KVCache],
    keep: bool = False,
    states: list[Tensor] | None = None,
) -> tuple[Tensor, Layers]:
    """Hidden states ``[T, D']`` of the tokens that are not known; with ``keep``, each layer's keys and values too.

    Args:
        embeds: ``[T, D]`` in flat order.
        known: what has been computed already, by node.
        states: filled with what each layer answers, ``[T, D]``.
    """
    packing = Packing(tree, frozenset(node for node in known if tree.lengths[node]), embeds.device)
    state, answers = _State(packing, known, keep), list[Tensor]()
    copied = _view(backbone, state, None if states is None else answers)
    output = copied(inputs_embeds=embeds[None], position_ids=packing.positions[None], use_cache=False)
    if states is not None:
        states += [answer[0] for answer in answers]
    return output.last_hidden_state[0], state.kept


class _State:
    """What attention layers need to know of a run; each finds it on itself."""

    def __init__(self, packing: Packing, known: Mapping[int, KVCache], keep: bool) -> None:
        self.packing = packing
        self._known = {node: known[node] for node in packing.known}
        self.keep = keep
        self.kept: Layers = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """``[1, T, heads, d]``."""
        if self.keep:
            self.kept.append((key, value))
        known = {node: found.layers[layer] for node, found in self._known.items()}
        by = attend_padded_blocks if query.is_cuda else attend
        return by(query, key, value, self.packing, rule, known)


def _view(backbone: nn.Module, state: _State, answers: list[Tensor] | None) -> nn.Module:
    config: Any = copy.copy(backbone.config)
    config._attn_implementation_internal = NAME

    # Keys and values that are handed out must not be made twice.
    exchanged = fused if state.keep else checkpointed

    def exchange(module: nn.Module) -> type[nn.Module]:
        return TreeBloomAttention if type(module) is BloomAttention else exchanged(module)

    copied = view(backbone, exchange if answers is None else recording(exchange, answers), {"config": config})
    for module in copied.modules():
        if "layer_idx" in module.__dict__:
            module.__dict__["tree_state"] = state
    return copied


def _attend_registered(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The signature of transformers' attention functions."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    state: _State = module.tree_state
    return state.attend(module.layer_idx, query, key, value, Rule(scale, sliding_window, softcap)), None


AttentionInterface.register(NAME, _attend_registered)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


class TreeBloomAttention(BloomAttention):
    """Bloom's attention, which is not in the registry, over a tree; ALiBi counts a token's depth."""

    tree_state: _State

    def forward(
        self, hidden_states: Tensor, residual: Tensor, alibi: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, None]:
        """As in transformers; biases that count flat positions (``alibi``) are of no use here."""
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        cache = self.tree_state.packing.cache
        if "slopes" not in cache:
            first_two = torch.ones(1, 2, device=query.device)
            cache["slopes"] = build_alibi_tensor(first_two, self.num_heads, torch.float32)[:, 0, 1]
        rule = Rule(self.inv_norm_factor, slopes=cache["slopes"])
        out = self.tree_state.attend(self.layer_idx, query, key, value, rule)
        return self.dense(out.flatten(2)) + residual, None
