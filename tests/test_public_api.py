"""``softprompt.load``, ``train``, ``evaluate``: rows of every kind, and the same answers in Python, shell and card."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softprompt
from cli_tools import PATIENCE, environment, forked, make_base, read_csv, rows, write_rows

KINDS = {
    "probe": {},
    "ensemble": {"recipe": "best", "num_folds": 2, "fold_repeats": 1, "fold_epochs": 1},
    "suffix": {"prompt_placement": "suffix"},
    "guide": {"recipe": "guide"},
    "generation": {"task": "generation"},
}
"""Adapters, and the options that they are trained with."""
CLASSIFIERS = [kind for kind in KINDS if kind != "generation"]
TEXT = "awful service the phone"


def train(place: Path, name: str, **options: Any) -> softprompt.TrainResult:
    given = {"model_name_or_path": str(place / "base"), "num_train_epochs": 1, "num_virtual_tokens": 4}
    source = {} if "train_dataset" in options else {"train_file": place / "train.csv"}
    result = softprompt.train(output_dir=place / name, **{**given, **source, **options})
    assert result is not None
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, rows, and an adapter of each kind; one of them as PEFT writes it."""
    place = tmp_path_factory.mktemp("public")
    make_base(place / "base")
    write_rows(place / "train.csv", rows(12))
    write_rows(place / "test.csv", rows(8, 12))
    for name, options in KINDS.items():
        train(place, name, **options)
    shutil.copytree(place / "generation", place / "peft")
    for file in (place / "peft").iterdir():
        if file.is_file() and file.name not in ("adapter_config.json", "adapter_model.safetensors"):
            file.unlink()
    from softprompt.reporting.folder import write_card

    write_card(place / "peft")
    return place


@pytest.fixture(autouse=True)
def _no_folder_is_left(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def load(place: Path, kind: str) -> softprompt.Predictor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an adapter without a task warns
        return softprompt.load(place / kind)


# --- Python, shell and card -------------------------------------------------------------------------


def blocks(place: Path, kind: str, text: str = TEXT) -> tuple[str, list[str]]:
    """The Python code and the shell command on an adapter's card, for this machine's paths and a text."""
    card = (place / kind / "README.md").read_text(encoding="utf-8")
    use = card.split("## Use")[1]
    (shell,) = re.findall(r"^softprompt predict .*$", use, re.MULTILINE)
    found = []
    for code in (use.split("```python\n")[1].split("```")[0], shell):
        code = code.replace("path/to/this/folder", str(place / kind)).replace("path/to/base", str(place / "base"))
        assert "path/to" not in code
        found.append(code.replace("...", text))
    return found[0], shlex.split(found[1])[1:]


@pytest.mark.parametrize("kind", [*KINDS, "peft"])
def test_python_shell_and_card_agree(place: Path, kind: str) -> None:
    code, command = blocks(place, kind)
    assert set(re.findall(r"^(?:from|import) .*$", code, re.MULTILINE)) == {"import softprompt"}
    assert set(re.findall(r"softprompt\.(\w+)", code)) <= set(softprompt.__all__)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, {})
    shown = forked(*command, cwd=place)
    assert shown.returncode == 0, shown.stderr
    if kind in CLASSIFIERS:
        answer = load(place, kind).predict(TEXT)
        assert isinstance(answer, softprompt.Prediction)
        label, probability = printed.getvalue().split()
        assert (label, float(probability)) == (answer.label, answer.probability)
        assert shown.stdout.split() == [answer.label, f"{answer.probability:.4f}"]
        assert 0.5 <= answer.probability <= 1
    else:
        answer = load(place, kind).generate(TEXT, max_new_tokens=20)
        assert printed.getvalue() == f"{answer}\n" == shown.stdout
    assert ("no task.json" in shown.stderr) == (kind == "peft")


