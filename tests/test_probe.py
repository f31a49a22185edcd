"""The linear probe: its regression against scikit-learn, its features against plain forwards, its file, whole runs."""

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from cli_tools import forked, make_base, rows, write_rows
from softprompt import PromptTuningConfig, get_peft_model
from softprompt.config.options import TrainOptions
from softprompt.data.task import Task
from softprompt.errors import AdapterError, ConfigError
from softprompt.inference import score
from softprompt.inference.classifier import Classes, mean_states
from softprompt.inference.probe import LinearProbe, fit_probe, middle_layers
from softprompt.storage.record import PROBE_NAME
from softprompt.training.callbacks import Callback
from softprompt.training.fit_classifier import classifier_to_validate
from softprompt.training.pipeline import train
from softprompt.training.run import Run
from softprompt.types import Example

CLASSES = Classes(("yes", "no"), ((40, 2), (41, 42, 2)))


def noisy(number=40, layers=6, width=7, classes=3, seed=0):
    """Means whose class shows a little in each layer, on very different scales, and unevenly drawn classes."""
    generator = torch.Generator().manual_seed(seed)
    gold = (torch.rand(number, generator=generator) ** 2 * classes).long()
    gold[:classes] = torch.arange(classes)
    signal = torch.randn(classes, width, generator=generator)
    states = torch.randn(number, layers, width, generator=generator) + 0.7 * signal[gold][:, None]
    scales = torch.logspace(-2, 2, layers)[:, None] * torch.logspace(0, 1, width)
    return states * scales + 3 * scales, gold.tolist()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("l2", [0.5, 33.0])
def test_it_is_the_regression_of_scikit_learn(classes, l2):
    linear_model = pytest.importorskip("sklearn.linear_model")
    means, gold = noisy(classes=classes)
    fresh, _ = noisy(classes=classes, seed=1)
    linear_probe = fit_probe(means, gold, classes, share=1.0, l2=l2)

    def features(of):
        chosen = means[:, middle_layers(6)].double()
        scaled = (of[:, middle_layers(6)].double() - chosen.mean(0)) / chosen.std(0, unbiased=False)
        return scaled.mean(1).numpy()

    # scikit-learn's binary regression has one weight vector where ours has two, which halves the penalty.
    strength = 1 / l2 if classes > 2 else 2 / l2
    theirs = linear_model.LogisticRegression(C=strength, class_weight="balanced", max_iter=10_000, tol=1e-10)
    theirs.fit(features(means), gold)
    expected = torch.from_numpy(theirs.predict_log_proba(features(fresh)))
    torch.testing.assert_close(linear_probe.log_probs(fresh).double(), expected, rtol=1e-3, atol=1e-4)


def test_a_class_without_rows_is_left_to_others():
    """Its logit is the mean of the others', so it is never the largest."""
    means, gold = noisy(classes=2)
    whole, part = fit_probe(means, gold, 3, share=1.0), fit_probe(means, gold, 2, share=1.0)
    found, known = whole.log_probs(means), part.log_probs(means)
    torch.testing.assert_close(found[:, :2].log_softmax(-1), known, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[:, 2], found[:, :2].mean(1), rtol=1e-4, atol=1e-4)
    assert (found.argmax(1) < 2).all()


def test_a_feature_that_never_changes_does_no_harm():
    means, gold = noisy()
    means[..., 2] = 5.0
    assert fit_probe(means, gold, 3, share=1.0).log_probs(means).isfinite().all()


def test_middle_layers():
    assert middle_layers(30).tolist() == list(range(8, 24))
    assert [len(middle_layers(number)) > 0 for number in range(1, 8)] == [True] * 7
    assert all(middle_layers(number).max() < number for number in range(1, 40))


