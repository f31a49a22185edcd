"""The roofline of a training step: the time of its unavoidable matrix products.

It counts every linear layer, forward and backward to its input (frozen weights have no gradient), over the plan's T
unique tokens, and the output matrix, forward and backward, over its S supervised positions. The products are timed
alone, in turn with the steps, with two libraries: torch's own matrix product and oneDNN's. As in a step, each layer's
own weights are used, one layer after the other; repeating one layer would keep its weights in the processor's cache.
Attention, norms and everything else count as zero, so no step reaches the roofline.
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
from .softprompt_calls import BatchSize
from .timing import seconds_of

MAX_ROWS = 4096
"""Maximum number of rows of a measured product; the rate is constant beyond."""

REPEATS = 2
"""Measurements of the products per round."""

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass
class _Chain:
    """Consecutive linear layers with weights ``[N, K]``, applied to the same rows."""

    weights: Sequence[Tensor]
    rows: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def flops_per_row(self) -> int:
        """Floating-point operations per row, forward and backward."""
        return 4 * sum(weight.numel() for weight in self.weights)

    def measure(self, library: str, forward: Product, backward: Product) -> None:
        """Time all products, first forward, then backward."""
        widths = {width for weight in self.weights for width in weight.shape}
        states = {width: self.weights[0].new_ones(self.rows, width) for width in widths}
        forward_pairs = [(states[weight.shape[1]], weight) for weight in self.weights]
        backward_pairs = [(states[weight.shape[0]], weight) for weight in reversed(self.weights)]
        seconds = _clock(forward, forward_pairs) + _clock(backward, backward_pairs)
        self.seconds.setdefault(library, []).append(seconds)

    def seconds_per_row(self, library: str) -> float:
        """Seconds per row of all layers, forward and backward."""
        return statistics.median(self.seconds[library]) / self.rows


class Roofline:
    """Measures the matrix products of a training step and compares steps with them.

    Args:
        base: the model.
        sizes: sizes of the batches that the rounds cycle through.
    """

    def __init__(self, base: Any, sizes: Sequence[BatchSize]) -> None:
        self._sizes = sizes
        tokens = round(statistics.mean(size.tokens for size in sizes))
        supervised = round(statistics.mean(size.supervised for size in sizes))
        self._layers = _Chain(linears(base), min(tokens, MAX_ROWS))
        head = base.get_output_embeddings().weight.detach()
        self._head = _Chain([head], min(supervised, MAX_ROWS))
        self._attention_flops = _attention_flops_per_pair(base)
        self._libraries = _libraries(head)

    @torch.no_grad()
    def measure(self) -> None:
        """Time all products ``REPEATS`` times."""
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
            "roofline_fraction": share[best],
            "torch_roofline_fraction": share["torch"],
            "gemm_library": best,
            "torch_gflops": rates["torch"],
            "onednn_gflops": rates.get("onednn"),
            "roofline_seconds": statistics.mean(seconds[best]),
            "gflop_per_step": flops / 1e9,
            "attention_gflop_per_step": statistics.mean(s.pairs for s in self._sizes) * self._attention_flops / 1e9,
            "unique_tokens_per_step": statistics.mean(size.tokens for size in self._sizes),
            "supervised_tokens_per_step": statistics.mean(size.supervised for size in self._sizes),
        }

    def _flops(self, size: BatchSize) -> int:
        return size.tokens * self._layers.flops_per_row + size.supervised * self._head.flops_per_row

    def _seconds(self, size: BatchSize, library: str) -> float:
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
    """Floating-point operations per pair of tokens in attention, all layers: two products forward, four backward.

    Sliding windows are ignored; they reduce the number of pairs.
    """
    facts, config = base_facts(base), base.config.get_text_config()
    layers, heads = facts["num_layers"] or 0, facts["num_attention_heads"] or 1
    width = (getattr(config, "head_dim", None) or config.hidden_size // heads) * heads
    return int(12 * layers * width)


def _libraries(like: Tensor) -> dict[str, tuple[Product, Product]]:
    """Matrix products by library: of ``x [M, K]`` with a weight ``[N, K]``, and of a gradient ``[M, N]`` with it."""
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
