"""A linear probe of the hidden states, averaged with the label scores of the prompt.

The features are the hidden states of a text, averaged over its tokens and over the middle layers; the probe is a
multinomial logistic regression with ``C (D + 1)`` parameters. The pass that scores the labels computes these states
anyway, so the probe adds almost no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import AdapterError
from ..storage.record import PROBE_NAME
from ..storage.tensors import read_tensors, write_tensors

MIDDLE = (0.3, 0.8)
"""The layers used as features, as shares of the depth (docs/log.md has the experiments)."""
L2 = 33.0
"""L2 penalty; strong, since there are few rows and many features."""


@dataclass(frozen=True)
class LinearProbe:
    """A linear map from mean hidden states to classes.

    Attributes:
        layers: ``[L]`` indices of the decoder layers used as features.
        scale: ``[L, D]`` factor of each layer's states before the sum over layers.
        weight: ``[C, D]``.
        bias: ``[C]``.
        share: scalar in [0, 1], the weight of the probe's log-probabilities; the prompt's have the rest.
    """

    layers: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    share: Tensor

    def log_probs(self, means: Tensor) -> Tensor:
        """Log-probability ``[B, C]`` of each class, given mean hidden states ``[B, all layers, D]``."""
        features = torch.einsum("bld,ld->bd", means[:, self.layers], self.scale)
        return (features @ self.weight.T + self.bias).log_softmax(-1)

    def cooled(self, temperature: float) -> LinearProbe:
        """A copy whose logits are divided by a temperature."""
        return replace(self, weight=self.weight / temperature, bias=self.bias / temperature)

    def mix(self, scores: Tensor, means: Tensor) -> Tensor:
        """Weighted mean of the log-probabilities of prompt and probe, ``[B, C]``, normalised.

        Args:
            scores: ``[B, C]`` log-probability of each label under the prompt.
            means: ``[B, all layers, D]``.
        """
        both = (1 - self.share) * scores.log_softmax(-1) + self.share * self.log_probs(means)
        return both.log_softmax(-1)

    def save(self, folder: Path) -> None:
        """Write ``linear_probe.safetensors`` into ``folder``, atomically."""
        write_tensors(folder / PROBE_NAME, vars(self))

    @classmethod
    def read(cls, path: Path, num_classes: int, num_layers: int, hidden_size: int) -> LinearProbe:
        """Read a file that ``save`` wrote.

        Args:
            num_classes: C of the task.
            num_layers, hidden_size: of the base model; the hidden size is D.

        Raises:
            AdapterError: the file is damaged, or belongs to another task or base model.
        """
        names = [field.name for field in fields(cls)]
        tensors = read_tensors(path, names)
        found = cls(**tensors)
        count = len(found.layers) if found.layers.ndim == 1 else 0
        shapes = ((count,), (count, hidden_size), (num_classes, hidden_size), (num_classes,), ())
        if tuple(tuple(tensors[name].shape) for name in names) != shapes or not count:
            raise AdapterError(
                f"{path} does not fit task and base model: expected {num_classes} classes and hidden size {hidden_size}"
            )
        if found.layers.dtype != torch.long or not 0 <= float(found.share) <= 1:
            raise AdapterError(f"{path} is damaged: layers must be integers, and the share must be between 0 and 1")
        if int(found.layers.min()) < 0 or int(found.layers.max()) >= num_layers:
            raise AdapterError(f"{path} uses layers that the base model, with {num_layers} layers, does not have")
        return found


def fit_probe(means: Tensor, targets: Sequence[int], num_classes: int, share: float, l2: float = L2) -> LinearProbe:
    """Fit a multinomial logistic regression to the standardised, averaged states of the middle layers.

    Classes have equal total weight. Minimises ``Σ weighted cross-entropy + l2/2 |weight|²`` by
    L-BFGS in float64; the standardisation is folded into the result.

    Args:
        means: ``[N, all layers, D]`` of the training rows.
        targets: ``[N]`` class of each.
        share: see ``LinearProbe``.
    """
    layers = middle_layers(means.shape[1])
    states = means[:, layers].cpu().double()  # MPS has no float64
    deviation = states.std(0, unbiased=False).clamp_min(1e-6)
    scale = 1 / (len(layers) * deviation)
    centre = (states.mean(0) * scale).sum(0)
    features = torch.einsum("bld,ld->bd", states, scale) - centre
    gold = torch.tensor(targets)
    weights = class_weights(targets, num_classes)
    weight, bias = _logistic_regression(features, gold, weights.double(), l2)
    bias -= weight @ centre
    # A class without rows gets the mean logit of the others, so it is never predicted.
    missing = weights == 0
    weight[missing], bias[missing] = weight[~missing].mean(0), bias[~missing].mean()
    numbers = (scale, weight, bias, torch.tensor(share, dtype=torch.float64))
    return LinearProbe(layers, *(each.float() for each in numbers))


def class_weights(gold: Sequence[int], num_classes: int) -> Tensor:
    """Weights ``[C]`` that give all classes with rows the same total weight; their mean over the rows is 1."""
    counts = torch.bincount(torch.tensor(gold, dtype=torch.long), minlength=num_classes)
    return torch.where(counts > 0, len(gold) / (counts > 0).sum() / counts.clamp_min(1), 0.0)


def _logistic_regression(features: Tensor, gold: Tensor, weights: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(len(weights), features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(weights), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        search.zero_grad()
        logits = features @ weight.T + bias
        entropy = torch.nn.functional.cross_entropy(logits, gold, weights, reduction="sum")
        total: Tensor = entropy + l2 / 2 * weight.square().sum() + 1e-6 * bias.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        search.step(objective)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def middle_layers(num_layers: int) -> Tensor:
    """Indices of the layers used as features, at least one."""
    low, high = (round(share * num_layers) for share in MIDDLE)
    return torch.arange(max(low - 1, 0), max(high, low, 1))
