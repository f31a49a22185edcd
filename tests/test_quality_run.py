"""The trials of a quality benchmark: each is measured once and kept as soon as it is complete."""

from __future__ import annotations

import csv
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cli_tools import softprompt, struck
from quality_tools import make_place, make_spec, write_config
from softprompt import ConfigError, DataError, TrainingError
from softprompt.benchmarks.quality import runner as loop
from softprompt.benchmarks.quality.methods.method import FittedScores, Method
from softprompt.benchmarks.quality.page import score_table
from softprompt.benchmarks.quality.result_set import ResultSet
from softprompt.benchmarks.quality.results import COLUMNS, PREDICTIONS, SCORES, read_predictions, read_results
from softprompt.benchmarks.quality.runner import make_schedule, run_trials
from softprompt.benchmarks.quality.specification import QualityOptions, read_spec
from softprompt.cli import main
from softprompt.types import Row

EARLIER = Path(__file__).with_name("earlier")
NAMES = ["majority", "tfidf", "zero_shot"]


class Counted(Method):
    """Answers by the seed, and takes note of each call; the test says what else happens."""

    uses_base = False
    calls: list[tuple[str, int, int]] = []
    accident: Any = None

    def fit(self, rows: Sequence[Row], labels: Sequence[int], seed: int) -> FittedScores:
        self.calls.append((self.context.data.name, len(rows), seed))
        if self.accident is not None and len(self.calls) == self.accident[0]:
            raise self.accident[1]
        generator = torch.Generator().manual_seed(seed)
        return FittedScores(torch.randn(len(self.context.data.test), 2, generator=generator), len(rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("quality"))


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "method_class", lambda kind: Counted)
    monkeypatch.setattr(Counted, "calls", [])
    monkeypatch.setattr(Counted, "accident", None)


@pytest.fixture
def spec(place: Path, tmp_path: Path) -> QualityOptions:
    return make_spec(place, output_dir=str(tmp_path / "out"), methods=NAMES, shots=[4, 8], seeds=[0, 1, 2])


def measure(spec: QualityOptions) -> int:
    return run_trials(spec, make_schedule(spec), lambda text: None)


def stable(folder: Path) -> list[dict[str, str]]:
    """The lines of the CSV without what differs from run to run."""
    with open(folder / SCORES, encoding="utf-8", newline="") as handle:
        return [{k: v for k, v in line.items() if k not in ("seconds", "date")} for line in csv.DictReader(handle)]


def test_every_result_once(spec: QualityOptions) -> None:
    assert measure(spec) == 0
    lines = stable(spec.output_dir)
    assert len(lines) == 3 * 2 * 3
    assert {(line["method"], line["shots"], line["seed"]) for line in lines} == {
        (method, shots, seed) for method in NAMES for shots in "48" for seed in "012"
    }
    assert {line["trained_parameters"] for line in lines if line["method"] == "tfidf"} == {"4", "8"}
    files = {path.name for path in (spec.output_dir / PREDICTIONS).iterdir()}
    assert files == {key.file_name for key in read_results(spec.output_dir)}
    Counted.calls.clear()
    assert measure(spec) == 0
    assert not Counted.calls
    assert stable(spec.output_dir) == lines


def test_what_reads_no_rows_is_computed_once(spec: QualityOptions) -> None:
    measure(spec)
    assert len(Counted.calls) == 6 + 6 + 1
    zero = [line for line in stable(spec.output_dir) if line["method"] == "zero_shot"]
    assert len({line["macro_f1"] for line in zero}) == 1
    assert len({line["settings"] for line in zero}) == 1


