"""Models of known shapes with random weights, to measure speed without the weights."""

from __future__ import annotations

from typing import Any

import torch

from ...config.options import nearest
from ...errors import ConfigError

SHAPES = ("bloomz-560m",)


def random_base(shape: str) -> Any:
    """A base model of a known shape, float32, in ``eval()``.

    Raises:
        ConfigError: the shape is unknown.
    """
    from transformers import BloomConfig, BloomForCausalLM

    if shape not in SHAPES:
        raise ConfigError(f"unknown shape {shape!r}{nearest(shape, SHAPES)} (known: {', '.join(SHAPES)})")
    # bigscience/bloomz-560m's config.json: 24 layers, hidden size 1024, 16 heads, 250,880 vocabulary entries.
    with torch.device("meta"):  # avoids a temporary copy of the embeddings for the output matrix
        model = BloomForCausalLM(BloomConfig(vocab_size=250_880, hidden_size=1024, n_layer=24, n_head=16))
    model.to_empty(device="cpu").tie_weights()
    torch.manual_seed(0)
    model.init_weights()
    return model.requires_grad_(False).eval()
