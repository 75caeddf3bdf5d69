"""Edges between the fragments of a volume, block by block."""

from collections.abc import Iterator
from contextlib import contextmanager

import daisy
import numpy as np
from funlib.geometry import Coordinate
from numpy.typing import NDArray

from custom.blockwise.arrays import open_store
from custom.blockwise.chain import AFFINITIES, FRAGMENTS, SEAMS, ChainTask
from custom.blockwise.graph_database import write_edges
from custom.blockwise.tracked import ProcessBlock
from custom.segmentation.fragments import Offset, linked_axes
from custom.segmentation.method import SegmentationMethod, reach
from custom.segmentation.region_graph import RegionGraph, link_histograms, linked_pairs

_Ends = tuple[NDArray[np.integer], NDArray[np.integer]]  # lower and higher ids of pairs


class Regions(ChainTask):
    """Writes the edges of the graph: every pair of fragments by the block of the lower id.

    That block reads as far as links lead, on all sides, and so sees all links of its fragments; no
    other block has to write the edge, too.

    Args:
        seams_of: name of the task that wrote the fragments.
    """

    seams_of: str = FRAGMENTS

    @property
    def context_size(self) -> Coordinate:
        """The largest offset of the method's links, and the next voxel."""
        method = self.made_method()
        faces = [[int(linked) for linked in linked_axes(method.offsets)]]
        return Coordinate(reach([*faces, *(method.offsets[k] for k in method.links)]))

    def init(self) -> None:
        """The graph is there."""
        self.graph.init()

    def drop_artifacts(self) -> None:
        """Remove the edges."""
        self.graph.claim()
        self.graph.drop_edges()

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Find the edges of a block."""
        method = self.made_method()
        affinities = open_store(self.array_path(AFFINITIES))
        fragments = open_store(self.array_path(FRAGMENTS))
        seams = open_store(self.state_dir / self.seams_of / SEAMS)

        def process(block: daisy.Block) -> None:
            write, read = block.write_roi, block.read_roi.intersect(self.write_roi)
            box = tuple(read.to_slices())
            ids = fragments[box].read().result()
            if not ids[tuple((write - read.begin).to_slices())].any():
                return
            values = {k: affinities[(k, *box)].read() for k in method.links}
            bits = seams[box].read().result()
            own = self.first_id(write), self.first_id(write) + int(np.prod(self.block))
            links = {k: future.result() for k, future in values.items()}
            graph = edges_of(method, ids, links, bits, own)
            if len(graph.edges):
                write_edges(connection(), graph)

        with self.connections() as connection:
            yield process


def edges_of(
    method: SegmentationMethod,
    ids: NDArray[np.uint64],
    affinities: dict[int, NDArray[np.uint8]],
    seams: NDArray[np.uint8],
    own: tuple[int, int],
) -> RegionGraph:
    """Edges whose lower id is among those of a block.

    Args:
        method: gives offsets and links.
        ids: (D, H, W) fragments.
        affinities: (D, H, W) uint8 of every channel among the method's links.
        seams: (D, H, W) as ``Fragments`` writes them.
        own: the number below the block's ids, and the last that could be its own.

    Returns:
        A graph, of whose nodes only the ids are right.
    """
    links: list[tuple[_Ends, NDArray[np.uint8]]] = []
    for k, affinity in affinities.items():
        here, ends, linked = _own_pairs(ids, method.offsets[k], own)
        links.append((ends, affinity[here][linked]))
    touching: list[tuple[_Ends, NDArray[np.bool_]]] = []
    for axis in (axis for axis in range(3) if linked_axes(method.offsets)[axis]):
        here, ends, linked = _own_pairs(ids, [int(a == axis) for a in range(3)], own)
        there = tuple(slice(s.start + (a == axis), None) for a, s in enumerate(here))
        agreed = (seams[here] >> (3 + axis)) & (seams[there] >> axis) & 1
        touching.append((ends, agreed[linked] > 0))
    nodes = np.unique(np.concatenate([end for ends, _ in [*links, *touching] for end in ends]))
    levels = np.concatenate([np.empty(0, dtype=np.uint8), *(level for _, level in links)])
    link, touch = (_numbers(nodes, [ends for ends, _ in pairs]) for pairs in (links, touching))
    edges = np.unique(np.concatenate([link, touch]))
    places = np.searchsorted(edges, touch)
    agreeing = np.concatenate([np.empty(0, dtype=np.bool_), *(same for _, same in touching)])
    number = len(nodes)
    return RegionGraph(
        nodes.astype(np.uint64),
        np.zeros(number, dtype=np.int64),
        np.zeros(number),
        np.zeros(number, dtype=np.bool_),
        np.stack(np.divmod(edges, max(number, 1)), axis=1),
        np.bincount(places, minlength=len(edges)),
        np.bincount(places[agreeing], minlength=len(edges)),
        *link_histograms(link, levels, edges),
    )


def _own_pairs(
    ids: NDArray[np.uint64], offset: Offset, own: tuple[int, int]
) -> tuple[tuple[slice, ...], _Ends, tuple[NDArray[np.intp], ...]]:
    """Slices of voxels with a neighbour at an offset; ends and places of the block's own pairs."""
    here, linked, low, high = linked_pairs(ids, offset)
    mine = (low > own[0]) & (low <= own[1])
    places = tuple(index[mine] for index in np.nonzero(linked))
    return here, (low[mine], high[mine]), places


def _numbers(nodes: NDArray[np.uint64], pairs: list[_Ends]) -> NDArray[np.int64]:
    """One number for every pair of nodes."""
    low, high = (
        np.searchsorted(nodes, np.concatenate([np.empty(0, np.uint64), *ends]))
        for ends in ([ends[side] for ends in pairs] for side in range(2))
    )
    return (low * len(nodes) + high).astype(np.int64)
