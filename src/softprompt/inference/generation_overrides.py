"""Private methods of transformers' ``generate`` that count a prompt's tokens or call the model without a prompt.

This is the one module that reaches them. Where a version of transformers lacks one, a public way is taken, or what
depends on it is refused.
"""

from __future__ import annotations

import functools
from typing import Any

from transformers import LogitsProcessorList, PreTrainedModel, UnbatchedClassifierFreeGuidanceLogitsProcessor

from ..errors import ConfigError

_STATIC_CACHE = "_prepare_static_cache"
_LOGITS_PROCESSORS = "_get_logits_processor"


def overrides(base: PreTrainedModel, num_virtual_tokens: int) -> dict[str, Any]:
    """Methods for the variant of ``base`` that generates with a prompt in each row."""
    found: dict[str, Any] = {}
    if prepare := getattr(base, _STATIC_CACHE, None):

        @functools.wraps(prepare)
        def static_cache(*, max_cache_len: int, **inputs: Any) -> Any:
            return prepare(max_cache_len=max_cache_len + num_virtual_tokens, **inputs)

        found[_STATIC_CACHE] = static_cache
    if processors := getattr(base, _LOGITS_PROCESSORS, None):
        found[_LOGITS_PROCESSORS] = processors  # guidance_scale calls the model it belongs to without a prompt
    return found


def check_static_cache(base: PreTrainedModel, cache_implementation: str) -> None:
    """Refuse a static cache where it would be wrong.

    Raises:
        ConfigError: the model type, or this version of transformers, cannot have one with a prompt.
    """
    if "static" not in cache_implementation:
        return
    if base.config.model_type == "gpt_neo":
        raise ConfigError(
            "gpt_neo gives wrong tokens with a static cache in transformers; leave cache_implementation out"
        )
    if not hasattr(base, _STATIC_CACHE):
        raise ConfigError(
            "this version of transformers makes no static cache with room for a prompt; leave cache_implementation out"
        )


def with_guidance(base: PreTrainedModel, options: dict[str, Any]) -> dict[str, Any]:
    """Options of ``generate`` with ``guidance_scale`` as a logits processor where ``overrides`` cannot direct it."""
    config = options.get("generation_config") or base.generation_config
    scale = options.get("guidance_scale", getattr(config, "guidance_scale", None))
    if hasattr(base, _LOGITS_PROCESSORS) or scale is None or scale == 1:
        return options
    options = {**options, "guidance_scale": 1.0}
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(
        scale,
        base,
        unconditional_ids=options.pop("negative_prompt_ids", None),
        unconditional_attention_mask=options.pop("negative_prompt_attention_mask", None),
        use_cache=options.get("use_cache", True),
    )
    return {**options, "logits_processor": LogitsProcessorList([guidance, *(options.get("logits_processor") or ())])}
