"""Bad input to the installed command line: one line that says what is wrong and what to do, and exit status 2.

All commands run first, two at a time, each in a process of its own; the tests then look at what came of them.
Those that need torch are forked from a process that has imported it: the same entry point, seconds sooner.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from cli_tools import CONTEXT, PATIENCE, environment, forked, make_base, rows, softprompt, write_rows
from hub_server import HubServer

Ran = dict[str, CompletedProcess[str]]
CLOSED = "http://127.0.0.1:9"  # the port "discard", where nothing listens
TRAIN = (
    "train --recipe guide --model_name_or_path base --train_file train.csv --num_train_epochs 1 --num_virtual_tokens 4"
)
EVALUATE = "evaluate --test_file test.csv --adapter"
PREDICT = "predict --text good --adapter"
TO_FILE = "predict --adapter adapter --output_file out.csv --input_file"


@dataclass(frozen=True)
class Case:
    """A command, and what its one line must say; ``{hub}`` and ``{closed}`` are addresses."""

    command: str
    says: tuple[str, ...]
    extra: tuple[str, ...] = ()  # arguments with spaces in them
    env: Mapping[str, str] = field(default_factory=dict)
    file_size: int | None = None  # most bytes that a file may have
    notes: int = 0  # lines before the one that counts


def train(options: str, *says: str, extra: tuple[str, ...] = (), **more: object) -> Case:
    """Training with other options than ``TRAIN``'s; the last of two counts."""
    return Case(f"{TRAIN} {'' if '--output_dir' in options else '--output_dir new'} {options}", says, extra, **more)


def case(command: str, *says: str, extra: tuple[str, ...] = (), **more: object) -> Case:
    return Case(command, says, extra, **more)


ONLINE = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "{hub}"}
OFFLINE = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": CLOSED}

