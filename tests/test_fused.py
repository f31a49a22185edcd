"""Fused layers against the stock ones, which modules are exchanged, and a base that stays untouched."""

import copy
import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers as t
from torch import nn
from transformers.models.bloom.modeling_bloom import BloomGelu
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

import tiny
from plan_tools import plan_of
from softprompt.engine.loss import token_losses
from softprompt.engine.runner import ModelRunner, backends
from softprompt.engine.surgery import linear
from softprompt.engine.surgery.fused import FrozenLinear, GatedMLP, Gelu, OffsetRMSNorm, RMSNorm, fused
from softprompt.engine.surgery.view import view
from softprompt.engine.tree import ROOT, Tree

onednn = pytest.mark.skipif(linear.product_library() != "onednn", reason="this torch has no oneDNN")
families = pytest.mark.parametrize("family", tiny.FAMILIES)


def near(got, expected, tolerance):
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    if got.numel():
        assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def check_same(module, kind, x, tolerance):
    """The class that ``fused`` names computes what the module does, and its gradient, with and without autograd."""
    module = module.requires_grad_(False)
    assert fused(module) is kind
    quick = view(module, fused)
    assert type(quick) is kind
    inputs = [x.detach().requires_grad_() for _ in range(2)]
    ours, stock = (layer(each) for layer, each in zip((quick, module), inputs, strict=True))
    near(ours.detach(), stock.detach(), tolerance)
    direction = torch.randn(stock.shape, dtype=stock.dtype)
    grads = [torch.autograd.grad(out, each, direction)[0] for out, each in zip((ours, stock), inputs, strict=True)]
    near(*grads, tolerance)
    with torch.no_grad():
        near(quick(x), stock.detach(), tolerance)
    assert torch.equal(inputs[0].detach(), x), "the input stays as it was"


@onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (1, 7, 24), (2, 3, 5, 24), (24,), (1, 24), (0, 24), (1, 0, 24)], ids=str)
def test_linear(shape, bias):
    check_same(nn.Linear(24, 40, bias=bias), FrozenLinear, torch.randn(shape), 2e-6)


@onednn
def test_linear_of_strided_numbers():
    """Inputs and weights as views leave them: transposed, expanded, every other row; a weight that is tied."""
    layer = nn.Linear(24, 40)
    layer.weight = nn.Parameter(torch.randn(24, 40).t())
    table = torch.randn(24, 14)
    for x in (table.t(), table.t()[::2], torch.randn(24).expand(5, 24)):
        check_same(layer, FrozenLinear, x, 2e-6)


@onednn
def test_linear_with_a_weight_of_usual_size():
    check_same(nn.Linear(576, 1536, bias=False), FrozenLinear, torch.randn(200, 576), 2e-6)


ACTS = ["silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast", "quick_gelu", "relu", "relu2", "tanh", "mish"]


def mlp_config(**more):
    return t.LlamaConfig(hidden_size=24, intermediate_size=40, num_attention_heads=4, **more)


def gated(act, dtype=torch.float32, **more):
    return LlamaMLP(mlp_config(hidden_act=act, **more)).to(dtype)


@pytest.mark.parametrize("act", ACTS)
def test_gated_mlp(act):
    x = torch.randn(2, 7, 24)
    check_same(gated(act), GatedMLP, x, 3e-6)
    with tiny.float64():
        check_same(gated(act, torch.float64, mlp_bias=True), GatedMLP, x.double(), 1e-13)


NORMS = {
    "llama": lambda: (LlamaRMSNorm(24, eps=1e-2), RMSNorm),
    "olmo2": lambda: (Olmo2RMSNorm(24, eps=1e-5), RMSNorm),
    "gemma3": lambda: (Gemma3RMSNorm(24, eps=1e-2), OffsetRMSNorm),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 7, 24), (2, 3, 4, 24), (1, 0, 24)], ids=str)
def test_rms_norm(norm, shape):
    """Of heads too, of small numbers (where eps matters), of large ones, of a row of zeros."""
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
        with tiny.float64() if dtype is torch.float64 else torch.enable_grad():
            module, kind = NORMS[norm]()
            module.weight.data.normal_(1)
            for scale in (1, 1e-2, 1e4):
                check_same(module.to(dtype), kind, torch.randn(shape, dtype=dtype) * scale, tolerance)
            x = torch.randn(shape, dtype=dtype)
            x[:, :1] = 0
            check_same(module, kind, x, tolerance)


