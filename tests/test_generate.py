"""Generation against a plain loop that recomputes everything for each token, one row at a time."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, GenerationConfig, StaticCache
from transformers.generation.streamers import BaseStreamer

import tiny
from softprompt import ConfigError, PromptTuningConfig, get_peft_model
from softprompt.engine.row_prompts import RowPrompts
from softprompt.inference import generate as generation

STEPS = 6
GREEDY = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
families = pytest.mark.parametrize("family", tiny.FAMILIES)
some = pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "bloom", "mpt", "falcon_alibi", "gpt2", "opt"])
LENGTHS = (9, 4, 6, 1)


def prompted(family, rows=5):
    model = get_peft_model(tiny.base(family), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=rows))
    with torch.no_grad():
        model.prompt.copy_(tiny.prompt_for(model.base_model, rows))
    return model


def alone(model, rows, steps=STEPS):
    """New tokens of every row by itself: the reference."""
    return torch.stack([tiny.plain_greedy(model.base_model, model.prompt, row, steps)[len(row) :] for row in rows])


def check_generation(model, rows, input_ids, mask, **options):
    """New tokens of a batch are those of each row alone; its own tokens come back as they were given."""
    got = model.generate(input_ids=input_ids, attention_mask=mask, **GREEDY, **options)
    width = input_ids.shape[1]
    assert torch.equal(got[:, :width], input_ids)
    assert torch.equal(got[:, width:], alone(model, rows))


def check_left_padded(model, **options):
    rows = tiny.ids(*LENGTHS)
    check_generation(model, rows, *tiny.left_pad(rows), **options)


def check_prompt_matters(model):
    """Without the prompt the same rows go on in another way: else the other checks would prove nothing."""
    rows = tiny.ids(*LENGTHS)
    without = torch.stack(
        [tiny.plain_greedy(model.base_model, model.prompt[:0], row, STEPS)[len(row) :] for row in rows]
    )
    assert not torch.equal(without, alone(model, rows))


@families
def test_left_padded_batch(family):
    model = prompted(family)
    check_prompt_matters(model)
    check_left_padded(model)


@families
def test_right_padded_batch(family):
    rows = tiny.ids(*LENGTHS)
    check_generation(prompted(family), rows, *tiny.pad(rows))


@families
def test_without_a_cache(family):
    check_left_padded(prompted(family), use_cache=False)


@families
def test_static_cache(family):
    if family == "gpt_neo":  # transformers' own answer is wrong there, with or without a prompt
        with pytest.raises(ConfigError, match="static cache"):
            check_left_padded(prompted(family), cache_implementation="static")
    else:
        check_left_padded(prompted(family), cache_implementation="static")


@families
def test_second_turn_on_the_filled_cache(family):
    """More tokens of the user behind the answer: the cache is read on, and the prompt is in it once."""
    model = prompted(family)
    rows = tiny.ids(*LENGTHS)
    input_ids, mask = tiny.left_pad(rows)
    options = {**GREEDY, "use_cache": True}  # MPT's config says False
    first = model.generate(input_ids=input_ids, attention_mask=mask, return_dict_in_generate=True, **options)
    cached = first.past_key_values.get_seq_length()
    assert cached == 5 + input_ids.shape[1] + STEPS - 1
    more = torch.stack(tiny.ids(3, 3, 3, 3, seed=11))
    second = torch.cat([first.sequences, more], dim=1)
    seen = torch.cat([mask, torch.ones(4, STEPS + 3, dtype=torch.long)], dim=1)
    got = model.generate(input_ids=second, attention_mask=seen, past_key_values=first.past_key_values, **options)
    whole = [row[kept.bool()] for row, kept in zip(second, seen, strict=True)]
    assert torch.equal(got[:, second.shape[1] :], alone(model, whole))


@some
def test_second_turn_without_a_mask(family):
    model = prompted(family)
    (row,) = tiny.ids(7)
    first = model.generate(input_ids=row[None], return_dict_in_generate=True, **GREEDY)
    second = torch.cat([first.sequences[0], *tiny.ids(4, seed=11)])
    got = model.generate(input_ids=second[None], past_key_values=first.past_key_values, **GREEDY)
    assert torch.equal(got[:, len(second) :], alone(model, [second]))


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "mpt", "gpt2", "opt"])
def test_empty_cache_given_by_the_caller(family):
    model = prompted(family)
    cache = DynamicCache()
    check_left_padded(model, past_key_values=cache)
    assert cache.get_seq_length() == 5 + max(LENGTHS) + STEPS - 1


def test_own_static_cache_with_room_for_the_prompt():
    model = prompted("llama")
    cache = StaticCache(config=model.base_model.config, max_cache_len=5 + max(LENGTHS) + STEPS)
    check_left_padded(model, past_key_values=cache)


@some
@settings(max_examples=8)
@given(data=st.data())
def test_any_padding_and_any_batch_mates(family, data):
    """Left, right or both, any lengths: every row goes on as it would alone."""
    lengths = data.draw(st.lists(st.integers(1, 10), min_size=1, max_size=4))
    lefts = [data.draw(st.integers(0, 4)) for _ in lengths]
    rights = data.draw(st.integers(0, 3))
    rows = tiny.ids(*lengths, seed=data.draw(st.integers(0, 1000)))
    total = max(a + b for a, b in zip(lefts, lengths, strict=True)) + rights
    fill = data.draw(st.sampled_from([0, 2, 50]))
    check_generation(prompted(family, 3), rows, *tiny.pad(rows, lefts, total, fill))


@some
def test_inputs_embeds(family):
    """Embeddings instead of ids: the same new tokens, and (as in transformers) only these come back."""
    model = prompted(family)
    rows = tiny.ids(*LENGTHS)
    input_ids, mask = tiny.left_pad(rows)
    embeds = model.base_model.get_input_embeddings()(input_ids)
    got = model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY)
    assert torch.equal(got, alone(model, rows))


@pytest.mark.parametrize("backend", ["positional", "inputs", "input_ids"])
def test_ways_to_hand_over_ids(backend):
    model = prompted("llama")
    (row,) = tiny.ids(6)
    if backend == "positional":
        got = model.generate(row[None], **GREEDY)
    else:
        got = model.generate(**{backend: row[None]}, **GREEDY)
    assert torch.equal(got[:, 6:], alone(model, [row]))


@some
def test_no_mask_and_mask_of_ones_are_one(family):
    model = prompted(family)
    rows = tiny.ids(6, 6)
    batch = torch.stack(rows)
    expected = alone(model, rows)
    for mask in (None, torch.ones(2, 6), torch.ones(2, 6, dtype=torch.long), torch.ones(2, 6, dtype=torch.bool)):
        assert torch.equal(model.generate(input_ids=batch, attention_mask=mask, **GREEDY)[:, 6:], expected)


@some
def test_row_without_any_token(family):
    """A mask of zeros: the prompt alone speaks."""
    model = prompted(family)
    rows = [*tiny.ids(4), torch.empty(0, dtype=torch.long)]
    check_generation(model, rows, *tiny.left_pad(rows))


def test_without_any_input_it_starts_from_the_start_token():
    model = prompted("llama")
    expected = tiny.plain_greedy(model.base_model, model.prompt, torch.tensor([1]), STEPS)
    assert torch.equal(model.generate(**GREEDY)[0], expected)


class Collector(BaseStreamer):
    def __init__(self):
        self.got, self.ended = [], False

    def put(self, value):
        assert not self.ended
        self.got.append(value.clone())

    def end(self):
        self.ended = True


def test_streamer_sees_what_it_sees_without_a_prompt():
    """The caller's ids in one piece, then each new token; never a virtual one."""
    model = prompted("llama")
    (row,) = tiny.ids(6)
    ours, plain = Collector(), Collector()
    got = model.generate(row[None], streamer=ours, **GREEDY)
    model.base_model.generate(row[None], streamer=plain, **GREEDY)
    assert ours.ended
    assert [piece.shape for piece in ours.got] == [piece.shape for piece in plain.got]
    assert torch.equal(ours.got[0], row[None])
    assert torch.equal(torch.cat([piece.flatten() for piece in ours.got]), got[0])


