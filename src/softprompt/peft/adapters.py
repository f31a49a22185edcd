"""A frozen base model with named soft prompts: adapters, counting, files. ``model.py`` adds the mathematics.

Names, signatures and files are PEFT's; the mathematics is the engine's. ``docs/peft.md`` has the table
of what differs and why.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..config.adapter_config import PeftConfig, PeftType, PromptTuningConfig, TaskType, adopted
from ..engine.selfcheck import check_unlisted
from ..errors import ConfigError
from ..models.families import base_facts, context_length, refuse
from ..storage import adapter as files
from .prompt import PromptEmbedding
from .status import ModelStatus, model_status

if TYPE_CHECKING:
    from .model import PeftModelForCausalLM


BASE = "__base__"
"""In ``adapter_names``: a row without a prompt (PEFT's name for it)."""

_NO_MERGE = (
    ": a soft prompt is not part of the weights, so it cannot be merged or unloaded; the base model is base_model"
)
_ABSENT = {"merge_and_unload": _NO_MERGE, "merge_adapter": _NO_MERGE, "unload": _NO_MERGE}
"""Methods of PEFT's models that are missing here, and why."""


class AdapterNameError(ConfigError, KeyError):
    """A name that cannot name an adapter (a ``KeyError`` too, as in PEFT)."""

    __str__ = Exception.__str__


class PeftModel(nn.Module):
    """A frozen base model and named soft prompts, one of them active.

    Args:
        model: the base, a transformers causal language model. It is frozen and put into ``eval()``.
        peft_config: config of the first adapter; its ``None`` fields are filled from the base, in place.
        adapter_name: name of the first adapter.
        tokenizer: for a TEXT start; without one, the config's is loaded by its name.

    Raises:
        ConfigError: the config cannot work with this base.
        AdapterError: an adapter type, task or field that softprompt does not support.
    """

    base_model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        *,
        tokenizer: Any = None,
        **_: Any,
    ) -> None:
        super().__init__()
        refuse(model.config, model.name_or_path or type(model).__name__)
        self.base_model = model
        model.requires_grad_(False).eval()
        check_unlisted(model, model.name_or_path or type(model).__name__)
        self.prompt_encoder = nn.ModuleDict()
        self.peft_config: dict[str, PeftConfig] = {}
        self.active_adapter: Any = adapter_name
        self._disabled: list[None] = []  # an entry for each open context: several threads may have one
        self.add_adapter(adapter_name, peft_config, tokenizer=tokenizer)
        self._train_only_active()

    # -- what the model is --------------------------------------------------------------------------

    @property
    def __class__(self) -> type:
        """Makes ``isinstance(model, peft.PeftModel)`` true where PEFT is loaded, else that of the base's class.

        ``transformers.Trainer`` uses only this to decide whether to save an adapter or a whole model.
        ``transformers.pipeline`` looks up the class's name in its list of text generation models, which has PEFT's
        class for causal language models and the base's. ``type(model)`` and ``isinstance`` with our classes stay as
        they are.
        """
        peft = sys.modules.get("peft")
        if peft is not None:
            return peft.PeftModelForCausalLM  # type: ignore[no-any-return]
        modules = self.__dict__.get("_modules", {})
        return type(modules["base_model"]) if "base_model" in modules else type(self)

    @__class__.setter
    def __class__(self, value: type) -> None:
        object.__dict__["__class__"].__set__(self, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles by the real class, which ``__class__`` hides from pickle; a copy's prompts are on."""
        return _new, (type(self),), self.__dict__ | {"_disabled": []}

    def __getattr__(self, name: str) -> Any:
        """Attributes that are not ours are the base model's (``config``, ``device``, ``dtype``, ...)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
        try:
            return getattr(self.base_model, name)
        except AttributeError:
            reason = _ABSENT.get(name, "")
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'{reason}") from None

    @property
    def peft_type(self) -> PeftType:
        """The active adapter's type."""
        return PeftType(self.active_peft_config.peft_type)

    @property
    def active_adapters(self) -> list[str]:
        """The active adapter, as a list; empty when there is none."""
        return [self.active_adapter] if self.peft_config else []

    @property
    def active_peft_config(self) -> PeftConfig:
        """The active adapter's config."""
        return self.peft_config[self._active()]

    def _active(self) -> str:
        """Name of the active adapter.

        Raises:
            ConfigError: the last one was deleted.
        """
        name = self.active_adapter
        if name == []:
            raise ConfigError("the model has no adapter; add one with add_adapter or load_adapter")
        return str(name)

    @property
    def has_active_enabled_adapter(self) -> bool:
        """Whether a prompt is in use (false inside ``disable_adapter``, and where there is none)."""
        return bool(self.peft_config) and not self._disabled

    @property
    def word_embeddings(self) -> nn.Module:
        """The base model's input embedding module."""
        return self.base_model.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def prompt(self) -> nn.Parameter:
        """The active prompt ``[P, D]``."""
        return self.prompt_of(self._active())

    def prompt_of(self, adapter_name: str) -> nn.Parameter:
        """The prompt ``[P, D]`` of any adapter."""
        encoder = self.prompt_encoder[adapter_name]
        assert isinstance(encoder, PromptEmbedding)
        return encoder.matrix

    def get_base_model(self) -> PreTrainedModel:
        """The base model."""
        return self.base_model

    def get_prompt(self, batch_size: int, task_ids: Tensor | None = None) -> Tensor:
        """The active prompt, repeated: ``[batch_size, P, D]``."""
        return self.prompt.expand(batch_size, -1, -1)

    def get_prompt_embedding_to_save(self, adapter_name: str) -> Tensor:
        """The prompt ``[P, D]`` of an adapter, detached, on the CPU."""
        return self.prompt_of(adapter_name).detach().cpu()

    def train(self, mode: bool = True) -> PeftModel:
        """Set the mode of the prompt; the base stays in ``eval()``, since dropout in a frozen model is only noise."""
        self.training = mode
        self.prompt_encoder.train(mode)
        return self

    # -- adapters -----------------------------------------------------------------------------------

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        *,
        tokenizer: Any = None,
        **_: Any,
    ) -> None:
        """Add a prompt; it is not made active.

        Raises:
            ConfigError: the name is taken or unusable, or the config cannot work with this base.
        """
        if adapter_name in self.peft_config:
            raise ConfigError(f"an adapter called {adapter_name!r} exists already; choose another name")
        if adapter_name in ("", BASE) or hasattr(nn.ModuleDict, adapter_name) or set(adapter_name) & set("./\\"):
            raise AdapterNameError(
                f"{adapter_name!r} cannot name an adapter: it names a folder too, so no dots and slashes; "
                "and no names that torch uses"
            )
        peft_config = adopted(peft_config)
        files.check_supported(peft_config, f"adapter {adapter_name!r}")
        assert isinstance(peft_config, PromptTuningConfig)
        if peft_config.num_virtual_tokens is None:
            raise ConfigError("num_virtual_tokens is not set; give the number of virtual tokens")
        self._fill(peft_config)
        encoder = PromptEmbedding(peft_config, self.word_embeddings, tokenizer)
        encoder.matrix.requires_grad_(adapter_name == self.active_adapter and not peft_config.inference_mode)
        self.prompt_encoder[adapter_name] = encoder.to(self.base_model.device)
        self.peft_config[adapter_name] = peft_config
        if self.active_adapter == []:
            self.set_adapter(adapter_name)

    def _fill(self, config: PromptTuningConfig) -> None:
        """Fill what the config leaves open from the base model, in place (as PEFT does)."""
        facts = base_facts(self.base_model)
        if config.token_dim not in (None, facts["token_dim"]):
            raise ConfigError(
                f"token_dim is {config.token_dim}, but the base model's embeddings have width {facts['token_dim']}; "
                "leave token_dim out"
            )
        config.token_dim = facts["token_dim"]
        config.num_layers = config.num_layers or facts["num_layers"]
        config.num_attention_heads = config.num_attention_heads or facts["num_attention_heads"]
        config.num_transformer_submodules = config.num_transformer_submodules or 1
        config.task_type = config.task_type or TaskType.CAUSAL_LM
        room = context_length(self.base_model.config)
        if room is not None and config.num_virtual_tokens is not None and config.num_virtual_tokens >= room:
            raise ConfigError(
                f"num_virtual_tokens is {config.num_virtual_tokens}, but the base model reads at most {room} tokens; "
                "use fewer virtual tokens"
            )

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Make another prompt active; the others take no gradient meanwhile.

        Raises:
            ConfigError: there is no such adapter.
        """
        self._require(adapter_name)
        self.active_adapter = adapter_name
        self._train_only_active(frozen=inference_mode)

    def _train_only_active(self, frozen: bool = False) -> None:
        for name, config in self.peft_config.items():
            active = name == self.active_adapter
            self.prompt_of(name).requires_grad_(active and not config.inference_mode and not frozen)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove a prompt; if it was active, the first remaining one becomes active.

        After the last one, ``active_adapter`` is ``[]``, as in PEFT, and calls are errors until another is added.

        Raises:
            ConfigError: there is no such adapter.
        """
        self._require(adapter_name)
        del self.prompt_encoder[adapter_name]
        del self.peft_config[adapter_name]
        if not self.peft_config:
            self.active_adapter = []
        elif self.active_adapter == adapter_name:
            self.set_adapter(next(iter(self.peft_config)))
            warnings.warn(
                f"Adapter {adapter_name} was active and has been deleted; {self.active_adapter} is active now.",
                stacklevel=2,
            )

    def _require(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            known = ", ".join(self.peft_config) or "none"
            raise ConfigError(f"Adapter {adapter_name} does not exist; existing adapters: {known}")

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Make prompts that are not active trainable (for ``adapter_names`` in ``forward``), or freeze prompts.

        PEFT does not support this for prompts. The setting lasts until ``set_adapter`` is called.

        Raises:
            ConfigError: there is no such adapter.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in names:
            self._require(name)
        for name in names:
            self.prompt_of(name).requires_grad_(requires_grad)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside this context the model is the base model, exactly."""
        self._disabled.append(None)
        try:
            yield
        finally:
            self._disabled.pop()

    # -- counting -----------------------------------------------------------------------------------

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Numbers of trainable and of all parameters (shared ones once; 4-bit ones unpacked)."""
        trainable = total = 0
        for parameter in self.parameters():
            count = parameter.numel() or getattr(parameter, "ds_numel", 0)
            if type(parameter).__name__ == "Params4bit":
                count *= 2 * getattr(getattr(parameter, "quant_storage", None), "itemsize", 1)
            total += count
            trainable += count if parameter.requires_grad else 0
        return trainable, total

    def print_trainable_parameters(self) -> None:
        """Print one line with the numbers of parameters."""
        trainable, total = self.get_nb_trainable_parameters()
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")

    @property
    def prompt_tokens(self) -> dict[str, Tensor]:
        """Indices ``[P]`` of each adapter's virtual tokens."""
        return {name: torch.arange(len(self.prompt_of(name))) for name in self.peft_config}

    def get_model_status(self) -> ModelStatus:
        """The status of the adapters, under PEFT's names. PEFT itself does not support this for prompts."""
        return model_status(self)

    def get_layer_status(self) -> Any:
        """Not supported for prompts, which have no layers (as in PEFT).

        Raises:
            TypeError: always.
        """
        raise TypeError("get_layer_status() is for adapters inside layers; a soft prompt has none")

    def prepare_model_for_gradient_checkpointing(self, model: PreTrainedModel) -> None:
        """Make embeddings require a gradient unless ``model`` is quantised, as PEFT does. Not needed here."""
        if not any(getattr(model, f"is_{kind}", False) for kind in ("loaded_in_8bit", "loaded_in_4bit", "quantized")):
            model.enable_input_require_grads()

    # -- files --------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write each adapter: ``default`` into the folder itself, others into a sub-folder of their name.

        Raises:
            ConfigError: the path is a file, a name is unknown, or a pickle is asked for.
        """
        from .saving import save_adapters

        save_adapters(
            self,
            Path(save_directory),
            safe_serialization,
            selected_adapters,
            is_main_process,
            from_trainer="state_dict" in kwargs,
        )

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel,
        model_id: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> PeftModelForCausalLM:
        """Load an adapter from a folder or the Hub onto a base model.

        Args:
            is_trainable: go on training it; otherwise the prompt is frozen and the model in ``eval()``.
            config: use this config (it is changed in place) instead of reading the adapter's.
            **kwargs: ``subfolder``, ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Raises:
            AdapterError: there is no adapter, it is damaged or unsafe, or it does not fit the base model.
        """
        from .saving import load_model

        return load_model(model, model_id, adapter_name, is_trainable, config, **kwargs)

    def load_adapter(
        self, model_id: str | os.PathLike[str], adapter_name: str, is_trainable: bool = False, **kwargs: Any
    ) -> Any:
        """Load a prompt under a new name, or its numbers into an existing one.

        Returns:
            An object with empty ``missing_keys`` and ``unexpected_keys``.

        Raises:
            AdapterError: as in ``from_pretrained``.
        """
        from .saving import load_into

        return load_into(self, model_id, adapter_name, is_trainable, **kwargs)

    def create_or_update_model_card(self, output_dir: str | os.PathLike[str]) -> None:
        """Write the model card of the active adapter into ``output_dir/README.md``, below a card of ``Trainer``."""
        from .saving import update_model_card

        update_model_card(self, Path(output_dir))

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Upload the adapters to a repository of the Hub, which is created if need be.

        Args:
            **kwargs: ``commit_message``, ``commit_description``, ``private``, ``token`` (or the older
                ``use_auth_token``), ``revision``, ``create_pr``.

        Returns:
            The ``CommitInfo`` of huggingface_hub.
        """
        from .saving import push_model

        return push_model(self, repo_id, **kwargs)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a full state dict, or the tensors of an adapter file, as Trainer without PEFT does."""
        if self.peft_config and files.key_of(files.placement_of(self.active_peft_config)) in state_dict:
            from .state import set_peft_model_state_dict

            set_peft_model_state_dict(self, state_dict, self.active_adapter)
            return nn.modules.module._IncompatibleKeys([], [])
        return super().load_state_dict(state_dict, *args, **kwargs)


def _new(cls: type[PeftModel]) -> PeftModel:
    return cls.__new__(cls)
