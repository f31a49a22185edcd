"""Suffix prompts against a plain forward of each row [text; prompt; label]; the text cache; files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import ModuleList

import softprompt.engine.text_cache as keeping
import tiny
from cli_tools import forked, make_base, read_csv, rows, softprompt, write_rows
from softprompt import (
    AutoPeftModelForCausalLM,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from softprompt.config.compatibility import read_config
from softprompt.config.options import TrainOptions
from softprompt.data.task import Task
from softprompt.engine import disk_spill
from softprompt.engine import runner as running
from softprompt.engine.loss import token_losses
from softprompt.engine.plans import plan_candidates, plan_examples, plan_rows
from softprompt.engine.runner import backends
from softprompt.engine.text_cache import TextCache, cached_texts
from softprompt.errors import AdapterError, ConfigError
from softprompt.inference.classifier import Classes, label_log_probs
from softprompt.inference.evaluate import eval_loss, evaluate_examples
from softprompt.inference.score import score_labels
from softprompt.peft.push import push_adapter
from softprompt.storage.adapter import SUFFIX_KEY, read_prompt
from softprompt.training.callbacks import Callback
from softprompt.training.checkpoint import checkpoints
from softprompt.training.loop import fit
from softprompt.training.run import Run, batches_of_step
from softprompt.types import Example

P = 5
CPU = torch.device("cpu")
LABELS = [(7, 8, 2), (10, 2), (7, 11, 2), (2,)]
CLASSES = Classes(("yes", "no"), ((40, 2), (41, 42, 2)))
TASK = Task(("text",), "label", "{text}", labels=CLASSES.names)
families = pytest.mark.parametrize("family", tiny.FAMILIES)


def examples(number: int = 8, seed: int = 3) -> list[Example]:
    """Rows of mixed lengths; among them one without text, one of a single token, and two of the same text."""
    texts = [tuple(text.tolist()) for text in tiny.ids(*(1 + (5 * i) % 13 for i in range(number)), seed=seed)]
    texts[2], texts[-1] = (), texts[0]
    return [Example(text, LABELS[i % len(LABELS)], str(i)) for i, text in enumerate(texts)]


# --- the reference --------------------------------------------------------------------------------------


def plain_logits(model: Any, prompt: torch.Tensor, text: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """Logits of text, prompt and answer, one row alone, by one plain call of the model."""
    embed = model.get_input_embeddings()
    parts = [torch.tensor(part, dtype=torch.long) for part in (text, answer)]
    together = torch.cat([embed(parts[0]), prompt.to(model.dtype), embed(parts[1])])
    return model(inputs_embeds=together[None], use_cache=False).logits[0]


def plain_losses(model: Any, prompt: torch.Tensor, text: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    logits = plain_logits(model, prompt, text, answer)[len(text) + len(prompt) - 1 : -1]
    return F.cross_entropy(logits.float(), torch.tensor(answer), reduction="none")


def plain_all(model: Any, prompt: torch.Tensor, given: Sequence[Example]) -> torch.Tensor:
    return torch.cat([plain_losses(model, prompt, each.input_ids, each.label_ids) for each in given])


def gradient(losses: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Of a weighted sum, so that each token counts differently."""
    return torch.autograd.grad((losses * torch.linspace(0.5, 1.5, len(losses))).sum(), prompt)[0]