@some
def test_beams_and_several_sequences_of_a_padded_batch(family):
    model = prompted(family)
    rows = tiny.ids(*LENGTHS)
    input_ids, mask = tiny.left_pad(rows)
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    got = model.generate(input_ids=input_ids, attention_mask=mask, **options)[:, input_ids.shape[1] :]
    expected = [model.generate(row[None], **options)[:, len(row) :] for row in rows]
    assert torch.equal(got, torch.cat(expected))


def test_best_beam_is_the_best_of_all_continuations():
    """With as many beams as words, two steps of beam search are exhaustive: score all pairs by hand."""
    model = prompted("llama")
    (row,) = tiny.ids(5)
    options = {**GREEDY, "max_new_tokens": 2, "num_beams": tiny.VOCAB}
    got = model.generate(row[None], **options)[0, 5:]
    with torch.no_grad():
        first = tiny.plain_logits(model.base_model, model.prompt, row)[-1].log_softmax(-1)
        pairs = torch.stack(
            [
                first[word]
                + tiny.plain_logits(model.base_model, model.prompt, torch.cat([row, torch.tensor([word])]))[
                    -1
                ].log_softmax(-1)
                for word in range(tiny.VOCAB)
            ]
        )
    best = divmod(int(pairs.argmax()), tiny.VOCAB)
    assert tuple(got.tolist()) == best


