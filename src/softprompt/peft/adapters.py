"""A frozen base model and its named soft prompts: add, select, freeze, delete.

``model.py`` adds PEFT's interface and the forward pass. Names and signatures are PEFT's; ``docs/peft.md`` lists the
differences and their reasons.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..config.adapter_config import PeftConfig, PeftType, PromptTuningConfig, TaskType
from ..config.compatibility import check_supported
from ..engine.selfcheck import check_unlisted
from ..errors import ConfigError
from ..models.families import base_facts, context_length, refuse
from .interop import PeftLookalike, own_config
from .prompt import PromptEmbedding

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


class AdapterModel(PeftLookalike, nn.Module):
    """A frozen base model and named soft prompts, one of them active.

    Args:
        model: the base, a transformers causal language model. It is frozen and put into ``eval()``.
        peft_config: config of the first adapter; its ``None`` fields are filled from the base, in place.
        adapter_name: name of the first adapter.
        tokenizer: for TEXT initialization; without one, the tokenizer that the config names is loaded.

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
        self.peft_config: dict[str, PromptTuningConfig] = {}
        self.active_adapter: Any = adapter_name
        self._disabled: list[None] = []  # an entry per open context, since threads may have one each
        self.add_adapter(adapter_name, peft_config, tokenizer=tokenizer)
        self._train_only_active()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy's prompts are enabled, even if it is made inside ``disable_adapter``."""
        make, args, state = super().__reduce_ex__(protocol)
        return make, args, state | {"_disabled": []}

    def __getattr__(self, name: str) -> Any:
        """Other attributes are those of the base model (``config``, ``device``, ``dtype``, ...)."""
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
        """A list with the active adapter; empty without adapters."""
        return [self.active_adapter] if self.peft_config else []

    @property
    def active_peft_config(self) -> PromptTuningConfig:
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
        """Whether calls use a prompt (false inside ``disable_adapter``, and without adapters)."""
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

    def train(self, mode: bool = True) -> AdapterModel:
        """Set the mode of the prompts. The base stays in ``eval()``: dropout in a frozen model only adds noise."""
        self.training = mode
        self.prompt_encoder.train(mode)
        return self

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        *,
        tokenizer: Any = None,
        **_: Any,
    ) -> None:
        """Add a prompt, without making it active.

        Raises:
            ConfigError: the name is taken or unusable, or the config does not fit this base.
        """
        if adapter_name in self.peft_config:
            raise ConfigError(f"an adapter called {adapter_name!r} exists already; choose another name")
        if adapter_name in ("", BASE) or hasattr(nn.ModuleDict, adapter_name) or set(adapter_name) & set("./\\"):
            raise AdapterNameError(
                f"{adapter_name!r} cannot name an adapter: the name is a folder's too, so it has no dots or slashes, "
                "and it is not a name that torch uses"
            )
        config = check_supported(own_config(peft_config), f"adapter {adapter_name!r}")
        if config.num_virtual_tokens is None:
            raise ConfigError("num_virtual_tokens is not set; give the number of virtual tokens")
        self._fill(config)
        encoder = PromptEmbedding(config, self.word_embeddings, tokenizer)
        encoder.matrix.requires_grad_(adapter_name == self.active_adapter and not config.inference_mode)
        self.prompt_encoder[adapter_name] = encoder.to(self.base_model.device)
        self.peft_config[adapter_name] = config
        if self.active_adapter == []:
            self.set_adapter(adapter_name)

    def _fill(self, config: PromptTuningConfig) -> None:
        """Set the config's ``None`` fields from the base model, in place (as PEFT does)."""
        facts = base_facts(self.base_model)
        if config.token_dim not in (None, facts["token_dim"]):
            raise ConfigError(
                f"token_dim is {config.token_dim}, but the base model's embedding size is {facts['token_dim']}; "
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
                f"num_virtual_tokens is {config.num_virtual_tokens}, but the base model has {room} positions; "
                "use fewer virtual tokens"
            )

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Make a prompt active, and freeze the others.

        Raises:
            ConfigError: no adapter has this name.
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

        Without any adapter ``active_adapter`` is ``[]``, as in PEFT, and calls raise an error until one is added.

        Raises:
            ConfigError: no adapter has this name.
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
        """Make prompts trainable or freeze them, including inactive ones (for ``adapter_names`` in ``forward``).

        The setting lasts until the next ``set_adapter``. PEFT does not support this for prompts.

        Raises:
            ConfigError: no adapter has this name.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in names:
            self._require(name)
        for name in names:
            self.prompt_of(name).requires_grad_(requires_grad)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside this context the model computes what its base model computes."""
        self._disabled.append(None)
        try:
            yield
        finally:
            self._disabled.pop()

    @property
    def prompt_tokens(self) -> dict[str, Tensor]:
        """Indices ``[P]`` of each adapter's virtual tokens."""
        return {name: torch.arange(len(self.prompt_of(name))) for name in self.peft_config}
