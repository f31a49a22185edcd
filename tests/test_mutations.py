"""Faults put into our own code on purpose: each must make a named check of the real tests fail."""

from dataclasses import replace

import pytest
import torch

import test_engine
import test_generate
import test_model_api
import test_padding
import tiny
from softprompt.engine import loss, row_prompts
from softprompt.engine import runner as running
from softprompt.engine import tree as trees
from softprompt.engine.backends import attention_cpu as attention
from softprompt.engine.backends import levelwise as levels
from softprompt.engine.plans import plan_mixed
from softprompt.engine.row_prompts import RowPrompts
from softprompt.inference import forward, generate
from softprompt.peft import initialization as initialize

_PASSED = set()


def passes(case, check, *args):
    """The check passes without a fault. It is run once per process for each ``case``, a hashable description."""
    if (check, case) not in _PASSED:
        check(*args)
        _PASSED.add((check, case))


def must_notice(check, *args):
    """The check fails by an assertion of its own, not by an accident."""
    with pytest.raises(AssertionError):
        check(*args)


def rows_of(family):
    return test_padding.prompted(family), *test_padding.mixed()


# -- starts ----------------------------------------------------------------------------------------


def test_text_rows_shifted_by_one(monkeypatch, tokenizer_dir):
    test_model_api.check_text_start(tokenizer_dir)
    real = initialize.from_text
    monkeypatch.setattr(initialize, "from_text", lambda *args: real(*args).roll(1, dims=0))
    must_notice(test_model_api.check_text_start, tokenizer_dir)


def test_text_tokens_shifted_by_one(monkeypatch, tokenizer_dir):
    real = initialize.embed
    monkeypatch.setattr(initialize, "embed", lambda ids, words: real(ids + 1, words))
    must_notice(test_model_api.check_text_start, tokenizer_dir)


def test_sample_vocab_zeroed(monkeypatch):
    test_model_api.check_sampled_start()
    real = initialize.sample_vocab
    monkeypatch.setattr(initialize, "sample_vocab", lambda *args: torch.zeros_like(real(*args)))
    must_notice(test_model_api.check_sampled_start)


def test_sample_vocab_one_row_for_all(monkeypatch):
    real = initialize.sample_vocab
    monkeypatch.setattr(initialize, "sample_vocab", lambda *args: real(*args)[:1].expand(args[0], -1).clone())
    must_notice(test_model_api.check_sampled_start)


# -- steps -----------------------------------------------------------------------------------------


def suffix(runner, tree, embeds, *_, **__):
    """``ModelRunner.forward`` with the prompt after each row."""
    prompt, out = embeds[: tree.lengths[0]], []
    for node in range(1, len(tree.lengths)):
        row = embeds[tree.starts[node] :][: tree.lengths[node]]
        hidden = runner.base.base_model(
            inputs_embeds=torch.cat([row, prompt])[None], use_cache=False
        ).last_hidden_state[0]
        out.append(hidden[: len(row)])
        last = hidden[len(row) :]
    return torch.cat([last, *out])


def unseen(self, *given, **more):
    """``AncestorCache.prefix`` whose mask hides all ancestors: the prompt."""
    cache, seen = PREFIX(self, *given, **more)
    return cache, torch.zeros_like(seen)


PREFIX = levels.AncestorCache.prefix
UPDATE = levels.PrefixLayer.update
ADD = attention.KeyGradients.add


def first_row_only(self, keys, values, *args, **kwargs):
    """``PrefixLayer.update`` through which only the first row's gradient reaches the prompt."""
    whole = UPDATE(self, keys, values, *args, **kwargs)
    if self.keys is None:
        return whole
    own = keys.shape[2]
    return tuple(
        torch.cat([torch.cat([x[:1, :, :-own], x[1:, :, :-own].detach()]), x[:, :, -own:]], dim=2) for x in whole
    )


def first_block_only(self, block, skipped, found):
    """``KeyGradients.add`` through which only the first block behind the prompt sends its gradient there."""
    own = len(block)
    if block.start > 11:
        found = torch.cat([torch.zeros_like(found[:, :-own]), found[:, -own:]], dim=1)
    ADD(self, block, skipped, found)


def counting_virtual(*given):
    """``plan_mixed`` that also asks the virtual tokens of its first prompt to predict something."""
    made, virtual = plan_mixed(*given), given[0][0]
    extra = torch.arange(virtual - 1)
    columns = {"predictors": extra, "targets": torch.zeros_like(extra), "groups": torch.zeros_like(extra)}
    return replace(made, **{name: torch.cat([more, getattr(made, name)]) for name, more in columns.items()})


