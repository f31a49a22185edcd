"""trl's ``SFTTrainer`` on our models, as its users write it."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from softprompt import ConfigError, PeftModel, PromptTuningConfig, get_peft_model

pytestmark = pytest.mark.heavy
TOKENS = 5
TEXTS = [" ".join(f"w{5 + (7 * i + k) % 60}" for k in range(2 + i % 4)) + " w90 w91 w92" for i in range(24)]
PAIRS = [{"prompt": text[: -len(" w92")], "completion": " w92 w93"} for text in TEXTS]


def make(family: str = "llama", **config: Any) -> Any:
    torch.manual_seed(1)
    return get_peft_model(
        tiny.fresh(family), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, **config)
    )


def trainer_of(folder: Path, model: Any, data: list[dict[str, Any]], **options: Any) -> Any:
    """An ``SFTTrainer`` of 12 steps that logs each; in float32, so that its losses can be compared."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    fixed = {"use_cpu": True, "report_to": "none", "max_steps": 12, "logging_steps": 1, "bf16": False}
    fixed |= {"learning_rate": 0.2, "max_length": 32, "per_device_train_batch_size": 4, "save_strategy": "no"}
    rows = Dataset.from_list(data)
    args = SFTConfig(str(folder), **fixed | options)
    trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tiny.tokenizer())
    first: dict[str, Any] = {}
    collate = trainer.data_collator

    def remember(examples: Any) -> Any:
        batch = collate(examples)
        first.setdefault("batch", {name: copy.deepcopy(value) for name, value in batch.items()})
        return batch

    trainer.data_collator, trainer.first = remember, first
    return trainer


def texts_of(batch: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels of each text of a batch, padded or packed."""
    texts = []
    for row, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        if "attention_mask" in batch:
            real = batch["attention_mask"][row].bool()
            texts.append((ids[real], labels[real]))
        else:
            cuts = [*(batch["position_ids"][row] == 0).nonzero()[:, 0].tolist(), len(ids)]
            sizes = [end - start for start, end in pairwise(cuts)]
            texts += zip(torch.split(ids, sizes), torch.split(labels, sizes), strict=True)
    return texts


KINDS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "plain": ([{"text": text} for text in TEXTS], {}),
    "packing": ([{"text": text} for text in TEXTS], {"packing": True}),
    "padding_free": ([{"text": text} for text in TEXTS], {"padding_free": True, "max_length": None}),
    "completion_only": (PAIRS, {}),
    "packed_completions": (PAIRS, {"packing": True}),
    "whole_pairs": (PAIRS, {"completion_only_loss": False}),
    "no_checkpointing": ([{"text": text} for text in TEXTS], {"gradient_checkpointing": False}),
    "accumulated": (PAIRS, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_sft(kind: str, tmp_path: Path) -> None:
    """The loss falls, the prompt alone moves, and the first step's numbers are those of plain calls of the base."""
    data, options = KINDS[kind]
    model = make()
    before = {name: value.clone() for name, value in model.base_model.state_dict().items()}
    start = model.prompt.detach().clone()
    trainer = trainer_of(tmp_path, model, data, **options)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(log) == 12
    assert sum(entry["loss"] for entry in log[-4:]) < 0.9 * sum(entry["loss"] for entry in log[:4])
    assert not model.prompt.equal(start)
    assert all(value.equal(before[name]) for name, value in model.base_model.state_dict().items())
    if kind != "accumulated":
        expect_first_step(model.base_model, start, trainer.first["batch"], log[0])
    batch = trainer.first["batch"]
    supervised = int((batch["labels"] != -100).sum())
    real = int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
    assert (supervised < real) == (kind in ("packing", "padding_free") or (data is PAIRS and kind != "whole_pairs"))


def expect_first_step(base: Any, prompt: torch.Tensor, batch: dict[str, Any], entry: dict[str, Any]) -> None:
    texts = texts_of(batch)
    losses = torch.cat([tiny.plain_losses(base, prompt, ids, labels) for ids, labels in texts])
    # Trainer does not count a label on a row's first token; see docs/peft.md.
    counted = int((batch["labels"][:, 1:] != -100).sum())
    assert entry["loss"] == pytest.approx(losses.sum().item() / counted, abs=1e-4)
    picked = []
    for ids, labels in texts:
        logits = tiny.plain_logits(base, prompt, ids)[TOKENS - 1 : -1]
        picked.append((logits[labels != -100], labels[labels != -100]))
    logits, targets = (torch.cat(each) for each in zip(*picked, strict=True))
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert entry["entropy"] == pytest.approx(entropy.mean().item(), abs=1e-4)
    assert entry["mean_token_accuracy"] == pytest.approx((logits.argmax(-1) == targets).float().mean().item())


def test_experts(tmp_path: Path) -> None:
    """A load-balancing loss, which trl asks for by itself, is refused in one line; without it a prompt trains."""
    torch.manual_seed(1)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS)
    model = get_peft_model(tiny.small("mixtral"), config)
    data, _ = KINDS["plain"]
    with pytest.raises(ConfigError, match=r"set router_aux_loss_coef=0\.0"):
        trainer_of(tmp_path, model, data).train()
    trainer = trainer_of(tmp_path, model, data, router_aux_loss_coef=0.0, max_steps=2)
    start = model.prompt.detach().clone()
    trainer.train()
    expect_first_step(model.base_model, start, trainer.first["batch"], trainer.state.log_history[0])


