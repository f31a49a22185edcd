"""``transformers.Trainer`` and ``accelerate`` on our models, as a user has them, with PEFT installed and without.

Each check is a function of a scratch folder. With PEFT it runs here. Without, all of them run in one process
of its own, in which ``peft`` can be neither imported nor found (:class:`WithoutPeft`).
"""

from __future__ import annotations

import copy
import gc
import importlib.machinery
import json
import multiprocessing
import multiprocessing.connection
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli_tools import PATIENCE

Check = Callable[[Path], None]
CHECKS: dict[str, Check] = {}
WITHOUT = "--without-peft"
TOKENS, VOCABULARY = 4, 61


class WithoutPeft:
    """The import system without PEFT: no module to import, no version to read."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] == "peft":
            return None
        return importlib.machinery.PathFinder.find_spec(name, path, target)

    def find_distributions(self, *args: Any) -> Iterable[Any]:
        return (d for d in importlib.machinery.PathFinder.find_distributions(*args) if d.name != "peft")

    def invalidate_caches(self) -> None:
        importlib.machinery.PathFinder.invalidate_caches()


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


# --- what is trained ------------------------------------------------------------------------------


def tiny_model(seed: int = 0, **config: Any) -> Any:
    """A random Llama under a random prompt, the same each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from softprompt import PromptTuningConfig, get_peft_model

    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    base = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **config, initializer_range=0.3))
    return get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS))


def rows(count: int, seed: int = 0, length: int | None = None) -> Any:
    """A data set of texts of 4 to 9 tokens and labels of 1 to 3, with a column that no model takes."""
    import torch
    from datasets import Dataset

    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    examples = []
    for _ in range(count):
        text = [number(5, VOCABULARY - 1) for _ in range(length or number(4, 9))]
        label = [text[0] % 5] * number(1, 3)
        ids = text + label
        masked = [-100] * len(text) + label
        examples.append({"input_ids": ids, "labels": masked, "attention_mask": [1] * len(ids), "note": "a text"})
    return Dataset.from_list(examples)


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad to the longest row: on the left if the first token is even, for the difference must not count."""
    import torch

    left = examples[0]["input_ids"][0] % 2 == 0
    batch = {}
    for name, pad in (("input_ids", 0), ("labels", -100), ("attention_mask", 0)):
        longest = max(len(example[name]) for example in examples)
        fill = [[pad] * (longest - len(example[name])) for example in examples]
        padded = [f + e[name] if left else e[name] + f for f, e in zip(fill, examples, strict=True)]
        batch[name] = torch.tensor(padded)
    return batch


class Recorder:
    """A collator that remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        self.batches.append(collate(examples))
        return {name: value.clone() for name, value in self.batches[-1].items()}


