"""Recipes: what they set, what they leave, and that a folder of the default one is still PEFT's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cli_tools import forked, make_base, rows, write_rows
from softprompt.config.options import TrainOptions
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.models.embeddings import embedding_rms
from softprompt.training.pipeline import train
from softprompt.training.recipes import RECIPES, apply_recipe, build_task

CLASSES = Task(("text",), "label", "text : {text} Label : ", labels=("yes", "no"))
FREE = Task(("question", "hint"), "answer", "question : {question} hint : {hint} Label : ")


def chosen(task: Task = CLASSES, **given: Any) -> tuple[TrainOptions, Task]:
    """Options and task of a run on rows that make ``task`` by the guide's recipe."""
    columns = {"text_column": list(task.text_columns), "label_column": task.label_column}
    options = apply_recipe(
        TrainOptions(output_dir="out", **columns, **given), is_classification=task.is_classification, num_rows=50
    )
    return options, build_task(options, [*task.text_columns, task.label_column], task.labels, task.end_token_id)


@pytest.mark.parametrize("task", [CLASSES, FREE], ids=["classes", "free"])
def test_the_guide_is_what_the_options_say(task: Task) -> None:
    options, resolved = chosen(task, recipe="guide")
    columns = {"text_column": list(task.text_columns), "label_column": task.label_column}
    assert options == TrainOptions(output_dir="out", recipe="guide", **columns)
    assert resolved == task


@pytest.mark.parametrize("recipe", ["default", "best"])
@pytest.mark.parametrize("task", [CLASSES, FREE], ids=["classes", "free"])
def test_what_is_given_wins(recipe: str, task: Task) -> None:
    """Each choice of a recipe can be unmade by its own option."""
    kind = "classification" if task.labels else "generation"
    plain = TrainOptions(output_dir="out")
    for name, value in RECIPES[recipe][kind].items():
        assert getattr(chosen(task, recipe=recipe)[0], name) == value
        other = getattr(plain, name)
        if other is not None:
            assert getattr(chosen(task, recipe=recipe, **{name: other})[0], name) == other


def test_many_rows_are_gone_through_fewer_times() -> None:
    def epochs(rows: int, **given: Any) -> tuple[int, int]:
        options = TrainOptions(output_dir="out", **{"recipe": "best", **given})
        options = apply_recipe(options, is_classification=True, num_rows=rows)
        return options.num_train_epochs, options.fold_epochs

    assert [epochs(rows) for rows in (10, 100, 200, 500, 50_000)] == [(25, 15), (25, 15), (12, 7), (5, 3), (3, 3)]
    assert epochs(500, num_train_epochs=40, fold_epochs=2) == (40, 2)
    assert epochs(5000, recipe="guide") == (50, 15)


def test_every_value_of_a_recipe_is_valid() -> None:
    for kinds in RECIPES.values():
        for values in kinds.values():
            TrainOptions(output_dir="out", **values)


def test_a_rate_that_is_given_is_not_scaled() -> None:
    assert not chosen(learning_rate=0.03)[0].scale_learning_rate
    assert chosen(learning_rate=0.03, scale_learning_rate=True)[0].scale_learning_rate


def test_a_warm_up_in_steps_replaces_the_recipes_share() -> None:
    assert chosen()[0].warmup_ratio == 0.1
    assert chosen(warmup_steps=0)[0].warmup_ratio == 0
    assert chosen(warmup_steps=0, warmup_ratio=0.1)[0].warmup_ratio == 0.1  # as a resolved train_config.yaml has it


def test_rows_without_labels_need_folds() -> None:
    with pytest.raises(ConfigError, match=r"unlabeled_file needs num_folds.*use recipe=best"):
        chosen(unlabeled_file="new.csv")
    assert chosen(recipe="best", unlabeled_file="new.csv")[0].unlabeled_file == Path("new.csv")


def test_class_weights_that_were_asked_for_are_not_ignored() -> None:
    with pytest.raises(ConfigError, match="needs objective=classes"):
        chosen(objective="language_modeling", class_weights="balanced")
    assert chosen(objective="language_modeling")[0].class_weights == "balanced"  # the recipe's, for nothing
    assert chosen(recipe="best", objective="language_modeling", class_weights="balanced")[0].num_folds == 5


