"""The packed backend: a token tree in one sequence, every token once, no padding, one call of the model.

The call is made on a view of the base whose attention layers read the tree (``attention_cpu.py``,
``attention_cuda.py``); its other layers are stock code or fused (``surgery/fused.py``). Nothing is installed on the
base. What differs between calls travels in their arguments (``TreeCache``), so any number of threads can use one view.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor
from transformers.models.stablelm.modeling_stablelm import StableLmAttention

from ..kv_cache import KVCache, Layers
from ..surgery.call import CallCache
from ..surgery.capture import capturing
from ..surgery.checkpointing import checkpointed
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


def packed_view(backbone: nn.Module) -> nn.Module:
    """A view of a decoder whose attention layers read the tree that a call brings with it."""
    config: Any = backbone.config
    return view(backbone, capturing(_exchange), {"config": with_tree_attention(config)})


_ATTENTION_FIELD = "_attn_implementation_internal"
"""Where a config holds the name of its attention function; private."""


def with_tree_attention(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of a config that names our attention function; where the field is gone, built anew from its values."""
    if _ATTENTION_FIELD not in vars(config):
        return type(config).from_dict(config.to_dict(), attn_implementation=NAME)
    config = copy.copy(config)
    setattr(config, _ATTENTION_FIELD, NAME)
    return config


def run_packed(
    model: nn.Module,
    tree: Tree,
    embeds: Tensor,
    cached: Mapping[int, KVCache],
    *,
    keep: bool = False,
    capture: bool = False,
) -> tuple[Tensor, Layers, list[Tensor]]:
    """Run a tree on a view from ``packed_view``.

    Args:
        embeds: ``[T, D]`` input embeddings in flat order, of the nodes that are not cached.
        cached: KV caches of nodes that have been computed already.
        keep: return keys and values.
        capture: return the outputs of all decoder layers.

    Returns:
        Of the T tokens: hidden states ``[T, D']``, keys and values of each layer, and the output ``[T, D']`` of each
        layer. The latter two are empty lists where they were not asked for.
    """
    packing = Packing(tree, frozenset(node for node in cached if tree.lengths[node]), embeds.device)
    cache = TreeCache(packing, cached, keep, capture)
    # Most families hand keywords on to the attention function; in all of them attention layers get the cache.
    output = model(
        inputs_embeds=embeds[None],
        position_ids=packing.positions[None],
        past_key_values=cache,
        use_cache=False,
        tree_cache=cache,
    )
    return output.last_hidden_state[0], cache.kept, [each[0] for each in cache.layer_outputs or ()]


class TreeCache(CallCache):
    """One call's tree, and the keys and values of its cached nodes."""

    def __init__(self, packing: Packing, cached: Mapping[int, KVCache], keep: bool, capture: bool) -> None:
        super().__init__(keep=keep, capture=capture, layers=[])
        self.packing = packing
        self.kept: Layers = []
        self._cached = {node: cached[node] for node in packing.cached}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values alone; attention adds those of cached nodes where they are read."""
        return key_states, value_states

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention of all new tokens, ``[1, T, heads, d]``."""
        if self.keep:
            self.kept.append((key, value))
        cached = {node: each.layers[layer] for node, each in self._cached.items()}
        attention = attend_padded_blocks if query.is_cuda else attend
        return attention(query, key, value, self.packing, rule, cached)


def _attend_registered(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    tree_cache: TreeCache,
    **_: Any,
) -> tuple[Tensor, None]:
    """The signature of transformers' attention functions, with the keyword that ``run_packed`` adds."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return tree_cache.attend(module.layer_idx, query, key, value, Rule(scale, sliding_window, softcap)), None


AttentionInterface.register(NAME, _attend_registered)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


class TreeStableLmAttention(StableLmAttention):
    """StableLM's attention; its decoder layer hands on the cache, but no keywords."""

    def forward(self, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        """As in transformers."""
        return super().forward(*args, past_key_values=past_key_values, tree_cache=past_key_values, **kwargs)


class TreeBloomAttention(BloomAttention):
    """Bloom's attention, which is not in the registry, over a tree; ALiBi counts a token's depth."""

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        alibi: Tensor,
        attention_mask: Tensor | None,
        layer_past: TreeCache,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """As in transformers, except that ``alibi`` is not used: it counts flat positions."""
        states = self.query_key_value(hidden_states).unflatten(-1, (self.num_heads, 3, self.head_dim))
        query, key, value = states.transpose(1, 2).unbind(3)
        shared = layer_past.packing.shared
        if "slopes" not in shared:
            first_two = torch.ones(1, 2, device=query.device)
            shared["slopes"] = build_alibi_tensor(first_two, self.num_heads, torch.float32)[:, 0, 1]
        rule = Rule(self.inv_norm_factor, slopes=shared["slopes"])
        out = layer_past.attend(self.layer_idx, query, key, value, rule)
        return self.dense(out.flatten(2)) + residual, None


_ATTENTION: dict[type[nn.Module], type[nn.Module]] = {
    BloomAttention: TreeBloomAttention,
    StableLmAttention: TreeStableLmAttention,
}


def _exchange(module: nn.Module) -> type[nn.Module]:
    return _ATTENTION.get(type(module)) or checkpointed(module)
