"""A prompt computed once for all that one call reads behind it: the same numbers as with the prompt in each row."""

from contextlib import contextmanager

import pytest
import torch

import tiny
from softprompt import PromptTuningConfig, get_peft_model
from softprompt.engine.runner import ModelRunner, backends
from softprompt.inference import generate as generation
from softprompt.inference import score
from softprompt.inference.classifier import Classes, label_log_probs
from softprompt.inference.evaluate import eval_loss
from softprompt.inference.score import score_labels
from softprompt.types import Example

P = 5
families = pytest.mark.parametrize("family", tiny.FAMILIES)
some = pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "mpt", "falcon_alibi", "gpt2"])
CLASSES = Classes(("a", "b", "c"), ((7, 8, 9), (10,), (7, 11)))
GREEDY = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def prompted(family="llama", dtype=torch.float32, *, fresh=False):
    """A model with a prompt that matters; with ``fresh``, on a base of its own."""
    base = tiny.fresh(family, dtype) if fresh else tiny.base(family, dtype)
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P))
    model.prompt_encoder.to(dtype)
    with torch.no_grad():
        model.prompt.copy_(tiny.prompt_for(model.base_model, P))
    return model


def examples(*lengths):
    """One row of each length, labelled in turn."""
    texts = [row.tolist() for row in tiny.ids(*lengths)]
    return [
        Example(input_ids=tuple(text), label_ids=CLASSES.ids[i % 3], label=CLASSES.names[i % 3])
        for i, text in enumerate(texts)
    ]


@torch.no_grad()
def prefilled(model):
    return ModelRunner(model.base_model).prefill_prompt(model.prompt)


@contextmanager
def prompt_runs(model):
    """Calls of the backbone with nothing but the prompt's tokens."""
    runs = []

    def note(args, kwargs, output):
        given = kwargs.get("inputs_embeds")
        if given is not None and given[0].shape == model.prompt.shape and torch.equal(given[0], model.prompt):
            runs.append(given)

    with tiny.watched(model.base_model.base_model, note):
        yield runs


# -- the same numbers ------------------------------------------------------------------------------------


@families
def test_it_holds_what_the_prompt_alone_leaves_behind(family):
    with tiny.float64():
        model = prompted(family, torch.float64)
        known = prefilled(model)
        embeds = model.prompt.detach()[None]
        plain = model.base_model.base_model(inputs_embeds=embeds, use_cache=True)
        torch.testing.assert_close(known.hidden, plain.last_hidden_state[0], rtol=1e-9, atol=1e-8)
        window = plain.past_key_values.layers[0].keys.shape[2]  # a sliding layer keeps the last ones only
        torch.testing.assert_close(
            known.layers[0][0][:, :, -window:], plain.past_key_values.layers[0].keys, rtol=0, atol=1e-9
        )
        assert not any(tensor.requires_grad for tensor in known.tensors)


@families
def test_forward_without_gradient(family):
    """Loss and logits, those of virtual positions included, as for each row alone; padding and an empty row too."""
    with tiny.float64(), torch.no_grad():
        model = prompted(family, torch.float64)
        rows = tiny.ids(9, 4, 1, 0)
        values, mask = tiny.pad(rows, [2, 0, 3, 1])
        output = model(input_ids=values, attention_mask=mask, labels=values)
        logits = output.logits
        again = model(inputs_embeds=model.get_input_embeddings()(values), attention_mask=mask).logits
        torch.testing.assert_close(again, logits, rtol=1e-9, atol=1e-8)
        losses = [tiny.plain_losses(model.base_model, model.prompt, row, row) for row in rows]
        torch.testing.assert_close(output.loss, torch.cat(losses).mean(), rtol=1e-9, atol=1e-8)
        for row, got, real in zip(rows, logits, mask.bool(), strict=True):
            expected = tiny.plain_logits(model.base_model, model.prompt, row)
            torch.testing.assert_close(got[:P], expected[:P], rtol=1e-9, atol=1e-8)
            torch.testing.assert_close(got[P:][real], expected[P:], rtol=1e-9, atol=1e-8)


