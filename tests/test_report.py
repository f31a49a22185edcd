"""Cards parse, hide local paths and respect a person's README; pictures are whole PNG files."""

import builtins
import re
import struct
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.data.task import Task
from softprompt.errors import DataError, MissingExtraError
from softprompt.metrics import accuracy, confusion_matrix, macro_f1, per_class
from softprompt.reporting.card import model_card
from softprompt.reporting.merge import BEGIN, END, update_card
from softprompt.reporting.plots import plot_confusion_matrix, plot_loss, plot_prompt
from softprompt.storage.record import EpochRecord, Metrics, TrainerState

BASE = "HuggingFaceTB/SmolLM2-135M"
CONFIG = {
    "base_model_name_or_path": BASE,
    "num_virtual_tokens": 8,
    "token_dim": 576,
    "prompt_tuning_init": "TEXT",
    "prompt_tuning_init_text": "Is this | a complaint?",
}
TASK = Task(("Tweet text",), "label", "Tweet text : {Tweet text} Label : ", ("complaint", "no complaint"), 64, 0)
OPTIONS = {
    "dataset_name": "complaints",
    "learning_rate": 0.03,
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "seed": 42,
    "output_dir": "/home/me/runs/complaints-prompt",
}
HISTORY = tuple(
    EpochRecord(
        epoch=float(e),
        step=10 * e,
        learning_rate=0.03,
        train_loss=2.0 / e,
        eval_loss=2.2 / e,
        accuracy=1 - 0.5 / e,
        macro_f1=1 - 0.6 / e,
    )
    for e in range(1, 6)
)
STATE = TrainerState(
    global_step=50,
    epoch=5.0,
    max_steps=50,
    num_train_epochs=5,
    best_step=40,
    history=HISTORY,
    seconds=210.0,
    num_train_examples=80,
).to_dict()


def metrics_of(labels=TASK.labels, **changes):
    matrix = confusion_matrix([0] * 50 + [1] * 50, [0] * 45 + [1] * 55, len(labels))
    values = {
        "num_examples": 100,
        "accuracy": accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "eval_loss": 0.25,
        "labels": labels,
        "per_class": [vars_of(c) for c in per_class(matrix, labels)],
        "baselines": {"majority": {"accuracy": 0.5, "macro_f1": 0.333, "eval_loss": None}},
    }
    return Metrics(**{**values, **changes}).to_dict()


def vars_of(row):
    return {name: getattr(row, name) for name in ("label", "precision", "recall", "f1", "support")}


def card(**changes):
    values = {
        "config": CONFIG,
        "task": TASK,
        "options": OPTIONS,
        "metrics": metrics_of(),
        "state": STATE,
        "files": ["adapter_config.json", "training_loss.png"],
        "repo_id": None,
        "versions": {"softprompt": "0.1.0", "torch": "2.9.0"},
    }
    return model_card(**{**values, **changes})


def front(text):
    return yaml.safe_load(re.match(r"---\n(.*?)^---\n", text, re.DOTALL | re.MULTILINE)[1])


