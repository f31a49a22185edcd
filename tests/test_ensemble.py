"""Several prompts behind a text: each as if alone; folds against plain loops; files; whole runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tiny
from cli_tools import forked, make_base, rows, write_rows
from softprompt import PromptTuningConfig
from softprompt.config.options import ModelOptions, TrainOptions
from softprompt.data.labels import unique_prefixes
from softprompt.data.task import Task
from softprompt.engine import runner as running
from softprompt.engine.loss import group_log_probs
from softprompt.engine.plans import plan_candidates
from softprompt.engine.runner import backends
from softprompt.engine.text_cache import TextCache
from softprompt.errors import AdapterError, ConfigError, TrainingError
from softprompt.inference.classifier import Classes, label_log_probs, mean_states
from softprompt.inference.ensemble import Ensemble, fit_temperature
from softprompt.inference.load_adapter import load_adapter
from softprompt.inference.score import score_labels
from softprompt.peft.model import PeftModelForCausalLM
from softprompt.storage.record import ENSEMBLE_NAME, PROBE_NAME
from softprompt.training.callbacks import Callback
from softprompt.training.fit_classifier import UNLABELED_WEIGHT, _temperature, self_training_weights
from softprompt.training.folds import FoldData, held_out_scores, make_folds, stratified_folds, train_fold_prompts
from softprompt.training.lr_schedule import lr_multiplier
from softprompt.training.objectives import class_indices
from softprompt.training.pipeline import train
from softprompt.training.run import Run, rows_of_step
from softprompt.types import Example

P = 4
LABELS = [(7, 8, 2), (10, 2), (7, 11, 2)]
SINGLE = [(7,), (10,)]
CLASSES = Classes(("yes", "no"), ((40, 2), (41, 42, 2)))
CPU = torch.device("cpu")


def prompts_for(model: Any, number: int) -> torch.Tensor:
    """``[number, P, D]``."""
    return torch.stack([tiny.prompt_for(model, P, seed=seed).detach() for seed in range(number)])


def texts() -> list[tuple[int, ...]]:
    return [tuple(text.tolist()) for text in tiny.ids(6, 1, 9, 3)] + [()]


@pytest.fixture(params=["packed", "levelwise"])
def backend(request: pytest.FixtureRequest, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param not in backends(tiny.base(family).base_model):
        pytest.skip(f"{family} runs level by level only")
    monkeypatch.setattr(running, "backends", lambda _: (request.param,))


# --- several prompts in one forest ------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [LABELS, SINGLE], ids=["branches", "starts"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "gptj", "opt"])
def test_each_prompt_is_as_if_it_were_alone(family: str, labels: list[tuple[int, ...]], backend: None) -> None:
    """Scores and gradients in float64; not every prompt stands behind every text."""
    with tiny.float64():
        model = tiny.base(family, torch.float64)
        prompts = prompts_for(model, 3).requires_grad_()
        which = [[0, 1, 2], [2], [1, 0], [], [0, 2]]
        plan = plan_candidates(P, texts(), labels, CPU, which)
        together = group_log_probs(model, plan, prompts.flatten(0, 1)).view(-1, len(labels))
        alone = []
        for text, mine in zip(texts(), which, strict=True):
            for prompt in mine:
                one = plan_candidates(P, [text], labels, CPU, [[0]])
                alone.append(group_log_probs(model, one, prompts[prompt]))
        expected = torch.stack(alone)
        torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-9)
        weights = torch.linspace(-1, 1, expected.numel()).view_as(expected)
        ours, theirs = (torch.autograd.grad((found * weights).sum(), prompts)[0] for found in (together, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_scores_of_several_prompts(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.base(family)
    prompts = prompts_for(model, 3)
    expected = torch.stack([score_labels(model, each, texts(), LABELS, placement="suffix") for each in prompts], 1)
    torch.testing.assert_close(
        score_labels(model, prompts, texts(), LABELS, placement="suffix"), expected, rtol=1e-4, atol=1e-4
    )
    monkeypatch.setattr("softprompt.inference.score.TOKENS_PER_CALL", 40)
    means: list[torch.Tensor] = []
    again = score_labels(model, prompts, texts(), LABELS, means=means, placement="suffix")
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)
    plain: list[torch.Tensor] = []
    score_labels(model, prompts[0], texts(), LABELS, means=plain, placement="suffix")
    torch.testing.assert_close(torch.cat(means), torch.cat(plain), rtol=1e-3, atol=1e-4)


def test_short_prompts_behind_one_text_share_a_block() -> None:
    """Or a step of many prompts would be many small products."""
    from softprompt.engine.backends.attention_cpu import Packing

    plan = plan_candidates(P, [(5, 6, 7)], SINGLE, CPU, [range(5)])
    blocks = Packing(plan.tree, frozenset({0}), CPU).blocks
    assert [len(block) for block in blocks] == [5 * P]


# --- the joint answer -----------------------------------------------------------------------------------------


def test_joint_answer_and_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scores = torch.randn(7, 3, 4) - 5
    ensemble = Ensemble(torch.randn(2, P, 6), torch.tensor(1.7))
    expected = torch.stack([row.softmax(-1).log().mean(0) / 1.7 for row in scores]).log_softmax(-1)
    torch.testing.assert_close(ensemble.join(scores), expected)
    ensemble.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [ENSEMBLE_NAME]
    again = Ensemble.read(tmp_path / ENSEMBLE_NAME, 6)
    assert torch.equal(again.prompts, ensemble.prompts)
    assert torch.equal(again.temperature, ensemble.temperature)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": torch.zeros(2, P, 5)}, "does not fit the base model"),
        ({"prompts": torch.zeros(0, P, 6)}, "does not fit the base model"),
        ({"prompts": torch.zeros(P, 6)}, "does not fit the base model"),
        ({"prompts": torch.full((2, P, 6), torch.nan)}, "NaN"),
        ({"temperature": torch.tensor(0.0)}, "temperature"),
        ({"temperature": torch.ones(2)}, "temperature"),
        ({"more": torch.ones(2)}, "must hold prompts, temperature"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, change: dict[str, torch.Tensor], message: str) -> None:
    path = tmp_path / ENSEMBLE_NAME
    save_file({"prompts": torch.zeros(2, P, 6), "temperature": torch.tensor(1.0)} | change, path)
    with pytest.raises(AdapterError, match=message):
        Ensemble.read(path, 6)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / ENSEMBLE_NAME).write_bytes(b"nothing")
    with pytest.raises(AdapterError, match="cannot be read"):
        Ensemble.read(tmp_path / ENSEMBLE_NAME, 6)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_is_found(temperature: float) -> None:
    """Answers drawn from the model's own probabilities, then made surer or less sure than they should be."""
    torch.manual_seed(1)
    honest = torch.randn(4000, 3).log_softmax(-1)
    gold = torch.distributions.Categorical(logits=honest).sample().tolist()
    assert fit_temperature(honest * temperature, gold) == pytest.approx(temperature, rel=0.2)


