"""Continuous batching: rows join and leave between steps, and each is generated as if it were alone."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import tiny
from softprompt.engine.runner import ModelRunner
from softprompt.errors import ConfigError
from softprompt.inference import continuous
from softprompt.inference.continuous import Continuation, DecodingBatch
from softprompt.inference.mixed import run_mixed
from softprompt.inference.mixed_rows import PlacedPrompt, Prefilled, TextRow
from softprompt.inference.sampling import Sampler, Sampling
from softprompt.inference.text_stream import INCOMPLETE
from test_text_stream import byte_level

families = pytest.mark.parametrize("family", tiny.FAMILIES)
TOKENIZER = tiny.tokenizer()
"""One token a word: ``w5 w6 ...``."""
LENGTHS = (1, 2, 5, 9, 14, 20)
"""Of texts; a window of attention is 6 tokens."""


def prompts_of(runner):
    """No prompt, a prefix with and without its KV cache, and a suffix."""
    short, long = (tiny.prompt_for(runner.base, length, seed=length).detach() for length in (3, 5))
    prefilled = PlacedPrompt(long, "prefix", runner.prefill_prompt(long).detach())
    return [None, PlacedPrompt(short), prefilled, PlacedPrompt(short, "suffix")]


def texts_of(*lengths, seed=3):
    return [row.tolist() for row in tiny.ids(*lengths, seed=seed)]


def continuations(prefilled, samplings):
    return [Continuation(each, sampling, TOKENIZER) for each, sampling in zip(prefilled, samplings, strict=True)]


def started(runner, rows, samplings):
    """Rows ready for a batch, with their first token."""
    return continuations(run_mixed(runner, rows), samplings)


def add(batch, rows):
    for row in rows:
        if row.finish_reason is None:
            batch.add(row)
    return rows


def run(batch):
    while batch.rows:
        batch.step()


@torch.no_grad()
def plain_logits(model, row, new):
    """Logits ``[n, V]`` of n new tokens, from one plain call of the model on the whole row."""
    embeds = [model.get_input_embeddings()(torch.tensor([*row.input_ids], dtype=torch.long))]
    if row.prompt is not None:
        embeds.insert(0 if row.prompt.placement == "prefix" else 1, row.prompt.matrix)
    embeds.append(model.get_input_embeddings()(torch.tensor(new[:-1], dtype=torch.long)))
    return model(inputs_embeds=torch.cat(embeds)[None], use_cache=False).logits[0, -len(new) :]


def check_alone(model, row, done):
    """Each token is the most probable one of a plain call, with the same log-probability."""
    logits = plain_logits(model, row, done.new_ids)
    assert done.new_ids == logits.argmax(-1).tolist()
    expected = logits.log_softmax(-1).max(-1).values
    got = torch.tensor([each.logprob for each in done.completion().logprobs])
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-8)


def greedy(tokens, **options):
    return Sampling(tokens, logprobs=0, **options)


# ---- each row is as it would be alone


@families
@settings(max_examples=3)
@given(seed=st.integers(0, 999))
def test_rows_that_join_and_leave_at_any_step(family, seed, monkeypatch):
    """Rows of all lengths and kinds of prompts join, are removed, and finish, in any order.

    The buffer is small, so it is made anew when lines or columns are used up, or a row is longer than all before.
    """
    draw = random.Random(seed)
    for name in ("LINES", "COLUMNS", "SPARE_COLUMNS"):
        monkeypatch.setattr(continuous, name, draw.randint(1, 4))
    with tiny.float64():
        model = tiny.base(family, torch.float64)
        runner = ModelRunner(model)
        texts, prompts = texts_of(*LENGTHS, seed=seed), prompts_of(runner)
        waiting = [TextRow(draw.choice(prompts), draw.choice(texts)) for _ in range(draw.randint(4, 9))]
        batch, rows = DecodingBatch(runner), []
        while waiting or batch.rows:
            new = [waiting.pop() for _ in range(min(len(waiting), draw.randint(0, 3)))]
            samplings = [greedy(draw.randint(1, 9)) for _ in new]
            if draw.random() < 0.5:  # the step is part of the batch that starts rows
                results = run_mixed(runner, [*new, *batch.step_rows()])
                batch.accept(results[len(new) :])
                done = add(batch, continuations(results[: len(new)], samplings))
            else:
                done = add(batch, started(runner, new, samplings))
                batch.step()
            rows += zip(new, done, strict=True)
            if len(batch.rows) > 1 and draw.random() < 0.2:
                batch.remove(draw.choice(batch.rows))
        for row, done in rows:
            if done.finish_reason is None:  # removed
                assert done.new_ids == plain_logits(model, row, done.new_ids).argmax(-1).tolist()
            else:
                check_alone(model, row, done)


def test_many_steps_and_rows():
    """The buffer has its usual size, and is made anew several times."""
    with tiny.float64():
        model = tiny.base("llama", torch.float64)
        runner = ModelRunner(model)
        rows = [TextRow(None, text) for text in texts_of(*range(1, continuous.LINES + 4), continuous.COLUMNS + 1)]
        tokens = [continuous.SPARE_COLUMNS + continuous.COLUMNS + 2, *range(3, len(rows) + 2)]
        batch, done = DecodingBatch(runner), []
        for row, number in zip(rows, tokens, strict=True):
            done += add(batch, started(runner, [row], [greedy(number)]))
        run(batch)
        for row, each in zip(rows, done, strict=True):
            check_alone(model, row, each)


@pytest.mark.real
@torch.no_grad()
def test_the_default_model(smollm2):
    """Texts of several lengths, of which one joins two steps after the other, as transformers generates them."""
    texts = [smollm2.tokenizer(text)["input_ids"] for text in ("The capital of France is", "1, 2,")]
    runner = ModelRunner(smollm2.model)
    batch, done = DecodingBatch(runner), []
    for text in texts:
        done += add(batch, started(runner, [TextRow(None, text)], [Sampling(6)]))
        batch.step()
        batch.step()
    run(batch)
    for text, row in zip(texts, done, strict=True):
        ids = torch.tensor([text])
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        expected = smollm2.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert row.new_ids == expected[0, len(text) :].tolist()


def test_a_row_whose_numbers_overflow_does_not_reach_the_others():
    """Its keys and values are NaN. Others are computed beside it, and after it in its place."""
    with tiny.float64():
        model = tiny.base("llama", torch.float64)
        runner = ModelRunner(model)
        rows = [TextRow(None, text) for text in texts_of(3, 2, 4)]
        sampled = Sampling(5, temperature=1.0, seed=0)
        broken = run_mixed(runner, [TextRow(None, texts_of(9)[0])])[0]
        broken = Prefilled(broken.cache.map(lambda states: states * torch.nan), broken.logits)
        batch = DecodingBatch(runner)
        lost = continuations([broken] * 2, [sampled, greedy(5)])
        first = add(batch, [*started(runner, rows[:1], [greedy(6)]), *lost])[0]
        batch.step()
        for row in lost:
            batch.remove(row)
        others = add(batch, started(runner, rows[1:], [greedy(6)] * 2))
        run(batch)
        for row, done in zip(rows, [first, *others], strict=True):
            check_alone(model, row, done)


def test_steps_return_the_rows_that_got_a_token():
    runner = ModelRunner(tiny.base("llama"))
    batch = DecodingBatch(runner)
    assert batch.step() == batch.accept(batch.step_rows()) == []
    rows = started(runner, [TextRow(None, text) for text in texts_of(3, 5, 1)], [Sampling(n) for n in (3, 2, 1)])
    assert [row.finish_reason for row in rows] == [None, None, "length"]  # its first token was its last
    add(batch, rows)
    assert batch.step() == rows[:2]
    assert [row.finish_reason for row in rows] == [None, "length", "length"]
    assert batch.step() == rows[:1]
    batch.remove(rows[0])  # a row that is not there
    assert batch.step() == batch.rows == []
    assert [len(row.new_ids) for row in rows] == [3, 2, 1]


def test_a_removed_row_gets_no_more_tokens():
    runner = ModelRunner(tiny.base("llama"))
    batch = DecodingBatch(runner)
    rows = add(batch, started(runner, [TextRow(None, text) for text in texts_of(3, 5)], [Sampling(9)] * 2))
    batch.step()
    batch.remove(rows[0])
    assert batch.step() == rows[1:]
    batch.remove(rows[1])
    assert batch.step() == []
    assert [len(row.new_ids) for row in rows] == [2, 3]


def test_a_row_with_more_tokens_than_the_model_has_positions():
    runner = ModelRunner(tiny.base("gpt2"))
    batch = DecodingBatch(runner)
    text = texts_of(60)[0]
    fits, too_long = started(runner, [TextRow(None, text)] * 2, [Sampling(5), Sampling(6)])
    batch.add(fits)
    with pytest.raises(ConfigError, match="65 tokens"):
        batch.add(too_long)
    run(batch)
    assert len(fits.new_ids) == 5
    assert len(too_long.new_ids) == 1


# ---- the choice of tokens


WAYS = {
    "temperature": Sampling(7, temperature=0.8, seed=1),
    "top_k": Sampling(7, temperature=2.0, top_k=4, seed=2),
    "top_p": Sampling(7, temperature=1.5, top_p=0.7, seed=3),
    "all": Sampling(7, temperature=3.0, top_p=0.9, top_k=9, seed=-4),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_sample_depends_on_its_seed_alone(way):
    """Not on batch mates, nor on the state of torch's own generator."""
    with tiny.float64():
        runner = ModelRunner(tiny.base("llama", torch.float64))
        row, *others = (TextRow(None, text) for text in texts_of(4, 7, 1))

        def new_ids(mates, state):
            torch.manual_seed(state)
            batch = DecodingBatch(runner)
            samplings = [WAYS[way], Sampling(3), Sampling(9, temperature=1.0)][: 1 + len(mates)]
            rows = add(batch, started(runner, [row, *mates], samplings))
            run(batch)
            return rows[0].new_ids

        alone = new_ids([], 0)
        assert new_ids(others, 1) == alone
        assert new_ids(others[:1], 2) == alone


