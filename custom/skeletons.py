"""Skeletons of neurons, from SWC files, and the segments that they run through."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray

from custom.errors import InputError
from custom.run_length import Traced
from custom.volumes import Volume

BLOCK = 128  # edge of what is read at once, voxels
COLUMNS = 7  # of SWC: id, type, x, y, z, radius, parent


@dataclass(frozen=True)
class Skeleton:
    """A skeleton of one neuron.

    Args:
        name: of its file.
        nodes_nm: (N, 3) positions, zyx.
        edges: (E, 2) indices of nodes.
    """

    name: str
    nodes_nm: NDArray[np.float64]
    edges: NDArray[np.int64]

    @property
    def lengths_nm(self) -> NDArray[np.float64]:
        """(E,) of the edges."""
        ends = self.nodes_nm[self.edges]
        lengths: NDArray[np.float64] = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
        return lengths


def read_skeletons(path: str, where: str) -> list[Skeleton]:
    """The skeletons of a volume.

    Args:
        path: an SWC file, or a folder of such files; each is one neuron, its positions are in nm.
        where: names the field in messages.

    Raises:
        InputError: there are none, or a file is not SWC.
    """
    folder = Path(path)
    files = sorted(folder.glob("*.swc")) if folder.is_dir() else [folder]
    if not files or not files[0].is_file():
        raise InputError(f"{where} '{path}' is neither an SWC file nor a folder with *.swc files")
    return [parse_swc(file.read_text(errors="replace"), file.stem, str(file)) for file in files]


def parse_swc(text: str, name: str, where: str) -> Skeleton:
    """A skeleton from the lines ``id type x y z radius parent``; parent -1 is none.

    Args:
        text: of the file; lines that begin with # are comments.
        name: of the skeleton.
        where: names the file in messages.

    Raises:
        InputError: a line that is not like that, an id that stands twice, a parent that is not
            there, or no node at all.
    """
    rows: dict[int, tuple[list[float], int]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        id_, place, parent = _node(words, f"'{where}', line {number}")
        if id_ in rows:
            raise InputError(f"'{where}', line {number} has the id {id_}, which stands twice")
        rows[id_] = place, parent
    if not rows:
        raise InputError(f"'{where}' holds no nodes; a line of SWC is id type x y z radius parent")
    index = {id_: i for i, id_ in enumerate(rows)}
    edges = [(index[id_], parent) for id_, (_, parent) in rows.items() if parent != -1]
    if lost := [parent for _, parent in edges if parent not in index]:
        raise InputError(f"'{where}' names the parent {lost[0]}, which is none of its nodes")
    pairs = np.array([(i, index[parent]) for i, parent in edges], np.int64).reshape(-1, 2)
    return Skeleton(name, np.array([place for place, _ in rows.values()]), pairs)


def _node(words: Sequence[str], where: str) -> tuple[int, list[float], int]:
    """Id, position zyx and parent of a line."""
    try:
        x, y, z = (float(word) for word in words[2:5])
        if len(words) != COLUMNS or not np.isfinite((x, y, z)).all():
            raise ValueError
        return int(words[0]), [z, y, x], int(words[6])
    except ValueError:
        raise InputError(
            f"{where} is not SWC (id type x y z radius parent, seven numbers): {' '.join(words)}"
        ) from None


def traced(skeletons: Sequence[Skeleton], segmentation: Volume, region: Roi) -> list[Traced]:
    """Skeletons as far as both ends of an edge lie in a region, with the segments of their nodes.

    Args:
        skeletons: positions in the same nm as those of the segmentation.
        segmentation: read in blocks, where there are nodes.
        region: in voxels of the segmentation, inside it.
    """
    places = [_voxels(skeleton.nodes_nm, segmentation) for skeleton in skeletons]
    ends = np.cumsum([len(part) for part in places])[:-1]
    voxels = np.concatenate([np.zeros((0, 3), np.int64), *places])
    begin, end = np.asarray(region.begin), np.asarray(region.end)
    inside = np.asarray(((voxels >= begin) & (voxels < end)).all(axis=1))
    segments = np.zeros(len(voxels), np.uint64)
    for nodes, box in _boxes(voxels, inside):
        values = segmentation.read(box).astype(np.uint64)
        segments[nodes] = values[tuple((voxels[nodes] - np.asarray(box.offset)).T)]
    found = []
    parts = zip(skeletons, np.split(inside, ends), np.split(segments, ends), strict=True)
    for skeleton, known, own in parts:
        whole = known[skeleton.edges].all(axis=1)
        found.append(
            Traced(skeleton.edges[whole], skeleton.lengths_nm[whole], np.where(known, own, 0))
        )
    return found


def _voxels(nodes_nm: NDArray[np.float64], volume: Volume) -> NDArray[np.int64]:
    """The voxel that each position lies in."""
    metadata = volume.metadata
    exact = (nodes_nm - np.asarray(metadata.offset_nm)) / np.asarray(metadata.voxel_size_nm)
    voxels: NDArray[np.int64] = np.rint(exact).astype(np.int64)
    return voxels


def _boxes(
    voxels: NDArray[np.int64], inside: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], Roi]]:
    """Nodes that lie in one block, and the smallest box around them."""
    nodes = np.flatnonzero(inside)
    _, block = np.unique(voxels[nodes] // BLOCK, axis=0, return_inverse=True)
    order = np.argsort(block.ravel(), kind="stable")
    starts = np.flatnonzero(np.diff(block.ravel()[order], prepend=-1))
    for group in np.split(nodes[order], starts[1:]) if nodes.size else ():
        low, high = voxels[group].min(axis=0), voxels[group].max(axis=0)
        yield group, Roi(Coordinate(low), Coordinate(high - low + 1))
