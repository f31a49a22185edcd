"""The training loop beside an independent one, and what it promises: best prompt, resuming, stopping, files."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import softprompt.inference.evaluate
import softprompt.training.step as step_module
import tiny
from cli_tools import make_base, rows, write_rows
from softprompt.config.adapter_config import PromptTuningConfig
from softprompt.config.options import OptimizerOptions, TrainOptions
from softprompt.data.task import Task
from softprompt.engine.text_cache import TextCache
from softprompt.errors import AdapterError, ConfigError, SoftPromptError, TrainingError
from softprompt.inference.classifier import Classes, label_log_probs
from softprompt.inference.evaluate import classification_metrics, eval_loss, evaluate_examples
from softprompt.inference.score import score_labels
from softprompt.peft.model import PeftModelForCausalLM
from softprompt.storage.adapter import START_NAME, read_prompt, write_prompt
from softprompt.storage.atomic import write_folder, write_text
from softprompt.storage.record import Metrics, TrainerState
from softprompt.training.callbacks import Callback
from softprompt.training.checkpoint import checkpoints, write_checkpoint
from softprompt.training.loop import fit
from softprompt.training.lr_schedule import lr_multiplier, num_warmup_steps
from softprompt.training.pipeline import train
from softprompt.training.run import Run, batches_of_step
from softprompt.types import Example

P = 3
TASK = Task(("text",), "label", "{text}", labels=("yes", "no"))
CLASSES = Classes(("yes", "no"), ((40, 2), (41, 42, 2)))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def examples(number: int = 10, seed: int = 3) -> list[Example]:
    texts = tiny.ids(*(2 + (5 * i) % 7 for i in range(number)), seed=seed)
    return [Example(tuple(text.tolist()), CLASSES.ids[i % 2], CLASSES.names[i % 2]) for i, text in enumerate(texts)]


def make_run(folder: Path, *, callback: Callback | None = None, **options: Any) -> Run:
    """A run on a tiny Llama: 10 rows, 2 a batch, 2 epochs unless told otherwise."""
    values = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "num_virtual_tokens": P, "logging_steps": 1}
    chosen = TrainOptions(output_dir=folder, **{**values, "eval_strategy": "epoch", **options})
    torch.manual_seed(0)
    config = PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=P, prompt_tuning_init="SAMPLE_VOCAB")
    model = PeftModelForCausalLM(tiny.base("llama"), config)
    return Run(model, chosen, TASK, examples(), None, callback or Callback())


class Watch(Callback):
    """Keeps the prompt after each step, and may interrupt."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.run: Run
        self.losses: list[float] = []
        self.prompts: list[torch.Tensor] = []
        self.stop_after = stop_after

    def on_step_end(self, step: int, loss: float) -> None:
        self.losses.append(loss)
        self.prompts.append(self.run.model.prompt.detach().clone())
        if step == self.stop_after:
            raise KeyboardInterrupt


def watched(folder: Path, stop_after: int | None = None, **options: Any) -> tuple[Run, Watch]:
    watch = Watch(stop_after)
    watch.run = make_run(folder, callback=watch, **options)
    return watch.run, watch


def with_scores(run: Run, scores: list[dict[str, float]]) -> Run:
    """The run with a validation that gives these scores, one after the other."""
    remaining = iter(scores)
    return replace(run, validate=lambda: Metrics(num_examples=1, **next(remaining)))


# --- the loop beside a plain one --------------------------------------------------------------------


