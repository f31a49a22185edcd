"""Whatever changes what the base computes is seen by the next call: the reference is a plain forward, made then."""

from __future__ import annotations

import copy
import functools
import threading
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from softprompt import ConfigError, PromptTuningConfig, get_peft_model
from softprompt.engine.surgery.lm_head import is_intercepted
from softprompt.inference.classifier import Classes, label_log_probs
from softprompt.types import Example

P = 5
GREEDY = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
CLASSES = Classes(("a", "b", "c"), ((7, 8, 9), (10,), (7, 11)))


@functools.cache
def original():
    """A llama with two LoRA adapters, of which one is on, and two prompts."""
    peft = pytest.importorskip("peft")
    base = tiny.fresh("llama")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for name in ("one", "two"):
            settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
            base.add_adapter(settings, adapter_name=name)
    base.set_adapter("one")
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P))
    model.add_adapter("more", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with torch.no_grad():
        model.prompt_of("default").copy_(tiny.prompt_for(base, P))
        model.prompt_of("more").copy_(tiny.prompt_for(base, 3, seed=8))
    return model


def layers(model):
    return model.base_model.model.layers


def lora_off(model):
    model.base_model.disable_adapters()


def lora_on(model):
    model.base_model.enable_adapters()


def lora_exchanged(model):
    other = {"one": "two", "two": "one"}[model.base_model.active_adapters()[0]]
    model.base_model.set_adapter(other)


def lora_scaled(model):
    for module in model.base_model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling.update({name: 3 * value for name, value in module.scaling.items()})


def lora_written(model):
    layers(model)[0].self_attn.q_proj.lora_B["one"].weight.data.mul_(3)


def hook_on_a_layer(model):
    layers(model)[0].register_forward_hook(lambda module, args, output: output * 1.3)


def hook_on_the_last_position(model):
    """As those that steer a model: it cares for the shape ``[B, P + T, D]`` that it would see without us."""

    def steer(module, args, output):
        output[:, -1] *= -1
        return output

    layers(model)[1].register_forward_hook(steer)


def hook_before_attention(model):
    def double(module, args, kwargs):
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] * 1.5}

    layers(model)[1].self_attn.register_forward_pre_hook(double, with_kwargs=True)


def hook_on_the_embeddings(model):
    model.base_model.get_input_embeddings().register_forward_hook(lambda module, args, output: output * 1.2)


def hook_on_the_head(model):
    model.base_model.lm_head.register_forward_hook(lambda module, args, output: output.tanh())


def hook_on_the_backbone(model):
    def shift(module, args, output):
        output.last_hidden_state = output.last_hidden_state.roll(1, -1)
        return output

    model.base_model.model.register_forward_hook(shift)


def hook_on_the_base(model):
    def cap(module, args, output):
        output.logits = output.logits.tanh() * 2
        return output

    model.base_model.register_forward_hook(cap)


def all_hooks_removed(model):
    for module in model.base_model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()


def weight_in_place(model):
    with torch.no_grad():
        layers(model)[0].self_attn.k_proj.weight.mul_(1.5)


def weight_through_data(model):
    layers(model)[1].mlp.up_proj.weight.data.mul_(1.5)


def weight_replaced(model):
    old = layers(model)[0].mlp.down_proj.weight
    layers(model)[0].mlp.down_proj.weight = torch.nn.Parameter(old.detach().roll(1, 0), requires_grad=False)


def weight_parametrised(model):
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(layers(model)[0].mlp.gate_proj, "weight", Doubled())


def head_written(model):
    with torch.no_grad():
        model.base_model.lm_head.weight.mul_(1.5)


def state_loaded(model):
    state = model.base_model.state_dict()
    model.base_model.load_state_dict({name: value * 1.1 for name, value in state.items()})


def scale_of_attention(model):
    for layer in layers(model):
        layer.self_attn.scaling *= 2


def epsilon_of_norms(model):
    for module in model.base_model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.5


def rotary_frequencies(model):
    model.base_model.model.rotary_emb.inv_freq.mul_(0.7)


def activation_exchanged(model):
    layers(model)[0].mlp.act_fn = torch.nn.Tanh()


def forward_of_a_module_replaced(model):
    mlp = layers(model)[1].mlp
    before = mlp.forward
    mlp.forward = types.MethodType(lambda self, x: -before(x), mlp)


def forward_of_the_base_replaced(model):
    base = model.base_model
    real = base.forward

    @functools.wraps(real)
    def forward(*args, **kwargs):
        output = real(*args, **kwargs)
        output.logits = -output.logits
        return output

    base.forward = forward


def module_exchanged(model):
    layers(model)[1].mlp = copy.deepcopy(layers(model)[0].mlp)


def layer_dropped(model):
    base = model.base_model
    base.model.layers = base.model.layers[:1]
    base.config.num_hidden_layers = base.model.config.num_hidden_layers = 1