def assert_near(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape
    difference = float(((got - expected).abs().max() / expected.abs().max()).detach())
    assert difference <= tolerance, f"differs by {difference:.1e}, allowed {tolerance:.0e}"


def losses_of(
    model: Any, prompt: torch.Tensor, given: Sequence[Example], texts: TextCache | None = None
) -> torch.Tensor:
    """Losses of the labels' tokens by the engine."""
    plan = plan_examples(given, len(prompt), CPU, "suffix")
    return token_losses(model, plan, prompt, cached_texts(model, plan, texts))


def check(model: Any, given: Sequence[Example], tolerance: float, texts: TextCache | None) -> None:
    prompt = tiny.prompt_for(model, P)
    if texts is not None:
        texts.read(example.input_ids for example in given)
    ours, plain = losses_of(model, prompt, given, texts), plain_all(model, prompt, given)
    assert_near(ours, plain, tolerance)
    assert_near(gradient(ours, prompt), gradient(plain, prompt), tolerance)


@pytest.fixture(params=["packed", "levelwise"])
def backend(request: pytest.FixtureRequest, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param not in backends(tiny.base(family).base_model):
        pytest.skip(f"{family} runs level by level only")
    monkeypatch.setattr(running, "backends", lambda _: (request.param,))


# --- loss, gradient and scores ----------------------------------------------------------------------------


@families
def test_loss_and_gradient_float64(family: str, backend: None) -> None:
    with tiny.float64():
        model = tiny.base(family, torch.float64)
        check(model, examples(), 1e-9, TextCache(model, 1 << 30))


@families
def test_loss_and_gradient_float32(family: str, backend: None) -> None:
    check(tiny.base(family), examples(), 2e-5, None)


@pytest.mark.parametrize("family", ["mistral", "gemma3", "bloom", "mpt", "opt"])
@settings(max_examples=10)
@given(
    texts=st.lists(st.lists(st.integers(5, 96), max_size=12), min_size=1, max_size=5),
    labels=st.lists(st.sampled_from(LABELS), min_size=5, max_size=5),
    size=st.integers(0, 2000),
)
def test_any_rows_and_any_memory(family: str, texts: list[list[int]], labels: list[tuple[int, ...]], size: int) -> None:
    given = [Example(tuple(text), label) for text, label in zip(texts, labels, strict=False)]
    with tiny.float64(), TextCache(tiny.base(family, torch.float64), size) as kept:
        check(tiny.base(family, torch.float64), given, 1e-9, kept)


@families
@pytest.mark.parametrize("kept", [False, True])
def test_scores_float64(family: str, kept: bool, backend: None) -> None:
    texts = [example.input_ids for example in examples(6)]
    with tiny.float64():
        model = tiny.base(family, torch.float64)
        prompt = tiny.prompt_for(model, P).detach()
        known = TextCache(model, 1 << 30) if kept else None
        if known:
            known.read(texts)
        got = score_labels(model, prompt, texts, LABELS, placement="suffix", text_cache=known)
        expected = [[-plain_losses(model, prompt, text, label).sum() for label in LABELS] for text in texts]
    assert_near(got, torch.tensor(expected).to(got), 1e-9)


@pytest.mark.real
def test_smollm2(smollm2: Any, tmp_path: Path) -> None:
    names = ["complaint", "no complaint"]
    texts = ["Tweet text : @HMRCcustomers No this is my first job Label : ", "Tweet text : thanks Label : "]
    labels = [(*smollm2.tokenizer(name)["input_ids"], 0) for name in names]
    given = [Example(tuple(smollm2.tokenizer(texts[i % 2])["input_ids"]), labels[i // 2]) for i in range(4)]
    model = smollm2.model
    start = model.get_input_embeddings()(torch.tensor(given[0].input_ids[:P])).detach()
    prompt = start.clone().requires_grad_()
    plain = plain_all(model, prompt, given)
    for memory in (1 << 30, 0):
        with TextCache(model, memory, tmp_path) as kept:
            kept.read(example.input_ids for example in given)
            ours = losses_of(model, prompt, given, kept)
            assert_near(ours, plain, 1e-5)
            assert_near(gradient(ours, prompt), torch.autograd.grad(
                (plain * torch.linspace(0.5, 1.5, len(plain))).sum(), prompt, retain_graph=True
            )[0], 1e-5)  # fmt: skip
            inputs = [each.input_ids for each in given[:2]]
            scores = score_labels(model, prompt, inputs, labels, placement="suffix", text_cache=kept)
    sums = torch.stack([part.sum() for part in plain.split([len(each.label_ids) for each in given])]).detach()
    assert_near(scores, -sums.view(2, 2).T, 1e-5)


def test_scores_a_few_texts_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = tiny.base("llama"), [example.input_ids for example in examples()]
    prompt = tiny.prompt_for(model, P).detach()
    whole = score_labels(model, prompt, texts, LABELS, placement="suffix")
    monkeypatch.setattr("softprompt.inference.score.TOKENS_PER_CALL", 60)
    torch.testing.assert_close(score_labels(model, prompt, texts, LABELS, placement="suffix"), whole, rtol=0, atol=1e-5)
    assert score_labels(model, prompt, [], LABELS, placement="suffix").shape == (0, len(LABELS))


def test_it_is_not_the_same_as_in_front() -> None:
    """Or all of this would test nothing."""
    model, one = tiny.base("llama"), examples()[3]
    prompt = tiny.prompt_for(model, P).detach()
    suffix = losses_of(model, prompt, [one])
    row, labels = torch.tensor([*one.input_ids, *one.label_ids]), torch.tensor([-100] * len(one.input_ids) + [2])
    assert not torch.allclose(suffix, tiny.plain_losses(model, prompt, row, labels), atol=0.1)


def test_plans_hold_what_they_should() -> None:
    plan = plan_rows(2, [(5, 6, 7, 8), ()], [(-100, -100, 7, -100, 9), (2,)], CPU, [2, 0])
    assert (plan.tree.parents, plan.tree.lengths) == ((-1, 0, -1, 2), (2, 4, 0, 2))
    assert plan.tokens.tolist() == [5, 6, -1, -2, 7, 8, -1, -2]
    assert (plan.predictors.tolist(), plan.targets.tolist()) == ([3, 5, 7], [7, 9, 2])
    assert (plan.groups.tolist(), plan.num_groups) == ([0, 0, 1], 2)
    assert plan.places.tolist() == [0, 1, 4, 5]
    assert plan.texts == {0: (5, 6), 2: ()}
    plan = plan_candidates(2, [(5,), (6, 7)], [(8, 9, 2), (8, 2)], CPU, [[0], [0]])
    assert (plan.tree.parents, plan.tree.lengths) == ((-1, 0, 1, -1, 3, 4), (1, 2, 2, 2, 2, 2))
    assert plan.tokens.tolist() == [5, -1, -2, 8, 9, 6, 7, -1, -2, 8, 9]
    assert plan.targets.tolist() == [8, 9, 2, 8, 2] * 2
    assert plan.predictors.tolist() == [2, 3, 4, 2, 3, 8, 9, 10, 8, 9]
    assert (plan.groups.tolist(), plan.num_groups) == ([0, 0, 0, 1, 1, 2, 2, 2, 3, 3], 4)
    assert (plan.places.tolist(), plan.texts) == ([0, 5, 6], {0: (5,), 3: (6, 7)})


# --- what is kept of texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_memory_and_disk_give_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    model, texts = tiny.base("mistral", dtype), [example.input_ids for example in examples() if example.input_ids]
    fresh = TextCache(model, 1 << 30)
    fresh.read(texts)
    for memory in (0, 3000):  # some of them fit
        with TextCache(model, memory, tmp_path) as kept:
            kept.read(texts[::-1])  # whatever the order in which they are asked for
            for text in texts:
                for ours, theirs in zip(kept.get(text).layers, fresh.get(text).layers, strict=True):
                    assert all(a.dtype is dtype and a.equal(b) for a, b in zip(ours, theirs, strict=True))
            assert list(tmp_path.iterdir()) == [], "the file has no name"
            size = os.fstat(kept._spill._file.fileno()).st_size + sum(map(len, kept._in_memory.values()))
            per_token = 2 * 2 * 2 * 8 * dtype.itemsize  # keys and values, layers, key heads, head width
            assert size == per_token * sum(map(len, set(texts))), "and 16 bits stay 16"
            assert bool(kept._in_memory) == (memory > 0)
    assert kept._spill._file is None


def test_each_text_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read, done = tiny.base("llama"), [], []
    real = keeping.read_texts
    monkeypatch.setattr(keeping, "read_texts", lambda base, texts: read.extend(texts) or real(base, texts))
    kept, texts = TextCache(model, 1 << 30), [example.input_ids for example in examples()]
    kept.read(texts, done.append)
    kept.read(texts, done.append)
    for text in texts:
        if text:
            kept.get(list(text))
    assert sorted(read) == sorted({text for text in texts if text})
    assert sum(done) == len(read)
    assert len(kept.get((9, 9, 9))) == 3  # one that nobody announced is read when it is asked for
    assert read[-1] == (9, 9, 9)


def test_a_text_takes_no_gradient_and_has_no_hidden_states() -> None:
    """A plan that predicts from a text before a suffix prompt by mistake gives NaN."""
    model, text = tiny.base("llama"), (5, 6, 7)
    kept = TextCache(model, 1 << 30)
    kept.read([text])
    known = kept.get(text)
    assert not any(tensor.requires_grad for tensor in known.tensors)
    assert known.hidden.isnan().all()
    plan = plan_examples([Example(text, (8, 2))], P, CPU, "suffix")
    wrong = replace(plan, predictors=plan.predictors - P)
    prompt = tiny.prompt_for(model, P)
    found = [token_losses(model, each, prompt, cached_texts(model, each, kept)) for each in (plan, wrong)]
    assert found[0].isfinite().all()
    assert found[1][0].isnan()


def test_a_full_disk_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, prompt = tiny.base("llama"), examples(), tiny.prompt_for(tiny.base("llama"), P)
    monkeypatch.setattr(disk_spill, "SPARE_BYTES", 1 << 60)
    with TextCache(model, 3000, tmp_path) as kept:
        with pytest.warns(UserWarning, match="recomputed in each epoch, which is slow: raise text_cache_memor"):
            kept.read(example.input_ids for example in given)
        assert 0 < len(kept._in_memory) < 7
        assert_near(losses_of(model, prompt, given, kept), plain_all(model, prompt, given), 2e-5)


def test_a_write_that_fails_half_way_leaves_nothing_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = tiny.base("llama"), examples()
    real = disk_spill.shutil.disk_usage
    answers = iter([real(tmp_path), real(tmp_path)])

    def usage(folder: Path) -> Any:
        found = next(answers, None)
        if found is None:
            raise OSError(28, "No space left on device")
        return found

    monkeypatch.setattr(disk_spill.shutil, "disk_usage", usage)
    with TextCache(model, 0, tmp_path) as kept:
        with pytest.warns(UserWarning, match="No space left on device"):
            kept.read(example.input_ids for example in given)
        assert len(kept._on_disk) == 2
        prompt = tiny.prompt_for(model, P)
        assert_near(losses_of(model, prompt, given, kept), plain_all(model, prompt, given), 2e-5)


# --- the library ----------------------------------------------------------------------------------------------


def suffix_model(family: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    config = PromptTuningConfig(
        "CAUSAL_LM", num_virtual_tokens=P, prompt_tuning_init="SAMPLE_VOCAB", prompt_placement="suffix"
    )
    return get_peft_model(tiny.base(family, dtype), config)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "opt"])
@pytest.mark.parametrize("embeds", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
def test_forward_of_a_padded_batch(family: str, embeds: bool, hooked: bool, request: pytest.FixtureRequest) -> None:
    """The prompt stands before the first label of each row, wherever the padding is; logits are in PEFT's columns."""
    shapes = []
    if hooked:  # it sees one padded batch, as under PEFT
        layers = next(part for part in tiny.base(family, torch.float64).modules() if isinstance(part, ModuleList))
        hook = layers[0].register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[:2])))
        request.addfinalizer(hook.remove)
    lengths, starts = (9, 4, 6, 5), (6, 0, 5, 5)  # the last row has no label
    ids = tiny.ids(*lengths)
    labels = [row.clone() for row in ids]
    for label, start in zip(labels, starts, strict=True):
        label[:start] = -100
    labels[0][7] = -100  # a hole
    with tiny.float64():
        model = suffix_model(family, torch.float64)
        base, prompt = model.base_model, model.prompt.detach().double().requires_grad_()
        lefts = [0, 5, 1, 2]
        tokens, mask = tiny.pad(ids, lefts, 10)
        marks, _ = tiny.pad(labels, lefts, 10, fill=-100)
        given = {"inputs_embeds": base.get_input_embeddings()(tokens)} if embeds else {"input_ids": tokens}
        output = model(**given, attention_mask=mask, labels=marks)
        assert not hooked or shapes == [(4, P + 10)]
        (ours,) = torch.autograd.grad(output.loss, model.prompt, retain_graph=True)
        losses = []
        for i, (row, label, start) in enumerate(zip(ids, labels, starts, strict=True)):
            logits = plain_logits(base, prompt, row[:start].tolist(), row[start:].tolist())
            found = output.logits[i]
            assert_near(found[:P], logits[start : start + P], 1e-8)
            expected = torch.cat([logits[:start], logits[start + P :]])
            assert_near(found[P:][mask[i].bool()], expected, 1e-8)
            assert not found[P:][~mask[i].bool()].any()
            kept = label[start:] != -100
            losses.append(F.cross_entropy(logits[start + P - 1 : -1][kept], label[start:][kept], reduction="none"))
        plain = torch.cat(losses).mean()
        assert_near(output.loss, plain, 1e-9)
        assert_near(ours, torch.autograd.grad(plain, prompt)[0].to(ours), 1e-6)  # the parameter is float32
        last = model(input_ids=tokens, attention_mask=mask).logits[0, P - 1]
        assert_near(last, plain_logits(base, prompt, ids[0].tolist(), ())[-1], 1e-8)
    with pytest.raises(ConfigError, match="prompt_placement suffix is not supported together with use_cache"):
        model(input_ids=tokens, use_cache=True)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "bloom", "mpt", "gpt2"])