def test_sampling_several_sequences():
    model = prompted("llama")
    rows = tiny.ids(6, 6)
    options = {**GREEDY, "do_sample": True, "num_return_sequences": 4}
    torch.manual_seed(5)
    got = model.generate(torch.stack(rows), **options)
    assert got.shape == (8, 6 + STEPS)
    assert torch.equal(got[:, :6], torch.stack(rows).repeat_interleave(4, 0))
    assert len({tuple(row.tolist()) for row in got[:4]}) > 1
    torch.manual_seed(5)
    assert torch.equal(model.generate(torch.stack(rows), **options), got)


def test_eos_stops_each_row_by_itself():
    model = prompted("llama")
    rows = tiny.ids(*LENGTHS)
    input_ids, mask = tiny.left_pad(rows)
    free = alone(model, rows)
    eos = int(free[1, 2])
    options = {**GREEDY, "eos_token_id": eos}
    got = model.generate(input_ids=input_ids, attention_mask=mask, **options)[:, input_ids.shape[1] :]
    stops = [(row == eos).nonzero()[0].item() + 1 if (row == eos).any() else STEPS for row in free]
    assert min(stops) < STEPS
    for i, stop in enumerate(stops):
        assert torch.equal(got[i, :stop], free[i, :stop])
        assert (got[i, stop:] == 0).all()
    (row,) = (rows[1],)
    assert model.generate(row[None], **options).shape == (1, len(row) + stops[1])


def test_max_length_counts_real_tokens_only():
    model = prompted("llama")
    (row,) = tiny.ids(6)
    options = {**GREEDY, "max_new_tokens": None, "max_length": 10}
    got = model.generate(row[None], **options)
    assert got.shape == (1, 10)
    assert torch.equal(got[0, 6:], alone(model, [row], 4)[0])
    assert model.generate(row[None], **{**options, "min_length": 9, "eos_token_id": int(got[0, 6])}).shape[1] >= 9


def test_generation_config_object():
    model = prompted("llama")
    (row,) = tiny.ids(6)
    config = GenerationConfig(**GREEDY)
    before = config.to_dict()
    assert torch.equal(model.generate(row[None], generation_config=config)[0, 6:], alone(model, [row])[0])
    assert config.to_dict() == before


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_prefill_in_chunks_changes_nothing(family):
    check_left_padded(prompted(family), prefill_chunk_size=3)


@pytest.mark.parametrize("option", generation.UNSUPPORTED)
def test_assisted_decoding_is_refused(option):
    model = prompted("llama")
    (row,) = tiny.ids(6)
    value = 2 if option == "prompt_lookup_num_tokens" else tiny.base("llama")
    with pytest.raises(ConfigError, match=f"{option} is not supported"):
        model.generate(row[None], **GREEDY, **{option: value})
    if option == "prompt_lookup_num_tokens":
        with pytest.raises(ConfigError, match=option):
            model.generate(row[None], generation_config=GenerationConfig(**GREEDY, **{option: value}))


def test_padding_behind_a_filled_cache_is_refused():
    model = prompted("llama")
    rows = tiny.ids(4, 4)
    first = model.generate(torch.stack(rows), return_dict_in_generate=True, **GREEDY)
    second = torch.cat([first.sequences, torch.stack(tiny.ids(3, 3))], dim=1)
    mask = torch.ones_like(second)
    mask[0, -1] = 0
    with pytest.raises(ConfigError, match="padding among tokens that continue"):
        model.generate(second, attention_mask=mask, past_key_values=first.past_key_values, **GREEDY)


