"""Where a segmentation errs: the pieces of every true object, the objects of every segment."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from custom.contingency import Table, Tally

WORST = 10
TRUTH, SEGMENT = 1, 2  # columns of a table's pairs


@dataclass(frozen=True)
class Words:
    """Names of a list's columns.

    Args:
        score: the part of VOI that the list explains.
        whole: what is broken or joined.
        part: what it is broken into, or joined of.
        parts: how many.
    """

    score: str
    whole: str
    part: str
    parts: str


SPLITS = Words("voi_split", "truth", "segment", "segments")
MERGES = Words("voi_merge", "segment", "truth", "truths")


@dataclass(frozen=True)
class Pieces:
    """Every pair of a whole and a part of it, worst wholes first, largest parts first.

    Args:
        words: what wholes and parts are.
        whole: (N,) ids.
        part: (N,) ids.
        voxels: (N,) that both have.
        whole_voxels: (N,) of the whole.
        bits: (N,) what the pair adds to the score; all of them are the score.
        whole_bits: (N,) what the whole adds.
        parts: (N,) of the whole.
        rank: (N,) of the part in the whole by size, from 0.
        positions: (N, 3) a voxel of the pair, zyx: for all parts but the largest at the border to
            the largest, or to whichever it shares most faces with.
        beside: (N,) the part on the other side of that border; 0 where there is none, and the
            position is in the middle of a row of the pair's voxels.
    """

    words: Words
    whole: NDArray[np.uint64]
    part: NDArray[np.uint64]
    voxels: NDArray[np.int64]
    whole_voxels: NDArray[np.int64]
    bits: NDArray[np.float64]
    whole_bits: NDArray[np.float64]
    parts: NDArray[np.int64]
    rank: NDArray[np.int64]
    positions: NDArray[np.int64]
    beside: NDArray[np.uint64]

    def rows(
        self, voxel_size_nm: Sequence[float], offset_nm: Sequence[float]
    ) -> Iterator[dict[str, Any]]:
        """One row per pair, by the names of ``columns``.

        Args:
            voxel_size_nm: of the segmentation, zyx.
            offset_nm: position of the centre of its first voxel, zyx.
        """
        words = self.words
        places = self.positions * np.asarray(voxel_size_nm) + np.asarray(offset_nm)
        for i in range(len(self.whole)):
            yield {
                f"{words.whole}_id": int(self.whole[i]),
                f"{words.whole}_voxels": int(self.whole_voxels[i]),
                words.parts: int(self.parts[i]),
                words.score: float(self.whole_bits[i]),
                f"{words.part}_id": int(self.part[i]),
                "voxels": int(self.voxels[i]),
                "share": float(self.voxels[i] / self.whole_voxels[i]),
                f"{words.score}_part": float(self.bits[i]),
                f"beside_{words.part}_id": int(self.beside[i]) or "",
                **dict(zip("zyx", map(int, self.positions[i]), strict=True)),
                **dict(zip(("z_nm", "y_nm", "x_nm"), map(float, places[i]), strict=True)),
            }

    def columns(self) -> list[str]:
        """Names of the columns of ``as_csv``."""
        words = self.words
        whole = [f"{words.whole}_id", f"{words.whole}_voxels", words.parts, words.score]
        part = [f"{words.part}_id", "voxels", "share", f"{words.score}_part"]
        return [*whole, *part, f"beside_{words.part}_id", *"zyx", "z_nm", "y_nm", "x_nm"]

    def as_csv(self, voxel_size_nm: Sequence[float], offset_nm: Sequence[float]) -> bytes:
        """All rows as a CSV file's content; arguments as of ``rows``."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows(voxel_size_nm, offset_nm))
        return text.getvalue().encode()

    def worst(
        self, voxel_size_nm: Sequence[float], offset_nm: Sequence[float]
    ) -> list[Mapping[str, Any]]:
        """Of the worst wholes the row of their second largest part; arguments as of ``rows``."""
        second = np.flatnonzero(self.rank == 1)[:WORST]
        return list(self._chosen(second).rows(voxel_size_nm, offset_nm))

    def _chosen(self, index: NDArray[np.int64]) -> "Pieces":
        values = {name: value for name, value in vars(self).items() if name != "words"}
        return Pieces(self.words, **{name: value[index] for name, value in values.items()})


def splits(table: Table) -> Pieces:
    """The segments of every true object; what they add is the VOI split."""
    return _pieces(table.pairs, table.splits, SPLITS, TRUTH, SEGMENT)


def merges(table: Table) -> Pieces:
    """The true objects of every segment; what they add is the VOI merge."""
    return _pieces(table.pairs, table.merges, MERGES, SEGMENT, TRUTH)


def _pieces(pairs: Tally, faces: Tally, words: Words, whole: int, part: int) -> Pieces:
    """All pairs, ordered."""
    keys = pairs.keys[:, [0, whole, part]]
    order = np.lexsort((keys[:, 2], -pairs.counts, keys[:, 1], keys[:, 0]))
    keys, voxels, positions = keys[order], pairs.counts[order], pairs.positions[order].copy()
    first = np.ones(len(keys), dtype=np.bool_)
    first[1:] = (keys[1:, :2] != keys[:-1, :2]).any(axis=1)
    starts, index = np.flatnonzero(first), np.cumsum(first) - 1
    whole_voxels = np.add.reduceat(voxels, starts)[index] if starts.size else voxels
    bits = voxels / max(1, voxels.sum()) * np.log2(whole_voxels / voxels)
    whole_bits = np.bincount(index, weights=bits)[index] if starts.size else bits
    sites = _sites(
        faces, dict(zip(map(tuple, keys[first, :2].tolist()), keys[first, 2].tolist(), strict=True))
    )
    beside = np.zeros(len(keys), dtype=np.uint64)
    for i in np.flatnonzero(~first):
        site = sites.get(tuple(keys[i].tolist()))
        if site is not None:
            beside[i], positions[i] = faces.keys[site, 3], faces.positions[site]
    rank = np.arange(len(keys)) - starts[index] if starts.size else index
    parts = np.bincount(index)[index] if starts.size else index
    found = Pieces(words, keys[:, 1], keys[:, 2], voxels, whole_voxels, bits, whole_bits, parts,
                   rank, positions, beside)  # fmt: skip
    return found._chosen(np.lexsort((rank, index, -whole_bits)))


def _sites(faces: Tally, largest: Mapping[tuple[int, ...], int]) -> dict[tuple[int, ...], int]:
    """For every part of a whole the row of the faces that are shown.

    Args:
        faces: of a ``Table``.
        largest: part of every section and whole.
    """
    found: dict[tuple[int, ...], int] = {}
    worth: dict[tuple[int, ...], tuple[bool, int]] = {}
    for row, (section, whole, own, other) in enumerate(faces.keys.tolist()):
        key = (section, whole, own)
        value = (largest.get((section, whole)) == other, int(faces.counts[row]))
        if value > worth.get(key, (False, 0)):
            found[key], worth[key] = row, value
    return found
