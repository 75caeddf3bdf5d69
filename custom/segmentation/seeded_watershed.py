"""Fragments by a watershed from the middles of objects."""

from collections.abc import Sequence

import edt
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure, maximum_filter
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components as tree_components
from scipy.sparse.csgraph import minimum_spanning_tree
from skimage.segmentation import watershed

from custom.segmentation.faces import face_affinities, linked_pieces, same_across_faces
from custom.segmentation.fragments import Offset, consecutive, linked_axes, short_range_mean
from custom.segmentation.masking import check_affinities

LEVELS = 255
_TIE = 1e-3  # of a distance: of voxels as far from a boundary, those of high affinity come first


def seeded_watershed(
    affinities: NDArray[np.uint8],
    offsets: Sequence[Offset],
    boundary: float = 0.5,
    seed_distance: float = 5.0,
    grow_above: float = 0.0,
    voxel_size: Sequence[float] = (1, 1, 1),
    per_section: bool = False,
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint64]:
    """Fragments around the places that are farthest from a boundary.

    1. The inside is where the mean of the short-range affinities exceeds ``boundary``; the distance
       to the outside is measured in it.
    2. Seeds are the voxels that are farthest within ``seed_distance`` along every axis.
    3. A watershed on the distance floods the inside from them. What no face with an affinity above
       ``boundary`` links falls apart, and an inside that no seed reaches is a fragment, too.
    4. The outside joins these across faces, the highest affinities first, as long as they exceed
       ``grow_above``; what finds no fragment so is one of its own.

    Args:
        affinities: (K, D, H, W) uint8, 0 to 255.
        offsets: K offsets, voxels, zyx.
        boundary: 0 to 1; lower, and less is boundary.
        seed_distance: in the unit of ``voxel_size``; farther, and fragments are larger.
        grow_above: 0 to 1.
        voxel_size: zyx, in any unit.
        per_section: every section (of z) on its own; so it is in any case where no offset leads
            along z.
        mask: (D, H, W), True where to segment; everywhere when left out.

    Returns:
        (D, H, W) uint64, 0 outside ``mask``, else ids from 1 on without gaps, in the order in
        which a scan meets them.

    Raises:
        ValueError: shapes do not match.

    Source:
        Funke et al. 2019, IEEE TPAMI 41(7), there without the growth across faces.
    """
    counted = check_affinities(affinities, offsets, mask)
    flat = per_section or not linked_axes(offsets)[0]
    faces = face_affinities(affinities, offsets, counted)
    if flat:
        faces[0] = 0
    mean = short_range_mean(affinities, offsets)
    inside = counted & (mean > boundary)
    height = _distance(inside, voxel_size, flat) + _TIE * mean
    is_open = faces > boundary * LEVELS
    seeds = linked_pieces(is_open, inside & _farthest(height, seed_distance, voxel_size, flat))
    near = generate_binary_structure(3, 1)
    if flat:
        near[0], near[2] = False, False
    flooded = watershed(-height, seeds.astype(np.int64), near, mask=inside)  # type: ignore[no-untyped-call]  # scikit-image has no types
    pieces = linked_pieces(is_open & same_across_faces(flooded), inside)
    return _grown(pieces, faces, counted, grow_above)


def _distance(
    inside: NDArray[np.bool_], voxel_size: Sequence[float], flat: bool
) -> NDArray[np.float32]:
    """Distance of the inside to the outside; where there is none, farther than the array's size."""
    longest = np.float32(sum(n * v for n, v in zip(inside.shape, voxel_size, strict=True)))
    distance = np.zeros(inside.shape, dtype=np.float32)
    if flat:
        for section, result in zip(inside, distance, strict=True):
            result[...] = edt.edt(section, anisotropy=tuple(voxel_size[1:]))
    else:
        distance[...] = edt.edt(inside, anisotropy=tuple(voxel_size))
    return np.minimum(distance, longest)


def _farthest(
    height: NDArray[np.float32], reach: float, voxel_size: Sequence[float], flat: bool
) -> NDArray[np.bool_]:
    """Where nothing within reach is higher."""
    steps = [round(reach / size) for size in voxel_size]
    size = [1 if flat and axis == 0 else 2 * step + 1 for axis, step in enumerate(steps)]
    return np.asarray(height == maximum_filter(height, size=size, mode="nearest"))


def _grown(
    pieces: NDArray[np.uint64],
    faces: NDArray[np.uint8],
    counted: NDArray[np.bool_],
    above: float,
) -> NDArray[np.uint64]:
    """Pieces, grown over the other counted voxels: a forest of the highest affinities.

    The forest is the tree that links all pieces by a root, without that root (Kruskal).
    """
    count = int(pieces.max(initial=0))
    others = counted & (pieces == 0)
    nodes = pieces.astype(np.int64)
    nodes[others] = count + 1 + np.arange(np.count_nonzero(others))
    total = count + 1 + int(np.count_nonzero(others))  # node 0 is the root
    one, two, affinity = _open_faces(nodes, faces, count, above)
    trees = np.arange(1, count + 1)
    weights = np.concatenate([LEVELS + 2 - affinity, np.ones(count)])  # 0 would be no edge
    ends = np.concatenate([one, np.zeros(count, np.int64)]), np.concatenate([two, trees])
    tree = minimum_spanning_tree(_graph(*ends, weights, total)).tocoo()
    apart = (tree.row != 0) & (tree.col != 0)
    forest = coo_array((tree.data[apart], (tree.row[apart], tree.col[apart])), shape=(total, total))
    _, found = tree_components(forest.tocsr(), directed=False)
    return consecutive(np.where(counted, found[nodes] + 1, 0))


def _open_faces(
    nodes: NDArray[np.int64], faces: NDArray[np.uint8], count: int, above: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Faces above a threshold that a voxel outside all pieces has: two nodes and the affinity."""
    ends: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]] = []
    for axis in range(3):
        behind = np.moveaxis(nodes, axis, 0)
        one, two, affinity = behind[:-1], behind[1:], np.moveaxis(faces[axis], axis, 0)[1:]
        open_ = ((one > count) | (two > count)) & (affinity > above * LEVELS)
        ends.append((one[open_], two[open_], affinity[open_]))
    low, high, affinity = (np.concatenate(parts) for parts in zip(*ends, strict=True))
    return np.minimum(low, high), np.maximum(low, high), affinity.astype(np.float64)


def _graph(
    one: NDArray[np.int64], two: NDArray[np.int64], weight: NDArray[np.float64], total: int
) -> csr_array[np.float64]:
    """Edges as a matrix; of several between two nodes, the lightest."""
    order = np.lexsort((weight, two, one))
    one, two, weight = one[order], two[order], weight[order]
    first = np.ones(one.size, dtype=np.bool_)
    first[1:] = (one[1:] != one[:-1]) | (two[1:] != two[:-1])
    return coo_array((weight[first], (one[first], two[first])), shape=(total, total)).tocsr()
