"""Batches of more tokens than are computed at once: through the drop-in forward and through the options of a run."""

import pytest
import torch

import tiny
from softprompt import PromptTuningConfig, get_peft_model
from softprompt.device import seed_everything
from softprompt.engine import plans

FAMILIES = ["llama", "gemma3", "bloom", "mpt"]


def prompted(family):
    torch.manual_seed(0)
    return get_peft_model(tiny.fresh(family), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))


def padded():
    ids, mask = tiny.left_pad(tiny.ids(9, 5, 12, 1, 7))
    labels = ids.masked_fill((mask == 0) | (ids % 3 == 0), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("num_items", [None, 17])
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_in_packs_is_forward_at_once(family, num_items, monkeypatch):
    found = []
    for most in (1000, 10):
        monkeypatch.setattr(plans, "TOKENS_PER_PACK", {"cpu": most, "cuda": most})
        model = prompted(family)
        output = model(**padded(), num_items_in_batch=num_items)
        (output.loss * 3).backward()
        found.append((output.loss.detach(), model.prompt.grad, output.logits.detach()))
    for whole, cut in zip(*found, strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)


def test_packs_hold_no_more_than_they_should(monkeypatch):
    from softprompt.engine import accumulate

    monkeypatch.setattr(plans, "TOKENS_PER_PACK", {"cpu": 10, "cuda": 10})
    sizes, real = [], accumulate.token_losses
    monkeypatch.setattr(
        accumulate,
        "token_losses",
        lambda base, plan, prompt: sizes.append(len(plan.places)) or real(base, plan, prompt),
    )
    prompted("llama")(**padded()).loss.backward()
    assert sizes == [9, 5, 12, 8]


def test_full_determinism_is_torchs_switch():
    try:
        seed_everything(3, full_determinism=True)
        first = torch.rand(3)
        assert torch.are_deterministic_algorithms_enabled()
        seed_everything(3, full_determinism=True)
        assert torch.equal(torch.rand(3), first)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_runs_under_full_determinism(family):
    model = prompted(family)
    model(**padded()).loss.backward()
    expected, model.prompt.grad = model.prompt.grad, None
    torch.use_deterministic_algorithms(True)
    try:
        model(**padded()).loss.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(model.prompt.grad, expected, rtol=0, atol=0)
