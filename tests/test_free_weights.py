"""Weights of the base that a caller sets free beside the prompt get the gradient of a plain forward."""

import pytest
import torch

import tiny
from plan_tools import plan_of
from softprompt import PromptTuningConfig, get_peft_model
from softprompt.engine import plans

P = 5
ROWS = tiny.ids(7, 3, 5, 1)


def make(family, **more):
    model = get_peft_model(tiny.fresh(family), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, **more))
    with torch.no_grad():
        model.prompt.copy_(tiny.prompt_for(model.base_model, P))
    return model


def batch():
    values, mask = tiny.pad(ROWS)
    return {"input_ids": values, "attention_mask": mask, "labels": values.masked_fill(mask == 0, -100)}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check(model, given, losses):
    found = gradients(model, model(**given).loss)
    expected = gradients(model, torch.cat(losses).mean())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-6, name


@pytest.mark.parametrize("tokens_per_pack", [1024, 9])
@pytest.mark.parametrize("logits", [1 << 22, 1])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gpt_neo", "opt350"])
def test_all_weights(family, logits, tokens_per_pack, monkeypatch):
    """The head and tied embeddings too; in one pack or several, with logits of all positions or one at a time."""
    monkeypatch.setattr("softprompt.engine.loss.LOGITS_PER_CHUNK", logits)
    monkeypatch.setitem(plans.TOKENS_PER_PACK, "cpu", tokens_per_pack)
    model = make(family)
    model.base_model.requires_grad_(True)
    check(model, batch(), [tiny.plain_losses(model.base_model, model.prompt, row, row) for row in ROWS])


def test_lora_and_prompt(monkeypatch):
    peft = pytest.importorskip("peft")
    monkeypatch.setitem(plans.TOKENS_PER_PACK, "cpu", 9)
    model = make("llama")
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "lm_head"], init_lora_weights=False)
    model.base_model.add_adapter(lora)
    assert sum("lora" in name for name, p in model.named_parameters() if p.requires_grad) == 10
    check(model, batch(), [tiny.plain_losses(model.base_model, model.prompt, row, row) for row in ROWS])


def test_behind_the_text():
    """The text's own hidden states depend on the weights."""
    model = make("llama", prompt_placement="suffix")
    model.base_model.requires_grad_(True)
    row = ROWS[0]
    labels = row.masked_fill(torch.arange(7) < 4, -100)
    embeds = model.word_embeddings(row)
    logits = model.base_model(inputs_embeds=torch.cat([embeds[:4], model.prompt, embeds[4:]])[None]).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[4 + P - 1 : -1], row[4:], reduction="none")
    check(model, {"input_ids": row[None], "labels": labels[None]}, [losses])


def test_packs_leave_other_gradients_alone():
    """The recipes freeze the base; what else takes a gradient is not written to on the way."""
    from softprompt.engine.accumulate import mean_loss

    model = make("llama")
    model.base_model.requires_grad_(True)
    rows = [plan_of(P, [row], [row]) for row in ROWS]
    mean_loss(model.base_model, rows, model.prompt).backward()
    assert model.prompt.grad is not None
    assert all(parameter.grad is None for parameter in model.base_model.parameters())
