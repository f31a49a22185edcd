"""The choice of the next token of one row: greedy, or sampled with a random generator of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class Sampling:
    """How a text is generated.

    Attributes:
        max_new_tokens: most tokens, at least 1.
        temperature: 0 for the most probable token.
        top_p: sample from the most probable tokens whose probabilities add up to this; 1 for all.
        top_k: sample from this many most probable tokens; 0 for all.
        seed: of the row's random generator; ``None`` for a random one.
        stop: texts that end generation; they are not part of the result.
        logprobs: number of alternatives to report for each token; ``None`` for no log-probabilities at all.
        end_token_ids: tokens that end generation; they are not part of the text.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    end_token_ids: tuple[int, ...] = ()


class Sampler:
    """Chooses the tokens of one row; its choice does not depend on other rows."""

    def __init__(self, sampling: Sampling) -> None:
        self.greedy = sampling.temperature == 0
        self._warpers = LogitsProcessorList()
        if self.greedy:
            return
        self._random = torch.Generator()  # on the CPU, so that a seed gives the same text on all devices
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)
        self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def choose(self, logits: Tensor) -> int:
        """The next token, given its logits ``[V]`` in float32."""
        if self.greedy:
            return int(logits.argmax())
        scores: Any = self._warpers(None, logits[None])
        probabilities = scores[0].softmax(-1).cpu()
        # As torch.multinomial does, but without its error for NaN, which would end the other rows of the batch too.
        times = torch.empty_like(probabilities).exponential_(generator=self._random)
        return int((probabilities / times).argmax())
