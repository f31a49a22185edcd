"""The installed command line on a tiny model, each command in a process of its own.

A module-scoped fixture runs them all, two at a time; the tests look at what came of them.
"""

from __future__ import annotations

import csv
import io
import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from cli_tools import SOFTPROMPT, forked, make_base, read_csv, rows, softprompt, struck, write_rows
from hub_server import HubServer, run_with_hub
from softprompt.cli import COMMANDS, GROUPS, build_app, main
from softprompt.data.sources import Splits
from softprompt.types import Row

OPTIONS = Path(__file__).with_name("cli_options.txt")
WEIGHTS = "adapter_model.safetensors"
FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "confusion_matrix.png",
    "initial_prompt.safetensors",
    "log.jsonl",
    "metrics.json",
    "task.json",
    "train_config.yaml",
    "trainer_state.json",
    "training_loss.png",
}
CHECKPOINT_FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.safetensors",
    "task.json",
    "trainer_state.json",
}
CONFIG = """\
recipe: guide
model_name_or_path: base
train_file: train.csv
validation_file: validation.csv
test_file: test.csv
num_train_epochs: 1
num-virtual-tokens: 4
learning_rate: 0.5
"""
LONG = "train long.yaml --num_train_epochs 60 --save_total_limit 1 --no_baselines --output_dir"
FREE = (
    "train --recipe guide --model_name_or_path base --train_file free.jsonl --test_file free.jsonl "
    "--label_column answer"
)
COLUMNS = "train --recipe guide --model_name_or_path base --train_file two.csv --label_column label --text_column title"

JOBS = {
    "train": "train config.yaml --output_dir run --num_train_epochs 4 --learning-rate 0.1",
    "free": f"{FREE} --num_train_epochs 2 --num_virtual_tokens 3 --output_dir free",
    "columns": f"{COLUMNS} --text-column body --num_train_epochs 1 --output_dir columns --max_length 16",
    "whole": f"{LONG} whole",
    "interrupted": f"{LONG} cut",
    "dry_run": "train config.yaml --output_dir nothing --max_length 9 --dry_run",
}
"""The runs that come first, by name; all others need one of them."""

AFTER = {
    "again": ("train", "train run/train_config.yaml --output_dir again"),
    "evaluate": ("train", "evaluate --adapter run --test_file test.csv --output_dir scores"),
    "evaluate_shorter": ("train", "evaluate --adapter run --test_file test.csv --max_length 9 --output_dir shorter"),
    "texts": ("train", "predict --adapter run --text good --text awful"),
    "csv": ("train", "predict --adapter run --input_file test.csv --output_file new/test.csv"),
    "jsonl": ("train", "predict --adapter run --input_file odd.jsonl --output_file odd-answers.jsonl"),
    "generate": ("train", "predict --adapter run --generate --max_new_tokens 3 --text good"),
    "checkpoint": ("train", "predict --adapter {checkpoint} --text good --text awful"),
    "inspect": ("train", "inspect run --nearest 2"),
    "free_evaluate": ("free", "evaluate --adapter free --test_file free.jsonl --output_dir free-scores"),
    "free_predict": ("free", "predict --adapter free --input_file free.jsonl --output_file free-answers.jsonl"),
    "columns_predict": ("columns", "predict --adapter columns --input_file two.csv --output_file two.tsv"),
    "long_text": ("free", "predict --adapter free --max_new_tokens 30 --input_file long.jsonl --output_file long.csv"),
    "resumed": ("interrupted", f"{LONG} cut --resume_from_checkpoint last"),
}

