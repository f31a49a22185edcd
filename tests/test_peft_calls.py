"""What code written for PEFT calls, reads and passes: the same answers, or one line that says why not."""

from contextlib import nullcontext

import pytest
import torch
from transformers import DynamicCache, StaticCache

import tiny
from softprompt import ConfigError, PromptTuningConfig, get_peft_model

P = 5
GREEDY = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def make(family="llama", **more):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, **more)
    model = get_peft_model(tiny.fresh(family), config)
    with torch.no_grad():
        model.prompt.copy_(tiny.prompt_for(model.base_model, P))
    return model


def batch():
    return torch.stack(tiny.ids(8, 8))


# -- keywords of forward ---------------------------------------------------------------------------------


def test_hidden_states_as_the_config_asks():
    model = make()
    assert model(input_ids=batch()).hidden_states is None
    model.config.output_hidden_states = True
    output = model(input_ids=batch())
    assert [state.shape[:2] for state in output.hidden_states] == 3 * [(2, P + 8)]
    assert model(input_ids=batch(), output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 6, 12])], ids=str)
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_logits_to_keep(placement, keep, plain, labelled):
    model = make(prompt_placement=placement)
    values, mask = tiny.left_pad(tiny.ids(8, 5))
    more = {"use_cache": True} if plain and placement == "prefix" else {}
    given = {"input_ids": values, "attention_mask": mask, **more} | ({"labels": values} if labelled else {})
    whole = model(**given)
    got = model(**given, logits_to_keep=keep)
    expected = whole.logits[:, -keep:] if isinstance(keep, int) else whole.logits[:, keep]
    assert got.logits.shape == (2, expected.shape[1], tiny.VOCAB)
    torch.testing.assert_close(got.logits, expected, rtol=1e-4, atol=1e-4)
    if labelled:
        torch.testing.assert_close(got.loss, whole.loss)


def test_logits_to_keep_as_in_peft():
    peft = pytest.importorskip("peft")
    ours = make()
    theirs = peft.get_peft_model(
        tiny.fresh("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    )
    theirs.prompt_encoder["default"].embedding.weight.data.copy_(ours.prompt)
    with torch.no_grad():
        got, expected = (model(input_ids=batch(), logits_to_keep=1).logits for model in (ours, theirs))
    assert got.shape == expected.shape == (2, 1, tiny.VOCAB)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_only_what_is_kept_is_computed():
    model, sizes = make(), []
    with tiny.watched(model.base_model.lm_head, lambda args, kwargs, output: sizes.append(output.shape[-2])):
        assert model(input_ids=batch(), logits_to_keep=1).logits.shape == (2, 1, tiny.VOCAB)
    assert sizes == [2]


@pytest.mark.parametrize("value", [None, False, 1, torch.ones(2, 8)], ids=["none", "false", "one", "tensor"])
@pytest.mark.parametrize("disabled", [False, True])
def test_a_misspelt_keyword_is_a_type_error(value, disabled):
    model = make()
    off = model.disable_adapter() if disabled else nullcontext()
    with off, pytest.raises(TypeError, match=r"forward\(\) got an unexpected keyword argument 'atention_mask'"):
        model(input_ids=batch(), atention_mask=value)


@pytest.mark.parametrize("name", ["is_causal", "seq_idx"])
def test_keywords_without_a_meaning_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name}: not supported with a soft prompt; leave it out"):
        make()(input_ids=batch(), **{name: True})


def test_keywords_of_the_bases_own():
    """OPT's forward has a ``head_mask``-like name that Llama's lacks: known there, refused in one line."""
    model = make("gpt2")
    with pytest.raises(ConfigError, match="encoder_hidden_states: not supported"):
        model(input_ids=batch(), encoder_hidden_states=torch.ones(2, 3, tiny.WIDTH))
    with pytest.raises(TypeError, match="encoder_hidden_states"):
        make()(input_ids=batch(), encoder_hidden_states=torch.ones(2, 3, tiny.WIDTH))


@pytest.mark.parametrize("name", ["position_ids", "token_type_ids"])
def test_what_peft_ignores_is_ignored_with_a_warning(name):
    model = make("gpt2")
    with pytest.warns(UserWarning, match=f"{name} are ignored"):
        got = model(input_ids=batch(), **{name: torch.arange(8)[None].expand(2, -1)}).logits
    assert torch.equal(got, model(input_ids=batch()).logits)


@pytest.mark.parametrize("name", ["use_cache", "output_attentions", "output_hidden_states", "past_key_values"])
def test_keywords_that_say_no_change_nothing(name):
    model = make()
    value = None if name == "past_key_values" else False
    assert torch.equal(model(input_ids=batch(), **{name: value}).logits, model(input_ids=batch()).logits)


# -- generate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_guidance_scale(family, negative):
    """The prompt is on the conditional side: scores are ``s * with - (s - 1) * without``, in log-probabilities."""
    model = make(family)
    rows = tiny.ids(6, 6)
    without = tiny.ids(4, 4, seed=20) if negative else [row[-1:] for row in rows]
    more = {"negative_prompt_ids": torch.stack(without)} if negative else {}
    got = model.generate(torch.stack(rows), guidance_scale=1.5, **GREEDY, **more)
    for new, row, other in zip(got, rows, without, strict=True):
        for _ in range(4):
            with torch.no_grad():
                on = tiny.plain_logits(model.base_model, model.prompt, row)[-1].log_softmax(-1)
                off = tiny.plain_logits(model.base_model, model.prompt[:0], other)[-1].log_softmax(-1)
            token = (1.5 * (on - off) + off).argmax()[None]
            row, other = torch.cat([row, token]), torch.cat([other, token])
        assert torch.equal(new, row)


def test_guidance_scale_for_rows_of_several_adapters():
    model = make()
    rows = tiny.ids(6, 6)
    names = ["default", "__base__"]
    got = model.generate(torch.stack(rows), adapter_names=names, guidance_scale=1.5, **GREEDY)
    alone = [
        model.generate(row[None], adapter_names=[name], guidance_scale=1.5, **GREEDY)
        for row, name in zip(rows, names, strict=True)
    ]
    assert torch.equal(got, torch.cat(alone))


# -- prepare_inputs_for_generation ---------------------------------------------------------------------------


def masks(mask):
    """A 2-D mask, and the 4-D ones that say the same: boolean and additive."""
    width = mask.shape[1]
    seen = mask.bool()[:, None, None, :] & torch.ones(width, width, dtype=torch.bool).tril()
    return {"2-D": mask, "4-D": seen, "additive": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo().min)}


