"""The guide's API: a frozen causal language model with soft prompts, over the engine.

Names, signatures and files are PEFT's; the mathematics is the engine's. ``docs/peft.md`` has the table
of what differs and why.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from . import generate as decoding
from .adapter import placement_of
from .config import Placement
from .engine.known import Known
from .errors import ConfigError
from .forward import Batch, forward_plain, forward_rows
from .fused import forward_fused
from .peft_model import PeftModel as PeftModel
from .suffix import forward_behind


class PeftModelForCausalLM(PeftModel):
    """A causal language model with a soft prompt in front of every text, or behind it."""

    @property
    def prompt_placement(self) -> Placement:
        """Where the active prompt stands: ``prefix`` or ``suffix`` of the text."""
        return placement_of(self.active_peft_config)

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
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Loss and logits of a batch, each row as if it were alone and had no padding.

        Args:
            input_ids: ``[B, T]``; or ``inputs_embeds`` ``[B, T, D]``, which wins if both are given.
            attention_mask: ``[B, T]``, zeros at padding, wherever it stands.
            labels: ``[B, T]`` beside the ids, ``-100`` where there is no loss; not shifted. A suffix stands before
                the first token of a row that has a loss; at the end of a row that has none, or without labels.
            position_ids: where they return to 0 inside a row (packed rows, as from trl's ``packing=True`` or
                ``DataCollatorWithFlattening``), another text begins: each has the prompt in front of it and sees no
                other. Otherwise ignored with a warning; a token's position is its place behind the prompt.
            output_hidden_states, output_attentions, use_cache, past_key_values: as in transformers; these
                take the plain way, one padded batch with the prompt in each row.
            num_items_in_batch: divide the summed loss by this instead of the number of supervised tokens.

        Returns:
            ``PromptedCausalLMOutput``: ``loss``, and ``logits`` ``[B, P + T, V]``, computed when read.
            A tuple of these when ``return_dict`` is false.

        Raises:
            ConfigError: no input, a mask that is not ``[B, T]``, what a suffix cannot give (caches, states), or
                packed rows where a row must be one text: caches, states, a suffix.
        """
        asked: dict[str, Any] = {
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        asked = {name: value for name, value in asked.items() if value not in (None, False)}
        batch = Batch(input_ids, inputs_embeds, attention_mask, labels, num_items_in_batch, position_ids)
        if self._disabled:
            return self._base_forward(batch, return_dict=return_dict, **asked, **kwargs)
        if batch.packed:
            self._check_packed(asked)
        elif position_ids is not None:
            warnings.warn("position_ids are not used: they follow from the prompt and the mask.", stacklevel=2)
        fused = kwargs.pop("fused_lm_head", False)
        if fused and (asked or self.prompt_placement == "suffix"):
            what = ", ".join(asked) or "prompt_placement suffix"
            raise ConfigError(f"fused_lm_head: not supported together with {what}")
        if fused:
            output = forward_fused(self.base_model, self._prompt_or_compiled(), batch, **kwargs)
        elif self.prompt_placement == "suffix":
            if asked:
                raise ConfigError(f"{', '.join(asked)}: not supported with prompt_placement suffix; leave them out")
            output = forward_behind(self.base_model, self.prompt, batch)
        elif asked:
            kwargs.pop("token_type_ids", None)
            output = forward_plain(self.base_model, self.prompt, batch, **asked, **kwargs)
        else:
            output = forward_rows(self.base_model, self._prompt_or_compiled(), batch)
        return output if return_dict is not False else output.to_tuple()

    def _prompt_or_compiled(self) -> Tensor | Known:
        return self.prompt if torch.is_grad_enabled() else self.compiled()

    def _check_packed(self, asked: Mapping[str, Any]) -> None:
        """Refuse what needs one text a row."""
        what = [*asked, *(["prompt_placement suffix"] if self.prompt_placement == "suffix" else [])]
        if what:
            raise ConfigError(
                f"position_ids return to 0 inside a row, so it holds several texts; not supported with "
                f"{', '.join(what)}; give each text a row of its own"
            )

    def _base_forward(self, batch: Batch, **kwargs: Any) -> Any:
        given = {f.name: getattr(batch, f.name) for f in fields(batch)} | kwargs
        given["num_items_in_batch"] = given.pop("num_items")
        return self.base_model(**{name: value for name, value in given.items() if value is not None})

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``generate`` with the prompt in front of every row; see ``softprompt.generate``."""
        if self._disabled:
            return self.base_model.generate(*args, **kwargs)
        kwargs.setdefault("generation_config", None)
        how: dict[str, Any] = {"compiled": self.compiled}
        if self.prompt_placement == "suffix":
            how = {"behind": True}
        return decoding.generate(self.base_model, self.prompt.detach(), *args, **how, **kwargs)

    def compiled(self, adapter_name: str | None = None) -> Known:
        """What a prompt leaves behind in each layer of the base: its keys, values and hidden states.

        Computed once and kept until the prompt or the base changes. Without gradient.

        Args:
            adapter_name: ``None`` for the active adapter.

        Raises:
            ConfigError: there is no such adapter, or it stands behind the text, on which it depends.
        """
        name = adapter_name or self.active_adapter
        self._require(name)
        if placement_of(self.peft_config[name]) == "suffix":
            raise ConfigError(f"the prompt {name!r} stands behind the text, so it cannot be computed without one")
        return self._compiled[name].get(self.base_model, self.prompt_of(name))

    @property
    def generation_config(self) -> Any:
        """The base model's defaults for ``generate``; assigning replaces them there."""
        return self.base_model.generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self.base_model.generation_config = value
