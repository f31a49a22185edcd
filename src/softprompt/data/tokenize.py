"""Text to tokens: one row becomes one ``Example``, in which labels are aligned.

============  =================================  ============================================================
part          tokenised                          special tokens
============  =================================  ============================================================
input text    as one text                        leading ones of the tokenizer (BOS, if it adds one), not the
                                                 trailing ones (EOS, SEP); those of the template. The content
                                                 of a column is plain text (``plain_text.py``)
answer        by itself; part of the input       those in it
prefix
label         with ``task.label_prefix``, apart  plain text; ``task.end_token_id`` at the end
              from the input text
============  =================================  ============================================================

Rows that are too long are cut. The limit for input and label together is ``max_length``, or what the model's
context leaves beside the virtual tokens, whichever is less:

====================  =====================================================================================
content of the text   cut at its end, at a grapheme boundary; of several text columns the longest is cut
columns               first
rest of the template  never cut
label                 never cut; a row without a label leaves room for the longest one
still too long        ``DataError``
====================  =====================================================================================
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import regex

from ..errors import ConfigError, DataError
from ..types import Example, Row
from .labels import check_distinct
from .plain_text import PlainTokenizer, bare_ids
from .task import Task
from .template import Piece, Template, to_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Flags have their own case: at each flag, \X looks back over all flags before it, which is quadratic in their number.
_GRAPHEME = regex.compile(r"\p{RI}{2}[\p{GCB=EX}\p{GCB=SM}\p{GCB=ZWJ}]*|\X")
_ROWS_AT_ONCE = 1024  # a fast tokenizer is an order of magnitude faster on lists


class Encoder:
    """Turns the rows of one task into examples, with one tokenizer.

    Args:
        tokenizer: of the base model, fast or slow.
        task: template, labels, ``max_length`` and end token.
        num_virtual_tokens: P, the length of the prompt.
        context_length: most positions of the model; ``None`` if it has no limit.
        room_for_answer: tokens that the context must leave after a row without a label, for generated tokens.
            ``max_length`` does not limit these.

    Raises:
        ConfigError: the prompt, or the room for the answer, fills the model's context.
        DataError: the template is malformed, a label has no tokens, or its tokens are a prefix of another label's.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        *,
        num_virtual_tokens: int,
        context_length: int | None,
        room_for_answer: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.task = task
        self._plain = PlainTokenizer(tokenizer)
        self._template = Template(task.template, task.text_columns)
        self._limit, self._limit_reason = _limit(task.max_length, num_virtual_tokens, context_length)
        self._leading_ids = _leading_special_ids(tokenizer, self._skeleton())
        self.answer_prefix_ids = (
            _continuation_ids(self._plain, [Piece(task.answer_prefix, False)]) if task.answer_prefix else ()
        )
        self._class_ids: dict[str, tuple[int, ...]] = {}
        for label in task.labels:
            self._class_ids[label] = self._new_label_ids(label, "the task")
        check_distinct(self._class_ids)
        self._room_for_label = max(map(len, self._class_ids.values()), default=0)
        self._answered_limit: int | None = None
        if room_for_answer and context_length is not None:
            self._answered_limit = self._room_before(room_for_answer, context_length - num_virtual_tokens)

    def render(self, fields: Mapping[str, Any], where: str) -> str:
        """The input text of a row without the answer prefix, before it is cut.

        Raises:
            DataError: a column of the template is missing or is not a text or number.
        """
        return self._template.render(fields, where)

    def label_ids(self, label: str) -> tuple[int, ...]:
        """The tokens of a label with the end token.

        Raises:
            DataError: the label has no tokens.
        """
        known = self._class_ids.get(label)
        return self._new_label_ids(label, "a label") if known is None else known

    def encode(self, row: Row, *, with_label: bool = True) -> Example:
        """Encode one row; see ``encode_all``."""
        return self.encode_all([row], with_label=with_label)[0]

    def encode_all(self, rows: Iterable[Row], *, with_label: bool = True) -> list[Example]:
        """Encode rows, in order; ``Example.num_cut`` is the number of tokens that were cut.

        Args:
            rows: any number of rows.
            with_label: whether to encode the label column; otherwise ``label_ids`` are empty.

        Raises:
            DataError: a row lacks a column or its label, or is too long even with empty text.
        """
        examples = []
        remaining = iter(rows)
        while batch := list(islice(remaining, _ROWS_AT_ONCE)):
            texts = [self._template.pieces(row.fields, row.where) for row in batch]
            for row, input_ids in zip(batch, self._input_ids(texts), strict=True):
                examples.append(self._example(row, input_ids, with_label))
        return examples

    def _example(self, row: Row, input_ids: tuple[int, ...], with_label: bool) -> Example:
        label = None
        label_ids: tuple[int, ...] = ()
        room_for_label = self._room_for_label
        if with_label:
            label = self.task.label_of(row.fields, row.where)
            label_ids = self._class_ids.get(label) or self._new_label_ids(label, row.where)
            room_for_label = len(label_ids)
        limit = self._limit
        if not with_label and limit is not None and self._answered_limit is not None:
            limit = min(limit, self._answered_limit + room_for_label)
        if limit is None or len(input_ids) + room_for_label <= limit:
            return Example(input_ids, label_ids, label)
        fitting = self._cut(row, limit, room_for_label)
        return Example(fitting, label_ids, label, num_cut=len(input_ids) - len(fitting))

    def _room_before(self, room_for_answer: int, left: int) -> int:
        """Most tokens of a text that leaves room for an answer; ``left`` is the context without virtual tokens."""
        template = len(self._input_ids([[Piece(self._skeleton(), False)]])[0])
        if template + room_for_answer > left:
            raise ConfigError(
                f"max_new_tokens={room_for_answer} does not fit: the model's context has {left} positions beside the "
                f"virtual tokens, of which the template takes {template}; ask for at most {max(0, left - template)}"
            )
        return left - room_for_answer

    def _cut(self, row: Row, limit: int, room_for_label: int) -> tuple[int, ...]:
        """The tokens of the row with as much of its text as fits.

        All text columns are cut to the same length, so the longest is cut first. The number of tokens is not strictly
        monotonic in the number of characters, so the result may be a character or two shorter than possible, but it
        is never beyond the limit.
        """
        texts = {name: to_text(row.fields[name], name, row.where) for name in self.task.text_columns}
        best = self._input_ids_of(row, dict.fromkeys(texts, ""))
        if len(best) + room_for_label > limit:
            raise DataError(
                f"{row.where}: the template takes {len(best)} tokens with empty text and the label "
                f"{room_for_label}, together {len(best) + room_for_label}, but {self._limit_reason}; "
                "shorten them, or allow more"
            )
        ends = {name: _grapheme_ends(text) for name, text in texts.items()}
        lengths = sorted({0}.union(*ends.values()))
        low, high = 0, len(lengths) - 1  # low fits, high does not
        while high - low > 1:
            middle = (low + high) // 2
            heads = {name: text[: _last(ends[name], lengths[middle])] for name, text in texts.items()}
            input_ids = self._input_ids_of(row, heads)
            if len(input_ids) + room_for_label <= limit:
                low, best = middle, input_ids
            else:
                high = middle
        return best

    def _input_ids_of(self, row: Row, heads: Mapping[str, str]) -> tuple[int, ...]:
        """The tokens of a row with ``heads`` as the contents of its text columns."""
        return self._input_ids([self._template.pieces({**row.fields, **heads}, row.where)])[0]

    def _input_ids(self, texts: Sequence[Sequence[Piece]]) -> list[tuple[int, ...]]:
        return [self._leading_ids + ids + self.answer_prefix_ids for ids in self._plain.ids(texts)]

    def _new_label_ids(self, label: str, where: str) -> tuple[int, ...]:
        text = Piece(to_text(label, self.task.label_column, where), True)
        prefix = self.task.label_prefix
        ids = _continuation_ids(self._plain, [Piece(prefix, False), text]) if prefix else self._plain.ids([[text]])[0]
        if not ids:
            raise DataError(f"{where}: the tokenizer turns the label {label!r} into no tokens; use another word")
        end = self.task.end_token_id
        return ids if end is None else (*ids, end)

    def _skeleton(self) -> str:
        return self.render(dict.fromkeys(self._template.fields), "the template")