def tables(text):
    """All Markdown tables, as lists of rows of cells, split at unescaped pipes."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", row)[1:-1] for row in table.splitlines()] for table in found]


# --- the card -------------------------------------------------------------------------------------


def test_front_matter_is_what_the_hub_reads():
    text = card(repo_id="me/complaints")
    values = front(text)
    assert values["library_name"] == "peft"
    assert values["base_model"] == BASE
    assert values["pipeline_tag"] == "text-generation"
    assert values["tags"] == sorted(values["tags"])
    assert set(values["tags"]) == {f"base_model:adapter:{BASE}", "prompt-tuning", "softprompt", "transformers"}
    data = ModelCard(text).data
    assert data.model_name == "complaints"
    assert {r.metric_type: r.metric_value for r in data.eval_results} == {"accuracy": 0.95, "f1": 0.9499, "loss": 0.25}
    assert {(r.task_type, r.dataset_split) for r in data.eval_results} == {("text-classification", "test")}


def test_body_says_what_a_reader_needs():
    text = card()
    for words in (
        "8 virtual tokens (4,608 trained parameters)",
        "| **this prompt** | **0.950** | **0.950** | **0.250** |",
        "| majority | 0.500 | 0.333 | - |",
        "| no complaint | 0.909 | 1.000 | 0.952 | 50 |",
        "Measured on 100 test rows.",
        'template = "Tweet text : {Tweet text} Label : "',
        "import softprompt",
        "classifier = softprompt.load(",
        "from peft import PeftModel",
        'tokenizer("Tweet text : <Tweet text> Label : "',
        "| Epochs | 5 (best: epoch 4) |",
        "| Batch size | 8 x 2 accumulated |",
        "| Training rows | 80 |",
        "| Time | 3 min 30 s |",
        "![Loss of each epoch](training_loss.png)",
        "- torch: 2.9.0",
    ):
        assert words in text, words
    assert "confusion_matrix.png" not in text
    assert "does not exceed" not in text


def test_code_in_the_card_is_python():
    task = Task(("text",), "label", 'Say "{text}"\n```{{x}}``` :', ('a"b\\', "```"))
    for text in (card(), card(task=task)):
        blocks = re.findall(r"^(`{3,})python\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)
        assert len(blocks) == 3
        for _, code in blocks:
            compile(code, "card", "exec")
    spoken = {}
    exec(blocks[0][1], spoken)
    assert spoken["template"] == task.template
    assert tuple(spoken["labels"]) == task.labels


def test_card_without_run_and_generation_card():
    bare = card(task=None, options=None, metrics=None, state=None, files=[], versions={})
    assert front(bare)["base_model"] == BASE
    assert "## Results" not in bare
    assert "model-index" not in front(bare)

    spoken = Metrics(num_examples=7, exact_match=0.5, eval_loss=1.0, perplexity=2.718, split="validation",
                     baselines={"untuned prompt": {"exact_match": 0.0, "eval_loss": 2.0}})  # fmt: skip
    text = card(task=Task(("q",), "a", "{q} "), metrics=spoken.to_dict())
    assert "| **this prompt** | **0.500** | **1.000** | **2.718** |" in text
    assert "| untuned prompt | 0.000 | 2.000 | 7.389 |" in text
    assert "7 validation rows" in text
    assert "labels = [" not in text
    assert front(text)["model-index"][0]["results"][0]["task"]["type"] == "text-generation"


def test_a_prompt_no_better_than_the_baseline_says_so():
    text = card(metrics=metrics_of(baselines={"majority": {"accuracy": 0.96}}))
    assert 'does not exceed that of the baseline "majority"' in text


@pytest.mark.parametrize(
    "path",
    ["/home/me/models/llama", "./models/llama/", "C:\\Users\\me\\llama", "~/llama", "/srv/x/llama.gguf", "llama"],
)
def test_no_local_path_is_told(path):
    text = card(
        config={**CONFIG, "base_model_name_or_path": path, "tokenizer_name_or_path": path},
        options={**OPTIONS, "dataset_name": None, "train_file": "/home/me/secret/rows.csv"},
    )
    assert "base_model" not in front(text)
    assert not any(tag.startswith("base_model") for tag in front(text)["tags"])
    assert "llama" in text
    assert "rows.csv" in text
    for private in ("/home", "secret", "Users", "./models", "~", "/srv", "me/"):
        assert private not in text, private


NASTY = ("a|b", "two\nlines", "<b>*x*</b>", "[l](u)", f"{END} x", "-->", "`", "$", "# h", "—ü漢")


def test_nasty_labels_break_neither_tables_nor_marks():
    task = Task(("text",), "label", "{text} ", NASTY)
    text = card(task=task, metrics=metrics_of(NASTY), config={**CONFIG, "revision": "a|b"})
    assert text.count(BEGIN) == text.count(END) == 1
    for table in tables(text):
        assert len({len(row) for row in table}) == 1
    assert "| a\\|b |" in text
    assert "| two lines |" in text
    assert "&lt;b&gt;\\*x\\*&lt;/b&gt;" in text
    assert update_card(text, text) == text


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=2, max_size=4),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
def test_any_text_gives_a_sound_card(labels, name):
    task = Task(("text",), "label", "{text} " + name, tuple(labels))
    options = {**OPTIONS, "dataset_name": name, "output_dir": f"out/{name}"}
    text = card(task=task, options=options, metrics=metrics_of(tuple(labels)))
    assert front(text)["library_name"] == "peft"
    ModelCard(text)
    assert update_card(text, text) == text


# --- a README that is there already ---------------------------------------------------------------

PERSONS = """---
license: mit  # asked legal
language: no
tags: [mine, softprompt]
pipeline_tag: text-classification
---
# My prompt

