"""The bound of a training step: the time of its matrix products alone.

Counted are the products that nobody can avoid, each token once: every linear layer forward and backward to
its input (weights are frozen, so there is no product for them) over the plan's T tokens, and the output
matrix, both ways, over its S supervised positions. They are run bare, in turn with the steps, by two
libraries: torch's own product, and oneDNN's. As in a step, each layer's own weights are multiplied, one
layer after the other: a weight that is still in the processor's cache would be a rate no step can have.
Attention, norms and everything else count as nothing, so a step cannot reach the bound, only come near.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...models.families import base_facts
from .measure import seconds_of
from .ours import Size

MOST_ROWS = 4096
"""Rows of a measured product; more do not change the rate."""

REPEATS = 2
"""Times that the products are measured in a round."""

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass
class _Chain:
    """Linear layers that all tokens pass, one after the other: their weights ``[N, K]``."""

    weights: Sequence[Tensor]
    rows: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def flops_per_row(self) -> int:
        """Operations per row, forward and backward."""
        return 4 * sum(weight.numel() for weight in self.weights)

    def measure(self, library: str, forward: Product, backward: Product) -> None:
        """Time all products, forwards and then backwards."""
        widths = {width for weight in self.weights for width in weight.shape}
        states = {width: self.weights[0].new_ones(self.rows, width) for width in widths}
        there = [(states[weight.shape[1]], weight) for weight in self.weights]
        back = [(states[weight.shape[0]], weight) for weight in reversed(self.weights)]
        seconds = _clock(forward, there) + _clock(backward, back)
        self.seconds.setdefault(library, []).append(seconds)

    def seconds_per_row(self, library: str) -> float:
        """Of all these layers, forward and backward."""
        return statistics.median(self.seconds[library]) / self.rows


class Bound:
    """Measures the products of a model's step and compares steps with them.

    Args:
        base: the model.
        sizes: of the batches that the rounds go through.
    """

    def __init__(self, base: Any, sizes: Sequence[Size]) -> None:
        self._sizes = sizes
        tokens = round(statistics.mean(size.tokens for size in sizes))
        supervised = round(statistics.mean(size.supervised for size in sizes))
        self._layers = _Chain(linears(base), min(tokens, MOST_ROWS))
        head = base.get_output_embeddings().weight.detach()
        self._head = _Chain([head], min(supervised, MOST_ROWS))
        self._attention_flops = _attention_flops_per_pair(base)
        self._libraries = _libraries(head)

    @torch.no_grad()
    def measure(self) -> None:
        """Time all products a few times."""
        for name, (forward, backward) in self._libraries.items():
            for _ in range(REPEATS):
                for chain in (self._layers, self._head):
                    chain.measure(name, forward, backward)

    def figures(self, times: Sequence[float]) -> dict[str, Any]:
        """The bound and the share of it that steps reach.

        Args:
            times: seconds of our turns; turn i did the batch of ``sizes[i % len(sizes)]``.
        """
        seconds = {name: [self._seconds(size, name) for size in self._sizes] for name in self._libraries}
        flops = statistics.mean(map(self._flops, self._sizes))
        best = min(seconds, key=lambda name: sum(seconds[name]))
        turns = [(number % len(self._sizes), own) for number, own in enumerate(times)]
        share = {name: statistics.median(each[i] / own for i, own in turns) for name, each in seconds.items()}
        rates = {name: flops / statistics.mean(each) / 1e9 for name, each in seconds.items()}
        return {
            "gemm_bound_fraction": share[best],
            "torch_gemm_bound_fraction": share["torch"],
            "gemm_library": best,
            "torch_gflops": rates["torch"],
            "onednn_gflops": rates.get("onednn"),
            "bound_seconds": statistics.mean(seconds[best]),
            "gflop_per_step": flops / 1e9,
            "attention_gflop_per_step": statistics.mean(s.pairs for s in self._sizes) * self._attention_flops / 1e9,
            "unique_tokens_per_step": statistics.mean(size.tokens for size in self._sizes),
            "supervised_tokens_per_step": statistics.mean(size.supervised for size in self._sizes),
        }

    def _flops(self, size: Size) -> int:
        return size.tokens * self._layers.flops_per_row + size.supervised * self._head.flops_per_row

    def _seconds(self, size: Size, library: str) -> float:
        layers, head = (chain.seconds_per_row(library) for chain in (self._layers, self._head))
        return size.tokens * layers + size.supervised * head


def linears(base: Any) -> list[Tensor]:
    """The weights ``[N, K]`` of the backbone's linear layers, in order."""
    head = base.get_output_embeddings()
    found: list[Tensor] = []
    for module in base.base_model.modules():
        if module is not head and isinstance(module, nn.Linear | Conv1D):
            weight = module.weight.detach()
            found.append(weight.t() if isinstance(module, Conv1D) else weight)  # GPT-2 keeps [K, N]
    return found


def _attention_flops_per_pair(base: Any) -> int:
    """Operations per (token, token it attends to) of all layers: two products forward, four backward.

    Sliding windows are not looked at: with them it is less.
    """
    facts, config = base_facts(base), base.config.get_text_config()
    layers, heads = facts["num_layers"] or 0, facts["num_attention_heads"] or 1
    width = (getattr(config, "head_dim", None) or config.hidden_size // heads) * heads
    return int(12 * layers * width)


def _libraries(like: Tensor) -> dict[str, tuple[Product, Product]]:
    """Ways to multiply: ``x [M, K]`` by a weight ``[N, K]``, and ``g [M, N]`` back by it."""
    found: dict[str, tuple[Product, Product]] = {"torch": (F.linear, torch.mm)}
    product = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if product is not None and like.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]

        def forward(x: Tensor, weight: Tensor) -> Tensor:
            return product(x, weight, None, "none", [], "")  # type: ignore[no-any-return]

        def backward(g: Tensor, weight: Tensor) -> Tensor:
            return product(g, weight.t(), None, "none", [], "")  # type: ignore[no-any-return]

        found["onednn"] = (forward, backward)
    return found


def _clock(product: Product, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    def run(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        for left, weight in pairs:
            product(left, weight)

    return seconds_of(run, pairs, pairs[0][1].device)