def test_mixing():
    means, gold = noisy()
    scores = torch.randn(len(gold), 3) - 5
    linear_probe = fit_probe(means, gold, 3, share=0.25)
    expected = (0.75 * scores.log_softmax(1) + 0.25 * linear_probe.log_probs(means)).log_softmax(1)
    torch.testing.assert_close(linear_probe.mix(scores, means), expected)
    for share, of in ((0.0, scores.log_softmax(1)), (1.0, linear_probe.log_probs(means))):
        torch.testing.assert_close(replace(linear_probe, share=torch.tensor(share)).mix(scores, means), of)


# --- what is read ---------------------------------------------------------------------------------------------


def plain_means(model, placement, text):
    """Mean states of a text alone, its first token left out; of each layer but the last."""
    ids = torch.tensor(text, dtype=torch.long)
    embeds = model.base_model.get_input_embeddings()(ids)
    above = model.prompt.detach() if placement == "prefix" else embeds[:0]
    output = copy.deepcopy(model.base_model).base_model(
        inputs_embeds=torch.cat([above, embeds])[None], output_hidden_states=True
    )
    states = torch.stack([each[0, len(above) :] for each in output.hidden_states[1:-1]])
    return states[:, 1:].mean(1) if len(text) > 1 else states.mean(1)


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "gptj"])
@torch.no_grad()
def test_means_are_those_of_rows_alone(family, placement):
    torch.manual_seed(1)
    config = PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=5, prompt_placement=placement)
    model = get_peft_model(tiny.base(family), config)
    texts = [tuple(text.tolist()) for text in tiny.ids(9, 1, 4, 9, 30, 2)]
    texts[3] = (*texts[0][:6], *texts[3][6:])  # a shared beginning
    texts.append((*range(3, 29), 5))
    texts.append((*range(3, 29), 6, 7))  # one long enough for a node of its own
    given = [Example(text, (), None) for text in texts]
    means = mean_states(model.prompted, given, CLASSES, batch_size=3)
    at_once = mean_states(model.prompted, given, CLASSES, batch_size=30)
    torch.testing.assert_close(at_once, means, rtol=1e-3, atol=1e-4)
    for text, found in zip(texts, means, strict=True):
        torch.testing.assert_close(found[:-1], plain_means(model, placement, text), rtol=1e-3, atol=1e-4)


def test_an_empty_text_has_zeros():
    torch.manual_seed(1)
    model = get_peft_model(tiny.base("llama"), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=5))
    one = Classes(("yes", "no"), ((40,), (41,)))
    means = mean_states(model.prompted, [Example((), (), None)], one, batch_size=3)
    assert means.shape == (1, model.base_model.config.num_hidden_layers, tiny.width(model.base_model))
    assert not means.any()


# --- the file ---------------------------------------------------------------------------------------------------


def test_it_comes_back_from_its_file(tmp_path):
    means, gold = noisy()
    linear_probe = fit_probe(means, gold, 3, share=0.5)
    linear_probe.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [PROBE_NAME]
    again = LinearProbe.read(tmp_path / PROBE_NAME, 3, 6, 7)
    assert again.log_probs(means).equal(linear_probe.log_probs(means))
    assert again.share == linear_probe.share


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bias"), "is damaged: it must hold layers, scale, weight, bias, share"),
        (
            lambda t: t.update(weight=t["weight"][:2].clone()),
            "does not fit task and base model: it must have 3 classes",
        ),
        (lambda t: t.update(scale=t["scale"][0].clone()), "does not fit task and base model"),
        (
            lambda t: t.update({n: t[n][:, :5].clone() for n in ("scale", "weight")}),
            "must have 3 classes and hidden size 7",
        ),
        (lambda t: t.update(layers=t["layers"].float()), "is damaged: layers must be integers"),
        (lambda t: t["share"].fill_(1.5), "is damaged: .* share must be between 0 and 1"),
        (lambda t: t["bias"].fill_(torch.nan), "has NaN or infinite values"),
        (lambda t: t["layers"].fill_(6), "uses layers that the base model lacks: it has 6"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, message):
    means, gold = noisy()
    fit_probe(means, gold, 3, share=0.5).save(tmp_path)
    tensors = load_file(tmp_path / PROBE_NAME)
    change(tensors)
    save_file(tensors, tmp_path / PROBE_NAME)
    with pytest.raises(AdapterError, match=message):
        LinearProbe.read(tmp_path / PROBE_NAME, 3, 6, 7)
    (tmp_path / PROBE_NAME).write_bytes(b"no tensors")
    with pytest.raises(AdapterError, match="cannot be read"):
        LinearProbe.read(tmp_path / PROBE_NAME, 3, 6, 7)


