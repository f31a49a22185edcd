"""The GPU's attention on the CPU, where it runs as well: same meaning as our own, gradients included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import test_engine
import tiny
from softprompt.engine import gathered, packed
from softprompt.engine import run as running
from softprompt.engine.gathered import attend_gathered
from softprompt.engine.loss import token_losses
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
    plan = test_engine.plan_of(11, rows, labels)
    losses, expected = gradient(model, plan, 11)
    calls = []
    monkeypatch.setattr(packed, "attend", lambda *given: calls.append(1) or attend_gathered(*given))
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
        everything = running.compute(model.base_model, tree, embeds)
        whole_run = running.run(model.base_model, tree, embeds)
        roots = {node: everything[node] for node, parent in enumerate(tree.parents) if parent == -1}
        rest = [i for node in range(len(lengths)) if node not in roots for i in tree.span(node)]
        if not rest:
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packed, "attend", attend_gathered)
            patch.setattr(gathered, "WHOLE", whole)
            found = running.run(model.base_model, tree, embeds[rest], roots, way="packed")
    assert (found - whole_run).abs().max() < 2e-5


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_long_and_short_rows_go_into_several_buckets(family, monkeypatch):
    model = tiny.base(family)
    rows = tiny.ids(3, 5, 300, 4, 260, 17) if family == "bloom" else tiny.ids(3, 5, 40, 4, 33, 17)
    plan = test_engine.plan_of(5, rows, [row.clone() for row in rows])
    losses, expected = gradient(model, plan, 5)
    sizes = []
    real = gathered._lay_out
    monkeypatch.setattr(gathered, "_lay_out", lambda packing: sizes.append(real(packing)) or sizes[-1])
    monkeypatch.setattr(packed, "attend", attend_gathered)
    monkeypatch.setattr(gathered, "WHOLE", 0)
    found, ours = gradient(model, plan, 5)
    assert len(sizes[0][0]) > 1
    assert (found - losses).abs().max() < 5e-5
    assert (ours - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_on_a_gpu(family, whole, monkeypatch):
    monkeypatch.setattr(gathered, "WHOLE", whole)
    model, (rows, labels) = tiny.fresh(family).requires_grad_(False).eval().cuda(), test_engine.batch()
    plan = test_engine.plan_of(11, [row.cuda() for row in rows], [label.cuda() for label in labels])
    found = []
    for way in ("packed", "levels"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(running, "ways", lambda _, way=way: (way,))
            prompt = tiny.prompt_for(model, 11).detach().cuda().requires_grad_()
            token_losses(model, plan, prompt).sum().backward()
            found.append(prompt.grad)
    assert (found[0] - found[1]).norm() < 1e-4 * found[1].norm()
