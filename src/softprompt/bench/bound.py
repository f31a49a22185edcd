"""The bound of a training step: its operations divided by the rate at which this machine multiplies matrices.

Counted are the products that nobody can avoid, each token once: every linear layer forward and backward to
its input (weights are frozen, so there is no product for them) over the plan's T tokens, and the output
matrix, both ways, over its S supervised positions. The rate is that of the bare products of these very
shapes, measured in turn with the steps, by two libraries: torch's own product, and oneDNN's. Attention,
norms and everything else count as nothing, so a step cannot reach the bound, only come near.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..families import base_facts
from .ours import Size

MOST_ROWS = 4096
"""Rows of a measured product; more do not change the rate."""

REPEATS = 3
"""Times that each product is measured in a round."""

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass
class _Shape:
    """All linear layers of one shape: one of their weights ``[N, K]``, and how often it comes."""

    weight: Tensor
    count: int
    rows: int
    times: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    @property
    def flops_per_row(self) -> int:
        """Operations per row of all these layers, forward and backward."""
        return 4 * self.count * self.weight.numel()

    def seconds_per_row(self, library: str) -> float:
        """Of all these layers, forward and backward."""
        forward, backward = zip(*self.times[library], strict=True)
        return float(self.count * (statistics.median(forward) + statistics.median(backward)) / self.rows)


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
        self._layers = [_Shape(weight, count, min(tokens, MOST_ROWS)) for weight, count in linears(base)]
        head = base.get_output_embeddings().weight.detach()
        self._head = _Shape(head, 1, min(supervised, MOST_ROWS))
        self._attention_flops = _attention_flops_per_pair(base)
        self._libraries = _libraries(head)

    @torch.no_grad()
    def measure(self) -> None:
        """Time each product a few times."""
        for shape in (*self._layers, self._head):
            x, g = (shape.weight.new_ones(shape.rows, width) for width in reversed(shape.weight.shape))
            for name, (forward, backward) in self._libraries.items():
                times = shape.times.setdefault(name, [])
                _clock(forward, x, shape.weight)  # out of the other library's caches
                for _ in range(REPEATS):
                    times.append((_clock(forward, x, shape.weight), _clock(backward, g, shape.weight)))

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
        return size.tokens * sum(s.flops_per_row for s in self._layers) + size.supervised * self._head.flops_per_row

    def _seconds(self, size: Size, library: str) -> float:
        linear = sum(shape.seconds_per_row(library) for shape in self._layers)
        return size.tokens * linear + size.supervised * self._head.seconds_per_row(library)


def linears(base: Any) -> list[tuple[Tensor, int]]:
    """A weight ``[N, K]`` of each distinct shape of the backbone's linear layers, and how many have it."""
    head = base.get_output_embeddings()
    found: dict[tuple[int, ...], tuple[Tensor, int]] = {}
    for module in base.base_model.modules():
        if module is head or not isinstance(module, nn.Linear | Conv1D):
            continue
        weight = module.weight.detach()
        weight = weight.t() if isinstance(module, Conv1D) else weight  # GPT-2 keeps [K, N]
        first, count = found.get(tuple(weight.shape), (weight, 0))
        found[tuple(weight.shape)] = (first, count + 1)
    return list(found.values())


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


def _clock(product: Product, left: Tensor, weight: Tensor) -> float:
    cuda = weight.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(weight.device)
    started = time.perf_counter()
    product(left, weight)
    if cuda:
        torch.cuda.synchronize(weight.device)
    return time.perf_counter() - started
