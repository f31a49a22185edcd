"""Models of known shapes with random weights, for speed where the weights cannot be had."""

from __future__ import annotations

from typing import Any

import torch

from ...config.options import nearest
from ...errors import ConfigError

SHAPES = ("bloomz-560m",)


def random_base(shape: str) -> Any:
    """A base model of a known shape, float32, in ``eval()``.

    Raises:
        ConfigError: the shape is not known.
    """
    from transformers import BloomConfig, BloomForCausalLM

    if shape not in SHAPES:
        raise ConfigError(f"shape {shape!r} is not known; there is {', '.join(SHAPES)}{nearest(shape, SHAPES)}")
    # bigscience/bloomz-560m's config.json: 24 layers of width 1024, 16 heads, 250,880 vocabulary entries.
    with torch.device("meta"):  # or the output matrix, a copy of the embeddings, would be in memory for a moment
        model = BloomForCausalLM(BloomConfig(vocab_size=250_880, hidden_size=1024, n_layer=24, n_head=16))
    model.to_empty(device="cpu").tie_weights()
    torch.manual_seed(0)
    model.init_weights()
    return model.requires_grad_(False).eval()
