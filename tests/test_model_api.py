"""The guide's API: what PEFT's own prompt-tuning tests ask of a model, and where we are stricter."""

import copy
import logging
import pickle
import re
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers

import softprompt
import tiny
from softprompt import (
    AdapterError,
    BaseModelError,
    ConfigError,
    PeftModel,
    PeftModelForCausalLM,
    PromptEmbedding,
    PromptTuningConfig,
    get_base_model_state_dict,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)

P = 5
GREEDY = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def config(**more):
    return PromptTuningConfig(**{"task_type": "CAUSAL_LM", "num_virtual_tokens": P, **more})


def make(family="llama", dtype=torch.float32, **more):
    return get_peft_model(tiny.fresh(family, dtype), config(**more))


def inputs():
    input_ids = torch.stack(tiny.ids(8, 8))
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": input_ids}


# -- starts: also run by the mutation tests ----------------------------------------------------------


def check_text_start(tokenizer_dir):
    """TEXT rows are the embeddings of the text's tokens, in order, cut or repeated as a whole."""
    base = tiny.base("llama")
    tokens = [1, 7, 9, 40]
    for rows in (3, 4, 11):
        text = {"prompt_tuning_init_text": "w7 w9 w40", "tokenizer_name_or_path": tokenizer_dir}
        model = get_peft_model(base, config(num_virtual_tokens=rows, prompt_tuning_init="TEXT", **text))
        expected = torch.stack([base.get_input_embeddings().weight[tokens[i % 4]] for i in range(rows)])
        assert torch.equal(model.prompt, expected)


def check_sampled_start():
    """SAMPLE_VOCAB rows are rows of the vocabulary, many different ones."""
    base = tiny.base("llama")
    model = get_peft_model(base, config(num_virtual_tokens=40, prompt_tuning_init="SAMPLE_VOCAB"))
    words = base.get_input_embeddings().weight
    found = (model.prompt[:, None] == words).all(-1)  # [40, V]
    assert found.any(1).all(), "each row is a word's"
    assert found.any(0).sum() > 20, "and they differ"


def test_text_start(tokenizer_dir):
    check_text_start(tokenizer_dir)


def test_sampled_start():
    check_sampled_start()


def test_random_start_is_standard_normal():
    model = make(num_virtual_tokens=60)
    assert model.prompt.mean().abs() < 0.1
    assert (model.prompt.std() - 1).abs() < 0.1
    assert not torch.equal(model.prompt, make(num_virtual_tokens=60).prompt)


@pytest.mark.parametrize("init", ["TEXT", "SAMPLE_VOCAB"])
def test_scaled_embeddings_are_caught_scaled(init, tokenizer_dir):
    text = {"prompt_tuning_init_text": "w7", "tokenizer_name_or_path": tokenizer_dir} if init == "TEXT" else {}
    model = make("gemma3", prompt_tuning_init=init, **text)
    words = tiny.base("gemma3").get_input_embeddings()(torch.arange(tiny.VOCAB))
    assert (model.prompt[:, None] == words).all(-1).any(1).all()
    raw = tiny.base("gemma3").get_input_embeddings().weight
    assert not (model.prompt[:, None] == raw).all(-1).any()


def test_start_of_a_half_precision_base_is_float32(tokenizer_dir):
    text = {"prompt_tuning_init_text": "w7", "tokenizer_name_or_path": tokenizer_dir}
    model = make(dtype=torch.bfloat16, prompt_tuning_init="TEXT", **text)
    assert model.prompt.dtype == torch.float32
    assert torch.equal(model.prompt[1], model.base_model.get_input_embeddings().weight[7].float())


def test_start_does_not_share_the_bases_memory():
    model = make(prompt_tuning_init="SAMPLE_VOCAB")
    before = model.base_model.get_input_embeddings().weight.clone()
    with torch.no_grad():
        model.prompt.add_(1)
    assert torch.equal(model.base_model.get_input_embeddings().weight, before)