REAL = ("train", "texts", "resumed")
"""Run as installed, from nothing; the others are forked from a process that has imported torch."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model and rows."""
    place = tmp_path_factory.mktemp("cli")
    make_base(place / "base")
    write_rows(place / "train.csv", rows(24))
    write_rows(place / "validation.csv", rows(8, 24))
    write_rows(place / "test.csv", rows(20, 32))
    (place / "config.yaml").write_text(CONFIG)
    (place / "long.yaml").write_text(CONFIG.replace("test_file: test.csv\n", ""))
    free = [{"text": row["text"], "answer": f"{row['text']} thanks {i}"} for i, row in enumerate(rows(6))]
    write_rows(place / "free.jsonl", free)
    write_rows(place / "odd.jsonl", [{"text": "good", "n": [1, {"a": None}]}, {"more": 1.5, "text": "awful ü\n?"}])
    write_rows(place / "long.jsonl", [{"text": "good " * 99}])
    two = [{"title": row["text"], "n": i, "body": "help " * i, "label": row["label"]} for i, row in enumerate(rows(8))]
    write_rows(place / "two.csv", two)
    return place


@pytest.fixture(scope="module")
def done(place: Path) -> Iterator[dict[str, CompletedProcess[str]]]:
    """What came of each command."""
    with ThreadPoolExecutor(2) as pool:
        first = {name: pool.submit(run, name, command, place) for name, command in JOBS.items()}
        later = {name: pool.submit(run_after, name, first, place) for name in AFTER}
        yield {name: job.result() for name, job in {**first, **later}.items()}


def run(name: str, command: str, place: Path) -> CompletedProcess[str]:
    if name == "interrupted":
        return struck(signal.SIGINT, "any(Path('cut').glob('checkpoint-*'))", *command.split(), cwd=place)
    if name in REAL:
        return softprompt(*command.split(), cwd=place, check=True)
    process = forked(*command.split(), cwd=place)
    assert process.returncode == 0, f"{process.stdout}\n--- stderr\n{process.stderr}"
    return process


def run_after(name: str, first: dict[str, Future[Any]], place: Path) -> CompletedProcess[str]:
    needed, command = AFTER[name]
    first[needed].result()
    return run(name, command.format(checkpoint=checkpoints(place / "run")[-1]), place)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# --- help -------------------------------------------------------------------------------------------

SUBCOMMANDS = [f"{group} {name}" for group, names in GROUPS.items() for name in names]


@pytest.fixture(scope="module")
def helps(place: Path) -> dict[str, CompletedProcess[str]]:
    """The help of each command, with what was imported for it on stderr."""
    asked = {name: (*name.split(), "--help") for name in [*COMMANDS, *SUBCOMMANDS]} | {
        "": ("--help",),
        "none": (),
        "version": ("--version",),
    }
    env = {"PYTHONPROFILEIMPORTTIME": "1", "COLUMNS": "200"}
    with ThreadPoolExecutor(2) as pool:
        return dict(
            zip(asked, pool.map(lambda args: softprompt(*args, cwd=place, env=env), asked.values()), strict=True)
        )


@pytest.mark.parametrize("name", [*COMMANDS, *SUBCOMMANDS, "", "none", "version"])
def test_help_does_not_wait_for_torch(name: str, helps: dict[str, CompletedProcess[str]]) -> None:
    timed = {line.rpartition("|")[2].strip().split(".")[0] for line in helps[name].stderr.splitlines()}
    assert "softprompt" in timed
    assert not timed & {"torch", "transformers", "numpy", "datasets", "huggingface_hub", "matplotlib"}


def test_help_lists_the_commands(helps: dict[str, CompletedProcess[str]]) -> None:
    for name in ("", "none"):
        assert set(COMMANDS) <= set(helps[name].stdout.split())
        assert helps[name].returncode == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", helps["version"].stdout.strip())


def test_options_are_those_that_were_agreed_on(helps: dict[str, CompletedProcess[str]]) -> None:
    """To add or rename an option, change the list in ``cli_options.txt`` too, on purpose."""
    lines = []
    for name in [each for each in COMMANDS if each not in GROUPS] + SUBCOMMANDS:
        found = [line for line in helps[name].stdout.splitlines() if re.match(r"  (-h, )?--", line)]
        lines += [f"{name} {option}" for line in found for option in re.findall(r"--\w+", line.split("  ")[1])]
        assert helps[name].stdout.startswith(f"Usage: softprompt {name} ")
    assert lines == OPTIONS.read_text().splitlines()


