"""Self-check of decoders that the tests do not cover: before first use, the engine is compared with plain forwards.

Most faults would be silent (a model that ignores positions, a window that counts padding, a model that reads more from
token ids than their embeddings), so only a comparison of numbers finds them. A few dozen tokens are enough.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import BaseModelError, SoftPromptError
from ..models.families import is_verified
from ..models.libraries import essence
from .loss import hidden_states
from .plans import plan_rows, split_rows
from .runner import ModelRunner
from .tree import ROOT, Plan, Tree

# prompt ─┬─ 5 ─┬─ 2
#         │     └─ 3
#         ├─ 11 ── 2
#         └─ 1
PARENTS, LENGTHS = (ROOT, 0, 1, 1, 0, 4, 0), (7, 5, 2, 3, 11, 2, 1)
NARROW = 6
"""A window shorter than these rows."""

# Tolerances for rounding, in results and in gradients. SmolLM2-135M differs by 3e-6 and 4e-5 in float32, by 2e-3
# and 2e-2 in float16, by 2e-2 and 3e-1 in bfloat16; with positions that are off by one, by 1e-1 and 6e-1 in all.
_TOLERANCE = {torch.float64: (1e-6, 1e-6), torch.float32: (1e-3, 1e-3), torch.float16: (2e-2, 2e-1)}
_COARSE = (6e-2, 7e-1)  # bfloat16 and fewer bits

_passed: WeakSet[PreTrainedModel] = WeakSet()
_announced: set[type] = set()


@dataclass(frozen=True)
class Difference:
    """Difference between two computations of one quantity, and the most allowed, relative to its norm."""

    what: str
    size: float
    allowed: float


def check_unlisted(base: PreTrainedModel, name: str) -> None:
    """Accept a model whose type is in ``families.VERIFIED``, or on which the engine agrees with plain forwards.

    Runs once per model, on a few dozen tokens, and warns once per class (``UserWarning``). The model and the random
    state stay as they were. A model without weights yet (meta device, sharded) cannot be checked; the warning states
    that instead.

    Args:
        name: of the model, for messages.

    Raises:
        BaseModelError: its results differ, or it fails.
    """
    if is_verified(base) or base in _passed:
        return
    what = f"{name} ({base.config.model_type}) is not among the architectures that softprompt is tested on"
    advice = "take a model that docs/architectures.md lists"
    if not _has_weights(base):
        _announce(base, f"{what}, and has no weights yet to be checked with; {advice}, or load it before wrapping it")
        return
    try:
        with _as_found(base):
            found = list(differences(base))
    except (SoftPromptError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # untested code may raise anything
        reason = f"{type(error).__name__}: {essence(error)}"
        raise BaseModelError(f"{what}, and fails its self-check ({reason}); {advice}") from error
    for each in found:
        if each.size > each.allowed:
            advice += ", or load it in float32" if _tolerance(base) > _TOLERANCE[torch.float32] else ""
            raise BaseModelError(
                f"{what}, and fails its self-check: {each.what} differ by {each.size:.1g} of their size from plain "
                f"forwards of each row alone, {each.allowed:g} is allowed; {advice}"
            )
    _passed.add(base)
    worst = max(found, key=lambda difference: difference.size)
    _announce(base, f"{what}; it passed a self-check against plain forwards ({worst.what} differ by {worst.size:.0e})")


def differences(base: PreTrainedModel) -> Iterator[Difference]:
    """Differences in all that the engine relies on, on a small tree of random tokens.

    A window wider than the rows is narrowed, in a copy that shares the weights: a row longer than a window
    of 4,096 tokens would cost minutes.
    """
    ids = _random_ids(base, sum(LENGTHS))
    rows = split_rows(ids[LENGTHS[0] :].tolist(), LENGTHS[1:])
    plan = plan_rows(LENGTHS[0], rows, None, ids.device)
    plan = replace(plan, tree=Tree(PARENTS, LENGTHS))
    with torch.no_grad():
        yield from _around_the_backbone(base, ids[: max(LENGTHS)])
        embeds = base.get_input_embeddings()(ids[: LENGTHS[0]])
        # Means of two embeddings, which belong to no token: some models look the token up (Gemma 4).
        prompt = (embeds + embeds.roll(1, 0)) / 2
    yield from _in_the_tree(base, plan, prompt)
    windows = _windows(base)
    if any(window > NARROW for window in windows.values()):
        for each in _in_the_tree(_narrowed(base, windows), plan, prompt):
            yield replace(each, what=f"{each.what} beyond a sliding window")


def _around_the_backbone(base: PreTrainedModel, ids: Tensor) -> Iterator[Difference]:
    """Embeddings in place of token ids, and hidden states in place of the backbone, give the same logits."""
    allowed, _ = _tolerance(base)
    embeds = base.get_input_embeddings()(ids)[None]
    by_ids = base(input_ids=ids[None], use_cache=False).logits[0]
    by_embeds = base(inputs_embeds=embeds.clone(), use_cache=False).logits[0]  # CTRL scales them in place
    yield _difference("logits of embeddings in place of token ids", by_embeds, by_ids, allowed)
    hidden = base.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0]
    yield _difference("logits of given hidden states", ModelRunner(base).logits(hidden), by_embeds, allowed)


def _in_the_tree(base: PreTrainedModel, plan: Plan, prompt: Tensor) -> Iterator[Difference]:
    """Hidden states and the prompt's gradient: the whole tree by the engine, and each of its paths alone."""
    allowed, allowed_backward = _tolerance(base)
    virtual = prompt.detach().requires_grad_()
    together = hidden_states(base, plan, virtual)
    alone = list(_paths_alone(base, plan, virtual))
    ours, plain = [together[flat] for flat, _ in alone], [hidden for _, hidden in alone]
    found = [_difference("hidden states", *pair, allowed) for pair in zip(ours, plain, strict=True)]
    yield max(found, key=lambda difference: difference.size)
    # Random weights, since the plain sum of a LayerNorm's output has no gradient.
    weights = [_random_like(hidden) for hidden in plain]
    (gradient,), (expected,) = (torch.autograd.grad(side, virtual, weights) for side in (ours, plain))
    yield _difference("gradients of the prompt", gradient, expected, allowed_backward)


