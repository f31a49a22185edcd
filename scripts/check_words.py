"""Find private words where the field has a term: ``python scripts/check_words.py [FILE ...]``.

Part of ``make lint``. Without arguments it reads the sources, README.md, CONTRIBUTING.md and docs/, except
the log of experiments, which quotes older names. Ordinary English words are not banned, only names and
phrases that a reader who knows transformers would have to look up here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXCEPT = {"docs/log.md"}
LINE_MARK = "old name"
"""A line with this comment may hold a name of an earlier version, which still has to be read."""

TERMS = {
    r"read-?outs?": "linear probe",
    r"Known|KNOWN_\w+|known_texts|known nodes?": "KV cache, prefix cache",
    r"what is known of|knows? the texts?": "KV cache, text cache",
    r"_?[Ss]hel(f|ved)": "disk spill",
    r"compil(ed?|es|ing) (a |the )?prompts?|compile_prompt": "prefilled prompt, prefill",
    r"\bcues?\b|\bnum_cue_\w+": "answer prefix",
    r"shortest_starts|starts? of labels?": "unique prefixes",
    r"voices?": "ensemble members",
    r"(prompts?|rows?|texts?|labels?) behind": "suffix",
    r"behind (the|a|each|every|all|its) (texts?|prompts?|labels?|rows?)": "suffix",
    r"(stands?|put|placed) (behind|in front)|in front of (the|a|each|every|all) (texts?|rows?)": "prefix, suffix",
    r"frugal": "checkpointed",
    r"number types?": "dtype",
    r"rows of the (soft )?prompt(?! matrix)": "virtual tokens",
    r"(left-out|left out) rows?|rows? (that were |which were )?left out": "held-out rows",
    r"what decides|(which|that) decides?|decides? together|as it decides": "plain English",
    r"as sure(ly)? as|proves? right": "plain English",
    r"is told|are told|will not do|there is but|is but one|nothing is said|is not said": "plain English",
    r"says? together|what (each|all|they|it) (say|says|said)|whoever": "plain English",
}
"""Regular expression -> the term to write instead."""

_FOUND = re.compile("|".join(rf"(?<![\w-])(?P<t{i}>{pattern})(?![\w-])" for i, pattern in enumerate(TERMS)))


def hits(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, what was found, and the term to write instead."""
    lines = text.splitlines()
    for found in _FOUND.finditer(" ".join(lines)):
        number = _line_of(lines, found.start())
        if LINE_MARK not in lines[number - 1]:
            yield number, found.group(), list(TERMS.values())[int((found.lastgroup or "t0")[1:])]


def _line_of(lines: list[str], offset: int) -> int:
    for number, line in enumerate(lines, 1):
        offset -= len(line) + 1
        if offset < 0:
            return number
    return len(lines)


def files() -> list[Path]:
    """What is checked by default."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        path for path in [*sorted((ROOT / "src").rglob("*.py")), *pages] if str(path.relative_to(ROOT)) not in EXCEPT
    ]


def main(arguments: list[str]) -> int:
    """Print each hit; the exit status is 1 if there is one."""
    status = 0
    for path in [Path(each) for each in arguments] or files():
        for number, found, term in hits(path.read_text(encoding="utf-8")):
            print(f"{path}:{number}: {found!r}: write {term}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
