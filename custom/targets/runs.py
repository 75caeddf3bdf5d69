"""Objects of a label array as runs of voxels along x, object by object."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Runs:
    """Every non-zero label of an array as runs of voxels along x.

    The runs of an object stand together, in the order of their places (z, then y, then x).

    Args:
        z: of each run, int64.
        y: of each run, int64.
        begin: first x of each run, int64.
        end: x behind the last of each run, int64.
        first: where each object's runs begin, and their number at the end, (objects + 1,) int64.
    """

    z: NDArray[np.int64]
    y: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    first: NDArray[np.int64]

    @property
    def objects(self) -> NDArray[np.int64]:
        """The number of each run's object, in the order of ids."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))

    def boxes(self, roi: Sequence[slice]) -> NDArray[np.int64]:
        """What lies in ``roi`` of each object that is there.

        Returns:
            (objects in the roi, 8): number of the first and behind the last of all the object's
            runs; begin and end of its bounding box in the roi along z, y and x.
        """
        inside = np.maximum(roi[2].start, self.begin) < np.minimum(roi[2].stop, self.end)
        for place, side in ((self.z, roi[0]), (self.y, roi[1])):
            inside &= (side.start <= place) & (place < side.stop)
        of = self.objects[inside]
        starts = np.flatnonzero(np.diff(of, prepend=-1))
        if not starts.size:
            return np.empty((0, 8), np.int64)
        present = of[starts]
        columns = [self.first[present], self.first[present + 1]]
        for low, high in ((self.z, self.z + 1), (self.y, self.y + 1), (self.begin, self.end)):
            columns.append(np.minimum.reduceat(low[inside], starts))
            columns.append(np.maximum.reduceat(high[inside], starts))
        table = np.stack(columns, axis=1)
        table[:, 6] = np.maximum(table[:, 6], roi[2].start)
        table[:, 7] = np.minimum(table[:, 7], roi[2].stop)
        return table


def runs_of(labels: NDArray[np.integer]) -> Runs:
    """Runs of every non-zero label.

    Args:
        labels: instance labels, shape (D, H, W), zyx; 0 is background; any integer dtype.
    """
    _, height, width = labels.shape
    rows = np.ascontiguousarray(labels).reshape(-1, width)
    starts_here = np.ones(rows.shape, dtype=np.bool_)
    np.not_equal(rows[:, 1:], rows[:, :-1], out=starts_here[:, 1:])
    begins = np.flatnonzero(starts_here)
    ids = rows.ravel()[begins]
    ends = np.append(begins[1:], rows.size)
    begins, ends, ids = (values[ids != 0] for values in (begins, ends, ids))
    of = np.unique(ids, return_inverse=True)[1]
    order = np.argsort(of, kind="stable")
    begins, lengths = begins[order], (ends - begins)[order]
    row, begin = np.divmod(begins, width)
    z, y = np.divmod(row, height)
    first = np.append(0, np.cumsum(np.bincount(of)))
    return Runs(z, y, begin, begin + lengths, first)