def attention_implementation(model):
    model.base_model.set_attn_implementation("eager")


def number_type(model):
    model.base_model.to(torch.float64)


def number_type_and_back(model):
    model.base_model.to(torch.bfloat16).to(torch.float32)


def prompt_in_place(model):
    with torch.no_grad():
        model.prompt.mul_(0.5)


def prompt_through_data(model):
    model.prompt.data = model.prompt.data.roll(1, 0)


def prompt_trained(model):
    optimizer = torch.optim.SGD([model.prompt], lr=1.0)
    values = torch.stack(tiny.ids(8, 8))
    model(input_ids=values, labels=values).loss.backward()
    optimizer.step()


def prompt_loaded(model):
    model.load_state_dict({"prompt_embeddings": model.prompt.detach() + 0.3})


def another_prompt(model):
    model.set_adapter({"default": "more", "more": "default"}[model.active_adapter])


CHANGES = (
    lora_off,
    lora_on,
    lora_exchanged,
    lora_scaled,
    lora_written,
    hook_on_a_layer,
    hook_before_attention,
    hook_on_the_embeddings,
    hook_on_the_head,
    hook_on_the_backbone,
    hook_on_the_base,
    all_hooks_removed,
    weight_in_place,
    weight_through_data,
    weight_replaced,
    weight_parametrised,
    head_written,
    state_loaded,
    scale_of_attention,
    epsilon_of_norms,
    rotary_frequencies,
    activation_exchanged,
    forward_of_a_module_replaced,
    forward_of_the_base_replaced,
    module_exchanged,
    layer_dropped,
    attention_implementation,
    number_type,
    number_type_and_back,
    prompt_in_place,
    prompt_through_data,
    prompt_trained,
    prompt_loaded,
    another_prompt,
)
SILENT = (lora_on, all_hooks_removed, attention_implementation, number_type)
"""Those that change no number by themselves, or none but the last digits."""


def check(model):
    """Logits, loss, scores and new tokens are those that the base gives at this moment, each row alone."""
    rows = tiny.ids(8, 6)
    values, mask = tiny.left_pad(rows)
    base, prompt = model.base_model, model.prompt.detach()
    with torch.no_grad():
        expected = [tiny.plain_logits(base, prompt, row) for row in rows]
        output = model(input_ids=values, attention_mask=mask, labels=values)
        for got, alone, real in zip(output.logits, expected, mask.bool(), strict=True):
            near(got[len(prompt) :][real], alone[len(prompt) :])
        losses = torch.cat([tiny.plain_losses(base, prompt, row, row) for row in rows])
        near(output.loss, losses.mean())
    got = model.generate(input_ids=values, attention_mask=mask, **GREEDY)
    for new, row in zip(got[:, values.shape[1] :], rows, strict=True):
        assert torch.equal(new, tiny.plain_greedy(base, prompt, row, 3)[len(row) :])
    check_scores(model)


def check_scores(model):
    data = [Example(input_ids=tuple(row.tolist()), label_ids=(7,), label="a") for row in tiny.ids(9, 4)]
    if is_intercepted(model.base_model):
        with pytest.raises(ConfigError, match="put the hooks on a module inside the model"):
            label_log_probs(model.prompted, data, CLASSES, batch_size=1)
        return
    got = label_log_probs(model.prompted, data, CLASSES, batch_size=1)
    with torch.no_grad():
        plain = [
            [float(tiny.plain_score(model.base_model, model.prompt, each.input_ids, label)) for label in CLASSES.ids]
            for each in data
        ]
    near(got, torch.tensor(plain))


def test_a_hook_on_one_position_is_seen():
    """Rows without padding: with padding, what it does depends on the side, with or without a prompt."""
    model = copy.deepcopy(original())
    before = logits(model)
    hook_on_the_last_position(model)
    row = torch.stack(tiny.ids(8))
    with torch.no_grad():
        expected = tiny.plain_logits(model.base_model, model.prompt, row[0])
        got = model(input_ids=row).logits[0]
    near(got, expected)
    assert (logits(model) - before).abs().max() > 1e-3
    new = model.generate(row, **GREEDY)
    assert torch.equal(new[0], tiny.plain_greedy(model.base_model, model.prompt.detach(), row[0], 3))


def test_a_hook_on_one_position_is_seen_with_a_prompt_behind_the_text():
    model = get_peft_model(
        tiny.fresh("llama"),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, prompt_placement="suffix"),
    )
    hook_on_the_last_position(model)
    row = tiny.ids(8)[0]
    with torch.no_grad():
        model.prompt.copy_(tiny.prompt_for(model.base_model, P))
        embeds = torch.cat([model.word_embeddings(row), model.prompt])
        expected = model.base_model(inputs_embeds=embeds[None]).logits[0]
        got = model(input_ids=row[None]).logits[0]
    near(torch.cat([got[P:], got[:P]]), expected)


