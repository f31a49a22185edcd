"""Chat templates: a conversation as token ids, in which special tokens come from the template only.

A template is code that puts the contents of messages between special tokens. It is run with a placeholder for each
content, so it cannot act on what a user wrote. Its output is then cut at the placeholders: what is between them is the
template's, and each placeholder is replaced by a content, which is plain text for the tokenizer.
"""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from ..data.plain_text import PlainTokenizer
from ..data.template import Piece
from ..errors import DataError

_LEFT, _RIGHT = "\n \t", "\t \n"
"""Whitespace around a placeholder, which shows what the template strips from contents."""


class Turn(NamedTuple):
    """A message: its role and its text."""

    role: str
    text: str


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer has a chat template."""
    try:
        return bool(tokenizer.get_chat_template())
    except ValueError:  # there is none, or none of several is the default
        return False


def chat_ids(tokenizer: Any, turns: Sequence[Turn]) -> tuple[int, ...]:
    """A conversation as token ids, up to where the model's answer begins.

    Raises:
        DataError: the template refuses the conversation, or does not show each message exactly once.
    """
    return _plain_tokenizer(tokenizer).ids([chat_pieces(tokenizer, turns)])[0]


@functools.lru_cache(4)
def _plain_tokenizer(tokenizer: Any) -> PlainTokenizer:
    """Kept, since the copy that it makes of a large tokenizer takes seconds."""
    return PlainTokenizer(tokenizer)


def chat_pieces(tokenizer: Any, turns: Sequence[Turn]) -> list[Piece]:
    """A conversation as pieces: literal text of the template, and contents of messages.

    Raises:
        DataError: see ``chat_ids``.
    """
    key = secrets.token_hex(8)
    placeholders = {f"message{key}n{number}end": turn.text for number, turn in enumerate(turns)}
    messages = [
        {"role": turn.role, "content": f"{_LEFT}{placeholder}{_RIGHT}"}
        for turn, placeholder in zip(turns, placeholders, strict=True)
    ]
    rendered = _render(tokenizer, messages)
    parts = re.split(f"(message{key}n[0-9]+end)", rendered)
    if sorted(parts[1::2]) != sorted(placeholders):
        raise DataError("the model's chat template does not show each message exactly once; send fewer messages")
    return _filled(parts, placeholders)


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise DataError(f"the model's chat template refuses the conversation: {error}") from None


def _filled(parts: Sequence[str], placeholders: dict[str, str]) -> list[Piece]:
    """The pieces of a rendered conversation.

    Args:
        parts: literal texts, and a placeholder between each two of them.
        placeholders: placeholder -> content.
    """
    pieces, rest = list[Piece](), parts[0]
    for placeholder, after in zip(parts[1::2], parts[2::2], strict=True):
        before, stripped = _without_margin(rest, placeholders[placeholder])
        # The end of a content is the start of its mirror image.
        rest, stripped = (each[::-1] for each in _without_margin(after[::-1], stripped[::-1]))
        pieces += [Piece(before, False), Piece(stripped, True)]
    return [piece for piece in (*pieces, Piece(rest, False)) if piece.text]


def _without_margin(before: str, content: str) -> tuple[str, str]:
    """The literal text before a content without the margin, and the content, stripped as the template stripped it."""
    if before.endswith(_LEFT):
        return before.removesuffix(_LEFT), content
    without_newline = _LEFT.lstrip("\n")
    if before.endswith(without_newline):
        return before.removesuffix(without_newline), content.lstrip("\n")
    return before, content.lstrip()
