"""``PeftModel`` and ``PeftModelForCausalLM``: PEFT's interface to a causal language model with soft prompts.

Names, signatures and files are PEFT's; the engine computes. ``docs/peft.md`` lists the differences and their reasons.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import TransformersKwargs

from ..config.adapter_config import PeftConfig
from ..engine.row_prompts import RowPrompts
from ..engine.runner import ModelRunner
from ..engine.surgery.lm_head import is_hooked
from ..errors import ConfigError
from ..inference import generate as decoding
from ..inference.forward import Batch, forward_plain, forward_rows, forward_suffix, text_lengths
from ..inference.fused_lm_head import forward_fused, is_fused
from ..inference.load_adapter import read_adapter
from ..inference.prompted import PromptedModel
from ..models.families import base_facts
from ..models.vocabulary import restore
from ..storage.adapter import find_weights, key_of
from ..types import Placement
from .adapters import BASE, AdapterModel
from .push import push_model
from .saving import copy_loaded, load_into, save_adapters, update_model_card
from .state_dict import set_peft_model_state_dict
from .status import ModelStatus, count_parameters, model_status

_PLAIN = ("past_key_values", "use_cache", "output_attentions", "output_hidden_states")
"""Keywords for which a call runs as one padded batch, with the prompt in each row."""
_OF_THE_CONFIG = ("output_attentions", "output_hidden_states")
"""Keywords whose default is set in the base's config."""
_OF_PACKED_ROWS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Keywords that describe packed rows without a prompt; ``position_ids`` describe them as well."""


class UnknownKeywordError(ConfigError, TypeError):
    """A keyword that ``forward`` does not have."""


class PeftModel(AdapterModel):
    """A frozen base model and named soft prompts, one of them active.

    Args:
        model: the base, a transformers causal language model. It is frozen and put into ``eval()``.
        peft_config: config of the first adapter; its ``None`` fields are set from the base, in place.
        adapter_name: name of the first adapter.
        tokenizer: for TEXT initialization; without one, the tokenizer that the config names is loaded.

    Raises:
        ConfigError: the config does not fit this base.
        AdapterError: an adapter type, task or field that softprompt does not support.
    """

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Numbers of trainable and of all parameters (shared ones once; 4-bit ones unpacked)."""
        return count_parameters(self)

    def print_trainable_parameters(self) -> None:
        """Print one line with the numbers of parameters."""
        trainable, total = count_parameters(self)
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")

    def get_model_status(self) -> ModelStatus:
        """The status of the adapters, under PEFT's names. PEFT itself does not support this for prompts."""
        return model_status(self)

    def get_layer_status(self) -> Any:
        """Not supported for prompts, as in PEFT: they have no layers.

        Raises:
            TypeError: always.
        """
        raise TypeError("get_layer_status() is for adapters inside layers; a soft prompt has none")

    def prepare_model_for_gradient_checkpointing(self, model: PreTrainedModel) -> None:
        """Make embeddings require a gradient unless ``model`` is quantised, as in PEFT. softprompt does not need it."""
        if not any(getattr(model, f"is_{kind}", False) for kind in ("loaded_in_8bit", "loaded_in_4bit", "quantized")):
            model.enable_input_require_grads()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write each adapter: ``default`` into the folder itself, others into sub-folders with their names.

        Raises:
            ConfigError: the path is a file, a name is unknown, or ``safe_serialization`` is false.
        """
        if not safe_serialization:
            raise ConfigError("safe_serialization=False would write a pickle; softprompt writes safetensors only")
        trainer = "state_dict" in kwargs
        save_adapters(
            self, Path(save_directory), selected_adapters, is_main_process=is_main_process, for_trainer=trainer
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
            is_trainable: continue to train the prompt; otherwise it is frozen and the model is put into ``eval()``.
            config: use this config, which is changed in place, instead of the adapter's.
            **kwargs: ``subfolder``, ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Raises:
            AdapterError: there is no adapter, it is damaged or unsafe, or it does not fit the base model.
        """
        if config is not None and not isinstance(config, PeftConfig):
            raise ConfigError(f"config must be a PeftConfig, not {type(config).__name__}")
        found, prompt = read_adapter(model, model_id, config, **kwargs)
        restore(model, find_weights(model_id, **kwargs), str(model_id))
        found.inference_mode = True  # no initial prompt is drawn, and no tokenizer is needed
        loaded = PeftModelForCausalLM(model, found, adapter_name)
        copy_loaded(loaded, adapter_name, prompt, is_trainable)
        return loaded

    def load_adapter(
        self, model_id: str | os.PathLike[str], adapter_name: str, is_trainable: bool = False, **kwargs: Any
    ) -> Any:
        """Load a prompt under a new name, or its values into an existing adapter.

        Returns:
            An object with empty ``missing_keys`` and ``unexpected_keys``.

        Raises:
            AdapterError: as in ``from_pretrained``.
        """
        return load_into(self, model_id, adapter_name, is_trainable, **kwargs)

    def create_or_update_model_card(self, output_dir: str | os.PathLike[str]) -> None:
        """Write the model card of the active adapter into ``output_dir/README.md``, below a card of ``Trainer``."""
        update_model_card(self, Path(output_dir))

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Upload the adapters to a repository of the Hub, created if it does not exist.

        Args:
            **kwargs: ``commit_message``, ``commit_description``, ``private``, ``token`` (or the older
                ``use_auth_token``), ``revision``, ``create_pr``.

        Returns:
            The ``CommitInfo`` of huggingface_hub.
        """
        return push_model(self, repo_id, **kwargs)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a full state dictionary or, for ``Trainer`` without PEFT, the tensors of an adapter file."""
        if self.peft_config and key_of(self.active_peft_config.prompt_placement) in state_dict:
            set_peft_model_state_dict(self, state_dict, self.active_adapter)
            return nn.modules.module._IncompatibleKeys([], [])
        return super().load_state_dict(state_dict, *args, **kwargs)


