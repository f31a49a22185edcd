"""Tokens to text, one at a time: whole characters, blanks, special tokens and stop strings."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from softprompt.inference.text_stream import INCOMPLETE, TextStream

TEXTS = ["the parcel is late", "naïve café 🙂🙂", "汉字 漢字 字汉", "👩‍👩‍👧‍👦 family", "a\n\n  b"]
END = "<|end|>"


def byte_level():
    """BPE over bytes, as GPT-2's; its merges join the last bytes of a character with the first of the next."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": [END], "initial_alphabet": alphabet, "vocab_size": 290, "show_progress": False}
    core.train_from_iterator(TEXTS * 4, trainers.BpeTrainer(**options))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END)


def byte_fallback():
    """As Llama 2's: ``▁`` before words, whose blank is lost at the start of a text; characters it lacks are bytes."""
    words = ["▁the", "▁parcel", "▁is", "▁late", "▁a", "▁b", "a", "b", "e", "t", "l", "c", "f", "n", "▁", ".", "\n"]
    names = ["<unk>", "<s>", END, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocabulary = {name: number for number, name in enumerate(names)}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(content=" ", left=1, right=0)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token=END)


def slow():
    """ByT5: in Python; it leaves out bytes that are no character."""
    tokenizer = ByT5Tokenizer()
    tokenizer.add_tokens([AddedToken(END, special=True)])
    return tokenizer


def bytes_of_vocabulary():
    """The letter of each byte in a byte-level vocabulary: those that cannot be printed follow at 256."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + number) for number, byte in enumerate(others)}


BYTES = bytes_of_vocabulary()
KINDS = {make.__name__: make() for make in (byte_level, byte_fallback, slow)}
each_kind = pytest.mark.parametrize("kind", KINDS)
texts = st.one_of(st.sampled_from(TEXTS), st.text(st.sampled_from("abet \n.é漢字🙂👩‍\ufffd"), min_size=1, max_size=12))


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def ids_of_bytes(tokenizer, text):
    """Byte by byte; of a tokenizer with byte fallback, character by character."""
    if tokenizer is KINDS["byte_level"]:
        letters = [BYTES[byte] for byte in text.encode()]
        return tokenizer.convert_tokens_to_ids(letters)
    start = len(ids_of(tokenizer, "a"))
    return [token for letter in text for token in ids_of(tokenizer, "a" + letter)[start:]]


def stream_of(tokenizer, ids, stop=(), context=()):
    """The parts of a text, one for each token and the end."""
    stream, parts = TextStream(tokenizer, context, stop), []
    for token in ids:
        stream.add(token)
        parts.append(stream.take(final=stream.stopped))
        if stream.stopped:
            break
    stream.finish()
    return stream, [*parts, stream.take(final=True)]


def through(kind, text, stop=()):
    """The parts of a text that follows the letter ``a``."""
    tokenizer = KINDS[kind]
    start = ids_of(tokenizer, "a")
    ids = ids_of(tokenizer, "a" + text)
    assume(ids[: len(start)] == start)
    return stream_of(tokenizer, ids[len(start) :], stop, start)


@each_kind
@given(text=texts)
def test_the_parts_are_whole_characters_and_add_up(kind, text):
    stream, parts = through(kind, text)
    assert "".join(parts) == stream.text == text
    so_far = ""
    for part in parts:
        so_far += part
        assert text.startswith(so_far)


@given(ids=st.lists(st.integers(0, 289), max_size=30), stop=st.lists(texts, max_size=2))
def test_any_tokens_of_a_byte_level_tokenizer(ids, stop):
    """Bytes that are no characters, and special tokens: the parts add up to what the tokenizer decodes at once."""
    tokenizer = KINDS["byte_level"]
    stream, parts = stream_of(tokenizer, ids, stop)
    assert "".join(parts) == stream.text
    if not stream.stopped:
        assert stream.text == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert not any(each in stream.text for each in stop)


@given(ids=st.lists(st.integers(0, 275), max_size=30))
def test_any_tokens_of_a_tokenizer_with_byte_fallback(ids):
    stream, parts = stream_of(KINDS["byte_fallback"], ids)
    assert "".join(parts) == stream.text


def test_a_text_that_ends_within_a_character_keeps_what_is_before_it():
    """A token may be whole characters and the start of the next one."""
    tokenizer = KINDS["byte_level"]
    ids = tokenizer.convert_tokens_to_ids(["is", "naÃ"])
    assert tokenizer.decode(ids) == "isna" + INCOMPLETE
    stream, parts = stream_of(tokenizer, ids)
    assert stream.text == "".join(parts) == "isna" + INCOMPLETE
    assert INCOMPLETE not in "".join(parts[:-1])
    assert stream_of(tokenizer, ids, ["na"])[0].text == "is"


# ---- what comes before a text


def test_blanks_between_the_context_and_the_text():
    """Such a tokenizer drops the blank of the first word; only with tokens before it there is one."""
    tokenizer = KINDS["byte_fallback"]
    late = tokenizer.convert_tokens_to_ids(["▁late", "▁is"])
    assert tokenizer.decode(late) == "late is"
    parcel = ids_of(tokenizer, "the parcel")
    assert stream_of(tokenizer, late, context=parcel)[1][:2] == [" late", " is"]
    assert stream_of(tokenizer, late)[1][:2] == ["late", " is"]
    assert stream_of(tokenizer, late, context=[1])[1][:2] == ["late", " is"]  # the start token is no text


@each_kind
def test_a_context_that_begins_within_a_character(kind):
    tokenizer = KINDS[kind]
    before, new = ids_of_bytes(tokenizer, "🙂🙂")[-6:], ids_of_bytes(tokenizer, "🙂")
    assert len(before) == 6
    assert len(new) == 4
    stream, parts = stream_of(tokenizer, new, context=before)
    assert stream.text == "".join(parts) == "🙂"


@each_kind
def test_special_tokens_are_not_shown(kind):
    tokenizer = KINDS[kind]
    end = tokenizer.convert_tokens_to_ids(END)
    first, second = ids_of(tokenizer, "the")[:5], ids_of(tokenizer, "a late")
    stream, _ = stream_of(tokenizer, [end, *first, end, *second, end], context=ids_of(tokenizer, "a"))
    assert END not in stream.text
    assert stream.text.replace(" ", "") == "thealate"


def test_ids_that_no_token_has():
    """The embeddings of many models are padded to a round number."""
    tokenizer = KINDS["byte_level"]
    stream, parts = stream_of(tokenizer, [*ids_of(tokenizer, "is"), 5000, *ids_of(tokenizer, " late")])
    assert stream.text == "".join(parts) == "is late"


def test_names_of_tokens():
    """A token's name is the text that it would add; so those of a word with and without a blank differ."""
    tokenizer = KINDS["byte_fallback"]
    stream = TextStream(tokenizer, ids_of(tokenizer, "the"))
    names = [stream.name(token) for token in tokenizer.convert_tokens_to_ids(["▁a", "a", "▁late", END])]
    assert names[:3] == [" a", "a", " late"]
    assert names[3].strip() == END
    assert stream.text == ""