@pytest.mark.parametrize("number", [1, 5, 13])
def test_an_interrupted_run_goes_on(number: int, spec: QualityOptions, place: Path, tmp_path: Path) -> None:
    whole = spec.model_copy(update={"output_dir": tmp_path / "whole"})
    measure(whole)
    Counted.calls.clear()
    Counted.accident = (number, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        measure(spec)
    assert len(read_results(spec.output_dir)) == number - 1
    Counted.accident = None
    measure(spec)
    assert len(Counted.calls) == 13 + 1  # the interrupted one twice
    assert stable(spec.output_dir) == stable(whole.output_dir)


def test_a_trial_that_fails_is_left_out_and_tried_again(spec: QualityOptions) -> None:
    Counted.accident = (2, TrainingError("the loss is nan"))
    said: list[str] = []
    assert run_trials(spec, make_schedule(spec), said.append) == 1
    assert "  failed: the loss is nan" in said
    assert len(read_results(spec.output_dir)) == 17
    Counted.calls.clear()
    Counted.accident = None
    assert measure(spec) == 0
    assert len(Counted.calls) == 1
    assert len(read_results(spec.output_dir)) == 18


def test_more_seeds_and_methods_later(spec: QualityOptions, place: Path) -> None:
    measure(spec)
    Counted.calls.clear()
    methods = {**spec.methods, "mine": make_spec(place, methods={"mine": {"num_train_epochs": 2}}).methods["mine"]}
    more = spec.model_copy(update={"seeds": [0, 1, 2, 3], "methods": methods})
    measure(more)
    assert sorted(Counted.calls) == sorted(
        [("words", n, 3) for n in (4, 8)] * 2 + [("words", n, s) for n in (4, 8) for s in range(4)]
    )


def test_another_model_in_the_same_folder(spec: QualityOptions) -> None:
    measure(spec)
    other = spec.model_copy(update={"model_name_or_path": "some/model"})
    measure(other)
    results = read_results(spec.output_dir)
    assert len(results) == 36
    assert len(list((spec.output_dir / PREDICTIONS).iterdir())) == 36
    assert all(read_predictions(spec.output_dir, key) for key in results)


def test_a_line_that_was_cut_off_is_measured_again(spec: QualityOptions) -> None:
    measure(spec)
    lines, path = stable(spec.output_dir), spec.output_dir / SCORES
    path.write_bytes(path.read_bytes()[:-20])
    Counted.calls.clear()
    assert len(read_results(spec.output_dir)) == 17
    measure(spec)
    assert stable(spec.output_dir) == lines


def test_a_header_that_was_cut_off(spec: QualityOptions) -> None:
    spec.output_dir.mkdir(parents=True)
    (spec.output_dir / SCORES).write_text("task,meth")
    measure(spec)
    assert len(read_results(spec.output_dir)) == 18


def test_other_options_under_the_same_name_are_refused(spec: QualityOptions, place: Path) -> None:
    measure(spec)
    for change in ({"max_test_rows": 5}, {"dtype": "bfloat16"}):
        with pytest.raises(ConfigError, match="words, majority, 4 shots, seed 0, measured with other rows or options"):
            make_schedule(spec.model_copy(update=change))


@pytest.mark.parametrize(
    ("content", "says"),
    [("a,b\n", "other columns"), (",".join(COLUMNS) + "\nwords,knn\n", "line 2 does not fit")],
)
def test_a_csv_of_something_else(content: str, says: str, spec: QualityOptions) -> None:
    spec.output_dir.mkdir(parents=True)
    (spec.output_dir / SCORES).write_text(content)
    with pytest.raises(DataError, match=says):
        make_schedule(spec)


def test_results_of_version_0_1_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows and options have the same fingerprint, under old option and column names; new lines fit below."""
    folder = shutil.copytree(EARLIER, tmp_path / "earlier")
    monkeypatch.chdir(folder)
    with pytest.warns(FutureWarning, match="readout is now called linear_probe"):
        spec = read_spec(Path("quality.yaml"))
    schedule = make_schedule(spec)
    assert len(schedule.trials) == 4
    assert not schedule.missing
    assert all(read_predictions(spec.output_dir, trial.key) for trial in schedule.trials)
    assert "| no_readout | 41.3 | 41.3 |" in score_table(ResultSet(spec), 8)
    assert measure(spec.model_copy(update={"seeds": [0, 1]})) == 0
    assert len(read_results(spec.output_dir)) == 8


# --- the command ------------------------------------------------------------------------------------


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["benchmark", "quality", *map(str, arguments)])
    return int(left.value.code or 0)


def test_the_command(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(place, output_dir=str(tmp_path), methods=NAMES)
    assert command(config, "--dry_run") == 0
    assert "6 of 6 results are missing" in capsys.readouterr().out
    assert not (tmp_path / SCORES).exists()
    assert command(config) == 0
    out = capsys.readouterr().out
    assert "1 of 6: words, majority, 8 shots, seed 0" in out
    assert "| method | words | all tasks |" in out
    page = (tmp_path / "results.md").read_text()
    (tmp_path / "results.md").unlink()
    Counted.calls.clear()
    assert command(config, "--table") == 0
    assert (tmp_path / "results.md").read_text() == page
    assert not Counted.calls


def test_the_command_reports_failed_trials(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Counted.accident = (1, TrainingError("the loss is nan"))
    config = write_config(place, output_dir=str(tmp_path), methods=NAMES)
    assert command(config) == 1
    assert "1 results failed" in capsys.readouterr().out
    assert (tmp_path / "results.md").exists()


def test_a_table_of_nothing(place: Path, tmp_path: Path) -> None:
    assert command(write_config(place, output_dir=str(tmp_path / "new")), "--table") == 0


def test_a_killed_process_loses_one_result_at_most(place: Path, tmp_path: Path) -> None:
    """The real command, killed without warning in its third result, and run again."""
    options = {"mine": {"num_train_epochs": 2, "num_virtual_tokens": 2}}
    config = write_config(place, output_dir=str(tmp_path), methods=options, seeds=list(range(4)))
    path = f"Path({str(tmp_path / SCORES)!r})"
    two_results = f"{path}.exists() and {path}.read_bytes().count(bytes([10])) > 2"
    assert struck(signal.SIGKILL, two_results, "benchmark", "quality", config).returncode == -signal.SIGKILL
    kept = read_results(tmp_path)
    assert len(kept) == 2
    assert "of 2: " in softprompt("benchmark", "quality", config, check=True).stdout
    now = read_results(tmp_path)
    assert len(now) == 4
    assert {key: now[key] for key in kept} == kept
