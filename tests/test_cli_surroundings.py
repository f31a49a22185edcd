"""What surrounds a command: terminals that cannot show everything, home folders, options known from elsewhere."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel

import softprompt as package
from cli_tools import forked, make_base, rows, softprompt, write_rows
from softprompt.benchmarks.quality.specification import QualityOptions, TaskOptions
from softprompt.benchmarks.speed.settings import SpeedOptions
from softprompt.cli import COMMANDS, GROUPS, build_app, main
from softprompt.config.options import TrainOptions, build_options
from softprompt.config.serve_options import ServeOptions
from softprompt.config.training_arguments import ABSENT
from softprompt.config.yaml_file import read_yaml
from softprompt.errors import ConfigError
from softprompt.storage.atomic import expand

YES, NO = "投诉 bad", "没有 good"
STRICT = {"PYTHONIOENCODING": "cp1252:strict", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""A terminal of Western Europe's, and a system whose files are ASCII unless told otherwise."""


# --- what cannot be shown ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("surroundings")
    make_base(place / "base")
    chinese = [row | {"label": YES if row["label"] == "yes" else NO, "text": f"{row['text']} 电话"} for row in rows(12)]
    write_rows(place / "train.csv", chinese)
    return place


def run(command: str, place: Path, monkeypatch: pytest.MonkeyPatch, encoding: str = "cp1252") -> tuple[int, str, str]:
    """A command in this process, whose stdout and stderr take an encoding strictly; exit status and both."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.chdir(place)
        for name, stream in zip(("stdout", "stderr"), streams, strict=True):
            patch.setattr(f"sys.{name}", stream)
        with pytest.raises(SystemExit) as left:
            main(command.split())
        for stream in streams:
            stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
    return int(left.value.code or 0), out, err


TRAIN = "train --model_name_or_path base --train_file train.csv --test_file train.csv --validation_file train.csv"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_every_command_prints_whatever_the_terminal_shows(
    place: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, terminal: bool
) -> None:
    """With bars, turning signs and colours on a terminal, and without."""
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    folder = f"{encoding}-{terminal}"
    commands = {
        f"{TRAIN} --num_train_epochs 1 --output_dir {folder}": r"\u6295\u8bc9 bad",
        f"{TRAIN} --num_train_epochs 1 --output_dir new --dry_run": r"\u6295\u8bc9 bad",
        f"evaluate --adapter {folder} --test_file train.csv": r"\u6295\u8bc9 bad",
        f"predict --adapter {folder} --text 好": " good",
        f"predict --adapter {folder} --input_file train.csv --output_file {folder}/答.csv": r"\u7b54.csv",
        f"inspect {folder}": "nearest by cosine",
    }
    for command, shown in commands.items():
        status, out, err = run(command, place, monkeypatch, encoding)
        assert status == 0, err
        assert shown in out or "bad" in out, command
    answers = (place / folder / "答.csv").read_text(encoding="utf-8")
    assert YES in answers
    assert "电话" in answers
    status, out, err = run(f"{TRAIN} --train_file 无.csv --output_dir new", place, monkeypatch, encoding)
    assert (status, err.splitlines()) == (2, [r"softprompt: \u65e0.csv does not exist; check the path"])


def test_a_real_process_with_such_a_terminal(place: Path) -> None:
    done = softprompt(*TRAIN.split(), "--num_train_epochs", "1", "--output_dir", "real", cwd=place, env=STRICT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 classes: \\u6295\\u8bc9 bad, \\u6ca1\\u6709 good" in done.stdout
    assert YES in (place / "real" / "task.json").read_text(encoding="utf-8")
    assert YES in (place / "real" / "README.md").read_text(encoding="utf-8")


def test_every_text_file_is_utf8_by_name() -> None:
    """No file is opened as text without an encoding."""
    source, found = Path(package.__file__).parent, []
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and not _names_its_encoding(node):
                found.append(f"{path.relative_to(source)}:{node.lineno}")
    assert not found


def _names_its_encoding(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in ("read_text", "write_text", "open", "TextIOWrapper"):
        return True
    if name == "write_text" and isinstance(call.func, ast.Name):  # ours, of files.py
        return True
    binary = any(isinstance(each, ast.Constant) and "b" in str(each.value) for each in call.args[:2])
    return binary or any(keyword.arg == "encoding" for keyword in call.keywords)


# --- home folders -----------------------------------------------------------------------------------

NO_PATHS = {
    *("text", "after", "workload", "against", "shape", "device", "dtype", "label_column", "text_column", "repo_id"),
    *("revision", "commit_message"),
}
"""Parameters of commands that hold text, but no path."""
BY_CLASS = {"model", "train_file"}
"""Parameters of ``benchmark speed`` that an option class expands."""
PATHS = {"model_name_or_path", "dataset_name", "resume_from_checkpoint", "output_dir"} | {
    *("train_file", "validation_file", "test_file", "unlabeled_file"),
    *("adapter_dir", "api_key_file", "allow_runtime_loading"),
}
"""Options that hold a path, or may."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


