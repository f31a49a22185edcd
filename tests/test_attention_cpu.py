"""Attention over a tree: against a softmax over all pairs of tokens, and what it keeps for the backward pass."""

from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakSet

import pytest
import torch
import transformers as t
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from plan_tools import plan_of
from softprompt.engine.backends import attention_cpu as attention
from softprompt.engine.backends.attention_cpu import Packing, Rule, attend
from softprompt.engine.loss import token_losses
from softprompt.engine.tree import ROOT, Tree
from test_tree import readers, trees

CPU = torch.device("cpu")
HEADS, KEY_HEADS, SIZE = 4, 2, 3


@contextmanager
def blocks(most, keep):
    """Inside, blocks have at most ``most`` queries, and keep their weights up to ``keep`` keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", most)
        patch.setattr(attention, "KEEP_KEYS", keep)
        yield


def dense(query, key, value, tree, rule):
    """Attention ``[1, T, heads, d]`` of all tokens by the textbook, one softmax over all pairs."""
    tokens, pairs = readers(tree)
    depths = torch.tensor([tree.depths[node] + i for node, i in tokens])
    seen = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for i, j in pairs:
        seen[i, j] = rule.window is None or depths[i] - depths[j] < rule.window
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * rule.scale
    if rule.softcap:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if rule.slopes is not None:
        scores = scores + rule.slopes.view(-1, 1, 1) * (depths - depths[:, None])
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def check_attend(tree, known, rule, dtype=torch.float64, tolerance=1e-12):
    """Values, and gradients of queries, keys and values, those of known nodes among them."""
    torch.manual_seed(0)
    total = tree.num_tokens
    query, direction = torch.randn(2, 1, HEADS, total, SIZE, dtype=dtype)
    key, value = torch.randn(2, 1, KEY_HEADS, total, SIZE, dtype=dtype) * 2
    given = [each.requires_grad_() for each in (query, key, value)]
    new = [i for node in range(len(tree.lengths)) if node not in known for i in tree.span(node)]
    parts = {node: tuple(states[:, :, tree.span(node)] for states in (key, value)) for node in known}
    got = attend(*(states[:, :, new] for states in given), Packing(tree, frozenset(known), CPU), rule, parts)
    expected = dense(*given, tree, rule)[:, new]
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    weights = direction[:, :, new].transpose(1, 2)
    ours = torch.autograd.grad((got * weights).sum(), given)
    reference = torch.autograd.grad((expected * weights).sum(), given)
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=10 * tolerance)


RULES = {
    "plain": Rule(0.5),
    "window": Rule(0.5, window=3),
    "window-1": Rule(0.5, window=1),
    "softcap": Rule(0.5, softcap=1.5),
    "softcap-and-window": Rule(0.5, window=4, softcap=1.5),
    "slopes": Rule(0.5, slopes=torch.tensor([0.5, 0.25, 0.125, 1.0], dtype=torch.float64)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sizes", [(128, 256), (4, 3), (4, 256), (1, 0)], ids=str)
@settings(max_examples=12)
@given(tree=trees(longest=7, most=7), data=st.data())
def test_attention_over_any_tree(rule, sizes, tree, data):
    """Whatever the blocks, and whatever is known: roots, inner nodes, leaves, some of each."""
    nodes = range(len(tree.lengths))
    full = [node for node in nodes if tree.lengths[node]]
    known = data.draw(st.sets(st.sampled_from(full))) if full else set()
    if tree.num_tokens > sum(tree.lengths[node] for node in known):
        with blocks(*sizes):
            check_attend(tree, known, RULES[rule])


@settings(max_examples=40)
@given(trees(longest=9), st.integers(1, 6))
def test_blocks_hold_each_token_once(tree, most):
    with blocks(most, 0):
        packing = Packing(tree, frozenset(), CPU)
        assert [i for block in packing.blocks for i in range(block.start, block.stop)] == list(range(tree.num_tokens))
        assert all(len(block) <= most for block in packing.blocks)


def test_short_nodes_share_a_block():
    """Labels of one or two tokens behind a text would be slow one by one: a text and all below it are one block."""
    text = Tree((ROOT, 0, 1, 1, 3, 3, 1, 0), (5, 9, 1, 2, 1, 3, 1, 120))
    assert [len(block) for block in Packing(text, frozenset(), CPU).blocks] == [5, 17, 120]
    assert [len(block) for block in Packing(text, frozenset({0, 1}), CPU).blocks] == [8, 120]
    assert [len(block) for block in Packing(text, frozenset({3}), CPU).blocks] == [5, 10, 4, 1, 120]
    forest = Tree((ROOT, 0, ROOT, 2), (5, 4, 3, 2))
    assert [len(block) for block in Packing(forest, frozenset(), CPU).blocks] == [5, 4, 3, 2], "prompts stay alone"


@pytest.mark.parametrize(("rows", "length"), [(400, 40), (3, 200)])
def test_numbers_of_16_bits_are_summed_in_32(rows, length):
    """Scores, and sums over many rows, are as good as the numbers themselves: a part in 256."""
    tree = Tree((ROOT, *[0] * rows), (4, *[length] * rows))
    given = [torch.randn(1, heads, tree.num_tokens, 8).bfloat16() for heads in (2, 1, 1)]
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [states.to(dtype).requires_grad_() for states in given]
        out = attend(*leaves, Packing(tree, frozenset(), CPU), Rule(0.3), {})
        assert out.dtype == dtype
        grads = torch.autograd.grad(out.float().square().sum(), leaves)
        results.append((out, *grads, *(grad[:, :, :4] for grad in grads[1:])))  # rows add up on the root's keys
    for exact, coarse in zip(*results, strict=True):
        assert (exact - coarse).norm() < 2**-8 * exact.norm()


# -- memory ------------------------------------------------------------------------------------------

WIDTH, INNER, LAYERS, SHARED = 96, 256, 2, 32
"""Of a llama of usual proportions; ``SHARED`` numbers a token are its keys."""


@pytest.fixture(scope="module")
def llama():
    config = t.LlamaConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    return t.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def kept_in_a_step(model, rows, length, virtual=7):
    """Tensors that autograd keeps in a step, each storage once, parameters aside; and the number of tokens."""
    texts = torch.randint(5, tiny.VOCAB, (rows, length))
    plan = plan_of(virtual, texts, texts)
    prompt = torch.randn(virtual, WIDTH, requires_grad=True)
    saved = WeakSet()  # what comes and goes on the way (a chunk of logits) is not kept

    def keep(tensor):
        held = Held(tensor)
        saved.add(held)
        return held

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held.tensor):
        loss = token_losses(model, plan, prompt).sum()
    assert loss.requires_grad
    kept = {held.tensor.untyped_storage().data_ptr(): held.tensor for held in saved}
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return list(kept.values()), plan.tree.num_tokens


@dataclass(eq=False)
class Held:
    """A tensor in autograd's hands."""

    tensor: torch.Tensor


