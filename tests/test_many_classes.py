"""Many classes: what a step computes, counted, and that it computes the same as one label at a time would."""

import pytest
import torch

import tiny
from plan_tools import plan_of
from softprompt.benchmarks.speed.workloads.intents import intents
from softprompt.data.labels import unique_prefixes
from softprompt.engine import loss as engine_loss
from softprompt.engine import runner as running
from softprompt.engine.backends.attention_cpu import Packing
from softprompt.engine.loss import group_log_probs, hidden_states, losses_of
from softprompt.engine.plans import plan_candidates
from softprompt.inference.classifier import Classes
from softprompt.training.objectives import Classification
from softprompt.training.step import forward_backward
from softprompt.types import Example

CPU = torch.device("cpu")
VIRTUAL = 8


def labels(vocabulary=None):
    """The 151 intents with a token a word, by their shortest starts; token ids modulo a vocabulary."""
    words = {word: i for i, word in enumerate(sorted({word for name in intents() for word in name.split()}), start=5)}
    starts = unique_prefixes([(*(words[word] for word in name.split()), 2) for name in intents()])
    if vocabulary is None:
        return starts
    return tuple(dict.fromkeys(tuple(5 + token % (vocabulary - 5) for token in start) for start in starts))


def beginnings(candidates):
    return {candidate[:n] for candidate in candidates for n in range(1, len(candidate))}


def test_planned_tokens():
    """A text once, and behind it each beginning of a label once: not the labels one by one."""
    candidates, texts = labels(), [row.tolist() for row in tiny.ids(12, 9, 20)]
    assert len(candidates) == 151
    plan = plan_candidates(VIRTUAL, texts, candidates, CPU)
    shared = len(beginnings(candidates))
    assert plan.tree.num_tokens == VIRTUAL + sum(map(len, texts)) + len(texts) * shared
    assert shared == 35
    assert sum(len(candidate) - 1 for candidate in candidates) == 184, "what they would be one by one"
    assert len(plan.predictors.unique()) == len(texts) * (1 + shared)
    assert len(plan.predictors) == len(texts) * 335


def test_texts_and_their_labels_are_few_blocks_of_attention():
    texts = [row.tolist() for row in tiny.ids(12, 9, 20)]
    plan = plan_candidates(VIRTUAL, texts, labels(), CPU)
    assert [len(block) for block in Packing(plan.tree, frozenset(), CPU).blocks] == [VIRTUAL, 128, 18]


@pytest.mark.parametrize("grad", [True, False])
def test_each_position_goes_through_the_head_once_a_pass(grad, monkeypatch):
    """Forward, and once more backward; not once for each label."""
    base, seen = tiny.base("llama"), []
    real = running.ModelRunner.logits
    monkeypatch.setattr(running.ModelRunner, "logits", lambda *given: seen.append(len(given[1])) or real(*given))
    candidates = labels(tiny.VOCAB)
    prompt = tiny.prompt_for(base)
    plan = plan_candidates(len(prompt), [row.tolist() for row in tiny.ids(7, 4)], candidates, CPU)
    with torch.set_grad_enabled(grad):
        scores = group_log_probs(base, plan, prompt)
    positions = 2 * (1 + len(beginnings(candidates)))
    assert sum(seen) == positions < len(plan.targets) / 2
    if grad:
        scores.sum().backward()
        assert sum(seen) == 2 * positions


def test_one_token_a_position_is_not_computed_twice(monkeypatch):
    """The language-model loss: its logits are made once, and their gradient with them."""
    base, seen = tiny.base("llama"), []
    real = running.ModelRunner.logits
    monkeypatch.setattr(running.ModelRunner, "logits", lambda *given: seen.append(len(given[1])) or real(*given))
    rows = tiny.ids(7, 4)
    prompt = tiny.prompt_for(base)
    plan = plan_of(len(prompt), rows, rows)
    assert len(plan.predictors.unique()) < len(plan.predictors), "two first tokens are predicted at one position"
    losses_of(base, hidden_states(base, plan, prompt), plan).sum().backward()
    assert sum(seen) == 11


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "opt350", "bloom", "gptj"])
def test_shared_positions_give_the_same_numbers(family, chunk, monkeypatch):
    """Log-probabilities and gradient against a plain forward of each label, with chunks of few positions too."""
    with tiny.float64():
        base = tiny.base(family, torch.float64)
        monkeypatch.setattr(engine_loss, "LOGITS_PER_CHUNK", chunk * base.config.vocab_size)
        candidates, prompt = labels(tiny.VOCAB)[::4], tiny.prompt_for(base)
        (text,) = tiny.ids(6)
        expected = torch.stack([tiny.plain_score(base, prompt, text.tolist(), candidate) for candidate in candidates])
        found = group_log_probs(base, plan_candidates(len(prompt), [text.tolist()], candidates, CPU), prompt)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
        weights = torch.linspace(-2, 1, len(candidates)).sin()
        ours, plain = (torch.autograd.grad(weights @ side, prompt)[0] for side in (found, expected))
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shared_positions_in_16_bits(dtype):
    """As near to exact as one position for each token."""
    base, candidates = tiny.base("llama", dtype), labels(tiny.VOCAB)[::3]
    exact = tiny.base("llama")
    (text,) = tiny.ids(6)
    plan = plan_candidates(4, [text.tolist()], candidates, CPU)
    weights = torch.linspace(-2, 1, len(candidates)).sin()
    found = []
    for model, sharing in ((exact, 1.5), (base, 1.5), (base, 1e9)):
        prompt = tiny.prompt_for(exact, 4).detach().requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_loss, "WORTH_SHARING", sharing)
            found.append(torch.autograd.grad(weights @ group_log_probs(model, plan, prompt), prompt)[0])
    right, shared, apart = found
    assert (shared - right).norm() < 1.2 * (apart - right).norm() + 1e-3 * right.norm()


def test_a_step_of_many_classes_is_planned_in_packs(monkeypatch):
    """The tokens of a whole training step, through the code that training runs."""
    base, tokens = tiny.base("llama"), []
    real = running.ModelRunner.compute
    monkeypatch.setattr(
        running.ModelRunner, "compute", lambda *given, **more: tokens.append(len(given[2])) or real(*given, **more)
    )
    candidates = labels(tiny.VOCAB)
    classes = Classes(tuple(map(str, range(len(candidates)))), candidates)
    batch = [Example(tuple(row.tolist()), (), str(i)) for i, row in enumerate(tiny.ids(12, 9, 20, 5))]
    prompt, below = tiny.prompt_for(base), len(beginnings(candidates))
    objective = Classification(base=base, placement="prefix", tokens_per_pack=2 * below + 40, classes=classes)
    assert len(objective.packs(batch, prompt)) > 1
    forward_backward(objective, prompt, [batch])
    assert sum(tokens) == len(prompt) + 46 + 4 * below
