"""PEFT, used as its documentation recommends."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import MissingExtraError

FIRST_ADAPTER = "task0"


def peft_model(base: Any, prompts: Sequence[Tensor]) -> Any:
    """PEFT's model with an adapter ``task0``, ``task1``, ... for each prompt; the first is active.

    Raises:
        MissingExtraError: PEFT is not installed.
    """
    try:
        import peft
    except ImportError:
        raise MissingExtraError("peft", "bench", "comparing with PEFT") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a deprecated name of transformers
        model: Any = None
        for number, prompt in enumerate(prompts):
            config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(prompt))
            if model is None:
                model = peft.get_peft_model(base, config, adapter_name=FIRST_ADAPTER)
            else:
                model.add_adapter(f"task{number}", config)
            with torch.no_grad():
                prompt_of(model, number).copy_(prompt)
    return model


def prompt_of(model: Any, task: int = 0) -> Tensor:
    """The parameter ``[P, D]`` of an adapter."""
    weight: Tensor = model.prompt_encoder[f"task{task}"].embedding.weight
    return weight


def guide_evaluation(model: Any, tokenizer: Any, batch: dict[str, Tensor]) -> tuple[float, list[str]]:
    """A step of the guide's evaluation: the loss, and the most probable token at every position as text."""
    with torch.no_grad():
        outputs = model(**batch)
    loss = outputs.loss.detach().float().item()
    texts: list[str] = tokenizer.batch_decode(
        torch.argmax(outputs.logits, -1).detach().cpu().numpy(), skip_special_tokens=True
    )
    return loss, texts
