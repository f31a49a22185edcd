"""Private parts of torch and transformers: each is reached in one module, and its fallback gives the same results."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import transformers as t

import softprompt
import test_engine
import test_fused
import tiny
from softprompt import ConfigError, PromptTuningConfig, get_peft_model
from softprompt.engine.backends import attention_cpu, packed
from softprompt.engine.runner import ModelRunner
from softprompt.engine.surgery import linear
from softprompt.engine.tree import ROOT, Tree
from softprompt.inference import generation_overrides
from test_attention_cpu import blocks

OWNERS = {
    "_softmax_backward_data": "engine/backends/attention_cpu.py",
    "_attn_implementation_internal": "engine/backends/packed.py",
    "_linear_pointwise": "engine/surgery/linear.py",
    "_modules": "engine/surgery/view.py",
    "_forward_hooks": "engine/surgery/view.py",
    "_forward_pre_hooks": "engine/surgery/view.py",
    "_prepare_static_cache": "inference/generation_overrides.py",
    "_get_logits_processor": "inference/generation_overrides.py",
}
"""Private names of other packages, and the module that may use each."""
PUBLIC = {"_replace", "_asdict", "_fields"}  # of named tuples


def private_names(source):
    """Private attributes read or set through anything but ``self``, and private names in strings and keywords."""
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls" | "ctx")):
                continue
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                pass
            case ast.Constant(value=str(name)) if name.isidentifier():
                pass
            case _:
                continue
        if name.startswith("_") and not name.startswith("__") and name not in own | PUBLIC:
            yield name


def test_each_private_part_is_reached_in_one_module():
    root = Path(softprompt.__file__).parent
    found = defaultdict(set)
    for package in ("engine", "inference"):
        for path in (root / package).rglob("*.py"):
            for name in private_names(path.read_text(encoding="utf-8")):
                found[name].add(path.relative_to(root).as_posix())
    assert dict(found) == {name: {owner} for name, owner in OWNERS.items()}


def test_private_parts_are_found():
    """The check itself: what it must see, and what it must not."""
    source = "x._a\nself._b\ngetattr(x, '_c', None)\nf(_d=1)\nx.__dict__\nx._replace(y=1)\ndef _e(): pass\nx._e"
    assert sorted(private_names(source)) == ["_a", "_c", "_d"]


# -- fallbacks -------------------------------------------------------------------------------------------


def test_softmax_backward(monkeypatch):
    torch.manual_seed(0)
    scores = torch.randn(3, 5, 7, dtype=torch.float64).masked_fill(torch.rand(3, 5, 7) < 0.3, -torch.inf)
    scores[..., 0] = 0.0
    scores.requires_grad_()
    weights, grad = scores.softmax(-1), torch.randn(3, 5, 7, dtype=torch.float64)
    (expected,) = torch.autograd.grad(weights, scores, grad)
    assert attention_cpu._SOFTMAX_BACKWARD is not None
    for private in (attention_cpu._SOFTMAX_BACKWARD, None):
        monkeypatch.setattr(attention_cpu, "_SOFTMAX_BACKWARD", private)
        found = attention_cpu.softmax_backward(grad, weights.detach())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
def test_the_engine_without_the_softmax_kernel(family, monkeypatch):
    monkeypatch.setattr(attention_cpu, "_SOFTMAX_BACKWARD", None)
    with tiny.float64(), blocks(4, 3):
        test_engine.check_rows(tiny.base(family, torch.float64), 1e-9)


@test_fused.onednn
def test_products_without_onednn(monkeypatch):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 24), torch.randn(40, 24), torch.randn(40)
    left, right = torch.randn(3, 200, 120), torch.randn(3, 120, 300)
    assert left.shape[1] * left.shape[2] * right.shape[2] >= linear.LARGE, "one call for each product"
    x.requires_grad_()

    def results():
        output = linear.frozen_linear(x, weight, bias)
        return output.detach(), torch.autograd.grad(output.square().sum(), x)[0], linear.batched(left, right)

    expected = results()
    monkeypatch.setattr(linear, "_PRODUCT", None)
    for found, reference in zip(results(), expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom", "opt350"])
def test_a_config_without_the_private_field(family, monkeypatch):
    """Its name is set by the constructor; the config of the base stays as it is."""
    base = tiny.base(family)
    before = base.config._attn_implementation
    tree = Tree((ROOT, 0, 0), (5, 6, 3))
    embeds = tiny.prompt_for(base, tree.num_tokens).detach()
    expected = ModelRunner(base, "packed").forward(tree, embeds)
    monkeypatch.setattr(packed, "_ATTENTION_FIELD", "_no_such_field")
    config = packed.with_tree_attention(base.base_model.config)
    assert config is not base.base_model.config
    assert config._attn_implementation == packed.NAME
    assert torch.equal(ModelRunner(base, "packed").forward(tree, embeds), expected)
    assert base.config._attn_implementation == before


GREEDY = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def prompted():
    model = get_peft_model(tiny.base("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    with torch.no_grad():
        model.prompt.copy_(tiny.prompt_for(model.base_model, 5))
    return model


def test_without_the_method_for_static_caches(monkeypatch):
    """Static caches are refused, whether the call or the model's own settings ask for one; the rest works."""
    model, rows = prompted(), torch.stack(tiny.ids(6, 6))
    expected = model.generate(rows, **GREEDY)
    assert torch.equal(model.generate(rows, cache_implementation="static", **GREEDY), expected)
    monkeypatch.setattr(generation_overrides, "_STATIC_CACHE", "_no_such_method")
    assert torch.equal(model.generate(rows, **GREEDY), expected)
    for more in (
        {"cache_implementation": "static"},
        {"generation_config": t.GenerationConfig(cache_implementation="static", **GREEDY)},
    ):
        with pytest.raises(ConfigError, match="leave cache_implementation out"):
            model.generate(rows, **({} if "generation_config" in more else GREEDY), **more)


@pytest.mark.parametrize("negative", [False, True])
def test_guidance_without_the_method_for_logits_processors(negative, monkeypatch):
    """The processor that transformers would make is given to it instead."""
    model, rows = prompted(), torch.stack(tiny.ids(6, 6))
    more = {"negative_prompt_ids": torch.stack(tiny.ids(4, 4, seed=20))} if negative else {}
    options = {**GREEDY, "output_scores": True, "return_dict_in_generate": True, **more}
    expected = model.generate(rows, guidance_scale=1.5, **options)
    plain = model.generate(rows, **GREEDY)
    monkeypatch.setattr(generation_overrides, "_LOGITS_PROCESSORS", "_no_such_method")
    found = model.generate(rows, guidance_scale=1.5, **options)
    assert torch.equal(found.sequences, expected.sequences)
    for ours, theirs in zip(found.scores, expected.scores, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(model.generate(rows, **GREEDY), plain), "no guidance, no processor"