def test_help_of_a_group_lists_its_commands(helps: dict[str, CompletedProcess[str]]) -> None:
    for group, names in GROUPS.items():
        assert set(names) <= set(helps[group].stdout.split())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bench train --no-memory --help", "benchmark speed"),
        ("benchmark nowhere.yaml --dry_run", "benchmark quality"),
        ("benchmark --table nowhere.yml", "benchmark quality"),
    ],
)
def test_commands_of_version_0_1_work_and_name_the_new_ones(old: str, new: str, tmp_path: Path) -> None:
    process = forked(*old.split(), cwd=tmp_path)
    note, *rest = process.stderr.splitlines()
    assert note.startswith("softprompt: ")
    assert note.endswith(f"is deprecated; use 'softprompt {new}'")
    if old.endswith("--help"):
        assert (process.returncode, rest) == (0, [])
        assert f"{new} [OPTIONS]" in process.stdout
    else:
        assert process.returncode == 2
        assert "cannot read the config file nowhere.y" in rest[0]


# --- training ---------------------------------------------------------------------------------------


def test_the_output_folder_has_these_files(place: Path, done: dict[str, Any]) -> None:
    entries = {path.name for path in (place / "run").iterdir()}
    saved = {path.name for path in checkpoints(place / "run")}
    assert entries - {"prompt.png"} == FILES | saved  # that one is inspect's
    assert "checkpoint-12" in saved
    assert len(saved) in (2, 3)
    for name in saved:
        assert {path.name for path in (place / "run" / name).iterdir()} == CHECKPOINT_FILES
    modes = {path.stat().st_mode & 0o777 for path in (place / "run").rglob("*") if path.is_file()}
    assert len(modes) == 1, "some files cannot be read by others"


def test_the_command_line_wins_over_the_file(place: Path, done: dict[str, Any]) -> None:
    values = yaml.safe_load((place / "run" / "train_config.yaml").read_text())
    assert (values["num_train_epochs"], values["learning_rate"]) == (4, 0.1)
    assert (values["num_virtual_tokens"], values["train_file"]) == (4, "train.csv")


def test_what_training_prints(done: dict[str, CompletedProcess[str]]) -> None:
    process = done["train"]
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert lines[0] == "rows: 24 train, 8 validation, 20 test (2 classes: yes, no)"
    epochs = [line for line in lines if re.match(r" +\d+ +\d+\.\d{4} ", line)]
    assert [line.split()[0] for line in epochs] == ["1", "2", "3", "4"]
    assert any("*" in line for line in epochs)
    assert "majority class" in process.stdout
    assert "untuned prompt" in process.stdout
    assert lines[-1] == 'try it:     softprompt predict --adapter run --text "..."'


def test_the_records_agree_with_each_other(place: Path, done: dict[str, Any]) -> None:
    state, metrics = read(place / "run" / "trainer_state.json"), read(place / "run" / "metrics.json")
    assert state["finished"]
    assert (state["global_step"], state["epoch"], len(state["history"])) == (12, 4.0, 4)
    best = max(state["history"], key=lambda record: (record["macro_f1"], -record["eval_loss"]))
    assert (state["best_step"], state["best_metric"]) == (best["step"], best["macro_f1"])
    assert (metrics["num_examples"], metrics["labels"], metrics["split"]) == (20, ["yes", "no"], "test")
    assert sum(map(sum, metrics["confusion_matrix"])) == 20
    assert metrics["baselines"].keys() == {"majority class", "untuned prompt"}
    assert metrics["baselines"]["majority class"]["accuracy"] == 0.5