def test_samples_of_other_seeds_and_without_a_seed_differ():
    runner = ModelRunner(tiny.base("llama"))
    batch = DecodingBatch(runner)
    samplings = [Sampling(9, temperature=5.0, seed=seed) for seed in (0, 0, 1, None, None)]
    rows = add(batch, started(runner, [TextRow(None, [7])] * 5, samplings))
    run(batch)
    assert len({tuple(row.new_ids) for row in rows}) == 4


@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_drawn_from_the_distribution_of_transformers(way):
    """Chi-squared: 1,500 tokens against the probabilities after transformers' own warpers."""
    sampling = WAYS[way]
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0)) * 2
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    expected = 1500 * warpers(None, logits[None])[0].softmax(-1)
    sampler = Sampler(sampling)
    counts = torch.bincount(torch.tensor([sampler.choose(logits) for _ in range(1500)]), minlength=12)
    possible = expected > 0
    assert not counts[~possible].any()
    assert 1 < possible.sum() <= (sampling.top_k or 12)
    chi_squared = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_squared < 31.3  # exceeded with a probability of 0.1 % for 11 degrees of freedom


def test_one_row_draws_and_another_takes_the_most_probable_token():
    with tiny.float64():
        model = tiny.base("llama", torch.float64)
        runner = ModelRunner(model)
        row = TextRow(None, texts_of(4)[0])
        batch = DecodingBatch(runner)
        one, other = add(batch, started(runner, [row] * 2, [greedy(7), Sampling(7, temperature=9.0, seed=0)]))
        run(batch)
        check_alone(model, row, one)
        assert one.new_ids != other.new_ids