def test_generate(family: str) -> None:
    """Text, prompt, new tokens; each row as if alone, wherever the padding is."""
    model = suffix_model(family)
    texts = tiny.ids(7, 1, 4)
    expected = []
    for text in texts:
        new: list[int] = []
        for _ in range(6):
            with torch.no_grad():
                new.append(int(plain_logits(model.base_model, model.prompt, text.tolist(), new)[-1].argmax()))
        expected.append(new)
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    for tokens, mask in (tiny.left_pad(texts), tiny.pad(texts)):
        written = model.generate(input_ids=tokens, attention_mask=mask, **how)
        assert written[:, tokens.shape[1] :].tolist() == expected
    alone = model.generate(input_ids=texts[0][None], **how, use_cache=False)  # there is one all the same
    assert alone[0, 7:].tolist() == expected[0]
    beams = model.generate(input_ids=tokens, attention_mask=mask, **how, num_beams=3)
    one_beam = [model.generate(input_ids=text[None], **how, num_beams=3)[0, len(text) :].tolist() for text in texts]
    assert beams[:, tokens.shape[1] :].tolist() == one_beam
    filled = model.base_model(input_ids=texts[0][None], use_cache=True).past_key_values
    with pytest.raises(ConfigError, match="leave the filled past_key_values out"):
        model.generate(input_ids=texts[0][None], past_key_values=filled, **how)