class PeftModelForCausalLM(PeftModel):
    """A causal language model with a soft prompt before every text (prefix) or after it (suffix)."""

    @property
    def prompt_placement(self) -> Placement:
        """Position of the active prompt: ``prefix`` or ``suffix``."""
        return self.active_peft_config.placement

    @property
    def prompted(self) -> PromptedModel:
        """The base model, in a new runner, and the active prompt, for the functions of ``softprompt.inference``."""
        name = self._active()  # once: another thread may call set_adapter meanwhile
        return PromptedModel(ModelRunner(self.base_model), self.prompt_of(name), self.peft_config[name].placement)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        task_ids: Tensor | None = None,
        *,
        num_items_in_batch: Tensor | int | None = None,
        logits_to_keep: int | Tensor = 0,
        position_ids: Tensor | None = None,
        adapter_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Loss and logits of a batch; each row is computed as if alone and without padding.

        Args:
            input_ids: ``[B, T]``; or ``inputs_embeds`` ``[B, T, D]``, which wins if both are given.
            attention_mask: ``[B, T]``, zeros at padding, on either side.
            labels: ``[B, T]``, not shifted, ``-100`` at positions without a loss. A suffix prompt is inserted before a
                row's first token with a loss; at the end of a row without such tokens, or without labels.
            position_ids: of packed rows (trl's ``packing=True``, ``DataCollatorWithFlattening``), where they return to
                0 at each new text. Each text then follows the prompt and attends to no other text. Otherwise ignored
                with a warning, since positions follow from the prompt and the mask.
            output_hidden_states, output_attentions: as in transformers; the base's config sets the default. With these,
                ``use_cache`` or ``past_key_values`` the call runs as one padded batch with the prompt in each row.
            num_items_in_batch: divide the summed loss by this instead of the number of supervised tokens.
            logits_to_keep: number of positions at the end of ``P + T`` that get logits (0: all), or their indices.
            adapter_names: the adapter of each row; ``"__base__"`` for none. P is then the length of the longest
                prompt; shorter ones are padded on the left.
            **kwargs: ``token_type_ids`` are ignored with a warning.

        Returns:
            ``PromptedCausalLMOutput``: ``loss``, and ``logits`` ``[B, P + T, V]``; with labels, logits are computed
            when they are read. A tuple of these when ``return_dict`` is false.

        Raises:
            ConfigError: no input, a mask that is not ``[B, T]``, an unknown adapter, a keyword of the base that is
                not supported with a prompt, or packed rows in a call that needs one text per row.
            TypeError: a keyword that neither the base nor transformers has.
        """
        kwargs |= {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        self._check_keywords(kwargs)
        given = {name: value for name, value in kwargs.items() if value is not None}
        batch = Batch(
            input_ids, inputs_embeds, attention_mask, labels, num_items_in_batch, logits_to_keep, position_ids
        )
        if self._disabled:
            return self.base_model(**batch.asked, return_dict=return_dict, **given)
        given = {name: getattr(self.config, name, None) for name in _OF_THE_CONFIG} | given
        asked = {name: value for name, value in given.items() if value is not None and value is not False}
        output = self._forward(batch, adapter_names, self._settle(batch, asked))
        return output if return_dict is not False else output.to_tuple()

    def _forward(self, batch: Batch, adapter_names: Sequence[str] | None, asked: dict[str, Any]) -> Any:
        base, fused = self.base_model, asked.pop("fused_lm_head", False)
        prompts, placement = self._bind(adapter_names, len(batch.tokens))
        plain = [*asked, *(["hooks on the base"] if is_hooked(base) else [])]
        suffix = ["prompt_placement suffix"] if placement == "suffix" else []
        several = ["adapter_names"] if adapter_names is not None else []
        if batch.packed:
            what = "a packed row (position_ids return to 0 inside it)"
            _refuse(what, [*plain, *suffix, *several], "put each text into its own row")
        if fused:
            _refuse("fused_lm_head", [*plain, *suffix, *several], "leave one of them out")
            return forward_fused(base, prompts, batch)
        if suffix:
            _refuse("prompt_placement suffix", list(asked), "leave these keywords out")
        if plain:
            return forward_plain(base, prompts, batch, text_lengths(batch) if suffix else False, **asked)
        if suffix:
            return forward_suffix(base, prompts.matrix, batch)
        return forward_rows(base, prompts.for_rows(len(batch.tokens)), batch)

    def _settle(self, batch: Batch, asked: dict[str, Any]) -> dict[str, Any]:
        """Keywords beyond loss and logits, without those that follow from the prompt and the mask."""
        ignored = {"token_type_ids": asked.pop("token_type_ids", None)}
        if batch.position_ids is not None:
            asked = {name: value for name, value in asked.items() if name not in _OF_PACKED_ROWS}
            ignored["position_ids"] = None if batch.packed else batch.position_ids
        for name in [name for name, value in ignored.items() if value is not None]:
            warnings.warn(f"{name} are ignored: they follow from the prompt and the mask.", stacklevel=5)
        if refused := sorted(asked.keys() - {*_PLAIN, "fused_lm_head"}):
            advice = "set router_aux_loss_coef=0.0" if refused == ["output_router_logits"] else "leave it out"
            raise ConfigError(f"{', '.join(refused)}: not supported with a soft prompt; {advice}")
        return asked

    def _check_keywords(self, given: dict[str, Any]) -> None:
        known = {*inspect.signature(self.base_model.forward).parameters, *TransformersKwargs.__annotations__}
        known |= {"token_type_ids", *(["fused_lm_head"] if is_fused(self.base_model) else [])}
        if unknown := sorted(given.keys() - known):
            raise UnknownKeywordError(f"forward() got an unexpected keyword argument {unknown[0]!r}")

    def _bind(self, adapter_names: Sequence[str] | None, rows: int) -> tuple[RowPrompts, Placement]:
        """The prompts of a batch, looked up once per call, since another thread may call ``set_adapter``."""
        if adapter_names is None:
            name = self._active()
            return RowPrompts.of([self.prompt_of(name)]), self.peft_config[name].placement
        if isinstance(adapter_names, str) or len(adapter_names) != rows:
            raise ConfigError(
                f"adapter_names needs one name per row: the batch has {rows} rows, the names are {adapter_names!r}"
            )
        names = list(dict.fromkeys(adapter_names))
        for name in names:
            if name != BASE:
                self._require(name)
                if self.peft_config[name].prompt_placement == "suffix":
                    raise ConfigError(f"adapter_names takes prefix prompts only; {name!r} has prompt_placement suffix")
        nothing = torch.empty(0, base_facts(self.base_model)["token_dim"] or 0, device=self.base_model.device)
        prompts = [nothing if name == BASE else self.prompt_of(name) for name in names]
        return RowPrompts.of(prompts, [names.index(name) for name in adapter_names]), "prefix"

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """transformers' ``generate`` with the prompt in every row; see ``softprompt.inference.generate``.

        Args:
            adapter_names: the adapter of each row; ``"__base__"`` for none.
        """
        if self._disabled:
            return self.base_model.generate(*args, **kwargs)
        kwargs.setdefault("generation_config", None)
        given = [*args[:1], *(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))]
        prompts, placement = self._bind(adapter_names, next((len(each) for each in given if each is not None), 1))
        return decoding.generate(self.base_model, prompts.detach(), *args, suffix=placement == "suffix", **kwargs)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Inputs for the base model, for custom decoding loops; see ``generate.prepare_inputs``.

        Raises:
            ConfigError: the prompt is a suffix.
        """
        if self._disabled:
            return self.base_model.prepare_inputs_for_generation(input_ids, *args, **kwargs)  # type: ignore[no-any-return]
        prompts, placement = self._bind(None, len(input_ids))
        if placement == "suffix":
            raise ConfigError("prepare_inputs_for_generation does not support prompt_placement suffix; use generate")
        return decoding.prepare_inputs(self.base_model, prompts, input_ids, *args, **kwargs)

    @property
    def generation_config(self) -> Any:
        """The base model's defaults for ``generate``; assigning replaces them there."""
        return self.base_model.generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self.base_model.generation_config = value


def _refuse(what: str, others: Sequence[str], advice: str) -> None:
    if others:
        raise ConfigError(f"{what} is not supported together with {', '.join(others)}; {advice}")
