"""Encoder: special tokens, the alignment of labels, and what max_length cuts."""

from __future__ import annotations

import logging
import random
from functools import cache

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

import tiny
from softprompt.config.adapter_config import PromptTuningConfig
from softprompt.data.task import Task
from softprompt.data.tokenize import Encoder, _grapheme_ends, default_end_token_id, show_example
from softprompt.errors import ConfigError, DataError
from softprompt.inference.load_adapter import LoadedAdapter
from softprompt.inference.predict import predict_rows
from softprompt.peft.model import PeftModelForCausalLM
from softprompt.types import Example, Row

CORPUS = ["text : the parcel is late Label : complaint", "text : many thanks Label : no complaint"] * 3
LABELS = ("complaint", "no complaint")
SHAPES = {"plain": "$A", "bos": "<s> $A", "bos_eos": "<s> $A </s>", "eos": "$A </s>"}


@cache
def bpe(shape):
    """A byte-level BPE tokenizer whose special tokens are placed as ``SHAPES[shape]`` says."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=SHAPES[shape], special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=4
    )


def word_level(words, **kwargs):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **kwargs)


def make_task(**changes):
    values = {
        "text_columns": ("text",),
        "label_column": "label",
        "template": "text : {text} Label : ",
        "labels": LABELS,
        "end_token_id": 1,
    }
    return Task(**(values | changes))


def encoder(tokenizer, *, num_virtual_tokens=8, context_length=None, **task):
    return Encoder(tokenizer, make_task(**task), num_virtual_tokens=num_virtual_tokens, context_length=context_length)


def row(text, label="complaint", where="A.csv, row 3", **more):
    return Row({"text": text, "label": label, **more}, where)


def bare(tokenizer, text):
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


# Special tokens and alignment


@pytest.mark.parametrize(
    ("shape", "front"), [("plain", ()), ("bos", (0,)), ("bos_eos", (0,)), ("eos", ())], ids=list(SHAPES)
)
def test_special_tokens_in_front_stay_and_appended_ones_go(shape, front):
    tokenizer = bpe(shape)
    example = encoder(tokenizer).encode(row("the parcel is late"))
    assert example.input_ids == front + bare(tokenizer, "text : the parcel is late Label : ")
    assert example.label_ids == (*bare(tokenizer, "complaint"), 1)
    assert example == Example(example.input_ids, example.label_ids, "complaint", num_cut=0)


def test_front_token_that_is_also_the_end_token_stays():
    """BOS and EOS of one id, as in GPT-2's vocabulary: only the place tells them apart."""
    tokenizer = bpe("plain")
    shared = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    shared.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A </s>", special_tokens=[("</s>", 1)]
    )
    assert encoder(shared).encode(row("x")).input_ids == (1, *bare(tokenizer, "text : x Label : "))


def test_slow_tokenizer():
    """ByT5 is pure Python and appends EOS, which goes."""
    tokenizer = ByT5Tokenizer()
    example = encoder(tokenizer).encode(row("ab"))
    assert tokenizer.decode(example.input_ids) == "text : ab Label : "
    assert example.label_ids == (*bare(tokenizer, "complaint"), 1)
    assert encoder(tokenizer, max_length=28).encode(row("abcd" * 9)).num_cut == 36 - (28 - 10 - len("text :  Label : "))


def test_front_is_found_when_the_template_alone_is_empty():
    tokenizer = bpe("bos_eos")
    example = encoder(tokenizer, template="{text}").encode(row(""))
    assert example.input_ids == (0,)


@pytest.mark.parametrize("end", [None, 2])
def test_end_token(end):
    built = encoder(bpe("bos"), end_token_id=end)
    assert built.label_ids("complaint") == bare(bpe("bos"), "complaint") + (() if end is None else (end,))


def test_default_end_token():
    words = ["<unk>", "a", "<e>", "<p>"]
    assert default_end_token_id(word_level(words, eos_token="<e>", pad_token="<p>")) == 2
    assert default_end_token_id(word_level(words, pad_token="<p>")) == 3
    assert default_end_token_id(word_level(words)) is None


