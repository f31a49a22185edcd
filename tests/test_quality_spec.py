"""The YAML file of a benchmark: what it may say, and the one line that a mistake gets."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from cli_tools import rows, write_rows
from quality_tools import make_data, make_place, make_spec, values, write_config
from softprompt import ConfigError, DataError
from softprompt.benchmarks.quality import method_kinds
from softprompt.benchmarks.quality.method_kinds import KINDS, check_needs, method_class, resolved_options
from softprompt.benchmarks.quality.methods.method import Method
from softprompt.benchmarks.quality.runner import LOCK, make_schedule
from softprompt.benchmarks.quality.specification import read_spec
from softprompt.cli import main

SHIPPED = Path(__file__).parents[1] / "benchmarks" / "quality.yaml"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("quality"))


def test_methods_as_names_or_with_options(place: Path) -> None:
    mixed = ["majority", {"in_context": {"tokens": 99}}, {"long": {"num-train-epochs": 3}}, "guide"]
    spec = make_spec(place, methods=mixed)
    assert {name: (each.kind, each.options) for name, each in spec.methods.items()} == {
        "majority": ("majority", {}),
        "in_context": ("in_context", {"tokens": 99}),
        "long": ("softprompt", {"num_train_epochs": 3}),
        "guide": ("softprompt", {"recipe": "guide"}),
    }
    assert list(make_spec(place, methods={"tfidf": None, "guide": {}}).methods) == ["tfidf", "guide"]
    assert spec.compared_with == "majority"
    assert make_spec(place, methods=mixed, reference="guide").compared_with == "guide"


def test_one_text_column_or_several(place: Path) -> None:
    task = values(place)["tasks"]["words"]
    spec = make_spec(place, tasks={"one": {**task, "text_column": "text"}, "two": {**task, "text_column": ["a", "b"]}})
    assert [each.text_column for each in spec.tasks.values()] == [["text"], ["a", "b"]]


def test_the_shipped_benchmark_is_sound() -> None:
    spec = read_spec(SHIPPED)
    assert (len(spec.tasks), spec.shots, spec.seeds, spec.max_test_rows) == (8, [50], [0, 1, 2], 300)
    assert {"majority", "tfidf", "zero_shot", "in_context", "linear_probe", "knn", "setfit", "lora"} < set(spec.methods)
    assert [spec.methods[name].options for name in ("guide", "default", "best")] == [
        {"recipe": name} for name in ("guide", "default", "best")
    ]
    assert len(spec.seeds_of("default")) == 5
    assert all(task.labels and task.instruction for task in spec.tasks.values())


@pytest.mark.parametrize("recipe", ["default", "best"])
def test_each_ablation_changes_one_choice(recipe: str) -> None:
    whole, part = read_spec(SHIPPED), read_spec(SHIPPED.with_name(f"ablation_{recipe}.yaml"))
    assert all(part.tasks[name] == whole.tasks[name] for name in part.tasks)
    assert part.compared_with == recipe
    for name, method in part.methods.items():
        assert method.options["recipe"] == recipe
        assert (name == recipe) == (len(method.options) == 1)


def test_the_shipped_benchmark_fits_its_rows() -> None:
    from softprompt.benchmarks.quality.task_data import read_task

    spec = read_spec(SHIPPED)
    absent = [str(task.train_file) for task in spec.tasks.values() if not Path(str(task.train_file)).exists()]
    if absent:
        pytest.skip(f"the rows of {SHIPPED.name} are not part of the repository, and {absent[0]} is not here")
    for name, options in spec.tasks.items():
        assert len(read_task(name, options, spec.max_test_rows).test) == spec.max_test_rows


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_class(kind: str) -> None:
    assert issubclass(method_class(kind), Method)


# --- rows -------------------------------------------------------------------------------------------


def test_rows_are_drawn_as_they_should_be(place: Path) -> None:
    data = make_data(place, most=6)
    drawn = [row.fields["id"] for row in data.draw(8, seed=3)]
    assert drawn == [str(i) for i in random.Random(3).sample(range(24), 8)]
    tested = [row.fields["id"] for row in data.test]
    assert tested == [str(24 + i) for i in sorted(random.Random(0).sample(range(15), 6))]
    assert make_data(place).test[:2] == make_data(place, most=99).test[:2]
    assert data.gold == tuple(data.labels_of(data.test))
    assert data.labels == ("no", "yes")


def test_a_fingerprint_tells_what_counts(place: Path) -> None:
    data = make_data(place)
    prints = {data.fingerprint(data.draw(8, 0)), data.fingerprint(data.draw(8, 1)), data.fingerprint(())}
    prints |= {make_data(place, **change).fingerprint(()) for change in ({"instruction": "x"}, {"max_length": 9})}
    prints.add(make_data(place, most=5).fingerprint(()))
    assert len(prints) == 6
    assert make_data(place).fingerprint(()) in prints


# --- mistakes ---------------------------------------------------------------------------------------


def failing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command leaves with."""
    with pytest.raises(SystemExit) as left:
        main(["benchmark", "quality", *arguments])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("softprompt: ")
    return line


