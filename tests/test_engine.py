"""The engine against a plain, unbatched, unpadded forward of each row, on every family."""

from weakref import WeakSet

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

import tiny
from plan_tools import plan_of
from softprompt import ConfigError
from softprompt.engine import loss as engine_loss
from softprompt.engine import runner as running
from softprompt.engine.loss import hidden_states, token_losses
from softprompt.engine.plans import plan_candidates
from softprompt.engine.runner import ModelRunner, backends
from softprompt.engine.surgery.view import variant
from softprompt.inference import score
from softprompt.inference.score import score_labels
from test_tree import preorder, trees

CPU = torch.device("cpu")
LENGTHS = (5, 9, 13, 1, 5, 9, 5)
families = pytest.mark.parametrize("family", tiny.FAMILIES)


def batch():
    """Rows and labels: mixed lengths, one of length one, one that is all label, and a duplicate."""
    rows = tiny.ids(*LENGTHS)
    rows[6] = rows[0].clone()
    labels = [row.clone() for row in rows]
    for label in labels:
        label[::2] = -100
    labels[3] = rows[3].clone()
    labels[5] = rows[5].clone()
    labels[6] = labels[0].clone()
    return rows, labels


def assert_near(got, expected, tolerance):
    """Largest difference, relative to the largest number."""
    assert got.shape == expected.shape
    difference = (got - expected).abs().max() / expected.abs().max().clamp_min(1e-3)
    assert difference <= tolerance, f"differs by {difference:.1e}, allowed {tolerance:.0e}"


def check_rows(model, tolerance, virtual=11):
    """Loss of each token and gradient of the prompt are those of every row alone."""
    rows, labels = batch()
    prompt = tiny.prompt_for(model, virtual)
    got = token_losses(model, plan_of(virtual, rows, labels), prompt)
    got.sum().backward()
    ours, prompt.grad = prompt.grad, None
    expected = torch.cat([tiny.plain_losses(model, prompt, *pair) for pair in zip(rows, labels, strict=True)])
    expected.sum().backward()
    assert_near(got.detach(), expected.detach(), tolerance)
    assert prompt.grad.norm() > 1e-3, "the reference has a gradient to compare with"
    assert_near(ours, prompt.grad, tolerance)


def check_each_gradient(model, tolerance):
    """Every row of a batch sends its own gradient back, in a batch where all run together."""
    rows = tiny.ids(7, 7, 7)
    prompt = tiny.prompt_for(model)
    losses = token_losses(model, plan_of(len(prompt), rows, rows), prompt).view(3, 7).sum(1)
    for i, row in enumerate(rows):
        (got,) = torch.autograd.grad(losses[i], prompt, retain_graph=True)
        (expected,) = torch.autograd.grad(tiny.plain_losses(model, prompt, row, row).sum(), prompt)
        assert_near(got, expected, tolerance)


def check_scores(model, tolerance):
    """Label scores are those of text and label written out, an empty text and shared beginnings included."""
    texts = [row.tolist() for row in tiny.ids(5, 9, 1, 13)] + [[]]
    labels = [[7, 8, 9], [10], [7, 11]]
    prompt = tiny.prompt_for(model).detach()
    got = score_labels(model, prompt, texts, labels)
    expected = torch.stack(
        [torch.stack([tiny.plain_score(model, prompt, text, label) for label in labels]) for text in texts]
    )
    assert_near(got, expected.to(got.dtype), tolerance)


def draw_parents(data, count):
    """A forest in preorder."""
    return preorder(data.draw, count)


def check_forest(model, tree, tolerance):
    """Hidden states of a forest, and the gradient through it, are those of each root-to-node path alone."""
    embeds = tiny.prompt_for(model, tree.num_tokens)
    direction = tiny.prompt_for(model, tree.num_tokens, seed=9).detach()
    got = ModelRunner(model).forward(tree, embeds)
    (ours,) = torch.autograd.grad((got * direction).sum(), embeds)
    expected = torch.zeros_like(got)
    for node in range(len(tree.lengths)):
        if tree.lengths[node]:
            whole = [*tree.path(node), *tree.span(node)]
            alone = model.base_model(inputs_embeds=embeds[whole][None], use_cache=False).last_hidden_state[0]
            expected = expected.index_copy(0, torch.tensor(tree.span(node)), alone[-tree.lengths[node] :])
    (reference,) = torch.autograd.grad((expected * direction).sum(), embeds)
    assert_near(got.detach(), expected.detach(), tolerance)
    assert_near(ours, reference, tolerance)