def plain_loop(run: Run, start: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """Every row alone through the model, torch's AdamW, transformers' schedule."""
    options = run.options
    prompt = start.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([prompt], lr=options.learning_rate, weight_decay=options.weight_decay)
    warmup = transformers.TrainingArguments(
        warmup_steps=options.warmup_steps or options.warmup_ratio, report_to="none"
    ).get_warmup_steps(run.max_steps)
    scheduler = transformers.get_scheduler(options.lr_scheduler_type, optimizer, warmup, run.max_steps)
    losses = []
    for step in range(run.max_steps):
        step_rows = [example for batch in batches_of_step(run, step) for example in batch]
        found = []
        for example in step_rows:
            ids = torch.tensor([*example.input_ids, *example.label_ids])
            labels = torch.tensor([-100] * len(example.input_ids) + [*example.label_ids])
            found.append(tiny.plain_losses(tiny.base("llama"), prompt, ids, labels))
        loss = torch.cat(found).mean()
        loss.backward()
        if options.max_grad_norm:
            torch.nn.utils.clip_grad_norm_([prompt], options.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return prompt.detach(), losses


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr_scheduler_type": "cosine", "warmup_ratio": 0.2, "gradient_accumulation_steps": 2},
        {"max_grad_norm": 0.1, "per_device_train_batch_size": 4, "weight_decay": 0.1},
        {"max_steps": 7, "warmup_steps": 3},
        {"max_steps": 12, "warmup_steps": 0.25, "warmup_ratio": 0.9},
        {"num_train_epochs": 1.5, "lr_scheduler_type": "cosine"},
    ],
    ids=["plain", "warmed_up_and_accumulated", "clipped", "steps", "many_steps", "part_of_an_epoch"],
)
def test_it_trains_as_a_plain_loop_does(tmp_path: Path, options: dict[str, Any]) -> None:
    run, watch = watched(tmp_path, **options)
    start = run.model.prompt.detach().clone()
    state = fit(run)
    prompt, losses = plain_loop(run, start)
    assert state.global_step == run.max_steps == len(losses)
    torch.testing.assert_close(run.model.prompt.detach(), prompt, rtol=0, atol=1e-6)
    assert watch.losses == pytest.approx(losses, rel=1e-6)
    assert not torch.allclose(prompt, start, atol=1e-2)