def test_without_label():
    example = encoder(bpe("bos")).encode(Row({"text": "x"}, "row 1"), with_label=False)
    assert example.label is None
    assert example.label_ids == ()


def test_generation_takes_any_label():
    built = encoder(bpe("bos"), labels=())
    assert built.encode(row("x", "a new sentence")).label_ids == (*bare(bpe("bos"), "a new sentence"), 1)


def test_encode_all_is_encode_of_each():
    built = encoder(bpe("bos"), max_length=24)
    rows = [row("late " * (i % 9), LABELS[i % 2], f"row {i}") for i in range(2100)]
    assert built.encode_all(iter(rows)) == [built.encode(r) for r in rows]


def test_numbers_and_nothing_are_text():
    built = encoder(bpe("bos"))
    assert built.render({"text": 3.5}, "row 1") == "text : 3.5 Label : "
    assert built.encode(row(None, 7)).label == "7"


# max_length


def test_cut_counts_and_keeps_the_ends():
    tokenizer = bpe("bos_eos")
    whole = encoder(tokenizer).encode(row("the parcel is late " * 30))
    cut = encoder(tokenizer, max_length=40).encode(row("the parcel is late " * 30))
    assert len(cut.input_ids) + len(cut.label_ids) <= 40
    assert cut.num_cut == len(whole.input_ids) - len(cut.input_ids) > 0
    assert cut.label_ids == whole.label_ids
    assert tokenizer.decode(cut.input_ids).startswith("<s>text : the parcel")
    assert tokenizer.decode(cut.input_ids).endswith(" Label : ")


def test_cut_is_close_to_the_limit():
    cut = encoder(bpe("bos"), max_length=40).encode(row("z" * 500))
    assert len(cut.input_ids) + len(cut.label_ids) == 40


def test_exactly_full_is_not_cut():
    whole = encoder(bpe("bos")).encode(row("the parcel"))
    size = len(whole.input_ids) + len(whole.label_ids)
    assert encoder(bpe("bos"), max_length=size).encode(row("the parcel")) == whole
    assert encoder(bpe("bos"), max_length=size - 1).encode(row("the parcel")).num_cut == 1


def test_longest_column_is_cut_first():
    tokenizer = bpe("plain")
    built = encoder(
        tokenizer, text_columns=("title", "body"), template="{title}|{body}|{note}", max_length=40, end_token_id=None
    )
    fields = {"title": "qqqq", "body": "x" * 200, "note": "kept", "label": "complaint"}
    title, body, note = tokenizer.decode(built.encode(Row(fields, "row 1")).input_ids).split("|")
    assert (title, note) == ("qqqq", "kept")
    assert 0 < len(body) < 200
    both = fields | {"title": "q" * 300}
    title, body, note = tokenizer.decode(built.encode(Row(both, "row 1")).input_ids).split("|")
    assert len(title) == len(body) > 5