def test_a_checkpoint_is_an_adapter(tmp_path: Path) -> None:
    """It loads, and a run that was resumed from it ends with the numbers of one that never stopped."""
    data, _ = KINDS["plain"]
    options = {"save_strategy": "steps", "save_steps": 4}
    whole = make()
    trainer_of(tmp_path / "whole", whole, data, **options).train()
    saved = tmp_path / "whole" / "checkpoint-12"
    loaded = PeftModel.from_pretrained(tiny.fresh("llama"), saved)
    assert loaded.prompt.equal(whole.prompt)
    assert not [path for path in saved.iterdir() if path.name.startswith(("model", "pytorch_model"))]
    again = make()
    trainer_of(tmp_path / "again", again, data, **options).train(str(tmp_path / "whole" / "checkpoint-4"))
    torch.testing.assert_close(again.prompt, whole.prompt)


def patched(family: str = "llama", **options: Any) -> Any:
    from trl.trainer.utils import add_fused_lm_head

    model = make(family)
    add_fused_lm_head(model.get_base_model(), **options)
    return model


def labelled(lefts: list[int] | None = None) -> dict[str, torch.Tensor]:
    ids, mask = tiny.pad(tiny.ids(4, 9, 6), lefts)
    labels = ids.masked_fill(mask == 0, -100)
    labels[ids % 3 == 0] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "gpt2"])
def test_all_that_trl_takes_from_the_base_is_there(family: str) -> None:
    """Each field at the place where the base alone would put it for prompt and row, as PEFT calls it; gradients too."""
    fields = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    model = patched(family, outputs=fields, temperature=0.7)
    batch = labelled()
    found = model(**batch, use_cache=False, fused_lm_head=True)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    prompt = model.prompt.to(embeds.dtype).expand(3, -1, -1)
    wide = {
        "inputs_embeds": torch.cat([prompt, embeds], 1),
        "attention_mask": torch.cat([torch.ones(3, TOKENS, dtype=torch.long), batch["attention_mask"]], 1),
        "labels": torch.cat([torch.full((3, TOKENS), -100), batch["labels"]], 1),
    }
    expected = model.get_base_model()(**wide, fused_lm_head=True)
    assert type(found) is type(expected)
    assert found.label_mask.equal(expected.label_mask)
    for name in ("loss", *fields):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
    weights = torch.randn(found.log_probs.shape)
    ours, theirs = (
        torch.autograd.grad((each.log_probs * weights).sum() + (each.entropy * weights).sum(), model.prompt)[0]
        for each in (found, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch, fused_lm_head=True).log_probs, found.log_probs, rtol=1e-4, atol=1e-4)


def test_padding_on_the_left_changes_nothing() -> None:
    model = patched()
    right, left = (model(**labelled(lefts), fused_lm_head=True) for lefts in (None, [5, 0, 3]))
    torch.testing.assert_close(left.loss, right.loss)
    torch.testing.assert_close(left.log_probs[left.label_mask], right.log_probs[right.label_mask])


def test_a_batch_without_labels_has_a_loss_of_zero() -> None:
    batch = labelled()
    batch["labels"][:] = -100
    model = patched()
    output = model(**batch, fused_lm_head=True)
    assert output.loss == 0
    assert not output.label_mask.any()
    output.log_probs.sum().backward()
    assert model.prompt.grad.eq(0).all()


def test_without_the_prompt_it_is_the_bases() -> None:
    model = patched()
    batch = labelled()
    with model.disable_adapter():
        found = model(**batch, fused_lm_head=True)
    expected = model.get_base_model()(**batch, fused_lm_head=True)
    torch.testing.assert_close(found.log_probs, expected.log_probs)


def test_logits_are_what_they_were() -> None:
    model, batch = make(), labelled()
    torch.testing.assert_close(patched()(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": None}, "give labels"),
        ({"output_router_logits": True}, "set router_aux_loss_coef=0.0"),
        ({"output_hidden_states": True}, "not supported together with output_hidden_states"),
    ],
)
def test_what_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        patched()(**labelled() | change, fused_lm_head=True)


def test_a_suffix_is_refused() -> None:
    from trl.trainer.utils import add_fused_lm_head

    model = make(prompt_placement="suffix")
    add_fused_lm_head(model.get_base_model())
    with pytest.raises(ConfigError, match="fused_lm_head is not supported together with prompt_placement suffix"):
        model(**labelled(), fused_lm_head=True)


def test_dpo(tmp_path: Path) -> None:
    """Preferences, with the base alone as the reference."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model = make()
    rows = [{"prompt": text, "chosen": " w93 w94", "rejected": " w95 w96"} for text in TEXTS]
    fixed = {"use_cpu": True, "report_to": "none", "max_steps": 10, "logging_steps": 1, "bf16": False, "beta": 1.0}
    args = DPOConfig(str(tmp_path), **fixed, learning_rate=0.1, save_strategy="no", per_device_train_batch_size=4)
    data = Dataset.from_list(rows)
    trainer = DPOTrainer(model=model, args=args, train_dataset=data, processing_class=tiny.tokenizer())
    trainer.train()
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert sum(margins[-3:]) > sum(margins[:3])