def size(tensors):
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@pytest.mark.parametrize(("rows", "length"), [(1, 13), (40, 13), (2, 601)])
def test_a_step_keeps_little(llama, rows, length):
    """A token costs a layer two norms' inputs, queries, keys and values, gate and up; and its weights on few keys.

    At the widths of SmolLM2-135M that is 20.7 kB without the weights, where stock code keeps 30.2 kB.
    """
    kept, tokens = kept_in_a_step(llama, rows, length)
    numbers = 2 * (WIDTH + 1) + WIDTH + 2 * SHARED + 2 * INNER
    tree = Tree((ROOT, *[0] * rows), (7, *[length] * rows))
    pairs = sum(
        len(block) * block.num_keys
        for block in Packing(tree, frozenset(), CPU).blocks
        if block.num_keys <= attention.KEEP_KEYS
    )
    assert pairs <= tokens * attention.BLOCK
    once = 2 * WIDTH + 1 + 32 + 6  # the last norm, the gradient of hidden states, rotary angles, indices
    assert size(kept) <= 4 * (LAYERS * (tokens * numbers + 6 * pairs) + tokens * once)
    assert size(kept) > 4 * tokens * LAYERS * 2 * INNER, "the count counts"


def test_a_step_keeps_no_square_and_no_weights(llama):
    for rows, length in ((40, 13), (1, 601)):
        kept, tokens = kept_in_a_step(llama, rows, length)
        assert not [tensor.shape for tensor in kept if sorted(tensor.shape)[-2:-1] >= [tokens]]
        assert max(tensor.untyped_storage().nbytes() for tensor in kept) < 4 * tokens * (INNER + 1) < 4 * tokens**2
        matrices = {frozenset(p.shape) for p in llama.parameters() if p.ndim > 1}
        assert not [tensor.shape for tensor in kept if frozenset(tensor.shape) in matrices]
        assert not [tensor.shape for tensor in kept if tiny.VOCAB in tensor.shape], "logits are gone"


def test_what_a_step_keeps_grows_linearly(llama):
    """Four times the rows, or rows of four times the length."""
    (few, _), (many, _) = (kept_in_a_step(llama, rows, 13) for rows in (10, 40))
    assert 3.5 < size(many) / size(few) <= 4
    (short, _), (long, _) = (kept_in_a_step(llama, 1, length) for length in (300, 1200))
    assert 3 < size(long) / size(short) <= 4
