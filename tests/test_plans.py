"""Plans, read back token by token and compared with plain loops. No model."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from softprompt.engine import prefix_sharing
from softprompt.engine.plans import Forest, packs, plan_candidates, plan_examples, plan_mixed, plan_rows
from softprompt.engine.prefix_sharing import MIN_SAVING, branch_tokens
from softprompt.engine.row_prompts import RowPrompts
from softprompt.engine.tree import ROOT
from softprompt.errors import ConfigError
from softprompt.inference.forward import Batch, plan_batch
from softprompt.types import Example
from test_tree import readers

CPU = torch.device("cpu")
some_virtual = st.integers(1, 4)
token = st.integers(5, 7)
short = st.lists(token, max_size=6)
minima = st.sampled_from([1, 2, 5, MIN_SAVING])


@st.composite
def batches(draw, max_rows=6):
    """Rows that share prefixes, with duplicates, prefixes of others and empty ones; and which tokens have a loss."""
    stems = [[], *draw(st.lists(st.lists(token, min_size=6, max_size=30), min_size=1, max_size=3))]
    rows = draw(
        st.lists(
            st.builds(lambda stem, cut, end: stem[: len(stem) - cut] + end, st.sampled_from(stems), token, short)
            | st.sampled_from(stems)
            | short,
            min_size=1,
            max_size=max_rows,
        )
    )
    kept = [draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))) for row in rows]
    return rows, kept


@contextmanager
def saving(minimum):
    """Inside, a shared prefix gets a node where it saves so many tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_sharing, "MIN_SAVING", minimum)
        yield


def plan_of(virtual, rows, kept=None):
    """``plan_rows`` of lists; ``kept`` says which tokens have a loss (all, by default)."""
    return plan_rows(virtual, rows, labels_of(rows, kept), CPU)


def labels_of(rows, kept=None):
    """The tokens themselves, and -100 where ``kept`` is false."""
    kept = kept or [[True] * len(row) for row in rows]
    return [[t if keep else -100 for t, keep in zip(*pair, strict=True)] for pair in zip(rows, kept, strict=True)]


def reader(plan):
    """What a flat position has read, itself included, by sets of ancestors: its tokens in order."""
    tokens, pairs = readers(plan.tree)
    assert len(tokens) == len(plan.tokens)
    words = plan.tokens.tolist()
    seen = {i: [words[j] for j in range(len(words)) if (i, j) in pairs] for i in range(len(words))}
    return seen.__getitem__


def num_virtual(plan):
    """Rows of the prompt matrix that a plan reads."""
    return max((-token for token in plan.tokens.tolist()), default=0)


def virtual_tokens(count, first=0):
    return [-1 - i for i in range(first, first + count)]


def check_rows_read_back(virtual, rows, kept=None):
    """Each token of each row has read the prompt and its own row up to itself: nothing else, nothing less."""
    plan = plan_of(virtual, rows, kept)
    seen, places = reader(plan), iter(plan.places.tolist())
    for row in rows:
        for i in range(len(row)):
            assert seen(next(places)) == virtual_tokens(virtual) + row[: i + 1]
    assert next(places, None) is None
    assert {*plan.places.tolist(), *range(virtual)} == {*range(plan.tree.num_tokens)}, "no token is nobody's"
    return plan


@given(some_virtual, batches(), minima)
def test_rows_read_back(virtual, batch, minimum):
    with saving(minimum):
        plan = check_rows_read_back(virtual, *batch)
    assert num_virtual(plan) == virtual
    assert plan.num_groups == len(batch[0])
    assert plan.tokens[:virtual].tolist() == virtual_tokens(virtual)


@given(some_virtual, batches(), minima)
def test_each_label_is_predicted_one_token_earlier(virtual, batch, minimum):
    rows, kept = batch
    with saving(minimum):
        plan = plan_of(virtual, rows, kept)
    seen = reader(plan)
    got = [
        (seen(before), target, group)
        for before, target, group in zip(
            plan.predictors.tolist(), plan.targets.tolist(), plan.groups.tolist(), strict=True
        )
    ]
    assert got == [
        (virtual_tokens(virtual) + row[:i], row[i], number)
        for number, (row, keeps) in enumerate(zip(rows, kept, strict=True))
        for i in range(len(row))
        if keeps[i]
    ]