def test_tokenizer_is_called_with_its_name_and_kwargs(tokenizer_dir):
    kwargs = {"cache_dir": "somewhere", "foo": "bar", "trust_remote_code": True}
    settings = config(
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="w7",
        tokenizer_name_or_path="a/name",
        tokenizer_kwargs=kwargs,
    )
    with mock.patch("transformers.AutoTokenizer.from_pretrained", return_value=tiny.tokenizer()) as loader:
        get_peft_model(tiny.fresh("llama"), settings)
    loader.assert_called_once_with("a/name", cache_dir="somewhere", foo="bar")
    assert settings.tokenizer_kwargs == kwargs == {"cache_dir": "somewhere", "foo": "bar", "trust_remote_code": True}


def test_tokenizer_at_hand_is_used_instead_of_loading():
    settings = config(prompt_tuning_init="TEXT", prompt_tuning_init_text="w7", tokenizer_name_or_path="a/name")
    with mock.patch("transformers.AutoTokenizer.from_pretrained") as loader:
        model = get_peft_model(tiny.fresh("llama"), settings, tokenizer=tiny.tokenizer(bos=False))
    loader.assert_not_called()
    assert torch.equal(model.prompt[0], model.base_model.get_input_embeddings().weight[7])


@pytest.mark.parametrize(
    ("text", "tokenizer", "fragment"),
    [
        ("", tiny.tokenizer(bos=False), "has no tokens"),
        ("w7 strange", tiny.tokenizer(extra=["strange"]), "has only 97"),
    ],
    ids=["empty", "too-large"],
)
def test_texts_that_cannot_start_a_prompt(text, tokenizer, fragment):
    settings = config(prompt_tuning_init="TEXT", prompt_tuning_init_text=text, tokenizer_name_or_path="a/name")
    with pytest.raises(ConfigError, match=fragment):
        get_peft_model(tiny.fresh("llama"), settings, tokenizer=tokenizer)


# -- wrapping --------------------------------------------------------------------------------------


def test_names_and_attributes():
    model = make()
    for name in ("save_pretrained", "from_pretrained", "push_to_hub"):
        assert callable(getattr(model, name))
    assert isinstance(model, PeftModel)
    assert type(model) is PeftModelForCausalLM
    assert isinstance(model.prompt_encoder["default"], PromptEmbedding)
    assert model.peft_type == "PROMPT_TUNING"
    assert (model.active_adapter, model.active_adapters) == ("default", ["default"])
    assert model.active_peft_config is model.peft_config["default"]
    assert model.get_base_model() is model.base_model
    assert model.config is model.base_model.config
    assert model.device == torch.device("cpu")
    assert model.generation_config is model.base_model.generation_config
    assert model.word_embeddings is model.get_input_embeddings() is model.base_model.get_input_embeddings()
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = model.no_such_thing


@pytest.mark.parametrize("name", ["default", "another"])
def test_adapter_name_is_in_parameter_names(name):
    model = get_peft_model(tiny.fresh("llama"), config(), adapter_name=name)
    trainable = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable == [f"prompt_encoder.{name}.embedding.weight"]


@pytest.mark.parametrize("family", tiny.PEFT_FAMILIES)
def test_only_the_prompt_trains(family):
    """Parameters on the root of the base too (PEFT leaves those trainable)."""
    base = tiny.fresh(family)
    base.register_parameter("on_the_root", torch.nn.Parameter(torch.zeros(2)))
    before = {key: value.clone() for key, value in base.state_dict().items()}
    model = get_peft_model(base, config())
    assert [p.shape for p in model.parameters() if p.requires_grad] == [(P, tiny.WIDTH)]
    model.train()
    model(**inputs()).loss.backward()
    assert model.prompt.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in base.parameters())
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


def test_base_stays_in_eval_mode():
    """Dropout in a frozen base is only noise: training gives one loss, not many."""
    base = transformers.AutoModelForCausalLM.from_config(tiny.CONFIGS["gpt2"]())
    assert base.config.resid_pdrop > 0
    model = get_peft_model(base.train(), config()).train()
    assert model.training
    assert model.prompt_encoder.training
    assert not any(module.training for module in base.modules())
    losses = {model(**inputs()).loss.item() for _ in range(4)}
    assert len(losses) == 1
    assert model.eval().training is False
    assert model(**inputs()).loss.item() in losses