# --- whole runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("linear_probe")
    make_base(place / "base")
    write_rows(place / "train.csv", rows(16))
    write_rows(place / "test.csv", rows(8, 16))
    return place


def options_for(place: Path, **changes) -> TrainOptions:
    values = {"model_name_or_path": str(place / "base"), "train_file": place / "train.csv", "num_train_epochs": 2}
    values |= {"recipe": "guide"}
    values |= {"test_file": place / "test.csv", "linear_probe": True, "num_virtual_tokens": 4}
    return TrainOptions(**{**values, "output_dir": place / "run", **changes})


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_training_evaluation_and_prediction_agree(place: Path, placement: str) -> None:
    folder = place / placement
    result = train(options_for(place, output_dir=folder, prompt_placement=placement))
    assert result is not None
    assert (folder / PROBE_NAME).is_file()
    assert result.metrics.baselines["untuned prompt"]["macro_f1"] is not None
    done = forked("evaluate", "--adapter", folder, "--test_file", place / "test.csv", "--output_dir", place, check=True)
    assert "macro-F1" in done.stdout
    found = json.loads((place / "metrics.json").read_text())
    assert found["eval_loss"] == pytest.approx(result.metrics.eval_loss, rel=1e-5)
    assert found["confusion_matrix"] == [list(row) for row in result.metrics.confusion_matrix]
    forked("predict", "--adapter", folder, "--input_file", place / "test.csv", "--output_file", place / "p.jsonl",
           check=True)  # fmt: skip
    said = [json.loads(line) for line in (place / "p.jsonl").read_text().splitlines()]
    matrix = [[0, 0], [0, 0]]
    for row, answer in zip(rows(8, 16), said, strict=True):
        matrix[found["labels"].index(row["label"])][found["labels"].index(answer["predicted_label"])] += 1
    assert matrix == found["confusion_matrix"]


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_the_best_epoch_is_that_of_what_is_saved(place: Path, placement: str) -> None:
    """The scores of an epoch are those of prompt and linear probe together, as a loaded adapter has them."""
    folder = place / f"best-{placement}"
    given = {"validation_file": place / "test.csv", "num_train_epochs": 4, "learning_rate": 0.3, "baselines": False}
    result = train(options_for(place, output_dir=folder, prompt_placement=placement, **given))
    assert result is not None
    (best,) = [record for record in result.state.history if record.step == result.state.best_step]
    assert best.eval_loss == pytest.approx(result.metrics.eval_loss, rel=1e-5)
    assert (best.accuracy, best.macro_f1) == (result.metrics.accuracy, result.metrics.macro_f1)
    assert len({record.eval_loss for record in result.state.history}) == 4, "epochs differ"