def rows_below(plan, node):
    """How many rows go through a node: each row is a leaf."""
    children = [child for child, parent in enumerate(plan.tree.parents) if parent == node]
    return sum(rows_below(plan, child) for child in children) if children else 1


@given(some_virtual, batches(), minima)
def test_sharing_pays_wherever_it_makes_a_node(virtual, batch, minimum):
    with saving(minimum):
        plan = plan_of(virtual, batch[0])
    assert rows_below(plan, 0) == len(batch[0])
    saved = [(rows_below(plan, node) - 1) * plan.tree.lengths[node] for node in plan.tree.inner - {0}]
    assert all(tokens >= minimum for tokens in saved)
    assert plan.tree.num_tokens == virtual + sum(map(len, batch[0])) - sum(saved)


@given(some_virtual, batches())
def test_sharing_finds_all_there_is(virtual, batch):
    """With no minimum every common prefix is read once; with a large one, none."""
    rows, kept = batch
    with saving(1):
        plan = check_rows_read_back(virtual, rows, kept)
        assert plan.tree.num_tokens == virtual + len({tuple(row[: i + 1]) for row in rows for i in range(len(row))})
    with saving(10**9):
        plan = check_rows_read_back(virtual, rows, kept)
        assert plan.tree.num_tokens == virtual + sum(map(len, rows))
        assert plan.tree.inner == {0}


def test_a_template_is_read_once():
    """Five rows share ten words, two of them thirty more; one row is the shared words alone."""
    words, more = list(range(10, 20)), list(range(20, 50))
    rows = [[*words, 5, 6], [*words, *more, 7], [9], words, [*words, *more, 8, 8], [*words, 6]]
    plan = check_rows_read_back(3, rows)
    assert plan.tree.num_tokens == 3 + len(words) + len(more) + 2 + 1 + 1 + 0 + 2 + 1
    assert sorted(plan.tree.lengths[node] for node in plan.tree.inner) == [3, len(words), len(more)]


def test_few_tokens_in_common_are_not_worth_a_node():
    rows = [[5, 6, 7, 8], [5, 6, 7, 9], [5, 6, 7]]
    assert MIN_SAVING > 2 * 3
    assert plan_of(2, rows).tree.parents == (ROOT, 0, 0, 0)


def test_plan_rows_without_labels_supervises_nothing():
    plan = plan_rows(3, [[5, 6], [7]], None, CPU)
    assert plan.predictors.numel() == plan.targets.numel() == plan.groups.numel() == 0
    assert plan.tree.num_tokens == 6
    assert plan.num_groups == 2


def test_no_rows():
    plan = plan_of(3, [])
    assert (plan.tree.parents, plan.tree.lengths, plan.num_groups) == ((ROOT,), (3,), 0)
    assert plan.tokens.tolist() == [-1, -2, -3]


# -- label candidates -----------------------------------------------------------------------------------------


some_candidates = st.lists(st.lists(token, min_size=1, max_size=4), min_size=1, max_size=5)


@given(some_virtual, st.lists(short, max_size=3), some_candidates)
def test_candidates_read_back(virtual, texts, candidates):
    """Before each token of each candidate: prompt, text and candidate up to there. Texts may be empty."""
    plan = plan_candidates(virtual, texts, candidates, CPU)
    seen, places = reader(plan), iter(plan.places.tolist())
    got = {group: [] for group in range(plan.num_groups)}
    for before, target, group in zip(
        plan.predictors.tolist(), plan.targets.tolist(), plan.groups.tolist(), strict=True
    ):
        got[group].append((seen(before), target))
    above = virtual_tokens(virtual)
    for i, text in enumerate(texts):
        assert [seen(next(places)) for _ in text] == [above + text[: k + 1] for k in range(len(text))]
        for j, candidate in enumerate(candidates):
            expected = [(above + text + candidate[:k], candidate[k]) for k in range(len(candidate))]
            assert got[i * len(candidates) + j] == expected
    assert next(places, None) is None
    assert plan.num_groups == len(texts) * len(candidates)
    assert num_virtual(plan) == virtual