def default_end_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that ends a label: EOS, else padding (as in the guide), else ``None``."""
    for candidate in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        if candidate is not None:
            return int(candidate)
    return None


def show_example(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The tokens of an example, one per line: position, id, token, and ``*`` for a supervised one.

    Tokens are spelled as in the vocabulary (``Ġ`` or ``▁`` for a space).
    """
    num_input, num_label = len(example.input_ids), len(example.label_ids)
    lines = [f"{num_input} tokens of input and {num_label} of label (*); {example.num_cut} were cut"]
    ids = [*example.input_ids, *example.label_ids]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    for position, (token_id, token) in enumerate(zip(ids, tokens, strict=True)):
        mark = "*" if position >= num_input else " "
        lines.append(f"{position:>6} {mark} {token_id:>8}  {token!r}")
    return "\n".join(lines)


def _limit(max_length: int | None, num_virtual_tokens: int, context_length: int | None) -> tuple[int | None, str]:
    """Most tokens of input and label together, and the reason for error messages."""
    if context_length is None:
        return max_length, f"max_length is {max_length}"
    left = context_length - num_virtual_tokens
    if left < 1:
        raise ConfigError(
            f"num_virtual_tokens={num_virtual_tokens} leaves no room for text: "
            f"the model's context is {context_length} positions; use fewer"
        )
    if max_length is not None and max_length <= left:
        return max_length, f"max_length is {max_length}"
    asked = "" if max_length is None else f" (max_length is {max_length})"
    virtual = f"{num_virtual_tokens} virtual tokens"
    return left, f"the model's context of {context_length} leaves {left} beside {virtual}{asked}"


