"""Fragments of a volume, block by block."""

from collections.abc import Iterator
from contextlib import contextmanager

import cc3d
import daisy
import numpy as np
import zarr
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray

from custom.blockwise.arrays import open_store
from custom.blockwise.chain import AFFINITIES, FRAGMENTS, SEAMS, ChainTask, block_chunks
from custom.blockwise.graph_database import write_nodes
from custom.blockwise.tracked import ProcessBlock
from custom.outputs import images
from custom.segmentation.fragments import Cut, short_range_mean, touching
from custom.segmentation.method import Triple
from custom.segmentation.region_graph import RegionGraph
from custom.volumes import Volume, open_volume


class Fragments(ChainTask):
    """Writes ``fragments``, their nodes, and where they go on beyond their block.

    A block's fragments are found in its read box, and what lies in the block is kept. For voxels
    at its faces ``seams`` says whether the voxel beyond the face is of the same fragment to this
    block: bit ``axis`` for the one before along an axis, bit ``3 + axis`` for the one after::

        |-----------------------|   volume
               |wwwwwwww|           block
             |rrrrrrrrrrrr|         read: with the method's context
              s|s      s|s          pairs of voxels at seams

    Args:
        mask: path of a volume, in any format that is read; where it is 0, and beyond it, there is
            no fragment. None: everywhere may be one.
        mask_offset: voxel of the mask at voxel (0, 0, 0), zyx.
    """

    mask: str | None = None
    mask_offset: Triple = (0, 0, 0)

    @property
    def context_size(self) -> Coordinate:
        """The method's context."""
        return Coordinate(self.made_method().context)

    def init(self) -> None:
        """Create what blocks are written to."""
        self.create_labels(FRAGMENTS, {})
        if not (self.meta_dir / SEAMS).exists():
            zarr.create_array(
                self.meta_dir / SEAMS,
                shape=self.shape,
                chunks=block_chunks(self.block, self.shape),
                dtype="uint8",
                zarr_format=2,
                fill_value=0,
            )
        self.graph.claim()
        self.graph.init()

    def outputs_exist(self) -> bool:
        """Whether the fragments are there."""
        return self.array_path(FRAGMENTS).exists()

    def drop_artifacts(self) -> None:
        """Remove fragments and graph."""
        images.remove(self.output, FRAGMENTS)
        self.graph.claim()
        self.graph.drop()

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Find the fragments of a block."""
        method = self.made_method()
        affinities = open_store(self.array_path(AFFINITIES))
        fragments = open_store(self.array_path(FRAGMENTS))
        seams = open_store(self.meta_dir / SEAMS)
        channels = slice(0, len(method.offsets))
        inside = None if self.mask is None else open_volume(self.mask, (1, 1, 1), "mask")
        place = Coordinate(self.mask_offset)

        def process(block: daisy.Block) -> None:
            write, read = block.write_roi, block.read_roi.intersect(self.write_roi)
            mask = None if inside is None else read_mask(inside, read + place)
            if mask is not None and not mask.any():
                return
            values = affinities[(channels, *read.to_slices())].read().result()
            if mask is None and not values.any():
                return
            cut = cut_faces(read, self.write_roi)
            seen = method.fragments(values, mask, cut).astype(np.int64)
            inner = write - read.begin
            pieces = block_pieces(seen, inner)
            ids = np.where(pieces > 0, pieces + self.first_id(write), 0).astype(np.uint64)
            box = tuple(write.to_slices())
            writes = [fragments[box].write(ids), seams[box].write(seam_bits(seen, inner))]
            for one in writes:
                one.result()
            if pieces.any():
                mean = short_range_mean(values, method.offsets)[tuple(inner.to_slices())]
                is_open = open_pieces(seen, pieces, inner, cut)
                nodes, centres = piece_nodes(pieces, mean, is_open, self.first_id(write))
                write_nodes(connection(), nodes, centres + np.array(write.begin))

        with self.connections() as connection:
            yield process


def read_mask(mask: Volume, box: Roi) -> NDArray[np.bool_]:
    """Where a mask is not 0 in a box, (D, H, W); False beyond the mask.

    Args:
        mask: open.
        box: in its voxels.
    """
    found = np.zeros(tuple(box.shape), dtype=np.bool_)
    part = box.intersect(mask.metadata.roi)
    if not part.empty:
        found[(part - box.begin).to_slices()] = mask.read(part) != 0
    return found


def cut_faces(part: Roi, whole: Roi) -> Cut:
    """Faces of a part where the whole goes on."""
    (a, b, c), (d, e, f) = (
        (int(one) != int(other) for one, other in zip(ends, of_whole, strict=True))
        for ends, of_whole in ((part.begin, whole.begin), (part.end, whole.end))
    )
    return (a, b, c), (d, e, f)


def block_pieces(seen: NDArray[np.int64], inner: Roi) -> NDArray[np.int64]:
    """The pieces of fragments in a block.

    What lies in the block and is connected through its surroundings alone is several pieces: the
    blocks there decide.

    Args:
        seen: fragments in the read box.
        inner: the block in it.

    Returns:
        Of the block's shape, ids from 1 on without gaps; 0 is background.
    """
    labels = seen[tuple(inner.to_slices())]
    if labels.shape == seen.shape:
        return labels
    pieces: NDArray[np.int64] = cc3d.connected_components(
        np.ascontiguousarray(labels), connectivity=6
    ).astype(np.int64)
    return pieces


def seam_bits(seen: NDArray[np.int64], inner: Roi) -> NDArray[np.uint8]:
    """Where fragments go on across the faces of a block; see ``Fragments``.

    Args:
        seen: fragments in the read box.
        inner: the block in it.
    """
    box = tuple(inner.to_slices())
    labels = seen[box]
    bits = np.zeros(labels.shape, dtype=np.uint8)
    for axis in range(3):
        for side, (face, beyond) in enumerate(
            ((0, box[axis].start - 1), (-1, box[axis].stop)),
        ):
            if 0 <= beyond < seen.shape[axis]:
                others = seen[tuple(beyond if a == axis else box[a] for a in range(3))]
                here = labels.take(face, axis)
                same = (here == others) & (here > 0)
                plane: list[slice | int] = [slice(None)] * 3
                plane[axis] = face
                bits[tuple(plane)] |= same.astype(np.uint8) << (3 * side + axis)
    return bits


def open_pieces(
    seen: NDArray[np.int64], pieces: NDArray[np.int64], inner: Roi, cut: Cut
) -> NDArray[np.bool_]:
    """For every piece, whether its fragment touches a face where the read box is cut.

    Args:
        seen: fragments in the read box.
        pieces: of ``block_pieces``.
        inner: the block in the read box.
        cut: faces of the read box.
    """
    fragment_of = np.zeros(int(pieces.max()) + 1, dtype=np.int64)
    fragment_of[pieces] = seen[tuple(inner.to_slices())]
    is_open: NDArray[np.bool_] = touching(seen, cut)[fragment_of[1:]]
    return is_open


def piece_nodes(
    pieces: NDArray[np.int64],
    affinity: NDArray[np.float32],
    is_open: NDArray[np.bool_],
    first_id: int,
) -> tuple[RegionGraph, NDArray[np.float64]]:
    """Nodes of the pieces in a block, and their centres.

    Args:
        pieces: of ``block_pieces``.
        affinity: short-range mean of every voxel.
        is_open: of ``open_pieces``.
        first_id: the number below their ids.

    Returns:
        A graph without edges; and (N, 3) centres from the corner of the block, zyx.
    """
    flat = pieces.ravel()
    sizes = np.bincount(flat)
    centres = [
        np.bincount(flat, np.broadcast_to(along, pieces.shape).ravel()) / np.maximum(sizes, 1)
        for along in np.ogrid[tuple(slice(0, n) for n in pieces.shape)]
    ]
    means = np.bincount(flat, affinity.ravel()) / np.maximum(sizes, 1)
    ids = np.arange(1, len(sizes), dtype=np.uint64) + np.uint64(first_id)
    none = np.zeros(0, dtype=np.int64)
    nodes = RegionGraph(
        ids, sizes[1:], means[1:], is_open, none.reshape(0, 2), none, none,
        np.zeros(1, dtype=np.int64), none.astype(np.uint8), none,
    )  # fmt: skip
    return nodes, np.stack(centres, axis=1)[1:]