def trainer_of(folder: Path, model: Any, **options: Any) -> Any:
    """A ``Trainer`` as users write it; what is not an argument of ``Trainer`` is one of ``TrainingArguments``."""
    from transformers import Trainer, TrainingArguments

    own = {name: options.pop(name) for name in ("train_dataset", "eval_dataset", "compute_metrics") if name in options}
    defaults = {"learning_rate": 3e-2, "num_train_epochs": 3, "per_device_train_batch_size": 8, "report_to": "none"}
    defaults |= {"logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 7}
    args = TrainingArguments(output_dir=str(folder), **{**defaults, **options})
    return Trainer(
        model=model,
        args=args,
        train_dataset=own.get("train_dataset", rows(24)),
        eval_dataset=own.get("eval_dataset"),
        data_collator=Recorder(),
        compute_metrics=own.get("compute_metrics"),
    )


def plain_loop(model: Any, batches: Iterable[dict[str, Any]], steps: int, lr: float = 3e-2) -> list[float]:
    """What Trainer does, in eight lines of torch; the loss of each step."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def losses_of(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def distance(a: Any, b: Any) -> float:
    return float((a.detach() - b.detach()).abs().max())


def with_peft() -> bool:
    return "peft" in sys.modules


@contextmanager
def head_rows(model: Any) -> Iterator[list[int]]:
    """How many positions the output matrix sees, call by call."""
    import tiny

    counts: list[int] = []
    head = model.get_base_model().lm_head
    with tiny.watched(head, lambda args, kwargs, output: counts.append(args[0].shape[:-1].numel())):
        yield counts


# --- Trainer --------------------------------------------------------------------------------------


@check
def training_is_a_plain_loop(folder: Path) -> None:
    model, twin = tiny_model(), tiny_model()
    base = copy.deepcopy(model.get_base_model().state_dict())
    start = model.prompt.detach().clone()
    trainer = trainer_of(folder, model, num_train_epochs=10, learning_rate=0.1)
    assert trainer.label_names == ["labels"]
    trainer.train()

    assert len(trainer.data_collator.batches) == 30
    expected = plain_loop(twin, trainer.data_collator.batches, 30, lr=0.1)
    assert losses_of(trainer) == pytest.approx(expected, abs=1e-6)
    assert distance(model.prompt, twin.prompt) < 1e-6
    assert distance(model.prompt, start) > 0.1
    assert sum(expected[-3:]) < 0.8 * sum(expected[:3])
    assert all(value.equal(base[name]) for name, value in model.get_base_model().state_dict().items())


@check
def a_model_card_is_both_trainers_and_ours(folder: Path) -> None:
    from huggingface_hub import ModelCard

    model = tiny_model()
    model.get_base_model().name_or_path = "someone/tiny"
    model.get_base_model().config._name_or_path = "someone/tiny"
    trainer = trainer_of(folder, model, num_train_epochs=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="mine", tags=["weather"], license="mit")
    texts = [(folder / "README.md").read_text(encoding="utf-8")]
    trainer.create_model_card(model_name="mine", tags=["weather"], license="mit")
    model.save_pretrained(folder)
    texts.append((folder / "README.md").read_text(encoding="utf-8"))
    for text in texts:
        assert "Training hyperparameters" in text  # Trainer's
        assert text.count("<!-- softprompt:begin -->") == text.count("from softprompt import PeftModel") == 1
        data = ModelCard(text).data
        assert (data.library_name, data.base_model, data.license) == ("peft", "someone/tiny", "mit")
        assert data.pipeline_tag == "text-generation"
        assert {"weather", "prompt-tuning", "base_model:adapter:someone/tiny"} <= set(data.tags)
    model.create_or_update_model_card(folder / "new")  # as in PEFT, of an adapter that is nowhere yet
    assert "4 virtual tokens" in (folder / "new" / "README.md").read_text(encoding="utf-8")


@check
def checkpoints_hold_the_prompt_alone(folder: Path) -> None:
    from safetensors.torch import load_file

    model = tiny_model(hidden_act="gelu")
    trainer = trainer_of(folder, model, num_train_epochs=2, save_strategy="epoch")
    trainer.train()
    last = folder / "checkpoint-6"
    assert {path.name for path in folder.iterdir()} == {"checkpoint-3", "checkpoint-6"}
    names = {path.name for path in last.iterdir()}
    state = {"trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    adapter = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert names == adapter | state | (set() if with_peft() else {"model.safetensors"})

    weights = TOKENS * 16 * 4
    sizes = {path.name: path.stat().st_size for path in last.iterdir()}
    assert all(size < weights + 200 for name, size in sizes.items() if name.endswith(".safetensors"))
    assert sizes["optimizer.pt"] < 2 * weights + 4000
    assert load_file(last / "adapter_model.safetensors")["prompt_embeddings"].equal(model.prompt)


@check
def resuming_continues_bit_for_bit(folder: Path) -> None:
    whole = tiny_model()
    trainer_of(folder, whole, num_train_epochs=4, save_strategy="steps", save_steps=5).train()
    assert (folder / "checkpoint-5").is_dir()  # in the middle of an epoch of three steps

    again = tiny_model(seed=0)
    again.prompt.data.zero_()
    trainer = trainer_of(folder, again, num_train_epochs=4)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-5"))
    assert trainer.state.global_step == 12
    assert len(trainer.data_collator.batches) == 7
    assert again.prompt.equal(whole.prompt)
    assert again.prompt.requires_grad


@check
def resuming_finds_the_last_checkpoint(folder: Path) -> None:
    whole, again = tiny_model(), tiny_model()
    trainer_of(folder, whole, num_train_epochs=3, save_strategy="epoch").train()
    again.prompt.data.zero_()
    trainer_of(folder, again, num_train_epochs=3).train(resume_from_checkpoint=True)
    assert again.prompt.equal(whole.prompt)


@check
def the_best_prompt_is_loaded_at_the_end(folder: Path) -> None:
    from safetensors.torch import load_file

    model = tiny_model()
    wrong = rows(8, seed=1).map(lambda row: {"labels": [t if t == -100 else t + 5 for t in row["labels"]]})
    trainer = trainer_of(
        folder,
        model,
        eval_dataset=wrong,  # the better the fit, the worse the evaluation: the first is the best
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        num_train_epochs=4,
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = losses.index(min(losses))
    assert best < 3
    assert trainer.state.best_model_checkpoint == str(folder / f"checkpoint-{3 * (best + 1)}")
    prompts = [load_file(folder / f"checkpoint-{3 * n}" / "adapter_model.safetensors") for n in range(1, 5)]
    assert model.prompt.equal(prompts[best]["prompt_embeddings"])
    assert not model.prompt.equal(prompts[-1]["prompt_embeddings"])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)


@check
def a_saved_model_loads(folder: Path) -> None:
    import torch

    from softprompt import PeftModel

    model = tiny_model()
    trainer = trainer_of(folder / "run", model)
    trainer.train()
    trainer.save_model(str(folder / "saved"))
    batch = collate(list(rows(4, seed=3)))
    with torch.no_grad():
        expected = model(**batch)
    ours = PeftModel.from_pretrained(tiny_model().get_base_model(), folder / "saved")
    with torch.no_grad():
        assert ours(**batch).logits.equal(expected.logits)
    if with_peft():
        import peft

        theirs = peft.PeftModel.from_pretrained(tiny_model().get_base_model(), str(folder / "saved"))
        with torch.no_grad():
            assert theirs(**collate([rows(1)[0]])).logits.shape[1] == TOKENS + len(rows(1)[0]["input_ids"])
        assert theirs.get_prompt(1)[0].equal(model.prompt)


@check
def evaluation_is_a_forward_pass(folder: Path) -> None:
    import torch

    model, data = tiny_model(), rows(16, seed=2)
    trainer = trainer_of(folder, model, eval_dataset=data, per_device_eval_batch_size=16)
    loss = trainer.evaluate()["eval_loss"]
    model.eval()
    with torch.no_grad():
        assert loss == pytest.approx(model(**collate(list(data))).loss.item(), abs=1e-6)


@check
def predictions_have_the_shape_of_pefts(folder: Path) -> None:
    import numpy
    import torch

    seen = {}

    def metrics(prediction: Any) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        seen["shapes"] = logits.shape, labels.shape
        guesses, there = logits[:, TOKENS - 1 : -1].argmax(-1), labels != -100
        return {"right": float((guesses == labels)[there].mean())}

    model, data = tiny_model(), rows(10, seed=2, length=6)
    trainer = trainer_of(
        folder, model, eval_dataset=data, per_device_eval_batch_size=4, compute_metrics=metrics, num_train_epochs=20
    )
    trainer.train()
    got = trainer.predict(data)
    width = max(len(ids) for ids in data["input_ids"])
    assert seen["shapes"] == (got.predictions.shape, got.label_ids.shape)
    assert got.predictions.shape == (10, TOKENS + width, VOCABULARY)
    assert got.label_ids.shape == (10, width)
    assert 0 <= got.metrics["test_right"] <= 1
    assert trainer.evaluate()["eval_right"] == got.metrics["test_right"]
    for row, logits in zip(data, got.predictions, strict=True):  # rows of a batch stand left or right: compare the set
        with torch.no_grad():
            alone = model(**collate([row])).logits[0].numpy()
        assert numpy.abs(logits[: TOKENS - 1] - alone[: TOKENS - 1]).max() < 1e-5
        nearest = numpy.abs(logits[TOKENS:, None] - alone[None, TOKENS:]).max(-1).min(0)
        assert nearest.max() < 1e-5


@check
def accumulated_gradients_are_exact(folder: Path) -> None:
    whole, parts = tiny_model(), tiny_model()
    one = trainer_of(folder, whole, num_train_epochs=4)
    one.train()
    many = trainer_of(folder, parts, num_train_epochs=4, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    many.train()
    assert many.state.global_step == one.state.global_step == 12
    assert losses_of(many) == pytest.approx(losses_of(one), abs=1e-5)
    assert distance(whole.prompt, parts.prompt) < 1e-6


@check
def the_head_runs_at_supervised_positions_only(folder: Path) -> None:
    for options in ({}, {"bf16": True}):
        model = tiny_model()
        trainer = trainer_of(folder, model, **options)
        with head_rows(model) as counts:
            trainer.train()
        supervised = [int((batch["labels"] != -100).sum()) for batch in trainer.data_collator.batches]
        assert counts == supervised, options


@check
def mixed_precision_trains(folder: Path) -> None:
    import torch

    import tiny

    model, exact = tiny_model(), tiny_model()
    trainer = trainer_of(folder, model, bf16=True, num_train_epochs=10, eval_dataset=rows(8, seed=2))
    seen = []
    with tiny.watched(model.get_base_model().lm_head, lambda args, kwargs, output: seen.append(output.dtype)):
        trainer.train()
    plain = plain_loop(exact, trainer.data_collator.batches, 30)
    assert set(seen) == {torch.bfloat16}
    assert model.prompt.dtype == torch.float32
    assert losses_of(trainer) == pytest.approx(plain, rel=0.05)
    assert losses_of(trainer) != pytest.approx(plain, abs=1e-6)
    assert trainer.predict(rows(8, seed=2)).predictions.dtype == "float32"


@check
def two_adapters_train_and_resume(folder: Path) -> None:
    """Only the active one moves; both are saved, each in its place, and come back."""
    from softprompt import PromptTuningConfig

    def pair() -> Any:
        model = tiny_model()
        model.add_adapter("other", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
        return model

    model, again = pair(), pair()
    assert not model.prompt_of("other").requires_grad
    first = model.prompt_of("default").detach().clone()
    trainer = trainer_of(folder, model, save_strategy="epoch")
    trainer.train()
    assert (folder / "checkpoint-3" / "other" / "adapter_model.safetensors").is_file()
    assert not model.prompt.equal(first)
    other = model.prompt_of("other").detach().clone()
    for name in ("default", "other"):
        again.prompt_of(name).data.zero_()
    trainer_of(folder, again).train(resume_from_checkpoint=str(folder / "checkpoint-6"))
    assert again.active_adapter == "default"
    assert again.prompt.equal(model.prompt)
    if with_peft():  # without it, Trainer reads one file, that of the active adapter
        assert again.prompt_of("other").equal(other)


# --- accelerate -----------------------------------------------------------------------------------


def loader_of(data: Any, batch_size: int) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(data.remove_columns("note"), batch_size=batch_size, collate_fn=collate)


def accelerated_loop(model: Any, data: Any, batch_size: int, steps: int, **options: Any) -> Any:
    """The loop of accelerate's documentation; the accelerator and the losses of this process."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader_of(data, batch_size))
    losses = []
    for batch in loader:
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return accelerator, model, losses


@check
def accelerate_is_a_plain_loop(folder: Path) -> None:
    data = rows(24)
    for options in ({}, {"mixed_precision": "bf16"}):
        model, twin = tiny_model(), tiny_model()
        with head_rows(model) as counts:
            accelerator, prepared, losses = accelerated_loop(model, data, 8, 3, **options)
        batches = list(loader_of(data, 8))
        expected = plain_loop(twin, batches, 3)
        assert accelerator.unwrap_model(prepared) is model
        assert losses == pytest.approx(expected, abs=5e-2 if options else 1e-6)
        assert counts == [int((batch["labels"] != -100).sum()) for batch in batches]
        if not options:
            assert distance(model.prompt, twin.prompt) < 1e-6


def two_processes(folder: Path) -> None:
    """Two processes as torchrun would start them; forked, so that the imports are paid once."""
    import accelerate  # noqa: F401
    from datasets import Dataset  # noqa: F401
    from transformers import LlamaForCausalLM, Trainer  # noqa: F401

    import softprompt.peft.model  # noqa: F401

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    fork = multiprocessing.get_context("fork")
    pair = [fork.Process(target=one_of_two, args=(folder, rank)) for rank in range(2)]
    for process in pair:
        process.start()
    while alive := [process for process in pair if process.is_alive()]:
        multiprocessing.connection.wait([process.sentinel for process in alive])
        if any(process.exitcode for process in pair):  # the other one would wait for it for ever
            for process in pair:
                process.terminate()
    sys.exit(any(process.exitcode for process in pair))


def one_of_two(folder: Path, rank: int) -> None:
    """A process of the pair. The group goes last: a model that outlives it joins gloo's thread, which needs the GIL."""
    import torch

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.save(half_of_the_rows(folder), folder / f"{rank}.pt")
    gc.collect()
    torch.distributed.destroy_process_group()


def half_of_the_rows(folder: Path) -> dict[str, Any]:
    """What accelerate and Trainer make of half of the rows each."""
    import torch

    data = rows(24, length=6).map(one_label_token)
    model = tiny_model()
    with head_rows(model) as counts:
        accelerated_loop(model, data, 4, 3)
    results = {"accelerate": model.prompt.detach(), "accelerate rows": torch.tensor(counts)}
    model = tiny_model()
    with head_rows(model) as counts:
        trainer = trainer_of(folder / "run", model, per_device_train_batch_size=4, save_strategy="epoch")
        trainer.train()
    supervised = [int((batch["labels"] != -100).sum()) for batch in trainer.data_collator.batches]
    assert trainer.args.world_size == 2
    assert sum(counts) == sum(supervised)
    return results | {"trainer": model.prompt.detach()}


def one_label_token(row: dict[str, Any]) -> dict[str, Any]:
    """A row with one label token: the mean of two halves' means is then the mean of all."""
    return {"labels": [-100] * 6 + row["labels"][6:7] + [-100] * (len(row["labels"]) - 7)}


def run_this_file(*args: str) -> None:
    """In a process of its own, with one thread and no progress bars."""
    done = subprocess.run(
        [sys.executable, __file__, *args],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_processes_are_one(tmp_path: Path) -> None:
    import torch

    run_this_file("--two-processes", str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["accelerate"].equal(second["accelerate"])
    assert first["trainer"].equal(second["trainer"])

    data = rows(24, length=6).map(one_label_token)
    single = tiny_model()
    plain_loop(single, loader_of(data, 8), 3)
    assert distance(first["accelerate"], single.prompt) < 1e-5
    assert first["accelerate rows"].tolist() == [4, 4, 4]
    single = tiny_model()
    trainer_of(tmp_path / "single", single).train()
    assert distance(first["trainer"], single.prompt) < 1e-5
    assert (tmp_path / "run" / "checkpoint-9" / "adapter_model.safetensors").is_file()


# --- the two worlds -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: threads that wait for each other cost more than they bring, by far on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CHECKS)
def test_with_peft(name: str, tmp_path: Path) -> None:
    from transformers.utils import is_peft_available

    if not is_peft_available():
        pytest.skip("PEFT is not installed")
    import peft  # noqa: F401 (Trainer would have imported it)

    CHECKS[name](tmp_path)


@pytest.fixture(scope="module")
def without_peft(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each check that was asked for said in a process without PEFT; nothing if it passed."""
    mine = [item for item in request.session.items if getattr(item, "originalname", "") == "test_without_peft"]
    names = [item.callspec.params["name"] for item in mine if item.path == request.path]
    folder = tmp_path_factory.mktemp("without_peft")
    run_this_file(WITHOUT, str(folder), *names)
    results: dict[str, str] = json.loads((folder / "results.json").read_text())
    return results


@pytest.mark.parametrize("name", CHECKS)
def test_without_peft(name: str, without_peft: dict[str, str]) -> None:
    if without_peft[name]:
        pytest.fail(without_peft[name], pytrace=False)


def run_without_peft(folder: Path, names: list[str]) -> None:
    finder = importlib.machinery.PathFinder
    sys.meta_path[:] = [WithoutPeft() if each is finder else each for each in sys.meta_path]  # type: ignore[list-item]
    from transformers.utils import is_peft_available

    results = {}
    for name in names:
        try:
            CHECKS[name](folder / name)
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
    assert not is_peft_available()
    assert "peft" not in sys.modules
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    command = SimpleNamespace(mode=sys.argv[1], folder=Path(sys.argv[2]), names=sys.argv[3:])
    if command.mode == WITHOUT:
        run_without_peft(command.folder, command.names)
    else:
        two_processes(command.folder)
