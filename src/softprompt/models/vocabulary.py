"""Adapters of a base model with added tokens: the embeddings are saved with the adapter, as in PEFT's files.

The embeddings of added tokens are random and in no checkpoint of the base model, and the prompt was trained with them.
PEFT therefore saves the input embeddings and the head with the prompt if their number differs from the checkpoint's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..config.options import ModelOptions, build_options
from ..errors import AdapterError, AdapterMismatchError, SoftPromptError
from ..storage.atomic import expand
from ..storage.hub import FileAbsentError, find_file, snapshot_adapter
from .gguf import is_gguf
from .libraries import plain_errors
from .loading import SIDE_FILES, load_config

TOKENIZER_CONFIG = "tokenizer_config.json"


def own_tokenizer(adapter: str, *, trust_remote_code: bool = False, **hub: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the folder of an adapter; ``None`` without one.

    Raises:
        BaseModelError: it cannot be read.
    """
    try:
        folder = find_file(adapter, TOKENIZER_CONFIG, **hub).parent
    except FileAbsentError:
        return None
    if not Path(expand(adapter)).is_dir():
        folder = snapshot_adapter(adapter, SIDE_FILES, **hub)
    with plain_errors(f"the tokenizer of {adapter}"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def grow(base: PreTrainedModel, weights: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Resize the base's embeddings to those in an adapter's file or, if it has none, to its tokenizer.

    As in PEFT, new embeddings are drawn from the distribution of the old ones (here with a fixed seed, so two loads
    agree), and a base with enough embeddings for the tokenizer is unchanged.

    Args:
        weights: the adapter's weights file.
        tokenizer: the adapter's.
    """
    here = _num_embeddings(base)
    kept = [shape[0] for name, shape in _shapes(weights).items() if name in embeddings(base)]
    wanted = kept[0] if kept else max(here, len(tokenizer) if tokenizer is not None else 0)
    if wanted == here:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base.resize_token_embeddings(wanted)
    if not kept:
        warnings.warn(
            f"the adapter's tokenizer has {wanted} tokens, the base model {here} embeddings; the embeddings of the "
            "added tokens are untrained",
            stacklevel=4,
        )


def restore(base: PreTrainedModel, weights: Path, where: str, *, shared: bool = False) -> None:
    """Copy the embeddings in an adapter's file, if any, into the base, as PEFT does.

    Args:
        where: name of the adapter, for messages.
        shared: other adapters use the base as well, so it must not change.

    Raises:
        AdapterMismatchError: their number is not the base's, or they would change a shared base.
        AdapterError: the file is damaged.
    """
    ours, theirs = embeddings(base), _shapes(weights)
    for name in ours.keys() & theirs.keys():
        if list(ours[name].shape) != theirs[name]:
            raise AdapterMismatchError(
                f"{where}: size mismatch: its embeddings are {theirs[name]}, the base's "
                f"{list(ours[name].shape)}; call base.resize_token_embeddings({theirs[name][0]}) first, or load it "
                "with AutoPeftModelForCausalLM.from_pretrained"
            )
        with safe_open(weights, framework="pt") as tensors, torch.no_grad():
            value = tensors.get_tensor(name).to(ours[name])
            if value.equal(ours[name]):
                continue
            if shared:
                raise AdapterMismatchError(
                    f"{where} contains embeddings with which the other adapters were not trained; load it onto a "
                    "separate base model"
                )
            ours[name].copy_(value)


def enlarged(base: PreTrainedModel, name: str | None, revision: str | None) -> dict[str, Tensor]:
    """Tensors to save with a prompt: the embeddings of a base, if their number differs from the checkpoint's.

    Args:
        name, revision: of the base; only this machine is searched for its checkpoint.
    """
    checkpoint = _vocabulary_of(name, revision) if name else None
    if checkpoint in (None, base.config.get_text_config().vocab_size):
        return {}
    found: dict[str, Tensor] = {}
    for key, tensor in embeddings(base).items():
        if all(tensor is not other for other in found.values()):  # a tied head is the same parameter
            found[key] = tensor
    return {key: tensor.detach() for key, tensor in found.items()}


def embeddings(base: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters of the input embeddings and of the head, under the names that PEFT's files give them."""
    parts = [part for part in (base.get_input_embeddings(), base.get_output_embeddings()) if part is not None]
    return {
        f"base_model.{prefix}.{name}": parameter
        for prefix, module in base.named_modules()
        if any(module is part for part in parts)
        for name, parameter in module.named_parameters()
    }


def _num_embeddings(base: PreTrainedModel) -> int:
    return int(base.get_input_embeddings().weight.shape[0])


def _shapes(weights: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a file, without reading them."""
    try:
        with safe_open(weights, framework="pt") as tensors:
            names: Iterable[str] = tensors.keys()
            return {name: list(tensors.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise AdapterError(f"{weights} is not a valid safetensors file ({error})") from None


def _vocabulary_of(name: str, revision: str | None) -> int | None:
    """Vocabulary size in a base model's checkpoint; ``None`` if that is not on this machine."""
    try:
        if is_gguf(name):
            config = load_config(build_options(ModelOptions, {"model_name_or_path": name}))
        else:
            config = AutoConfig.from_pretrained(name, revision=revision, local_files_only=True)
    except (SoftPromptError, OSError, ValueError):  # ValueError: it needs trust_remote_code
        return None
    return getattr(config.get_text_config(), "vocab_size", None)
