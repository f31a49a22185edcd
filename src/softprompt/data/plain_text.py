"""Tokenisation in which special tokens come from the template only, never from the text of a row.

A tokenizer reads ``<|im_end|>`` as the end of a turn wherever it occurs, in a customer's message too. Here column
contents and labels are plain text; the template, the answer prefix and the end token keep their special tokens.

Most rows contain no special tokens and are tokenised as usual. The tokenizer is never changed, since other threads may
use it. Rows that produce a special token are tokenised again, by a private copy in which special tokens have random
names. A template is written with these names. A row's text cannot contain them, and the usual names are plain text to
the copy, as added tokens and in the model's vocabulary.

Special are the tokens marked so, and every other added token that is not just letters, digits and blanks, since many
chat models do not mark theirs. The remaining added tokens, runs of blanks and words, are ordinary text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .template import Piece

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_METASPACE = "\u2581"  # sentencepiece's sign for a blank


class PlainTokenizer:
    """Tokenises texts made of pieces; only pieces of the template produce special tokens.

    Args:
        tokenizer: fast or slow; it is never changed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._special_ids = frozenset(self._special)

    def ids(self, texts: Sequence[Sequence[Piece]]) -> list[tuple[int, ...]]:
        """The tokens of each text, without those that the tokenizer adds around a text.

        Args:
            texts: the pieces of each text; fields produce no special tokens.

        Raises:
            DataError: a field contains a special token that this tokenizer cannot read as plain text.
        """
        found = bare_ids(self.tokenizer, ["".join(piece.text for piece in text) for text in texts])
        again = [i for i, ids in enumerate(found) if not self._special_ids.isdisjoint(ids)]
        if again:
            for i, ids in zip(again, self._reader.ids([texts[i] for i in again]), strict=True):
                found[i] = ids
        return found

    @cached_property
    def _reader(self) -> _RenamedReader | _SplittingReader:
        """Reads texts whose fields contain special tokens; created when it is first needed."""
        return (_RenamedReader if self.tokenizer.is_fast else _SplittingReader)(self.tokenizer, self._special)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that the text of a row must not produce: id -> content."""
    try:
        added = tokenizer.added_tokens_decoder
    except NotImplementedError:  # mistral-common's, which reads no special tokens from text
        added = {}
    found = {id_: token.content for id_, token in added.items() if _is_special(token)}
    return found | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def bare_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The tokens of texts as the tokenizer reads them, without those that it adds around a text."""
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # a text longer than the model is expected here: it is cut next
    )
    return [tuple(ids) for ids in encoded["input_ids"]]


def _is_special(token: Any) -> bool:
    is_text = all(character.isalnum() or character.isspace() or character == _METASPACE for character in token.content)
    return bool(token.special or not is_text)


class _RenamedReader:
    """A copy of a fast tokenizer whose special tokens have random names."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: Mapping[int, str]) -> None:
        key = secrets.token_hex(16)
        self._tokenizer, self._special = tokenizer, special
        self._names = {id_: f"<{key}:{id_}>" for id_ in special}
        self._literals: dict[str, str] = {}
        names = {content: self._names[id_] for id_, content in special.items()}
        try:
            self._copy = _renamed(tokenizer, names)
        except Exception as error:  # tokenizers raises a bare Exception if a part is written in Python
            raise DataError(
                f"a text holds a special token, and the tokenizer ({type(tokenizer).__name__}) cannot be copied to "
                f"read it as plain text ({' '.join(str(error).split())}); remove the token from the text"
            ) from error
        self._ids = self._moved_ids(names)

    def ids(self, texts: Sequence[Sequence[Piece]]) -> list[tuple[int, ...]]:
        """See ``PlainTokenizer.ids``."""
        written = ["".join(p.text if p.is_field else self._named(p.text) for p in text) for text in texts]
        encodings = self._copy.encode_batch(written, add_special_tokens=False)
        return [tuple(self._ids.get(id_, id_) for id_ in encoding.ids) for encoding in encodings]

    def _named(self, literal: str) -> str:
        """Text of the template, with its special tokens under their names in the copy."""
        if literal not in self._literals:
            encoded: Any = self._tokenizer(
                literal, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            found = literal
            for id_, (start, end) in reversed(list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))):
                unknown = id_ == self._tokenizer.unk_token_id and literal[start:end].strip() != self._special.get(id_)
                if id_ in self._special and end > start and not unknown:
                    found = found[:start] + self._names[id_] + found[end:]
            self._literals[literal] = found
        return self._literals[literal]

    def _moved_ids(self, names: Mapping[str, str]) -> dict[int, int]:
        """Added tokens with another id in the copy, which numbers them without gaps: id there -> id here."""
        moved: dict[int, int] = {}
        for id_, token in self._tokenizer.added_tokens_decoder.items():
            there = self._copy.token_to_id(names.get(token.content, token.content))
            if there is not None and there != id_:
                moved[there] = id_
        return moved


def _renamed(tokenizer: PreTrainedTokenizerBase, names: Mapping[str, str]) -> Tokenizer:
    """A copy of a fast tokenizer with tokens renamed, as added tokens and in the model's vocabulary."""
    from tokenizers import Tokenizer

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts |= {"truncation": None, "padding": None, "post_processor": None}
    for token in parts["added_tokens"]:
        if token["content"] in names:
            # Matched literally: before normalisation, and whatever surrounds it.
            token |= {"content": names[token["content"]], "normalized": False, "single_word": False}
    model = parts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(entry, entry): id_ for entry, id_ in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(entry, entry), score] for entry, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:  # without merges of renamed tokens
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
    return Tokenizer.from_str(json.dumps(parts))


class _SplittingReader:
    """A slow tokenizer, asked to split special tokens; those of the template are found here."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: Mapping[int, str]) -> None:
        self._tokenizer = tokenizer
        self._by_content = {content: id_ for id_, content in special.items()}
        longest_first = sorted(self._by_content, key=len, reverse=True)
        self._contents = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def ids(self, texts: Sequence[Sequence[Piece]]) -> list[tuple[int, ...]]:
        """See ``PlainTokenizer.ids``."""
        return [self._ids_of(text) for text in texts]

    def _ids_of(self, text: Sequence[Piece]) -> tuple[int, ...]:
        found: list[int] = []
        plain = ""
        for piece in text:
            parts = [piece.text] if piece.is_field else self._contents.split(piece.text)
            for number, part in enumerate(parts):
                if number % 2:  # odd parts are the matches
                    found += [*self._plain_ids(plain), self._by_content[part]]
                    plain = ""
                else:
                    plain += part
        return (*found, *self._plain_ids(plain))

    def _plain_ids(self, text: str) -> list[int]:
        encoded: Any = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        ids = list(encoded["input_ids"])
        if made := set(ids) & set(self._by_content.values()) - {self._tokenizer.unk_token_id}:
            content = self._tokenizer.convert_ids_to_tokens(min(made))
            raise DataError(
                f"a text holds {content!r}, which the tokenizer ({type(self._tokenizer).__name__}) reads as a special "
                "token even with split_special_tokens; remove it from the text"
            )
        return ids