@some
def test_rows_without_any_token(family):
    """Nothing is left to compute: the prompt's own hidden states answer."""
    model = prompted(family)
    empty = torch.zeros(2, 3, dtype=torch.long)
    with torch.no_grad():
        logits = model(input_ids=empty, attention_mask=empty).logits
    expected = tiny.plain_logits(model.base_model, model.prompt.detach(), empty[0, :0])
    torch.testing.assert_close(logits[:, :P], expected.expand(2, -1, -1), rtol=1e-4, atol=1e-4)
    scores = score_labels(model.base_model, prefilled(model), [[], []], [[7], [9]])
    torch.testing.assert_close(scores, expected[-1].log_softmax(-1)[[7, 9]].expand(2, 2), rtol=1e-4, atol=1e-4)
    got = model.generate(empty, attention_mask=empty, **GREEDY)
    wanted = tiny.plain_greedy(model.base_model, model.prompt.detach(), empty[0, :0], 4)
    assert torch.equal(got[:, 3:], wanted.expand(2, -1))


@families
def test_scores_and_losses_of_evaluation(family):
    with tiny.float64():
        model = prompted(family, torch.float64)
        data = examples(9, 4, 1, 6)
        got = label_log_probs(model.prompted, data, CLASSES, batch_size=2).double()
        with torch.no_grad():
            expected = [
                [tiny.plain_score(model.base_model, model.prompt, each.input_ids, label) for label in CLASSES.ids]
                for each in data
            ]
        torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-6, atol=1e-6)  # kept as float32
        count = sum(len(each.label_ids) for each in data)
        right = sum(expected[i][i % 3] for i in range(len(data)))
        assert eval_loss(model.prompted, data, batch_size=2) == pytest.approx(-float(right) / count, abs=1e-9)


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_many_classes_are_scored_a_few_texts_at_a_time(family, monkeypatch):
    """Packed, a call has a bound in tokens; level by level, where branches copy their text's keys, in keys."""
    model = prompted(family)
    texts = [row.tolist() for row in tiny.ids(7, 3, 5, 1)]
    labels = [[number, 2] for number in range(5, 45)]
    whole = score_labels(model.base_model, prefilled(model), texts, labels)
    calls = []
    real = score.plan_candidates
    monkeypatch.setattr(score, "plan_candidates", lambda *given: calls.append(len(given[1])) or real(*given))
    packed = backends(model.base_model.base_model)[0] == "packed"
    name, most = ("TOKENS_PER_CALL", 2 * 40 + 10) if packed else ("KEYS_PER_CALL", 2 * 40 * 12)
    monkeypatch.setattr(score, name, most)
    torch.testing.assert_close(score_labels(model.base_model, prefilled(model), texts, labels), whole)
    assert calls == [2, 2]
    monkeypatch.setattr(score, name, 1)
    score_labels(model.base_model, prefilled(model), texts, labels)
    assert calls[2:] == [1, 1, 1, 1]


# -- once --------------------------------------------------------------------------------------------------


@families
def test_it_is_computed_once_a_call(family):
    """Whatever the number of batches; and again by the next call, since the base may have changed."""
    model = prompted(family)
    data = examples(9, 4, 1, 6)
    with prompt_runs(model) as runs:
        label_log_probs(model.prompted, data, CLASSES, batch_size=2)
        assert len(runs) == 1
        eval_loss(model.prompted, data, batch_size=1)
        assert len(runs) == 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "bloom"])
def test_reduced_precision_is_not_kept_for_later(family):
    model = prompted(family)
    values = torch.stack(tiny.ids(8, 8))
    with torch.no_grad():
        logits = model(input_ids=values).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coarse = model(input_ids=values).logits
            model.generate(values, **GREEDY)
        assert (coarse - logits).abs().max() > 1e-3
        assert (coarse - logits).norm() < 0.1 * logits.norm()
        torch.testing.assert_close(model(input_ids=values).logits, logits)


def test_inference_mode():
    """What is computed there can be read outside, and the other way round."""
    model = prompted(fresh=True)
    values = torch.stack(tiny.ids(8, 8))
    with torch.inference_mode():
        inside = model(input_ids=values).logits
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=values).logits, inside)
    assert torch.equal(model.generate(values, **GREEDY), model.generate(values, **GREEDY))
    with torch.no_grad():
        model.prompt.mul_(0.5)
    with torch.inference_mode():
        assert not torch.allclose(model(input_ids=values).logits, inside)


def test_a_filled_cache_holds_the_prompt(monkeypatch):
    model = prompted()
    (row,) = tiny.ids(7)
    first = model.generate(row[None], return_dict_in_generate=True, **GREEDY)
    monkeypatch.setattr(generation, "_read_rows", lambda *_: pytest.fail("the prompt is in the cache already"))
    second = torch.cat([first.sequences[0], *tiny.ids(3, seed=11)])[None]
    model.generate(second, past_key_values=first.past_key_values, **GREEDY)
