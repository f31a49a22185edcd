"""The check for private words (``scripts/check_words.py``), which ``make lint`` runs over sources and docs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli_tools import PATIENCE

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_words.py"


def check(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("a linear read-out of the states", "linear probe"),
        ("the readout is\nfitted", "linear probe"),
        ("ten prompts behind the\ntext", "suffix"),
        ("as one more voice", "ensemble members"),
        ("a compiled prompt", "prefilled prompt"),
        ("which decides with the prompt", "plain English"),
        ("x = Known(layers, hidden)", "KV cache"),
        ("number type of the base", "dtype"),
    ],
)
def test_private_words_are_found(text: str, term: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{text}\n")
    done = check(page)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{page}:3: ")
    assert term in done.stdout


def test_ordinary_english_passes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("The text behind it, a known problem: readouts = read(cues)  # old name\nThey compile the code.\n")
    done = check(page)
    assert (done.returncode, done.stdout) == (0, "")