def test_a_hook_on_attention_weights_is_seen():
    """Bloom hands them to a module for dropout; packed attention would not."""
    base = tiny.fresh("bloom")
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P))
    with torch.no_grad():
        model.prompt.copy_(tiny.prompt_for(base, P))
    before = logits(model)
    for layer in base.transformer.h:
        layer.self_attention.attention_dropout.register_forward_pre_hook(lambda _, args: (args[0] * 1.5,))
    check(model)
    assert (logits(model) - before).abs().max() > 1e-3 * before.abs().max(), "it changes something"


def near(got, expected):
    got, expected = got.double(), expected.double()
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.stack(tiny.ids(8, 8))).logits[:, -8:].double()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(change):
    model = copy.deepcopy(original())
    before = logits(model)
    check(model)
    change(model)
    check(model)
    if change not in SILENT:
        assert (logits(model) - before).abs().max() > 1e-3 * before.abs().max(), "it changes something"


@settings(max_examples=25)
@given(changes=st.lists(st.sampled_from(CHANGES), min_size=2, max_size=6))
def test_any_sequence_of_changes_is_seen(changes):
    model = copy.deepcopy(original())
    check(model)
    for change in changes:
        if len(layers(model)) == 1 and change in _OF_THE_SECOND_LAYER:
            continue
        change(model)
        check(model)


_OF_THE_SECOND_LAYER = (
    hook_before_attention,
    weight_through_data,
    forward_of_a_module_replaced,
    module_exchanged,
)


def test_the_reported_case():
    """LoRA on the base, evaluated, taken off, evaluated again."""
    peft = pytest.importorskip("peft")
    base = tiny.fresh("llama")
    base.add_adapter(peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P))
    check(model)
    base.disable_adapters()
    check(model)


# -- one call, one prompt ---------------------------------------------------------------------------------


def test_a_call_keeps_the_prompt_it_began_with():
    """``set_adapter`` and ``disable_adapter`` in the middle of a call, as another thread would."""
    model = copy.deepcopy(original())
    values = torch.stack(tiny.ids(8, 8))
    expected = logits(model), model.generate(values, **GREEDY)
    switched = []

    def switch(*_):
        switched.append(model.disable_adapter())
        switched[-1].__enter__()
        model.set_adapter("more")

    def again():
        while switched:
            switched.pop().__exit__(None, None, None)
        model.set_adapter("default")

    with tiny.watched(model.base_model.get_input_embeddings(), switch):
        got = logits(model)
        assert switched
        again()
        assert torch.equal(got, expected[0])
        assert torch.equal(model.generate(values, **GREEDY), expected[1])
        assert len(switched) > 1
        again()
    assert torch.equal(logits(model), expected[0])


def test_threads_that_switch_adapters_get_one_or_the_other():
    model = copy.deepcopy(original())
    values = torch.stack(tiny.ids(8, 8))
    allowed = []
    for name in ("default", "more"):
        model.set_adapter(name)
        allowed.append(logits(model))
    errors, done = [], threading.Event()

    def evaluate():
        for _ in range(60):
            with torch.no_grad():
                got = model(input_ids=values).logits[:, -8:].double()
            if not any(torch.allclose(got, each, atol=1e-4) for each in allowed):
                errors.append(got)
        done.set()

    worker = threading.Thread(target=evaluate)
    worker.start()
    while not done.is_set():
        model.set_adapter("more")
        model.set_adapter("default")
    worker.join()
    assert not errors


def test_contexts_of_two_threads_that_overlap():
    """The prompt is back when the last one has ended, not the first."""
    model = copy.deepcopy(original())
    first, second = model.disable_adapter(), model.disable_adapter()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not model.has_active_enabled_adapter
    second.__exit__(None, None, None)
    assert model.has_active_enabled_adapter


def test_a_copy_after_many_calls_is_as_small_as_before():
    """Nothing that a call computes stays with the model."""
    model = copy.deepcopy(original())
    before = {name for name in vars(model) if name != "_modules"}, sum(1 for _ in model.modules())
    check(model)
    assert ({name for name in vars(model) if name != "_modules"}, sum(1 for _ in model.modules())) == before


def test_logits_read_after_an_optimizer_step_are_those_of_the_call(monkeypatch):
    """Of a batch in several packs too, whose logits are computed when they are read."""
    from softprompt.inference import forward

    model = copy.deepcopy(original())
    values = torch.stack(tiny.ids(8, 8, 8))
    expected = model(input_ids=values).logits.detach()
    monkeypatch.setattr(forward, "default_tokens_per_pack", lambda _: 8)
    output = model(input_ids=values, labels=values)
    with torch.no_grad():
        model.prompt.mul_(2)
    torch.testing.assert_close(output.logits.detach(), expected, rtol=1e-4, atol=1e-4)