def test_evaluation_knows_where_the_prompt_stands() -> None:
    model = suffix_model()
    given = [Example(each.input_ids, CLASSES.ids[i % 2], CLASSES.names[i % 2]) for i, each in enumerate(examples())]
    plain = plain_all(model.base_model, model.prompt, given).detach()
    kept = TextCache(model.base_model, 1 << 30)
    for known in (None, kept):
        assert eval_loss(model.prompted, given, batch_size=3, text_cache=known) == pytest.approx(
            float(plain.mean()), abs=1e-6
        )
        scores = label_log_probs(model.prompted, given, CLASSES, batch_size=3, text_cache=known)
        expected = [[-float(plain_losses(model.base_model, model.prompt, each.input_ids, label).sum().detach())
                     for label in CLASSES.ids] for each in given]  # fmt: skip
        torch.testing.assert_close(scores, torch.tensor(expected), rtol=0, atol=1e-4)
        assert evaluate_examples(
            model.prompted, given, CLASSES, batch_size=3, text_cache=known
        ).eval_loss == pytest.approx(float(plain.mean()), abs=1e-5)
        kept.read(example.input_ids for example in given)


# --- config and files -------------------------------------------------------------------------------------------


def test_the_config_says_where() -> None:
    assert PromptTuningConfig().prompt_placement == "prefix"
    assert "prompt_placement" not in PromptTuningConfig().to_dict()
    config = PromptTuningConfig(prompt_placement="suffix")
    assert config.peft_type == "SUFFIX_PROMPT_TUNING"
    assert config.to_dict()["prompt_placement"] == "suffix"
    assert PromptTuningConfig(peft_type="SUFFIX_PROMPT_TUNING") == config
    assert replace(config, inference_mode=True).prompt_placement == "suffix"
    with pytest.raises(ConfigError, match="prompt_placement must be prefix or suffix, not 'infix'"):
        PromptTuningConfig(prompt_placement="infix")
    for kind, placement in (("PROMPT_TUNING", "suffix"), ("SUFFIX_PROMPT_TUNING", "prefix")):
        with pytest.raises(ConfigError, match=f"{placement} contradicts peft_type {kind}"):
            PromptTuningConfig(peft_type=kind, prompt_placement=placement)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved suffix adapter."""
    model = suffix_model()
    with torch.no_grad():
        model.prompt.add_(0.1)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_save_and_load(folder: Path) -> None:
    values = json.loads((folder / "adapter_config.json").read_text())
    assert (values["peft_type"], values["prompt_placement"]) == ("SUFFIX_PROMPT_TUNING", "suffix")
    model = PeftModel.from_pretrained(tiny.base("llama"), folder)
    assert model.prompt_placement == "suffix"
    assert model.peft_type == "SUFFIX_PROMPT_TUNING"
    assert model.prompt.equal(read_prompt(folder / "adapter_model.safetensors", "suffix"))
    (state,) = get_peft_model_state_dict(model).items()
    assert state[0] == SUFFIX_KEY
    set_peft_model_state_dict(model, {SUFFIX_KEY: state[1] + 1})
    model.load_state_dict({SUFFIX_KEY: state[1]})
    assert model.prompt.equal(state[1])
    model.load_adapter(folder, "second")
    model.set_adapter("second")
    assert model.prompt_placement == "suffix"
    del values["prompt_placement"]  # the type alone says it too
    (folder / "adapter_config.json").write_text(json.dumps(values))
    assert read_config(folder).prompt_placement == "suffix"


def test_the_auto_class_loads_it(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    base = AutoPeftModelForCausalLM  # reads the base's name from the adapter
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=3, prompt_placement="suffix"),
    )
    model.save_pretrained(tmp_path / "adapter")
    assert base.from_pretrained(tmp_path / "adapter").prompt_placement == "suffix"


def test_a_prompt_does_not_change_sides(folder: Path, tmp_path: Path) -> None:
    prefix = get_peft_model(tiny.base("llama"), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=P))
    prefix.save_pretrained(tmp_path / "prefix")
    before = prefix.prompt.detach().clone()
    with pytest.raises(AdapterError, match=r"no tensor 'prompt_embeddings' \(it has suffix_prompt_embeddings\)"):
        prefix.load_adapter(folder, "default")
    with pytest.raises(KeyError):
        set_peft_model_state_dict(prefix, {SUFFIX_KEY: before})
    assert prefix.prompt.equal(before)
    prefix.load_adapter(folder, "second")  # one model may have both
    assert prefix.prompt_placement == "prefix"
    prefix.set_adapter("second")
    assert prefix.prompt_placement == "suffix"
    (folder / "adapter_config.json").write_bytes((tmp_path / "prefix" / "adapter_config.json").read_bytes())
    with pytest.raises(AdapterError, match="no tensor 'prompt_embeddings'"):
        PeftModel.from_pretrained(tiny.base("llama"), folder)
    values = json.loads((folder / "adapter_config.json").read_text()) | {"prompt_placement": "suffix"}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="prompt_placement suffix contradicts peft_type PROMPT_TUNING"):
        PeftModel.from_pretrained(tiny.base("llama"), folder)


@pytest.mark.filterwarnings("ignore")
def test_peft_refuses_it(folder: Path) -> None:
    """By its type; and whoever talks PEFT into another type finds no tensor that PEFT knows."""
    peft = pytest.importorskip("peft")
    with pytest.raises(KeyError, match="SUFFIX_PROMPT_TUNING"):
        peft.PeftModel.from_pretrained(tiny.fresh("llama"), str(folder))
    with pytest.raises(KeyError, match="SUFFIX_PROMPT_TUNING"):
        peft.PeftModelForCausalLM.from_pretrained(tiny.fresh("llama"), str(folder))
    with pytest.raises(KeyError, match="SUFFIX_PROMPT_TUNING"):
        peft.PeftConfig.from_pretrained(str(folder))
    theirs = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, token_dim=32)
    with pytest.raises(KeyError, match="prompt_embeddings"):
        peft.PeftModel.from_pretrained(tiny.fresh("llama"), str(folder), config=theirs)
    model = peft.get_peft_model(tiny.fresh("llama"), peft.PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=P))
    with pytest.raises(KeyError, match="SUFFIX_PROMPT_TUNING"):
        model.load_adapter(str(folder), "second")
    text = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(text.replace("SUFFIX_PROMPT_TUNING", "PROMPT_TUNING"))
    with pytest.raises(KeyError, match="prompt_embeddings"):
        peft.PeftModel.from_pretrained(tiny.fresh("llama"), str(folder))
    with pytest.raises(KeyError, match="prompt_embeddings"):
        model.load_adapter(str(folder), "another")


def test_the_card_says_it(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "A suffix soft prompt of" in card
    assert "| Prompt placement | suffix |" in card
    assert "PEFT cannot load it" in card
    assert "from peft import" not in card
    assert "library_name: softprompt" in card


def test_pushing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pushed:
        repo_url = "pushed"

    monkeypatch.setattr("softprompt.peft.push.push_folder", lambda *_, **__: Pushed())
    assert push_adapter(folder, "me/it", private=False, revision=None, commit_message="") == "pushed"


# --- training -----------------------------------------------------------------------------------------------------


class Watch(Callback):
    def __init__(self, stop_after: int | None = None) -> None:
        self.losses: list[float] = []
        self.stop_after = stop_after

    def on_step_end(self, step: int, loss: float) -> None:
        self.losses.append(loss)
        if step == self.stop_after:
            raise KeyboardInterrupt


def make_run(folder: Path, placement: str = "suffix", *, memory: int | None = 1 << 30, **options: Any) -> Run:
    """A run on a tiny Llama, 10 rows, 2 a batch; ``memory`` for the texts, ``None`` to read them in each step."""
    watch = options.pop("callback", None) or Watch()
    values = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "num_virtual_tokens": P, "learning_rate": 0.3}
    chosen = TrainOptions(output_dir=folder, **{**values, "prompt_placement": placement, **options})
    torch.manual_seed(0)
    config = PromptTuningConfig(
        "CAUSAL_LM", num_virtual_tokens=P, prompt_tuning_init="SAMPLE_VOCAB", prompt_placement=placement
    )
    model = get_peft_model(tiny.base("llama"), config)
    kept = TextCache(model.base_model, memory, folder.parent) if memory is not None and placement == "suffix" else None
    return Run(model, chosen, TASK, examples(10), None, watch, texts=kept)


@pytest.mark.parametrize("memory", [1 << 30, 0, None])
def test_it_trains_as_a_plain_loop_does(tmp_path: Path, memory: int | None) -> None:
    run = make_run(tmp_path, memory=memory, lr_scheduler_type="constant")
    prompt = run.model.prompt.detach().clone().requires_grad_()
    fit(run)
    optimizer = torch.optim.AdamW([prompt], lr=0.3, weight_decay=0.01)
    losses = []
    for step in range(run.max_steps):
        batch = [example for part in batches_of_step(run, step) for example in part]
        loss = plain_all(run.model.base_model, prompt, batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    torch.testing.assert_close(run.model.prompt.detach(), prompt.detach(), rtol=0, atol=2e-5)
    assert run.callback.losses == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("stop_after", [4, 7])
def test_resuming_is_exact(tmp_path: Path, stop_after: int) -> None:
    """To the bit, though the second half finds its texts on the disk, and the first had them in memory."""
    options = {"save_strategy": "steps", "save_steps": 3}
    whole = make_run(tmp_path / "whole", **options)
    fit(whole)
    with pytest.raises(KeyboardInterrupt):
        fit(make_run(tmp_path / "cut", callback=Watch(stop_after), **options))
    again = make_run(tmp_path / "cut", memory=0, **options)
    fit(replace(again, resume_from=checkpoints(tmp_path / "cut")[-1]))
    assert again.model.prompt.equal(whole.model.prompt)


def test_a_run_does_not_change_sides(tmp_path: Path) -> None:
    runs = {side: make_run(tmp_path / side, side) for side in ("prefix", "suffix")}
    assert len({run.fingerprint for run in runs.values()}) == 2
    for side, run in runs.items():
        fit(run)
        other = make_run(tmp_path / side, "prefix" if side == "suffix" else "suffix")
        with pytest.raises(AdapterError, match="prompt_placement"):
            fit(replace(other, resume_from=checkpoints(tmp_path / side)[-1]))


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_a_batch_that_is_cut_trains_the_same(tmp_path: Path, placement: str) -> None:
    sizes = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "learning_rate": 0.01}
    whole = make_run(tmp_path / "whole", placement, **sizes)
    cut = make_run(tmp_path / "cut", placement, **sizes, tokens_per_pack=12)
    (batch, _) = batches_of_step(cut, 0)
    (at_once,), packs = (run.objective.packs(batch, run.prompt) for run in (whole, cut))
    assert 1 < len(packs) <= 5
    assert torch.cat([pack.plan.targets for pack in packs]).tolist() == at_once.plan.targets.tolist()
    fit(whole)
    fit(cut)
    torch.testing.assert_close(cut.model.prompt, whole.model.prompt, rtol=0, atol=2e-5)
    assert cut.callback.losses == pytest.approx(whole.callback.losses, rel=1e-5)


# --- the command line -----------------------------------------------------------------------------------------------

TRAIN = (
    "train --recipe guide --model_name_or_path base --train_file train.csv --validation_file test.csv "
    "--test_file test.csv"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a process of its own, and commands that use what it wrote, each in a new one."""
    place = tmp_path_factory.mktemp("suffix")
    make_base(place / "base")
    write_rows(place / "train.csv", rows(24))
    write_rows(place / "test.csv", rows(20, 32))
    how = "--prompt_placement suffix --num_virtual_tokens 4 --num_train_epochs 3 --learning_rate 0.1"
    softprompt(*f"{TRAIN} {how} --text_cache_memory 0.00001 --output_dir run".split(), cwd=place, check=True)
    for command in (
        "evaluate --adapter run --test_file test.csv --generate --output_dir scores",
        "predict --adapter run --input_file test.csv --output_file answers.csv",
        "predict --adapter run --generate --max_new_tokens 3 --input_file test.csv --output_file written.csv",
        "inspect run --nearest 2",
        f"{TRAIN} {how} --dry_run --output_dir none",
    ):
        done = forked(*command.split(), cwd=place)
        assert done.returncode == 0, done.stderr
        (place / f"{command.split()[0]}.txt").write_text(done.stdout)
    return place