MISTAKES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown_option": ({"seed": 3}, ("unknown option 'seed'", "did you mean 'seeds'")),
    "no_tasks": ({"tasks": None}, ("tasks", "required")),
    "empty_tasks": ({"tasks": {}}, ("tasks",)),
    "tasks_as_a_list": ({"tasks": ["words"]}, ("tasks must map",)),
    "task_without_options": ({"tasks": {"words": None}}, ("task words", "no options")),
    "task_option": ({"tasks": {"w": {"train_fil": "x"}}}, ("task w", "'train_fil'", "did you mean 'train_file'")),
    "task_name": ({"tasks": {"a/b": {"train_file": "x"}}}, ("'a/b'", "letters")),
    "generation": ({"tasks": {"w": {"train_file": "x", "task": "generation"}}}, ("task w", "classifiers")),
    "one_label": ({"tasks": {"w": {"train_file": "x", "labels": ["a"]}}}, ("task w", "labels")),
    "label_twice": ({"tasks": {"w": {"train_file": "x", "labels": ["a", "a"]}}}, ("task w", "labels has 'a' twice")),
    "unknown_method": ({"methods": ["tfdif"]}, ("unknown method 'tfdif'", "did you mean 'tfidf'")),
    "method_twice": ({"methods": ["knn", "knn"]}, ("'knn'", "twice")),
    "methods_as_text": ({"methods": "knn"}, ("methods must be a list",)),
    "method_options": ({"methods": {"in_context": {"token": 3}}}, ("method in_context", "did you mean 'tokens'")),
    "method_value": ({"methods": {"lora": {"r": 0}}}, ("method lora", "r=0")),
    "train_option": ({"methods": {"mine": {"lerning_rate": 1}}}, ("method mine", "did you mean 'learning_rate'")),
    "train_value": ({"methods": {"mine": {"num_train_epochs": 0}}}, ("method mine", "num_train_epochs=0")),
    "own_option": ({"methods": {"mine": {"seed": 3}}}, ("method mine: seed",)),
    "own_rows": ({"methods": {"mine": {"train_file": "x"}}}, ("method mine: train_file",)),
    "own_model": ({"methods": {"mine": {"model_name_or_path": "x"}}}, ("method mine: model_name_or_path",)),
    "options_as_text": ({"methods": {"mine": "fast"}}, ("method mine", "option: value")),
    "reference": ({"reference": "majorty"}, ("'majorty'", "did you mean 'majority'")),
    "seed_twice": ({"seeds": [1, 1]}, ("seeds", "twice")),
    "seed_below_zero": ({"seeds": [-1]}, ("seeds", "-1")),
    "no_shots": ({"shots": [0]}, ("shots", "0 is less than 1")),
    "shots_as_number": ({"shots": 50}, ("shots=50",)),
    "too_many_shots": ({"shots": [25]}, ("task words", "shots=25", "only 24")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, says = MISTAKES[name]
    line = failing([str(write_config(place, **changes))], capsys)
    for part in says:
        assert part in line
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_file": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ({"test_file": None}, "task words has no test rows"),
        ({"label_column": "lable"}, "'lable'"),
        ({"labels": ["no", "maybe"]}, "'yes'"),
        ({"template": "{txt}"}, "{txt}"),
        ({"label_column": "id", "labels": None}, "task words: labels do not repeat"),
    ],
)
def test_mistakes_in_the_rows(
    change: dict[str, Any], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {k: v for k, v in {**values(place)["tasks"]["words"], **change}.items() if v is not None}
    assert says in failing([str(write_config(place, tasks={"words": task}))], capsys)


def test_mistakes_around_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot read" in failing([str(tmp_path / "nothing.yaml")], capsys)
    (tmp_path / "bad.yaml").write_text("tasks: [")
    assert "not valid YAML" in failing([str(tmp_path / "bad.yaml")], capsys)
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(["tasks"]))
    assert "option: value" in failing([str(tmp_path / "list.yaml")], capsys)


def test_a_missing_package_is_told_before_anything_is_measured(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = method_kinds.importlib.util.find_spec
    monkeypatch.setattr(
        method_kinds.importlib.util, "find_spec", lambda name: None if name == "sklearn" else real(name)
    )
    line = failing([str(write_config(place, methods=["majority", "tfidf"]))], capsys)
    assert "the method tfidf needs scikit-learn" in line
    assert "pip install 'softprompt[quality]'" in line
    assert not (place / "out").exists()
    check_needs("majority", "majority")


def test_another_process_in_the_same_folder(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(tmp_path / LOCK):
        config = write_config(place, output_dir=str(tmp_path), methods=["majority"])
        assert f"another process is measuring into {tmp_path}" in failing([str(config)], capsys)


def test_two_labels_of_equal_rows_but_one_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{**row, "label": "same"} for row in rows(6)])
    write_rows(tmp_path / "test.jsonl", rows(4))
    with pytest.raises(DataError, match="at least two"):
        make_data(tmp_path, labels=None)


def test_the_file_is_named_in_the_message(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"quality\.yaml: unknown option"):
        make_spec(place, shot=[1])


def test_further_seeds_of_one_method(place: Path) -> None:
    spec = make_spec(place, more_seeds={"knn": [7]})
    assert (spec.seeds_of("knn"), spec.seeds_of("majority")) == ([0, 1, 7], [0, 1])
    keys = [str(trial.key) for trial in make_schedule(spec).trials]
    assert [key for key in keys if "seed 7" in key] == ["words, knn, 8 shots, seed 7"]
    for wrong, message in (({"knm": [7]}, "did you mean 'knn'"), ({"knn": [1]}, "1 is given twice")):
        with pytest.raises(ConfigError, match=message):
            make_spec(place, more_seeds=wrong)


def test_defaults_belong_to_the_settings_of_a_result() -> None:
    assert resolved_options("lora", {}) == resolved_options("lora", {"r": 8})
    assert resolved_options("lora", {"r": 4}) == {**resolved_options("lora", {}), "r": 4}
    assert resolved_options("softprompt", {"linear_probe": False})["num_virtual_tokens"] == 8
    assert resolved_options("softprompt", {"linear_probe": False})["linear_probe"] is False