def test_config_is_filled_in_place():
    settings = config()
    model = get_peft_model(tiny.fresh("llama"), settings)
    assert model.peft_config["default"] is settings
    assert (settings.token_dim, settings.num_layers, settings.num_attention_heads) == (tiny.WIDTH, 2, 4)
    assert settings.num_transformer_submodules == 1
    assert settings.base_model_name_or_path is None


def test_width_is_asked_of_the_embeddings():
    """In OPT-350m it is not the hidden size."""
    model = make("opt350")
    assert model.prompt.shape == (P, 16)
    assert model(**inputs()).loss.isfinite()
    assert model.generate(inputs()["input_ids"], **GREEDY).shape == (2, 12)


def test_name_and_revision_of_the_base_are_kept():
    base = tiny.fresh("llama")
    base.name_or_path = base.config.name_or_path = "owner/base"
    settings = config()
    get_peft_model(base, settings, revision="abc")
    assert (settings.base_model_name_or_path, settings.revision) == ("owner/base", "abc")
    with pytest.warns(UserWarning, match="was renamed from"):
        get_peft_model(base, config(base_model_name_or_path="other"))
    with pytest.warns(UserWarning, match="revision"):
        get_peft_model(base, config(revision="old"), revision="new")


@pytest.mark.parametrize(
    ("settings", "error", "fragment"),
    [
        ({"num_virtual_tokens": None}, ConfigError, "num_virtual_tokens is not set"),
        ({"task_type": "SEQ_CLS"}, AdapterError, "task_type SEQ_CLS is not supported"),
        ({"modules_to_save": ["lm_head"]}, AdapterError, "modules_to_save"),
        ({"num_transformer_submodules": 2}, AdapterError, "num_transformer_submodules 2"),
        ({"token_dim": 16, "prompt_tuning_init": "SAMPLE_VOCAB"}, ConfigError, "token_dim is 16"),
    ],
    ids=["n", "task", "modules", "submodules", "width"],
)
def test_configs_that_cannot_work(settings, error, fragment):
    with pytest.raises(error, match=fragment):
        get_peft_model(tiny.fresh("llama"), config(**settings))


def test_wrong_width_with_a_random_start():
    with pytest.raises(ConfigError, match="token_dim is 16"):
        get_peft_model(tiny.fresh("llama"), config(token_dim=16))


def test_more_virtual_tokens_than_the_base_can_read():
    with pytest.raises(ConfigError, match="has 64 positions"):
        get_peft_model(tiny.fresh("gpt2"), config(num_virtual_tokens=64))
    assert make("bloom", num_virtual_tokens=64).prompt.shape[0] == 64, "ALiBi has no such limit"


def test_mixed_is_refused():
    with pytest.raises(ConfigError, match="mixed"):
        get_peft_model(tiny.fresh("llama"), config(), mixed=True)


def test_missing_task_type_means_causal_lm():
    """PEFT then ignores the prompt without a word; here there is one kind of model, and it has the prompt."""
    model = make(task_type=None)
    assert model.peft_config["default"].task_type == "CAUSAL_LM"
    assert model(input_ids=inputs()["input_ids"]).logits.shape == (2, P + 8, tiny.VOCAB)


# -- forward ---------------------------------------------------------------------------------------


def test_ids_or_embeddings():
    model = make()
    given = inputs()
    embeds = model.get_input_embeddings()(given["input_ids"])
    expected = model(**given)
    got = model(inputs_embeds=embeds, labels=given["labels"])
    both = model(input_ids=given["input_ids"].roll(1), inputs_embeds=embeds, labels=given["labels"])
    torch.testing.assert_close(got.loss, expected.loss)
    torch.testing.assert_close(got.logits, expected.logits)
    assert torch.equal(both.loss, got.loss)
    with pytest.raises(ConfigError, match="either input_ids or inputs_embeds"):
        model(attention_mask=given["attention_mask"])


def test_position_ids_are_not_used_and_it_says_so():
    model = make()
    given = inputs()
    expected = model(**given).loss
    with pytest.warns(UserWarning, match="position_ids are ignored"):
        got = model(**given, position_ids=torch.arange(8)[None] + 3).loss
    assert torch.equal(got, expected)