@pytest.fixture(params=["packed", "levelwise"])
def backend(request, family, monkeypatch):
    if request.param not in backends(tiny.base(family).base_model):
        pytest.skip(f"{family} runs level by level only")
    monkeypatch.setattr(running, "backends", lambda _: (request.param,))


@families
def test_loss_and_gradient_float64(family, backend):
    with tiny.float64():
        check_rows(tiny.base(family, torch.float64), 1e-9)


@families
def test_loss_and_gradient_float32(family, backend):
    check_rows(tiny.base(family), 2e-5)


@families
def test_scores_float64(family, backend):
    with tiny.float64():
        check_scores(tiny.base(family, torch.float64), 1e-9)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "mpt"])
def test_scores_float32(family):
    check_scores(tiny.base(family), 1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "bloom", "mpt", "gpt2"])
def test_each_row_has_its_own_gradient(family):
    with tiny.float64():
        check_each_gradient(tiny.base(family, torch.float64), 1e-9)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "bloom", "mpt", "opt", "falcon_alibi", "gpt_neo"])
@settings(max_examples=10)
@given(tree=trees(longest=9, most=8))
def test_any_forest_is_each_path_alone(family, backend, tree):
    if tree.num_tokens:
        with tiny.float64():
            check_forest(tiny.base(family, torch.float64), tree, 1e-9)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "bloom", "mpt", "gpt2"])
@settings(max_examples=8)
@given(data=st.data())
def test_choices_over_random_texts(family, backend, data):
    """Loss and gradient of ``prompt -> texts -> labels``, any lengths, empty texts included."""
    token = st.integers(5, tiny.VOCAB - 1)
    texts = data.draw(st.lists(st.lists(token, max_size=9), min_size=1, max_size=4))
    labels = data.draw(st.lists(st.lists(token, min_size=1, max_size=3), min_size=1, max_size=3))
    with tiny.float64():
        model = tiny.base(family, torch.float64)
        prompt = tiny.prompt_for(model, 3)
        plan = plan_candidates(3, texts, labels, CPU)
        losses = token_losses(model, plan, prompt)
        got = torch.zeros(plan.num_groups).index_add(0, plan.groups, -losses)
        expected = torch.stack([tiny.plain_score(model, prompt, text, label) for text in texts for label in labels])
        assert_near(got.detach(), expected.detach(), 1e-9)
        weights = torch.linspace(1, 2, len(expected))
        (ours,) = torch.autograd.grad((got * weights).sum(), prompt)
        (reference,) = torch.autograd.grad((expected * weights).sum(), prompt)
        assert_near(ours, reference, 1e-9)


@pytest.mark.parametrize("family", ["llama"])
def test_prompt_runs_once_whatever_the_batch(family, backend):
    model = tiny.base(family)
    rows = tiny.ids(6, 6, 6, 6)
    widths = []
    hook = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    try:
        token_losses(model, plan_of(5, rows, rows), tiny.prompt_for(model))
    finally:
        hook.remove()
    assert widths == ([(1, 29)] if running.backends(model.base_model) == ("packed",) else [(1, 5), (4, 6)])


def test_text_takes_no_gradient():
    """Only the prompt's pass and the rows' keys need one: a step leaves the frozen base as it was."""
    model = tiny.base("llama")
    rows = tiny.ids(6, 4)
    prompt = tiny.prompt_for(model)
    token_losses(model, plan_of(5, rows, rows), prompt).sum().backward()
    assert prompt.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_losses_in_chunks_are_the_same(monkeypatch):
    """Long batches take their logits piece by piece, one piece at a time; neither loss nor gradient notices."""
    model = tiny.base("gemma2")
    rows, labels = batch()
    prompt = tiny.prompt_for(model)
    plan = plan_of(len(prompt), rows, labels)
    assert len(plan.targets) < plan.tree.num_tokens - len(prompt)

    def step():
        losses = token_losses(model, plan, prompt)
        return losses.detach(), torch.autograd.grad(losses.sum(), prompt)[0]

    whole = step()
    sizes, alive = [], WeakSet()
    real = ModelRunner.logits

    def watched(runner, hidden):
        assert not alive, "logits of an earlier piece"
        logits = real(runner, hidden)
        sizes.append(logits.numel())
        alive.add(logits)
        return logits

    monkeypatch.setattr(engine_loss, "LOGITS_PER_CHUNK", 3 * tiny.VOCAB)
    monkeypatch.setattr(ModelRunner, "logits", watched)
    pieces = step()
    assert max(sizes) == engine_loss.LOGITS_PER_CHUNK
    assert sum(sizes) == len(plan.targets) * tiny.VOCAB, "at supervised positions, once each"
    assert not alive
    torch.testing.assert_close(pieces[0], whole[0])
    torch.testing.assert_close(pieces[1], whole[1], rtol=1e-4, atol=1e-6)


