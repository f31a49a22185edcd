"""Each method of a benchmark on a tiny task, and its parts against plain calculations."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from cli_tools import rows, write_rows
from quality_tools import make_context, make_data, make_place, make_spec
from softprompt import ConfigError, DataError
from softprompt.benchmarks.padding import padded_batch
from softprompt.benchmarks.quality.method_kinds import KINDS, method_class
from softprompt.benchmarks.quality.methods.cross_validation import best, cross_validated, folds
from softprompt.benchmarks.quality.methods.hidden_state_classifiers import vote
from softprompt.benchmarks.quality.methods.hidden_states import last_states
from softprompt.benchmarks.quality.methods.in_context import InContext, ZeroShot, _special
from softprompt.benchmarks.quality.methods.method import FittedScores, Method, MethodContext, SharedBase
from softprompt.benchmarks.quality.result_metrics import metrics_of, predictions_of
from softprompt.config.options import TrainOptions
from softprompt.data.task import Task
from softprompt.metrics import majority
from softprompt.training.pipeline import train
from softprompt.types import Example

SHORT: dict[str, dict[str, Any]] = {
    "in_context": {"tokens": 40},
    "softprompt": {"recipe": "guide", "num_train_epochs": 2, "num_virtual_tokens": 3},
    "peft_guide": {"num_train_epochs": 2, "num_virtual_tokens": 3, "max_length": 20},
    "lora": {"num_train_epochs": 2, "r": 2},
    "setfit": {"num_iterations": 1},
}
TRAINED = {
    "majority": 2,
    "zero_shot": 0,
    "in_context": 0,
    "knn": 0,
    "linear_probe": 16 + 1,
    "softprompt": 3 * 16,
    "peft_guide": 3 * 16,
    "lora": 2 * 2 * 2 * (16 + 16),  # layers, queries and values, r, in and out
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("quality"))


@pytest.fixture(scope="module")
def context(place: Path) -> MethodContext:
    return make_context(place)


def make(kind: str, context: MethodContext, **options: Any) -> Method:
    for package, _ in KINDS[kind].needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{kind} needs {package}, which is not installed")
    return method_class(kind)(context, options)


def fit(method: Method, seed: int = 0, shots: int = 12) -> FittedScores:
    drawn = method.context.data.draw(shots, seed)
    return method.fit(drawn, method.context.data.labels_of(drawn), seed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_scores_every_test_row(kind: str, context: MethodContext) -> None:
    method = make(kind, context, **SHORT.get(kind, {}))
    fitted = fit(method)
    data = context.data
    assert fitted.log_probs.shape == (len(data.test), 2)
    assert fitted.log_probs.device.type == "cpu"
    metrics_of(predictions_of(fitted.log_probs, data.gold, data.labels))
    assert fitted.trained_parameters == TRAINED.get(kind, fitted.trained_parameters)
    assert torch.equal(fit(method).log_probs, fitted.log_probs), "two runs of one seed differ"


@pytest.mark.parametrize(
    ("kind", "options"), [("tfidf", {}), ("lora", {"num_train_epochs": 30, "learning_rate": 0.02})]
)
def test_methods_learn_the_words(kind: str, options: dict[str, Any], context: MethodContext) -> None:
    """The first word of a text decides."""
    fitted = fit(make(kind, context, **options), shots=24)
    found = metrics_of(predictions_of(fitted.log_probs, context.data.gold, context.data.labels))
    assert found["macro_f1"] > 0.75


@pytest.mark.parametrize("kind", ["softprompt", "peft_guide"])
def test_prompts_make_the_right_labels_more_probable(kind: str, context: MethodContext) -> None:
    before, after = (
        fit(make(kind, context, **{**SHORT[kind], "num_train_epochs": 20, "learning_rate": rate}), shots=24).log_probs
        for rate in (1e-9, 0.1)
    )
    right = range(len(context.data.test)), list(context.data.gold)
    assert float((after[right] - before[right]).mean()) > 1


def test_the_base_stays_as_it_was(place: Path) -> None:
    context = make_context(place)
    before = {name: tensor.clone() for name, tensor in context.shared_base.base.model.state_dict().items()}
    for kind in ("zero_shot", "knn", "softprompt", "peft_guide", "lora"):
        fit(make(kind, context, **SHORT.get(kind, {})))
    after = context.shared_base.base.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", ["majority", "tfidf", "linear_probe", "knn", "sentence_encoder", "setfit"])
def test_rows_of_one_label(kind: str, context: MethodContext) -> None:
    drawn = [row for row in context.data.train if row.fields["label"] == "yes"][:4]
    fitted = make(kind, context, **SHORT.get(kind, {})).fit(drawn, [1] * 4, 0)
    assert set(predictions_of(fitted.log_probs, context.data.gold, context.data.labels).guesses) == {1}


# --- majority ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[0, 1, 1], [1, 0], [0, 0, 1]])
def test_majority(labels: list[int], context: MethodContext) -> None:
    fitted = make("majority", context).fit(context.data.train[: len(labels)], labels, 0)
    assert set(fitted.log_probs.argmax(1).tolist()) == {majority(labels, 2)}
    share = (labels.count(0) + 1) / (len(labels) + 2)
    assert fitted.log_probs[0, 0].exp() == pytest.approx(share)


# --- prompts of words -------------------------------------------------------------------------------


def plain(context: MethodContext, prompt: list[int], text: list[int], label: list[int]) -> float:
    model = context.shared_base.base.model
    embeds = model.get_input_embeddings()(torch.tensor(prompt, dtype=torch.long))
    with torch.no_grad():
        return float(tiny.plain_score(model, embeds, text, label))


def ids(context: MethodContext, text: str) -> list[int]:
    return list(context.shared_base.base.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_zero_shot_scores_the_words_as_they_stand(place: Path) -> None:
    context = make_context(place, instruction="is it good or bad :")
    fitted = fit(make("zero_shot", context))
    prompt = ids(context, "is it good or bad :\n")
    for row, scores in list(zip(context.data.test, fitted.log_probs, strict=True))[:5]:
        text = ids(context, f"text: {row.fields['text']}\nlabel:")
        wanted = [plain(context, prompt, text, ids(context, f" {label}\n")) for label in context.data.labels]
        assert scores.tolist() == pytest.approx(wanted, abs=1e-4)


def test_in_context_shows_as_many_rows_as_fit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(place)
    seen: list[list[int]] = []
    monkeypatch.setattr(
        InContext, "score", lambda self, prompt: seen.append(list(prompt)) or FittedScores(torch.zeros(1), 0)
    )
    drawn = context.data.draw(12, 0)
    examples = [ids(context, f"text: {row.fields['text']}\nlabel: {row.fields['label']}\n") for row in drawn]
    instruction = ids(context, f"{context.instruction}\n")
    for tokens in (len(instruction) + 9, 30, 1000):
        fit(make("in_context", context, tokens=tokens))
        wanted, most = list(instruction), min(tokens, 64 - max(len(text) for text in texts_of(context)) - 1)
        for example in examples:
            if len(wanted) + len(example) <= most:
                wanted += example
        assert seen[-1] == wanted
        assert len(wanted) <= most
    with pytest.raises(ConfigError, match="no training row fits"):
        fit(make("in_context", context, tokens=len(instruction) + 1))


def texts_of(context: MethodContext) -> list[list[int]]:
    return [ids(context, f"text: {row.fields['text']}\nlabel:") for row in context.data.test]


def test_in_context_scores_behind_its_examples(context: MethodContext) -> None:
    drawn = context.data.draw(2, 0)
    fitted = fit(make("in_context", context, tokens=1000), shots=2)
    prompt = ids(context, f"{context.instruction}\n")
    for row in drawn:
        prompt += ids(context, f"text: {row.fields['text']}\nlabel: {row.fields['label']}\n")
    text = texts_of(context)[0]
    wanted = [plain(context, prompt, text, ids(context, f" {label}\n")) for label in context.data.labels]
    assert fitted.log_probs[0].tolist() == pytest.approx(wanted, abs=1e-4)


def test_the_start_token_stands_in_front_of_everything(place: Path, tmp_path: Path) -> None:
    from softprompt.data.tokenize import Encoder

    tokenizer = tiny.tokenizer(bos=True)
    encoder = Encoder(tokenizer, Task(("text",), "label", "{text} w9"), num_virtual_tokens=0, context_length=None)
    assert _special(encoder) == [1]
    bare = Encoder(tiny.tokenizer(bos=False), encoder.task, num_virtual_tokens=0, context_length=None)
    assert _special(bare) == []


def test_labels_that_the_tokenizer_mixes_up(place: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{**row, "label": row["label"] + "?"} for row in rows(8)])
    write_rows(tmp_path / "test.jsonl", [{**row, "label": row["label"] + "?"} for row in rows(4)])
    context = MethodContext(make_data(tmp_path, labels=None), SharedBase(make_spec(place)))
    with pytest.raises(DataError, match="same tokens as another label"):
        ZeroShot(context, {}).fit([], [], 0)


# --- hidden states ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2", "gemma3", "opt"])
def test_states_are_those_of_each_row_alone(family: str) -> None:
    model = tiny.base(family)
    texts = [text.tolist() for text in tiny.ids(7, 3, 5)]
    found = last_states(model, texts)
    for text, states in zip(texts, found, strict=True):
        with torch.no_grad():
            alone = model.base_model(torch.tensor([text]), output_hidden_states=True).hidden_states[1:]
        torch.testing.assert_close(states, torch.stack([each[0, -1] for each in alone]), atol=1e-5, rtol=1e-5)


def test_the_nearest_rows_vote() -> None:
    learned = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    asked = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert vote(learned, labels, asked, 1, 2).argmax(1).tolist() == [0, 1]
    assert vote(learned, labels, asked, 3, 2).argmax(1).tolist() == [1, 1]
    assert vote(learned, labels, asked, 2, 2).argmax(1).tolist() == [0, 1]  # one vote each: the nearer one wins
    assert vote(learned, labels, asked, 99, 3).exp().sum(1).tolist() == pytest.approx([1.0, 1.0])


# --- cross-validation -------------------------------------------------------------------------------


def test_folds_deal_labels_out_evenly() -> None:
    labels = [0] * 10 + [1] * 5 + [2]
    parts = folds(labels, 0)
    assert sorted(row for part in parts for row in part) == list(range(16))
    assert [sum(labels[row] == 0 for row in part) for part in parts] == [2] * 5
    assert [sum(labels[row] == 1 for row in part) for part in parts] == [1] * 5
    assert folds(labels, 0) == parts != folds(labels, 1)
    assert [len(part) for part in folds([0, 1], 0)] == [1, 1]


def test_held_out_rows_are_not_learned() -> None:
    labels = [0, 1] * 5

    def predict(learned: list[int], held_out: list[int]) -> list[int]:
        assert not set(learned) & set(held_out)
        assert len(learned) + len(held_out) == 10
        return [labels[row] for row in held_out]

    assert cross_validated(predict, labels, 2, 0) == 1
    assert best([3, 1, 2], lambda setting: setting > 1) == 3


# --- training ---------------------------------------------------------------------------------------


def test_a_soft_prompt_is_that_of_train(place: Path, context: MethodContext, tmp_path: Path) -> None:
    """The same rows and options through the command's own function give the same scores."""
    drawn = context.data.draw(12, 5)
    write_rows(tmp_path / "train.jsonl", [row.fields for row in drawn])
    options = {"num_train_epochs": 3, "num_virtual_tokens": 3, "learning_rate": 0.3}
    fitted = fit(make("softprompt", context, **options), seed=5)
    values = predictions_of(fitted.log_probs, context.data.gold, context.data.labels)
    result = train(
        TrainOptions(
            **options,
            seed=5,
            model_name_or_path=str(place / "base"),
            train_file=tmp_path / "train.jsonl",
            test_file=place / "test.jsonl",
            output_dir=tmp_path / "run",
            prompt_tuning_init_text="Classify the text as no or yes:",  # labels in the task's order
            baselines=False,
        )
    )
    assert result is not None
    assert result.metrics is not None
    assert metrics_of(values)["macro_f1"] == pytest.approx(result.metrics.macro_f1, abs=1e-6)
    assert metrics_of(values)["expected_calibration_error"] == pytest.approx(
        result.metrics.expected_calibration_error, abs=1e-5
    )


