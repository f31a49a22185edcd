"""Initial values of a prompt: from a text, or sampled from the vocabulary.

Values are float32, on the device of the embeddings. Random numbers are drawn as in PEFT, so a seed gives PEFT's prompt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config.adapter_config import PromptTuningConfig, PromptTuningInit
from ..errors import ConfigError
from ..models.embeddings import embed, vocabulary_size


def initial_prompt(
    config: PromptTuningConfig, count: int, word_embeddings: nn.Module, tokenizer: Any = None
) -> Tensor | None:
    """Initial virtual tokens ``[count, D]``; ``None`` for RANDOM, which ``nn.Embedding`` has drawn already.

    Args:
        tokenizer: for TEXT; without one, the tokenizer that the config names is loaded.

    Raises:
        ConfigError: the text has no tokens, or tokens that the base model does not have.
    """
    if config.prompt_tuning_init == PromptTuningInit.SAMPLE_VOCAB:
        return sample_vocab(count, word_embeddings)
    if config.prompt_tuning_init == PromptTuningInit.TEXT:
        return from_text(config, count, word_embeddings, tokenizer or _load_tokenizer(config))
    return None


def sample_vocab(count: int, word_embeddings: nn.Module) -> Tensor:
    """Embeddings of ``count`` vocabulary entries, drawn uniformly with replacement from torch's global generator."""
    return embed(torch.randint(0, vocabulary_size(word_embeddings), (count,)), word_embeddings)


def from_text(config: PromptTuningConfig, count: int, word_embeddings: nn.Module, tokenizer: Any) -> Tensor:
    """Embeddings of the init text's tokens (special tokens included), cut or repeated to ``[count, D]``."""
    ids = list(tokenizer(config.prompt_tuning_init_text)["input_ids"])
    if not ids:
        raise ConfigError(
            f"prompt_tuning_init_text {config.prompt_tuning_init_text!r} has no tokens; give a text with words"
        )
    size = vocabulary_size(word_embeddings)
    if max(ids) >= size:
        raise ConfigError(
            f"the tokenizer {config.tokenizer_name_or_path!r} gives token {max(ids)}, but the base model has only "
            f"{size}; use the base model's own tokenizer"
        )
    repeated = ids * -(-count // len(ids))
    return embed(torch.tensor(repeated[:count]), word_embeddings)


def _load_tokenizer(config: PromptTuningConfig) -> Any:
    from transformers import AutoTokenizer

    # An adapter's config is untrusted, so it cannot turn remote code on.
    kwargs = {k: v for k, v in (config.tokenizer_kwargs or {}).items() if k != "trust_remote_code"}
    return AutoTokenizer.from_pretrained(config.tokenizer_name_or_path, **kwargs)