@given(
    st.lists(
        st.lists(st.integers(0, 3), min_size=1, max_size=4).map(lambda x: (*x, 9)), min_size=2, max_size=6, unique=True
    )
)
def test_starts_tell_labels_apart(labels: list[tuple[int, ...]]) -> None:
    starts = unique_prefixes(labels)
    for i, (start, label) in enumerate(zip(starts, labels, strict=True)):
        assert label[: len(start)] == start
        others = [other for j, other in enumerate(labels) if j != i]
        assert all(other[: len(start)] != start for other in others)
        assert len(start) == 1 or any(other[: len(start) - 1] == start[:-1] for other in others)


# --- folds --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.integers(2, 6), st.integers(0, 9))
def test_parts_are_even(gold: list[int], number: int, seed: int) -> None:
    parts = stratified_folds(gold, number, seed)
    sizes = [parts.count(part) for part in range(number)]
    assert max(sizes) - min(sizes) <= 1
    for each in set(gold):
        mine = [
            sum(1 for part, label in zip(parts, gold, strict=True) if part == k and label == each)
            for k in range(number)
        ]
        assert max(mine) - min(mine) <= 1
    assert stratified_folds(gold, number, seed) == parts


def make_run(folder: Path, *, texts: TextCache | None = None, **options: Any) -> Run:
    values = {"fold_epochs": 2, "per_device_train_batch_size": 4, "num_virtual_tokens": P, "num_folds": 3}
    values |= {"objective": "classes", "fold_learning_rate": 0.1, "weight_decay": 0.0}
    chosen = TrainOptions(output_dir=folder, **{**values, **options})
    config = PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=P, prompt_placement="suffix")
    torch.manual_seed(0)
    model = PeftModelForCausalLM(tiny.base("llama"), config)
    found = [tuple(text.tolist()) for text in tiny.ids(5, 3, 8, 2, 6, 4, 7, 3, 5, 6)]
    names = ["yes", "no", "no", "yes", "no", "no", "yes", "no", "no", "no"]
    given = [
        Example(text, CLASSES.ids[CLASSES.names.index(name)], name) for text, name in zip(found, names, strict=True)
    ]
    task = Task(("text",), "label", "{text}", labels=CLASSES.names)
    return Run(model, chosen, task, given, None, Callback(), texts=texts, classes=CLASSES)