def test_the_adapter_is_the_best_checkpoint(place: Path, done: dict[str, Any]) -> None:
    best = read(place / "run" / "trainer_state.json")["best_model_checkpoint"]
    assert (place / "run" / WEIGHTS).read_bytes() == (place / "run" / best / WEIGHTS).read_bytes()


def test_the_written_options_repeat_the_run(place: Path, done: dict[str, Any]) -> None:
    for name in (WEIGHTS, "initial_prompt.safetensors", "task.json"):
        assert (place / "again" / name).read_bytes() == (place / "run" / name).read_bytes()
    timed = ("examples_per_second",)
    first, again = (
        {k: v for k, v in read(place / name / "metrics.json").items() if k not in timed} for name in ("run", "again")
    )
    assert again == first


def test_a_dry_run_shows_tokens_and_writes_nothing(place: Path, done: dict[str, CompletedProcess[str]]) -> None:
    out = done["dry_run"].stdout
    assert not (place / "nothing").exists()
    assert re.search(r"^cut to fit max_length: \d+ of 24 train, \d+ of 8 validation, \d+ of 20 test rows$", out, re.M)
    assert out.count("tokens of input and 2 of label (*)") == 3
    supervised = re.findall(r"^ +\d+ \* +\d+  '(.+)'$", out, re.M)
    assert supervised == ["yes", "</s>", "no", "</s>", "yes", "</s>"]


def test_going_on_after_an_interrupt_is_exact(place: Path, done: dict[str, CompletedProcess[str]]) -> None:
    stopped = done["interrupted"]
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == "softprompt: interrupted; go on with --resume_from_checkpoint last\n"
    assert "Traceback" not in stopped.stdout
    assert re.search(r"resuming from checkpoint-\d+, step \d+ of 180", done["resumed"].stdout)
    assert (place / "cut" / WEIGHTS).read_bytes() == (place / "whole" / WEIGHTS).read_bytes()
    last = "checkpoint-180/optimizer.safetensors"
    assert (place / "cut" / last).read_bytes() == (place / "whole" / last).read_bytes()
    assert {path.name for path in (place / "cut").iterdir()} == {path.name for path in (place / "whole").iterdir()}


# --- evaluating and predicting ----------------------------------------------------------------------


def test_evaluation_in_a_new_process_gives_the_same(place: Path, done: dict[str, Any]) -> None:
    trained, evaluated = read(place / "run" / "metrics.json"), read(place / "scores" / "metrics.json")
    for name in ("accuracy", "macro_f1", "confusion_matrix", "labels", "num_examples"):
        assert evaluated[name] == trained[name]
    assert evaluated["eval_loss"] == pytest.approx(trained["eval_loss"], abs=1e-6)
    assert {path.name for path in (place / "scores").iterdir()} == {"metrics.json"}