def test_the_base_is_left_as_it_was():
    """After generation, also one that failed, the base answers as before and carries nothing of ours."""
    model = prompted("llama")
    (row,) = tiny.ids(6)
    base = model.base_model
    before = (dict(base.__dict__), base.config.to_dict(), base.generation_config.to_dict())
    plain = base.generate(row[None], **GREEDY)
    with pytest.raises(ValueError, match="no_such_argument"):
        model.generate(row[None], no_such_argument=1, **GREEDY)
    model.generate(row[None], **GREEDY)
    assert (dict(base.__dict__), base.config.to_dict(), base.generation_config.to_dict()) == before
    assert torch.equal(base.generate(row[None], **GREEDY), plain)
    assert torch.equal(plain[0], tiny.plain_greedy(base, model.prompt[:0], row, STEPS))


# -- how often what is computed --------------------------------------------------------------------


@contextmanager
def calls(model):
    """The inputs ``[rows, tokens]`` of each call of the backbone."""
    shapes = []

    def note(args, kwargs, output):
        given = next(x for x in (*args, kwargs.get("inputs_embeds"), kwargs.get("input_ids")) if x is not None)
        shapes.append(tuple(given.shape[:2]))

    with tiny.watched(model.base_model.base_model, note):
        yield shapes


def test_prompt_is_computed_once_and_then_one_token_a_step():
    model = prompted("llama")
    input_ids, mask = tiny.left_pad(tiny.ids(*LENGTHS))
    steps = [(len(LENGTHS), 1)] * (STEPS - 1)
    with calls(model) as shapes:
        model.generate(input_ids=input_ids, attention_mask=mask, **GREEDY)
    assert shapes == [(1, 5 + sum(LENGTHS)), *steps]


@families
def test_prompt_is_computed_once_a_call(family):
    """In every family, whatever the number of rows: nothing of the base's is kept for the next call."""
    model = prompted(family, 25)
    input_ids, mask = tiny.left_pad(tiny.ids(*LENGTHS))
    for _ in range(2):
        with calls(model) as shapes:
            model.generate(input_ids=input_ids, attention_mask=mask, **{**GREEDY, "use_cache": True})
        reading = shapes[: len(shapes) - (STEPS - 1)]
        assert sum(rows * width for rows, width in reading) < 2 * 25 + len(LENGTHS) * max(LENGTHS)


def test_beams_of_a_row_are_read_once():
    model = prompted("llama")
    rows = tiny.ids(15, 20)
    input_ids, mask = tiny.left_pad(rows)
    with calls(model) as shapes:
        model.generate(input_ids=input_ids, attention_mask=mask, **GREEDY, num_beams=3)
    assert shapes == [(1, 5 + 15 + 20), *[(6, 1)] * (STEPS - 1)]


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma2", "gemma3", "phi3", "smollm3", "gpt_neo", "llama"])
def test_prompt_longer_than_the_window(family):
    """And texts shorter and longer than it: what a sliding layer keeps of either is what the row alone would see."""
    model = prompted(family, tiny.WINDOW + 3)
    check_prompt_matters(model)
    check_left_padded(model)
    rows = tiny.ids(1, tiny.WINDOW + 5, tiny.WINDOW - 1)
    check_generation(model, rows, *tiny.left_pad(rows), num_beams=1, past_key_values=DynamicCache())


# -- the engine's first call and the plain one -------------------------------------------------------


def both_ways(model, monkeypatch, *args, **kwargs):
    """``generate`` with the first call by the engine, and without."""
    torch.manual_seed(3)
    ours = model.generate(*args, **kwargs)
    with monkeypatch.context() as patch:
        patch.setattr(generation, "_can_be_filled", lambda *_: False)
        torch.manual_seed(3)
        return ours, model.generate(*args, **kwargs)


@some
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 2.0},
        {"do_sample": True, "num_return_sequences": 3, "temperature": 0.7, "top_p": 0.9},
        {"num_beams": 2, "do_sample": True},
        {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
        {"bad_words_ids": [[5], [6, 7]], "min_new_tokens": 3},
    ],
    ids=["beams", "sampling", "sampled-beams", "penalties", "words"],
)
def test_decoding_options_give_the_same_tokens_both_ways(family, options, monkeypatch):
    model = prompted(family)
    input_ids, mask = tiny.left_pad(tiny.ids(15, 4, 6, 1))
    ours, plain = both_ways(model, monkeypatch, input_ids, attention_mask=mask, **{**GREEDY, **options})
    assert torch.equal(ours, plain)


