"""Rows of different adapters in one forest: each result is that of the row alone."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from softprompt.engine.prefix_sharing import MIN_SAVING
from softprompt.engine.runner import ModelRunner
from softprompt.errors import ConfigError
from softprompt.inference.classifier import Classes, label_log_probs, mean_states
from softprompt.inference.ensemble import Ensemble
from softprompt.inference.mixed import run_mixed
from softprompt.inference.mixed_rows import LabelRow, PlacedPrompt, StatesRow, TextRow, divide, parts_of
from softprompt.inference.probe import LinearProbe
from softprompt.inference.prompted import PromptedModel
from softprompt.types import Example

FAMILIES = ["llama", "bloom", "gpt2", "mistral", "gemma3", "mpt"]
LABELS = ((7, 8, 9), (10,), (7, 11))
OTHER_LABELS = ((20,), (21, 22))


def classes_of(ids, probe=False, ensemble=False, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    linear = LinearProbe(
        torch.tensor([0, 1]), normal(2, tiny.WIDTH), normal(len(ids), tiny.WIDTH), normal(len(ids)), torch.tensor(0.7)
    )
    joint = Ensemble(normal(3, 2, tiny.WIDTH) / 4, torch.tensor(1.7))
    names = tuple(f"class {number}" for number in range(len(ids)))
    return Classes(names, ids, linear if probe else None, joint if ensemble else None, probe, 1 if ensemble else 0)


def placed(runner, length, placement="prefix", prefilled=False, seed=0):
    prompt = tiny.prompt_for(runner.base, length, seed=seed).detach()
    cache = runner.prefill_prompt(prompt).detach() if prefilled and placement == "prefix" else None
    return PlacedPrompt(prompt, placement, cache)


def texts_of(*lengths):
    return [row.tolist() for row in tiny.ids(*lengths)]


def alone(runner, row):
    """The result of a label row by the code that evaluates one adapter."""
    model = PromptedModel(runner, row.prompt.matrix, row.prompt.placement)
    return label_log_probs(model, [row.example], row.classes, batch_size=1)[0]


def every_kind(runner):
    """Label rows of every kind of adapter, on texts of which two are equal and long enough to be shared."""
    texts = texts_of(5, 9, 1, MIN_SAVING + 6)
    texts.append(texts[-1])
    rows = []
    for number, placement in enumerate(("prefix", "suffix")):
        for probe in (False, True):
            for ensemble in (False, True):
                ids = OTHER_LABELS if probe else LABELS
                prompt = placed(runner, 3 + number, placement, prefilled=probe, seed=len(rows))
                classes = classes_of(ids, probe, ensemble, seed=len(rows))
                rows += [LabelRow(prompt, classes, Example(tuple(text), ())) for text in texts]
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_adapter_in_one_forest(family):
    """Prefix and suffix, prefilled or not, with and without probe and ensemble, are mixed with rows to continue."""
    with tiny.float64():
        runner = ModelRunner(tiny.base(family, torch.float64))
        rows = every_kind(runner)
        others = [
            TextRow(rows[0].prompt, [5, 6]),
            StatesRow(None, [9, 4, 4]),
            TextRow(None, [8]),
            TextRow(None, [3, 3]),
        ]
        found = run_mixed(runner, [*others, *rows])[len(others) :]
        for row, log_probs in zip(rows, found, strict=True):
            torch.testing.assert_close(log_probs.float(), alone(runner, row), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_with_a_prefix_against_plain_forwards(family):
    with tiny.float64():
        runner = ModelRunner(tiny.base(family, torch.float64))
        prompts = [placed(runner, length, prefilled=length == 5, seed=length) for length in (3, 5)]
        texts, of_row = texts_of(5, 9, 1, 13), (1, 0, 1, 0)
        classes = classes_of(LABELS)
        rows = [LabelRow(prompts[n], classes, Example(tuple(t), ())) for n, t in zip(of_row, texts, strict=True)]
        for row, found in zip(rows, run_mixed(runner, rows), strict=True):
            text = torch.tensor(row.example.input_ids)
            expected = [tiny.plain_score(runner.base, row.prompt.matrix, text, label) for label in LABELS]
            torch.testing.assert_close(found, torch.stack(expected).detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["prefix", "prefilled", "suffix", "none"])
def test_rows_to_continue(family, kind):
    """The KV cache holds the row's tokens in reading order, and the logits are those of a plain forward."""
    with tiny.float64():
        base = tiny.base(family, torch.float64)
        runner = ModelRunner(base)
        prompt = placed(runner, 4, "suffix" if kind == "suffix" else "prefix", kind == "prefilled")
        text = texts_of(11)[0]
        rows = [TextRow(prompt, [5, 6, 7]), TextRow(None if kind == "none" else prompt, text), TextRow(None, [9])]
        cache, logits = run_mixed(runner, rows)[1]
        embeds = base.get_input_embeddings()(torch.tensor(text))
        parts = {"none": [embeds], "suffix": [embeds, prompt.matrix]}.get(kind, [prompt.matrix, embeds])
        expected = base(inputs_embeds=torch.cat(parts)[None], use_cache=True)
        torch.testing.assert_close(logits, expected.logits[0, -1].detach(), rtol=1e-9, atol=1e-9)
        assert len(cache) == sum(map(len, parts))
        whole = runner.prefill_prompt(torch.cat(parts).detach())
        for ours, theirs in zip(cache.tensors, whole.tensors, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_mean_hidden_states():
    with tiny.float64():
        runner = ModelRunner(tiny.base("llama", torch.float64))
        prompt, text = placed(runner, 3, prefilled=True), texts_of(8)[0]
        found = run_mixed(runner, [TextRow(None, [4]), StatesRow(prompt, text), StatesRow(prompt, [])])
        model, classes = PromptedModel(runner, prompt.matrix), classes_of(LABELS)
        expected = mean_states(model, [Example(tuple(text), ())], classes, batch_size=1)[0]
        torch.testing.assert_close(found[1], expected)
        assert not found[2].any()  # a text without tokens


@st.composite
def batches(draw):
    """Indices of the rows of ``every_kind``, with repetitions, in any order."""
    return draw(st.lists(st.integers(0, 39), min_size=1, max_size=12))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches(), st.sampled_from([16, 64, 4096]))