Words of mine.
"""


def test_a_persons_readme_is_kept():
    text = update_card(PERSONS, card())
    assert "license: mit  # asked legal\nlanguage: no\n" in text
    assert front(text)["pipeline_tag"] == "text-classification"
    assert front(text)["tags"][:2] == ["mine", "softprompt"]
    assert f"base_model:adapter:{BASE}" in front(text)["tags"]
    assert front(text)["base_model"] == BASE
    assert text.index("Words of mine.") < text.index(BEGIN) < text.index(END)
    assert update_card(text, card()) == text


def test_the_next_run_replaces_only_what_is_ours():
    first = update_card(PERSONS, card()) + "\nWritten below.\n"
    other = "/models/other"
    second = update_card(first, card(config={**CONFIG, "base_model_name_or_path": other}, metrics=None))
    assert "Words of mine." in second
    assert second.endswith("Written below.\n")
    assert second.count(BEGIN) == second.count(END) == 1
    assert "0.950" not in second
    # Facts of the last run are gone from the front matter; the person's own words are not.
    assert {"base_model", "model-index"}.isdisjoint(front(second))
    assert not any(tag.startswith("base_model") for tag in front(second)["tags"])
    assert front(second)["tags"][:2] == ["mine", "softprompt"]
    assert front(second)["license"] == "mit"


def test_a_key_that_a_person_edited_is_theirs_from_then_on():
    edited = card().replace(f"base_model: {BASE}\n", "base_model: someone/else\n", 1)
    fresh = card(config={**CONFIG, "base_model_name_or_path": "new/base"})
    again = update_card(update_card(edited, fresh), fresh)
    assert front(again)["base_model"] == "someone/else"


@pytest.mark.parametrize(
    "existing",
    [
        "# Mine\n",
        "",
        "\ufeff---\r\nlicense: mit\r\n---\r\n# Mine\r\n",
        f"# Mine\n{BEGIN}\nno end\n",
        "---\n---\n# Mine\n",
    ],
)
def test_readmes_of_any_shape(existing):
    text = update_card(existing, card())
    assert front(text)["library_name"] == "peft"
    assert ("# Mine" in text) == ("# Mine" in existing)
    assert update_card(text, card()) == text


def test_front_matter_that_is_not_yaml_is_left_alone():
    text = update_card("---\ntitle: [broken\n---\n# Mine\n", card())
    assert text.startswith("---\ntitle: [broken\n---\n# Mine\n")
    assert BEGIN in text


# --- pictures -------------------------------------------------------------------------------------


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


def test_loss_picture_has_a_panel_for_what_was_measured(tmp_path):
    path = tmp_path / "training_loss.png"
    plot_loss(HISTORY, path)
    both = png_size(path)
    plot_loss([EpochRecord(epoch=1.0, step=1, learning_rate=0.1, train_loss=0.0)], path)
    assert png_size(path)[0] < both[0]
    with pytest.raises(DataError, match="empty"):
        plot_loss([], path)
    assert [p.name for p in tmp_path.iterdir()] == ["training_loss.png"]


def test_the_best_epoch_is_marked(tmp_path):
    pictures = {}
    for best in (None, 50, 10, 12345):
        plot_loss(HISTORY, tmp_path / "p.png", best_step=best)
        pictures[best] = (tmp_path / "p.png").read_bytes()
    assert pictures[None] == pictures[50]  # the highest macro-F1 is the last
    assert len({pictures[50], pictures[10], pictures[12345]}) == 3


@pytest.mark.parametrize("count", [2, 7, 20, 77])
def test_confusion_matrix_of_any_size(tmp_path, count):
    matrix = [[30 if i == j else (i + j) % 3 for j in range(count)] for i in range(count)]
    matrix[1] = [0] * count
    plot_confusion_matrix(matrix, [f"label number {i}" for i in range(count)], tmp_path / "m.png")
    assert max(png_size(tmp_path / "m.png")) < 3000


def test_labels_in_pictures_are_text_not_formulas(tmp_path):
    plot_confusion_matrix([[1, 0], [0, 1]], ["$\\frac{", "a\nb " + "long " * 20], tmp_path / "m.png")
    png_size(tmp_path / "m.png")


@pytest.mark.parametrize(("matrix", "labels"), [([[1]], ["a", "b"]), ([[1, 2], [3]], ["a", "b"]), ([], [])])
def test_a_matrix_that_does_not_fit_is_refused(tmp_path, matrix, labels):
    with pytest.raises(DataError):
        plot_confusion_matrix(matrix, labels, tmp_path / "m.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 8, 100])
def test_prompt_picture(tmp_path, count):
    similarity = [[1.0 if i == j else 0.2 for j in range(count)] for i in range(count)]
    plot_prompt([2.0] * count, [0.5] * count, similarity, tmp_path / "a.png", vocabulary_norm=1.2)
    plot_prompt([2.0] * count, None, similarity, tmp_path / "b.png")
    assert png_size(tmp_path / "a.png")[0] > 800
    with pytest.raises(DataError):
        plot_prompt([2.0] * count, [0.5] * (count + 1), similarity, tmp_path / "c.png")


def test_pictures_leave_the_users_matplotlib_alone(tmp_path):
    code = (
        "import sys, matplotlib\n"
        "matplotlib.rcParams['font.size'] = 31\n"
        "before = matplotlib.rcParams.copy()\n"
        "from softprompt.reporting.plots import plot_confusion_matrix\n"
        f"plot_confusion_matrix([[1, 0], [0, 1]], ['a', 'b'], {str(tmp_path / 'm.png')!r})\n"
        "now = matplotlib.rcParams.copy()\n"
        "same = all(dict.__getitem__(now, key) == dict.__getitem__(before, key) for key in before)\n"
        "print(same, 'matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
    plot_confusion_matrix([[1, 0], [0, 1]], ["a", "b"], tmp_path / "n.png")
    assert (tmp_path / "m.png").read_bytes() == (tmp_path / "n.png").read_bytes()


def test_without_matplotlib_the_message_installs_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'softprompt\[demo\]'"):
        plot_loss(HISTORY, tmp_path / "p.png")
