"""Several packs with one pass over the prompt."""

import pytest
import torch

import tiny
from plan_tools import plan_of
from softprompt.engine import loss as engine_loss
from softprompt.engine import runner as running
from softprompt.engine.accumulate import mean_loss
from softprompt.engine.plans import packs
from softprompt.engine.runner import ModelRunner, backends
from test_engine import assert_near, batch

SOME = ["llama", "mistral", "gemma2", "gemma3", "bloom", "gpt2", "opt350", "mpt", "falcon_alibi", "gpt_neo"]


@pytest.fixture(params=["packed", "levelwise"])
def backend(request, family, monkeypatch):
    if request.param not in backends(tiny.base(family).base_model):
        pytest.skip(f"{family} runs level by level only")
    monkeypatch.setattr(running, "backends", lambda _: (request.param,))


def packed(rows, labels, virtual, tokens=14):
    """Plans of a few rows each."""
    stretches = list(packs([len(row) for row in rows], tokens))
    assert len(stretches) > 2
    return [plan_of(virtual, rows[part.start : part.stop], labels[part.start : part.stop]) for part in stretches]


def check_packs(model, tolerance, virtual=6):
    """Loss and gradient of several packs are those of each row alone, and of one plan."""
    rows, labels = batch()
    prompt = tiny.prompt_for(model, virtual)
    plain = [tiny.plain_losses(model, prompt, *pair) for pair in zip(rows, labels, strict=True)]
    expected = torch.cat(plain).mean()
    (reference,) = torch.autograd.grad(expected, prompt)
    for plans in ([plan_of(virtual, rows, labels)], packed(rows, labels, virtual)):
        loss = mean_loss(model, plans, prompt)
        (gradient,) = torch.autograd.grad(loss, prompt)
        assert loss.shape == ()
        assert gradient.dtype == prompt.dtype
        assert_near(loss.detach(), expected.detach().to(loss.dtype), tolerance)
        assert_near(gradient, reference, tolerance)


@pytest.mark.parametrize("family", SOME)
def test_packs_are_one_plan_float64(family, backend):
    with tiny.float64():
        check_packs(tiny.base(family, torch.float64), 1e-8 if family == "bloom" else 1e-9)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "mpt"])
def test_packs_are_one_plan_float32(family, backend):
    check_packs(tiny.base(family), 1e-5)


def two_packs(virtual=5, seed=3):
    a, b = tiny.ids(6, 9, seed=seed)
    return [plan_of(virtual, [row], [row]) for row in (a, b)]


@pytest.mark.parametrize("family", ["llama"])
def test_the_prompt_runs_once(family, backend, monkeypatch):
    """Once forward and once backward, whatever the number of packs."""
    model = tiny.base(family)
    rows, labels = batch()
    plans = packed(rows, labels, 5)
    prompt = tiny.prompt_for(model)
    widths, compilations, backwards = [], [], []
    real = ModelRunner.prefill_prompt
    monkeypatch.setattr(ModelRunner, "prefill_prompt", lambda *given: compilations.append(1) or real(*given))

    def watch(module, args, kwargs):
        embeds = kwargs["inputs_embeds"]
        widths.append(embeds.shape[1])
        if embeds.requires_grad:
            embeds.register_hook(lambda grad: backwards.append(grad.shape[1]))

    hook = model.base_model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        mean_loss(model, plans, prompt).backward()
    finally:
        hook.remove()
    assert compilations == [1]
    assert widths[0] == 5
    assert backwards == [5], "text takes no gradient"
    if running.backends(None) == ("packed",):
        assert widths[1:] == [plan.tree.num_tokens - 5 for plan in plans]
    assert prompt.grad.abs().sum() > 0


@pytest.mark.parametrize("several", [False, True], ids=["one-plan", "packs"])
def test_count_divides_and_factors_multiply(several):
    """The divisor is the caller's (tokens of other steps too), and whatever follows scales the gradient."""
    model = tiny.base("llama")
    prompt = tiny.prompt_for(model)
    plans = two_packs() if several else two_packs()[:1]
    count = sum(len(plan.targets) for plan in plans)
    mean = mean_loss(model, plans, prompt)
    (gradient,) = torch.autograd.grad(mean, prompt)
    for divisor in (40, torch.tensor(40)):
        loss = mean_loss(model, plans, prompt, divisor)
        torch.testing.assert_close(loss, mean * count / 40)
        torch.testing.assert_close(torch.autograd.grad(loss, prompt)[0], gradient * count / 40)
    scaled = mean_loss(model, plans, prompt).square() / 7
    assert_near(torch.autograd.grad(scaled, prompt)[0], gradient * 2 * mean.detach() / 7, 1e-5)
    (mean_loss(model, plans, prompt) + mean_loss(model, plans, prompt)).backward()
    torch.testing.assert_close(prompt.grad, 2 * gradient)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"])
