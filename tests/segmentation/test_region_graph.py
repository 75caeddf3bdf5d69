from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custom.segmentation.region_graph import RegionGraph, contracted, region_graph
from custom.segmentation.settling import numbered, settle, uncut, united

OFFSETS = [(1, 0, 0), (0, -1, 0), (0, 0, 2), (-1, 3, 1)]
SHAPE = (3, 5, 7)


def drawn(seed: int, number: int = 12):
    """Fragments with large ids, and affinities."""
    random = np.random.default_rng(seed)
    ids = np.sort(random.integers(1, 2**60, number)).astype(np.uint64)
    fragments = np.append(ids, 0)[random.integers(0, number + 1, SHAPE)].astype(np.uint64)
    return fragments, random.integers(0, 256, (len(OFFSETS), *SHAPE)).astype(np.uint8)


def links_by_loop(fragments, affinities):
    """All affinities between every two fragments, sorted."""
    links: dict[tuple[int, int], list[int]] = {}
    for affinity, offset in zip(affinities, OFFSETS, strict=True):
        for p in np.ndindex(fragments.shape):
            q = tuple(a + o for a, o in zip(p, offset, strict=True))
            if all(0 <= a < n for a, n in zip(q, fragments.shape, strict=True)):
                low, high = sorted((int(fragments[p]), int(fragments[q])))
                if 0 < low < high:
                    links.setdefault((low, high), []).append(int(affinity[p]))
    return {pair: sorted(values) for pair, values in sorted(links.items())}


def links_of(graph: RegionGraph):
    """The same of a graph."""
    ends, starts = graph.ids[graph.edges].tolist(), graph.starts.tolist()
    return {
        tuple(pair): np.repeat(graph.levels[begin:end], graph.counts[begin:end]).tolist()
        for pair, begin, end in zip(ends, starts[:-1], starts[1:], strict=True)
    }


@given(st.integers(0, 999))
def test_edges_have_all_links_of_their_pair(seed):
    fragments, affinities = drawn(seed)
    graph = region_graph(fragments, affinities, OFFSETS)
    assert links_of(graph) == links_by_loop(fragments, affinities)
    assert list(links_of(graph)) == sorted(links_of(graph))
    for id_, size in zip(graph.ids, graph.sizes, strict=True):
        assert np.count_nonzero(fragments == id_) == size
    means = [np.mean(values) / 255 for values in links_of(graph).values()]
    np.testing.assert_allclose(graph.means(), means)


@given(st.integers(0, 999))
def test_a_contracted_graph_is_that_of_the_joined_fragments(seed):
    fragments, affinities = drawn(seed)
    graph = region_graph(fragments, affinities, OFFSETS)
    groups = numbered(np.random.default_rng(seed).integers(0, 6, len(graph.ids)))
    lowest = [graph.ids[groups == g].min() for g in range(1, groups.max() + 1)]
    table = np.append(np.append(0, lowest)[groups], 0).astype(np.uint64)
    places = np.searchsorted(graph.ids, fragments)
    joined = table[np.where(fragments == 0, len(groups), places)]
    found = contracted(graph, groups)
    pairs = {tuple(sorted(pair)): values for pair, values in links_of(found).items()}
    assert pairs == links_by_loop(joined, affinities)
    by_id = dict(zip(found.ids.tolist(), found.sizes.tolist(), strict=True))
    assert by_id == {int(i): np.count_nonzero(joined == i) for i in lowest}


def line(sizes, affinities, opens, means, contacts=None, agreed=None) -> RegionGraph:
    """A chain of fragments, one link between any two in a row, of the affinity ``means``."""
    number, links = len(sizes), len(sizes) - 1
    some = np.ones(links, int) if contacts is None else np.array(contacts)
    return RegionGraph(
        np.arange(1, number + 1, dtype=np.uint64),
        np.array(sizes),
        np.array(affinities, float),
        np.array(opens, bool),
        np.stack([np.arange(links), np.arange(1, number)], axis=1),
        some,
        np.zeros(links, int) if agreed is None else np.array(agreed),
        np.arange(number),
        np.array(means, np.uint8),
        np.ones(links, int),
    )