def test_blooms_gelu():
    """Bloom rounds a constant to 8 digits."""
    x = torch.linspace(-6, 6, 500)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 2e-8)):
        check_same(BloomGelu(), Gelu, x.to(dtype), tolerance)


# -- who is exchanged --------------------------------------------------------------------------------

#: Norms, gated MLPs and other exchanged modules of each family, linear ones aside.
EXCHANGED = {
    "llama": {"RMSNorm": 5, "GatedMLP": 2},
    "mistral": {"RMSNorm": 5, "GatedMLP": 2},
    "qwen2": {"RMSNorm": 5, "GatedMLP": 2},
    "qwen3": {"RMSNorm": 9, "GatedMLP": 2},
    "gemma": {"OffsetRMSNorm": 5, "GatedMLP": 2},
    "gemma2": {"OffsetRMSNorm": 9, "GatedMLP": 2},
    "gemma3": {"OffsetRMSNorm": 13, "GatedMLP": 2},
    "bloom": {"Gelu": 2},
    "phi3": {"RMSNorm": 5},
    "cohere": {"GatedMLP": 2},
    "granite": {"RMSNorm": 5, "GatedMLP": 2},
    "stablelm": {"GatedMLP": 2},
    "olmo2": {"RMSNorm": 9, "GatedMLP": 2},
    "smollm3": {"RMSNorm": 5, "GatedMLP": 2},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@families
def test_which_modules_are_exchanged(family, dtype):
    model = tiny.base(family, dtype)
    found = Counter(fused(module).__name__ for module in model.modules() if fused(module) is not type(module))
    linears = sum(type(module) is nn.Linear for module in model.modules())
    assert linears, "its head"
    onednn_here = dtype is torch.float32 and linear.product_library() == "onednn"
    assert found.pop("FrozenLinear", 0) == (linears if onednn_here else 0)
    expected = EXCHANGED.get(family, {})
    assert found == (expected if dtype is not torch.bfloat16 else {k: v for k, v in expected.items() if k == "Gelu"})


class Quantized(nn.Linear):
    """As libraries do it: a subclass, whose numbers are others."""

    def forward(self, x):
        return super().forward(x).round()


class ClippedMLP(LlamaMLP):
    def forward(self, x):
        return super().forward(x).clamp(-0.01, 0.01)


class ScaledRMSNorm(LlamaRMSNorm):
    def forward(self, x):
        return 3 * super().forward(x)


class OwnGelu(BloomGelu):
    pass


def of_integers():
    module = gated("silu").requires_grad_(False)
    for name in ("gate_proj", "up_proj", "down_proj"):
        weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
        module.get_submodule(name).weight = weight
    return module


STAY = {
    "trainable-linear": lambda: nn.Linear(4, 3),
    "trainable-bias": lambda: frozen_weight(nn.Linear(4, 3)),
    "trainable-norm": lambda: LlamaRMSNorm(4),
    "linear-in-16-bits": lambda: nn.Linear(4, 3).bfloat16().requires_grad_(False),
    "norm-in-16-bits": lambda: LlamaRMSNorm(4).bfloat16().requires_grad_(False),
    "mlp-in-16-bits": lambda: gated("silu", torch.bfloat16).requires_grad_(False),
    "linear-in-64-bits": lambda: nn.Linear(4, 3).double().requires_grad_(False),
    "linear-without-memory": lambda: nn.Linear(4, 3, device="meta").requires_grad_(False),
    "mlp-without-memory": lambda: gated("silu").to("meta").requires_grad_(False),
    "mlp-of-integers": of_integers,
    "quantized": lambda: Quantized(4, 3).requires_grad_(False),
    "mlp-of-its-own": lambda: ClippedMLP(mlp_config()).requires_grad_(False),
    "norm-of-its-own": lambda: ScaledRMSNorm(4).requires_grad_(False),
    "gelu-of-its-own": lambda: OwnGelu(),
    "patched-norm": lambda: patched(LlamaRMSNorm(4).requires_grad_(False)),
    "patched-mlp": lambda: patched(gated("silu").requires_grad_(False)),
    "no-gate": lambda: GPT2MLP(16, t.GPT2Config(n_embd=8)).requires_grad_(False),
    "layer-norm": lambda: nn.LayerNorm(4).requires_grad_(False),
}


def frozen_weight(linear):
    linear.weight.requires_grad_(False)
    return linear


def patched(module):
    stock = module.forward
    module.forward = lambda x: stock(x) + 1
    return module


@pytest.mark.parametrize("name", STAY)
def test_these_modules_stay_as_they_are(name):
    module = STAY[name]()
    assert fused(module) is type(module)


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4), BloomGelu], ids=["linear", "gelu"])
def test_a_patched_forward_is_the_one_that_runs(make):
    """As accelerate does it: a function on the instance, which goes before its class's."""
    module = patched(make().requires_grad_(False))
    x = torch.randn(3, 4)
    assert torch.equal(view(module, fused)(x), module(x))