@pytest.mark.parametrize("kind", ["2-D", "4-D", "additive", None])
@pytest.mark.parametrize("cache", [None, DynamicCache, StaticCache])
def test_prepared_inputs(kind, cache):
    """A loop of one's own over the base: each row goes on as it would alone."""
    model = make()
    base = model.base_model
    rows = tiny.ids(8, 5) if kind else tiny.ids(8, 8)
    ids, mask = tiny.left_pad(rows)
    kept = (
        None if cache is None else cache(config=base.config, **({"max_cache_len": 32} if cache is StaticCache else {}))
    )
    for step in range(4):
        given = None if kind is None else masks(mask)[kind]
        inputs = model.prepare_inputs_for_generation(
            ids, attention_mask=given, past_key_values=kept, use_cache=kept is not None
        )
        if step == 0:
            assert inputs["input_ids"] is None
            assert inputs["inputs_embeds"].shape == (2, P + 8, tiny.WIDTH)
            assert inputs["attention_mask"].shape[1] >= P + 8
        with torch.no_grad():
            new = base(**inputs).logits[:, -1].argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
    for got, row in zip(ids, rows, strict=True):
        assert torch.equal(got[-4:], tiny.plain_greedy(base, model.prompt.detach(), row, 4)[len(row) :])


def test_a_mask_of_another_kind_is_refused():
    model = make()
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    with pytest.raises(ConfigError, match="causal apart from padding"):
        model.prepare_inputs_for_generation(batch(), attention_mask=mask)


def test_prepared_inputs_of_a_suffix_are_refused():
    with pytest.raises(ConfigError, match="does not support prompt_placement suffix"):
        make(prompt_placement="suffix").prepare_inputs_for_generation(batch())


def test_prepared_inputs_of_a_disabled_adapter_are_the_bases():
    model = make()
    with model.disable_adapter():
        got = model.prepare_inputs_for_generation(batch(), use_cache=True)
    assert torch.equal(got["input_ids"], batch())


# -- what is read ----------------------------------------------------------------------------------------