@given(some_virtual, st.lists(short, max_size=3), some_candidates)
def test_candidates_share_their_prefixes(virtual, texts, candidates):
    """A text is in the tree once, and so is each prefix of its candidates; their last tokens are not read."""
    plan = plan_candidates(virtual, texts, candidates, CPU)
    prefixes = {tuple(candidate[: k + 1]) for candidate in candidates for k in range(len(candidate) - 1)}
    assert branch_tokens(candidates) == len(prefixes)
    assert plan.tree.num_tokens == virtual + sum(len(text) + len(prefixes) for text in texts)
    chains = sum(1 for length in plan.tree.lengths if length) - 1 - sum(1 for text in texts if text)
    forks = [len({c for c in prefixes if c[:-1] == prefix}) for prefix in prefixes]
    roots = len({prefix[0] for prefix in prefixes})
    assert chains == len(texts) * (roots + sum(fork for fork in forks if fork > 1)), "a node for each stretch"


# -- several plans -----------------------------------------------------------------------------------


parts = st.lists(
    st.builds(
        lambda virtual, batch: ("add_rows", virtual, batch[0], labels_of(*batch)), some_virtual, batches(max_rows=3)
    )
    | st.tuples(st.just("add_candidates"), some_virtual, st.lists(short, max_size=2), some_candidates),
    min_size=1,
    max_size=3,
)


@given(parts)
def test_a_forest_is_its_parts(parts):
    """Everything a part predicts or holds reads in the forest as it does alone, under its own prompt."""
    together, alone = Forest(), []
    for name, *values in parts:
        one = Forest()
        for forest in (one, together):
            getattr(forest, name)(*values)
        alone.append(one.plan(CPU))
    whole, parts = together.plan(CPU), alone
    seen = reader(whole)
    places, supervised = iter(whole.places.tolist()), iter(range(len(whole.targets)))
    virtual = groups = 0
    for part in parts:
        alone = reader(part)

        def moved(words, virtual=virtual):
            return [word - virtual if word < 0 else word for word in words]

        for place in part.places.tolist():
            assert seen(next(places)) == moved(alone(place))
        for i in range(len(part.targets)):
            s = next(supervised)
            assert seen(int(whole.predictors[s])) == moved(alone(int(part.predictors[i])))
            assert whole.targets[s] == part.targets[i]
            assert whole.groups[s] == part.groups[i] + groups
        virtual, groups = virtual + num_virtual(part), groups + part.num_groups
    assert (next(places, None), next(supervised, None)) == (None, None)
    assert num_virtual(whole) == virtual
    assert whole.num_groups == groups
    assert whole.tree.num_tokens == sum(part.tree.num_tokens for part in parts)
    assert sorted(-1 - t for t in whole.tokens.tolist() if t < 0) == list(range(virtual)), "each virtual token once"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=3), batches(), st.data())
def test_mixed_rows_read_their_own_prompt(lengths, batch, data):
    """Places and groups in the caller's order, whatever prompt a row has; without one, its first token has no loss."""
    rows, kept = batch
    of_row = [data.draw(st.integers(0, len(lengths) - 1)) for _ in rows]
    plan = plan_mixed(lengths, of_row, rows, labels_of(rows, kept), CPU)
    seen, places = reader(plan), iter(plan.places.tolist())
    expected = []
    for number, (row, prompt) in enumerate(zip(rows, of_row, strict=True)):
        above = virtual_tokens(lengths[prompt], sum(lengths[:prompt]))
        assert [seen(next(places)) for _ in row] == [above + row[: i + 1] for i in range(len(row))]
        expected += [(number, above + row[:i], row[i]) for i in range(len(row)) if kept[number][i] and (above or i)]
    supervised = zip(plan.groups.tolist(), plan.predictors.tolist(), plan.targets.tolist(), strict=True)
    assert sorted((group, seen(before), target) for group, before, target in supervised) == sorted(expected)
    assert plan.num_groups == len(rows)


# -- suffix prompts ----------------------------------------------------------------------------------


