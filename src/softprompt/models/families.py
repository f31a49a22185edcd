"""Model families: which are supported, their context length, and the names in their configs."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..errors import BaseModelError, ConfigError

VERIFIED = {
    "bloom": "BLOOM, BLOOMZ",
    "cohere": "Command R",
    "falcon": "Falcon",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3 with images (on text)",
    "gemma3_text": "Gemma 3",
    "gpt2": "GPT-2",
    "gpt_bigcode": "StarCoder, SantaCoder",
    "gpt_neo": "GPT-Neo",
    "gpt_neox": "GPT-NeoX, Pythia",
    "gptj": "GPT-J",
    "granite": "Granite 3",
    "llama": "Llama, SmolLM, TinyLlama",
    "mistral": "Mistral",
    "mpt": "MPT",
    "olmo2": "OLMo 2",
    "opt": "OPT",
    "phi": "Phi-1, Phi-2",
    "phi3": "Phi-3, Phi-4",
    "qwen2": "Qwen 2, Qwen 2.5",
    "qwen3": "Qwen 3",
    "smollm3": "SmolLM3",
    "stablelm": "StableLM",
}
"""Model types for which tests compare the engine with a plain forward, to 1e-9 (``docs/architectures.md``).

Other decoders must pass ``engine/selfcheck.py`` first.
"""

_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_ATTENTION_CACHES = {DynamicLayer, DynamicSlidingWindowLayer}
_RECURRENT = {"lfm2", "lfm2_moe", "lfm3", "minimax"}  # others are recognised by their class or their layers
_BIDIRECTIONAL = {"bert-generation", "xlnet"}  # besides those with a masked-LM head
# Learned positions and tables of fixed size: with more positions a model fails, or reads beyond the table.
_FIXED_POSITIONS = {"gpt2", "gpt_bigcode", "gpt_neo", "gptj", "codegen", "opt", "biogpt", "mpt"}


def refuse(config: transformers.PretrainedConfig, name: str) -> None:
    """Raise BaseModelError for a kind of model on which soft prompts would fail, or give wrong results."""
    kind = config.model_type
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    wanted = "softprompt supports causal language models"
    if config.is_encoder_decoder:
        raise BaseModelError(f"{name} is an encoder-decoder model ({kind}); {wanted}")
    masked = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING or kind in _BIDIRECTIONAL
    if masked and not getattr(config, "is_decoder", False):
        raise BaseModelError(f"{name} reads in both directions ({kind}); {wanted}")
    if model_class is None and "AutoModelForCausalLM" not in (getattr(config, "auto_map", None) or {}):
        raise BaseModelError(f"{name} is not a causal language model ({kind}); {wanted}")
    trained_as = (config.architectures or [""])[0]
    if "For" in trained_as and not trained_as.endswith(("ForCausalLM", "ForConditionalGeneration")):
        raise BaseModelError(f"{name} is a {trained_as}; {wanted}")
    if kind in _RECURRENT:
        raise recurrent(name, kind)
    _refuse_layers(config, name)
    if getattr(model_class, "_is_stateful", False):
        raise recurrent(name, kind)


def _refuse_layers(config: transformers.PretrainedConfig, name: str) -> None:
    """Raise BaseModelError unless each layer caches the keys and values of its tokens, and nothing else."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ()) - _ATTENTION_LAYERS
    try:
        caches = {type(layer) for layer in DynamicCache(config=config).layers} - _ATTENTION_CACHES
    except (AttributeError, KeyError, TypeError, ValueError):
        caches = set()  # a config with names of its own: the self-check decides
    odd = sorted(kinds) or sorted(cache.__name__ for cache in caches)
    if any(word in each for each in odd for word in ("linear", "Linear", "conv", "hybrid", "recurrent", "mamba")):
        raise recurrent(name, config.model_type)
    if odd:
        raise BaseModelError(
            f"{name} ({config.model_type}) has layers that do not each keep plain keys and values "
            f"({', '.join(odd)}); softprompt supports models where all of them do"
        )


def is_verified(model: transformers.PreTrainedModel) -> bool:
    """Whether tests cover a model: its type is verified, and its class is transformers' own, not a subclass."""
    # FSDP2 makes the model's class a subclass in torch.
    own = next(kind for kind in type(model).__mro__ if not kind.__module__.startswith("torch."))
    return model.config.model_type in VERIFIED and own.__module__.startswith("transformers.models.")


def recurrent(name: str, kind: str) -> BaseModelError:
    """The error for a model with a recurrent state, which a KV cache does not hold."""
    return BaseModelError(f"{name} ({kind}) is recurrent or hybrid; softprompt supports models with attention only")


def context_length(config: transformers.PretrainedConfig) -> int | None:
    """The model's number of positions, or ``None`` without a limit (ALiBi).

    For rotary scalings that depend on the length (``dynamic``, ``longrope``) it is the length up to which they do not
    scale: beyond it, a row's result would depend on the other rows of its batch.
    """
    text = config.get_text_config()
    # MPT has ALiBi as well, but computes biases for max_seq_len positions only.
    if text.model_type == "bloom" or (text.model_type == "falcon" and text.alibi):
        return None
    names = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
    found = (getattr(text, name, None) for name in names)
    length = next((length for length in found if isinstance(length, int) and length > 0), None)
    original = _unscaled_length(text)
    return length if original is None else original if length is None else min(length, original)


def check_depth(config: transformers.PretrainedConfig, depth: int) -> None:
    """Refuse rows that are too long to be computed correctly. Other models may exceed their training length.

    Args:
        depth: number of tokens of the longest row, including virtual tokens.

    Raises:
        ConfigError: more tokens than a fixed number of positions, or than length-dependent rotary scaling, allows.
    """
    limit = context_length(config)
    bound = config.get_text_config().model_type in _FIXED_POSITIONS or _unscaled_length(config) is not None
    if bound and limit is not None and depth > limit:
        raise ConfigError(
            f"a row has {depth} tokens, including virtual tokens, but the base model ({config.model_type}) has "
            f"{limit} positions; truncate texts (max_length) or use fewer virtual tokens"
        )


def _unscaled_length(config: transformers.PretrainedConfig) -> int | None:
    """Length up to which a length-dependent rotary scaling has no effect; ``None`` for other models.

    ``dynamic`` and ``longrope`` scale by the longest position of a call, so rows of a batch would affect each other.
    """
    text = config.get_text_config()
    given: Any = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = [each for each in given.values() if isinstance(each, dict)] or [given]
    lengths = []
    for each in nested:
        rope_type = each.get("rope_type", each.get("type"))
        if rope_type == "longrope":
            own = getattr(text, "original_max_position_embeddings", None)
            original = each.get("original_max_position_embeddings")
            lengths.append(own or original or text.max_position_embeddings)
        elif rope_type == "dynamic":  # some configs have an original length, which is not used
            lengths.append(text.max_position_embeddings)
    return min(lengths, default=None)


def base_facts(model: transformers.PreTrainedModel) -> dict[str, int | None]:
    """Embedding size, number of layers and number of attention heads of a base model.

    The embedding size is that of the input embeddings: in OPT-350m it differs from the hidden size.
    """
    config = model.config.get_text_config()

    def first(*names: str) -> int | None:
        return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)

    return {
        "token_dim": next(model.get_input_embeddings().parameters()).shape[1],
        "num_layers": first("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
        "num_attention_heads": first("num_attention_heads", "n_head", "num_heads", "n_heads"),
    }
