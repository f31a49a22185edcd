"""What an earlier version wrote: the losses of a fixed run, adapters, and a checkpoint to resume from.

``earlier/`` was made once by the commands below, on a random base with 16 rows, and is not to be made again: where a
result differs, the change is at fault. The fingerprints of its runs were taken out, since they hold the base's path.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import cli_tools

EARLIER = Path(__file__).with_name("earlier")
OPTIONS = (
    *("--model_name_or_path", "base", "--train_file", "train.csv", "--validation_file", "validation.csv"),
    *("--text_column", "text", "--label_column", "label"),
    *("--per_device_train_batch_size", "4", "--num_train_epochs", "10"),
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of the folder, to run commands in."""
    return Path(shutil.copytree(EARLIER, tmp_path / "earlier"))


def run(place: Path, *args: str) -> None:
    done = cli_tools.forked(*args, cwd=place)
    assert done.returncode == 0, done.stderr


def epochs(folder: Path) -> list[tuple[float, float]]:
    """Training and validation loss of each epoch."""
    history = json.loads((folder / "trainer_state.json").read_text())["history"]
    return [(each["train_loss"], each["eval_loss"]) for each in history]


def test_ten_losses(place: Path) -> None:
    run(place, "train", *OPTIONS, "--output_dir", "new")
    found, expected = epochs(place / "new"), epochs(EARLIER / "default")
    assert len(found) == 10
    for now, then in zip(found, expected, strict=True):
        assert now == pytest.approx(then, rel=1e-4)


@pytest.mark.parametrize("name", ["default", "best", "suffix"])
def test_an_adapter_answers_as_it_did(place: Path, name: str) -> None:
    """A prompt with a linear probe, an ensemble, and a prompt of suffix placement."""
    command = ("predict", "--adapter", name, "--model_name_or_path", "base", "--input_file", "test.csv")
    run(place, *command, "--output_file", "now.jsonl")
    now, then = ((place / file).read_text().splitlines() for file in ("now.jsonl", f"{name}.jsonl"))
    for found, expected in zip(map(json.loads, now), map(json.loads, then), strict=True):
        assert found.pop("probability") == pytest.approx(expected.pop("probability"), rel=1e-4)
        assert found == expected


def test_a_checkpoint_is_resumed(place: Path) -> None:
    """The last epoch from the checkpoint before it: the numbers of the run that was not interrupted."""
    expected = load_file(EARLIER / "default" / "checkpoint-40" / "adapter_model.safetensors")
    shutil.rmtree(place / "default" / "checkpoint-40")
    run(place, "train", *OPTIONS, "--output_dir", "default", "--resume_from_checkpoint", "default/checkpoint-36")
    found = load_file(place / "default" / "checkpoint-40" / "adapter_model.safetensors")
    assert found["prompt_embeddings"].flatten().tolist() == pytest.approx(
        expected["prompt_embeddings"].flatten().tolist(), rel=1e-4, abs=1e-6
    )
    assert epochs(place / "default")[-1] == pytest.approx(epochs(EARLIER / "default")[-1], rel=1e-4)