def test_without_gradient(context, monkeypatch):
    """Evaluation of a prompt that could be trained: the same loss, and no backward pass on the way."""
    model = tiny.base("llama")
    prompt = tiny.prompt_for(model)
    expected = mean_loss(model, two_packs(), prompt).detach()

    def refuse(*_, **__):
        raise AssertionError("a gradient was computed")

    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    monkeypatch.setattr(torch.autograd, "grad", refuse)
    with context():
        loss = mean_loss(model, two_packs(), prompt)
        assert not loss.requires_grad
        frozen = mean_loss(model, two_packs(), prompt.detach())
    torch.testing.assert_close(loss.clone(), expected)
    torch.testing.assert_close(frozen.clone(), expected)
    assert not mean_loss(model, two_packs(), prompt.detach()).requires_grad


def test_gradient_goes_on_to_what_made_the_prompt():
    """A reparametrized prompt, in a number type of its own."""
    model = tiny.base("llama")
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    mixing = torch.randn(3, tiny.WIDTH, dtype=torch.float64)
    plans = two_packs()
    loss = mean_loss(model, plans, weight @ mixing)
    (gradient,) = torch.autograd.grad(loss, weight)
    prompt = (weight @ mixing).detach().requires_grad_()
    (reference,) = torch.autograd.grad(mean_loss(model, plans, prompt), prompt)
    assert gradient.dtype == reference.dtype == torch.float64
    torch.testing.assert_close(gradient, reference @ mixing.T)


def test_packs_without_text_or_supervision():
    model = tiny.base("llama")
    prompt = tiny.prompt_for(model)
    plans = two_packs()
    empty = torch.empty(0, dtype=torch.long)
    row = tiny.ids(4)[0]
    nothing = [empty, empty]
    idle = [plan_of(5, nothing, nothing), plan_of(5, [row], [torch.full_like(row, -100)])]
    label = plan_of(5, [row[:1], empty], [row[:1], empty])
    for more in (idle, [label]):
        loss = mean_loss(model, [*plans, *more], prompt)
        (gradient,) = torch.autograd.grad(loss, prompt)
        whole = torch.cat([engine_loss.token_losses(model, plan, prompt) for plan in [*plans, *more]]).mean()
        torch.testing.assert_close(loss, whole)
        torch.testing.assert_close(gradient, torch.autograd.grad(whole, prompt)[0], rtol=1e-4, atol=1e-5)


def test_the_base_takes_no_gradient():
    model = tiny.fresh("llama").requires_grad_(False)
    mean_loss(model, two_packs(), tiny.prompt_for(model)).backward()
    assert all(parameter.grad is None for parameter in model.parameters())


# -- compiled prompts --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SOME)
def test_a_compiled_prompt_reads_as_the_prompt(family, backend):
    """Losses after it are those after the prompt; if it has a history, so is the gradient."""
    with tiny.float64():
        model = tiny.base(family, torch.float64)
        rows, labels = batch()
        prompt = tiny.prompt_for(model)
        plan = plan_of(len(prompt), rows, labels)
        plain = [tiny.plain_losses(model, prompt, *pair) for pair in zip(rows, labels, strict=True)]
        expected = torch.cat(plain)
        with torch.no_grad():
            got = engine_loss.token_losses(model, plan, ModelRunner(model).prefill_prompt(prompt))
        tolerance = 1e-8 if family == "bloom" else 1e-9
        assert_near(got, expected.detach(), tolerance)
        through = engine_loss.token_losses(model, plan, ModelRunner(model).prefill_prompt(prompt))
        (ours,) = torch.autograd.grad(through.sum(), prompt)
        assert_near(ours, torch.autograd.grad(expected.sum(), prompt)[0], tolerance)
