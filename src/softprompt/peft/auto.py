"""``AutoPeftModelForCausalLM``: an adapter and its base model in one call."""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoModelForCausalLM

from ..config.adapter_config import PeftConfig
from ..config.compatibility import read_config
from ..config.options import ModelOptions, build_options
from ..errors import AdapterMismatchError, BaseModelError
from ..models.gguf import is_gguf
from ..models.libraries import essence
from ..models.loading import load_base
from ..models.vocabulary import grow, own_tokenizer
from ..storage.adapter import find_weights
from .model import PeftModelForCausalLM


class AutoPeftModelForCausalLM:
    """Loads an adapter and the base model that its config names."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> PeftModelForCausalLM:
        """Load the base model, then the adapter onto it.

        The base's embeddings are resized to those in the adapter's file or, as in PEFT, to the tokenizer beside the
        adapter if that has more tokens.

        Args:
            revision: of the adapter's repository; the base model's revision is in the adapter's config.
            **kwargs: ``subfolder``, ``token``, ``cache_dir``, ``local_files_only`` for the adapter; others are passed
                to ``AutoModelForCausalLM.from_pretrained`` (``dtype``, ``device_map``).

        Raises:
            AdapterError: there is no adapter, it is damaged, or it does not name its base model.
            BaseModelError: the base model cannot be loaded.
        """
        hub: dict[str, Any] = {
            k: kwargs.pop(k) for k in ("subfolder", "token", "cache_dir", "local_files_only") if k in kwargs
        }
        hub["revision"] = revision
        found = config or read_config(pretrained_model_name_or_path, **hub)
        if not found.base_model_name_or_path:
            raise AdapterMismatchError(
                f"{pretrained_model_name_or_path} does not name its base model; load the base model yourself and use "
                "PeftModel.from_pretrained(model, ...)"
            )
        name = found.base_model_name_or_path
        if is_gguf(name):
            known = {
                k: str(v).removeprefix("torch.") for k, v in kwargs.items() if k in ("dtype", "attn_implementation")
            }
            base = load_base(build_options(ModelOptions, {"model_name_or_path": name, "device": "cpu", **known})).model
        else:
            try:
                base = AutoModelForCausalLM.from_pretrained(name, revision=found.revision, **kwargs)
            except OSError as error:
                raise BaseModelError(f"the base model {name} cannot be loaded: {essence(error)}") from error
        adapter, code = str(pretrained_model_name_or_path), kwargs.get("trust_remote_code", False)
        outside = {
            name: value for name, value in hub.items() if name != "subfolder"
        }  # PEFT looks for the tokenizer there
        tokenizer = own_tokenizer(adapter, trust_remote_code=code, **outside)
        grow(base, find_weights(adapter, **hub), tokenizer)
        return PeftModelForCausalLM.from_pretrained(
            base, pretrained_model_name_or_path, adapter_name, is_trainable, config, **hub
        )
