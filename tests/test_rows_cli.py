"""The command line on files as people have them: gaps, quotes, no header, words that mean something to YAML."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from cli_tools import forked, make_base, read_csv, rows
from softprompt.config.options import DataOptions, TrainOptions, build_options
from softprompt.config.yaml_file import read_yaml
from softprompt.errors import ConfigError

TRAIN = "train --recipe guide --model_name_or_path base --num_virtual_tokens 2 --num_train_epochs 1 --no_baselines"
PREDICT = "predict --adapter adapter --input_file"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and an adapter trained on tab-separated lines without header and quoting, some of them empty."""
    place = tmp_path_factory.mktemp("rows")
    make_base(place / "base")
    marks = ['"', "", ""] * 4
    lines = [f"{row['label']}\t{mark}{row['text']}" for row, mark in zip(rows(12), marks, strict=True)]
    (place / "messy.tsv").write_text("\n".join([*lines, "\t", "", "\t\t"]) + "\n")
    more = "--column_names label,text --labels no --labels yes --output_dir adapter --template"
    done = run(f"{TRAIN} --train_file messy.tsv {more}", r"{text}\n?", place=place)
    assert "rows: 12 train (2 classes: no, yes)" in done.stdout
    assert "rows skipped because all columns are empty: 2" in done.stdout
    return place


def run(command: str, *more: str, place: Path, fails: bool = False) -> CompletedProcess[str]:
    done = forked(*command.split(), *more, cwd=place)
    assert done.returncode == (2 if fails else 0), f"{done.stdout}\n--- stderr\n{done.stderr}"
    return done


def dry_run(place: Path, options: str, *more: str) -> str:
    return run(f"{TRAIN} --output_dir none --dry_run {options}", *more, place=place).stdout


def put(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def test_a_file_without_a_header(place: Path) -> None:
    task = json.loads((place / "adapter" / "task.json").read_text())
    assert (task["labels"], task["template"]) == (["no", "yes"], "{text}\n?")
    done = run("evaluate --adapter adapter --test_file messy.tsv --column_names label,text", place=place)
    assert "rows skipped because all columns are empty: 2" in done.stdout
    assert json.loads((place / "adapter" / "metrics.json").read_text())["num_examples"] == 12
    run(f"{PREDICT} messy.tsv --column_names label --column_names text --output_file named.csv", place=place)
    answers = read_csv(place / "named.csv")
    assert len(answers) == 12
    assert list(answers[0]) == ["label", "text", "predicted_label", "probability"]
    assert answers[0]["text"].startswith('"')
    done = run("predict --adapter adapter --text good --column_names text", place=place, fails=True)
    assert "--column_names is for --input_file" in done.stderr


def test_predict_ignores_labels(place: Path) -> None:
    """Whatever stands in the label column; what is missing is written as JSON has it."""
    labels = [float("nan"), None, "perhaps", [1], 3]
    put(place / "unsure.jsonl", [{"text": "good", "label": label} for label in labels])
    run(f"{PREDICT} unsure.jsonl --output_file sure.jsonl", place=place)
    lines = (place / "sure.jsonl").read_text().splitlines()
    answers = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [answer["label"] for answer in answers] == [None, None, "perhaps", [1], 3]
    assert len({answer["probability"] for answer in answers}) == 1


def test_a_row_without_a_text(place: Path) -> None:
    put(place / "gaps.jsonl", [{"ID": 1, "text": "good"}, {}, {"ID": 2, "text": float("nan")}])
    done = run(f"{PREDICT} gaps.jsonl --output_file gone.csv", place=place, fails=True)
    assert done.stderr == "softprompt: gaps.jsonl, line 3: the column 'text' is empty; every row needs a text\n"
    assert not (place / "gone.csv").exists()
    done = run("predict --adapter adapter --text", "", place=place, fails=True)
    assert done.stderr == "softprompt: text 1: the column 'text' is empty; every row needs a text\n"
    done = run(f"{PREDICT} gaps.jsonl --raft_output raft.csv", place=place)  # it wants a label for every ID
    assert [row["ID"] for row in read_csv(place / "raft.csv")] == ["1", "2"]
    assert "rows without a text, labelled anyway since RAFT needs every ID: 1" in done.stderr
    assert "rows skipped because all columns are empty: 1" in done.stderr


def test_what_training_tells_of_the_rows(place: Path) -> None:
    put(place / "once.jsonl", [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}])
    told = dry_run(place, "--train_file once.jsonl")
    assert "rows: 2 train (free text)" in told
    assert "most labels occur only once, so they are treated as free text; if they are classes, use --task" in told
    assert "treated as free text" not in dry_run(place, "--train_file once.jsonl --task generation")
    put(place / "alike.jsonl", [{"text": "good", "label": label} for label in ("yes", "Yes", "no", "yes", "Yes", "no")])
    told = dry_run(place, "--train_file alike.jsonl")
    assert "labels that differ only in case or blanks are separate classes: 'yes' and 'Yes'" in told
    columns = [{"title": "good", "text": "bad" * (i % 2), "label": ("yes", "no")[i % 2]} for i in range(4)]
    put(place / "columns.jsonl", columns)
    told = dry_run(place, "--train_file columns.jsonl --text_column title --text_column text")
    assert "empty cells in text columns: 'text' in 2 of 4 rows" in told


