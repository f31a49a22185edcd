"""Faults put into the engine on purpose, below ``test_mutations.py``: each must make a named check fail."""

from dataclasses import replace

import pytest
import torch

import test_accumulate
import test_backends
import test_engine
import test_plans
import tiny
from plan_tools import plan_of
from softprompt.engine import accumulate, loss, plans, prefix_sharing
from softprompt.engine import runner as running
from softprompt.engine.backends import attention_cpu as attention
from softprompt.engine.backends import levelwise as levels
from softprompt.engine.kv_cache import KVCache
from test_attention_cpu import blocks
from test_mutations import must_notice, passes

ABOVE = attention.Packing.above
HIDDEN = attention.Block.hidden_pairs
MASK = attention.Packing.mask
ADD = attention.KeyGradients.add
PATH = levels.AncestorCache.path
COMMON = prefix_sharing.common_prefix


@pytest.fixture(params=["packed", "levelwise"])
def backend(request, monkeypatch):
    monkeypatch.setattr(running, "backends", lambda _: (request.param,))
    return request.param


# -- attention over a tree ---------------------------------------------------------------------------


def reads_the_next(self, *args):
    """The causal mask, off by one: each token reads the one behind it."""
    hidden = HIDDEN(self, *args)
    hidden[:, -len(self) :].diagonal(1).fill_(False)
    return hidden


def one_more(self, positions, key_positions, window):
    return HIDDEN(self, positions, key_positions, None if window is None else window + 1)


def one_less(self, positions, key_positions, window):
    return HIDDEN(self, positions, key_positions, None if window is None else window - 1)


def siblings_read(self, *args):
    """Short leaves of one block read those before them."""
    return HIDDEN(replace(self, ends=None), *args)


def by_flat_index(self, block):
    """Depths of keys (what ALiBi and windows count) as places in the run."""
    return torch.cat([torch.arange(keys.start, keys.stop) for keys in block.reads])


TREE_MUTANTS = {
    "causal-mask-off-by-one": ("llama", attention.Block, "hidden_pairs", reads_the_next),
    "window-one-wider": ("mistral", attention.Block, "hidden_pairs", one_more),
    "window-one-narrower": ("mistral", attention.Block, "hidden_pairs", one_less),
    "siblings-read-each-other": ("llama", attention.Block, "hidden_pairs", siblings_read),
    "no-root": ("llama", attention.Packing, "above", lambda self, node: ABOVE(self, node)[1:]),
    "no-parent": ("llama", attention.Packing, "above", lambda self, node: ABOVE(self, node)[:-1]),
    "alibi-by-flat-index": ("bloom", attention.Packing, "key_positions", by_flat_index),
    "window-by-flat-index": ("mistral", attention.Packing, "key_positions", by_flat_index),
    "flat-positions": (
        "gpt2",
        attention.Packing,
        "positions",
        property(lambda self: torch.arange(self.tree.num_tokens)),
    ),
    "flat-rotary-positions": (
        "llama",
        attention.Packing,
        "positions",
        property(lambda self: torch.arange(self.tree.num_tokens)),
    ),
    "last-token-above-dropped": ("llama", levels.AncestorCache, "path", lambda self, node: PATH(self, node)[:-1]),
}


@pytest.mark.parametrize("mutant", TREE_MUTANTS)
def test_tree_mutants(mutant, monkeypatch):
    """The forest of ``test_backends.py``, each of its paths alone, and packed against level by level."""
    family, owner, name, fault = TREE_MUTANTS[mutant]
    with tiny.float64():
        model = tiny.base(family, torch.float64)
        if owner is levels.AncestorCache:
            monkeypatch.setattr(running, "backends", lambda _: ("levelwise",))
        for check in (test_engine.check_forest, test_backends.check_ways):
            passes((family, owner is levels.AncestorCache), check, model, test_backends.FOREST, 1e-8)
        monkeypatch.setattr(owner, name, fault)
        must_notice(test_engine.check_forest, model, test_backends.FOREST, 1e-8)
        must_notice(test_backends.check_ways, model, test_backends.FOREST, 1e-8)