QUICK: dict[str, Case] = {
    # -- options
    "no_source": case("train --output_dir new", "train_file", "dataset_name"),
    "no_output_dir": case("train --train_file train.csv", "output_dir", "required"),
    "unknown_command": case("trian --output_dir new", "'trian'", "did you mean 'train'"),
    "unknown_option": train("--learning_rat 1", "--learning_rat", "--learning_rate"),
    "option_of_trainer": train("--bf16", "there is no option bf16", "dtype=bfloat16"),
    "option_of_trainer_with_value": train("--report_to=wandb", "no option report_to", "log.jsonl"),
    "option_of_a_script": train("--max-train-steps 5", "no option max_train_steps", "max_steps"),
    "option_of_another_command": case(f"{PREDICT} adapter --batch_size 5", "No such option", "--batch_size"),
    "option_without_value": case("benchmark speed train --model", "--model", "argument"),
    "no_steps": train("--max_steps 0", "invalid max_steps=0: must be >= 1, or -1"),
    "learning_rate_negative": train("--learning_rate -1", "invalid learning_rate=-1: must be > 0"),
    "one_fold": train("--num_folds 1", "invalid num_folds=1: must be 0 or >= 2"),
    "home_of_nobody": train("--output_dir ~nobody-here/run", "there is no user 'nobody-here'"),
    "unknown_value": train("--prompt_tuning_init RANDON", "prompt_tuning_init", "RANDON", "did you mean 'RANDOM'"),
    "unknown_scheduler": train("--lr-scheduler-type cosin", "lr_scheduler_type", "did you mean 'cosine'"),
    "not_a_number": train("--learning_rate fast", "invalid learning_rate='fast': must be a number"),
    "no_virtual_tokens": train("--num_virtual_tokens 0", "invalid num_virtual_tokens=0: must be >= 1"),
    "negative_virtual_tokens": train("--num_virtual_tokens -3", "invalid num_virtual_tokens=-3: must be >= 1"),
    "steps_without_number": train("--save_strategy steps", "save_strategy=steps needs save_steps"),
    "accuracy_of_free_text": train("--task generation --metric_for_best_model accuracy", "needs classes", "eval_loss"),
    "two_sources": train("--dataset_name complaints", "dataset_name and train_file exclude each other"),
    "unknown_workload": case("benchmark speed trian", "'trian'", "did you mean 'train'"),
    "missing_adapter_option": case("predict --text good", "--adapter"),
    "nothing_to_predict": case("predict --adapter adapter", "--text", "--input_file"),
    "text_and_file": case(f"{TO_FILE} test.csv --text good", "--text", "--input_file"),
    "input_without_output": case("predict --adapter adapter --input_file test.csv", "--output_file", "together"),
    # -- the YAML file
    "yaml_missing": case("train nowhere.yaml", "nowhere.yaml", "No such file"),
    "yaml_broken": case("train broken.yaml", "broken.yaml", "not valid YAML", "line"),
    "yaml_of_a_list": case("train list.yaml", "list.yaml", "option: value"),
    "yaml_unknown_option": case("train option.yaml", "option.yaml", "learning_rat", "did you mean 'learning_rate'"),
    "yaml_option_of_trainer": case("train trainer.yaml", "trainer.yaml", "no option push_to_hub", "softprompt push"),
    "yaml_unknown_value": case("train value.yaml", "value.yaml", "num_train_epochs", "many"),
    # -- data
    "file_missing": train("--train_file trein.csv", "trein.csv", "does not exist", "did you mean 'train.csv'"),
    "file_of_unknown_kind": train("--train_file option.yaml", "option.yaml", ".csv"),
    "file_empty": train("--train_file empty.csv", "empty.csv", "empty"),
    "file_of_a_header": train("--train_file header.csv", "header.csv", "no rows"),
    "file_not_utf8": train("--train_file latin.csv", "latin.csv", "line 2", "UTF-8"),
    "column_unknown": train("--text_column tekst", "train.csv", "text_column", "'tekst'", "'id', 'text' and 'label'"),
    "label_column_unknown": train("--label_column lable", "label_column", "did you mean 'label'"),
    "label_missing": train("--train_file unlabelled.csv", "unlabelled.csv, row 3", "'label'", "every row needs"),
    "label_unseen": train("--test_file unseen.csv", "unseen.csv, row 2", "'perhaps'", "'yes' and 'no'"),
    "one_label": train("--train_file same.csv", "'yes'", "at least two"),
    "template_unknown_field": train("", "{tweet}", "no column 'tweet'", extra=("--template", "{text} {tweet}")),
    "template_attribute": train("", "no attribute", extra=("--template", "{text} {text.__class__}")),
    "template_index": train("", "no attribute, index", extra=("--template", "{text} {label[0]}")),
    "template_conversion": train("", "plain name of a column", extra=("--template", "{text} {id!r:>99999}")),
    "template_open_brace": train("", "single '{'", extra=("--template", "{text} {")),
    "template_with_the_label": train("", "the model would see the answer", extra=("--template", "{text} {label}")),
    "template_without_text": train("", "never reads", "{text}", extra=("--template", "{id} Label : ")),
    # -- adapters
    "adapter_missing": case(f"{PREDICT} ./nowhere", "nowhere", "no such folder"),
    "adapter_of_no_folder": case("inspect nowhere", "no folder 'nowhere'", "owner/name"),
    "adapter_of_other_type": case(f"{PREDICT} lora", "lora is a LORA adapter", "PROMPT_TUNING", "PEFT"),
    "adapter_of_other_type_without_task": case(f"{PREDICT} taskless_lora", "taskless_lora is a LORA adapter"),
    "evaluate_other_type": case(f"{EVALUATE} taskless_lora", "taskless_lora is a LORA adapter"),
    "inspect_other_type": case("inspect taskless_lora", "taskless_lora is a LORA adapter"),
    "adapter_is_a_file": case(f"{PREDICT} train.csv", "train.csv is a file", "folder"),
    "adapter_of_nobody": case(f"{PREDICT} ~nobody-here/run", "there is no user 'nobody-here'"),
    "adapter_task_broken": case(f"{PREDICT} taskless", "taskless", "task.json", "damaged"),
    # -- rows to label
    "evaluate_nothing": case("evaluate --adapter adapter", "test_file"),
    "evaluate_mistyped_label": case("evaluate --adapter adapter --test_file slip.csv", "row 2", "did you mean 'yes'"),
    "evaluate_into_a_file": case(f"{EVALUATE} adapter --output_dir train.csv", "train.csv", "file"),
    "column_overwritten": case(f"{TO_FILE} answered.csv", "answered.csv", "'predicted_label'", "rename"),
    "text_column_missing": case(f"{TO_FILE} textless.csv", "textless.csv", "'text'", "'id' and 'tekst'"),
    "output_of_unknown_kind": case(
        "predict --adapter adapter --input_file test.csv --output_file out.xls", "out.xls", ".csv"
    ),
    "output_is_the_input": case(
        "predict --adapter adapter --input_file test.csv --output_file test.csv", "must differ from input_file"
    ),
}
"""Answered before torch is imported."""