def test_settings_of_a_class_are_told_apart():
    """Layers of one class that compute differently: the first one does not speak for the others."""
    config = t.Gemma3nTextConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        activation_sparsity_pattern=[0.0, 0.9],
        num_kv_shared_layers=0,
    )
    dense, sparse = (Gemma3nTextMLP(config, layer_idx=i).requires_grad_(False) for i in (0, 1))
    assert fused(dense) is GatedMLP
    assert fused(sparse) is Gemma3nTextMLP


@onednn
@pytest.mark.parametrize("shape", [(2, 130, 300, 260), (3, 5, 7, 6), (1, 2600, 64, 64)], ids=str)
def test_batched_products_whatever_the_strides(shape):
    """Parts of larger tensors and transposes, large and small, into new room and into a part of some."""
    heads, n, k, m = shape
    lefts = [torch.randn(heads, n, k), torch.randn(heads, k, n).mT, torch.randn(n, heads, k).transpose(0, 1)]
    lefts.append(torch.randn(heads, k + 3, n)[:, 3:].mT)
    rights = [torch.randn(heads, k, m), torch.randn(heads, m, k).mT, torch.randn(k, heads, m).transpose(0, 1)]
    rights.append(torch.randn(m, heads, k).transpose(0, 1).mT)
    for left, right in itertools.product(lefts, rights):
        expected = left @ right
        room = torch.full((heads, n + 4, m), torch.nan)
        linear.batched(left, right, out=room[:, 2:-2])
        for found in (linear.batched(left, right), room[:, 2:-2]):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert room[:, [0, 1, -2, -1]].isnan().all()


@onednn
def test_a_part_of_a_larger_weight_is_left_to_torch():
    """oneDNN has nothing fast for it: a thousand times slower."""
    layer = nn.Linear(24, 40).requires_grad_(False)
    layer.weight = nn.Parameter(torch.randn(40, 3, 24)[:, 1], requires_grad=False)
    assert fused(layer) is nn.Linear


def test_without_onednn_products_are_torchs(monkeypatch):
    monkeypatch.setattr(linear, "_PRODUCT", None)
    assert linear.product_library() == "torch"
    assert fused(nn.Linear(4, 3).requires_grad_(False)) is nn.Linear


def test_a_mixture_of_frozen_and_trained_layers():
    """A LoRA-like layer inside: what stands around it is exchanged, and its gradient is right."""
    module = gated("silu").requires_grad_(False)
    module.up_proj.weight.requires_grad_()
    x = torch.randn(5, 24)
    grads = []
    for layer in (module, view(module, fused)):
        grads.append(torch.autograd.grad(layer(x).square().sum(), module.up_proj.weight)[0])
    near(grads[1], grads[0], 2e-6)


# -- a base that notices nothing ---------------------------------------------------------------------


def snapshot(model):
    """All that makes a model, down to which objects its tables hold."""
    found = []
    for name, module in model.named_modules():
        own = {
            key: (id(value), tuple((k, id(v)) for k, v in value.items()) if isinstance(value, dict) else None)
            for key, value in vars(module).items()
        }
        found.append((name, id(module), type(module), own))
    config = vars(model.config)
    return found, {key: (id(value), repr(value)) for key, value in config.items()}, model.config.to_dict()


