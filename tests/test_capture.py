"""What layers answer, handed out as by-products of a run, against transformers' own hidden states of rows alone."""

import copy

import pytest
import torch

import tiny
from softprompt.engine.runner import ModelRunner, backends
from softprompt.engine.surgery.capture import Means, but_first
from softprompt.engine.tree import ROOT, Tree

families = pytest.mark.parametrize("family", tiny.FAMILIES)


def plain_states(model, embeds):
    """Of each layer but the last, ``[t, D]``; the last one is not told before its norm."""
    output = model.base_model(inputs_embeds=embeds[None], output_hidden_states=True)
    return [each[0] for each in output.hidden_states[1:-1]]


@families
@pytest.mark.parametrize("backend", ["packed", "levelwise"])
def test_states_are_those_of_rows_alone(family, backend):
    with tiny.float64():
        check_states(tiny.base(family, torch.float64), backend)


def check_states(model, backend):
    if backend not in backends(model.base_model):
        pytest.skip("it runs level by level only")
    tree = Tree((ROOT, 0, 1, 1, 0, 4), (5, 3, 2, 4, 0, 6))
    embeds = torch.randn(tree.num_tokens, tiny.width(model))
    states = []
    hidden = ModelRunner(model, backend).forward(tree, embeds, layer_outputs=states)
    torch.testing.assert_close(hidden, ModelRunner(model, backend).forward(tree, embeds), rtol=0, atol=0)
    for node in (2, 3, 5):
        path = [*tree.path(node), *tree.span(node)]
        # A copy: transformers leaves hooks on what is asked for its hidden states.
        expected = plain_states(copy.deepcopy(model), embeds[path])
        assert len(states) == len(expected) + 1
        for got, plain in zip(states, expected, strict=False):
            torch.testing.assert_close(got[path], plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["packed", "levelwise"])
def test_known_tokens_have_no_states(backend):
    model = tiny.base("llama")
    whole = Tree((ROOT, 0, 0), (5, 3, 4))
    embeds = torch.randn(12, tiny.width(model))
    states, expected = [], []
    ModelRunner(model, backend).forward(whole, embeds, layer_outputs=expected)
    prompt = ModelRunner(model).prefill(Tree((ROOT,), (5,)), embeds[:5])[0]
    ModelRunner(model, backend).forward(whole, embeds[5:], {0: prompt}, states)
    for got, all_of_it in zip(states, expected, strict=True):
        torch.testing.assert_close(got, all_of_it[5:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["packed", "levelwise"])
def test_the_base_keeps_no_hooks(backend):
    model = tiny.fresh("llama")
    ModelRunner(model, backend).forward(Tree((ROOT,), (4,)), torch.randn(4, tiny.width(model)), layer_outputs=[])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("Recorded" in type(module).__name__ for module in model.modules())


def test_states_carry_the_gradient_of_the_prompt():
    """So that a prompt can be trained for what is read between the layers."""
    model = tiny.base("llama")
    prompt = tiny.prompt_for(model).requires_grad_()
    (row,) = tiny.ids(6)
    embeds = torch.cat([prompt, model.get_input_embeddings()(row)])
    states = []
    ModelRunner(model).forward(Tree((ROOT, 0), (len(prompt), 6)), embeds, layer_outputs=states)
    (found,) = torch.autograd.grad(states[0].sum(), prompt, retain_graph=True)
    (expected,) = torch.autograd.grad(plain_states(copy.deepcopy(model), embeds)[0].sum(), prompt)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_means():
    states = [torch.arange(12.0).view(6, 2), -torch.arange(12.0).view(6, 2)]
    means = Means(torch.tensor([10, 13, 11, 14, 15, 10]), torch.tensor([0, 0, 2, 2, 2, 3]), 4)
    means.take(states, torch.tensor([10, 11, 12, 13, 14, 15]))
    found = means.found
    assert found.shape == (4, 2, 2)
    assert found[0].tolist() == [[3, 4], [-3, -4]]
    assert found[1].tolist() == [[0, 0], [0, 0]]
    assert found[2].flatten().tolist() == pytest.approx([20 / 3, 23 / 3, -20 / 3, -23 / 3])
    assert found[3].tolist() == [[0, 1], [0, -1]]


def test_all_tokens_but_the_first_count():
    places, rows = but_first(torch.tensor([9, 3, 4, 5, 7, 8]), [1, 0, 3, 2])
    assert places.tolist() == [9, 4, 5, 8]
    assert rows.tolist() == [0, 2, 2, 3]