def test_rows_that_only_validate_are_called_so(
    place: Path, done: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a folder that was asked for is made."""
    labelled = [Row(dict(row), "row") for row in rows(8, 24)]
    monkeypatch.setattr("softprompt.inference.evaluate_adapter.load_splits", lambda *_, **__: Splits([], labelled, []))
    monkeypatch.chdir(place)
    folder = place / "not" / "there"
    command = ["evaluate", "--adapter", "run", "--dataset_name", "some", "--output_dir", str(folder)]
    build_app("evaluate")(command, standalone_mode=False)
    assert (read(folder / "metrics.json")["split"], read(folder / "metrics.json")["num_examples"]) == ("validation", 8)


def test_an_adapter_of_the_hub_leaves_no_folder(
    place: Path, done: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from softprompt.inference import evaluate_adapter, pipeline

    real = {"load_predictor": pipeline, "read_task": evaluate_adapter}
    for name, module in real.items():
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda adapter, *a, _real=function: _real(str(place / "run"), *a))
    monkeypatch.setattr(evaluate_adapter, "fetch_adapter", lambda adapter: None)
    monkeypatch.chdir(tmp_path)
    base = ["--model_name_or_path", str(place / "base"), "--test_file", str(place / "test.csv")]
    for adapter, more in (("prompt", []), ("me/prompt", []), ("me/prompt", ["--output_dir", "a/b"])):
        build_app("evaluate")(["evaluate", "--adapter", adapter, *base, *more], standalone_mode=False)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == ["a/b/metrics.json"]


def test_an_interrupt_before_a_checkpoint_promises_none(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("softprompt.training.loop.forward_backward", stop)
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as left:
        main(["train", "config.yaml", "--output_dir", str(place / "stopped"), "--num_train_epochs", "1"])
    assert left.value.code == 130
    assert capsys.readouterr().err == "softprompt: interrupted\n"


def test_there_is_room_for_the_answer_to_a_long_text(place: Path, done: dict[str, CompletedProcess[str]]) -> None:
    assert "1 of 1 texts were cut" in done["long_text"].stderr
    assert len(read_csv(place / "long.csv")) == 1


def test_evaluation_says_what_was_cut(done: dict[str, CompletedProcess[str]]) -> None:
    assert re.search(r"^cut to fit max_length: \d+ of 20 rows$", done["evaluate_shorter"].stdout, re.M)
    assert "cut to fit" not in done["evaluate"].stdout


def test_predictions_are_those_that_were_evaluated(place: Path, done: dict[str, Any]) -> None:
    answers = read_csv(place / "new" / "test.csv")
    labels = ["yes", "no"]
    matrix = [[0, 0], [0, 0]]
    for row in answers:
        matrix[labels.index(row["label"])][labels.index(row["predicted_label"])] += 1
    assert matrix == read(place / "run" / "metrics.json")["confusion_matrix"]
    assert all(sum(column) for column in zip(*matrix, strict=True)), "one label only: a weak test, change the rows"
    assert all(0.5 <= float(row["probability"]) <= 1 for row in answers)


def test_columns_and_order_are_kept(place: Path, done: dict[str, Any]) -> None:
    answers = read_csv(place / "new" / "test.csv")
    assert list(answers[0]) == ["id", "text", "label", "predicted_label", "probability"]
    assert [{name: row[name] for name in ("id", "text", "label")} for row in answers] == rows(20, 32)
    lines = [json.loads(line) for line in (place / "odd-answers.jsonl").read_text().splitlines()]
    given = [json.loads(line) for line in (place / "odd.jsonl").read_text().splitlines()]
    answer = ("predicted_label", "probability")
    assert [{name: value for name, value in line.items() if name not in answer} for line in lines] == given
    assert all(line.keys() >= set(answer) for line in lines)


def test_texts_on_the_command_line(place: Path, done: dict[str, CompletedProcess[str]]) -> None:
    answers = [line.split() for line in done["texts"].stdout.splitlines()]
    assert [label in ("yes", "no") and 0.5 <= float(share) <= 1 for label, share in answers] == [True, True]
    first = json.loads((place / "odd-answers.jsonl").read_text().splitlines()[0])  # its text is "good" too
    assert answers[0][0] == first["predicted_label"]
    assert float(answers[0][1]) == pytest.approx(first["probability"], abs=2e-4)
    assert done["texts"].stderr == ""


def test_generating_writes_freely(done: dict[str, CompletedProcess[str]]) -> None:
    (line,) = done["generate"].stdout.splitlines()
    assert len(line.split()) <= 3


def test_a_checkpoint_is_an_adapter(place: Path, done: dict[str, CompletedProcess[str]]) -> None:
    assert len(done["checkpoint"].stdout.splitlines()) == 2
    last = checkpoints(place / "run")[-1]
    if (last / WEIGHTS).read_bytes() == (place / "run" / WEIGHTS).read_bytes():
        assert done["checkpoint"].stdout == done["texts"].stdout


def test_inspect_shows_the_prompt(place: Path, done: dict[str, CompletedProcess[str]]) -> None:
    out = done["inspect"].stdout
    assert [line.split()[0] for line in out.splitlines() if re.match(r" *\d+ +\d+\.\d{3} ", line)] == list("1234")
    assert "from initial" in out
    assert "median norm of the vocabulary" in out
    assert out.splitlines()[-1].split() == ["picture", "run/prompt.png"]
    assert (place / "run" / "prompt.png").read_bytes().startswith(b"\x89PNG")


# --- other kinds of task ----------------------------------------------------------------------------


def test_free_text(place: Path, done: dict[str, CompletedProcess[str]]) -> None:
    assert "rows: 6 train, 6 test (free text)" in done["free"].stdout
    assert "accuracy" not in done["free"].stdout
    trained, evaluated = read(place / "free" / "metrics.json"), read(place / "free-scores" / "metrics.json")
    assert trained["accuracy"] is None
    assert evaluated["eval_loss"] == pytest.approx(trained["eval_loss"], abs=1e-6)
    assert {path.name for path in (place / "free").iterdir()} - {"checkpoint-1", "checkpoint-2"} == FILES - {
        "confusion_matrix.png"
    }
    lines = [json.loads(line) for line in (place / "free-answers.jsonl").read_text().splitlines()]
    assert [line.keys() for line in lines] == [{"text", "answer", "generated_text"}] * 6
    assert all(isinstance(line["generated_text"], str) for line in lines)


def test_several_text_columns(place: Path, done: dict[str, CompletedProcess[str]]) -> None:
    assert re.search(r"cut to fit max_length: \d of 8 train rows", done["columns"].stdout)
    task = read(place / "columns" / "task.json")
    assert task["text_columns"] == ["title", "body"]
    assert task["template"] == "title : {title} body : {body} Label : "
    assert "try it" not in done["columns"].stdout  # --text is for one column
    assert re.search(r"\d of 8 texts were cut to fit max_length", done["columns_predict"].stderr)
    answers = list(csv.DictReader(io.StringIO((place / "two.tsv").read_text()), delimiter="\t"))
    assert list(answers[0]) == ["title", "n", "body", "label", "predicted_label", "probability"]
    assert [row["title"] for row in answers] == [row["text"] for row in rows(8)]


# --- others -----------------------------------------------------------------------------------------


def test_peft_loads_the_folder(place: Path, done: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    from softprompt import PeftModel

    ids = torch.tensor([[1, 5, 9, 12, 7, 20]])
    found = []
    for library in (peft.PeftModel, PeftModel):
        base = AutoModelForCausalLM.from_pretrained(place / "base")
        with torch.no_grad():
            found.append(library.from_pretrained(base, str(place / "run"))(input_ids=ids).logits)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_push_and_back(place: Path, done: dict[str, CompletedProcess[str]], tmp_path: Path) -> None:
    with HubServer(user="me") as hub:
        env = {"OMP_NUM_THREADS": "1"}
        pushed = run_with_hub(hub, [str(SOFTPROMPT), "push", str(place / "run"), "me/prompt"], tmp_path, env=env)
        assert pushed.stdout.splitlines()[-1].endswith("/me/prompt")
        files = hub.files("me/prompt")
        shared = FILES - {"train_config.yaml", "log.jsonl"}  # those tell of the machine
        assert shared <= files.keys() <= shared | {".gitattributes", "prompt.png"}
        assert files[WEIGHTS] == (place / "run" / WEIGHTS).read_bytes()
        command = ["predict", "--adapter", "me/prompt", "--text", "good", "--text", "awful"]
        base = ["--model_name_or_path", str(place / "base")]
        back = run_with_hub(hub, [str(SOFTPROMPT), *command, *base], tmp_path, env=env)
        assert back.stdout == done["texts"].stdout
        assert hub.errors == []