def test_beside_prompts_of_folds_the_read_out_alone_chooses() -> None:
    """The prompt in front has no voice there: only the states under it are read."""
    torch.manual_seed(1)
    model = get_peft_model(tiny.base("llama"), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=5))
    given = [Example(tuple(text.tolist()), (), name) for text, name in zip(tiny.ids(9, 4, 6, 5), "yn" * 2, strict=True)]
    classes = Classes(("y", "n"), ((40,), (41,)))
    task = Task(("text",), "label", "{text}", classes.names)
    shares = {}
    for folds in (0, 3):
        options = TrainOptions(output_dir=Path("unused"), dataset_name="complaints", linear_probe=True, num_folds=folds)
        found = classifier_to_validate(Run(model, options, task, given, None, Callback(), classes=classes))
        assert found is not None
        assert found.linear_probe is not None
        shares[folds] = round(float(found.linear_probe.share), 6)
        means = mean_states(model.prompted, given, classes, batch_size=2)
        expected = fit_probe(means, [0, 1, 0, 1], 2, share=1.0)
        torch.testing.assert_close(found.linear_probe.log_probs(means), expected.log_probs(means))
    assert shares == {0: 0.85, 3: 1.0}
    plain = TrainOptions(output_dir=Path("unused"), dataset_name="complaints", linear_probe=False)
    assert classifier_to_validate(Run(model, plain, task, given, None, Callback(), classes=classes)) is classes


def test_states_are_read_without_scoring_labels(monkeypatch) -> None:
    """With many classes, their labels would be most of the work."""
    torch.manual_seed(1)
    model = get_peft_model(tiny.base("llama"), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=5))
    planned, real = [], score.plan_candidates
    monkeypatch.setattr(score, "plan_candidates", lambda *given: planned.append(real(*given)) or planned[-1])
    mean_states(model.prompted, [Example((7, 8, 9), (), None)], CLASSES, batch_size=3)
    assert [plan.tree.num_tokens for plan in planned] == [5 + 3]


def test_peft_takes_the_folder_as_it_is(place: Path) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    train(options_for(place, output_dir=place / "shared"))
    base = transformers.AutoModelForCausalLM.from_pretrained(place / "base")
    model = peft.PeftModel.from_pretrained(base, str(place / "shared"))
    assert model.prompt_encoder["default"].embedding.weight.shape == (4, 16)


def test_its_loss_is_that_of_a_choice(place: Path) -> None:
    """Per row and among the labels, beside whole label texts of several tokens too; so is that of what it must beat."""
    result = train(options_for(place, output_dir=place / "loss"))
    done = forked("predict", "--adapter", place / "loss", "--input_file", place / "test.csv", "--output_file",
                      place / "loss.jsonl", check=True)  # fmt: skip
    assert done.returncode == 0
    said = [json.loads(line) for line in (place / "loss.jsonl").read_text().splitlines()]
    right = [
        answer["probability"] if answer["predicted_label"] == row["label"] else 1 - answer["probability"]
        for row, answer in zip(rows(8, 16), said, strict=True)
    ]
    assert result is not None
    assert result.metrics.eval_loss == pytest.approx(-sum(map(math.log, right)) / len(right), rel=1e-3)
    assert result.metrics.baselines["untuned prompt"]["eval_loss"] < 5 * math.log(2)


def test_layers_that_cannot_be_told_are_refused_before_training(place: Path, tmp_path: Path) -> None:
    tiny.small("ctrl").save_pretrained(tmp_path / "ctrl")
    for name in (place / "base").glob("*token*"):
        shutil.copy(name, tmp_path / "ctrl")
    with pytest.raises(
        ConfigError, match="CTRLLMHeadModel cannot be captured, so it can have no linear probe; add --no_linear_probe"
    ):
        train(options_for(place, output_dir=tmp_path / "run", model_name_or_path=str(tmp_path / "ctrl")))
    assert not (tmp_path / "run").exists()


def test_a_run_without_it_leaves_none_behind(place: Path) -> None:
    train(options_for(place, output_dir=place / "again"))
    train(options_for(place, output_dir=place / "again", overwrite_output_dir=True, linear_probe=False))
    assert not (place / "again" / PROBE_NAME).exists()


def test_free_text_has_nothing_to_read(place: Path) -> None:
    with pytest.raises(ConfigError, match="linear_probe needs classes"):
        train(options_for(place, output_dir=place / "free", task="generation"))
