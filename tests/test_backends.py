"""Packed, level by level, and stock code under a 4-D mask: three ways to run a tree, one result.

The mask is written here, from the rule ``j <= i < ends[node of j]`` and windows that count depth, so stock
attention (sdpa or eager) over all tokens in one sequence is an independent cross-check.
"""

import pytest
import torch
import transformers as t
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from plan_tools import plan_of
from softprompt.engine import runner as running
from softprompt.engine.kv_cache import KVCache
from softprompt.engine.loss import token_losses
from softprompt.engine.plans import Forest
from softprompt.engine.runner import ModelRunner, backends
from softprompt.engine.tree import ROOT, Tree
from softprompt.inference.score import score_labels
from test_attention_cpu import blocks
from test_engine import assert_near
from test_tree import ancestors, trees

CPU = torch.device("cpu")
MASKS_BY_TYPE = {"qwen2", "qwen3", "smollm3", "gemma2", "gemma3"}
WINDOWED = {"mistral", "phi3"}
PACKED = [family for family in tiny.FAMILIES if "packed" in backends(tiny.base(family).base_model)]
MASKED = [family for family in PACKED if family != "bloom"]
sizes = pytest.mark.parametrize("sizes", [(128, 256), (4, 3)], ids=["usual", "small-blocks"])

# prompt A ─┬─ template ─┬─ text ─┬─ label     prompt B ─┬─ (empty) ── row
#           │            │        ├─ label               └─ row
#           │            │        └─ (empty)
#           │            └─ text ─┬─ label
#           │                     └─ label ── more
#           ├─ row, longer than the window
#           └─ row of one token
FOREST = Tree(
    (ROOT, 0, 1, 2, 2, 2, 1, 6, 6, 8, 0, 0, ROOT, 12, 13, 12),
    (5, 4, 7, 1, 2, 0, 3, 2, 1, 2, 11, 1, 3, 0, 5, 2),
)


def masked(model, tree, embeds):
    """Hidden states by stock code under a mask: the cross-check."""
    family = model.config.model_type.removesuffix("_text")
    nodes = torch.tensor([node for node, length in enumerate(tree.lengths) for _ in range(length)])
    index = torch.arange(tree.num_tokens)
    depths = index - torch.tensor(tree.starts)[nodes] + torch.tensor(tree.depths)[nodes]
    seen = (index <= index[:, None]) & (index[:, None] < torch.tensor(tree.ends)[nodes])
    near = depths[:, None] - depths < tiny.WINDOW

    def additive(allowed):
        return torch.zeros(allowed.shape, dtype=embeds.dtype).masked_fill(~allowed, -torch.inf)[None, None]

    if family in MASKS_BY_TYPE:
        mask = {"full_attention": additive(seen), "sliding_attention": additive(seen & near)}
        assert set(mask) == set(model.config.layer_types)
    else:
        mask = additive(seen & near if family in WINDOWED else seen)
    output = model.base_model(
        inputs_embeds=embeds[None], attention_mask=mask, position_ids=depths[None], use_cache=False
    )
    return output.last_hidden_state[0]


def result(model, tree, embeds, how):
    """Hidden states and, under fixed random weights, the gradient of the embeddings."""
    embeds = embeds.detach().requires_grad_()
    hidden = masked(model, tree, embeds) if how == "masked" else ModelRunner(model, how).forward(tree, embeds)
    direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((hidden * direction.to(hidden.dtype)).sum(), embeds)
    return hidden.detach(), gradient


def check_ways(model, tree, tolerance):
    embeds = tiny.prompt_for(model, tree.num_tokens)
    others = ["masked", "levelwise"] if model.config.model_type != "bloom" else ["levelwise"]
    packed = result(model, tree, embeds, "packed")
    for other in others:
        for ours, theirs in zip(packed, result(model, tree, embeds, other), strict=True):
            assert_near(ours, theirs, tolerance)


@sizes
@pytest.mark.parametrize("family", PACKED)
def test_a_deep_forest_all_ways_float64(family, sizes):
    with tiny.float64(), blocks(*sizes):
        check_ways(tiny.base(family, torch.float64), FOREST, 1e-9)