def test_get_prompt():
    model = make()
    assert model.get_prompt(3).shape == (3, P, tiny.WIDTH)
    assert torch.equal(model.get_prompt(3)[2], model.prompt)
    assert model.get_prompt(3).requires_grad
    assert torch.equal(model.prompt_encoder["default"](torch.tensor([4, 0])), model.prompt[[4, 0]])


@pytest.mark.parametrize("asked", [{"output_hidden_states": True}, {"use_cache": True}, {"output_attentions": True}])
def test_the_plain_way_gives_the_same_loss_and_gradient(asked):
    model = make("gemma3")
    model.base_model.set_attn_implementation("eager")
    results = []
    for more in ({}, asked):
        model.prompt.grad = None
        output = model(**inputs(), **more)
        output.loss.backward()
        results.append((output.loss.detach(), output.logits.detach(), model.prompt.grad))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert output.past_key_values.get_seq_length() == P + 8  # caches are on by default, as in transformers
    assert ("hidden_states" in output) == ("output_hidden_states" in asked)
    assert ("attentions" in output) == ("output_attentions" in asked)


def test_forward_goes_on_from_its_own_cache():
    """PEFT would put the prompt in again."""
    model = make()
    (row,) = tiny.ids(9)
    with torch.no_grad():
        whole = model(input_ids=row[None]).logits[0, -3:]
        cache = model(input_ids=row[None, :6], use_cache=True).past_key_values
        got = model(input_ids=row[None, 6:], past_key_values=cache).logits[0]
        assert cache.get_seq_length() == P + 9
    torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-5)


# -- lazy logits -----------------------------------------------------------------------------------


@pytest.fixture
def heads():
    """A model and the sizes its head was called with."""
    model = make()
    sizes = []
    with tiny.watched(model.base_model.lm_head, lambda args, kwargs, output: sizes.append(output.shape[-2])):
        yield model, sizes


def masked():
    """Inputs with three supervised tokens."""
    given = inputs()
    labels = torch.full_like(given["labels"], -100)
    labels[0, 2], labels[0, 7], labels[1, 0] = 7, 8, 9
    return {**given, "labels": labels}


def test_a_training_step_computes_logits_at_supervised_positions_only(heads):
    model, sizes = heads
    output = model(**masked())
    output.loss.backward()
    assert sizes == [3]


def test_logits_are_computed_when_read_and_once(heads):
    model, sizes = heads
    output = model(**masked())
    assert output.logits.shape == (2, P + 8, tiny.VOCAB)
    assert output["logits"] is output.logits is output[1]
    assert sizes == [3, P + 16]


def test_logits_carry_a_gradient_when_read_in_training(heads):
    model, _ = heads
    output = model(**masked())
    supervised = masked()["labels"]
    again = torch.nn.functional.cross_entropy(output.logits[:, P - 1 : -1].transpose(1, 2), supervised)
    torch.testing.assert_close(again, output.loss)
    gradients = [torch.autograd.grad(loss, model.prompt, retain_graph=True)[0] for loss in (again, output.loss)]
    torch.testing.assert_close(*gradients)


def test_walking_over_the_output_in_training_computes_nothing(heads):
    model, sizes = heads
    output = model(**masked())
    assert list(dict(output.items())) == list(output.keys()) == ["loss", "logits"]
    assert len(list(output.values())) == 2
    assert type(output)(dict(output.items())).loss is output.loss, "as accelerate rebuilds it"
    assert sizes == [3]


def test_walking_over_the_output_without_gradient_computes(heads):
    model, sizes = heads
    with torch.no_grad():
        output = model(**masked())
        values = dict(output.items())
        assert [tuple(value.shape) for value in values.values()] == [(), (2, P + 8, tiny.VOCAB)]
        assert all(isinstance(value, torch.Tensor) for value in output.values())
    assert sizes == [3, P + 16]


def test_accelerate_keeps_logits_lazy(heads):
    operations = pytest.importorskip("accelerate.utils.operations")
    model, sizes = heads
    wrapped = operations.convert_outputs_to_fp32(model.forward)
    output = wrapped(**masked())
    output.loss.backward()
    assert type(output).__name__ == "PromptedCausalLMOutput"
    assert sizes == [3]
    assert output.logits.shape == (2, P + 8, tiny.VOCAB)
    assert sizes == [3, P + 16]