def plain_score(model: Any, prompt: torch.Tensor, text: tuple[int, ...], label: tuple[int, ...]) -> torch.Tensor:
    """Log-probability of a label behind text and prompt, by one plain call."""
    embed = model.get_input_embeddings()
    together = torch.cat([embed(torch.tensor(text)), prompt, embed(torch.tensor(label))])
    logits = model(inputs_embeds=together[None], use_cache=False).logits[0, len(text) + len(prompt) - 1 : -1]
    return -F.cross_entropy(logits, torch.tensor(label), reduction="sum")


@pytest.mark.parametrize(("weights", "max_steps"), [("none", -1), ("balanced", 99), ("none", 4)])
def test_folds_learn_as_if_they_were_alone(tmp_path: Path, weights: str, max_steps: int) -> None:
    """Each prompt against a plain loop of its own over the rows that it may see; ``max_steps`` only shortens it."""
    run = make_run(tmp_path, class_weights=weights, max_grad_norm=0.5, max_steps=max_steps)
    steps = 4 if max_steps == 4 else 6
    start = tiny.prompt_for(run.model.base_model, P).detach()
    data = make_folds(run, CLASSES)
    prompts = train_fold_prompts(run, CLASSES, data, start, "three prompts")
    gold = class_indices(run.examples, CLASSES)
    allowed = data.weights > 0
    assert allowed.shape == (3, 10)
    assert (~allowed).sum(0).tolist() == [1] * 10
    for found, inside in zip(prompts, allowed, strict=True):
        prompt = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([prompt], weight_decay=0.0)
        counts = [sum(1 for row in range(10) if inside[row] and gold[row] == each) for each in range(2)]
        factor = [sum(counts) / 2 / count if weights == "balanced" else 1.0 for count in counts]
        for step in range(steps):
            mine = rows_of_step(run, step, 10)
            loss = torch.zeros(())
            for row in (row for row in mine if inside[row]):
                scores = [
                    plain_score(run.model.base_model, prompt, run.examples[row].input_ids, ids) for ids in CLASSES.ids
                ]
                loss = loss - factor[gold[row]] * torch.stack(scores).log_softmax(0)[gold[row]] / len(mine)
            optimizer.zero_grad()
            loss.backward() if loss.requires_grad else None
            if prompt.grad is None:
                prompt.grad = torch.zeros_like(prompt)
            torch.nn.utils.clip_grad_norm_([prompt], 0.5)
            optimizer.param_groups[0]["lr"] = 0.1 * lr_multiplier(step, steps, run.options)
            optimizer.step()
        torch.testing.assert_close(found, prompt.detach(), rtol=1e-3, atol=1e-4)
    scored, means = held_out_scores(run, prompts, data, CLASSES)
    for row, said in enumerate(scored):
        blind = prompts[~allowed[:, row]][0]
        scores = [plain_score(run.model.base_model, blind, run.examples[row].input_ids, ids) for ids in CLASSES.ids]
        torch.testing.assert_close(said, torch.stack(scores).log_softmax(0).detach(), rtol=1e-3, atol=1e-3)
        ids = torch.tensor([run.examples[row].input_ids])
        states = run.model.base_model(ids, output_hidden_states=True).hidden_states
        torch.testing.assert_close(means[row, 0], states[1][0, 1:].mean(0).detach(), rtol=1e-3, atol=1e-3)


