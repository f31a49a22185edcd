"""The GPU's attention (flex) on the CPU, where torch runs its forward pass: same meaning as our own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import test_engine
import tiny
from softprompt.engine import flex, packed
from softprompt.engine import run as running
from softprompt.engine.flex import attend_flex, available, trial
from softprompt.engine.loss import hidden_states, token_losses
from softprompt.engine.tree import Tree

FAMILIES = ["llama", "mistral", "qwen3", "gemma2", "gemma3", "gpt2", "opt", "bloom", "phi3"]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hidden_states_are_those_of_our_own_attention(family, monkeypatch):
    model, (rows, labels) = tiny.base(family), test_engine.batch()
    plan = test_engine.plan_of(11, rows, labels)
    prompt = tiny.prompt_for(model, 11)
    expected = hidden_states(model, plan, prompt)
    calls = []
    monkeypatch.setattr(packed, "attend", lambda *given: calls.append(1) or attend_flex(*given))
    assert (hidden_states(model, plan, prompt) - expected).abs().max() < 2e-5
    assert len(calls) == model.config.num_hidden_layers


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(0, 7), min_size=2, max_size=7).filter(any), data=st.data())
def test_any_forest_with_some_nodes_known(lengths, data):
    tree = Tree(test_engine.draw_parents(data, len(lengths)), tuple(lengths))
    model = tiny.base("gemma3")
    with torch.no_grad():
        embeds = tiny.prompt_for(model, tree.num_tokens)
        everything = running.compute(model.base_model, tree, embeds)
        whole = running.run(model.base_model, tree, embeds)
        roots = {node: everything[node] for node, parent in enumerate(tree.parents) if parent == -1}
        rest = [i for node in range(len(lengths)) if node not in roots for i in tree.span(node)]
        if not rest:
            return
        patch = pytest.MonkeyPatch()
        patch.setattr(packed, "attend", attend_flex)
        try:
            found = running.run(model.base_model, tree, embeds[rest], roots, way="packed")
        finally:
            patch.undo()
    assert (found - whole).abs().max() < 2e-5


def test_not_used_without_a_gpu():
    assert not available(torch.device("cpu"), 64, torch.float32)


@pytest.fixture
def fresh_trial():
    trial.cache_clear()
    yield trial
    trial.cache_clear()


def test_the_trial_passes_where_flex_is_right(fresh_trial):
    assert fresh_trial(torch.device("cpu"), 64, torch.float32, gradient=False)


@pytest.mark.parametrize("fault", ["wrong", "fails"])
def test_the_trial_notices(fault, fresh_trial, monkeypatch):
    def broken(query, *_, **__):
        if fault == "fails":
            raise RuntimeError("no such kernel\nmore")
        return torch.zeros_like(query)

    monkeypatch.setattr(flex, "flex_attention", broken)
    with pytest.warns(UserWarning, match="no such kernel. Prompts" if fault == "fails" else "off by"):
        assert not fresh_trial(torch.device("cpu"), 64, torch.float32, gradient=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_on_a_gpu(family):
    model, (rows, labels) = tiny.fresh(family).requires_grad_(False).eval().cuda(), test_engine.batch()
    plan = test_engine.plan_of(11, [row.cuda() for row in rows], [label.cuda() for label in labels])
    found = []
    for way in ("packed", "levels"):
        patch = pytest.MonkeyPatch()
        patch.setattr(running, "ways", lambda _, way=way: (way,))
        try:
            prompt = tiny.prompt_for(model, 11).detach().cuda().requires_grad_()
            token_losses(model, plan, prompt).sum().backward()
            found.append(prompt.grad)
        finally:
            patch.undo()
    assert (found[0] - found[1]).norm() < 1e-4 * found[1].norm()