def _leading_special_ids(tokenizer: PreTrainedTokenizerBase, skeleton: str) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before a text.

    They are found by tokenising with and without special tokens. Ids alone do not tell the beginning from the end:
    BOS and EOS are the same token in many vocabularies.
    """
    for probe in (skeleton, "a"):
        bare = bare_ids(tokenizer, [probe])[0]
        if not bare:
            continue
        full = tuple(tokenizer(probe, verbose=False)["input_ids"])
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start]
    raise DataError(
        f"the tokenizer ({type(tokenizer).__name__}) reads the template differently with and without its "
        "special tokens, or as no tokens at all, so rows cannot be built with it"
    )


def _continuation_ids(plain: PlainTokenizer, text: Sequence[Piece]) -> tuple[int, ...]:
    """The tokens of an answer prefix, or of a label with its prefix, when it follows other text.

    Tokenised by itself it may have one more token: sentencepiece tokenizers put a space before a text.
    """
    a = Piece("a", False)
    alone, before, both = plain.ids([text, [a], [a, *text]])
    after = both[len(before) :]
    return after if both[: len(before)] == before and 0 < len(after) < len(alone) else alone


def _grapheme_ends(text: str) -> list[int]:
    """The end of each grapheme (extended grapheme cluster, Unicode TR 29): where a text may be cut."""
    return [grapheme.end() for grapheme in _GRAPHEME.finditer(text)]


def _last(ends: Sequence[int], length: int) -> int:
    """The last of the sorted ``ends`` that is at most ``length``, else 0."""
    index = bisect_right(ends, length)
    return ends[index - 1] if index else 0