def test_repeats_cut_anew_and_packs_change_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, fold_repeats=2)
    start = tiny.prompt_for(run.model.base_model, P).detach()
    data = make_folds(run, CLASSES)
    assert data.weights.shape == (6, 10)
    assert (data.weights == 0).sum(0).tolist() == [2] * 10
    assert not torch.equal(data.weights[:3], data.weights[3:])
    prompts = train_fold_prompts(run, CLASSES, data, start, "prompts")
    with TextCache(run.model.base_model, 1 << 30) as kept:
        small = make_run(tmp_path, fold_repeats=2, tokens_per_pack=1, texts=kept)
        torch.testing.assert_close(
            train_fold_prompts(small, CLASSES, data, start, "prompts"), prompts, rtol=1e-4, atol=1e-5
        )


def test_soft_targets(tmp_path: Path) -> None:
    """A row with the target (.25, .75) is a quarter of a row of one class and three quarters of one of the other."""
    run = make_run(tmp_path, per_device_train_batch_size=40, fold_epochs=3)
    start = tiny.prompt_for(run.model.base_model, P).detach()
    targets = torch.tensor([[0.25, 0.75]] * 10)
    soft = train_fold_prompts(run, CLASSES, FoldData(run.examples, targets, torch.ones(1, 10)), start, "a prompt")
    twice = [*run.examples, *run.examples]
    hard = torch.eye(2)[[0] * 10 + [1] * 10]
    weights = torch.tensor([[0.25] * 10 + [0.75] * 10])
    split = train_fold_prompts(run, CLASSES, FoldData(twice, hard, weights), start, "a prompt")
    torch.testing.assert_close(soft, split, rtol=1e-3, atol=1e-4)


def test_rows_without_labels_count_as_their_classes_do() -> None:
    """Two rows of one class and one of another, balanced: .75 and 1.5. The second prompt has not seen a row of each."""
    targets = torch.eye(2)[[0, 0, 1]]
    own = torch.tensor([[0.75, 0.75, 1.5], [2.0, 0.0, 0.0]])
    said = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    found = self_training_weights(own, targets, said)
    assert torch.equal(found[:, :3], own)
    torch.testing.assert_close(found[:, 3:] / UNLABELED_WEIGHT, torch.tensor([[0.75, 1.125], [2.0, 1.0]]))


def test_a_rate_that_is_too_high(tmp_path: Path) -> None:
    run = make_run(tmp_path, fold_learning_rate=1e38)
    start, data = tiny.prompt_for(run.model.base_model, P).detach(), make_folds(run, CLASSES)
    with pytest.raises(TrainingError, match="Lower fold_learning_rate"):
        train_fold_prompts(run, CLASSES, data, start, "prompts")


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ensemble")
    make_base(place / "base")
    write_rows(place / "train.csv", rows(20))
    write_rows(place / "test.csv", rows(9, 20))
    return place