def test_tuples_and_slices(heads):
    model, _ = heads
    with torch.no_grad():
        output = model(**masked())
        loss, logits = model(**masked(), return_dict=False)
        (only,) = model(input_ids=masked()["input_ids"], return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert torch.equal(only, logits)
    assert torch.equal(output[:2][1], logits)
    assert output.to_tuple()[1] is output.logits
    assert output.get("logits") is output.logits
    assert output.get("nothing", 5) == 5


# -- half precision, kbit, checkpointing -----------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "opt"])
def test_generation_in_half_precision(family):
    model = make(family, torch.bfloat16)
    mask = torch.tensor([[1, 1, 1], [1, 0, 1]])
    got = model.generate(input_ids=torch.tensor([[5, 6, 7], [8, 9, 10]]), attention_mask=mask, **GREEDY)
    assert got.shape == (2, 7)


def test_half_precision_base_trains_a_float32_prompt():
    model = make(dtype=torch.bfloat16)
    output = model(**inputs())
    output.loss.backward()
    assert (model.prompt.dtype, model.prompt.grad.dtype, output.loss.dtype) == (torch.float32,) * 3
    assert output.logits.dtype == torch.bfloat16


@pytest.mark.parametrize("init", ["RANDOM", "SAMPLE_VOCAB", "TEXT"])
def test_prepare_for_kbit_training(init, tokenizer_dir):
    base = tiny.fresh("llama", torch.bfloat16)
    assert prepare_model_for_kbit_training(base) is base
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert {parameter.dtype for parameter in base.parameters()} == {torch.float32}
    text = {"prompt_tuning_init_text": "w7", "tokenizer_name_or_path": tokenizer_dir} if init == "TEXT" else {}
    model = get_peft_model(base, config(prompt_tuning_init=init, **text))
    words = torch.tensor([[5, 6]])
    assert not model.get_input_embeddings()(words).requires_grad
    base.enable_input_require_grads()
    assert model.get_input_embeddings()(words).requires_grad
    model(**inputs()).loss.backward()
    assert model.prompt.grad.abs().sum() > 0


def test_quantised_models_get_gradient_checkpointing():
    base = tiny.fresh("llama")
    base.is_loaded_in_8bit = True
    prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert base.is_gradient_checkpointing
    other = tiny.fresh("llama")
    other.is_loaded_in_8bit = True
    prepare_model_for_kbit_training(other, use_gradient_checkpointing=False)
    assert not other.is_gradient_checkpointing


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "gpt2", "opt"])
def test_gradient_checkpointing_changes_no_gradient(family, reentrant, order):
    """Transformers' checkpointing drops caches, and the prompt lives in one: the gradient must not be lost."""
    torch.manual_seed(0)
    expected = make(family)
    expected(**inputs()).loss.backward()
    base = tiny.fresh(family)
    options = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    if order == "before":
        base.gradient_checkpointing_enable(**options)
    torch.manual_seed(0)
    model = get_peft_model(base, config())
    if order == "after":
        model.gradient_checkpointing_enable(**options)
    model.train()
    model(**inputs()).loss.backward()
    torch.testing.assert_close(model.prompt.grad, expected.prompt.grad, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in base.parameters())


# -- disabling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "gpt2"])
def test_disabled_is_the_base_exactly(family):
    model = make(family)
    given = inputs()
    plain = model.base_model(**given)
    prompted = model(**given).logits
    with model.disable_adapter():
        assert not model.has_active_enabled_adapter
        off = model(**given)
        assert torch.equal(off.logits, plain.logits)
        assert torch.equal(off.loss, plain.loss)
        assert torch.equal(
            model.generate(given["input_ids"], **GREEDY), model.base_model.generate(given["input_ids"], **GREEDY)
        )
        with model.disable_adapter():
            assert torch.equal(model(**given).logits, plain.logits)
        assert not model.has_active_enabled_adapter, "the outer context still holds"
        assert torch.equal(model(**given, position_ids=torch.arange(8)[None]).logits, plain.logits)
        assert isinstance(model(**given, return_dict=False), tuple)
        assert model(**given, use_cache=True).past_key_values is not None
        assert model(**given, use_cache=False).past_key_values is None
    assert model.has_active_enabled_adapter
    assert torch.equal(model(**given).logits, prompted)
    assert prompted.shape[1] == P + 8
    assert not torch.allclose(prompted[:, P:], plain.logits, atol=1e-3)