def test_recomputed_weights_without_their_mask(monkeypatch):
    """A fault in the backward pass alone, where long rows compute their weights again."""
    real = attention.BlockScores.weights

    def forgetful(self, number):
        if torch._C._current_graph_task_id() >= 0:  # in a backward pass
            monkeypatch.setattr(attention.Packing, "mask", lambda self, n, w, dtype: MASK(self, n, w, dtype) * 0)
        return real(self, number)

    with tiny.float64(), blocks(4, 3):
        model = tiny.base("llama", torch.float64)
        test_engine.check_rows(model, 1e-9)
        monkeypatch.setattr(attention.BlockScores, "weights", forgetful)
        must_notice(test_engine.check_rows, model, 1e-9)


# -- packs and known nodes ---------------------------------------------------------------------------


def check_packs():
    test_accumulate.check_packs(tiny.base("llama", torch.float64), 1e-9)


KNOWN_MUTANTS = {
    "keys-and-values": lambda known: KVCache(known.detach().layers, known.hidden),
    "keys": lambda known: KVCache(tuple((keys.detach(), values) for keys, values in known.layers), known.hidden),
    "first-layer": lambda known: KVCache((known.detach().layers[0], *known.layers[1:]), known.hidden),
    "hidden-states": lambda known: KVCache(known.layers, known.hidden.detach()),  # rows may begin with their label
}


@pytest.mark.parametrize("mutant", KNOWN_MUTANTS)
def test_gradient_to_the_known_dropped(mutant, backend, monkeypatch):
    real, fault = accumulate.token_losses, KNOWN_MUTANTS[mutant]

    def dropped(base, plan, known):
        return real(base, plan, fault(known) if isinstance(known, KVCache) else known)

    with tiny.float64():
        passes(backend, check_packs)
        monkeypatch.setattr(accumulate, "token_losses", dropped)
        must_notice(check_packs)


def test_gradient_to_the_known_dropped_in_attention(monkeypatch):
    def own_only(self, block, skipped, found):
        ADD(self, block, skipped, found)
        for node in self._of.keys() - {attention.OWN}:
            self._of[node].zero_()

    with tiny.float64():
        passes("default", check_packs)
        monkeypatch.setattr(attention.KeyGradients, "add", own_only)
        must_notice(check_packs)


@pytest.mark.parametrize("name", ["loss", "gradient"])
def test_a_pack_left_out(name, monkeypatch):
    """Of the loss, or of the gradient alone."""
    real, calls = accumulate.token_losses, []

    def first_is_lost(base, plan, known):
        losses = real(base, plan, known)
        calls.append(1)
        if isinstance(known, KVCache) and len(calls) == 2:
            return losses.detach() + 0 * losses if name == "gradient" else 0 * losses
        return losses

    with tiny.float64():
        passes("default", check_packs)
        monkeypatch.setattr(accumulate, "token_losses", first_is_lost)
        must_notice(check_packs)


# -- plans -------------------------------------------------------------------------------------------


def check_shared():
    """Rows with a long beginning in common, read back token by token."""
    stem = list(range(10, 40))
    test_plans.check_rows_read_back(3, [[*stem, 5], [*stem, 6, 7], [*stem, 6]])


def check_shared_losses():
    """The same through a model."""
    stem, *ends = tiny.ids(30, 1, 2, 3)
    rows = [torch.cat([stem, end]) for end in ends]
    model = tiny.base("llama", torch.float64)
    prompt = tiny.prompt_for(model)
    losses = loss.token_losses(model, plan_of(len(prompt), rows, rows), prompt)
    expected = torch.cat([tiny.plain_losses(model, prompt, row, row) for row in rows])
    test_engine.assert_near(losses.detach(), expected.detach(), 1e-9)


@pytest.mark.parametrize("check", [check_shared, check_shared_losses])
def test_a_prefix_shared_between_rows_that_differ(check, monkeypatch):
    with tiny.float64():
        check()
        monkeypatch.setattr(prefix_sharing, "common_prefix", lambda a, b: min(COMMON(a, b) + 1, len(a), len(b)))
        must_notice(check)


def test_a_node_for_every_token_in_common(monkeypatch):
    """Shared prefixes that do not pay are noticed too: they would cost time, not exactness."""
    check_frugal = test_plans.test_few_tokens_in_common_are_not_worth_a_node
    check_frugal()
    real = plans.share_prefixes

    def greedy(rows):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prefix_sharing, "MIN_SAVING", 1)
            return real(rows)

    monkeypatch.setattr(plans, "share_prefixes", greedy)
    must_notice(check_frugal)
