"""``adapter_names``: each row of a batch behind the prompt of its own; the reference is each row alone."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from softprompt import ConfigError, PromptTuningConfig, get_peft_model

LENGTHS = {"default": 5, "long": 9, "short": 2}
NAMES = ["short", "__base__", "long", "default", "short", "__base__"]
GREEDY = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
families = pytest.mark.parametrize("family", tiny.FAMILIES)
some = pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "mpt", "gpt2", "gptj"])


def several(family="llama", dtype=torch.float32):
    """A model with prompts of several lengths."""
    model = get_peft_model(tiny.base(family, dtype), config(LENGTHS["default"]))
    for name in ("long", "short"):
        model.add_adapter(name, config(LENGTHS[name]))
    model.prompt_encoder.to(dtype)
    with torch.no_grad():
        for seed, (name, length) in enumerate(LENGTHS.items()):
            model.prompt_of(name).copy_(tiny.prompt_for(model.base_model, length, seed=seed))
    return model


def config(length, **more):
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length, **more)


def prompt_of(model, name):
    return tiny.prompt_for(model.base_model, 2)[:0].detach() if name == "__base__" else model.prompt_of(name)


def losses_alone(model, name, row):
    """Of every token but one that nothing predicts."""
    labels = row.clone()
    if name == "__base__":
        labels[:1] = -100
        logits = tiny.plain_logits(model.base_model, prompt_of(model, name), row)[:-1]
        return torch.nn.functional.cross_entropy(logits.float(), labels[1:], reduction="none")
    return tiny.plain_losses(model.base_model, model.prompt_of(name), row, labels)


def check(model, rows, names, lefts, total=None):
    """Loss, logits and gradients of a padded batch."""
    values, mask = tiny.pad(rows, lefts, total)
    for name in LENGTHS:
        model.prompt_of(name).grad = None
    model.set_requires_grad(list(LENGTHS))
    output = model(input_ids=values, attention_mask=mask, labels=values, adapter_names=names)
    width = max(LENGTHS.get(name, 0) for name in names)
    assert output.logits.shape == (len(rows), width + values.shape[1], tiny.VOCAB)
    for got, row, name, real in zip(output.logits, rows, names, mask.bool(), strict=True):
        expected = tiny.plain_logits(model.base_model, prompt_of(model, name), row)
        length = LENGTHS.get(name, 0)
        torch.testing.assert_close(got[width - length : width], expected[:length], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(got[width:][real], expected[length:], rtol=1e-8, atol=1e-8)
        assert not got[: width - length].any(), "shorter prompts have padding on their left"
        assert not got[width:][~real].any()
    plain = torch.cat([losses_alone(model, name, row) for name, row in zip(names, rows, strict=True)]).mean()
    torch.testing.assert_close(output.loss, plain, rtol=1e-8, atol=1e-8)
    used = [model.prompt_of(name) for name in dict.fromkeys(names) if name != "__base__"]
    if used:
        ours, wanted = (torch.autograd.grad(loss, used) for loss in (output.loss, plain))
        for one, other in zip(ours, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@families
def test_rows_of_several_prompts(family):
    with tiny.float64():
        rows = tiny.ids(7, 9, 3, 5, 7, 1)
        check(several(family, torch.float64), rows, NAMES, [2, 0, 3, 0, 1, 4], 10)


@settings(max_examples=20)
@given(data=st.data())
def test_any_mixture(data):
    names = data.draw(st.lists(st.sampled_from(sorted({*LENGTHS, "__base__"})), min_size=1, max_size=6))
    lengths = [data.draw(st.integers(1, 8)) for _ in names]
    lefts = [data.draw(st.integers(0, 3)) for _ in names]
    with tiny.float64():
        rows = tiny.ids(*lengths, seed=data.draw(st.integers(0, 99)))
        if sum(lengths) > 1 and any(n > 1 or name != "__base__" for n, name in zip(lengths, names, strict=True)):
            check(several("llama", torch.float64), rows, names, lefts)


@some
def test_the_plain_way_says_the_same(family):
    """Asked for caches, the base reads one padded batch."""
    model = several(family)
    rows = tiny.ids(7, 9, 3, 5, 7, 2)
    values, mask = tiny.left_pad(rows)
    given = {"input_ids": values, "attention_mask": mask, "labels": values, "adapter_names": NAMES}
    ours, plain = model(**given), model(**given, use_cache=True)
    assert plain.past_key_values is not None
    torch.testing.assert_close(plain.loss, ours.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.logits, ours.logits, rtol=1e-3, atol=1e-4)


@families
@pytest.mark.parametrize("options", [{}, {"use_cache": False}], ids=["engine", "no-cache"])
def test_generation(family, options):
    model = several(family)
    rows = tiny.ids(7, 9, 3, 5, 7, 1)
    values, mask = tiny.left_pad(rows)
    got = model.generate(values, attention_mask=mask, adapter_names=NAMES, **GREEDY | options)
    for new, name, row in zip(got[:, values.shape[1] :], NAMES, rows, strict=True):
        expected = tiny.plain_greedy(model.base_model, prompt_of(model, name), row, 4)
        assert torch.equal(new, expected[len(row) :]), name


@some
def test_beams_read_the_prompt_of_their_row(family):
    model = several(family)
    rows = tiny.ids(6, 6, 6)
    options = GREEDY | {"num_beams": 3, "num_return_sequences": 2, "use_cache": True}
    names = ["long", "__base__", "short"]
    got = model.generate(torch.stack(rows), adapter_names=names, **options)
    alone = [model.generate(row[None], adapter_names=[name], **options) for row, name in zip(rows, names, strict=True)]
    assert torch.equal(got, torch.cat(alone))


def test_a_second_turn():
    model = several()
    rows, names = tiny.ids(6, 6, 6), ["long", "__base__", "short"]
    first = model.generate(torch.stack(rows), adapter_names=names, return_dict_in_generate=True, **GREEDY)
    more = torch.cat([first.sequences, torch.stack(tiny.ids(3, 3, 3, seed=9))], dim=1)
    got = model.generate(more, adapter_names=names, past_key_values=first.past_key_values, **GREEDY)
    for new, name, row in zip(got, names, more, strict=True):
        assert torch.equal(new, tiny.plain_greedy(model.base_model, prompt_of(model, name), row, 4))


def test_one_name_for_all_rows_is_the_active_adapter():
    model = several()
    values = torch.stack(tiny.ids(8, 8))
    model.set_adapter("long")
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=values, adapter_names=["long"] * 2).logits, model(input_ids=values).logits
        )


def test_rows_without_a_prompt_are_the_base():
    model = several()
    values = torch.stack(tiny.ids(8, 8))
    with torch.no_grad():
        got = model(input_ids=values, labels=values, adapter_names=["__base__"] * 2)
        expected = model.base_model(input_ids=values, labels=values)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.loss, expected.loss)


def test_an_adapter_that_is_not_trained_takes_no_gradient():
    model = several()
    values = torch.stack(tiny.ids(8, 8))
    model(input_ids=values, labels=values, adapter_names=["default", "short"]).loss.backward()
    assert model.prompt_of("default").grad.abs().sum() > 0
    assert model.prompt_of("short").grad is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["default", "nobody"], "Adapter nobody does not exist; existing adapters: default, long, short"),
        (["default"], r"one name per row: the batch has 2 rows, the names are \['default'\]"),
        ("default", "one name per row: the batch has 2 rows, the names are 'default'"),
        (["default", "behind"], "'behind' has prompt_placement suffix"),
    ],
    ids=["unknown", "few", "text", "suffix"],
)
def test_names_that_cannot_be(names, message):
    model = several()
    if "behind" in names:
        model = copy.deepcopy(model)
        model.add_adapter("behind", config(3, prompt_placement="suffix"))
    values = torch.stack(tiny.ids(8, 8))
    for call in (model, model.generate):
        with pytest.raises(ConfigError, match=message):
            call(input_ids=values, adapter_names=names)


def test_base_is_no_name_for_an_adapter():
    with pytest.raises(ConfigError, match="cannot name an adapter"):
        several().add_adapter("__base__", config(2))
