"""Batches of more tokens than are computed at once: through the drop-in forward and through the options of a run."""

import pytest
import torch
import torch.nn.functional as F

import tiny
from softprompt import PromptTuningConfig, get_peft_model
from softprompt.engine import plans
from softprompt.engine import runner as running
from softprompt.engine.prefix_sharing import branch_tokens
from softprompt.inference.classifier import Classes
from softprompt.models.device import seed_everything
from softprompt.training.objectives import Classification, class_indices
from softprompt.training.step import forward_backward
from softprompt.types import Example

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


# -- cross-entropy between classes -------------------------------------------------------------------


LABELS = ((40, 2), (41, 42, 2), (41, 43, 2), (41, 44, 45, 2), (46, 47, 48, 2))
CHOICES = Classes(tuple("abcde"), LABELS)
ROWS = [Example(tuple(row.tolist()), (), name) for row, name in zip(tiny.ids(9, 5, 12, 1, 7), "abcda", strict=True)]


def class_step(base, prompt, parts, weights=None):
    """Loss and gradient of a step between classes; each part is a pack."""
    objective = Classification(base=base, placement="prefix", tokens_per_pack=1000, classes=CHOICES, weights=weights)
    prompt.grad = None
    loss, count = forward_backward(objective, prompt, parts)
    assert count == len(ROWS)
    return loss, prompt.grad


@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 2.0, 0.0, 3.0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_classes_in_packs_are_those_of_rows_alone(family, weights):
    """Against plain forwards of each label after each row, in float64, in one pack and in several."""
    with tiny.float64():
        base = tiny.base(family, torch.float64)
        prompt, given = tiny.prompt_for(base), None if weights is None else torch.tensor(weights)
        scores = torch.stack([torch.stack([tiny.plain_score(base, prompt, row.input_ids, label) for label in LABELS])
                              for row in ROWS])  # fmt: skip
        gold = torch.tensor(class_indices(ROWS, CHOICES))
        loss = F.cross_entropy(scores, gold, weight=given, reduction="sum") / len(ROWS)
        (gradient,) = torch.autograd.grad(loss, prompt)
        for parts in ([ROWS], [ROWS[:2], ROWS[2:3], ROWS[3:]]):
            found = class_step(base, prompt, parts, weights=given)
            assert found[0] == pytest.approx(loss.item(), rel=1e-9)
            torch.testing.assert_close(found[1], gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_packs_of_classes_share_one_pass_over_the_prompt(family, monkeypatch):
    """The tokens that go through the first layer: those of the prompt once, whatever the number of packs."""
    base, tokens = tiny.fresh(family).requires_grad_(False), []
    prompt = tiny.prompt_for(base)
    real = running.ModelRunner.compute
    monkeypatch.setattr(
        running.ModelRunner, "compute", lambda *given, **more: tokens.append(len(given[2])) or real(*given, **more)
    )
    class_step(base, prompt, [ROWS])
    (at_once,) = tokens
    tokens.clear()
    class_step(base, prompt, [[row] for row in ROWS])
    assert tokens[0] == len(prompt)
    assert len(tokens) == 1 + len(ROWS)
    assert sum(tokens) == at_once == len(prompt) + sum(len(row.input_ids) + branch_tokens(LABELS) for row in ROWS)
