"""Which objects of the truth share voxels with which segments, counted in parts of a volume.

Arrays go in, tables come out; tables of parts are added without loss.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from custom.metrics import Contingency, contingency_of_pairs

Ids = NDArray[np.uint64]


@dataclass(frozen=True)
class Tally:
    """Counts by key, and for each key a voxel where much of it is.

    Args:
        keys: (N, K) the keys in ascending order, none twice.
        counts: (N,) of each.
        positions: (N, 3) a voxel of each, zyx.
        extents: (N,) how much there is of the key around that voxel: of two parts of a volume, the
            voxel of the larger extent stays.
    """

    keys: Ids
    counts: NDArray[np.int64]
    positions: NDArray[np.int64]
    extents: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.counts)


def tally(
    keys: Ids,
    counts: NDArray[np.int64],
    positions: NDArray[np.int64],
    extents: NDArray[np.int64],
) -> Tally:
    """A tally of rows whose keys may repeat; arguments as of ``Tally``.

    Counts of equal keys are added. The position is that of the largest extent, of equal ones the
    first in raster order, so that the order of the rows does not matter.
    """
    ties = (*positions.T[::-1], -extents)
    order = np.lexsort((*ties, *keys.T[::-1]))
    keys = keys[order]
    first = np.ones(len(keys), dtype=np.bool_)
    first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    starts = np.flatnonzero(first)
    sums = np.add.reduceat(counts[order], starts) if starts.size else counts[order]
    kept = order[starts]
    return Tally(keys[starts], sums, positions[kept], extents[kept])


def no_tally(columns: int) -> Tally:
    """The tally of nothing, with keys of so many columns."""
    none = np.zeros(0, np.int64)
    return Tally(np.zeros((0, columns), np.uint64), none, np.zeros((0, 3), np.int64), none)


def added(tallies: Iterable[Tally], columns: int) -> Tally:
    """The tally of all, whatever their order; few are in memory at once.

    Args:
        tallies: of parts that do not overlap.
        columns: of their keys.
    """
    total, waiting = no_tally(columns), list[Tally]()
    for part in tallies:
        waiting.append(part)
        if sum(map(len, waiting)) > len(total) + 2**16:
            total, waiting = _joined([total, *waiting]), []
    return _joined([total, *waiting])


def _joined(tallies: Sequence[Tally]) -> Tally:
    names = ("keys", "counts", "positions", "extents")
    return tally(*(np.concatenate([getattr(t, name) for t in tallies]) for name in names))


@dataclass(frozen=True)
class Table:
    """Voxels, and faces between voxels, of a part of a volume by the ids on them.

    The first column of every key is the section, 0 where objects go through sections.

    Args:
        pairs: voxels by section, true object and segment.
        splits: faces inside one true object between two segments: by section, object, the segment
            that the position lies in, the segment on the other side.
        merges: faces inside one segment between two objects: by section, segment, the object that
            the position lies in, the object on the other side.
    """

    pairs: Tally
    splits: Tally
    merges: Tally


COLUMNS = {"pairs": 3, "splits": 4, "merges": 4}


def table_of(
    truth: Ids,
    segmentation: Ids,
    known: NDArray[np.bool_],
    shape: Sequence[int],
    corner: Sequence[int] = (0, 0, 0),
    per_section: bool = False,
    with_faces: bool = True,
) -> Table:
    """The table of a block.

    ::

        arrays    |--------|     up to one voxel beyond the block at each upper end
        block     |-------|      a face belongs to the block of its lower voxel

    Args:
        truth: (D, H, W) ids of true objects.
        segmentation: (D, H, W) ids of segments; 0 is "unassigned".
        known: (D, H, W) where voxels count.
        shape: of the block, at the arrays' lower corner.
        corner: position of the arrays' first voxel.
        per_section: sections have objects and segments of their own.
        with_faces: count faces, too.
    """
    block = tuple(slice(0, length) for length in shape)
    faces = range(1 if per_section else 0, 3 if with_faces else 0)
    found = [(truth, segmentation), (segmentation, truth)]
    return Table(
        _pairs(truth[block], segmentation[block], known[block], corner, per_section),
        *(_faces(*ids, known, block, corner, faces, per_section) for ids in found),
    )


def _pairs(
    truth: Ids, segmentation: Ids, known: NDArray[np.bool_], corner: Sequence[int], apart: bool
) -> Tally:
    """Voxels of every pair; the position is the middle of the longest row of voxels along x."""
    ends = np.ones(truth.shape, dtype=np.bool_)
    ends[..., :-1] = False
    for values in (truth, segmentation, known):
        ends[..., :-1] |= values[..., 1:] != values[..., :-1]
    last = np.flatnonzero(ends)
    lengths = np.diff(last, prepend=-1)
    counted = known.ravel()[last]
    last, lengths = last[counted], lengths[counted]
    positions = np.stack(np.unravel_index(last - lengths // 2, truth.shape), axis=1)
    positions += np.asarray(corner)
    ids = (truth.ravel()[last], segmentation.ravel()[last])
    return tally(_keys(positions, apart, *ids), lengths, positions, lengths)


def _faces(
    objects: Ids,
    parts: Ids,
    known: NDArray[np.bool_],
    block: tuple[slice, ...],
    corner: Sequence[int],
    axes: Iterable[int],
    apart: bool,
) -> Tally:
    """Faces inside an object between two of its parts, neither of which is 0.

    The position is the voxel nearest to the middle of those faces.
    """
    keys, positions = [np.zeros((0, 4), np.uint64)], [np.zeros((0, 3), np.int64)]
    for axis in axes:
        near, far = _sides(objects.shape, block, axis)
        cut = (objects[near] == objects[far]) & (parts[near] != parts[far])
        cut &= known[near] & known[far] & (objects[near] != 0)
        cut &= (parts[near] != 0) & (parts[far] != 0)
        here = np.argwhere(cut)
        whole, one, other = objects[near][cut], parts[near][cut], parts[far][cut]
        step = np.eye(3, dtype=np.int64)[axis]
        for place, own, beyond in ((here, one, other), (here + step, other, one)):
            place = place + np.asarray(corner)
            positions.append(place)
            keys.append(_keys(place, apart, whole, own, beyond))
    return _middles(np.concatenate(keys), np.concatenate(positions))


def _sides(
    shape: Sequence[int], block: tuple[slice, ...], axis: int
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Lower and upper voxels of all faces across an axis that belong to a block."""
    end = min(block[axis].stop, shape[axis] - 1)
    near, far = list(block), list(block)
    near[axis], far[axis] = slice(0, end), slice(1, end + 1)
    return tuple(near), tuple(far)