def step(model, backend, seed=3):
    """Loss of each token and gradient of the prompt, through ``run`` and the head."""
    prompt = tiny.prompt_for(model, 4, seed=seed)
    row, other = tiny.ids(7, 5, seed=seed)
    embeds = torch.cat([prompt, model.get_input_embeddings()(torch.cat([row, other]))])
    hidden = ModelRunner(model, backend).forward(Tree((ROOT, 0, 0), (4, 7, 5)), embeds)
    logits = ModelRunner(model).logits(hidden)
    (gradient,) = torch.autograd.grad(logits.square().mean(), prompt)
    return logits.detach(), gradient


@families
def test_the_base_is_left_as_it_was(family):
    model = tiny.fresh(family).requires_grad_(False)
    before = snapshot(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for backend in backends(model.base_model):
        step(model, backend)
        view(model, fused)
    assert snapshot(model) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_view_shares_weights_and_has_its_own_children():
    model = tiny.base("llama")
    copied = view(model, fused, {"config": "another"})
    assert type(copied) is type(model)
    assert copied.config == copied.model.config == "another"
    assert model.config != "another"
    assert copied.model is not model.model
    assert copied.model.embed_tokens is model.model.embed_tokens, "a leaf that is not exchanged"
    assert all(a is b for a, b in zip(copied.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("backend", ["packed", "levelwise"])
@pytest.mark.parametrize(
    "name", ["layers.1", "layers.1.mlp", "layers.1.mlp.up_proj", "layers.0.input_layernorm", "norm"]
)
def test_forward_hooks_still_run(backend, name):
    """Once a call, of exchanged layers too; what they return counts, and so do hooks in front."""
    model = tiny.fresh("llama").requires_grad_(False)
    plain, _ = step(model, backend)
    calls = []
    module = model.model.get_submodule(name)
    front = module.register_forward_pre_hook(lambda *_: calls.append("front"))
    hook = module.register_forward_hook(lambda _, args, out: calls.append("behind") or out * 1.5)
    changed, _ = step(model, backend)
    assert calls == ["front", "behind"] * (1 if backend == "packed" else 2)
    prompt, (row, _) = tiny.prompt_for(model, 4, seed=3), tiny.ids(7, 5, seed=3)
    near(changed[: 4 + 7], tiny.plain_logits(model, prompt, row).detach(), 1e-5)
    front.remove()
    hook.remove()
    assert not torch.allclose(changed, plain)
    assert torch.equal(step(model, backend)[0], plain)


def test_hooks_see_no_trial(monkeypatch):
    """Whether a class is the same as ours is tried out; hooks below it are for real calls."""
    monkeypatch.setattr("softprompt.engine.surgery.fused._same_results", {})
    model = tiny.fresh("llama").requires_grad_(False)
    shapes = []
    for layer in model.model.layers:
        layer.mlp.up_proj.register_forward_hook(lambda _, args, out: shapes.append(args[0].shape))
    step(model, "packed")
    assert shapes == [(1, 16, tiny.WIDTH)] * 2


@pytest.mark.parametrize("family", ["llama", "bloom", "gemma2"])
def test_threads_share_a_base(family):
    """Steps of different rows, both ways, at once: each gets its own numbers."""
    model = tiny.base(family)
    jobs = [(backend, seed) for seed in range(6) for backend in ("packed", "levelwise")]
    alone = [step(model, *job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: step(model, *job), jobs * 3))
    for i, (logits, gradient) in enumerate(together):
        near(logits, alone[i % len(jobs)][0], 1e-6)
        near(gradient, alone[i % len(jobs)][1], 1e-6)


def test_a_base_can_be_copied_after_a_run():
    """Nothing of ours hangs on it that would be copied, saved or sent along."""
    model = tiny.fresh("bloom").requires_grad_(False)
    step(model, "packed")
    twin = copy.deepcopy(model)
    assert {type(module).__module__.split(".")[0] for module in twin.modules()} == {"transformers", "torch"}
    row = tiny.ids(5)[0]
    plan = plan_of(4, [row], [row])
    prompt = tiny.prompt_for(model, 4).detach()
    assert torch.equal(token_losses(twin, plan, prompt), token_losses(model, plan, prompt))