def test_a_special_token_in_a_file_is_text(place: Path) -> None:
    put(place / "special.jsonl", [{"text": "good </s> bad", "label": label} for label in ("yes", "no")] * 2)
    told = dry_run(place, "--train_file special.jsonl", "--template", "{text} </s>")
    first = told.partition("tokens of input")[2].partition("tokens of input")[0]
    assert [line.split()[-1] for line in first.splitlines()[1:6]] == ["'good'", "'<unk>'", "'bad'", "'</s>'", "'yes'"]


YAML = r"""
train_file: rows.csv
output_dir: out
labels: [yes, no, 010, 1.50, null, 2024-01-01, "on"]
text_column: text
label_column: 2024
template: 'a\n{text}'
revision: null
validation_split:
eval_strategy: no
readout: yes
full_determinism: off
learning_rate: 1e-3
warmup_ratio: .5
seed: 1_000
num_train_epochs: 8
"""


def test_a_yaml_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    """YAML makes ``True``, 8 and a date of some words; the options know what they need."""
    (tmp_path / "a.yaml").write_text(YAML)
    options = build_options(TrainOptions, read_yaml(tmp_path / "a.yaml", as_written=True))
    assert options.labels == ["yes", "no", "010", "1.50", "null", "2024-01-01", "on"]
    assert (options.text_column, options.label_column, options.template) == (["text"], "2024", r"a\n{text}")
    assert (options.revision, options.validation_split, options.eval_strategy) == (None, None, "no")
    assert (options.linear_probe, options.full_determinism, options.learning_rate) == (True, False, 1e-3)
    assert (options.warmup_ratio, options.seed, options.num_train_epochs) == (0.5, 1000, 8)
    (tmp_path / "b.yaml").write_text("labels: [yes, no]\na: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(tmp_path / "b.yaml", as_written=True)


def test_yaml_labels_in_a_run(place: Path) -> None:
    (place / "labels.yaml").write_text("train_file: special.jsonl\nlabels: [yes, no]\ntext_column: text\n")
    put(place / "special.jsonl", [{"text": "good", "label": label} for label in ("yes", "no")] * 2)
    assert "2 classes: yes, no" in run(f"{TRAIN} --output_dir none --dry_run", "labels.yaml", place=place).stdout


@pytest.mark.parametrize(
    ("given", "names"),
    [("label, text", ["label", "text"]), (["label,text"], ["label", "text"]), (["a,b", "c"], ["a,b", "c"])],
)
def test_names_of_columns(given: Any, names: list[str]) -> None:
    assert DataOptions(column_names=given).column_names == names
    assert DataOptions(labels=[1, 2.5]).labels == ["1", "2.5"]
    for wrong in ("a,,b", "a,a", ""):
        with pytest.raises(ConfigError, match="name each column once"):
            build_options(DataOptions, {"column_names": wrong})
