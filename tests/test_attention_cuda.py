"""The GPU's attention on the CPU, where it runs as well: same meaning as our own, gradients included."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import test_engine
import tiny
from plan_tools import plan_of
from softprompt.engine.backends import attention_cpu as attention
from softprompt.engine.backends import attention_cuda as gathered
from softprompt.engine.backends import packed
from softprompt.engine.backends.attention_cuda import attend_padded_blocks
from softprompt.engine.loss import token_losses
from softprompt.engine.runner import ModelRunner
from softprompt.engine.tree import Tree

FAMILIES = ["llama", "mistral", "qwen3", "gemma2", "gemma3", "gpt2", "opt", "bloom", "phi3"]
WHOLE = [0, gathered.WHOLE]
"""With 0 all blocks are gathered, with more a short run is one block."""


def gradient(model, plan, virtual):
    prompt = tiny.prompt_for(model, virtual).detach().requires_grad_()
    losses = token_losses(model, plan, prompt)
    losses.sum().backward()
    return losses.detach(), prompt.grad


@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradient_are_those_of_our_own_attention(family, whole, monkeypatch):
    model, (rows, labels) = tiny.base(family), test_engine.batch()
    plan = plan_of(11, rows, labels)
    losses, expected = gradient(model, plan, 11)
    calls = []
    monkeypatch.setattr(packed, "attend", lambda *given: calls.append(1) or attend_padded_blocks(*given))
    monkeypatch.setattr(gathered, "WHOLE", whole)
    found, ours = gradient(model, plan, 11)
    assert (found - losses).abs().max() < 2e-5
    assert (ours - expected).norm() < 1e-4 * expected.norm()
    assert len(calls) == model.config.num_hidden_layers


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=2, max_size=7).filter(any),
    whole=st.sampled_from(WHOLE),
    family=st.sampled_from(["gemma3", "bloom", "gemma2"]),
    data=st.data(),
)
def test_any_forest_with_some_nodes_known(lengths, whole, family, data):
    tree = Tree(test_engine.draw_parents(data, len(lengths)), tuple(lengths))
    model = tiny.base(family)
    with torch.no_grad():
        embeds = tiny.prompt_for(model, tree.num_tokens)
        everything = ModelRunner(model).prefill(tree, embeds)
        whole_run = ModelRunner(model).forward(tree, embeds)
        roots = {node: everything[node] for node, parent in enumerate(tree.parents) if parent == -1}
        rest = [i for node in range(len(lengths)) if node not in roots for i in tree.span(node)]
        if not rest:
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packed, "attend", attend_padded_blocks)
            patch.setattr(gathered, "WHOLE", whole)
            found = ModelRunner(model, "packed").forward(tree, embeds[rest], roots)
    assert (found - whole_run).abs().max() < 2e-5


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_long_and_short_rows_go_into_several_buckets(family, monkeypatch):
    model = tiny.base(family)
    rows = tiny.ids(3, 5, 300, 4, 260, 17) if family == "bloom" else tiny.ids(3, 5, 40, 4, 33, 17)
    plan = plan_of(5, rows, [row.clone() for row in rows])
    losses, expected = gradient(model, plan, 5)
    sizes = []
    real = gathered._lay_out
    monkeypatch.setattr(gathered, "_lay_out", lambda packing: sizes.append(real(packing)) or sizes[-1])
    monkeypatch.setattr(packed, "attend", attend_padded_blocks)
    monkeypatch.setattr(gathered, "WHOLE", 0)
    found, ours = gradient(model, plan, 5)
    assert len(sizes[0][0]) > 1
    assert (found - losses).abs().max() < 5e-5
    assert (ours - expected).norm() < 1e-4 * expected.norm()


CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


def never(*_):
    raise AssertionError("the attention for CPUs ran")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradient_are_those_of_each_row_alone(family, device, whole, dtype, monkeypatch):
    """Against plain calls of the model in float32; many short rows and some long ones, so that blocks are padded."""
    monkeypatch.setattr(packed, "attend", attend_padded_blocks if device == "cpu" else never)
    monkeypatch.setattr(gathered, "WHOLE", whole)
    monkeypatch.setattr(gathered, "COPIES", 1)
    monkeypatch.setattr(attention, "BLOCK", 16)
    exact = copy.deepcopy(tiny.base(family)).to(device)
    model = copy.deepcopy(exact).to(dtype)
    rows = [row.to(device) for row in tiny.ids(3, 5, 40, 4, 33, 17, 2, 9)]
    prompt = tiny.prompt_for(exact, 7).detach().to(device).requires_grad_()
    expected = torch.cat([tiny.plain_losses(exact, prompt, row, row) for row in rows])
    (gradient,) = torch.autograd.grad(expected.sum(), prompt)
    losses = token_losses(model, plan_of(7, rows, rows), prompt)
    (ours,) = torch.autograd.grad(losses.sum(), prompt)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    assert (losses - expected).norm() < tolerance * expected.norm()
    assert (ours - gradient).norm() < tolerance * gradient.norm()


def test_a_window_that_hides_nothing_makes_no_mask_of_its_own(monkeypatch):
    model = tiny.base("gemma3")
    rows = tiny.ids(2, 1)
    caches = []
    monkeypatch.setattr(packed, "attend", lambda *given: caches.append(given[3].shared) or attend_padded_blocks(*given))
    token_losses(model, plan_of(2, rows, rows), tiny.prompt_for(model, 2))
    assert [name[0] for name in caches[0] if name[0] == "bias"] == ["bias"]


def test_masks_are_aligned(monkeypatch):
    """Or torch's kernel would make a padded copy in every layer, and keep it."""
    model = tiny.base("llama")
    rows = tiny.ids(3, 5, 2)
    masks = []
    real = gathered._bias
    monkeypatch.setattr(gathered, "_bias", lambda *given: masks.append(real(*given)) or masks[-1])
    monkeypatch.setattr(packed, "attend", attend_padded_blocks)
    token_losses(model, plan_of(3, rows, rows), tiny.prompt_for(model, 3))
    assert masks
    assert all(mask.stride(-2) % 8 == 0 and mask.shape[-1] % 8 for mask in masks)