def late(*given):
    """``plan_mixed`` whose labels are predicted by their own position: shifted by one."""
    made = plan_mixed(*given)
    return replace(made, predictors=(made.predictors + 1).clamp_max(made.tree.num_tokens - 1))


def without_gradient(base, plan, prompt, *more):
    return loss.hidden_states(base, plan, 0 * prompt + prompt.detach(), *more)


STEP_MUTANTS = {
    "prompt-behind-the-text": lambda patch: patch.setattr(running.ModelRunner, "forward", suffix),
    "prompt-masked-out": lambda patch: (
        patch.setattr(levels.AncestorCache, "prefix", unseen),
        patch.setattr(attention.Packing, "above", lambda *_: []),
    ),
    "virtual-positions-in-the-loss": lambda patch: patch.setattr(row_prompts, "plan_mixed", counting_virtual),
    "labels-predicted-by-themselves": lambda patch: patch.setattr(row_prompts, "plan_mixed", late),
    "gradient-of-the-first-rows-only": lambda patch: (
        patch.setattr(levels.PrefixLayer, "update", first_row_only),
        patch.setattr(attention.KeyGradients, "add", first_block_only),
        patch.setattr(attention, "BLOCK", 8),
    ),
    "positions-from-0-in-each-row": lambda patch: patch.setattr(
        trees.Tree, "depths", property(lambda self: [0] * len(self.parents))
    ),
    "prompt-without-gradient": lambda patch: patch.setattr(forward, "hidden_states", without_gradient),
}


@pytest.fixture(params=["packed", "levelwise"])
def backend(request, monkeypatch):
    monkeypatch.setattr(running, "backends", lambda _: (request.param,))
    return request.param


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("mutant", STEP_MUTANTS)
def test_step_mutants(mutant, family, backend, monkeypatch):
    with tiny.float64():
        case = rows_of(family)
        passes((family, backend), test_padding.check_batch, *case)
        STEP_MUTANTS[mutant](monkeypatch)
        must_notice(test_padding.check_batch, *case)


ENGINE_MUTANTS = [
    "prompt-behind-the-text",
    "prompt-masked-out",
    "gradient-of-the-first-rows-only",
    "positions-from-0-in-each-row",
]


@pytest.mark.parametrize("mutant", ENGINE_MUTANTS)
def test_engine_mutants(mutant, backend, monkeypatch):
    """The same faults below the API: the engine's own checks notice them too."""
    with tiny.float64():
        model = tiny.base("llama", torch.float64)
        passes(backend, test_engine.check_rows, model, 1e-9)
        STEP_MUTANTS[mutant](monkeypatch)
        must_notice(test_engine.check_rows, model, 1e-9)


def test_gradient_of_the_first_rows_only_is_seen_row_by_row(backend, monkeypatch):
    with tiny.float64():
        model = tiny.base("llama", torch.float64)
        STEP_MUTANTS["gradient-of-the-first-rows-only"](monkeypatch)
        must_notice(test_engine.check_each_gradient, model, 1e-9)


def test_scores_without_the_prompt(backend, monkeypatch):
    with tiny.float64():
        model = tiny.base("llama", torch.float64)
        test_engine.check_scores(model, 1e-9)
        STEP_MUTANTS["prompt-masked-out"](monkeypatch)
        must_notice(test_engine.check_scores, model, 1e-9)


# -- the plain way -----------------------------------------------------------------------------------


def test_the_plain_way_without_its_layout(monkeypatch):
    """Prompt, then padding, then text: what PEFT does, and what sliding windows cannot bear."""
    real = generate.lay_out

    def as_it_comes(mask, virtual, *_):
        layout = real(mask, virtual)
        columns = torch.arange(layout.order.shape[1]).expand_as(layout.order)
        return generate.Layout(columns, torch.cat([virtual, mask], 1).long(), layout.position_ids)

    with tiny.float64():
        case = rows_of("mistral")
        test_padding.check_batch(*case, plain=True)
        monkeypatch.setattr(generate, "lay_out", as_it_comes)
        must_notice(lambda: test_padding.check_batch(*case, plain=True))


# -- generation ------------------------------------------------------------------------------------


def lose(monkeypatch):
    real = generate.prompted_call
    monkeypatch.setattr(generate, "prompted_call", lambda base, prompts, **more: real(base, nothing(prompts), **more))


