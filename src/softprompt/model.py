"""The guide's API: a frozen causal language model with soft prompts, over the engine.

Names, signatures and files are PEFT's; the mathematics is the engine's. ``docs/peft.md`` has the table
of what differs and why.
"""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any

from torch import Tensor

from . import generate as decoding
from .forward import Batch, forward_plain, forward_rows
from .peft_model import PeftModel as PeftModel


class PeftModelForCausalLM(PeftModel):
    """A causal language model with a soft prompt in front of every text."""

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
            labels: ``[B, T]`` beside the ids, ``-100`` where there is no loss; not shifted.
            position_ids: ignored with a warning; a token's position is its place behind the prompt.
            output_hidden_states, output_attentions, use_cache, past_key_values: as in transformers; these
                take the plain way, one padded batch with the prompt in each row.
            num_items_in_batch: divide the summed loss by this instead of the number of supervised tokens.

        Returns:
            ``PromptedCausalLMOutput``: ``loss``, and ``logits`` ``[B, P + T, V]``, computed when read.
            A tuple of these when ``return_dict`` is false.

        Raises:
            ConfigError: no input, or a mask that is not ``[B, T]``.
        """
        asked: dict[str, Any] = {
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        asked = {name: value for name, value in asked.items() if value not in (None, False)}
        batch = Batch(input_ids, inputs_embeds, attention_mask, labels, num_items_in_batch)
        if self._disabled:
            return self._base_forward(batch, position_ids=position_ids, return_dict=return_dict, **asked, **kwargs)
        if position_ids is not None:
            warnings.warn("position_ids are not used: they follow from the prompt and the mask.", stacklevel=2)
        if asked:
            kwargs.pop("token_type_ids", None)
            output = forward_plain(self.base_model, self.prompt, batch, **asked, **kwargs)
        else:
            output = forward_rows(self.base_model, self.prompt, batch)
        return output if return_dict is not False else output.to_tuple()

    def _base_forward(self, batch: Batch, **kwargs: Any) -> Any:
        given = {f.name: getattr(batch, f.name) for f in fields(batch)} | kwargs
        given["num_items_in_batch"] = given.pop("num_items")
        return self.base_model(**{name: value for name, value in given.items() if value is not None})

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``generate`` with the prompt in front of every row; see ``softprompt.generate``."""
        if self._disabled:
            return self.base_model.generate(*args, **kwargs)
        kwargs.setdefault("generation_config", None)
        return decoding.generate(self.base_model, self.prompt.detach(), *args, **kwargs)