# ---- stop strings


def reference(text, stop):
    """The text up to the first stop string, letter by letter."""
    for end in range(len(text) + 1):
        found = [each for each in stop if text[:end].endswith(each)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@each_kind
@given(text=texts, stop=st.lists(st.text(st.sampled_from("abet 漢🙂l"), min_size=1, max_size=4), max_size=3))
def test_stop_strings(kind, text, stop):
    """Wherever tokens end: the text ends before the first stop string, and nothing of it is ever sent."""
    stream, parts = through(kind, text, stop)
    assert (stream.text, stream.stopped) == reference(text, stop)
    assert "".join(parts) == stream.text


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("is late", ["late"], "is "),
        ("is late", ["is late"], ""),
        ("is late", ["s l", "late"], "i"),
        ("abcd", ["abcd", "bc"], "a"),
        ("abab", ["bab"], "a"),
        ("aaab", ["aab"], "a"),
        ("is lat", ["late"], "is lat"),
        ("a🙂🙂b", ["🙂b"], "a🙂"),
    ],
)
@each_kind
def test_stop_strings_across_tokens(kind, text, stop, expected):
    tokenizer = KINDS[kind]
    stream, parts = stream_of(tokenizer, ids_of_bytes(tokenizer, text), stop, ids_of(tokenizer, "a"))
    assert stream.text == "".join(parts) == expected
    assert stream.stopped == (expected != text)


def test_what_may_become_a_stop_string_is_held_back():
    tokenizer = KINDS["byte_level"]
    _, parts = stream_of(tokenizer, ids_of_bytes(tokenizer, "aSTaSTOb"), ["STOP"])
    assert parts == ["a", "", "", "STa", "", "", "", "STOb", ""]
    _, parts = stream_of(tokenizer, ids_of_bytes(tokenizer, "aSTO"), ["STOP"])
    assert parts == ["a", "", "", "", "STO"]


# ---- the tokenizer of the default model


@pytest.mark.real
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=20)))
def test_texts_of_the_default_model(smollm2, text):
    ids = ids_of(smollm2.tokenizer, text)
    text = smollm2.tokenizer.decode(ids)  # it has no tokens for some bytes
    stream, parts = stream_of(smollm2.tokenizer, ids)
    assert "".join(parts) == stream.text == text
    so_far = ""
    for part in parts:
        so_far += part
        assert text.startswith(so_far)
