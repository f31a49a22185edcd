"""Adapters trained on a base whose vocabulary was enlarged: its embeddings travel with the adapter, as in PEFT's files.

A prompt was learned together with the rows of the new tokens, which are random and in no checkpoint of the base. PEFT
therefore writes the input embeddings and the head beside the prompt when their number is not the checkpoint's.
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

from .base import SIDE_FILES, load_config
from .errors import AdapterError, AdapterMismatchError, SoftPromptError
from .files import expand
from .hubfiles import FileAbsentError, find_file, snapshot
from .libraries import plain_errors
from .options import EMBEDDED_MODEL, ModelOptions, build_options

TOKENIZER_CONFIG = "tokenizer_config.json"


def own_tokenizer(adapter: str, *, trust_remote_code: bool = False, **hub: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside an adapter; ``None`` where there is none.

    Raises:
        BaseModelError: it cannot be read.
    """
    try:
        folder = find_file(adapter, TOKENIZER_CONFIG, **hub).parent
    except FileAbsentError:
        return None
    if not Path(expand(adapter)).is_dir():
        folder = snapshot(adapter, SIDE_FILES, **hub)
    with plain_errors(f"the tokenizer of {adapter}"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def grow(base: PreTrainedModel, weights: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Give the base as many embeddings as an adapter's file brings or, if it brings none, as its tokenizer has tokens.

    As in PEFT, new rows are drawn from the distribution of the old ones (here from a fixed seed, so that two loads are
    alike), and a base with rows to spare stays as it is.

    Args:
        weights: the adapter's weights file.
        tokenizer: the one beside the adapter.
    """
    here = _rows(base)
    kept = [shape[0] for name, shape in _shapes(weights).items() if name in embeddings(base)]
    wanted = kept[0] if kept else max(here, len(tokenizer) if tokenizer is not None else 0)
    if wanted == here:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base.resize_token_embeddings(wanted)
    if not kept:
        warnings.warn(
            f"the tokenizer beside the adapter has {wanted} tokens, the base model {here}; the embeddings of the new "
            "ones are untrained",
            stacklevel=4,
        )


def restore(base: PreTrainedModel, weights: Path, where: str, *, shared: bool = False) -> None:
    """Put the embeddings that an adapter's file brings, if any, into the base, as PEFT does.

    Args:
        where: what to call the adapter.
        shared: other adapters use the base too, so it must not change.

    Raises:
        AdapterMismatchError: their number is not the base's, or they would change a shared base.
        AdapterError: the file is damaged.
    """
    ours, theirs = embeddings(base), _shapes(weights)
    for name in ours.keys() & theirs.keys():
        if list(ours[name].shape) != theirs[name]:
            raise AdapterMismatchError(
                f"{where}: size mismatch: it brings embeddings {theirs[name]}, the base model's are "
                f"{list(ours[name].shape)}; call base.resize_token_embeddings({theirs[name][0]}) first, or load it by "
                "AutoPeftModelForCausalLM.from_pretrained"
            )
        with safe_open(weights, framework="pt") as tensors, torch.no_grad():
            value = tensors.get_tensor(name).to(ours[name])
            if value.equal(ours[name]):
                continue
            if shared:
                raise AdapterMismatchError(
                    f"{where} brings embeddings of its own, which the other adapters here were not trained with; load "
                    "it by itself"
                )
            ours[name].copy_(value)


def enlarged(base: PreTrainedModel, name: str | None, revision: str | None) -> dict[str, Tensor]:
    """What is to be saved beside a prompt: the embeddings of a base that has not as many as its checkpoint.

    Args:
        name, revision: of the base. It is looked for on this machine alone.
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


def _rows(base: PreTrainedModel) -> int:
    return int(base.get_input_embeddings().weight.shape[0])


def _shapes(weights: Path) -> dict[str, list[int]]:
    """Shapes of the tensors of a file, none of which is read."""
    try:
        with safe_open(weights, framework="pt") as tensors:
            names: Iterable[str] = tensors.keys()
            return {name: list(tensors.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise AdapterError(f"{weights} is not a valid safetensors file ({error})") from None


def _vocabulary_of(name: str, revision: str | None) -> int | None:
    """Size of the vocabulary of a base model as its checkpoint has it; ``None`` where that is not on this machine."""
    try:
        if name == EMBEDDED_MODEL or name.endswith(".gguf"):
            config = load_config(build_options(ModelOptions, {"model_name_or_path": name}))
        else:
            config = AutoConfig.from_pretrained(name, revision=revision, local_files_only=True)
    except (SoftPromptError, OSError, ValueError):  # ValueError: it needs code of its own
        return None
    return getattr(config.get_text_config(), "vocab_size", None)
