"""The labels of a volume as training and validation want them: objects, or classes."""

from copy import copy

import numpy as np
from funlib.geometry import Roi
from numpy.typing import NDArray

from custom.live import FeatureVolume
from custom.targets.classes import ClassSettings, classified

SECTIONS = 32  # that are looked through at once


class Truth:
    """Reads a volume's consecutive labels, or its classes.

    Args:
        volume: with labels.
        classes: what the ids of its labels mean; None for objects.

    Raises:
        InputError: an id is no class; names the volume.
    """

    def __init__(self, volume: FeatureVolume, classes: ClassSettings | None) -> None:
        self.volume = volume
        self.table = None
        if classes is not None:
            self.table = classes.table(volume.label_ids(), f"labels of volume '{volume.id}'")

    def seen_in(self, volume: FeatureVolume) -> "Truth":
        """The same of the volume as it is deformed."""
        seen = copy(self)
        seen.volume = volume
        return seen

    def read(self, roi: Roi) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Labels or classes of a box (D, H, W), and where they count; 0 and False outside."""
        labels, mask = self.volume.read_labels(roi)
        if self.table is None:
            return labels.astype(np.int64), mask
        return classified(labels, mask, self.table)

    def has_objects(self) -> bool:
        """Whether an object, or a class other than background, counts anywhere."""
        depth, height, width = self.volume.shape
        for first in range(0, depth, SECTIONS):
            size = min(SECTIONS, depth - first), height, width
            labels, mask = self.read(Roi((first, 0, 0), size))
            if (mask & (labels != 0)).any():
                return True
        return False