def test_an_adapter_without_a_task_reads_the_text_as_it_is(place: Path) -> None:
    """It continues the text as the plain forward of prompt and text does."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with pytest.warns(UserWarning, match=r"peft: no task\.json; texts are passed to the model unchanged"):
        generator = softprompt.load(place / "peft")
    text = "text : good phone Label :"
    base, tokenizer = (each.from_pretrained(place / "base") for each in (AutoModelForCausalLM, AutoTokenizer))
    prompt = load_file(place / "peft" / "adapter_model.safetensors")["prompt_embeddings"]
    ids = tokenizer(text)["input_ids"]
    count = len(ids)
    with torch.no_grad():
        while len(ids) < count + 5 and tokenizer.eos_token_id not in ids[count:]:
            embeds = torch.cat([prompt, base.get_input_embeddings()(torch.tensor(ids))])[None]
            ids.append(int(base(inputs_embeds=embeds).logits[0, -1].argmax()))
    expected = tokenizer.decode(ids[count:], skip_special_tokens=True).strip()
    assert generator.generate(text, max_new_tokens=5) == expected
    assert (generator.labels, generator.task.is_classification) == ((), False)


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the README, on a tiny base model."""
    make_base(tmp_path / "base")
    for name, values in (("train.csv", rows(12)), ("test.csv", rows(6, 12))):
        write_rows(tmp_path / name, [{"tweet": row["text"], "label": row["label"]} for row in values])
    monkeypatch.chdir(tmp_path)
    base = {"model_name_or_path": "base", "num_train_epochs": 1}
    result = softprompt.train(
        train_file="train.csv", text_column="tweet", label_column="label", output_dir="out", **base
    )
    clf = softprompt.load("out")
    prediction = clf.predict("why is the phone awful")
    assert repr(prediction) == f"Prediction(label={prediction.label!r}, probability={prediction.probability:.4f})"
    several = clf.predict(["why is the phone awful", "good"])
    assert [each.label for each in several] == [clf.predict(text).label for text in ("why is the phone awful", "good")]
    probabilities = clf.predict_proba(["why is the phone awful", "good"])
    assert (probabilities.shape, probabilities.dtype) == ((2, 2), np.float32)
    assert clf.labels[int(probabilities[0].argmax())] == prediction.label
    assert all(isinstance(text, str) for text in clf.generate(["good", "bad"], max_new_tokens=4))
    metrics = softprompt.evaluate("out", "test.csv")
    assert metrics.num_examples == 6
    assert repr(metrics).startswith(f"Metrics(num_examples=6, accuracy={metrics.accuracy:.4g}, macro_f1=")
    assert result is not None
    assert repr(result) == "TrainResult(output_dir='out', metrics=None)"
    assert repr(clf).startswith("<Predictor out: 2 labels, 8 virtual tokens, linear probe, base model ")


# --- predictions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_probabilities_are_those_of_the_predictions(place: Path, kind: str) -> None:
    """And of the file that the command line writes, in order, whatever the batches."""
    classifier, texts = load(place, kind), [row["text"] for row in rows(8, 12)]
    assert classifier.labels == classifier.task.labels
    probabilities = classifier.predict_proba(texts)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(classifier.predict_proba(texts, batch_size=3), probabilities, rtol=0, atol=1e-5)
    assert len({round(float(row.max()), 4) for row in probabilities}) > 1, "a weak test: all texts look alike"
    done = forked("predict", "--adapter", kind, "--input_file", "test.csv", "--output_file", f"{kind}.csv", cwd=place)
    assert done.returncode == 0, done.stderr
    for one, row, line in zip(classifier.predict(texts), probabilities, read_csv(place / f"{kind}.csv"), strict=True):
        assert one.label == classifier.labels[int(row.argmax())] == line["predicted_label"]
        assert one.probability == pytest.approx(float(row.max()), abs=1e-6)
        assert one.probability == pytest.approx(float(line["probability"]), abs=1e-5)


def test_a_generation_adapter_predicts_texts(place: Path) -> None:
    generator = load(place, "generation")
    assert generator.labels == ()
    texts = [row["text"] for row in rows(3)]
    assert generator.predict(texts) == generator.generate(texts)
    assert generator.predict(texts[0]) == generator.generate(texts)[0]
    with pytest.raises(softprompt.ConfigError, match="generates text and has no labels; use generate"):
        generator.predict_proba(texts)


def test_several_columns_are_given_by_dictionaries(place: Path, tmp_path: Path) -> None:
    values = [{"title": row["text"], "body": "help sir", "label": row["label"]} for row in rows(8)]
    result = train(place, "columns", train_dataset=values, text_column=["title", "body"])
    classifier = softprompt.load(result.output_dir)
    one, several = classifier.predict(values[0]), classifier.predict(values)
    assert isinstance(one, softprompt.Prediction)
    assert one.label == several[0].label
    assert one.probability == pytest.approx(several[0].probability, abs=1e-6)
    code, command = blocks(place, "columns")
    assert 'classifier.predict({"title": "' in code
    assert command[-4:] == ["--input_file", "rows.csv", "--output_file", "predictions.csv"]
    with pytest.raises(softprompt.DataError, match=r"row 1 is a text, but the task has 2 text columns; .*'title'"):
        classifier.predict("good")