@pytest.mark.parametrize("emoji", ["👨\u200d👩\u200d👧", "👍🏽", "🇩🇪", "e\u0301", "❤️", "\r\n", "ᄒ\u1161\u11ab", "1️⃣"])
def test_characters_are_not_split(emoji):
    tokenizer = bpe("plain")
    for limit in range(22, 60):
        example = encoder(tokenizer, template="{text}", max_length=limit).encode(row(emoji * 40))
        assert example.num_cut > 0
        text = tokenizer.decode(example.input_ids)
        assert text == emoji * (len(text) // len(emoji))


def test_grapheme_ends_are_those_of_the_regex_library():
    """Flags have a pattern of their own in ``_grapheme_ends``, which must agree with ``\\X``."""
    draw = random.Random(0)
    parts = ["🇩", "🇪", "🇫", "a", "\u0301", "\u0903", "\u200d", "👨", "🏽", "\r", "\n", "ᄒ", "\u1161", "\u0600"]
    for _ in range(3000):
        text = "".join(draw.choices(parts, k=draw.randint(1, 10)))
        assert _grapheme_ends(text) == [found.end() for found in regex.finditer(r"\X", text)], ascii(text)


def test_unlabelled_rows_leave_room_for_the_longest_class():
    tokenizer = bpe("bos")
    longest = max(len(encoder(tokenizer).label_ids(label)) for label in LABELS)
    long = row("late " * 50)
    classes = encoder(tokenizer, max_length=40).encode(long, with_label=False)
    assert len(classes.input_ids) + longest <= 40
    assert len(encoder(tokenizer, max_length=40, labels=()).encode(long, with_label=False).input_ids) == 40


def test_context_bounds_too():
    long = row("z" * 500)
    example = encoder(bpe("bos"), max_length=400, context_length=48).encode(long)
    assert len(example.input_ids) + len(example.label_ids) == 40
    example = encoder(bpe("bos"), context_length=48).encode(long)
    assert len(example.input_ids) + len(example.label_ids) == 40


def test_no_warning_about_long_texts(caplog, recwarn, monkeypatch):
    tokenizer = bpe.__wrapped__("bos")  # transformers warns once for each tokenizer
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        encoder(tokenizer, max_length=40).encode_all([row("late " * 50)] * 3)
        assert caplog.records == []
        assert len(recwarn) == 0
        tokenizer("late " * 50)
        assert "longer than the specified maximum" in caplog.text  # the check above can see it


TEXTS = st.text(
    alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("é👍🏽🇩🇪 {}late")), max_size=80
)


@settings(deadline=None, max_examples=150)
@given(text=TEXTS, label=st.sampled_from(LABELS), max_length=st.integers(30, 70), shape=st.sampled_from(list(SHAPES)))
def test_max_length_holds_and_only_text_gives_way(text, label, max_length, shape):
    tokenizer = bpe(shape)
    whole = encoder(tokenizer).encode(row(text, label))
    cut = encoder(tokenizer, max_length=max_length).encode(row(text, label))
    assert len(cut.input_ids) + len(cut.label_ids) <= max_length
    assert cut.label_ids == whole.label_ids
    assert cut.num_cut == len(whole.input_ids) - len(cut.input_ids)
    assert (cut.num_cut > 0) == (len(whole.input_ids) + len(whole.label_ids) > max_length)
    rendered = tokenizer.decode(cut.input_ids, clean_up_tokenization_spaces=False).removeprefix("<s>")
    assert rendered.startswith("text : ")
    assert rendered.endswith(" Label : ")
    assert text.startswith(rendered.removeprefix("text : ").removesuffix(" Label : "))


# Errors