# ---- texts, ends and log-probabilities


def generated(sampling, text=(7, 8, 9), family="llama"):
    """A finished row, and what was taken of it after each step."""
    runner = ModelRunner(tiny.base(family))
    batch = DecodingBatch(runner)
    (found,) = run_mixed(runner, [TextRow(None, list(text))])
    row = Continuation(found, sampling, TOKENIZER, text)
    deltas = [row.take()]
    add(batch, [row])
    while batch.rows:
        batch.step()
        deltas.append(row.take())
    return row, deltas


def words(ids):
    return [f" w{token}" for token in ids]


def test_the_parts_add_up_to_the_text():
    row, deltas = generated(Sampling(8, logprobs=2))
    done = row.completion()
    assert done.text == "".join(words(row.new_ids)) == "".join(delta.text for delta in deltas)
    assert done.logprobs == tuple(each for delta in deltas for each in delta.logprobs)
    assert [delta.text for delta in deltas] == words(row.new_ids)
    assert (done.num_tokens, done.finish_reason) == (8, "length")


def test_logprobs_are_of_the_distribution_before_it_is_changed():
    sampling = Sampling(6, temperature=4.0, top_k=5, seed=1, logprobs=3)
    row, _ = generated(sampling)
    logits = plain_logits(tiny.base("llama"), TextRow(None, [7, 8, 9]), row.new_ids)
    expected = logits.log_softmax(-1)
    done = row.completion()
    assert done.logprobs is not None
    for token, own, each in zip(row.new_ids, expected, done.logprobs, strict=True):
        assert each.token == f" w{token}"
        assert each.logprob == pytest.approx(float(own[token]), abs=1e-4)
        values, ids = own.topk(3)
        assert [name for name, _ in each.top] == words(ids.tolist())
        assert [value for _, value in each.top] == pytest.approx(values.tolist(), abs=1e-4)
        assert done.text[each.offset :].startswith(each.token)


