"""Fragments that no block saw whole: judged when all of them is known."""

import mwatershed
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as connected_nodes

from custom.segmentation.region_graph import RegionGraph, contracted


def united(nodes: int, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Groups of nodes that edges connect.

    Args:
        nodes: their number.
        edges: (E, 2) places of nodes.

    Returns:
        (nodes,) numbers from 1 on without gaps, in the order of each group's first node.
    """
    links = coo_array((np.ones(len(edges), dtype=np.bool_), tuple(edges.T)), (nodes, nodes))
    return _in_order(connected_nodes(links, directed=False)[1])


def uncut(graph: RegionGraph, blocks: NDArray[np.integer]) -> NDArray[np.int64]:
    """Pieces of one fragment, which borders of blocks cut, as one group.

    Two pieces are of one fragment when both blocks say so of more than half of the pairs of voxels
    that touch there. Pieces that touch within a block stay apart, also where another block takes
    them for one: pieces are united in the order of how many pairs agree, but for those that would
    bring such two together.

    Args:
        graph: of pieces.
        blocks: (N,) the block of every piece.

    Returns:
        (N,) numbers from 1 on without gaps.

    Source:
        Wolf et al. 2018, ECCV (mutex watershed of a graph); the implementation is mwatershed.
    """
    number, ends = len(graph.ids), graph.edges
    same = 2 * graph.agreed > graph.contacts
    groups = united(number, ends[same])
    one, other = ends.T
    within = (graph.contacts > 0) & (blocks[one] == blocks[other])
    apart = within & (groups[one] == groups[other])
    same &= np.isin(groups[one], groups[one[apart]])
    order = np.argsort(-graph.agreed[same], kind="stable")
    edges = [(False, *pair) for pair in ends[apart].tolist()]
    edges += [(True, *pair) for pair in ends[same][order].tolist()]
    roots = dict(mwatershed.cluster(edges))
    groups[list(roots)] = number + 1 + np.array(list(roots.values()), dtype=np.int64)
    return _in_order(groups)


def settle(
    graph: RegionGraph, min_size: int, min_affinity: float, grow: bool = True
) -> NDArray[np.int64]:
    """Open fragments removed where they are weak or small, as others were within their blocks.

    Args:
        graph: of whole fragments.
        min_size: smaller open ones (voxels) go.
        min_affinity: open ones of a lower mean affinity become background.
        grow: small ones become part of the neighbour, among those that touch, with the highest
            mean affinity of links, and background without one; else background.

    Returns:
        (N,) numbers of groups, from 1 on without gaps; 0: background.
    """
    weak = graph.open & (graph.affinities < min_affinity)
    groups = numbered(np.where(weak, 0, np.arange(1, len(graph.ids) + 1)))
    while True:
        now = contracted(graph, groups)
        small = now.open & (now.sizes < min_size)
        if not small.any():
            return groups
        step = _grown(now, small) if grow else np.where(small, 0, np.arange(1, len(small) + 1))
        groups = np.where(groups > 0, numbered(step)[groups - 1], 0)


def _grown(graph: RegionGraph, small: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Every small one in a group with its best neighbour, 0 without one."""
    touch = graph.contacts > 0
    ends, score = graph.edges[touch], graph.means()[touch]
    ends, score = np.concatenate([ends, ends[:, ::-1]]), np.concatenate([score, score])
    order = np.lexsort((-score, ends[:, 0]))
    ends = ends[order]
    first = np.flatnonzero(np.diff(ends[:, 0], prepend=-1))
    best = ends[first]
    best = best[small[best[:, 0]]]
    alone = small.copy()
    alone[best.ravel()] = False
    return np.where(alone, 0, united(len(small), best))


def _in_order(groups: NDArray[np.integer]) -> NDArray[np.int64]:
    """The same groups with numbers from 1 on, in the order of each one's first node."""
    _, first, index = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[index] + 1


def numbered(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same groups with numbers from 1 on without gaps, in their order; 0 stays 0."""
    different, index = np.unique(np.append(0, groups), return_inverse=True)
    assert different[0] == 0
    return index[1:].astype(np.int64)
