"""The token tree and its plans: integers only, compared with sets and loops written out plainly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softprompt.engine.run import CALL_OVERHEAD, buckets
from softprompt.engine.tree import ROOT, Tree, plan_choices, plan_rows

CPU = torch.device("cpu")


@st.composite
def trees(draw):
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=9))
    parents = [draw(st.integers(ROOT, node - 1)) for node in range(len(lengths))]
    return Tree(tuple(parents), tuple(lengths))


def ancestors(tree, node):
    found = []
    while tree.parents[node] != ROOT:
        node = tree.parents[node]
        found.insert(0, node)
    return found


@given(trees())
def test_flat_order_and_depths(tree):
    flat = [(node, i) for node, length in enumerate(tree.lengths) for i in range(length)]
    assert tree.num_tokens == len(flat)
    for node in range(len(tree.lengths)):
        assert [flat[i] for i in tree.span(node)] == [(node, i) for i in range(tree.lengths[node])]
        above = ancestors(tree, node)
        assert [flat[i][0] for i in tree.path(node)] == [a for a in above for _ in range(tree.lengths[a])]
        assert tree.depths[node] == len(tree.path(node))


@given(trees())
def test_levels_compute_every_token_once_and_parents_first(tree):
    order = [node for level in tree.levels for node in level]
    assert sorted(order) == [node for node, length in enumerate(tree.lengths) if length]
    place = {node: i for i, level in enumerate(tree.levels) for node in level}
    for node in order:
        assert all(place[above] < place[node] for above in ancestors(tree, node) if above in place)
        assert all(above in tree.inner for above in ancestors(tree, node))


@given(trees())
def test_before_is_the_last_token_above(tree):
    for node in range(len(tree.lengths)):
        if tree.path(node):
            assert tree.before(node) == tree.path(node)[-1]
        else:
            with pytest.raises(ValueError, match="no token precedes"):
                tree.before(node)


@pytest.mark.parametrize(
    ("parents", "lengths"),
    [((ROOT, 0), (1,)), ((0,), (1,)), ((ROOT, 2, 0), (1, 1, 1)), ((-2,), (1,))],
    ids=["counts", "own-parent", "child-first", "below-root"],
)
def test_impossible_trees_are_refused(parents, lengths):
    with pytest.raises(ValueError, match=r"parent|lengths"):
        Tree(parents, lengths)


rows_with_labels = st.lists(
    st.lists(st.tuples(st.integers(5, 96), st.booleans()), min_size=0, max_size=5), min_size=1, max_size=5
)


@given(st.integers(1, 4), rows_with_labels)
def test_plan_rows_predicts_each_label_one_token_earlier(virtual, rows):
    flat = [pair for row in rows for pair in row]
    input_ids = torch.tensor([i for i, _ in flat], dtype=torch.long)
    labels = torch.tensor([i if kept else -100 for i, kept in flat], dtype=torch.long)
    plan = plan_rows(virtual, [len(row) for row in rows], input_ids, labels)
    expected, start = [], virtual
    for number, row in enumerate(rows):
        for i, (token, kept) in enumerate(row):
            if kept:
                expected.append((start + i - 1 if i else virtual - 1, token, number))
        start += len(row)
    got = list(zip(plan.predictors.tolist(), plan.targets.tolist(), plan.groups.tolist(), strict=True))
    assert got == expected
    assert plan.num_groups == len(rows)
    assert plan.num_virtual_tokens == virtual
    assert (plan.predictors >= virtual - 1).all(), "no virtual position but the last predicts anything"
    assert plan.tree.depths[1:] == [virtual] * len(rows), "every row starts right behind the prompt"


def test_plan_rows_without_labels_supervises_nothing():
    plan = plan_rows(3, [2, 1], torch.tensor([5, 6, 7]), None)
    assert plan.predictors.numel() == plan.targets.numel() == plan.groups.numel() == 0
    assert plan.tree.num_tokens == 6


words = st.lists(st.integers(5, 96), max_size=4)


@given(
    st.integers(1, 3),
    st.lists(words, min_size=1, max_size=3),
    st.lists(words.filter(bool), min_size=1, max_size=3),
)
def test_plan_choices_reads_back_as_the_texts_and_labels(virtual, texts, choices):
    plan = plan_choices(virtual, texts, choices, CPU)
    token_at = dict(enumerate(plan.input_ids.tolist(), start=virtual))
    place = {i: (node, i) for node in range(len(plan.tree.lengths)) for i in plan.tree.span(node)}
    read = {group: [] for group in range(plan.num_groups)}
    for before, target, group in zip(
        plan.predictors.tolist(), plan.targets.tolist(), plan.groups.tolist(), strict=True
    ):
        node, _ = place[before]
        seen = [*plan.tree.path(node), *(i for i in plan.tree.span(node) if i <= before)]
        read[group].append(([token_at[i] for i in seen if i >= virtual], target))
        assert seen[:virtual] == list(range(virtual)), "the whole prompt is above every prediction"
    for i, text in enumerate(texts):
        for j, choice in enumerate(choices):
            expected = [([*text, *choice[:k]], token) for k, token in enumerate(choice)]
            assert read[i * len(choices) + j] == expected
    assert plan.tree.num_tokens == virtual + sum(len(x) + sum(len(c) - 1 for c in choices) for x in texts), (
        "a text is computed once, whatever the number of choices"
    )


@given(st.lists(st.integers(1, 40), min_size=1, max_size=7))
def test_buckets_split_at_least_cost(lengths):
    got = list(buckets(range(len(lengths)), lengths))
    assert sorted(node for batch in got for node in batch) == list(range(len(lengths)))

    def cost(batches):
        return sum(len(batch) * max(lengths[node] for node in batch) + CALL_OVERHEAD for batch in batches)

    nodes = sorted(range(len(lengths)), key=lengths.__getitem__)
    every_split = (
        [nodes[a:b] for a, b in zip([0, *cuts], [*cuts, len(nodes)], strict=True)]
        for bits in range(2 ** (len(nodes) - 1))
        for cuts in [[i + 1 for i in range(len(nodes) - 1) if bits >> i & 1]]
    )
    assert cost(got) == min(map(cost, every_split))