def test_an_error_inside_the_context_enables_the_prompt_again():
    model = make()
    with pytest.raises(ZeroDivisionError), model.disable_adapter():
        _ = 1 / 0
    assert model.has_active_enabled_adapter


def test_unload_is_an_attribute_error():
    for name in ("unload", "merge_and_unload"):
        with pytest.raises(AttributeError, match=name):
            getattr(make(), name)


# -- several adapters ------------------------------------------------------------------------------


def two():
    model = make()
    model.add_adapter("more", config(num_virtual_tokens=3))
    return model


def trainable(model):
    return [name for name in model.peft_config if model.prompt_of(name).requires_grad]


def test_adding_does_not_activate():
    model = two()
    assert model.active_adapter == "default"
    assert model.prompt.shape[0] == P
    assert model.prompt_of("more").shape[0] == 3


def test_an_added_prompt_is_not_trained_until_it_is_active():
    assert trainable(two()) == ["default"]


def test_switching_moves_the_gradient_and_the_output():
    model = two()
    outputs = {}
    for name in ("more", "default", "more"):
        model.set_adapter(name)
        assert model.active_adapter == name
        assert trainable(model) == [name]
        outputs.setdefault(name, model(**inputs()).logits)
        assert torch.equal(outputs[name], model(**inputs()).logits)
    assert outputs["more"].shape[1] == 3 + 8
    assert outputs["default"].shape[1] == P + 8
    model.zero_grad()
    model(**inputs()).loss.backward()
    assert model.prompt_of("default").grad is None
    assert model.prompt_of("more").grad.abs().sum() > 0
    model.set_adapter("default", inference_mode=True)
    assert trainable(model) == []


@pytest.mark.parametrize("name", ["default", "with.dot", "", "keys", "items"])
def test_names_that_cannot_be(name):
    model = make()
    error = ValueError if name == "default" else KeyError
    with pytest.raises(error) as caught:
        model.add_adapter(name, config())
    assert isinstance(caught.value, ConfigError)
    assert not str(caught.value).startswith('"'), "a readable line, not a repr"
    assert list(model.peft_config) == list(model.prompt_encoder) == ["default"]


def test_a_failed_addition_leaves_nothing_behind():
    model = make()
    with pytest.raises(ConfigError):
        model.add_adapter("more", config(num_virtual_tokens=None))
    assert list(model.peft_config) == list(model.prompt_encoder) == ["default"]
    model.add_adapter("more", config())


def test_unknown_adapters():
    model = make()
    for method in (model.set_adapter, model.delete_adapter):
        with pytest.raises(ValueError, match="Adapter nobody does not exist"):
            method("nobody")


def test_deleting():
    model = two()
    model.delete_adapter("more")
    assert list(model.peft_config) == list(model.prompt_encoder) == ["default"]
    assert model.active_adapter == "default"
    model.add_adapter("more", config(num_virtual_tokens=3))
    with pytest.warns(UserWarning, match="default was active and has been deleted; more is active now"):
        model.delete_adapter("default")
    assert model.active_adapters == ["more"]
    assert trainable(model) == ["more"]
    assert model(**inputs()).logits.shape[1] == 3 + 8


def test_deleting_the_last_adapter():
    """As in PEFT; a call is then an error that says what to do."""
    model = make()
    model.delete_adapter("default")
    assert (model.active_adapter, model.active_adapters) == ([], [])
    assert not model.has_active_enabled_adapter
    assert not model.get_model_status().enabled
    assert model.load_state_dict(model.state_dict()).missing_keys == []
    given = inputs()
    for call in (
        lambda: model(**given),
        lambda: model.generate(given["input_ids"]),
        lambda: model.prompt,
        lambda: model.peft_type,
    ):
        with pytest.raises(ConfigError, match="has no adapter; add one"):
            call()
    with model.disable_adapter():
        assert torch.equal(model(**given).logits, model.base_model(**given).logits)
    model.add_adapter("new", config(num_virtual_tokens=3))
    assert model.active_adapters == trainable(model) == ["new"]
    assert model(**given).logits.shape[1] == 3 + 8


