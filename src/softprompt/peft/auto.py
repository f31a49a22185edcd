"""``AutoPeftModelForCausalLM``: an adapter and its base model in one call."""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoModelForCausalLM

from ..config.adapter_config import PeftConfig
from ..config.compatibility import read_config
from ..config.options import EMBEDDED_MODEL, ModelOptions, build_options
from ..errors import AdapterMismatchError, BaseModelError
from ..models.loading import load_base
from ..models.vocabulary import grow, own_tokenizer
from ..storage.adapter import find_weights
from .model import PeftModelForCausalLM


class AutoPeftModelForCausalLM:
    """Loads an adapter together with the base model that its config names."""

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
            **kwargs: ``subfolder``, ``token``, ``cache_dir``, ``local_files_only`` for the adapter; what
                else there is goes to ``AutoModelForCausalLM.from_pretrained`` (``dtype``, ``device_map``).

        Raises:
            AdapterError: there is no adapter, it is damaged, or it does not say what its base model is.
            BaseModelError: the base model cannot be had.
        """
        hub: dict[str, Any] = {
            k: kwargs.pop(k) for k in ("subfolder", "token", "cache_dir", "local_files_only") if k in kwargs
        }
        hub["revision"] = revision
        found = config or read_config(pretrained_model_name_or_path, **hub)
        if not found.base_model_name_or_path:
            raise AdapterMismatchError(
                f"{pretrained_model_name_or_path} does not say what base model it is for; load that yourself and "
                "use PeftModel.from_pretrained(model, ...)"
            )
        name = found.base_model_name_or_path
        if name == EMBEDDED_MODEL or name.endswith(".gguf"):
            known = {
                k: str(v).removeprefix("torch.") for k, v in kwargs.items() if k in ("dtype", "attn_implementation")
            }
            base = load_base(build_options(ModelOptions, {"model_name_or_path": name, "device": "cpu", **known})).model
        else:
            try:
                base = AutoModelForCausalLM.from_pretrained(name, revision=found.revision, **kwargs)
            except OSError as error:
                reason = str(error).strip().split("\n")[0]
                raise BaseModelError(f"the base model {name} cannot be had: {reason}") from error
        adapter, code = str(pretrained_model_name_or_path), kwargs.get("trust_remote_code", False)
        outside = {name: value for name, value in hub.items() if name != "subfolder"}  # where PEFT looks for it
        tokenizer = own_tokenizer(adapter, trust_remote_code=code, **outside)
        grow(base, find_weights(adapter, **hub), tokenizer)
        return PeftModelForCausalLM.from_pretrained(
            base, pretrained_model_name_or_path, adapter_name, is_trainable, config, **hub
        )