def options_for(place: Path, **changes: Any) -> TrainOptions:
    values = {"model_name_or_path": str(place / "base"), "train_file": place / "train.csv", "num_train_epochs": 2}
    values |= {
        "test_file": place / "test.csv",
        "num_virtual_tokens": P,
        "num_folds": 3,
        "fold_repeats": 1,
        "fold_epochs": 2,
    }
    return TrainOptions(**{**values, "recipe": "best", "output_dir": place / "run", **changes})


@pytest.mark.parametrize("placement", ["prefix", pytest.param("suffix", marks=pytest.mark.heavy)])
def test_the_best_recipe_from_training_to_prediction(place: Path, placement: str) -> None:
    folder = place / placement
    result = train(options_for(place, output_dir=folder, prompt_placement=placement))
    assert result is not None
    assert result.metrics is not None
    assert load_file(folder / ENSEMBLE_NAME)["prompts"].shape == (3, P, 16)
    assert (folder / PROBE_NAME).is_file()
    forked("evaluate", "--adapter", folder, "--test_file", place / "test.csv", "--output_dir", place, check=True)
    found = json.loads((place / "metrics.json").read_text())
    assert found["eval_loss"] == pytest.approx(result.metrics.eval_loss, rel=1e-4)
    assert found["confusion_matrix"] == [list(row) for row in result.metrics.confusion_matrix]
    shown = forked("inspect", folder, check=True).stdout
    assert f"ensemble    3 suffix prompts of {P} virtual tokens" in shown
    assert "weight 50%" in shown
    output = place / "answers.jsonl"
    forked("predict", "--adapter", folder, "--input_file", place / "test.csv", "--output_file", output, check=True)
    said = [json.loads(line)["predicted_label"] for line in output.read_text().splitlines()]
    matrix = [[0, 0], [0, 0]]
    for row, answer in zip(rows(9, 20), said, strict=True):
        matrix[found["labels"].index(row["label"])][found["labels"].index(answer)] += 1
    assert matrix == found["confusion_matrix"]


def test_a_few_steps_bound_all_prompts(place: Path) -> None:
    """So that ``--recipe best --max_steps 2`` is a quick try."""
    steps: Counter[str] = Counter()

    class Steps(Callback):
        def on_step_end(self, step: int, loss: float) -> None:
            steps["prompt"] += 1

        @contextmanager
        def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
            yield lambda done: steps.update({description: done})

    result = train(options_for(place, output_dir=place / "few", max_steps=2, fold_epochs=9), Steps())
    assert result is not None
    assert (steps["prompt"], steps["training 3 fold prompts"], result.state.global_step) == (2, 2, 2)


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_all_voices_are_heard(place: Path, placement: str) -> None:
    """The predictions, from the prompts one by one and the linear probe."""
    train(options_for(place, output_dir=place / "parts", prompt_placement=placement, overwrite_output_dir=True))
    prompted = load_adapter(str(place / "parts"), ModelOptions())
    assert prompted.ensemble is not None
    assert prompted.linear_probe is not None
    assert prompted.task.label_scoring == "unique_prefix"
    encoder = prompted.encoder(prompted.task)
    from softprompt.data.formats import read_rows

    given = encoder.encode_all(list(read_rows(place / "test.csv")), with_label=False)
    classes = prompted.classes(encoder)
    assert classes is not None
    assert all(len(ids) == 1 for ids in classes.ids)
    joint = label_log_probs(prompted.model, given, classes, batch_size=4)
    alone = replace(classes, linear_probe=None, ensemble=None)
    inputs = [classes.text_of(example) for example in given]
    assert (inputs != [example.input_ids for example in given]) == (placement == "prefix")
    parts = [
        score_labels(prompted.model.base, prompt, inputs, classes.ids, placement="suffix").log_softmax(-1)
        for prompt in prompted.ensemble.prompts
    ]
    said = (torch.stack(parts).mean(0) / prompted.ensemble.temperature).log_softmax(-1)
    means = mean_states(prompted.model, given, alone, batch_size=4)
    expected = (0.5 * said + 0.5 * prompted.linear_probe.log_probs(means)).log_softmax(-1)
    torch.testing.assert_close(joint, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_how_sure_the_members_are_is_learned(place: Path, monkeypatch: pytest.MonkeyPatch, placement: str) -> None:
    """The temperatures in the files are those fitted to held-out rows: one of the ensemble, one of the linear probe."""
    asked: list[torch.Tensor] = []

    def watched(said: torch.Tensor, gold: list[int]) -> float:
        asked.append(said)
        return 2.5 * len(asked)

    given = {"prompt_placement": placement, "seed": 1}
    train(options_for(place, output_dir=place / f"plain_{placement}", linear_probe=True, num_folds=0, **given))
    monkeypatch.setattr("softprompt.training.fit_classifier.fit_temperature", watched)
    train(options_for(place, output_dir=place / f"sure_{placement}", **given))
    assert [said.shape for said in asked] == [(20, 2)] * 2
    assert float(load_file(place / f"sure_{placement}" / ENSEMBLE_NAME)["temperature"]) == 2.5
    plain, cooled = (load_file(place / f"{name}_{placement}" / PROBE_NAME)["weight"] for name in ("plain", "sure"))
    torch.testing.assert_close(cooled, plain / 5.0, rtol=1e-3, atol=1e-7)


def test_rows_whose_class_nobody_knew_do_not_count() -> None:
    said = torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]]).log_softmax(-1)
    assert _temperature(said, [0, 0, 1]) == fit_temperature(said[:2], [0, 0])
    assert _temperature(said[:2], [0, 1]) == 1.0