def test_no_result_depends_on_other_rows(chosen, budget):
    """Whatever the batch, and however it is divided among runs."""
    with tiny.float64(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("softprompt.inference.mixed_rows.TOKENS_PER_CALL", budget)
        patch.setattr("softprompt.inference.mixed_rows.TOKENS_WITH_STATES", budget)
        runner = ModelRunner(tiny.base("llama", torch.float64))
        rows = every_kind(runner)
        batch = [rows[number] for number in chosen]
        for row, found in zip(batch, run_mixed(runner, batch), strict=True):
            torch.testing.assert_close(found, run_mixed(runner, [row])[0], rtol=1e-9, atol=1e-11)


def test_a_text_is_read_once_for_many_suffix_prompts(monkeypatch):
    """Sixteen tasks on one text: the run computes the text once, and of each task only its prompt and candidates."""
    runner = ModelRunner(tiny.base("llama"))
    text = tuple(texts_of(40)[0])
    rows = [
        LabelRow(placed(runner, 4, "suffix", seed=seed), classes_of(OTHER_LABELS), Example(text, ()))
        for seed in range(16)
    ]
    computed, real = [], ModelRunner.compute
    monkeypatch.setattr(ModelRunner, "compute", lambda *a, **k: computed.append(len(a[2])) or real(*a, **k))
    run_mixed(runner, rows)
    assert computed == [40 + 16 * (4 + 1)]


def test_rows_with_equal_texts_stay_together():
    """Dividing a batch keeps rows of one text in one run, though other rows stand between them."""
    runner = ModelRunner(tiny.base("llama"))
    suffix, classes = placed(runner, 4, "suffix"), classes_of(OTHER_LABELS)
    long, other = (tuple(text) for text in texts_of(2500, 2000))
    rows = [LabelRow(suffix, classes, Example(text, ())) for text in (long, other, long, other, long)]
    assert sorted(sorted(call) for call in divide(runner, rows, [parts_of(row) for row in rows])) == [[0, 2, 4], [1, 3]]


def test_nothing_to_read():
    runner = ModelRunner(tiny.base("llama"))
    with pytest.raises(ConfigError, match="neither a text nor a prompt"):
        run_mixed(runner, [TextRow(None, [])])
    with pytest.raises(ConfigError, match="neither a text nor a prompt"):
        run_mixed(runner, [StatesRow(None, []), TextRow(None, [5])])
    assert run_mixed(runner, []) == []


@pytest.mark.real
def test_the_real_model(smollm2):
    """In float32, probabilities agree with those of rows alone to 1e-4."""
    runner = ModelRunner(smollm2.model)
    ids = smollm2.tokenizer(["I want my money back", "When do you open?", "Thanks a lot for the quick reply"]).input_ids
    labels = tuple(tuple(smollm2.tokenizer(label).input_ids) for label in (" complaint", " no complaint"))
    draw = torch.Generator().manual_seed(1)
    size = smollm2.model.config.hidden_size
    prompts = [
        PlacedPrompt(torch.randn(8, size, generator=draw) * 0.1, placement) for placement in ("prefix", "suffix")
    ]
    rows = [
        LabelRow(prompt, Classes(("a", "b"), labels), Example(tuple(text), ())) for prompt in prompts for text in ids
    ]
    for row, found in zip(rows, run_mixed(runner, rows), strict=True):
        torch.testing.assert_close(found.softmax(0), alone(runner, row).softmax(0), rtol=1e-4, atol=0)
