"""The token tree and its batches: integers only, compared with sets and loops written out plainly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.engine.backends.levelwise import CALL_OVERHEAD, buckets
from softprompt.engine.tree import ROOT, Tree


def preorder(draw, count):
    """Parents of a forest in preorder: each node hangs on the last branch, or starts a new root."""
    branch, parents = [], []
    for node in range(count):
        del branch[draw(st.integers(0, len(branch))) :]
        parents.append(branch[-1] if branch else ROOT)
        branch.append(node)
    return tuple(parents)


@st.composite
def trees(draw, longest=4, most=9):
    """Forests of up to ``most`` nodes, each of up to ``longest`` tokens; some are empty."""
    lengths = draw(st.lists(st.integers(0, longest), min_size=1, max_size=most))
    return Tree(preorder(draw, len(lengths)), tuple(lengths))


def ancestors(parents, node):
    """Nodes above ``node``, from the top."""
    found = []
    while parents[node] != ROOT:
        node = parents[node]
        found.insert(0, node)
    return found


def readers(tree):
    """Who reads whom, by sets: pairs (query, key) of tokens; a token is (node, its number there)."""
    tokens = [(node, i) for node, length in enumerate(tree.lengths) for i in range(length)]
    above = [{*ancestors(tree.parents, node)} for node in range(len(tree.parents))]
    return tokens, {
        (query, key)
        for query, (node, i) in enumerate(tokens)
        for key, (other, j) in enumerate(tokens)
        if other in above[node] or (other == node and j <= i)
    }


@given(trees())
def test_flat_order_and_depths(tree):
    flat = [(node, i) for node, length in enumerate(tree.lengths) for i in range(length)]
    assert tree.num_tokens == len(flat)
    longest = 0
    for node in range(len(tree.lengths)):
        assert tree.starts[node] == tree.span(node).start
        assert [flat[i] for i in tree.span(node)] == [(node, i) for i in range(tree.lengths[node])]
        above = ancestors(tree.parents, node)
        assert [flat[i][0] for i in tree.path(node)] == [a for a in above for _ in range(tree.lengths[a])]
        assert tree.depths[node] == len(tree.path(node))
        longest = max(longest, len(tree.path(node)) + tree.lengths[node])
    assert tree.depth == longest


@given(trees())
def test_interval_rule_is_ancestors_or_self(tree):
    """Token ``j`` of node ``n`` is read by the tokens ``j <= i < ends[n]``, and by no others."""
    tokens, pairs = readers(tree)
    interval = {(i, j) for j, (node, _) in enumerate(tokens) for i in range(len(tokens)) if j <= i < tree.ends[node]}
    assert interval == pairs


@given(trees())
def test_levels_compute_every_token_once_and_parents_first(tree):
    order = [node for level in tree.levels for node in level]
    assert sorted(order) == [node for node, length in enumerate(tree.lengths) if length]
    place = {node: i for i, level in enumerate(tree.levels) for node in level}
    for node in order:
        assert all(place[above] < place[node] for above in ancestors(tree.parents, node) if above in place)
    everyone = range(len(tree.parents))
    assert tree.roots == [node for node in everyone if not ancestors(tree.parents, node)]
    assert tree.inner == {above for node in everyone for above in ancestors(tree.parents, node)}


@given(st.data(), st.integers(1, 7))
def test_a_subtree_must_be_one_stretch(data, count):
    """Of all ways to hang nodes on earlier ones, those are refused in which something stands between a subtree."""
    parents = tuple(data.draw(st.integers(ROOT, node - 1)) for node in range(count))
    below = [{node} | {other for other in range(count) if node in ancestors(parents, other)} for node in range(count)]
    if all(nodes == {*range(node, node + len(nodes))} for node, nodes in enumerate(below)):
        assert Tree(parents, (1,) * count).parents == parents
    else:
        with pytest.raises(ValueError, match="does not follow its parent"):
            Tree(parents, (1,) * count)


@pytest.mark.parametrize(
    ("parents", "lengths"),
    [((ROOT, 0), (1,)), ((0,), (1,)), ((ROOT, 2, 0), (1, 1, 1)), ((-2,), (1,)), ((ROOT, ROOT, 0), (1, 1, 1))],
    ids=["counts", "own-parent", "child-first", "below-root", "not-a-stretch"],
)
def test_impossible_trees_are_refused(parents, lengths):
    with pytest.raises(ValueError, match=r"parent|lengths"):
        Tree(parents, lengths)


def test_a_tree_of_nothing():
    tree = Tree((), ())
    assert (tree.num_tokens, tree.depth, tree.levels, tree.ends) == (0, 0, [], [])


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