def test_a_resumed_run_leaves_no_older_voices(place: Path) -> None:
    folder = place / "resumed"
    train(options_for(place, output_dir=folder))
    train(options_for(place, output_dir=folder, resume_from_checkpoint="last", num_folds=0, linear_probe=False))
    assert not (folder / ENSEMBLE_NAME).exists()
    assert not (folder / PROBE_NAME).exists()
    train(options_for(place, output_dir=folder, resume_from_checkpoint="last", num_train_epochs=3))
    assert load_file(folder / ENSEMBLE_NAME)["prompts"].shape == (3, P, 16)


def test_a_run_goes_on_with_the_same_classes_only(place: Path) -> None:
    train(options_for(place, output_dir=place / "classes", num_folds=0))
    more = {"labels": ["yes", "no", "maybe"], "resume_from_checkpoint": "last", "num_train_epochs": 3}
    with pytest.raises(ConfigError):
        train(options_for(place, output_dir=place / "classes", num_folds=0, **more))


def test_one_row_has_none_to_leave_out(place: Path) -> None:
    write_rows(place / "one.csv", rows(1))
    with pytest.raises(ConfigError, match="num_folds needs at least 2 training rows"):
        train(options_for(place, output_dir=place / "one", train_file=place / "one.csv", labels=["yes", "no"]))


def test_a_run_without_it_leaves_none_behind(place: Path) -> None:
    train(options_for(place, output_dir=place / "again"))
    train(options_for(place, output_dir=place / "again", overwrite_output_dir=True, num_folds=0))
    assert not (place / "again" / ENSEMBLE_NAME).exists()


def test_rows_without_labels_teach_more_prompts(place: Path) -> None:
    write_rows(place / "new.csv", [{"text": row["text"]} for row in rows(11, 40)])
    train(options_for(place, output_dir=place / "taught", unlabeled_file=place / "new.csv"))
    assert load_file(place / "taught" / ENSEMBLE_NAME)["prompts"].shape == (6, P, 16)
    train(options_for(place, output_dir=place / "alone"))
    ours, theirs = (load_file(place / name / ENSEMBLE_NAME)["prompts"] for name in ("taught", "alone"))
    assert torch.equal(ours[:3], theirs)
    assert not torch.allclose(ours[3:], theirs)
