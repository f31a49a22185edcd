"""Other libraries on our models, as their users write it: each computes what a plain call of the base computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from softprompt import PromptTuningConfig, get_peft_model
from test_trainer import collate, distance, plain_loop, rows, tiny_model

pytestmark = pytest.mark.heavy
TOKENS = 5
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def make(base: Any = None, *, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS)
    return get_peft_model(tiny.fresh("llama") if base is None else base, config)


# --- transformers.pipeline --------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3])
def test_pipeline(batch_size: int, caplog: pytest.LogCaptureFixture) -> None:
    """A batch of texts of different lengths; each goes on as it does alone, and nothing is logged."""
    import peft  # noqa: F401 (the log line came where PEFT is imported)
    import transformers

    model, tokenizer = make(), tiny.tokenizer()
    logger = transformers.utils.logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    try:
        pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == []
    assert pipe.model is model
    texts = ["w5 w6 w7 w8", "w9", "w10 w11"]
    found = pipe(texts, batch_size=batch_size, return_tensors=True, eos_token_id=None, **GREEDY)
    for text, (answer,) in zip(texts, found, strict=True):
        row = tokenizer(text, return_tensors="pt")["input_ids"][0]
        expected = tiny.plain_greedy(model.base_model, model.prompt, row, GREEDY["max_new_tokens"])
        assert answer["generated_token_ids"][-len(expected) :] == expected.tolist()


# --- torchao ----------------------------------------------------------------------------------------


@pytest.fixture
def quantized() -> Any:
    """An int8 base: its linear layers keep their class and dtype, and their weights are a tensor subclass."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    base = tiny.fresh("llama")
    quantize_(base, Int8WeightOnlyConfig())
    weight = base.model.layers[0].mlp.up_proj.weight
    assert type(weight).__module__.startswith("torchao")
    assert base.dtype == torch.float32
    return base


def test_torchao_training(quantized: Any) -> None:
    model = make(quantized)
    row, labels = tiny.ids(8)[0], torch.tensor([-100] * 4 + [5, 6, 7, 8])
    batch = {"input_ids": row[None], "labels": labels[None]}
    expected = tiny.plain_losses(quantized, model.prompt, row, labels).mean()
    loss = model(**batch).loss
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    found, wanted = (torch.autograd.grad(each, model.prompt)[0] for each in (loss, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    optimizer = torch.optim.AdamW([model.prompt], lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    assert model(**batch).loss < expected - 0.1


def test_torchao_evaluation(quantized: Any) -> None:
    """Rows of different lengths under ``no_grad``, and the scores of labels as ``softprompt evaluate`` has them."""
    from softprompt.inference.score import score_labels

    model = make(quantized)
    texts = tiny.ids(4, 9, 6)
    ids, mask = tiny.pad(texts)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
        for row, text in enumerate(texts):
            expected = tiny.plain_logits(quantized, model.prompt, text)
            torch.testing.assert_close(logits[row, : len(expected)], expected, rtol=1e-3, atol=1e-3)
        scores = score_labels(quantized, model.prompt, [text.tolist() for text in texts], [[5, 6], [7]])
        for row, text in enumerate(texts):
            for column, label in enumerate(([5, 6], [7])):
                expected = tiny.plain_score(quantized, model.prompt, text.tolist(), label)
                assert scores[row, column].item() == pytest.approx(expected.item(), abs=1e-3)


def test_torchao_generation(quantized: Any) -> None:
    model = make(quantized)
    texts = tiny.ids(3, 7)
    ids, mask = tiny.left_pad(texts)
    found = model.generate(ids, attention_mask=mask, eos_token_id=None, pad_token_id=0, **GREEDY)
    for row, text in enumerate(texts):
        expected = tiny.plain_greedy(quantized, model.prompt, text, GREEDY["max_new_tokens"])
        assert found[row, -len(expected) :].tolist() == expected.tolist()


# --- hyperparameter_search --------------------------------------------------------------------------


def test_hyperparameter_search(tmp_path: Path) -> None:
    """optuna finds the best of three learning rates, each tried on a model of its own."""
    import optuna
    from transformers import Trainer, TrainingArguments

    rates = [1e-4, 1e-1, 1e-3]
    data, held_out = rows(12), rows(8, seed=1)
    fixed = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "seed": 0}
    args = TrainingArguments(str(tmp_path), **fixed, max_steps=4, per_device_train_batch_size=12, weight_decay=0.0)
    models: list[Any] = []

    def model_init(trial: Any) -> Any:
        models.append(tiny_model())
        return models[-1]

    trainer = Trainer(
        model_init=model_init, args=args, train_dataset=data, eval_dataset=held_out, data_collator=collate
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        direction="minimize",
        backend="optuna",
        n_trials=3,
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}),
    )
    with torch.no_grad():
        losses = [float(model(**collate(list(held_out))).loss) for model in models[-3:]]
    assert len({round(loss, 4) for loss in losses}) == 3
    assert best.objective == pytest.approx(min(losses), abs=1e-4)
    assert best.hyperparameters == {"learning_rate": 1e-1}