# -- state dictionaries, copies --------------------------------------------------------------------


def test_adapter_state_dict():
    model = two()
    state = get_peft_model_state_dict(model, adapter_name="more")
    assert list(state) == ["prompt_embeddings"]
    assert torch.equal(state["prompt_embeddings"], model.prompt_of("more"))
    assert not state["prompt_embeddings"].requires_grad
    before = model.prompt.clone()
    result = set_peft_model_state_dict(model, {"prompt_embeddings": torch.ones(3, tiny.WIDTH)}, adapter_name="more")
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert (model.prompt_of("more") == 1).all()
    assert torch.equal(model.prompt, before)
    with pytest.raises(KeyError, match="prompt_embeddings"):
        set_peft_model_state_dict(model, {})
    for error in (RuntimeError, ValueError):
        with pytest.raises(error, match="size mismatch"):
            set_peft_model_state_dict(model, {"prompt_embeddings": torch.ones(4, tiny.WIDTH)}, adapter_name="more")


@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64])
def test_setting_keeps_the_number_type(given):
    model = make().half()
    set_peft_model_state_dict(model, {"prompt_embeddings": torch.ones(P, tiny.WIDTH, dtype=given)})
    assert model.prompt.dtype == torch.float32
    assert model.prompt.eq(1).all()


def test_base_state_dict_round_trip():
    base = tiny.fresh("llama")
    before = {key: value.clone() for key, value in base.state_dict().items()}
    model = get_peft_model(base, config())
    state = get_base_model_state_dict(model)
    assert list(state) == list(before)
    assert all(torch.equal(state[key], before[key]) for key in before)
    changed = {key: value + 1 for key, value in state.items()}
    result = set_base_model_state_dict(model, changed)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert all(torch.equal(value, changed[key]) for key, value in get_base_model_state_dict(model).items())


def test_whole_state_dict_round_trip():
    """It shares no tensors, so it can be written as safetensors, unlike PEFT's."""
    model, other = two(), two()
    state = model.state_dict()
    assert "word_embeddings.weight" not in state
    assert other.load_state_dict(state).missing_keys == []
    assert torch.equal(other.prompt, model.prompt)
    assert torch.equal(other.prompt_of("more"), model.prompt_of("more"))


def test_state_dict_of_an_adapter_file_goes_into_the_active_prompt():
    model = two()
    model.set_adapter("more")
    model.load_state_dict({"prompt_embeddings": torch.ones(3, tiny.WIDTH)})
    assert (model.prompt == 1).all()


def test_deepcopy():
    model = two()
    model.set_adapter("more")
    twin = copy.deepcopy(model)
    assert type(twin) is PeftModelForCausalLM
    assert torch.equal(twin(**inputs()).logits, model(**inputs()).logits)
    assert torch.equal(twin.generate(inputs()["input_ids"], **GREEDY), model.generate(inputs()["input_ids"], **GREEDY))
    with torch.no_grad():
        twin.prompt.add_(1)
    assert not torch.equal(twin.prompt, model.prompt)
    assert twin.base_model is not model.base_model
    assert trainable(twin) == ["more"]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_while_prompts_are_off_has_them_on(copied):
    model = make()
    with model.disable_adapter():
        twin = copied(model)
        assert not model.has_active_enabled_adapter
    assert twin.has_active_enabled_adapter
    assert torch.equal(twin(**inputs()).logits, model(**inputs()).logits)


def test_pickle():
    model = make()
    twin = pickle.loads(pickle.dumps(model))
    assert type(twin) is PeftModelForCausalLM
    assert torch.equal(twin(**inputs()).logits, model(**inputs()).logits)


# -- what others see -------------------------------------------------------------------------------