def _keys(positions: NDArray[np.int64], apart: bool, *ids: Ids) -> Ids:
    """The section of every position, if sections are apart, and ids."""
    sections = positions[:, 0].astype(np.uint64) * np.uint64(apart)
    return np.stack([sections, *ids], axis=1)


def _middles(keys: Ids, positions: NDArray[np.int64]) -> Tally:
    """Rows by key, each with the position nearest to the mean of the key's positions."""
    order = np.lexsort(keys.T[::-1])
    keys, positions = keys[order], positions[order]
    first = np.ones(len(keys), dtype=np.bool_)
    first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    starts, index = np.flatnonzero(first), np.cumsum(first) - 1
    if not starts.size:
        return no_tally(keys.shape[1])
    counts = np.diff(starts, append=len(keys))
    means = np.add.reduceat(positions, starts, axis=0) / counts[:, None]
    distance = ((positions - means[index]) ** 2).sum(axis=1)
    nearest = np.lexsort((*positions.T[::-1], distance, index))[starts]
    return Tally(keys[starts], counts, positions[nearest], counts)


def contingency_of(pairs: Tally, per_section: bool = False) -> Contingency:
    """The contingency table of all voxels that were counted.

    Args:
        pairs: of a ``Table``.
        per_section: as it was made with.
    """
    sections, truth, segment = pairs.keys.T
    return contingency_of_pairs(
        truth, segment, pairs.counts, sections.astype(np.int64) if per_section else None
    )