def nothing(prompts):
    return RowPrompts.of([prompts.matrix[:0]])


def read_another(monkeypatch):
    """The engine's first call reads another prompt."""
    real = generate._read_rows

    def read(base, prompts, *more):
        return real(base, replace(prompts, matrix=prompts.matrix.roll(1, -1)), *more)

    monkeypatch.setattr(generate, "_read_rows", read)


def lose_from_the_cache(monkeypatch):
    """The first call reads the prompt, and leaves nothing of it to the others."""
    real = generate._placed
    monkeypatch.setattr(generate, "_placed", lambda states, slots: real(states, slots.where(slots > 5, 0)))


def lose_after_the_first_step(monkeypatch):
    """Continuations no longer see the prompt's keys in the cache (all rows of the check are equally long)."""

    real = generate.further_inputs

    def blind(base, prompts, new, *more):
        inputs = real(base, prompts, new, *more)
        inputs["attention_mask"][:, : prompts.width] = 0
        return inputs

    monkeypatch.setattr(generate, "further_inputs", blind)


def put_behind(monkeypatch):
    """``[ pads | tokens | prompt ]``."""
    real = generate.lay_out
    monkeypatch.setattr(generate, "lay_out", lambda mask, virtual, *_: real(mask, virtual, mask.sum(1)))


def mask_out(monkeypatch):
    real = generate.lay_out

    def lay_out(mask, virtual, *_):
        layout = real(mask, virtual)
        seen = layout.attention_mask.scatter(1, layout.order[:, : virtual.shape[1]], 0)
        return generate.Layout(layout.order, seen, layout.position_ids)

    monkeypatch.setattr(generate, "lay_out", lay_out)


def restart_positions(monkeypatch):
    """Positions of the first call are those of the columns, padding included."""
    real = generate.lay_out

    def lay_out(mask, virtual, *_):
        layout = real(mask, virtual)
        columns = torch.arange(layout.position_ids.shape[1]).expand_as(layout.position_ids)
        return generate.Layout(layout.order, layout.attention_mask, columns)

    monkeypatch.setattr(generate, "lay_out", lay_out)


def reinject(monkeypatch):
    """The prompt in front of every step's token, as PEFT does with a filled cache in ``forward``."""
    real = generate.further_inputs

    def again(base, prompts, new, attention_mask, cache):
        embeds = torch.cat([prompts.matrix.expand(len(new), -1, -1), base.get_input_embeddings()(new)], 1)
        return real(base, nothing(prompts), embeds, None, cache)

    monkeypatch.setattr(generate, "further_inputs", again)


def check_equally_long(model):
    """Generation of rows of one length, without a mask."""
    rows = tiny.ids(7, 7)
    test_generate.check_generation(model, rows, torch.stack(rows), None)


def plainly(monkeypatch):
    """Generation whose first call is the base's own."""
    monkeypatch.setattr(generate, "_can_be_filled", lambda *_: False)


GENERATION_MUTANTS = {
    "plain": [lose, lose_after_the_first_step, put_behind, mask_out, reinject],
    "engine": [read_another, lose_from_the_cache, lose_after_the_first_step, put_behind, reinject],
}


@pytest.mark.parametrize("check", [check_equally_long, test_generate.check_left_padded], ids=["equal", "left-padded"])
@pytest.mark.parametrize(
    ("first", "mutant"), [(first, mutant) for first, mutants in GENERATION_MUTANTS.items() for mutant in mutants]
)
def test_generation_mutants(first, mutant, check, monkeypatch):
    model = test_generate.prompted("llama")
    if first == "plain":
        plainly(monkeypatch)
    passes(first, check, model)
    mutant(monkeypatch)
    must_notice(check, model)


def test_generation_with_positions_of_columns(monkeypatch):
    """Learned positions: padding must not count. (Rotary ones only see distances, so Llama would not notice.)"""
    model = test_generate.prompted("gpt2")
    plainly(monkeypatch)
    test_generate.check_left_padded(model)
    restart_positions(monkeypatch)
    must_notice(test_generate.check_left_padded, model)


def test_a_prompt_that_changes_nothing_is_noticed():
    """The reference itself: a prompt of zero rows must fail the check that the prompt matters."""
    model = test_generate.prompted("llama")
    test_generate.check_prompt_matters(model)
    model.prompt_encoder["default"].embedding.weight = torch.nn.Parameter(model.prompt.detach()[:0])
    must_notice(test_generate.check_prompt_matters, model)