CASES = {
    "all are large enough": (line([5, 6], [1, 1], [1, 1], [9]), [1, 2]),
    "a small one goes to its best neighbour": (
        line([9, 2, 9], [1, 1, 1], [1, 1, 1], [50, 200]),
        [1, 2, 2],
    ),
    "one that was judged stays": (line([9, 2, 9], [1, 1, 1], [1, 0, 1], [50, 200]), [1, 2, 3]),
    "small ones together are large enough": (
        line([3, 2, 9], [1, 1, 1], [1, 1, 1], [200, 50]),
        [1, 1, 2],
    ),
    "or go on together": (line([1, 2, 9], [1, 1, 1], [1, 1, 1], [200, 50]), [1, 1, 1]),
    "without a neighbour that touches it becomes background": (
        line([9, 2], [1, 1], [1, 1], [250], contacts=[0]),
        [1, 0],
    ),
    "a weak one becomes background": (line([9, 9], [0.1, 1], [1, 1], [250]), [0, 1]),
    "one that was judged does not": (line([9, 9], [0.1, 1], [0, 1], [250]), [1, 2]),
    "a weak one is nobody's neighbour": (line([9, 2], [0.1, 1], [1, 1], [250]), [0, 0]),
}


@pytest.mark.parametrize("case", CASES)
def test_open_fragments_are_judged_when_all_of_them_is_known(case):
    graph, expected = CASES[case]
    assert settle(graph, 5, 0.2).tolist() == expected


def test_small_ones_may_become_background():
    graph = line([9, 2, 9], [1, 1, 1], [1, 1, 1], [50, 200])
    assert settle(graph, 5, 0.0, grow=False).tolist() == [1, 0, 2]


def test_a_group_is_judged_where_any_part_of_it_was():
    graph = line([1, 1, 9], [1, 1, 1], [1, 0, 1], [50, 50])
    whole = contracted(graph, np.array([1, 1, 2]))
    assert whole.open.tolist() == [False, True]
    assert settle(whole, 5, 0.0).tolist() == [1, 2]


def test_pieces_are_one_fragment_where_most_of_their_border_says_so():
    graph = line([1] * 5, [1] * 5, [1] * 5, [0] * 4, contacts=[4, 5, 0, 1], agreed=[2, 3, 0, 1])
    assert uncut(graph, np.arange(5)).tolist() == [1, 2, 2, 3, 3]
    separate = replace(graph, agreed=np.zeros(4, int))
    assert uncut(separate, np.arange(5)).tolist() == [1, 2, 3, 4, 5]


def test_pieces_that_touch_within_a_block_stay_apart_whatever_another_block_says():
    """Block 0 has pieces 0, 1 and 4; to block 1 they are one, with its own 2, which 3 goes on."""
    edges = [[0, 1], [0, 2], [1, 2], [2, 3], [2, 4]]
    graph = replace(
        line([1] * 5, [1] * 5, [1] * 5, [0] * 4),
        edges=np.array(edges),
        contacts=np.array([3, 12, 20, 5, 4]),
        agreed=np.array([0, 9, 18, 5, 4]),
    )
    assert uncut(graph, np.array([0, 0, 1, 2, 0])).tolist() == [1, 2, 2, 2, 2]
    swapped = replace(graph, agreed=np.array([0, 12, 11, 5, 4]))
    assert uncut(swapped, np.array([0, 0, 1, 2, 0])).tolist() == [1, 2, 1, 1, 1]
    assert uncut(graph, np.arange(5)).tolist() == [1, 1, 1, 1, 1]


def test_groups_are_numbered_by_their_first_node():
    edges = np.array([[3, 1], [4, 3], [2, 5]])
    assert united(6, edges).tolist() == [1, 2, 3, 2, 2, 3]
    assert united(2, np.empty((0, 2), int)).tolist() == [1, 2]