# --- lm-eval ----------------------------------------------------------------------------------------


def test_lm_eval(tmp_path: Path) -> None:
    """Log-likelihoods and the greedy flag, for continuations of one token and of several."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = make(), tiny.tokenizer()
    pairs = [("w5 w6 w7", "w8"), ("w9", "w10 w11"), ("w20 w21 w22 w23", "w5 w6 w7")]
    for context in ("w30", "w31 w32 w33"):  # and what the model would say itself
        row = tokenizer(context, return_tensors="pt")["input_ids"][0]
        said = tiny.plain_greedy(model.base_model, model.prompt, row, 2)[-2:]
        pairs.append((context, " ".join(tokenizer.convert_ids_to_tokens(said))))
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")
    asked = [Instance("loglikelihood", {}, (a, f" {b}"), i) for i, (a, b) in enumerate(pairs)]
    found = lm.loglikelihood(asked)
    for (context, continuation), (value, _) in zip(pairs, found, strict=True):
        ids = tokenizer(context)["input_ids"], tokenizer(continuation, add_special_tokens=False)["input_ids"]
        assert value == pytest.approx(tiny.plain_score(model.base_model, model.prompt, *ids).item(), abs=1e-4)
    assert [greedy for _, greedy in found] == [False, False, False, True, True]


# --- streaming --------------------------------------------------------------------------------------


def stream() -> Iterator[dict[str, Any]]:
    yield from rows(12)


def test_a_streaming_source(tmp_path: Path) -> None:
    """Trainer on rows that come one by one does what a plain loop over them does."""
    from datasets import IterableDataset
    from transformers import Trainer, TrainingArguments

    fixed = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    args = TrainingArguments(str(tmp_path), **fixed, max_steps=6, per_device_train_batch_size=4, learning_rate=3e-2)
    model = tiny_model()
    source = IterableDataset.from_generator(stream)
    Trainer(model, args, train_dataset=source, data_collator=collate).train()
    examples = list(rows(12))
    batches = [collate(examples[start : start + 4]) for start in (0, 4, 8)]
    other = tiny_model()
    plain_loop(other, batches * 2, 6)
    assert distance(model.prompt, tiny_model().prompt) > 0.01
    assert distance(model.prompt, other.prompt) < 1e-5


def test_a_streaming_source_for_sft(tmp_path: Path) -> None:
    from datasets import Dataset, IterableDataset
    from trl import SFTConfig, SFTTrainer

    texts = [{"text": " ".join(f"w{5 + (7 * i + k) % 60}" for k in range(3 + i % 4))} for i in range(24)]
    fixed = {"use_cpu": True, "report_to": "none", "max_steps": 6, "save_strategy": "no", "learning_rate": 0.1}
    prompts = []
    for number, kind in enumerate((IterableDataset.from_generator, Dataset.from_generator)):
        model = make()
        source = kind(lambda: iter(texts), **({"cache_dir": str(tmp_path)} if kind == Dataset.from_generator else {}))
        args = SFTConfig(str(tmp_path / str(number)), **fixed, train_sampling_strategy="sequential")
        SFTTrainer(model=model, args=args, train_dataset=source, processing_class=tiny.tokenizer()).train()
        prompts.append(model.prompt.detach())
    assert not prompts[0].equal(make().prompt)
    torch.testing.assert_close(*prompts)