def test_texts_that_are_cut_are_reported(place: Path) -> None:
    classifier, long = load(place, "probe"), "good " * 100
    with pytest.warns(UserWarning, match="1 of 2 texts were cut to fit"):
        classifier.predict([long, "good"])
    with pytest.warns(UserWarning, match="1 of 1 texts were cut to fit"):
        classifier.predict_proba([long])
    with pytest.warns(UserWarning, match="cut to fit max_length: 1 of 2 rows"):
        softprompt.evaluate(classifier, [(long, "yes"), ("good", "no")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.predict("good")


def test_threads_share_a_predictor(place: Path) -> None:
    texts = [row["text"] for row in rows(8, 12)]
    classifier, generator = load(place, "ensemble"), load(place, "generation")
    expected = classifier.predict_proba(texts), generator.generate(texts, max_new_tokens=4)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(classifier.predict_proba, texts) for _ in range(8)]
        more = [pool.submit(generator.generate, texts, max_new_tokens=4) for _ in range(8)]
        for call in calls:
            np.testing.assert_array_equal(call.result(), expected[0])
        assert all(call.result() == expected[1] for call in more)


# --- rows -------------------------------------------------------------------------------------------


def pandas_frame(values: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("pandas").DataFrame(values)


def datasets_table(values: list[dict[str, Any]]) -> Any:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([{**row, "label": ("yes", "no").index(row["label"])} for row in values])
    return table.cast_column("label", datasets.ClassLabel(names=["yes", "no"]))


def pairs(values: list[dict[str, Any]]) -> Any:
    return [(row["text"], row["label"]) for row in values]


def generator_of_rows(values: list[dict[str, Any]]) -> Any:
    return (row for row in values)


TABLES = [list, pairs, generator_of_rows, pandas_frame, datasets_table]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_rows_of_every_kind_are_evaluated_alike(place: Path, table: Any) -> None:
    classifier = load(place, "probe")
    expected = softprompt.evaluate(place / "probe", place / "test.csv")
    found = softprompt.evaluate(classifier, table(rows(8, 12)))
    assert found.confusion_matrix == expected.confusion_matrix
    assert found.eval_loss == pytest.approx(expected.eval_loss, abs=1e-6)
    assert found.labels == ("yes", "no")


@pytest.mark.parametrize("table", [pandas_frame, datasets_table], ids=lambda table: table.__name__)
def test_tables_and_files_are_predicted_as_texts_are(place: Path, table: Any) -> None:
    classifier, values = load(place, "probe"), rows(8, 12)
    expected = classifier.predict([row["text"] for row in values])
    for given in (table(values), place / "test.csv", iter(values)):
        found = classifier.predict(given)
        assert [each.label for each in found] == [each.label for each in expected]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_training_takes_rows_of_every_kind(place: Path, table: Any) -> None:
    """The prompt is that of the file with the same rows, to the bit."""
    name = f"memory_{table.__name__}"
    result = train(place, name, train_dataset=table(rows(12)), test_dataset=str(place / "test.csv"))
    weights = "adapter_model.safetensors"
    assert (result.output_dir / weights).read_bytes() == (place / "probe" / weights).read_bytes()
    assert result.metrics is not None
    assert (result.metrics.num_examples, result.metrics.split) == (8, "test")
    assert math.isfinite(result.metrics.eval_loss or math.nan)


def test_a_data_set_names_classes_that_no_row_has(place: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets_table(rows(8)).cast_column("label", datasets.ClassLabel(names=["yes", "no", "may_be"]))
    result = train(place, "declared", train_dataset=table)
    assert softprompt.load(result.output_dir).labels == ("yes", "no", "may be")


def test_a_callback_receives_everything(place: Path) -> None:
    events = []

    class Recorder(softprompt.Callback):
        def on_step_end(self, step: int, loss: float) -> None:
            events.append(step)

        def on_warning(self, text: str) -> None:
            events.append(text)

    train(place, "recorded", train_dataset=[*rows(7), {"text": "good " * 100, "label": "no"}], callback=Recorder())
    assert events == ["cut to fit max_length: 1 of 8 train rows", 1]
    events.clear()
    softprompt.evaluate(load(place, "probe"), [("good", "no"), ("bad", "perhaps")], callback=Recorder())
    assert events == ["1 of 2 rows count as wrong: their labels are not among the adapter's: 'perhaps'"]


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: softprompt.load("nowhere"), softprompt.AdapterError, "there is no folder 'nowhere'"),
        (lambda p: softprompt.load(p, dtype="int3"), softprompt.ConfigError, "int3"),
        (lambda p: softprompt.load(p, device="abacus"), softprompt.ConfigError, "abacus"),
        (lambda p: softprompt.load(p).predict(""), softprompt.DataError, "row 1: the column 'text' is empty"),
        (lambda p: softprompt.load(p).predict(["good", None]), softprompt.DataError, "row 2 is of type NoneType"),
        (lambda p: softprompt.load(p).predict(7), softprompt.DataError, "must be a list, a table or a path, not int"),
        (lambda p: softprompt.load(p).predict([{"no": "x"}]), softprompt.DataError, "row 1: .*'text'"),
        (lambda p: softprompt.load(p).predict("good", batch_size=0), softprompt.ConfigError, "invalid batch_size=0"),
        (lambda p: softprompt.load(p).predict_proba("good", batch_size=0), softprompt.ConfigError, "must be > 0"),
        (
            lambda p: softprompt.load(p).generate("a", max_new_tokens=0),
            softprompt.ConfigError,
            "max_new_tokens=0",
        ),
        (lambda p: softprompt.evaluate(p, "test.csv", batch_size=-1), softprompt.ConfigError, "invalid batch_size=-1"),
        (lambda p: softprompt.evaluate(p, ["good"]), softprompt.DataError, "'label'"),
        (lambda p: softprompt.evaluate(p, []), softprompt.DataError, "the test data has no rows"),
        (lambda p: softprompt.evaluate(p, {"text": ["a"]}), softprompt.DataError, "a dictionary is one row"),
        (lambda p: softprompt.evaluate(p), softprompt.ConfigError, "no rows to evaluate on"),
        (lambda p: softprompt.evaluate(p, "test.csv", epochs=3), softprompt.ConfigError, "unknown option 'epochs'"),
        (lambda p: softprompt.evaluate(p, "test.csv", max_new_tokens=3), softprompt.ConfigError, "need generate"),
        (
            lambda p: softprompt.evaluate(softprompt.load(p), "test.csv", dtype="float32"),
            softprompt.ConfigError,
            "dtype has no effect on a loaded adapter",
        ),
        (lambda p: softprompt.train(train_file="train.csv"), softprompt.ConfigError, "output_dir"),
        (lambda p: softprompt.train(output_dir="x"), softprompt.ConfigError, "no rows to train on"),
        (lambda p: softprompt.train(output_dir="x", epoch=3), softprompt.ConfigError, "unknown option 'epoch'"),
        (
            lambda p: softprompt.train(output_dir="x", train_file="train.csv", train_dataset=[("a", "b")]),
            softprompt.ConfigError,
            "exclude each other",
        ),
        (lambda p: softprompt.train(output_dir="x", train_dataset=["good"]), softprompt.DataError, "train row 1"),
    ],
)
def test_mistakes_are_one_clear_line(place: Path, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call(str(place / "probe"))
    assert isinstance(caught.value, softprompt.SoftPromptError)
    assert "\n" not in str(caught.value)
    assert not (place / "x").exists()


def test_another_base_model_is_refused(place: Path) -> None:
    make_base(place / "other", width=32)
    with pytest.raises(softprompt.AdapterError, match="was trained on"):
        softprompt.load(place / "probe", model_name_or_path=place / "other")


def test_mistakes_in_rows_show_before_torch_is_imported(place: Path) -> None:
    """Importing torch takes seconds, and loading a base model more."""
    code = (
        "import sys, softprompt\n"
        "try:\n    softprompt.evaluate('probe', [('good', '')])\n"
        "except softprompt.DataError as error:\n    print(error, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=place, env=environment(), timeout=PATIENCE, check=True
    )
    assert done.stdout.endswith("every row needs a label False\n"), done.stdout


def test_the_metrics_of_the_command_line_are_the_same(place: Path) -> None:
    done = forked("evaluate", "--adapter", "guide", "--test_file", "test.csv", "--output_dir", "scored", cwd=place)
    assert done.returncode == 0, done.stderr
    written = json.loads((place / "scored" / "metrics.json").read_text())
    found = json.loads(json.dumps(softprompt.evaluate("guide", "test.csv").to_dict()))
    assert {**written, "examples_per_second": 0} == {**found, "examples_per_second": 0}


def test_no_module_has_the_name_of_a_function() -> None:
    """Importing ``softprompt.load`` would replace the function of that name."""
    modules = {path.stem for path in Path(softprompt.__file__).parent.iterdir()}
    assert not modules & set(softprompt.__all__)