@pytest.mark.parametrize("given", [{"fold_repeats": 3}, {"fold_epochs": 2}, {"fold_learning_rate": 0.5}])
def test_options_of_folds_need_folds(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs num_folds; use recipe=best"):
        chosen(**given)
    assert chosen(recipe="best", **given)[0].num_folds == 5
    unsaid = {name: TrainOptions.model_fields[name].default for name in given}  # as a resolved train_config.yaml has it
    assert chosen(**unsaid)[0].num_folds == 0


@pytest.mark.parametrize("given", [{"linear_probe": True}, {"objective": "classes"}, {"num_folds": 3}])
def test_free_text_has_no_classes(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs classes"):
        chosen(FREE, **given)


@pytest.mark.parametrize(
    ("task", "given", "template", "answer_prefix", "prefix", "scoring"),
    [
        (CLASSES, {"recipe": "default"}, "\n{text}", "\nLabel:", " ", "unique_prefix"),
        (CLASSES, {"recipe": "best", "prompt_placement": "suffix"}, "\n{text}", "", " ", "unique_prefix"),
        (CLASSES, {"recipe": "best", "objective": "language_modeling"}, "\n{text}", "\nLabel:", " ", "unique_prefix"),
        (CLASSES, {"objective": "language_modeling"}, "\n{text}", "\nLabel:", " ", "text"),
        (FREE, {"recipe": "default"}, "\nquestion: {question}\nhint: {hint}", "\nanswer:", " ", "text"),
        (CLASSES, {"recipe": "guide", "objective": "classes"}, CLASSES.template, "", "", "unique_prefix"),
    ],
)
def test_what_the_model_reads(
    task: Task, given: dict[str, str], template: str, answer_prefix: str, prefix: str, scoring: str
) -> None:
    _, found = chosen(task, **given)
    assert (found.template, found.answer_prefix, found.label_prefix, found.label_scoring) == (
        template,
        answer_prefix,
        prefix,
        scoring,
    )


def test_a_template_that_is_given_stays() -> None:
    task = Task(("text",), "label", "{text} is", labels=("yes", "no"))
    assert chosen(task, template="{text} is")[1].template == "{text} is"
    assert chosen(task, template="{text} is")[1].label_prefix == " "
    spaced = Task(("text",), "label", "{text} = ", labels=("yes", "no"))
    assert chosen(spaced, template="{text} = ")[1].label_prefix == ""


def test_scale_of_embeddings() -> None:
    weight = torch.nn.Embedding(10_000, 8)
    expected = weight.weight.detach()[:: 10_000 // 4096].square().mean().sqrt()
    assert embedding_rms(weight) == pytest.approx(float(expected), rel=1e-5)


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("recipe")
    make_base(place / "base")
    write_rows(place / "train.csv", rows(12))
    write_rows(place / "test.csv", rows(6, 12))
    return place


def test_peft_takes_a_folder_of_the_default_recipe(place: Path) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    run = place / "run"
    forked("train", "--model_name_or_path", "base", "--train_file", "train.csv", "--test_file", "test.csv",
               "--output_dir", run, "--num_train_epochs", "2", cwd=place, check=True)  # fmt: skip
    values = yaml.safe_load((run / "train_config.yaml").read_text())
    assert (values["recipe"], values["objective"], values["linear_probe"]) == ("default", "classes", True)
    base = transformers.AutoModelForCausalLM.from_pretrained(place / "base")
    model = peft.PeftModel.from_pretrained(base, str(run))
    assert model.prompt_encoder["default"].embedding.weight.shape == (8, 16)
    forked("train", run / "train_config.yaml", "--output_dir", "again", cwd=place, check=True)
    first, second = (json.loads((place / name / "metrics.json").read_text()) for name in ("run", "again"))
    assert first["eval_loss"] == second["eval_loss"]


def test_free_text_by_recipe(place: Path) -> None:
    free = [{"text": "good phone", "label": f"it is {word}"} for word in ("fine", "good", "bad", "awful", "the")]
    write_rows(place / "free.jsonl", free)
    given = {
        "model_name_or_path": str(place / "base"),
        "train_file": place / "free.jsonl",
        "test_file": place / "free.jsonl",
    }
    result = train(TrainOptions(**given, output_dir=place / "free", task="generation", num_train_epochs=1))
    assert result is not None
    assert result.metrics is not None
    assert result.metrics.eval_loss > 0
    task = Task.load(place / "free")
    assert task is not None
    assert (task.template, task.answer_prefix, task.label_prefix) == ("\ntext: {text}", "\nlabel:", " ")


def test_raft_wants_ids_and_labels(place: Path) -> None:
    forked("train", "--model_name_or_path", "base", "--train_file", "train.csv", "--output_dir", "raft",
               "--num_train_epochs", "1", cwd=place, check=True)  # fmt: skip
    given = [{"ID": str(50 + i), "text": row["text"]} for i, row in enumerate(rows(5, 3))]
    write_rows(place / "new.csv", given)
    predict = ("predict", "--adapter", "raft", "--input_file", "new.csv", "--raft_output")
    forked(*predict, "predictions.csv", "--output_file", "all.csv", cwd=place, check=True)
    lines = (place / "predictions.csv").read_text().splitlines()
    assert lines[0] == "ID,Label"
    assert [line.split(",")[0] for line in lines[1:]] == ["50", "51", "52", "53", "54"]
    told = [line.split(",") for line in (place / "all.csv").read_text().splitlines()]
    column = told[0].index("predicted_label")
    assert [line.split(",")[1] for line in lines[1:]] == [line[column] for line in told[1:]]
    forked(*predict, "alone.csv", cwd=place, check=True)
    assert (place / "alone.csv").read_text() == (place / "predictions.csv").read_text()
    write_rows(place / "no.csv", [{"text": "good"}])
    for source, output in (("no.csv", "x.csv"), ("new.csv", "new.csv")):
        done = forked("predict", "--adapter", "raft", "--input_file", source, "--raft_output", output, cwd=place)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


def test_another_name_of_the_text_column_changes_nothing(place: Path) -> None:
    given = ("--model_name_or_path", "base", "--train_file", "train.csv", "--num_train_epochs", "1")
    forked("train", *given, "--output_dir", "named", cwd=place, check=True)
    write_rows(place / "other.csv", [{"tweet": row["text"], "label": row["label"]} for row in rows(6, 12)])
    for source, extra in (("test.csv", ()), ("other.csv", ("--text_column", "tweet"))):
        command = ("evaluate", "--adapter", "named", "--test_file", source, "--output_dir", source[:-4])
        forked(*command, *extra, cwd=place, check=True)
    first, second = (json.loads((place / name / "metrics.json").read_text()) for name in ("test", "other"))
    assert {**first, "examples_per_second": 0} == {**second, "examples_per_second": 0}
    two = (
        "evaluate",
        "--adapter",
        "named",
        "--test_file",
        "other.csv",
        "--text_column",
        "tweet",
        "--text_column",
        "label",
    )
    done = forked(*two, cwd=place)
    assert done.returncode == 2
    assert "reads 1 text columns (text)" in done.stderr


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_the_code_on_a_card_chooses_as_the_prompt_does(place: Path, placement: str) -> None:
    """A prompt that ranks the labels need not generate them, so the code on its card predicts a label."""
    name = f"card_{placement}"
    train(TrainOptions(model_name_or_path=str(place / "base"), train_file=place / "train.csv", num_train_epochs=1,
                       linear_probe=False, prompt_placement=placement, output_dir=place / name))  # fmt: skip
    forked("predict", "--adapter", name, "--input_file", "test.csv", "--output_file", f"{name}.jsonl",
               cwd=place, check=True)  # fmt: skip
    card = (place / name / "README.md").read_text()
    assert "generate(" not in card
    code = card.split("In Python:")[1].split("```python\n")[1].split("```")[0]
    code = code.replace("path/to/base", str(place / "base")).replace("path/to/this/folder", str(place / name))
    assert 'predict("...")' in code
    for row, line in zip(rows(6, 12), (place / f"{name}.jsonl").read_text().splitlines(), strict=True):
        names: dict[str, Any] = {}
        exec(code.replace('"..."', repr(row["text"])), names)
        found, expected = names["prediction"], json.loads(line)
        assert (found.label, found.probability) == (expected["predicted_label"], pytest.approx(expected["probability"]))


def test_a_card_of_several_columns_tells_to_give_a_file(place: Path) -> None:
    write_rows(place / "two.csv", [{**row, "more": "help"} for row in rows(8)])
    train(TrainOptions(model_name_or_path=str(place / "base"), train_file=place / "two.csv", num_train_epochs=1,
                       text_column=["text", "more"], linear_probe=False, output_dir=place / "two"))  # fmt: skip
    card = (place / "two" / "README.md").read_text()
    assert "--input_file rows.csv" in card
    assert "--text" not in card


def test_what_training_did_not_measure_is_not_its_figures(place: Path) -> None:
    """Of two evaluations the last one counts, unless training itself has tested; its figures stay."""
    for name, test in (("untested", ()), ("tested", ("--test_file", "test.csv"))):
        forked("train", "--model_name_or_path", "base", "--train_file", "train.csv", "--num_train_epochs", "1",
                   "--output_dir", name, *test, cwd=place, check=True)  # fmt: skip
    write_rows(place / "first.csv", rows(4))
    write_rows(place / "second.csv", rows(5))
    for name in ("untested", "tested"):
        for source in ("first.csv", "second.csv"):
            forked("evaluate", "--adapter", name, "--test_file", source, cwd=place, check=True)
        assert json.loads((place / name / "metrics.json").read_text())["num_examples"] == 5
    assert not (place / "untested" / "train_metrics.json").exists()
    assert json.loads((place / "tested" / "train_metrics.json").read_text())["num_examples"] == 6
    # Another program's state beside the adapter, such as that of transformers' Trainer, ends no evaluation.
    (place / "untested" / "trainer_state.json").write_text('{"log_history": [], "epoch": 1.0}')
    forked("evaluate", "--adapter", "untested", "--test_file", "first.csv", cwd=place, check=True)
    assert json.loads((place / "untested" / "metrics.json").read_text())["num_examples"] == 4


def test_rows_of_a_label_that_training_lacks_count_as_wrong(place: Path) -> None:
    given = rows(6, 12)
    write_rows(place / "new_label.csv", [*given, {**given[0], "label": "question"}])
    forked("train", "--model_name_or_path", "base", "--train_file", "train.csv", "--num_train_epochs", "1",
               "--output_dir", "lacks", cwd=place, check=True)  # fmt: skip
    found = {}
    for source in ("test.csv", "new_label.csv"):
        done = forked("evaluate", "--adapter", "lacks", "--test_file", source, "--output_dir", "scored",
                          cwd=place, check=True)  # fmt: skip
        assert ("1 of 7 rows count as wrong" in done.stdout) == (source == "new_label.csv")
        found[source] = json.loads((place / "scored" / "metrics.json").read_text())
    known, more = found["test.csv"], found["new_label.csv"]
    assert more["labels"] == [*known["labels"], "question"]
    assert more["accuracy"] == pytest.approx(known["accuracy"] * 6 / 7)
    assert more["macro_f1"] < known["macro_f1"]
    assert more["eval_loss"] == pytest.approx(known["eval_loss"], rel=1e-4)
    write_rows(place / "slip.csv", [{**given[0], "label": "Yes"}])
    done = forked("evaluate", "--adapter", "lacks", "--test_file", "slip.csv", cwd=place)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "did you mean 'yes'?" in done.stderr


def test_texts_that_are_written_are_compared(place: Path) -> None:
    free = [{"text": "good phone", "label": f"it is # {word}"} for word in ("fine", "good", "bad", "awful", "the")]
    write_rows(place / "marks.jsonl", free)
    given = ("--model_name_or_path", "base", "--train_file", "marks.jsonl", "--task", "generation")
    forked("train", *given, "--num_train_epochs", "1", "--output_dir", "marks", cwd=place, check=True)
    command = ("evaluate", "--adapter", "marks", "--test_file", "marks.jsonl")
    forked(*command, "--generate", "--max_new_tokens", "3", "--exact_match_after", "#", cwd=place, check=True)
    found = json.loads((place / "marks" / "metrics.json").read_text())
    assert all(0 <= found[name] <= 1 for name in ("exact_match", "rouge_l", "bleu"))
    for wrong, message in (
        (("--exact_match_after", "#"), "need generate"),
        (("--generate", "--exact_match_after", "@"), "lacks the mark '@'"),
    ):
        done = forked(*command, *wrong, cwd=place)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