@pytest.mark.parametrize("family", PACKED)
def test_a_deep_forest_all_ways_float32(family):
    check_ways(tiny.base(family), FOREST, 3e-6)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma2", "gemma3", "bloom", "gpt2", "opt350"])
@settings(max_examples=10)
@given(tree=trees(longest=9), small=st.booleans())
def test_any_forest_all_ways(family, tree, small):
    if tree.num_tokens:
        with tiny.float64(), blocks(*((4, 3) if small else (128, 256))):
            check_ways(tiny.base(family, torch.float64), tree, 1e-9)


VARIANTS = {
    "bloom-six-heads": lambda: t.BloomConfig(vocab_size=97, hidden_size=36, n_layer=2, n_head=6),
    "bloom-residual-behind-norm": lambda: t.BloomConfig(
        vocab_size=97, hidden_size=32, n_layer=2, n_head=4, apply_residual_connection_post_layernorm=True
    ),
    "gpt2-unscaled": lambda: t.GPT2Config(**tiny._GPT, scale_attn_weights=False),
    "gpt2-scaled-by-layer": lambda: t.GPT2Config(**tiny._GPT, scale_attn_by_inverse_layer_idx=True),
    "gpt2-upcast": lambda: t.GPT2Config(**tiny._GPT, reorder_and_upcast_attn=True),
    "bigcode-many-heads": lambda: t.GPTBigCodeConfig(**tiny._GPT, multi_query=False),
    "bigcode-unscaled": lambda: t.GPTBigCodeConfig(**tiny._GPT, scale_attn_weights=False),
    "granite-multipliers": lambda: t.GraniteConfig(
        **tiny._SIZES, attention_multiplier=0.9, residual_multiplier=0.5, embedding_multiplier=2.0
    ),
    "gemma2-odd-scale": lambda: t.Gemma2Config(
        **tiny._SIZES, **tiny._GQA, head_dim=8, query_pre_attn_scalar=5, attn_logit_softcapping=2.0
    ),
    "gemma2-no-cap": lambda: t.Gemma2Config(**tiny._SIZES, **tiny._GQA, head_dim=8, attn_logit_softcapping=None),
    "cohere-norms": lambda: t.CohereConfig(**tiny._SIZES, **tiny._GQA, use_qk_norm=True),
    "phi-norms": lambda: t.PhiConfig(**tiny._SIZES, **tiny._GQA, qk_layernorm=True),
    "stablelm-parallel": lambda: t.StableLmConfig(
        **tiny._SIZES, num_key_value_heads=2, qk_layernorm=True, use_parallel_residual=True
    ),
    "neox-sequential": lambda: t.GPTNeoXConfig(**tiny._SIZES, use_parallel_residual=False, attention_bias=False),
    "mistral-unwindowed": lambda: t.MistralConfig(**tiny._SIZES, **tiny._GQA, sliding_window=None),
    "llama-biased": lambda: t.LlamaConfig(**tiny._SIZES, **tiny._GQA, attention_bias=True, mlp_bias=True),
    "llama-wide-heads": lambda: t.LlamaConfig(**tiny._SIZES, **tiny._GQA, head_dim=12),
    "llama-yarn": lambda: t.LlamaConfig(
        **tiny._SIZES,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "llama-relu": lambda: t.LlamaConfig(**tiny._SIZES, hidden_act="relu"),
    "smollm3-all-rotary": lambda: t.SmolLM3Config(**tiny._SIZES, **tiny._GQA, no_rope_layers=[1, 0]),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_of_a_family(variant):
    """What a config may change about attention; stock code runs level by level."""
    torch.manual_seed(1)
    model = t.AutoModelForCausalLM.from_config(VARIANTS[variant]()).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.2)
    assert backends(model.base_model)[0] == "packed"
    model = model.double()
    with tiny.float64():
        embeds = tiny.prompt_for(model, FOREST.num_tokens)
        for ours, theirs in zip(
            *(result(model, FOREST, embeds, backend) for backend in ("packed", "levelwise")), strict=True
        ):
            assert_near(ours, theirs, 1e-9)


class Derived(t.LlamaModel):
    """A model type of ours to know, code that is not."""


def test_which_bases_run_packed():
    """Families whose attention can be exchanged, as transformers has them; what anybody has changed runs as it is."""
    assert backends(tiny.base("llama").base_model) == ("packed", "levelwise")
    assert backends(tiny.base("mpt").base_model) == ("levelwise",)
    assert backends(Derived(tiny.CONFIGS["llama"]())) == ("levelwise",)
    patched = tiny.fresh("llama").base_model
    patched.layers[1].self_attn.forward = patched.layers[1].self_attn.forward
    assert backends(patched) == ("levelwise",)


# -- known nodes -------------------------------------------------------------------------------------


def suffix(model, path, embeds):
    """Hidden states of tokens behind what is known of the nodes above them, by stock code with its own cache."""
    cache = t.DynamicCache()
    for layer in range(len(path[0].layers)):
        keys, values = (torch.cat([known.layers[layer][i] for known in path], dim=2) for i in (0, 1))
        cache.update(keys, values, layer)
    start = sum(map(len, path))
    output = model.base_model(
        inputs_embeds=embeds[None],
        past_key_values=cache,
        position_ids=torch.arange(start, start + len(embeds))[None],
        attention_mask=torch.ones(1, start + len(embeds), dtype=torch.long),
        use_cache=True,
    )
    return output.last_hidden_state[0]


def flat_of(tree, nodes):
    return [i for node in range(len(tree.lengths)) if node in nodes for i in tree.span(node)]


def check_known(model, tree, known_nodes, backend, tolerance):
    """With some nodes known the rest comes out as before, and the known tensors get their gradient."""
    embeds = tiny.prompt_for(model, tree.num_tokens)
    everything = range(len(tree.lengths))
    new = flat_of(tree, {*everything} - known_nodes)
    whole = ModelRunner(model, "levelwise").prefill(tree, embeds.detach())
    leaves = {node: whole[node].map(lambda x: x.detach().requires_grad_()) for node in known_nodes}
    hidden = ModelRunner(model, backend).forward(tree, embeds[new], leaves)
    assert_near(hidden.detach(), torch.cat([whole[node].hidden for node in everything]), tolerance)
    direction = tiny.prompt_for(model, len(hidden), seed=9).detach()[:, : hidden.shape[1]]

    # Each path on its own: what stands below the known nodes, behind a plain cache of them.
    expected = torch.cat([leaves[node].hidden if node in leaves else whole[node].hidden for node in everything])
    for node in everything:
        path = [*ancestors(tree.parents, node), node]
        below = [n for n in path if n not in known_nodes]
        above = [leaves[n] for n in path if n in known_nodes and tree.lengths[n]]
        if node in below and tree.lengths[node]:
            own = embeds[flat_of(tree, below)]
            found = suffix(model, above, own) if above else ModelRunner(model).forward(Tree((ROOT,), (len(own),)), own)
            expected = expected.index_copy(0, torch.tensor(tree.span(node)), found[-tree.lengths[node] :])
    tensors = [embeds, *(each for known in leaves.values() for each in known.tensors)]
    ours, theirs = (
        torch.autograd.grad((side * direction).sum(), tensors, allow_unused=True, materialize_grads=True)
        for side in (hidden, expected)
    )
    for mine, plain in zip(ours, theirs, strict=True):
        if mine.numel():
            assert_near(mine, plain, tolerance)


def closed(tree, nodes):
    """These nodes and all above them."""
    return {above for node in nodes for above in [*ancestors(tree.parents, node), node]}


KNOWN = {"roots": {0, 12}, "one-root": {12}, "inner": {2, 8}, "a-leaf": {3}, "a-template": {1, 13}}
SOME = ["llama", "mistral", "gemma2", "bloom", "gpt2", "mpt", "falcon_alibi", "gpt_neo"]
known_ways = pytest.mark.parametrize(
    ("family", "backend"), [(family, backend) for family in SOME for backend in backends(tiny.base(family).base_model)]
)


@pytest.mark.parametrize("nodes", KNOWN)
@known_ways
def test_known_nodes(family, backend, nodes):
    with tiny.float64(), blocks(4, 3):
        # Bloom's GeLU has a constant of 8 digits, ours all of them.
        tolerance = 1e-8 if family == "bloom" else 1e-9
        check_known(tiny.base(family, torch.float64), FOREST, closed(FOREST, KNOWN[nodes]), backend, tolerance)


@pytest.mark.parametrize("backend", ["packed", "levelwise"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
@settings(max_examples=8)
@given(tree=trees(longest=6), data=st.data())
def test_any_known_nodes(family, backend, tree, data):
    nodes = data.draw(st.sets(st.integers(0, len(tree.lengths) - 1)))
    known = closed(tree, nodes)
    if tree.num_tokens > sum(tree.lengths[node] for node in known):
        with tiny.float64():
            check_known(tiny.base(family, torch.float64), tree, known, backend, 1e-8)


@pytest.mark.parametrize("nodes", [{0, 12}, {0, 1, 2, 12}, {*range(16)}], ids=str)
@known_ways
def test_what_is_known_step_by_step(family, backend, nodes):
    """``compute`` behind what is known gives what one run gives, with its history: the gradient goes all the way."""
    with tiny.float64():
        model = tiny.base(family, torch.float64)
        embeds = tiny.prompt_for(model, FOREST.num_tokens)
        known = {}
        for node in sorted(nodes):
            above = [n for n in [*ancestors(FOREST.parents, node), node] if FOREST.lengths[n]]
            if FOREST.lengths[node]:
                tree = Tree((ROOT, *range(len(above) - 1)), tuple(FOREST.lengths[n] for n in above))
                upper = {i: known[n] for i, n in enumerate(above[:-1])}
                found = ModelRunner(model, backend).prefill(tree, embeds[FOREST.span(node)], upper)
                assert list(found) == [len(above) - 1]
                known[node] = found[len(above) - 1]
            else:
                known[node] = next(iter(known.values())).map(lambda x: x[..., :0, :])
        new = flat_of(FOREST, {*range(16)} - nodes)
        hidden = ModelRunner(model, backend).forward(FOREST, embeds[new], known)
        expected, gradient = result(model, FOREST, embeds, "levelwise")
        assert_near(hidden.detach(), expected, 1e-9)
        direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        assert_near(torch.autograd.grad((hidden * direction).sum(), embeds)[0], gradient, 1e-9)


# -- plans -------------------------------------------------------------------------------------------


@pytest.fixture(params=["packed", "levelwise"])
def backend(request, monkeypatch):
    monkeypatch.setattr(running, "backends", lambda _: (request.param,))


def test_prompts_side_by_side(backend):
    """A forest of plans is each plan under its own prompt, given as numbers or compiled."""
    with tiny.float64():
        model = tiny.base("qwen3", torch.float64)
        one, two, three = (row.tolist() for row in tiny.ids(6, 3, 9))
        adds = [
            lambda forest: forest.add_rows(4, [one, two], [one, two]),
            lambda forest: forest.add_candidates(2, [three, []], [[7, 8], [7, 9, 10], [6]]),
            lambda forest: forest.add_rows(4, [three], [three]),
        ]
        parts, whole = [], Forest()
        for add in adds:
            alone = Forest()
            add(alone)
            add(whole)
            parts.append(alone.plan(CPU))
        prompts = [tiny.prompt_for(model, length, seed=i) for i, length in enumerate((4, 2, 4))]
        alone = torch.cat([token_losses(model, part, prompt) for part, prompt in zip(parts, prompts, strict=True)])
        together = whole.plan(CPU)
        prefilled = [ModelRunner(model).prefill(Tree((ROOT,), (len(p),)), p)[0] for p in prompts]
        weights = torch.linspace(1, 2, len(alone))
        expected = torch.autograd.grad((alone * weights).sum(), prompts)
        for given_prompts in (torch.cat(prompts), prefilled):
            losses = token_losses(model, together, given_prompts)
            assert_near(losses.detach(), alone.detach(), 1e-9)
            for got, reference in zip(torch.autograd.grad((losses * weights).sum(), prompts), expected, strict=True):
                assert_near(got, reference, 1e-9)


def test_order_of_rows_does_not_matter(backend):
    rows = tiny.ids(30, 30, 5, 1)
    rows += [torch.cat([rows[0], row]) for row in tiny.ids(3, 8, seed=4)] + [rows[0].clone()]
    with tiny.float64():
        model = tiny.base("gemma3", torch.float64)
        prompt = tiny.prompt_for(model)

        def step(order):
            chosen = [rows[i] for i in order]
            plan = plan_of(len(prompt), chosen, chosen)
            assert len(plan.tree.inner) == 2, "rows share a beginning"
            losses = token_losses(model, plan, prompt)
            parts = torch.split(losses, [len(rows[i]) for i in order])
            gradient = torch.autograd.grad(losses.square().sum(), prompt)[0]
            return torch.cat([parts[order.index(i)] for i in range(len(rows))]).detach(), gradient

        straight, back = step([*range(7)]), step([4, 2, 6, 0, 1, 5, 3])
        plain = [tiny.plain_losses(model, prompt, row, row).detach() for row in rows]
        for got, expected in zip(back, straight, strict=True):
            assert_near(got, expected, 1e-9)
        assert_near(straight[0], torch.cat(plain), 1e-9)


def test_nothing_to_compute_behind_a_compiled_prompt(backend):
    """One label behind nothing: the prompt's own hidden states say it all."""
    model = tiny.base("llama")
    prompt = tiny.prompt_for(model).detach()
    known = ModelRunner(model).prefill(Tree((ROOT,), (len(prompt),)), prompt)[0]
    got = score_labels(model, known, [[], []], [[7], [8]])
    expected = [[tiny.plain_score(model, prompt, [], [label]) for label in (7, 8)]] * 2
    assert_near(got, torch.tensor(expected), 1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "gpt2"])
def test_numbers_of_16_bits(family, backend):
    """As near to the exact gradient as its own number type lets it be."""
    model = tiny.base(family, torch.bfloat16)
    exact = tiny.base(family)
    rows = tiny.ids(*[6] * 20)
    plan = plan_of(5, rows, rows)
    prompt = tiny.prompt_for(exact)
    (expected,) = torch.autograd.grad(token_losses(exact, plan, prompt).mean(), prompt)
    (got,) = torch.autograd.grad(token_losses(model, plan, prompt).mean(), prompt)
    assert (got - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "gpt2", "mpt"])
def test_under_autocast(family):
    """As trainers run it for 16 bits: stock code, which knows what autocast makes of it."""
    model = tiny.base(family)
    rows = tiny.ids(6, 7)
    plan = plan_of(5, rows, rows)
    prompt = tiny.prompt_for(model)
    expected = token_losses(model, plan, prompt)
    with torch.autocast("cpu", torch.bfloat16):
        losses = token_losses(model, plan, prompt)
    assert_near(losses.detach(), expected.detach(), 0.05)
    assert not torch.equal(losses, expected)
    ours, exact = (torch.autograd.grad(each.mean(), prompt)[0] for each in (losses, expected))
    assert (ours - exact).norm() < 0.2 * exact.norm()


def test_known_is_a_table_of_tensors():
    pair = torch.ones(1, 2, 3, 4, requires_grad=True), torch.zeros(1, 2, 3, 4)
    known = KVCache((pair,), torch.ones(3, 8))
    assert len(known) == 3
    assert [tensor.shape for tensor in known.tensors] == [(1, 2, 3, 4), (1, 2, 3, 4), (3, 8)]
    assert not known.detach().layers[0][0].requires_grad
    assert known.map(lambda x: x + 1).hidden.sum() == 48