def test_isinstance_for_trainer(monkeypatch):
    """Trainer asks for PEFT's class by isinstance; without PEFT it sees a transformers model."""
    model = make()
    fake = mock.Mock()
    fake.PeftModel = type("PeftModel", (), {})
    fake.PeftModelForCausalLM = type("PeftModelForCausalLM", (fake.PeftModel,), {})
    monkeypatch.setitem(sys.modules, "peft", fake)
    assert isinstance(model, fake.PeftModel)
    assert isinstance(model, fake.PeftModelForCausalLM)
    monkeypatch.delitem(sys.modules, "peft")
    assert isinstance(model, transformers.PreTrainedModel)
    assert isinstance(model, PeftModelForCausalLM)
    assert type(model) is PeftModelForCausalLM


def test_one_module_asks_whether_peft_is_imported():
    source = Path(softprompt.__file__).parent
    asking = [path.name for path in source.rglob("*.py") if re.search(r"sys\.modules.*peft", path.read_text())]
    assert asking == ["interop.py"]


@pytest.mark.parametrize("with_peft", [True, False])
def test_pipelines_know_the_class(with_peft, monkeypatch, caplog):
    """They log an error where the class's name is not among those that generate text, as "PeftModel" is not."""
    if with_peft:
        pytest.importorskip("peft")
    else:
        monkeypatch.delitem(sys.modules, "peft", raising=False)
    model, tokenizer = make("llama"), tiny.tokenizer()
    monkeypatch.setattr("transformers.pipelines.base.logger", logging.getLogger("pipelines"))
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert caplog.messages == []
    asked = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None}
    (answer,) = pipe("w5 w6 w7", return_tensors=True, **asked)
    expected = tiny.plain_greedy(model.base_model, model.prompt, torch.tensor([1, 5, 6, 7]), 4)
    assert answer["generated_token_ids"] == expected.tolist()


def test_no_warning_on_the_usual_way(tmp_path):
    """The guide's steps, from wrapping to generation, say nothing on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make()
        model.train()
        model(**inputs()).loss.backward()
        model.generate(inputs()["input_ids"], **GREEDY)
        model.save_pretrained(tmp_path)
        PeftModel.from_pretrained(tiny.fresh("llama"), tmp_path)


def test_public_names_exist():
    for name in softprompt.__all__:
        assert getattr(softprompt, name) is not None
    assert sorted(softprompt.__all__) == dir(softprompt)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = softprompt.no_such_name


@pytest.mark.parametrize("family", ["bert", "mamba", "lfm2"])
def test_kinds_of_models_that_a_prompt_does_not_fit_are_refused(family):
    kinds = {"bert": transformers.BertLMHeadModel, "mamba": transformers.MambaForCausalLM}
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    kind = kinds.get(family, transformers.AutoModelForCausalLM)
    settings = transformers.AutoConfig.for_model(family, **sizes, intermediate_size=48, num_key_value_heads=2)
    model = kind(settings) if family in kinds else kind.from_config(settings)
    with pytest.raises(BaseModelError, match=family):
        get_peft_model(model, config())


def test_generation_config_is_the_bases():
    model = make("llama")
    model.generation_config = transformers.GenerationConfig(max_new_tokens=3, eos_token_id=None, pad_token_id=0)
    assert model.base_model.generation_config.max_new_tokens == 3
    assert model.generate(torch.tensor([[5, 6, 7]])).shape == (1, 6)


def test_wrapping_a_wrapped_model_replaces_the_prompt():
    first = make("llama")
    with pytest.warns(UserWarning, match="has a soft prompt already"):
        second = get_peft_model(first, config(num_virtual_tokens=3))
    assert second.base_model is first.base_model
    assert second(torch.tensor([[5, 6]])).logits.shape[1] == 5


@pytest.mark.parametrize("name", ["../out", "a/b", "/tmp/x", "a\\b", "a.b", ""])
def test_names_that_lead_out_of_the_folder(name):
    with pytest.raises(ConfigError, match="cannot name an adapter"):
        make("llama").add_adapter(name, config())


def test_the_class_can_be_exchanged():
    """FSDP2 assigns ``__class__``."""
    model = make("llama")
    kind = type("Sharded", (type(model),), {})
    model.__class__ = kind
    assert type(model) is kind


def test_a_frozen_prompt_loaded_again_for_training_takes_gradients(tmp_path):
    make("llama").save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny.fresh("llama"), tmp_path)
    assert not model.prompt.requires_grad
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert model.prompt.requires_grad