@given(some_virtual, batches(), st.data())
def test_suffix_rows_read_back(virtual, batch, data):
    """Text, prompt, rest; a label more than the row has tokens is predicted by its last one."""
    rows, kept = batch
    cuts = [data.draw(st.integers(0, len(row))) for row in rows]
    labels = [[*own, 9] for own in labels_of(rows, kept)]
    plan = plan_rows(virtual, rows, labels, CPU, cuts)
    seen, places = reader(plan), iter(plan.places.tolist())
    expected = []
    for number, (row, cut) in enumerate(zip(rows, cuts, strict=True)):
        read = [[*row[: i + 1]] if i < cut else row[:cut] + virtual_tokens(virtual) + row[cut : i + 1]
                for i in range(len(row))]  # fmt: skip
        assert [seen(next(places)) for _ in row] == read
        before = [row[:i] if i < cut else row[:cut] + virtual_tokens(virtual) + row[cut:i] for i in range(len(row) + 1)]
        expected += [(number, above, label) for above, label in zip(before, labels[number], strict=True)
                     if label != -100 and above]  # fmt: skip
    supervised = zip(plan.groups.tolist(), plan.predictors.tolist(), plan.targets.tolist(), strict=True)
    assert [(group, seen(before), target) for group, before, target in supervised] == expected
    assert [*plan.texts.values()] == [tuple(row[:cut]) for row, cut in zip(rows, cuts, strict=True)]
    assert [*plan.texts] == plan.tree.roots


@given(some_virtual, st.lists(short, max_size=3), some_candidates, st.data())
def test_suffix_candidates_read_back(virtual, texts, candidates, data):
    """Before each token of each candidate: the text, one of the prompts after it, the candidate up to there."""
    which = [data.draw(st.lists(st.integers(0, 2), max_size=3)) for _ in texts]
    plan = plan_candidates(virtual, texts, candidates, CPU, which)
    seen = reader(plan)
    got = {group: [] for group in range(plan.num_groups)}
    for before, target, group in zip(
        plan.predictors.tolist(), plan.targets.tolist(), plan.groups.tolist(), strict=True
    ):
        got[group].append((seen(before), target))
    above = [text + virtual_tokens(virtual, k * virtual) for text, own in zip(texts, which, strict=True) for k in own]
    pairs = [(before, candidate) for before in above for candidate in candidates]
    assert [*got.values()] == [
        [(before + candidate[:k], candidate[k]) for k in range(len(candidate))] for before, candidate in pairs
    ]
    assert [plan.tokens[place] for place in plan.places.tolist()] == [token for text in texts for token in text]
    assert [*plan.texts.values()] == [tuple(text) for text in texts]


def test_a_candidate_after_nothing_is_refused():
    with pytest.raises(ConfigError, match="nothing precedes the label candidates"):
        plan_candidates(0, [[5], []], [[7]], CPU)
    assert plan_candidates(0, [[5]], [[7]], CPU).predictors.tolist() == [0]


@given(st.lists(st.integers(0, 12), max_size=9), st.integers(1, 15))
def test_packs_cover_rows_once_and_are_full(lengths, limit):
    got = list(packs(lengths, limit))
    assert [row for pack in got for row in pack] == list(range(len(lengths)))
    totals = [sum(lengths[row] for row in pack) for pack in got]
    assert all(len(pack) == 1 or total <= limit for pack, total in zip(got, totals, strict=True))
    for pack, total in zip(got[1:], totals, strict=False):
        assert total + lengths[pack[0]] > limit, "another row would have fitted"


# -- devices -----------------------------------------------------------------------------------------


class Transfers(TorchFunctionMode):
    """Names of calls that wait for a device or copy from one to another."""

    NAMES = frozenset({"tolist", "item", "cpu", "to", "nonzero", "__bool__", "__int__", "__getitem__", "masked_select"})

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names += {func.__name__} & self.NAMES
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_a_batch_is_planned_with_the_same_transfers_whatever_its_rows(placement):
    """Ids, labels and mask are copied from the device once, and the plan to the device once: never a row at a time."""
    prompts, counts = RowPrompts.of([torch.zeros(3, 4)]), []
    for rows in (2, 50):
        ids = torch.randint(5, 90, (rows, 7))
        labels = ids.masked_fill(torch.arange(7) < 4, -100)
        batch = Batch(ids, None, torch.ones_like(ids), labels, None)
        with Transfers() as transfers:
            if placement == "prefix":
                plan_batch(prompts, batch)
            else:
                plan_rows(3, batch.rows, batch.row_labels, CPU, batch.text_lengths)
        counts.append(Counter(transfers.names))
    assert counts[0] == counts[1]
    assert counts[0]["cpu"] == 1
    with Transfers() as transfers:
        plan_examples([Example((5, 6), (7, 2))] * 9, 3, CPU, placement)
    assert transfers.names == ["to"]