def test_new_processes_give_the_same_figures(place: Path) -> None:
    trained, scored = (json.loads((place / name / "metrics.json").read_text()) for name in ("run", "scores"))
    for name in ("accuracy", "macro_f1", "confusion_matrix", "labels", "num_examples"):
        assert scored[name] == trained[name]
    assert scored["eval_loss"] == pytest.approx(trained["eval_loss"], abs=1e-6)
    matrix = [[0, 0], [0, 0]]
    for row in read_csv(place / "answers.csv"):
        matrix[["yes", "no"].index(row["label"])][["yes", "no"].index(row["predicted_label"])] += 1
    assert matrix == trained["confusion_matrix"]
    assert trained["confusion_matrix"] != [[0, 10], [0, 10]]


def test_free_text_follows_the_prompt(place: Path) -> None:
    """What is written is what the plain forward writes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(place / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    prompt = read_prompt(place / "run" / "adapter_model.safetensors", "suffix")
    for row in read_csv(place / "written.csv")[:4]:
        text, new = tokenizer(f"text : {row['text']} Label : ", add_special_tokens=False)["input_ids"], []
        with torch.no_grad():
            while len(new) < 3 and 2 not in new:
                new.append(int(plain_logits(base, prompt, text, new)[-1].argmax()))
        assert row["generated_text"] == tokenizer.decode(new, skip_special_tokens=True).strip()


def test_what_the_folder_holds(place: Path) -> None:
    assert read_config(place / "run").prompt_placement == "suffix"
    assert "prompt_placement: suffix" in (place / "run" / "train_config.yaml").read_text()
    assert "then the prompt. It then generates one of the labels" in (place / "run" / "README.md").read_text()
    assert not [path for path in (place / "run").iterdir() if path.name.startswith((".", "tmp"))]
    assert "suffix prompt: it follows the text" in (place / "inspect.txt").read_text()
    assert "the prompt stands between input and label" in (place / "train.txt").read_text()
    assert not (place / "none").exists()