def plain_choice_loop(run: Run, start: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """Cross-entropy between the labels' texts, every (row, label) alone through the model."""
    options, base = run.options, tiny.base("llama")
    suffix = options.prompt_placement == "suffix"
    prompt = start.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([prompt], lr=options.learning_rate, weight_decay=options.weight_decay)
    scheduler = transformers.get_scheduler(options.lr_scheduler_type, optimizer, 0, run.max_steps)
    losses = []
    for step in range(run.max_steps):
        found = []
        for example in (example for batch in batches_of_step(run, step) for example in batch):
            scores = []
            for label in CLASSES.ids:
                text, answer = (base.get_input_embeddings()(torch.tensor(ids)) for ids in (example.input_ids, label))
                embeds = torch.cat([text, prompt, answer] if suffix else [prompt, text, answer])
                logits = base(inputs_embeds=embeds[None]).logits[0, -len(label) - 1 : -1]
                scores.append(-torch.nn.functional.cross_entropy(logits, torch.tensor(label), reduction="sum"))
            gold = torch.tensor(CLASSES.names.index(str(example.label)))
            found.append(torch.nn.functional.cross_entropy(torch.stack(scores), gold))
        loss = torch.stack(found).mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return prompt.detach(), losses


@pytest.mark.parametrize("more", [{}, {"tokens_per_pack": 9}, {"gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize("placement", ["prefix", "suffix"])
@pytest.mark.parametrize("known", [False, True])
def test_training_to_tell_classes_apart(tmp_path: Path, placement: str, known: bool, more: dict[str, Any]) -> None:
    if placement == "prefix" and known:
        pytest.skip("a text behind the prompt cannot be known")
    run, watch = watched(tmp_path, objective="classes", prompt_placement=placement, **more)
    config = replace(run.config, prompt_placement=placement, peft_type=None)
    torch.manual_seed(0)
    texts = TextCache(tiny.base("llama"), 1 << 30) if known else None
    run = replace(run, model=PeftModelForCausalLM(tiny.base("llama"), config), classes=CLASSES, texts=texts)
    start = run.model.prompt.detach().clone()
    fit(run)
    prompt, losses = plain_choice_loop(run, start)
    torch.testing.assert_close(run.model.prompt.detach(), prompt, rtol=0, atol=1e-5)
    assert watch.losses == pytest.approx(losses, rel=1e-5)
    assert not torch.allclose(prompt, start, atol=1e-2)


def test_runs_of_another_objective_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, objective=objective) for objective in ("language_modeling", "classes")]
    assert runs[0].fingerprint != runs[1].fingerprint


def test_rows_come_once_an_epoch_and_in_a_new_order(tmp_path: Path) -> None:
    run = make_run(tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    assert (run.rows_per_step, run.steps_per_epoch, run.max_steps) == (6, 2, 4)
    order = [
        [example for step in steps for batch in batches_of_step(run, step) for example in batch]
        for steps in ((0, 1), (2, 3))
    ]
    assert [len(batch) for step in (0, 1) for batch in batches_of_step(run, step)] == [3, 3, 3, 1]
    for epoch in order:
        assert sorted(epoch, key=repr) == sorted(run.examples, key=repr)
    assert order[0] != order[1]


def test_accumulation_equals_one_big_batch(tmp_path: Path) -> None:
    """The last batch of an epoch is smaller, and rows have labels of different lengths: a mean of means is off."""
    small, small_watch = watched(tmp_path / "a", per_device_train_batch_size=2, gradient_accumulation_steps=3)
    big, big_watch = watched(tmp_path / "b", per_device_train_batch_size=6)
    fit(small)
    fit(big)
    torch.testing.assert_close(small.model.prompt, big.model.prompt, rtol=0, atol=1e-6)
    assert small_watch.losses == pytest.approx(big_watch.losses, rel=1e-6)


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_the_schedule_is_that_of_transformers(kind: str, warmup_ratio: float) -> None:
    options = OptimizerOptions(learning_rate=0.3, lr_scheduler_type=kind, warmup_ratio=warmup_ratio)
    steps = 17
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = transformers.get_scheduler(kind, optimizer, math.ceil(warmup_ratio * steps), steps)
    theirs = []
    for _ in range(steps):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [0.3 * lr_multiplier(step, steps, options) for step in range(steps)] == pytest.approx(
        theirs, rel=0, abs=1e-15
    )


@pytest.mark.parametrize("warmup_steps", [0, 0.5, 1, 4.9, 40])
def test_warm_up_in_steps_is_that_of_transformers(warmup_steps: float) -> None:
    options = OptimizerOptions(learning_rate=1.0, warmup_steps=warmup_steps, warmup_ratio=0.0)
    theirs = transformers.TrainingArguments(warmup_steps=warmup_steps, report_to="none").get_warmup_steps(17)
    assert num_warmup_steps(17, options) == min(theirs, 17)


def test_a_run_of_steps_ends_as_an_epoch_does(tmp_path: Path) -> None:
    """Five steps an epoch, seven in all: the last two are validated and saved too."""
    run = replace(make_run(tmp_path, max_steps=7), validate=lambda: Metrics(num_examples=1, macro_f1=0.5, eval_loss=1))
    state = fit(run)
    assert (state.global_step, state.epoch, state.max_steps, state.num_train_epochs) == (7, 1.4, 7, 2)
    assert [(record.step, record.epoch, record.eval_loss) for record in state.history] == [(5, 1, 1), (7, 1.4, 1)]
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-7"]
    losses = [line["loss"] for line in log_of(tmp_path) if "loss" in line]
    assert state.history[1].train_loss == pytest.approx(sum(losses[5:]) / 2, rel=0.2)


def test_the_base_is_left_as_it_was(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = digest(run.model.base_model)
    fit(run)
    assert digest(run.model.base_model) == before
    assert all(p.grad is None and not p.requires_grad for p in run.model.base_model.parameters())


def digest(model: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


# --- which prompt is kept ---------------------------------------------------------------------------


def scores(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"macro_f1": f1, "accuracy": 1 - f1, "eval_loss": loss} for f1, loss in pairs]


@pytest.mark.parametrize(
    ("metric", "found", "best"),
    [
        ("macro_f1", scores((0.2, 1.0), (0.7, 2.0), (0.5, 0.5)), 2),
        ("macro_f1", scores((0.7, 2.0), (0.7, 1.0), (0.7, 1.0)), 2),  # a tie: the lower loss, then the earlier
        ("accuracy", scores((0.2, 1.0), (0.7, 2.0), (0.5, 0.5)), 1),
        ("eval_loss", scores((0.2, 1.0), (0.7, 2.0), (0.5, 0.5)), 3),
        ("eval_loss", scores((0.2, math.nan), (0.7, 2.0), (0.5, 2.5)), 2),
        ("macro_f1", scores((0.7, math.nan), (0.7, 2.0), (0.6, 0.5)), 2),
    ],
)
def test_the_best_prompt_is_kept(tmp_path: Path, metric: str, found: list[dict[str, float]], best: int) -> None:
    run, watch = watched(tmp_path, num_train_epochs=3, metric_for_best_model=metric)
    run = with_scores(run, found)
    state = fit(run)
    step = best * run.steps_per_epoch
    assert (state.best_step, state.best_model_checkpoint) == (step, f"checkpoint-{step}")
    assert run.model.prompt.equal(watch.prompts[step - 1])
    assert read_prompt(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors").equal(run.model.prompt)


def test_the_last_prompt_is_kept_if_asked(tmp_path: Path) -> None:
    run, watch = watched(tmp_path, load_best_model_at_end=False)
    state = fit(with_scores(run, scores((0.9, 1.0), (0.1, 2.0))))
    assert state.best_step == 5
    assert run.model.prompt.equal(watch.prompts[-1])


def test_the_best_prompt_really_validates_best(tmp_path: Path) -> None:
    """With a real validation: no epoch's prompt scores better than the one that is kept."""
    held_out = examples(8, seed=9)
    run, watch = watched(tmp_path, num_train_epochs=5, learning_rate=0.3)
    run = replace(run, validate=lambda: evaluate_examples(run.model.prompted, held_out, CLASSES, batch_size=4))
    state = fit(run)
    kept = evaluate_examples(run.model.prompted, held_out, CLASSES, batch_size=4)
    ends = watch.prompts[run.steps_per_epoch - 1 :: run.steps_per_epoch]
    ranks = []
    for prompt in ends:
        with torch.no_grad():
            run.model.prompt.copy_(prompt)
        metrics = evaluate_examples(run.model.prompted, held_out, CLASSES, batch_size=4)
        ranks.append((metrics.macro_f1, -(metrics.eval_loss or 0)))
    assert max(ranks) == (kept.macro_f1, -(kept.eval_loss or 0))
    assert state.best_metric == kept.macro_f1


@pytest.mark.parametrize(("limit", "kept"), [(1, {5, 20}), (2, {5, 15, 20}), (None, {5, 10, 15, 20})])
def test_the_best_checkpoint_is_spared(tmp_path: Path, limit: int | None, kept: set[int]) -> None:
    run = make_run(tmp_path, num_train_epochs=4, save_total_limit=limit)
    fit(with_scores(run, scores((0.9, 1.0), (0.1, 1.0), (0.2, 1.0), (0.3, 1.0))))
    assert {path.name for path in checkpoints(tmp_path)} == {f"checkpoint-{step}" for step in kept}


# --- resuming ---------------------------------------------------------------------------------------


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock decides."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("stop_after", [4, 7, 12])
@pytest.mark.parametrize("length", [{"num_train_epochs": 3}, {"max_steps": 15}], ids=str)
def test_resuming_is_exact(tmp_path: Path, length: dict[str, int], stop_after: int) -> None:
    """Interrupted in the middle of an epoch, gone on from a checkpoint some steps back: the same to the bit."""
    options = {**length, "save_strategy": "steps", "save_steps": 3, "learning_rate": 0.3}

    def validating(run: Run) -> Run:
        return replace(
            run, validate=lambda: evaluate_examples(run.model.prompted, examples(6, seed=9), CLASSES, batch_size=4)
        )

    whole = validating(make_run(tmp_path / "whole", **options))
    expected = fit(whole)
    cut, _ = watched(tmp_path / "cut", stop_after, **options)
    with pytest.raises(KeyboardInterrupt):
        fit(validating(cut))
    torch.manual_seed(99)
    again = validating(make_run(tmp_path / "cut", **options))
    state = fit(replace(again, resume_from=checkpoints(tmp_path / "cut")[-1]))
    assert again.model.prompt.equal(whole.model.prompt)
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")
    assert (state.best_step, state.best_metric) == (expected.best_step, expected.best_metric)
    assert state.partial_epoch is None
    last = (f"checkpoint-{expected.global_step}", "optimizer.safetensors")
    assert tmp_path.joinpath("cut", *last).read_bytes() == tmp_path.joinpath("whole", *last).read_bytes()


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    """Same shape, other rows or options: it would go on without a word, to other numbers."""
    fit(make_run(tmp_path))
    last = checkpoints(tmp_path)[-1]
    same: dict[str, Any] = {"num_train_epochs": 3, "eval_strategy": "no", "learning_rate": 0.1, "logging_steps": 2}
    assert fit(replace(make_run(tmp_path, **same), resume_from=last)).global_step == 15
    others = [make_run(tmp_path, seed=1), make_run(tmp_path, gradient_accumulation_steps=2)]
    others += [replace(make_run(tmp_path), examples=rows) for rows in (examples(seed=4), examples(9))]
    other_base = make_run(tmp_path)
    other_base.config.base_model_name_or_path = "another/one"
    for other in (*others, other_base):
        before = other.model.prompt.detach().clone()
        with pytest.raises(ConfigError, match="other training rows or options; resume with the same rows"):
            fit(replace(other, resume_from=last))
        assert other.model.prompt.equal(before)


def test_a_checkpoint_of_an_older_release_is_taken(tmp_path: Path) -> None:
    fit(make_run(tmp_path, num_train_epochs=1))
    path = checkpoints(tmp_path)[-1] / "trainer_state.json"
    values = json.loads(path.read_text())
    for name in ("fingerprint", "partial_epoch", "num_train_examples"):
        del values[name]
    path.write_text(json.dumps(values))
    state = fit(replace(make_run(tmp_path), resume_from=path.parent))
    assert state.global_step == 10
    assert state.fingerprint == make_run(tmp_path).fingerprint
    assert state.num_train_examples == 10


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path, num_train_epochs=1)
    fit(run)
    folder = checkpoints(tmp_path)[-1]
    (folder / name).write_bytes((folder / name).read_bytes()[:-8])
    with pytest.raises(SoftPromptError, match=name):
        fit(replace(make_run(tmp_path), resume_from=folder))
    (folder / name).unlink()
    with pytest.raises(AdapterError, match=name):
        fit(replace(make_run(tmp_path), resume_from=folder))


# --- numbers that are not finite --------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, at_call: int, how: str) -> None:
    """Make one call of the loss go wrong."""
    real, calls = step_module.summed_loss, iter(range(1000))

    def losses(base: Any, packs: Any, prompt: torch.Tensor) -> torch.Tensor:
        found = real(base, packs, prompt)
        if next(calls) != at_call:
            return found
        return found * math.nan if how == "loss" else found + (prompt * 0).sum().sqrt()  # sqrt: no gradient at 0

    monkeypatch.setattr(step_module, "summed_loss", losses)


@pytest.mark.parametrize(("how", "says"), [("loss", "loss is nan"), ("gradient", "gradient is not finite")])
def test_it_stops_before_a_step_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, says: str
) -> None:
    run, watch = watched(tmp_path, save_strategy="no")
    spoil(monkeypatch, at_call=3, how=how)
    with pytest.raises(TrainingError, match=f"step 4 of 10: the {says}.*Lower learning_rate.*checkpoint-2"):
        fit(run)
    assert len(watch.prompts) == 3
    assert run.model.prompt.equal(watch.prompts[1])  # the loss with it was finite; with the third it was not
    assert read_prompt(tmp_path / "checkpoint-2" / "adapter_model.safetensors").equal(watch.prompts[1])


def test_a_first_step_that_is_not_finite_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    start = run.model.prompt.detach().clone()
    spoil(monkeypatch, at_call=0, how="gradient")
    with pytest.raises(TrainingError, match="checkpoint-0"):
        fit(run)
    assert run.model.prompt.equal(start)


def test_a_run_that_stopped_goes_on_from_the_last_good_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that holds the prompt that failed is gone, and going on is exact."""
    whole, watch = watched(tmp_path / "whole")
    fit(whole)
    with monkeypatch.context() as patch:
        spoil(patch, at_call=5, how="loss")
        with pytest.raises(TrainingError, match="checkpoint-4"):
            fit(make_run(tmp_path / "cut"))
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["checkpoint-4"]
    again = make_run(tmp_path / "cut")
    fit(replace(again, resume_from=tmp_path / "cut" / "checkpoint-4"))
    assert again.model.prompt.equal(watch.prompts[-1])


@pytest.mark.parametrize("rate", [1e37, 1e38, 1e39])
def test_an_absurd_learning_rate_leaves_a_finite_prompt(tmp_path: Path, rate: float) -> None:
    with pytest.raises(TrainingError, match="Lower learning_rate"):
        fit(make_run(tmp_path, learning_rate=rate))
    for folder in checkpoints(tmp_path):
        assert torch.isfinite(read_prompt(folder / "adapter_model.safetensors")).all()


# --- scores -----------------------------------------------------------------------------------------


def test_label_probabilities_are_those_of_the_plain_forward() -> None:
    base, prompt = tiny.base("llama"), tiny.prompt_for(tiny.base("llama"), P).detach()
    texts = [text.tolist() for text in tiny.ids(1, 6, 3)]
    labels = [(40, 2), (41, 42, 2), (40, 42, 2), (2,)]
    found = score_labels(base, prompt, texts, labels)
    plain = torch.tensor([[float(tiny.plain_score(base, prompt, text, label)) for label in labels] for text in texts])
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-4)
    assert (found.exp().sum(1) <= 1).all()
    assert (found < 0).all()


def test_scores_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    model = make_run(tmp_path).model
    one = label_log_probs(model.prompted, examples(), CLASSES, batch_size=1)
    all_at_once = label_log_probs(model.prompted, examples(), CLASSES, batch_size=64)
    torch.testing.assert_close(one, all_at_once, rtol=0, atol=1e-5)


def test_evaluation_and_training_mean_the_same_loss(tmp_path: Path) -> None:
    run, watch = watched(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3, num_train_epochs=1)
    by_classes = evaluate_examples(run.model.prompted, run.examples, CLASSES, batch_size=3)
    free = evaluate_examples(run.model.prompted, run.examples, None, batch_size=3)
    fit(run)  # one step over all rows: its loss is that of the start
    assert len(watch.losses) == 1
    assert by_classes.eval_loss == pytest.approx(watch.losses[0], abs=1e-6)
    assert free.eval_loss == pytest.approx(watch.losses[0], abs=1e-6)
    assert free.perplexity == pytest.approx(math.exp(watch.losses[0]), rel=1e-6)
    assert free.accuracy is None


def test_the_loss_is_a_mean_over_tokens(tmp_path: Path) -> None:
    model, number = make_run(tmp_path).model, len(CLASSES.ids[0]) + 2 * len(CLASSES.ids[1])
    some = [examples()[0], examples()[1], examples()[3]]
    alone = [eval_loss(model.prompted, [each], batch_size=1) * len(each.label_ids) for each in some]
    assert eval_loss(model.prompted, some, batch_size=2) == pytest.approx(sum(alone) / number, abs=1e-6)


def test_the_loss_is_summed_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MPS has no float64."""

    class OnMps:
        def cpu(self) -> torch.Tensor:
            return torch.ones(3)

        def __len__(self) -> int:
            return 3

    monkeypatch.setattr("softprompt.inference.evaluate.token_losses", lambda *_: OnMps())
    assert eval_loss(make_run(tmp_path).model.prompted, examples(2), batch_size=2) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_without_finite_scores_counts_as_wrong(bad: float) -> None:
    scores = torch.tensor([[-1.0, -2.0], [-2.0, -1.0], [bad, bad], [-1.0, bad]])
    found = classification_metrics(scores, examples(4), CLASSES, seconds=1.0, split="validation")
    assert found.accuracy == 0.5
    assert found.confusion_matrix == ((1, 1), (1, 1))
    assert found.eval_loss is not None
    assert math.isnan(found.eval_loss)
    assert found.expected_calibration_error is None
    assert (found.to_dict()["eval_loss"], found.to_dict()["perplexity"]) == (None, None)


# --- files ------------------------------------------------------------------------------------------


class CrashError(Exception):
    pass


def crash(folder: Path) -> None:
    (folder / "half").write_text("written")
    raise CrashError


def test_a_crash_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        write_folder(tmp_path / "new", crash)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_leaves_the_old_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "old", lambda folder: (folder / "whole").write_text("yes") and None)
    with pytest.raises(CrashError):
        write_folder(tmp_path / "old", crash)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["old", "old/whole"]


def test_a_crash_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "new \ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_crash_in_a_checkpoint_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: Any) -> None:
        raise CrashError

    run = make_run(tmp_path)
    monkeypatch.setattr(TrainerState, "save", save)  # the last of its files
    config = run.model.active_peft_config
    assert isinstance(config, PromptTuningConfig)
    state = TrainerState(global_step=1, epoch=1.0, max_steps=1, num_train_epochs=1)
    optimizer = torch.optim.AdamW([run.model.prompt])
    with pytest.raises(CrashError):
        write_checkpoint(tmp_path, config=config, prompt=run.model.prompt, optimizer=optimizer, state=state, task=TASK)
    assert list(tmp_path.iterdir()) == []


# --- whole runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("train")
    make_base(place / "base")
    write_rows(place / "train.csv", rows(8))
    write_rows(place / "test.csv", rows(4, 8))
    return place


def options_for(place: Path, **changes: Any) -> TrainOptions:
    values = {"model_name_or_path": str(place / "base"), "train_file": place / "train.csv", "num_train_epochs": 1}
    values |= {"recipe": "guide"}
    return TrainOptions(**{**values, "output_dir": place / "run", "num_virtual_tokens": P, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_mistake_does_not_cost_the_older_run(place: Path) -> None:
    """``overwrite_output_dir`` removes it only when everything else has been found good."""
    result = train(options_for(place))
    assert result is not None
    before = contents(place / "run")
    (place / "run" / "mine.txt").write_text("keep")
    for wrong in ({"label_column": "lable"}, {"model_name_or_path": str(place / "none")}, {"max_length": 1}):
        with pytest.raises(SoftPromptError):
            train(options_for(place, overwrite_output_dir=True, **wrong))
    assert contents(place / "run") == {**before, "mine.txt": b"keep"}
    train(options_for(place, overwrite_output_dir=True, num_train_epochs=2, save_strategy="no"))
    assert (place / "run" / "mine.txt").read_text() == "keep"
    assert not checkpoints(place / "run")


def test_a_finished_run_goes_on_with_more_epochs(place: Path) -> None:
    folder = place / "longer"
    straight = train(options_for(place, output_dir=place / "straight", num_train_epochs=3, **CONSTANT))
    train(options_for(place, output_dir=folder, num_train_epochs=1, **CONSTANT))
    result = train(options_for(place, output_dir=folder, num_train_epochs=3, resume_from_checkpoint="last", **CONSTANT))
    assert result is not None
    assert straight is not None
    assert [record.epoch for record in result.state.history] == [1, 2, 3]
    weights = "adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (place / "straight" / weights).read_bytes()


def test_a_finished_run_goes_on_with_more_steps(place: Path) -> None:
    """Two batches are an epoch; the first part ends in the middle of one."""
    folder, more = place / "more_steps", {"per_device_train_batch_size": 4, **CONSTANT}
    train(options_for(place, output_dir=place / "all_steps", max_steps=5, **more))
    train(options_for(place, output_dir=folder, max_steps=3, **more))
    assert json.loads((folder / "trainer_state.json").read_text())["epoch"] == 1.5
    assert "| Epochs | 1.5" in (folder / "README.md").read_text()
    result = train(options_for(place, output_dir=folder, max_steps=5, resume_from_checkpoint="true", **more))
    assert result is not None
    assert [record.step for record in result.state.history] == [2, 3, 4, 5]
    weights = "adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (place / "all_steps" / weights).read_bytes()


CONSTANT: dict[str, Any] = {"lr_scheduler_type": "constant"}


class Notes(Callback):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_message(self, text: str) -> None:
        self.notes.append(text)

    on_warning = on_message


def test_validation_that_overflows_does_not_end_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As float16 does it: NaN for some rows. It is said once, and every epoch has its checkpoint."""
    real = softprompt.inference.classifier.score_labels

    def overflowing(*args: Any, **options: Any) -> torch.Tensor:
        return real(*args, **options).index_fill(0, torch.tensor([0]), math.nan)

    monkeypatch.setattr("softprompt.inference.classifier.score_labels", overflowing)
    callback, folder = Notes(), place / "overflow"
    more = {"validation_file": place / "test.csv", "num_train_epochs": 2}
    result = train(options_for(place, output_dir=folder, **more), callback)
    assert result is not None
    assert [record.epoch for record in result.state.history] == [1, 2]
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-1", "checkpoint-2"]
    assert sum("not finite" in note for note in callback.notes) == 1
    written = TrainerState.load(folder)
    assert [record.eval_loss for record in written.history] == [None, None]
    assert all(record.accuracy is not None for record in written.history)


def test_only_a_checkpoint_of_the_output_folder_is_resumed(place: Path) -> None:
    train(options_for(place, output_dir=place / "one"))
    before = contents(place / "one")
    (place / "two").mkdir()
    elsewhere = str(checkpoints(place / "one")[-1])
    for folder in (place / "two", place / "three"):
        with pytest.raises(ConfigError, match=r"is not in output_dir.*copy it there, or set"):
            train(options_for(place, output_dir=folder, resume_from_checkpoint=elsewhere))
    assert contents(place / "one") == before
    assert not list((place / "two").iterdir())
    assert train(options_for(place, output_dir=place / "one", num_train_epochs=2, resume_from_checkpoint=elsewhere))


def test_a_refused_resume_writes_nothing_and_a_good_one_keeps_the_start(place: Path) -> None:
    folder = place / "resumed"
    train(options_for(place, output_dir=folder))
    before = contents(folder)
    for wrong in ({"seed": 1}, {"template": "{text} : "}, {"num_virtual_tokens": 4}, {"max_train_samples": 7}):
        with pytest.raises(ConfigError, match="resume with the same"):
            train(options_for(place, output_dir=folder, resume_from_checkpoint="last", **wrong))
    assert contents(folder) == before
    write_prompt(folder, torch.zeros(P, 16), name=START_NAME)
    train(options_for(place, output_dir=folder, resume_from_checkpoint="last", num_train_epochs=2))
    assert not read_prompt(folder / START_NAME).any()
    assert "num_train_epochs: 2" in (folder / "train_config.yaml").read_text()


def test_figures_of_an_older_prompt_go_when_training_ends_again(place: Path) -> None:
    folder = place / "figures"
    train(options_for(place, output_dir=folder, test_file=place / "test.csv"))
    (folder / "train_metrics.json").write_text((folder / "metrics.json").read_text())
    more = {"resume_from_checkpoint": "last", "num_train_epochs": 2}
    train(options_for(place, output_dir=folder, test_file=place / "test.csv", **more))
    assert not (folder / "train_metrics.json").exists()
    assert (folder / "metrics.json").is_file()


@pytest.mark.parametrize("name", ["metrics.json", "log.jsonl", "task.json", "train_config.yaml"])
def test_files_that_are_not_of_a_run_are_not_overwritten(place: Path, name: str) -> None:
    folder = place / f"foreign-{name}"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"has a {name}, which the run would overwrite.*--overwrite_output_dir"):
        train(options_for(place, output_dir=folder))
    assert contents(folder) == {name: b"mine"}


def test_overwriting_deletes_nothing_where_no_run_is(place: Path) -> None:
    folder = place / "none"
    folder.mkdir()
    (folder / "confusion_matrix.png").write_bytes(b"mine")
    train(options_for(place, output_dir=folder, overwrite_output_dir=True))
    assert (folder / "confusion_matrix.png").read_bytes() == b"mine"


def test_a_run_that_never_came_to_a_checkpoint_is_in_nobodys_way(place: Path) -> None:
    class Stop(Callback):
        def on_step_end(self, step: int, loss: float) -> None:
            raise KeyboardInterrupt

    folder = place / "false-start"
    with pytest.raises(KeyboardInterrupt):
        train(options_for(place, output_dir=folder), Stop())
    assert (folder / "log.jsonl").is_file()
    assert train(options_for(place, output_dir=folder))


def test_the_weights_come_last(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / "last"
    there: list[set[str]] = []

    def writing(target: Path, prompt: torch.Tensor, **name: str) -> None:
        there.append({path.name for path in target.iterdir()})
        write_prompt(target, prompt, **name)

    monkeypatch.setattr("softprompt.training.output_dir.write_prompt", writing)
    train(options_for(place, output_dir=folder, test_file=place / "test.csv", save_strategy="no"))
    assert there[-1] == {path.name for path in folder.iterdir()} - {"adapter_model.safetensors"}
    assert {"adapter_config.json", "README.md", "metrics.json", "trainer_state.json", "task.json"} <= there[-1]


def test_a_card_that_cannot_be_made_does_not_cost_the_run(place: Path) -> None:
    folder = place / "cardless"
    (folder / "README.md").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"README.md was not written"):
        assert train(options_for(place, output_dir=folder))
    assert (folder / "adapter_model.safetensors").is_file()