@families
def test_cache_and_scores_are_the_same_both_ways(family, monkeypatch):
    model = prompted(family)
    input_ids, mask = tiny.left_pad(tiny.ids(*LENGTHS))
    asked = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True, "use_cache": True}
    ours, plain = both_ways(model, monkeypatch, input_ids, attention_mask=mask, **{**GREEDY, **asked})
    assert torch.equal(ours.sequences, plain.sequences)
    for got, expected in ((ours.logits, plain.logits), (ours.scores, plain.scores)):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert ours.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()
    pads = max(LENGTHS) - torch.tensor(LENGTHS)
    for layer, other in zip(ours.past_key_values.layers, plain.past_key_values.layers, strict=True):
        assert type(layer) is type(other)
        width = layer.keys.shape[-2]
        first = 5 + max(LENGTHS) + STEPS - 1 - width  # a sliding layer keeps the last ones only
        real = torch.arange(first, first + width) >= pads[:, None]
        for states, theirs in ((layer.keys, other.keys), (layer.values, other.values)):
            assert states.shape == theirs.shape
            torch.testing.assert_close(states.transpose(1, 2)[real], theirs.transpose(1, 2)[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "asked",
    [{"output_hidden_states": True}, {"output_attentions": True}, {"cache_implementation": "static"}],
    ids=lambda asked: next(iter(asked)),
)
def test_what_the_engine_cannot_answer_goes_the_plain_way(asked):
    model = get_peft_model(tiny.fresh("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    model.base_model.set_attn_implementation("eager")
    rows = tiny.ids(*LENGTHS)
    input_ids, mask = tiny.left_pad(rows)
    got = model.generate(input_ids=input_ids, attention_mask=mask, return_dict_in_generate=True, **{**GREEDY, **asked})
    assert torch.equal(got.sequences[:, input_ids.shape[1] :], alone(model, rows))
    if "output_hidden_states" in asked:
        assert got.hidden_states[0][-1].shape == (4, 5 + max(LENGTHS), tiny.WIDTH)
    if "output_attentions" in asked:
        assert got.attentions[0][-1].shape[-1] == 5 + max(LENGTHS)


@torch.no_grad()
def test_which_first_calls_the_engine_makes():
    """Those that fill a growing cache and ask for nothing else; what an unknown input means, the model knows."""
    config = tiny.base("gemma3").config
    usual = {"use_cache": True, "return_dict": True, "logits_to_keep": 1, "output_attentions": False}
    can = generation._can_be_filled
    assert can(DynamicCache(), usual)
    assert can(DynamicCache(config=config), {**usual, "token_type_ids": None})
    for cache in (None, StaticCache(config=config, max_cache_len=20), type("Own", (DynamicCache,), {})()):
        assert not can(cache, usual)
    for more in ({"output_attentions": True}, {"token_type_ids": torch.ones(2, 3)}, {"logits_to_keep": 2}):
        assert not can(DynamicCache(), {**usual, **more})
    with torch.enable_grad():
        assert not can(DynamicCache(), usual)


def test_images_model_on_text():
    """Gemma 3 with images announces those it was not given."""
    base = tiny.random_model(tiny.VARIANTS["gemma3_images"]())
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    with calls(model) as shapes:
        check_left_padded(model)
    assert (1, 5) in shapes


@some
def test_hooks_of_the_users_are_called_and_obeyed(family):
    """Decoding runs on a view of the base, which has the base's hooks."""
    model = prompted(family)
    seen = []
    head = model.base_model.get_output_embeddings()

    def only_token_7(module, args, output):
        seen.append(output.shape[:-1].numel())
        return output.index_fill(-1, torch.tensor([7]), 1e4)

    hook = head.register_forward_hook(only_token_7)
    try:
        got = model.generate(torch.stack(tiny.ids(6, 6)), **{**GREEDY, "use_cache": True})
    finally:
        hook.remove()
    assert (got[:, 6:] == 7).all()
    assert seen == [2] * STEPS


def test_the_function_below_the_interface():
    model = prompted("llama")
    (row,) = tiny.ids(6)
    got = generation.generate(model.base_model, RowPrompts.of([model.prompt.detach()]), row[None], **GREEDY)
    assert torch.equal(got[:, 6:], alone(model, [row]))


def test_no_gradient_is_recorded():
    model = prompted("llama")
    got = model.generate(torch.stack(tiny.ids(6)), return_dict_in_generate=True, output_logits=True, **GREEDY)
    assert not any(step.requires_grad for step in got.logits)
    assert model.prompt.requires_grad