@pytest.mark.parametrize("number", [None, 0, 1, 1000])
def test_the_number_of_alternatives(number):
    row, _ = generated(Sampling(3, logprobs=number))
    found = row.completion().logprobs
    assert (found is None) == (number is None)
    assert {len(each.top) for each in found or ()} == ({min(number, tiny.VOCAB)} if found else set())


def test_an_end_token_is_no_part_of_the_text():
    whole, _ = generated(Sampling(8))
    end = next(token for token in whole.new_ids if token != whole.new_ids[0])
    place = whole.new_ids.index(end)
    row, deltas = generated(Sampling(8, end_token_ids=(1, end), logprobs=0))
    done = row.completion()
    assert done.text == "".join(words(whole.new_ids[:place])) == "".join(delta.text for delta in deltas)
    assert (done.num_tokens, done.finish_reason) == (place + 1, "stop")
    assert len(done.logprobs) == place
    first, _ = generated(Sampling(8, end_token_ids=(whole.new_ids[0],)))
    assert (first.completion().text, first.completion().num_tokens) == ("", 1)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 9), (3, 7), (5, 8), (2, 12), (9, 10)])
def test_a_stop_string_ends_the_text_and_its_log_probabilities(start, end):
    """Wherever it begins and ends: within a token, or across several."""
    whole, _ = generated(Sampling(8, logprobs=1))
    text = whole.completion().text
    stop = text[start:end]
    start = text.index(stop)
    row, deltas = generated(Sampling(8, logprobs=1, stop=("never", stop)))
    done = row.completion()
    assert done.text == "".join(delta.text for delta in deltas) == text[:start]
    assert (done.finish_reason, row.finish_reason) == ("stop", "stop")
    assert done.num_tokens == len(row.new_ids) < 8
    kept = [each for each in whole.completion().logprobs if each.offset < start]
    assert [each.logprob for each in done.logprobs] == pytest.approx([each.logprob for each in kept], abs=1e-5)
    assert done.logprobs == tuple(each for delta in deltas for each in delta.logprobs)


@pytest.mark.parametrize("end", ["length", "stop"])
def test_a_text_that_ends_within_a_character(end):
    """The tokenizer's replacement character stands for the rest of the bytes, and what comes before is not lost."""
    tokenizer = byte_level()
    ids = tokenizer.convert_tokens_to_ids(["is", "naÃ", "e"])
    row = written(tokenizer, ids, Sampling(2 if end == "length" else 3, end_token_ids=ids[2:], logprobs=0))
    done = row.completion()
    assert (done.text, row.finish_reason) == ("isna" + INCOMPLETE, end)
    assert row.take().text == done.text
    assert [each.offset for each in done.logprobs] == [0, 2]
    stopped = written(tokenizer, ids, Sampling(3, end_token_ids=ids[2:], stop=("na",)))
    assert (stopped.completion().text, stopped.finish_reason) == ("is", "stop")


def written(tokenizer, ids, sampling):
    """A row that chooses the given tokens."""
    logits = torch.nn.functional.one_hot(torch.tensor(ids), len(tokenizer)).float()
    row = Continuation(Prefilled(None, logits[0]), sampling, tokenizer)
    for each in logits[1:]:
        if row.finish_reason is None:
            row.advance(each)
    return row


def test_a_stop_string_in_the_last_token_counts_as_stop():
    whole, _ = generated(Sampling(4))
    row, _ = generated(Sampling(4, stop=(words(whole.new_ids)[-1][1:],)))
    assert row.finish_reason == "stop"
