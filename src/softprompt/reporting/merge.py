"""Updating the card inside a README; text and front matter that a person wrote are kept.

The generated body is between two comment marks. A third comment in it records the generated front matter, so
that it can be told from what a person added.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

BEGIN = "<!-- softprompt:begin -->"
END = "<!-- softprompt:end -->"
MEMORY = "<!-- softprompt:front "
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_KEY = re.compile(r"""(["']?)([\w.-]+)\1[ \t]*:(?:\s|$)""")


def update_card(existing: str, fresh: str, settled: Sequence[str] = ()) -> str:
    """Put a new card into a README; text and front matter that a person wrote are kept.

    Front matter keys that a person set are unchanged, comments included; tags are merged. The body replaces the
    previous one; without one, it is appended.

    Args:
        existing: the README as it is; may be empty.
        fresh: what ``model_card`` returned.
        settled: keys of the front matter that always come from the new card.

    Returns:
        The new text. Applying the same card twice changes nothing.
    """
    if not existing.strip():
        return fresh
    front_text, text = _split(existing)
    fresh_front, fresh_text = _split(fresh)
    block = fresh_text[fresh_text.index(BEGIN) : fresh_text.rindex(END) + len(END)]
    end = text.rfind(END)
    begin = text.rfind(BEGIN, 0, end) if end >= 0 else -1
    written: Mapping[str, Any] = {}
    if begin >= 0:
        written = _remembered(text[begin:end])
        text = text[:begin] + block + text[end + len(END) :]
    else:
        text = f"{text.rstrip()}\n\n{block}\n".lstrip("\n")
    fresh_values = yaml.safe_load(fresh_front)
    own = {key: value for key, value in (_mapping(front_text) or {}).items() if key in settled and key in fresh_values}
    front = _merge_front(front_text, fresh_values, {**written, **own})
    separator = "" if front_text else "\n"
    return f"---\n{front}---\n{separator}{text}"


def _merge_front(old: str, new: Mapping[str, Any], written: Mapping[str, Any]) -> str:
    """Merge ``new`` into the front matter ``old``, whose other lines are unchanged.

    A key is replaced if ``old`` lacks it or still has the value generated last time. Front matter that
    is not a YAML mapping, or not one key per line, is left alone: better no metadata than a broken card.
    """
    current = _mapping(old)
    if current is None:
        return old
    blocks = _blocks(old)
    for key in {**written, **new}:
        value = new.get(key)
        if key == "tags":
            value = _merge_tags(current.get(key), new.get(key, []), written.get(key, []))
        elif key in current and current[key] != written.get(key):
            continue
        if value is None:
            blocks.pop(key, None)
        elif current.get(key) != value:
            blocks[key] = to_yaml({key: value})
    merged = "".join(text if text.endswith("\n") or not text else text + "\n" for text in blocks.values())
    return old if _mapping(merged) is None else merged


def _merge_tags(current: Any, new: Sequence[str], written: Sequence[str]) -> list[str]:
    """A person's tags in their order, then the new generated ones; outdated generated tags are removed."""
    own = [current] if isinstance(current, str) else list(current or [])
    kept = [tag for tag in own if tag in new or tag not in written]
    return kept + [tag for tag in new if tag not in kept]


def _split(card: str) -> tuple[str, str]:
    """The front matter's text without its fences ("" if there is none), and the rest."""
    match = _FRONT.match(card)
    return (match[1], card[match.end() :]) if match else ("", card)


def _blocks(front: str) -> dict[str, str]:
    """Top-level key -> its lines, verbatim; lines before the first key have the key ""."""
    blocks, key = {"": ""}, ""
    for line in front.splitlines(keepends=True):
        if match := _KEY.match(line):
            key = match[2]
        blocks[key] = blocks.get(key, "") + line
    return blocks


def _mapping(front: str) -> dict[str, Any] | None:
    try:
        value = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError):  # ValueError: a date such as 2024-13-45
        return None
    return {} if value is None else value if isinstance(value, dict) else None


def _remembered(block: str) -> Mapping[str, Any]:
    start = block.find(MEMORY)
    try:
        value, _ = json.JSONDecoder().raw_decode(block, start + len(MEMORY)) if start >= 0 else ({}, 0)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def to_yaml(values: Mapping[str, Any]) -> str:
    """Front matter as YAML, with its keys in order."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=1000)
