"""Gradient checkpointing under a prompt: the same numbers with less kept, on the packed and the level way."""

import pytest
import torch

import test_engine
import tiny
from plan_tools import plan_of
from softprompt.engine import runner as running
from softprompt.engine.loss import token_losses

FAMILIES = ["llama", "gemma3", "gpt2", "bloom", "mpt", "falcon_alibi", "gptj", "opt"]


def checkpointed(family):
    model = tiny.fresh(family).requires_grad_(False).eval()
    model.gradient_checkpointing_enable()
    return model


@pytest.mark.parametrize("backend", ["packed", "levelwise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_loss_and_gradient(family, backend, monkeypatch):
    if backend not in running.backends(tiny.base(family).base_model):
        pytest.skip(f"{family} runs level by level only")
    monkeypatch.setattr(running, "backends", lambda _: (backend,))
    # Not in tiny.float64(): its rule does not reach what the backward pass runs again.
    test_engine.check_rows(checkpointed(family), 2e-5)


def kept_bytes(model):
    """What a step's graph holds, beside the model's own numbers."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = tiny.ids(20, 20, 20)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_losses(model, plan_of(5, rows, rows), tiny.prompt_for(model)).sum()
    return sum(found.values())


def test_keeps_less():
    assert kept_bytes(checkpointed("llama")) < kept_bytes(tiny.base("llama")) / 3
