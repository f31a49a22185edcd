"""Hidden states of a frozen model at the last token of texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ....data.tokenize import Encoder
from ....types import Row

ROWS_PER_BATCH = 16


class HiddenStates:
    """Hidden states of rows, computed once per text."""

    def __init__(self, model: PreTrainedModel, encoder: Encoder) -> None:
        self._model = model
        self._encoder = encoder
        self._kept: dict[tuple[int, ...], Tensor] = {}

    def of(self, rows: Sequence[Row]) -> Tensor:
        """Hidden states ``[N, L, D]`` of rows after each of the L layers, float32 on the CPU."""
        texts = [example.input_ids for example in self._encoder.encode_all(rows, with_label=False)]
        new = sorted(set(texts) - self._kept.keys(), key=lambda text: (len(text), text))
        for start in range(0, len(new), ROWS_PER_BATCH):
            batch = new[start : start + ROWS_PER_BATCH]
            self._kept.update(zip(batch, last_states(self._model, batch), strict=True))
        return torch.stack([self._kept[text] for text in texts])


@torch.no_grad()
def last_states(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """Hidden states ``[B, L, D]`` at the last token of each text, from one plain call on a right-padded batch."""
    lengths = torch.tensor([len(text) for text in texts], device=model.device)
    ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True).to(model.device)
    mask = (torch.arange(ids.shape[1], device=model.device) < lengths[:, None]).long()
    output = model.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    rows = torch.arange(len(texts), device=model.device)
    by_layer = output.hidden_states[1:]  # the first are the input embeddings of the last token, the same for all texts
    return torch.stack([states[rows, lengths - 1] for states in by_layer], dim=1).float().cpu()