def _paths_alone(base: PreTrainedModel, plan: Plan, prompt: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Flat indices and plain hidden states of the tree's tokens, each token once, a path from the root at a time."""
    tree = plan.tree
    embeds = base.get_input_embeddings()(plan.tokens[len(prompt) :])
    embeds = torch.cat([prompt.to(embeds), embeds])
    seen: set[int] = set()
    for leaf in sorted(set(range(len(tree.parents))) - tree.inner):
        path = [*tree.path(leaf), *tree.span(leaf)]
        new = [token for token in path if token not in seen]  # the end of the path
        seen.update(new)
        output = base.base_model(inputs_embeds=embeds[path][None], use_cache=False)
        yield torch.tensor(new), output.last_hidden_state[0, -len(new) :].to(prompt.device)


def _difference(what: str, ours: Tensor, plain: Tensor, allowed: float) -> Difference:
    ours, plain = (side.detach().cpu().double() for side in (ours, plain))  # on the CPU: MPS has no float64
    size = float((ours - plain).norm() / plain.norm().clamp_min(1e-30))
    return Difference(what, math.inf if math.isnan(size) else size, allowed)


def _random_like(states: Tensor) -> Tensor:
    """Standard normal numbers, the same in each run."""
    return torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(states)


def _random_ids(base: PreTrainedModel, count: int) -> Tensor:
    """Token ids, the same in each run, without special tokens, which may stand for padding or images."""
    special = [value for name, value in vars(base.config).items() if name.endswith("token_id")]
    vocabulary = base.config.get_text_config().vocab_size
    drawn = torch.randint(vocabulary, (16 * count,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = [token for token in drawn if token not in special][:count]
    return torch.tensor(ids, device="cpu" if base.device.type == "meta" else base.device)  # meta: offloaded


# -- windows -----------------------------------------------------------------------------------------


def _windows(base: PreTrainedModel) -> dict[str, int]:
    """Window sizes of local layers, by the config's names for them."""
    names = ("window", "attention_chunk", "local_attention")
    values = vars(base.config.get_text_config()).items()
    found = {name: value for name, value in values if isinstance(value, int) and value > 1}
    return {name: value for name, value in found.items() if "layer" not in name and any(x in name for x in names)}


def _narrowed(base: PreTrainedModel, windows: dict[str, int]) -> PreTrainedModel:
    """A copy of a model with the same weights, and windows shorter than the self-check's rows."""
    twin = copy.deepcopy(base, {id(tensor): tensor for tensor in chain(base.parameters(), base.buffers())})
    for owner in (twin.config.get_text_config(), *twin.modules()):
        for name, window in windows.items():
            if vars(owner).get(name) == window:
                setattr(owner, name, NARROW)
    return twin


# -- the model's state ---------------------------------------------------------------------------------


def _has_weights(base: PreTrainedModel) -> bool:
    """Whether the weights are there; hooks of accelerate fetch what it has offloaded."""
    if hasattr(base, "hf_device_map"):
        return True
    return not any(parameter.is_meta or not parameter.numel() for parameter in base.parameters())


@contextmanager
def _as_found(base: PreTrainedModel) -> Iterator[None]:
    """Inside, the model is in ``eval()`` and gradients are on; afterwards modes and random state are as before."""
    training = [module for module in base.modules() if module.training]
    devices = [base.device] if base.device.type == "cuda" else []
    base.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        for module in training:
            module.training = True


def _tolerance(base: PreTrainedModel) -> tuple[float, float]:
    """Largest differences that rounding can cause, in results and in gradients."""
    coarse = getattr(base, "is_quantized", False) or torch.get_float32_matmul_precision() != "highest"
    return _COARSE if coarse else _TOLERANCE.get(base.dtype, _COARSE)


def _announce(base: PreTrainedModel, line: str) -> None:
    if type(base) not in _announced:
        _announced.add(type(base))
        warnings.warn(f"{line}.", stacklevel=5)  # the caller of get_peft_model
