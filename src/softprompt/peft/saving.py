"""Saving adapters into folders, and loading them from a folder or the Hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config.adapter_config import CONFIG_NAME
from ..errors import ConfigError
from ..inference.load_adapter import read_adapter
from ..models.vocabulary import enlarged, restore
from ..reporting.folder import write_card
from ..storage.adapter import WEIGHTS_NAME, find_weights, key_of, read_prompt, write_prompt
from ..storage.atomic import inside
from .adapters import AdapterModel
from .interop import loaded_peft
from .state_dict import set_peft_model_state_dict

TRAINER_WEIGHTS_NAME = "model.safetensors"


def save_adapters(
    model: AdapterModel,
    folder: Path,
    selected_adapters: Sequence[str] | None = None,
    *,
    is_main_process: bool = True,
    for_trainer: bool = False,
) -> None:
    """Write adapters, all by default: ``default`` into the folder itself, others into sub-folders with their names.

    Args:
        is_main_process: false in the other processes of a distributed run, which write nothing.
        for_trainer: write a copy of the weights for a ``Trainer`` without PEFT.

    Raises:
        ConfigError: the path is a file, or a name is unknown.
    """
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; adapters are saved into a folder")
    names = list(model.peft_config) if selected_adapters is None else selected_adapters
    unknown = [name for name in names if name not in model.peft_config]
    if unknown:
        raise ConfigError(f"no adapter is called {unknown[0]!r}; existing adapters: {', '.join(model.peft_config)}")
    if not is_main_process:
        return
    for name in names:
        target = folder if name == "default" else inside(folder, name)
        target.mkdir(parents=True, exist_ok=True)
        _save_adapter(model, name, target)
        if for_trainer and loaded_peft() is None:
            # Without PEFT, Trainer finds the best checkpoint's weights only under this name.
            shutil.copyfile(target / WEIGHTS_NAME, target / TRAINER_WEIGHTS_NAME)
    if (folder / CONFIG_NAME).is_file():
        write_card(folder)


def _save_adapter(model: AdapterModel, name: str, folder: Path) -> None:
    config = model.peft_config[name]
    if config.base_model_name_or_path is None:
        config.base_model_name_or_path = getattr(model.base_model, "name_or_path", None) or None
    beside = enlarged(model.base_model, config.base_model_name_or_path, config.revision)
    prompt = model.get_prompt_embedding_to_save(name)
    write_prompt(folder, prompt, placement=config.prompt_placement, beside=beside)
    replace(config, inference_mode=True).save_pretrained(folder)


def update_model_card(model: AdapterModel, folder: Path) -> None:
    """Write the model card of the active adapter into ``folder/README.md``, below a card of ``Trainer``."""
    config = model.active_peft_config
    base = config.base_model_name_or_path or getattr(model.base_model, "name_or_path", None) or None
    folder.mkdir(parents=True, exist_ok=True)
    write_card(folder, config=replace(config, base_model_name_or_path=base).to_dict())


def load_into(
    model: AdapterModel, model_id: str | os.PathLike[str], adapter_name: str, is_trainable: bool, **hub: Any
) -> Any:
    """Load a prompt under a new name, or its values into an existing adapter; see ``PeftModel.load_adapter``."""
    weights = find_weights(model_id, **hub)
    restore(model.base_model, weights, str(model_id), shared=True)
    if adapter_name in model.peft_config:
        placement = model.peft_config[adapter_name].prompt_placement
        tensors = {key_of(placement): read_prompt(weights, placement)}
        result = set_peft_model_state_dict(model, tensors, adapter_name)
        if is_trainable:
            model.peft_config[adapter_name].inference_mode = False
            model.set_adapter(model.active_adapter)
        else:
            model.eval()
        return result
    config, prompt = read_adapter(model.base_model, model_id, **hub)
    config.inference_mode = True  # no initial prompt is drawn, and no tokenizer is needed
    model.add_adapter(adapter_name, config)
    return copy_loaded(model, adapter_name, prompt, is_trainable)


def copy_loaded(model: AdapterModel, adapter_name: str, prompt: Tensor, is_trainable: bool) -> Any:
    """Copy a loaded prompt ``[P, D]`` into a new adapter, and make it trainable or freeze it."""
    config = model.peft_config[adapter_name]
    result = set_peft_model_state_dict(model, {key_of(config.prompt_placement): prompt}, adapter_name)
    config.inference_mode = not is_trainable
    model.set_adapter(model.active_adapter)
    if not is_trainable:
        model.eval()
    return result
