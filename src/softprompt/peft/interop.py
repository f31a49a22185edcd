"""How other libraries recognise our models, and how we recognise PEFT's. Nothing here imports PEFT.

Code written for PEFT calls ``isinstance(model, peft.PeftModel)``. Our model is no subclass of that class, since
softprompt works without PEFT. ``isinstance`` also accepts what an object's ``__class__`` names, so ``PeftLookalike``
overrides that attribute, and nothing else. Who asks, in transformers 5.23, trl 1.16 and accelerate 1.15:

=================================================  ===========================================================
``transformers.trainer_utils._is_peft_model``      ``isinstance(model, peft.PeftModel)``. ``Trainer`` then saves the
                                                   adapter alone, and reads checkpoints and the best model with
                                                   ``load_adapter``.
``transformers.Trainer._save``                     The same; without PEFT, ``isinstance(model, PreTrainedModel)``.
                                                   If false, it saves the state dictionary with all base weights.
``transformers.Trainer.__init__``                  ``find_labels(model.__class__)``, without PEFT: the names of labels
                                                   in the signature of that class's ``forward``.
``transformers.Pipeline.check_model_type``         ``model.__class__.__name__``: it must be ``PeftModelForCausalLM`` or
                                                   the name of a causal language model of transformers.
``accelerate.utils.is_peft_model``                 ``isinstance(model, peft.PeftModel)``. FSDP then saves the adapter
                                                   alone; ``trl.SFTTrainer`` calls ``enable_input_require_grads`` and
                                                   replaces the head of ``model.get_base_model()`` by its fused one.
=================================================  ===========================================================

Code that uses a class of PEFT has imported PEFT, so ``__class__`` only needs to look for the imported module.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from types import ModuleType
from typing import Any

from ..config.adapter_config import PeftConfigMixin, config_class
from ..errors import ConfigError


def loaded_peft() -> ModuleType | None:
    """The module ``peft``, if this process has imported it."""
    return sys.modules.get("peft")


class PeftLookalike:
    """A base class whose instances pass ``isinstance`` for PEFT's model or, without PEFT, for their base model's class.

    ``type(model)`` and ``isinstance`` with softprompt's own classes are not changed.
    """

    @property
    def __class__(self) -> type:
        """``peft.PeftModelForCausalLM`` if PEFT is imported, else the class of the base model."""
        peft = loaded_peft()
        if peft is not None:
            return peft.PeftModelForCausalLM  # type: ignore[no-any-return]
        modules = self.__dict__.get("_modules", {})
        return type(modules["base_model"]) if "base_model" in modules else type(self)

    @__class__.setter
    def __class__(self, value: type) -> None:
        object.__dict__["__class__"].__set__(self, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles by the real class, which ``__class__`` hides from pickle."""
        return _new, (type(self),), self.__dict__


def _new(cls: Any) -> Any:
    return cls.__new__(cls)


def own_config(config: Any) -> Any:
    """Convert a config object of PEFT to ours; return anything else unchanged.

    Raises:
        ConfigError: its ``peft_type`` or values are not usable.
    """
    if isinstance(config, PeftConfigMixin) or not hasattr(config, "peft_type") or not hasattr(config, "to_dict"):
        return config
    given = {name: getattr(value, "value", value) for name, value in config.to_dict().items()}
    chosen = config_class(given.get("peft_type"))
    own = {field.name for field in dataclasses.fields(chosen)}
    return chosen(**{name: value for name, value in given.items() if name in own and value is not None})


def without_peft_wrapper(model: Any) -> Any:
    """The transformers model inside a model of PEFT, with its adapter layers; any other model unchanged.

    Raises:
        ConfigError: it has a prompt of PEFT, which would be lost.
    """
    peft = loaded_peft()
    if peft is None or not issubclass(type(model), peft.PeftModel):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise ConfigError(
            "the model already has a prompt of PEFT; give its base, model.get_base_model(), or load the adapter with "
            "PeftModel.from_pretrained"
        )
    names = ", ".join(model.active_adapters)
    warnings.warn(f"The prompt is trained with PEFT's adapter {names} on the base; load both to use it.", stacklevel=3)
    return model.get_base_model()