SUBCOMMANDS = [f"{group} {name}" for group, names in GROUPS.items() for name in names]


@pytest.mark.parametrize("name", [each for each in COMMANDS if each not in GROUPS] + SUBCOMMANDS)
def test_a_command_expands_its_paths(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, *sub = name.split()
    module, got = importlib.import_module(f"softprompt.cli.{wanted}"), {}

    @functools.wraps(module.SUBCOMMANDS[sub[0]] if sub else module.command)
    def recorder(**given: Any) -> None:
        got.update(given)

    if sub:
        monkeypatch.setitem(module.SUBCOMMANDS, sub[0], recorder)
    else:
        monkeypatch.setattr(module, "command", recorder)
    own, arguments = [], []
    for parameter in inspect.signature(recorder, eval_str=True).parameters.values():
        info, kinds = parameter.annotation.__metadata__[0], {parameter.annotation.__origin__}
        kinds |= {*map(str, get_args(parameter.annotation.__origin__)), *kinds}
        of_class = TrainOptions.model_fields | (ServeOptions.model_fields if wanted == "serve" else {})
        if parameter.name in of_class and parameter.kind is parameter.KEYWORD_ONLY:
            continue  # of an option class
        if kinds & {str, Path, str(str), str(Path), str(list[str])}:
            own.append(parameter.name)
            named = isinstance(info, typer.models.OptionInfo)
            spelling = info.default if named and isinstance(info.default, str) else f"--{parameter.name}"
            arguments += [spelling, "~/x"] if named else ["~/x"]
    assert own
    build_app(wanted)([*name.split(), *arguments], standalone_mode=False)
    for parameter in own:
        value = got[parameter]
        texts = NO_PATHS | BY_CLASS if sub == ["speed"] else NO_PATHS
        expected = "~/x" if parameter in texts else str(home / "x")
        assert [str(each) for each in (value if isinstance(value, list) else [value])] == [expected], parameter


@pytest.mark.parametrize("cls", [TrainOptions, SpeedOptions, ServeOptions, TaskOptions, QualityOptions])
def test_option_classes_expand_paths_alone(cls: type[BaseModel], home: Path) -> None:
    needed: dict[str, Any] = {"output_dir": "out"} if "output_dir" in cls.model_fields else {}
    if cls is QualityOptions:
        needed |= {"tasks": {"some": {"dataset_name": "complaints"}}, "methods": {"majority": {"kind": "majority"}}}
    expanded = set()
    for name in cls.model_fields:
        with contextlib.suppress(ConfigError):  # not of any text
            value = getattr(build_options(cls, {**needed, name: "~/x"}), name)
            assert str(value) in ("~/x", str(home / "x"), "['~/x']"), name
            expanded |= {name} if str(value) == str(home / "x") else set()
    assert expanded == PATHS & cls.model_fields.keys()


def test_what_a_tilde_means(home: Path) -> None:
    assert expand("~") == str(home)
    assert expand("a/~/b") == "a/~/b"
    assert expand("~root/x") == os.path.expanduser("~root/x") != "~root/x"
    Path("~mine").mkdir()
    assert expand("~mine") == "~mine"
    with pytest.raises(ConfigError, match=r"there is no user 'nobody-here'; write \./~nobody-here/x"):
        expand("~nobody-here/x")


def test_a_whole_run_in_the_home_folder(place: Path, tmp_path: Path) -> None:
    """By a YAML file and by the command line; nothing is called ``~``."""
    env = {"HOME": str(place), "SOFTPROMPT_CACHE": str(tmp_path)}
    lines = {"model_name_or_path": "~/base", "train_file": "~/train.csv", "output_dir": "~/by_file"}
    (place / "run.yaml").write_text("".join(f"{k}: {v}\n" for k, v in {**lines, "num_train_epochs": 1}.items()))
    softprompt("train", "~/run.yaml", cwd=tmp_path, env=env, check=True)
    said = softprompt("predict", "--adapter=~/by_file", "--text", "good", cwd=tmp_path, env=env, check=True).stdout
    assert said.split()[-2] in ("bad", "good")
    assert (place / "by_file" / "adapter_model.safetensors").is_file()
    assert list(tmp_path.iterdir()) == []


# --- options known from elsewhere -------------------------------------------------------------------


def test_each_option_of_trainer_works_or_is_explained() -> None:
    from transformers import TrainingArguments

    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert theirs - TrainOptions.model_fields.keys() - ABSENT.keys() == set()
    assert not ABSENT.keys() & TrainOptions.model_fields.keys()
    for name, why in ABSENT.items():
        with pytest.raises(ConfigError, match=f"^run.yaml: there is no option {name}: ") as caught:
            build_options(TrainOptions, {"output_dir": "x", name: True}, where="run.yaml")
        assert why in str(caught.value)
        assert "\n" not in why


def test_advice_names_options_that_exist() -> None:
    for why in ABSENT.values():
        named = {word.strip("(),;:").split("=")[0] for word in why.split() if "_" in word or "=" in word}
        named -= {"OUTPUT_DIR", "trainer_state.json", "HF_HOME"}
        assert named <= TrainOptions.model_fields.keys(), why


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"resume_from_checkpoint": True}, {"resume_from_checkpoint": "true"}),
        ({"resume_from_checkpoint": False}, {"resume_from_checkpoint": None}),
        ({"metric_for_best_model": "loss"}, {"metric_for_best_model": "eval_loss"}),
        ({"metric_for_best_model": "eval_accuracy"}, {"metric_for_best_model": "accuracy"}),
        ({"max_steps": "7"}, {"max_steps": 7}),
        ({"num_train_epochs": "2.5"}, {"num_train_epochs": 2.5}),
    ],
)
def test_values_as_trainer_takes_them(given: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    options = build_options(TrainOptions, {"output_dir": "x", **given})
    assert {name: getattr(options, name) for name in kept} == kept


# --- renamed options --------------------------------------------------------------------------------

RENAMED = "the option readout is now called linear_probe"


@pytest.mark.parametrize("value", [True, False])
def test_python_takes_an_old_option_name(value: bool, tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match=f"^{RENAMED}$") as warned:
        options = TrainOptions(output_dir="x", readout=value)
    assert (options.linear_probe, len(warned), warned[0].filename) == (value, 1, __file__)
    (tmp_path / "old.yaml").write_text(f"output_dir: x\nreadout: {value}\n")
    values = read_yaml(tmp_path / "old.yaml", as_written=True)
    with pytest.warns(FutureWarning, match=f"^old.yaml: {RENAMED}$") as warned:
        options = build_options(TrainOptions, values, where="old.yaml")
    assert (options.linear_probe, len(warned)) == (value, 1)
    with pytest.raises(ConfigError, match="readout is the old name of linear_probe; give only linear_probe"):
        build_options(TrainOptions, {"output_dir": "x", "readout": value, "linear_probe": value})


@pytest.mark.parametrize(
    ("old", "given", "where", "value"),
    [
        (None, "--readout", "", True),
        (None, "--no_readout", "", False),
        ("true", "", "old.yaml: ", True),
        ("false", "", "old.yaml: ", False),
        ("true", "--no_linear_probe", "old.yaml: ", False),
        ("false", "--linear-probe", "old.yaml: ", True),
    ],
)
def test_the_command_line_takes_an_old_option_name(
    place: Path, old: str | None, given: str, where: str, value: bool
) -> None:
    """With one line that warns. A linear probe is an error for free text, which shows its value."""
    file = []
    if old is not None:
        (place / "old.yaml").write_text(f"readout: {old}\ntrain_file: train.csv\n")
        file = ["old.yaml"]
    command = "--model_name_or_path base --train_file train.csv --task generation --output_dir x --dry_run"
    done = forked("train", *file, *command.split(), *given.split(), cwd=place)
    lines = done.stderr.splitlines()
    assert lines[0] == f"softprompt: {where}{RENAMED}"
    assert done.returncode == (2 if value else 0)
    assert len(lines) == (2 if value else 1)
    if value:
        assert "linear_probe needs classes" in lines[1]