@families
def test_head_is_the_models_own(family):
    """Families scale, cap or project their logits; ours come from their own code."""
    model = tiny.base(family)
    (row,) = tiny.ids(6)
    prompt = tiny.prompt_for(model).detach()
    plan = plan_of(len(prompt), [row])
    with torch.no_grad():
        got = ModelRunner(model).logits(hidden_states(model, plan, prompt))
        assert_near(got, tiny.plain_logits(model, prompt, row), 1e-5)


def test_variant_leaves_the_base_alone():
    model = tiny.base("llama")
    before = dict(model.__dict__), dict(model._modules)
    other = torch.nn.Identity()
    view = variant(model, modules={"lm_head": other}, extra=1)
    assert (view.lm_head, view.extra) == (other, 1)
    assert view.model is model.model
    assert (dict(model.__dict__), dict(model._modules)) == before
    assert not hasattr(model, "extra")


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_mixtures_of_experts(family):
    """Heads that ask their backbone for more than hidden states get ``None`` for it."""
    settings = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4}
    settings |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "pad_token_id": 0}
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).eval().requires_grad_(False)
    prompt = torch.randn(5, 32, requires_grad=True)
    rows = [torch.randint(5, 97, (n,)) for n in (4, 7)]
    plan = plan_of(5, rows, rows)
    ours = token_losses(base, plan, prompt)
    (gradient,) = torch.autograd.grad(ours.sum(), prompt)
    plain = []
    for row in rows:
        embeds = torch.cat([prompt, base.get_input_embeddings()(row)])[None]
        logits = base(inputs_embeds=embeds).logits[0, 4:-1]
        plain.append(torch.nn.functional.cross_entropy(logits, row, reduction="none"))
    assert torch.allclose(ours, torch.cat(plain), atol=2e-5)
    (expected,) = torch.autograd.grad(torch.cat(plain).sum(), prompt)
    assert torch.allclose(gradient, expected, atol=2e-5 * float(expected.abs().max()))


def test_rotary_scaling_that_depends_on_length_is_bounded():
    """Beyond the length up to which it does not scale, rows of a batch would change each other: refused."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=16,
        rope_parameters=rope,
    )
    base = AutoModelForCausalLM.from_config(config).eval()
    prompt = torch.randn(5, 32)
    fits, too_long = torch.randint(5, 97, (11,)), torch.randint(5, 97, (12,))
    assert token_losses(base, plan_of(5, [fits], [fits]), prompt).isfinite().all()
    with pytest.raises(ConfigError, match=r"17 tokens, including virtual tokens, .* 16 positions"):
        token_losses(base, plan_of(5, [too_long], [too_long]), prompt)


@pytest.mark.parametrize(
    ("backend", "limit"),
    [("levelwise", ("KEYS_PER_CALL", 2 * 40 * 12)), ("packed", ("TOKENS_PER_CALL", 7 + 3 + 2 * 40))],
)
def test_many_classes_are_scored_a_few_texts_at_a_time(backend, limit, monkeypatch):
    monkeypatch.setattr(running, "backends", lambda _: (backend,))
    base = tiny.base("llama", torch.float32)
    prompt = torch.randn(5, 32)
    texts = [row.tolist() for row in tiny.ids(7, 3, 5, 1)]
    labels = [[number, 2] for number in range(5, 45)]
    whole = score_labels(base, prompt, texts, labels)
    calls = []
    real = score.plan_candidates
    monkeypatch.setattr(score, *limit)
    monkeypatch.setattr(score, "plan_candidates", lambda *given: calls.append(len(given[1])) or real(*given))
    assert torch.allclose(score_labels(base, prompt, texts, labels), whole, atol=1e-5)
    assert calls == [2, 2]