def test_attributes():
    model = make()
    assert torch.equal(model.prompt_tokens["default"], torch.arange(P))
    assert model.prepare_model_for_gradient_checkpointing(model.base_model) is None
    assert model.get_input_embeddings()(batch()).requires_grad
    with pytest.raises(TypeError, match="a soft prompt has none"):
        model.get_layer_status()


def test_model_status():
    model = make()
    model.add_adapter("more", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    status = model.get_model_status()
    assert (status.base_model_type, status.adapter_model_type) == ("LlamaForCausalLM", "PeftModelForCausalLM")
    assert status.peft_types == {"default": "PROMPT_TUNING", "more": "PROMPT_TUNING"}
    assert status.trainable_params == P * tiny.WIDTH
    assert status.total_params == sum(p.numel() for p in model.parameters())
    assert (status.active_adapters, status.available_adapters) == (["default"], ["default", "more"])
    assert status.requires_grad == {"default": True, "more": False}
    assert status.devices == {"default": ["cpu"], "more": ["cpu"]}
    assert status.enabled
    with model.disable_adapter():
        assert not model.get_model_status().enabled


def test_status_has_the_fields_of_pefts():
    peft_model = pytest.importorskip("peft.peft_model")
    assert list(vars(make().get_model_status())) == list(peft_model.TunerModelStatus.__dataclass_fields__)


@pytest.mark.parametrize("name", ["merge_and_unload", "unload", "merge_adapter"])
def test_merging_is_explained(name):
    assert not hasattr(make(), name)
    with pytest.raises(AttributeError, match=f"no attribute '{name}': a soft prompt is not part of the weights"):
        getattr(make(), name)


def test_attribute_errors_name_our_class():
    with pytest.raises(AttributeError, match="'PeftModelForCausalLM' object has no attribute 'no_such_thing'"):
        _ = make().no_such_thing


def test_requires_grad_of_several_adapters():
    model = make()
    model.add_adapter("more", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    model.set_requires_grad(["default", "more"])
    assert [model.prompt_of(name).requires_grad for name in model.peft_config] == [True, True]
    model.set_requires_grad("default", requires_grad=False)
    assert [model.prompt_of(name).requires_grad for name in model.peft_config] == [False, True]
    with pytest.raises(ConfigError, match="Adapter nobody does not exist"):
        model.set_requires_grad("nobody")


# -- PEFT's own objects ------------------------------------------------------------------------------------


def test_a_config_of_pefts():
    peft = pytest.importorskip("peft")
    theirs = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, prompt_tuning_init="RANDOM")
    model = get_peft_model(tiny.fresh("llama"), theirs)
    config = model.active_peft_config
    assert isinstance(config, PromptTuningConfig)
    assert (config.num_virtual_tokens, config.task_type, config.token_dim) == (P, "CAUSAL_LM", tiny.WIDTH)
    model.add_adapter("more", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert len(model.prompt_of("more")) == 3


@pytest.mark.parametrize("kind", ["LoraConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_other_configs_of_pefts_are_named(kind):
    peft = pytest.importorskip("peft")
    more = {} if kind == "LoraConfig" else {"num_virtual_tokens": 3}
    with pytest.raises(ValueError, match="softprompt supports PROMPT_TUNING") as caught:
        get_peft_model(tiny.fresh("llama"), getattr(peft, kind)(task_type="CAUSAL_LM", **more))
    assert peft.__dict__[kind]().peft_type.value in str(caught.value)


def test_a_lora_model_of_pefts_as_base():
    """What it computes, adapters included, is the base: on, off and saved."""
    peft = pytest.importorskip("peft")
    base = tiny.fresh("llama")
    lora = peft.get_peft_model(
        base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    )
    with pytest.warns(UserWarning, match="trained with PEFT's adapter default"):
        model = get_peft_model(lora, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P))
    row = tiny.ids(8)[0]
    for _ in range(2):
        with torch.no_grad():
            expected = tiny.plain_logits(lora.get_base_model(), model.prompt, row)
            torch.testing.assert_close(model(input_ids=row[None]).logits[0], expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(
            model.generate(row[None], **GREEDY)[0],
            tiny.plain_greedy(lora.get_base_model(), model.prompt.detach(), row, 4),
        )
        lora.base_model.disable_adapter_layers()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "prompt_encoder.default.embedding.weight"
    ]


def test_a_prompt_model_of_pefts_as_base_is_refused():
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(
        tiny.fresh("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    with pytest.raises(ConfigError, match="get_base_model"):
        get_peft_model(theirs, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P))