SLOW: dict[str, Case] = {
    # -- data
    "label_of_no_tokens": train("--train_file tokenless.csv", "'~~'", "no tokens", "another word"),
    "max_length_too_small": train("--max_length 3", "train.csv, row 1", "max_length is 3", "shorten"),
    # -- the prompt and the base model
    "init_text_empty": train("", "prompt_tuning_init_text", "no tokens", extra=("--prompt_tuning_init_text", "~")),
    "prompt_fills_context": train(f"--num_virtual_tokens {CONTEXT}", f"num_virtual_tokens={CONTEXT}", "use fewer"),
    "prompt_leaves_too_little": train(f"--num_virtual_tokens {CONTEXT - 4}", "train.csv, row 1", "context", "shorten"),
    "device_unknown": train("--device gpu", "device='gpu'", "cpu"),
    "gguf_that_is_none": train("--model_name_or_path fake.gguf", "fake.gguf is not a GGUF file"),
    "base_is_an_adapter": train("--model_name_or_path adapter", "adapter is an adapter"),
    "base_unknown_to_hub": train("--model_name_or_path no/such", "no/such", "nor a model on the Hub", env=ONLINE),
    "base_without_network": train("--model_name_or_path no/such", "no/such", "cannot be reached", env=OFFLINE),
    # -- the output folder
    "output_is_finished": train(
        "--output_dir adapter", "adapter", "--overwrite_output_dir", "--resume_from_checkpoint"
    ),
    "output_is_unfinished": train("--output_dir half", "half", "--overwrite_output_dir", "--resume_from_checkpoint"),
    "output_is_a_file": train("--output_dir train.csv", "output_dir train.csv is a file"),
    "resume_without_checkpoint": train(
        "--resume_from_checkpoint last", "resume_from_checkpoint", "new", "omit the option"
    ),
    "resume_elsewhere": train(
        "--resume_from_checkpoint half/checkpoint-1", "half/checkpoint-1 is not in output_dir new", "copy it"
    ),
    "resume_other_seed": train("--output_dir half --resume_from_checkpoint last --seed 1", "checkpoint-1", "same rows"),
    "output_has_a_file": train("--output_dir mine", "output_dir mine has a metrics.json", "--overwrite_output_dir"),
    "resume_other_shape": train("--output_dir half --resume_from_checkpoint last --num_virtual_tokens 5", "[4, 16]"),
    "disk_full": train("--output_dir full --save_strategy no", "larger than is allowed", "make room", file_size=1500),
    # -- numbers
    "loss_not_finite": train(
        "--output_dir nan --learning_rate 1e36 --num_train_epochs 3", "not finite", "Lower learning_rate", "1e+36"
    ),
    "learning_rate_overflows": train("--output_dir inf --learning_rate 1e38", "Lower learning_rate", "1e+38"),
    # -- adapters
    "adapter_without_network": case(f"{PREDICT} no/such", "no/such", "Hub", env=OFFLINE),
    "adapter_of_no_name": case(PREDICT, "a b/c", "neither a folder", "Hub", extra=("a b/c",)),
    "adapter_base_is_a_number": case(
        f"{PREDICT} numbered", "base_model_name_or_path", "should be a valid string", "not 5"
    ),
    "nearest_beyond_the_vocabulary": case("inspect adapter --nearest 40", "nearest=40", "26 entries"),
    "answer_too_long": case(f"{PREDICT} adapter --generate --max_new_tokens {CONTEXT}", "does not fit", "at most"),
    "adapter_without_weights": case(f"{PREDICT} bare", "bare", "adapter_model.safetensors", "no weights"),
    "adapter_with_nan": case(f"{PREDICT} adapter_nan", "adapter_nan", "NaN", "train it again"),
    "adapter_pickled": case(f"{PREDICT} pickled", "pickled", "pickle", "safe_serialization=True"),
    "adapter_truncated": case(f"{PREDICT} truncated", "truncated", "not a valid safetensors file"),
    "adapter_of_other_width": case(f"{PREDICT} wide", "wide", "embedding size 32", "16"),
    "adapter_of_other_base": case(
        f"{PREDICT} adapter --model_name_or_path wide_base", "was trained on", "base, not on wide_base"
    ),
    "adapter_of_other_task": case(f"{PREDICT} seq2seq", "seq2seq", "SEQ_2_SEQ_LM", "CAUSAL_LM"),
    "adapter_config_broken": case(f"{PREDICT} garbled", "garbled", "not valid JSON"),
    "push_other_type": case("push taskless_lora me/prompt", "taskless_lora is a LORA adapter"),
    "push_what_is_not_there": case("push runs/none me/prompt", "there is no folder runs/none", env=ONLINE),
    "adapter_unknown_to_hub": case(f"{PREDICT} no/such", "nor an adapter on the Hub", env=ONLINE),
    "task_type_without_task": case(f"{PREDICT} taskless_seq2seq", "SEQ_2_SEQ_LM", "CAUSAL_LM"),
    "push_what_is_none": case("push base me/prompt", "adapter_config.json", "base"),
    # -- rows to label
    "text_missing_in_a_row": case(f"{TO_FILE} gap.jsonl", "gap.jsonl, line 2", "'text'"),
}
"""Answered once it is."""

