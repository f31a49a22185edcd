"""``softprompt bench train`` on a tiny model: the sides agree, and the numbers mean what they are called."""

import csv
import json
import subprocess
import sys

import pytest
import torch

import cli_tools
from softprompt import ConfigError
from softprompt.base import load_base
from softprompt.bench.shapes import random_base
from softprompt.bench.sides import DROP_IN, OURS, PEFT_BEST, PEFT_GUIDE, SIDES, left_padded, make_side
from softprompt.options import ModelOptions
from softprompt.types import Example

pytest.importorskip("peft")

BATCH = (Example((4, 5, 6), (7, 2)), Example((8,), (9, 10, 2)), Example((11, 12, 13, 14, 15), (2,)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    cli_tools.make_base(folder / "base")
    with open(folder / "train.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["tweet", "label"], extrasaction="ignore")
        writer.writeheader()
        texts = [" ".join(cli_tools.WORDS[i : i + 3 + i % 4]) for i in range(12)]
        writer.writerows({"tweet": text, "label": ("yes", "no")[i % 2]} for i, text in enumerate(texts))
    return folder


def test_the_guides_batch():
    batch = left_padded(BATCH, 8, torch.device("cpu"))
    assert batch["input_ids"].tolist()[1] == [0, 0, 0, 0, 8, 9, 10, 2]
    assert batch["attention_mask"].tolist()[1] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert batch["labels"].tolist()[1] == [-100] * 5 + [9, 10, 2]
    assert left_padded(BATCH, None, torch.device("cpu"))["input_ids"].shape == (3, 6)


def test_sides_compute_the_same(place):
    """On rows of one length, where PEFT is exact too."""
    batch = [Example((4, 5, 6), (7, 2)), Example((8, 9, 10), (11, 2))]
    prompt = torch.randn(4, cli_tools.WIDTH)
    found = {}
    for name in SIDES:
        base = load_base(ModelOptions(model_name_or_path=str(place / "base"))).model
        loss, gradient = make_side(name, base, prompt, 5).step(batch)
        found[name] = (loss, gradient.clone())
    for name in (PEFT_GUIDE, PEFT_BEST, DROP_IN):
        assert found[name][0] == pytest.approx(found[OURS][0], rel=1e-5)
        assert torch.allclose(found[name][1], found[OURS][1], rtol=1e-4, atol=1e-7)


def test_the_command(place):
    options = "--model base --train_file train.csv --text_column tweet --max_length 20 --num_virtual_tokens 4"
    command = [
        cli_tools.SOFTPROMPT,
        "bench",
        "train",
        *options.split(),
        *["--rounds", "2", "--per_device_train_batch_size", "4"],
    ]
    done = subprocess.run([*command, "--json"], cwd=place, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    guide = result["peft_guide_rows_per_second"]
    assert guide > 0
    assert result["speedup_vs_peft_guide"] == pytest.approx(result["rows_per_second"] / guide)
    assert result["max_relative_gradient_difference"] < 1e-4
    assert result["memory_ratio"] == pytest.approx(result["peak_memory_bytes"] / result["peft_peak_memory_bytes"])
    assert result["peak_memory_bytes"] != result["peft_peak_memory_bytes"], "each in a process of its own"
    table = subprocess.run([*command, "--no_memory"], cwd=place, capture_output=True, text=True, check=True).stdout
    assert "PEFT, the guide's loop" in table
    assert "softprompt, import changed" in table


def test_an_unknown_shape():
    with pytest.raises(ConfigError, match="did you mean 'bloomz-560m'"):
        random_base("bloomz-560")


def test_peft_is_loaded_only_for_its_sides():
    code = "import sys, softprompt.bench.train; sys.exit('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