def refused(function, *args, error=DataError, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_template_that_does_not_fit_says_the_numbers():
    tokenizer = bpe("bos")
    template, label = 1 + len(bare(tokenizer, "text :  Label : ")), len(bare(tokenizer, "complaint")) + 1
    message = refused(encoder(tokenizer, max_length=5).encode, row("x"))
    assert message == (
        f"A.csv, row 3: the template takes {template} tokens with empty text and the label {label}, together "
        f"{template + label}, but max_length is 5; shorten them, or allow more"
    )
    message = refused(encoder(tokenizer, max_length=50, context_length=12).encode, row("x"))
    assert "the model's context of 12 leaves 4 beside 8 virtual tokens (max_length is 50)" in message


def test_prompt_that_fills_the_context():
    message = refused(encoder, bpe("bos"), num_virtual_tokens=64, context_length=64, error=ConfigError)
    assert message.startswith("num_virtual_tokens=64 leaves no room for text: the model's context is 64 positions")


def test_label_without_tokens():
    tokenizer = word_level(["<unk>", "text", ":", "Label"])
    message = refused(encoder(tokenizer, labels=()).label_ids, "\u2003")
    assert message == "a label: the tokenizer turns the label '\\u2003' into no tokens; use another word"


def test_labels_that_become_the_same_tokens():
    message = refused(encoder, word_level(["<unk>", "text", ":", "Label"]), labels=("good", "bad"))
    assert message.startswith("the labels 'good' and 'bad' have the same tokens")


def test_tokenizer_without_tokens():
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    assert "as no tokens at all, so rows cannot be built with it" in refused(encoder, empty, labels=())


def test_row_without_label_or_column_is_named():
    built = encoder(bpe("bos"))
    assert refused(built.encode, row("x", "")).startswith("A.csv, row 3: the column 'label' is empty")
    assert refused(built.encode, Row({"txt": "x"}, "A.csv, row 3")).startswith("A.csv, row 3: the template")
    assert "A.csv, row 3: the column 'label' contains half" in refused(
        encoder(bpe("bos"), labels=()).encode, row("x", "\ud83d")
    )


# What a dry run prints


def test_show_example():
    tokenizer = word_level(["<unk>", "late", "bad", "</s>"], eos_token="</s>")
    shown = show_example(tokenizer, Example((1, 0), (2, 3), "bad", num_cut=4))
    assert shown.splitlines() == [
        "2 tokens of input and 2 of label (*); 4 were cut",
        "     0          1  'late'",
        "     1          0  '<unk>'",
        "     2 *        2  'bad'",
        "     3 *        3  '</s>'",
    ]


@pytest.mark.parametrize("labels", [("complaint", "complaint too"), ("no", "yes", "no complaint")])
def test_a_label_that_starts_another_needs_an_end_token(labels):
    message = refused(encoder, bpe("bos"), labels=labels, end_token_id=None)
    for words in (f"{labels[-1]!r} starts with all of {labels[0]!r}", "rename one", "end token"):
        assert words in message
    encoder(bpe("bos"), labels=labels)


def test_there_is_room_for_the_answer():
    tokenizer, long = bpe("bos"), row("the parcel is late " * 20)
    task = make_task(labels=(), max_length=30)
    for max_length, most in ((None, 64 - 8 - 20), (30, 30), (50, 36)):
        task = make_task(labels=(), max_length=max_length)
        built = Encoder(tokenizer, task, num_virtual_tokens=8, context_length=64, room_for_answer=20)
        example = built.encode(long, with_label=False)
        assert most - 2 <= len(example.input_ids) <= most
        assert example.num_cut
    assert (
        not Encoder(tokenizer, task, num_virtual_tokens=8, context_length=None, room_for_answer=999)
        .encode(row("late"), with_label=False)
        .num_cut
    )


def test_an_answer_that_cannot_fit_is_refused():
    task = make_task(labels=())
    message = refused(
        Encoder, bpe("bos"), task, num_virtual_tokens=8, context_length=64, room_for_answer=60, error=ConfigError
    )
    assert message.startswith("max_new_tokens=60 does not fit: the model's context has 56 positions")


def test_learned_positions_are_not_written_beyond():
    """Without room the last positions do not exist: an IndexError in the middle of a file."""
    config = PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=3)
    model = PeftModelForCausalLM(tiny.fresh("gpt2"), config)
    task = make_task(template="{text}", labels=(), end_token_id=None)
    loaded = LoadedAdapter("tiny", model.prompted, tiny.tokenizer(), config, task)
    rows = [row("w5 " * length) for length in (2, 200)]
    answers = [answer for _, answer in predict_rows(loaded, task, rows, max_new_tokens=40)]
    assert [answer.truncated for answer in answers] == [False, True]
    with pytest.raises(ConfigError, match="max_new_tokens=64 does not fit"):
        list(predict_rows(loaded, task, rows, max_new_tokens=64))


def test_a_label_after_a_text_has_no_space_of_its_own():
    """Sentencepiece tokenizers put a space before a text, so the first token of all labels would be the same."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(("<unk>", "▁", "▁a", "▁yes", "▁no", ":"))}))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert tokenizer(" yes")["input_ids"] == [1, 3]
    given = {
        "template": "{text}",
        "labels": ("yes", "no"),
        "label_prefix": " ",
        "answer_prefix": " a",
        "end_token_id": None,
    }
    made = encoder(tokenizer, **given)
    assert [made.label_ids(label) for label in ("yes", "no")] == [(3,), (4,)]
    assert made.answer_prefix_ids == (2,)
