"""Formatting of names, numbers, tables and code in model cards."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_HUB_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"{_HUB_PART}/{_HUB_PART}")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` is a Hub id (``owner/name``) rather than a file or folder."""
    is_file = name.endswith((".gguf", ".json", ".jsonl", ".csv", ".tsv", ".parquet"))
    return bool(_HUB_ID.fullmatch(name)) and "--" not in name and ".." not in name and not is_file


def basename(path: str) -> str:
    """The last part of a Windows or POSIX path."""
    return re.split(r"[\\/]+", path.rstrip("\\/"))[-1]


def public_name(name: str) -> str:
    """A Hub id unchanged; the last part of a local path."""
    return name if is_hub_id(name) else basename(name)


def base_link(config: Mapping[str, Any]) -> str:
    """The base model, with a link if it is on the Hub."""
    base, revision = str(config.get("base_model_name_or_path") or ""), config.get("revision")
    text = escape(basename(base) or "its base model")
    if is_hub_id(base):
        text = f"[{escape(base)}](https://huggingface.co/{base})"
    return f"{text} (revision {escape(str(revision))})" if revision else text


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% confidence interval of a share of ``count`` rows; it is valid near 0 and 1 too."""
    z2 = 1.96**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count * count))) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def duration(seconds: float) -> str:
    """A duration in seconds, as text."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> str:
    """A number with three decimals; a dash for anything else."""
    if not is_number(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first aligned to the right."""
    ruler = ["---"] + ["---:"] * (len(head) - 1) if len(head) > 2 else ["---"] * len(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ruler, *rows])


def escape(text: str) -> str:
    """``text`` on one line, with the special characters of Markdown, HTML and tables escaped."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", line)


def code(text: str) -> str:
    """``text`` as inline code, also valid in a table cell."""
    line = " ".join(text.split()).replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{ticks} {line} {ticks}" if "`" in line else f"`{line}`"


def literal(text: str) -> str:
    """``text`` as a Python string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def fenced(language: str, lines: Sequence[str]) -> str:
    """A block of code, with a fence longer than any in the code."""
    code = "\n".join(lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"