CASES = {**QUICK, **SLOW}
DEBUG = ("file_missing", "unknown_option")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, good and bad files, a finished run ``adapter`` and spoilt copies of it."""
    place = tmp_path_factory.mktemp("bad")
    make_base(place / "base")
    make_base(place / "wide_base", width=32)
    good = rows(12)
    write_rows(place / "train.csv", good)
    write_rows(place / "test.csv", rows(4, 12))
    command = f"{TRAIN} --output_dir adapter --no_baselines"
    softprompt(*command.split(), cwd=place, check=True)
    spoil_data(place, good)
    spoil_adapters(place)
    return place


def spoil_data(place: Path, good: list[dict[str, str]]) -> None:
    (place / "empty.csv").touch()
    (place / "header.csv").write_text("text,label\n")
    (place / "latin.csv").write_bytes("text,label\ncafé,yes\n".encode("latin-1"))
    changes = {
        "unlabelled": [*good[:2], good[2] | {"label": " "}, *good[3:]],
        "unseen": [good[0], good[1] | {"label": "perhaps"}],
        "slip": [good[0], good[1] | {"label": "Yes"}],
        "tokenless": [row | {"label": "~~"} if row["label"] == "no" else row for row in good],
        "same": [row | {"label": "yes"} for row in good],
        "answered": [row | {"predicted_label": "yes"} for row in good],
        "textless": [{"id": row["id"], "tekst": row["text"]} for row in good],
    }
    for name, values in changes.items():
        write_rows(place / f"{name}.csv", values)
    write_rows(place / "gap.jsonl", [{"text": "good"}, {"id": 2}])
    (place / "fake.gguf").write_bytes(b"no model at all" * 9)
    (place / "broken.yaml").write_text("output_dir: [new\ntrain_file: train.csv\n")
    (place / "list.yaml").write_text("- output_dir\n- train_file\n")
    (place / "option.yaml").write_text("output_dir: new\nlearning_rat: 0.1\n")
    (place / "trainer.yaml").write_text("output_dir: new\npush_to_hub: true\n")
    (place / "value.yaml").write_text("output_dir: new\nnum_train_epochs: many\n")


def spoil_adapters(place: Path) -> None:
    """Copies of ``adapter``, each with one thing wrong."""
    import torch
    from safetensors.torch import save_file

    names = (
        "bare",
        "adapter_nan",
        "pickled",
        "truncated",
        "wide",
        "lora",
        "seq2seq",
        "garbled",
        "taskless",
        "peft",
        "numbered",
    )
    for name in names:
        shutil.copytree(place / "adapter", place / name)
    weights, config = "adapter_model.safetensors", "adapter_config.json"
    (place / "bare" / weights).unlink()
    save_file({"prompt_embeddings": torch.full((4, 16), float("nan"))}, place / "adapter_nan" / weights)
    (place / "pickled" / weights).rename(place / "pickled" / "adapter_model.bin")
    content = (place / "truncated" / weights).read_bytes()
    (place / "truncated" / weights).write_bytes(content[:-9])
    save_file({"prompt_embeddings": torch.zeros(4, 32)}, place / "wide" / weights)
    values = json.loads((place / "adapter" / config).read_text())
    (place / "wide" / config).write_text(json.dumps(values | {"token_dim": 32}))
    (place / "lora" / config).write_text(json.dumps(values | {"peft_type": "LORA"}))
    (place / "seq2seq" / config).write_text(json.dumps(values | {"task_type": "SEQ_2_SEQ_LM"}))
    (place / "garbled" / config).write_text("{")
    (place / "numbered" / config).write_text(json.dumps(values | {"base_model_name_or_path": 5}))
    (place / "mine").mkdir()
    (place / "mine" / "metrics.json").write_text("{}")
    (place / "taskless" / "task.json").write_text("{}")
    (place / "peft" / "task.json").unlink()
    for name in ("lora", "seq2seq"):
        shutil.copytree(place / name, place / f"taskless_{name}")
        (place / f"taskless_{name}" / "task.json").unlink()
    (place / "half").mkdir()
    shutil.copytree(next(iter((place / "adapter").glob("checkpoint-*"))), place / "half" / "checkpoint-1")


@pytest.fixture(scope="module")
def done(place: Path) -> Iterator[Ran]:
    """What came of each case, and of those of ``DEBUG`` with ``--debug``."""
    with HubServer() as hub, ThreadPoolExecutor(2) as pool:
        jobs = {name: pool.submit(run, name, place, hub.endpoint) for name in reversed(CASES)}
        jobs |= {f"{name} --debug": pool.submit(run, name, place, hub.endpoint, "--debug") for name in DEBUG}
        yield {name: job.result() for name, job in jobs.items()}


def run(name: str, place: Path, hub: str, *more: str) -> CompletedProcess[str]:
    case = CASES[name]
    args = (*case.command.split(), *case.extra, *more)
    env = {name: value.format(hub=hub) for name, value in case.env.items()}
    if case.env:  # the Hub's client reads the environment when it is imported
        return counted(name, args, place, env)
    if more:  # a traceback, which the process that forks would print in its own way
        return softprompt(*args, cwd=place)
    return forked(*args, cwd=place, file_size=case.file_size)


#: The command line in a process that writes down each connection it tries to make, refused ones too.
COUNTED = """
import socket, sys

