"""A linear probe: logistic regression on the hidden states of the frozen model.

Hidden states often separate the classes better than the label probabilities under a short prompt do. The states of a
text, averaged over its tokens and over the middle layers, are mapped linearly to the classes: ``C (D + 1)`` learned
parameters. They are by-products of the forward pass that scores the label candidates, so they cost next to nothing.
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
"""The layers whose states are averaged, as fractions of the depth (docs/log.md has the experiments)."""
L2 = 33.0
"""Strength of the L2 regularisation: high, since there are few rows and many features."""


@dataclass(frozen=True)
class LinearProbe:
    """A linear map from mean hidden states to classes.

    Attributes:
        layers: ``[L]`` indices of the decoder layers whose states are used.
        scale: ``[L, D]`` factor of each layer's states, before they are summed over the layers.
        weight: ``[C, D]``.
        bias: ``[C]``.
        share: scalar in [0, 1]: the weight of its log-probabilities; the prompt's have the rest.
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
        """This probe with its logits divided by a temperature."""
        return replace(self, weight=self.weight / temperature, bias=self.bias / temperature)

    def mix(self, scores: Tensor, means: Tensor) -> Tensor:
        """The weighted average of the log-probabilities of prompt and probe, normalised: ``[B, C]``.

        Args:
            scores: ``[B, C]`` log-probability of each label candidate under the prompt.
            means: ``[B, all layers, D]`` mean hidden states.
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
            AdapterError: it is damaged, or of another task or base model.
        """
        names = [field.name for field in fields(cls)]
        tensors = read_tensors(path, names)
        found = cls(**tensors)
        count = len(found.layers) if found.layers.ndim == 1 else 0
        shapes = ((count,), (count, hidden_size), (num_classes, hidden_size), (num_classes,), ())
        if tuple(tuple(tensors[name].shape) for name in names) != shapes or not count:
            raise AdapterError(
                f"{path} does not fit task and base model: it must have {num_classes} classes and hidden size "
                f"{hidden_size}"
            )
        if found.layers.dtype != torch.long or not 0 <= float(found.share) <= 1:
            raise AdapterError(f"{path} is damaged: layers must be integers, and share must be between 0 and 1")
        if int(found.layers.min()) < 0 or int(found.layers.max()) >= num_layers:
            raise AdapterError(f"{path} uses layers that the base model lacks: it has {num_layers}")
        return found


def fit_probe(means: Tensor, targets: Sequence[int], num_classes: int, share: float, l2: float = L2) -> LinearProbe:
    """Regularised multinomial logistic regression on the standardised, averaged states of the middle layers.

    All classes have the same total weight. Minimises ``Σ weighted cross-entropy + l2/2 |weight|²`` by L-BFGS in
    float64; the standardisation is folded into the result.

    Args:
        means: ``[N, all layers, D]`` mean hidden states of the training rows.
        targets: ``[N]`` class of each row.
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
    # The logit of a class without rows is the mean of the others', so it is never the largest.
    missing = weights == 0
    weight[missing], bias[missing] = weight[~missing].mean(0), bias[~missing].mean()
    numbers = (scale, weight, bias, torch.tensor(share, dtype=torch.float64))
    return LinearProbe(layers, *(each.float() for each in numbers))


def class_weights(gold: Sequence[int], num_classes: int) -> Tensor:
    """Weights ``[C]`` that give all classes with rows the same total weight; their mean over the rows is 1."""
    counts = torch.bincount(torch.tensor(gold, dtype=torch.long), minlength=num_classes)
    return torch.where(counts > 0, len(gold) / (counts > 0).sum() / counts.clamp_min(1), 0.0)


# scikit-learn's LogisticRegression finds the same minimum (weights within 1e-5 at tol=1e-10, 3e-3 at its default tol)
# but is not a dependency for it: scikit-learn and scipy take about 200 MB on disk and a second to import, and torch has
# L-BFGS. With its StratifiedKFold, a seed would also give other folds than in earlier versions.
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
    """Indices of the middle layers of a model with ``num_layers``; at least one."""
    low, high = (round(share * num_layers) for share in MIDDLE)
    return torch.arange(max(low - 1, 0), max(high, low, 1))
