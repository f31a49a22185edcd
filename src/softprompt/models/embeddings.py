"""Ways to start a prompt. Each gives ``[rows, D]`` in float32, on the embedding's device.

The rows come from *calling* the base's embedding module, not from its weight: families that scale
embeddings in the module (Gemma 3) are caught scaled. The draws are PEFT's, so a seed gives PEFT's prompt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config.adapter_config import PromptTuningConfig, PromptTuningInit
from ..errors import ConfigError


def initial_rows(
    config: PromptTuningConfig, rows: int, word_embeddings: nn.Module, tokenizer: Any = None
) -> Tensor | None:
    """Start values ``[rows, D]`` as ``config`` asks; ``None`` for RANDOM, which ``nn.Embedding`` has drawn already.

    ``tokenizer`` serves TEXT; without one, the config's is loaded.

    Raises:
        ConfigError: the text has no tokens, or tokens that the base model does not know.
    """
    if config.prompt_tuning_init == PromptTuningInit.SAMPLE_VOCAB:
        return sample_vocab(rows, word_embeddings)
    if config.prompt_tuning_init == PromptTuningInit.TEXT:
        return from_text(config, rows, word_embeddings, tokenizer or _load_tokenizer(config))
    return None


def sample_vocab(rows: int, word_embeddings: nn.Module) -> Tensor:
    """Embeddings of ``rows`` vocabulary entries, drawn uniformly with replacement from torch's global generator."""
    return embed(torch.randint(0, vocabulary_size(word_embeddings), (rows,)), word_embeddings)


def from_text(config: PromptTuningConfig, rows: int, word_embeddings: nn.Module, tokenizer: Any) -> Tensor:
    """Embeddings of the init text's tokens (special tokens included), cut or repeated to ``rows``."""
    ids = list(tokenizer(config.prompt_tuning_init_text)["input_ids"])
    if not ids:
        raise ConfigError(
            f"prompt_tuning_init_text {config.prompt_tuning_init_text!r} has no tokens; give a text with words"
        )
    size = vocabulary_size(word_embeddings)
    if max(ids) >= size:
        raise ConfigError(
            f"the tokenizer {config.tokenizer_name_or_path!r} gives token {max(ids)}, but the base model knows "
            f"only {size}; use the base model's own tokenizer"
        )
    repeated = ids * -(-rows // len(ids))
    return embed(torch.tensor(repeated[:rows]), word_embeddings)


def _load_tokenizer(config: PromptTuningConfig) -> Any:
    from transformers import AutoTokenizer

    # Remote code must never come in through an adapter's config, which may be a stranger's.
    kwargs = {k: v for k, v in (config.tokenizer_kwargs or {}).items() if k != "trust_remote_code"}
    return AutoTokenizer.from_pretrained(config.tokenizer_name_or_path, **kwargs)


def embed(ids: Tensor, word_embeddings: nn.Module) -> Tensor:
    """Input embeddings ``[n, D]`` of token ids ``[n]``, in float32, detached."""
    weight = next(word_embeddings.parameters())
    with torch.no_grad():
        rows: Tensor = word_embeddings(ids.to(weight.device))
    return rows.detach().clone().to(torch.float32)


def vocabulary_size(word_embeddings: nn.Module) -> int:
    """Rows of the embedding table."""
    return int(getattr(word_embeddings, "num_embeddings", next(word_embeddings.parameters()).shape[0]))


def embedding_rms(word_embeddings: nn.Module) -> float:
    """Root mean square of the numbers in the base's input embeddings, from some thousands of entries."""
    size = vocabulary_size(word_embeddings)
    ids = torch.arange(0, size, max(1, size // 4096))
    return float(embed(ids, word_embeddings).square().mean().sqrt())