connect = socket.socket.connect

def counted(self, address):
    if self.family != socket.AF_UNIX:
        with open(sys.argv[1], "a") as file:
            print(address, file=file)
    return connect(self, address)

socket.socket.connect = counted
from softprompt.cli import main
main(sys.argv[2:])
"""


def counted(name: str, args: Sequence[str], place: Path, env: Mapping[str, str]) -> CompletedProcess[str]:
    (place / f"{name}.connections").touch()
    command = [sys.executable, "-c", COUNTED, f"{name}.connections", *args]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": PATIENCE}
    return subprocess.run(command, cwd=place, env=environment(**env), check=False, **options)


@pytest.mark.parametrize("name", CASES)
def test_one_line_says_what_is_wrong(name: str, done: Ran) -> None:
    process = done[name]
    *notes, line = process.stderr.splitlines()
    assert len(notes) <= CASES[name].notes, process.stderr
    assert line.startswith("softprompt: ")
    assert "Traceback" not in process.stdout + process.stderr
    for words in CASES[name].says:
        assert words in line
    assert process.returncode == 2


@pytest.mark.parametrize("name", DEBUG)
def test_debug_shows_where(name: str, done: Ran) -> None:
    process = done[f"{name} --debug"]
    assert process.stderr.startswith("Traceback (most recent call last):")
    assert process.returncode != 0


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.env])
def test_the_hub_is_asked_once(name: str, place: Path, done: Ran) -> None:
    """Its client tries again for half a minute unless it is told not to. It is not asked where a folder is missing."""
    connections = (place / f"{name}.connections").read_text().splitlines()
    assert len(connections) == (0 if "there is no folder" in done[name].stderr else 1)


def test_nothing_is_left_behind(place: Path, done: Ran) -> None:
    """No output folder, no half-written file, and the finished runs are as they were."""
    assert not (place / "new").exists()
    assert not list(place.glob("out.*"))
    assert not list(place.rglob("*.part"))
    assert (place / "adapter" / "adapter_model.safetensors").is_file()
    assert not (place / "full" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", ["loss_not_finite", "learning_rate_overflows"])
def test_the_last_good_prompt_of_a_run_that_blew_up(
    name: str, place: Path, done: dict[str, CompletedProcess[str]]
) -> None:
    """It loads, it is finite, and so is the loss with it."""
    import torch

    from softprompt.config.options import ModelOptions
    from softprompt.inference.evaluate import eval_loss
    from softprompt.inference.load_adapter import load_adapter
    from softprompt.types import Row

    kept = place / done[name].stderr.rstrip().rpartition(" is in ")[2]
    options = ModelOptions(model_name_or_path=str(place / "base"))
    prompted = load_adapter(str(kept), options)
    assert torch.isfinite(prompted.model.prompt).all()
    examples = prompted.encoder(prompted.task).encode_all([Row(row, "row") for row in rows(4)])
    assert math.isfinite(eval_loss(prompted.model, examples, batch_size=4))