def test_the_instruction_starts_a_soft_prompt(place: Path) -> None:
    method = make("softprompt", make_context(place, instruction="is it good :"), recipe="guide")
    assert method._options(place, 3).prompt_tuning_init_text == "is it good :"
    assert method._options(place, 3).seed == 3
    named = make("softprompt", method.context, recipe="guide", prompt_tuning_init_text="help")
    assert named._options(place, 0).prompt_tuning_init_text == "help"
    other = make("softprompt", method.context, recipe="best")
    assert other._options(place, 0).prompt_tuning_init_text is None


def test_padded_batches() -> None:
    batch = [Example((4, 5, 6), (7, 2)), Example((8,), (9, 10, 2)), Example((11,), (2,))]
    right = padded_batch(batch, torch.device("cpu"), fill=3)
    assert right["input_ids"].tolist() == [[4, 5, 6, 7, 2], [8, 9, 10, 2, 3], [11, 2, 3, 3, 3]]
    assert right["attention_mask"].tolist() == [[1] * 5, [1] * 4 + [0], [1, 1, 0, 0, 0]]
    assert right["labels"].tolist()[1] == [-100, 9, 10, 2, -100]
    left = padded_batch(batch, torch.device("cpu"), width=6, left=True)
    assert left["input_ids"].tolist() == [[0, 4, 5, 6, 7, 2], [0, 0, 8, 9, 10, 2], [0, 0, 0, 0, 11, 2]]
    assert left["attention_mask"].tolist() == [[0] + [1] * 5, [0, 0] + [1] * 4, [0] * 4 + [1] * 2]
    assert left["labels"].tolist()[1] == [-100, -100, -100, 9, 10, 2]


def test_lora_is_scored_without_a_prompt(context: MethodContext) -> None:
    from softprompt.benchmarks.quality.methods.lora import _no_prompt
    from softprompt.inference.score import score_labels

    model = context.shared_base.base.model
    texts, labels = [[5, 6, 7], [8, 9]], [[7, 2], [8, 9, 2]]
    found = score_labels(model, _no_prompt(model), texts, labels)
    wanted = [[plain(context, [], text, label) for label in labels] for text in texts]
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-4, rtol=1e-4)
