"""Running token trees on a frozen base model: the choice of a backend, hidden states, KV caches and logits.

Two backends compute the same. *Packed* puts every token once into one sequence, with our attention: the fast one, for
families whose attention can be exchanged. *Levelwise* gives each level of the tree to stock code as a batch with a KV
cache: it works for all. The prompt runs once in either; autograd adds up what each row sends back through the prompt's
keys and values, and that sum is the gradient of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..models.families import check_depth, is_verified
from .backends.levelwise import levelwise_view, run_levelwise
from .backends.packed import PACKED, packed_view, run_packed
from .kv_cache import KVCache, Layers
from .surgery.fused import fused
from .surgery.lm_head import head_logits, head_view, is_intercepted
from .surgery.view import view
from .tree import ROOT, Tree

Backend = Literal["packed", "levelwise"]
T = TypeVar("T")

_BACKENDS = {"packed": (packed_view, run_packed), "levelwise": (levelwise_view, run_levelwise)}


def backends(backbone: nn.Module) -> tuple[Backend, ...]:
    """The backends that a decoder can run on, the fastest first."""
    config: Any = backbone.config
    device = next(backbone.parameters()).device
    packs = (
        config.model_type in PACKED
        and is_verified(backbone)
        and device.type in ("cpu", "cuda")
        and not torch.is_autocast_enabled(device.type)  # queries and values would differ in dtype
        and not any("forward" in module.__dict__ or _reads_weights(module) for module in backbone.modules())
    )
    return ("packed", "levelwise") if packs else ("levelwise",)


def _reads_weights(module: nn.Module) -> bool:
    """Whether a hook reads attention weights at their dropout, which packed attention does not call."""
    return isinstance(module, nn.Dropout) and is_intercepted(module)


class Computed(NamedTuple):
    """What a run of a tree computed, of the T' tokens of nodes without a KV cache, in flat order.

    Attributes:
        hidden: ``[T', D']`` last hidden states.
        layers: keys and values of each layer, ``[1, key heads, T', d]``; empty unless they were kept.
        layer_outputs: output ``[T', D]`` of each decoder layer; empty unless they were captured.
    """

    hidden: Tensor
    layers: Layers
    layer_outputs: list[Tensor]


class ModelRunner:
    """Runs token trees on one base model, and owns all that is derived from it.

    Views of the base are built at their first use and serve all later calls, from any number of threads. A training
    run, an evaluation or a server has one runner. While it is in use, the modules, hooks, dtype, trainable weights and
    gradient checkpointing of the base must not change; values of frozen weights may be written in place. If the base
    may change between calls, make a runner for each call.

    Args:
        base: the causal language model, frozen and in ``eval()``.
        backend: to run on; the fastest that fits by default.

    Attributes:
        base: the same.
    """

    def __init__(self, base: PreTrainedModel, backend: Backend | None = None) -> None:
        self.base = base
        self._backend = backend
        self._derived: dict[tuple[Any, ...], Any] = {}

    @classmethod
    def of(cls, base: BaseOrRunner) -> ModelRunner:
        """The runner given, or a new one for the model given."""
        return base if isinstance(base, ModelRunner) else cls(base)

    @property
    def backend(self) -> Backend:
        """The backend in use."""
        if self._backend is not None:
            return self._backend
        return self._once("backend", lambda: backends(self.base.base_model)[0])

    @property
    def fused_base(self) -> PreTrainedModel:
        """The base with fused layers, for calls other than trees."""
        return self._once("fused", lambda: view(self.base, fused))

    def forward(
        self,
        tree: Tree,
        embeds: Tensor,
        cached: Mapping[int, KVCache] | None = None,
        layer_outputs: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states of all tokens of a tree.

        Args:
            tree: who attends to whom.
            embeds: ``[T', D]`` input embeddings in flat order, of the tokens of nodes that are not cached.
            cached: KV caches of nodes that have been computed already.
            layer_outputs: filled with the output ``[T', D]`` of each decoder layer for the tokens that are computed;
                stays empty if there are none.

        Returns:
            ``[T, D']`` last hidden states in flat order, cached ones included (D' may differ from D, as in OPT-350m).

        Raises:
            ConfigError: layer outputs were asked for, and cannot be captured.
        """
        cached = cached or {}
        found = self.compute(tree, embeds, cached, capture=layer_outputs is not None)
        if layer_outputs is not None:
            layer_outputs += found.layer_outputs
        return with_cached(found.hidden, tree, cached)

    def prefill(self, tree: Tree, embeds: Tensor, cached: Mapping[int, KVCache] | None = None) -> dict[int, KVCache]:
        """KV caches of all nodes that are not cached yet; arguments as for ``forward``. Differentiable."""
        cached = cached or {}
        hidden, layers, _ = self.compute(tree, embeds, cached, keep=True)
        found = {}
        for node, (start, stop) in enumerate(pairwise(tree.starts_without(cached))):
            if node not in cached:
                own = tuple((keys[:, :, start:stop], values[:, :, start:stop]) for keys, values in layers)
                found[node] = KVCache(own, hidden[start:stop])
        return found

    def prefill_prompt(self, prompt: Tensor) -> KVCache:
        """The KV cache of a prompt ``[P, D]``. Differentiable."""
        check_depth(self.base.config, len(prompt))
        dtype = next(self.base.get_input_embeddings().parameters()).dtype
        return self.prefill(Tree((ROOT,), (len(prompt),)), prompt.to(dtype))[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[S, V]`` of hidden states ``[S, D']``; see ``lm_head.head_view``.

        Raises:
            ConfigError: the model itself has hooks, which would not run.
        """
        return head_logits(self._once("head", lambda: head_view(self.base)), hidden)

    def compute(
        self, tree: Tree, embeds: Tensor, cached: Mapping[int, KVCache], *, keep: bool = False, capture: bool = False
    ) -> Computed:
        """All that a run of a tree computes; arguments as for ``forward``.

        Args:
            keep: return keys and values.
            capture: return the outputs of all decoder layers.

        Raises:
            ConfigError: layer outputs were asked for, and cannot be captured.
        """
        if cached and not len(embeds):  # nothing is new: empty rows, labels of one token
            empty = next(iter(cached.values())).map(lambda states: states[..., :0, :])
            return Computed(empty.hidden, list(empty.layers), [])
        make_view, run = _BACKENDS[self.backend]
        model = self._once(self.backend, lambda: make_view(self.base.base_model))
        hidden, layers, outputs = run(model, tree, embeds, cached, keep=keep, capture=capture)
        if capture and len(embeds) and not outputs:
            raise ConfigError(f"the outputs of the decoder layers of {type(self.base).__name__} cannot be captured")
        return Computed(hidden, layers, outputs)

    def _once(self, name: str, make: Callable[[], T]) -> T:
        """Something derived from the base, made once; under autocast, which layers heed when a view is built, anew."""
        key = name, torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        if key not in self._derived:
            self._derived.setdefault(key, make())  # two threads may both make one; all use the first
        found: T = self._derived[key]
        return found


BaseOrRunner: TypeAlias = PreTrainedModel | ModelRunner
"""A base model, from which a call makes a runner of its own, or the runner that owns it."""


def with_cached(hidden: Tensor, tree: Tree, cached: Mapping[int, KVCache]) -> Tensor:
    """Hidden states ``[T, D']`` of all tokens, from those that were computed ``[T', D']`` and those of cached nodes."""
    if not cached:
        return hidden
    runs = pairwise(tree.starts_without(cached))
    return torch.cat([cached[node].hidden if node in cached else hidden[slice(*run)] for node, run in enumerate(runs)])
