"""From a trained model's probabilities to labels, as its validation chose."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from custom.output import SAME_SCALE
from custom.scores import as_uint8, predicted_classes
from custom.segmentation.method import SegmentationMethod
from custom.segmentation_settings import chosen_method

logger = logging.getLogger(__name__)


class VolumeSegmenter:
    """What inference makes of the probabilities of a volume.

    Args:
        segmenter: from affinities to segments; None where classes are predicted.
        trained_nm: voxel sizes of the training, zyx, in nm; none: not known.
    """

    def __init__(
        self,
        segmenter: SegmentationMethod | None,
        trained_nm: Sequence[Sequence[float]] = (),
    ) -> None:
        self.segmenter = segmenter
        self.trained_nm = [tuple(size) for size in trained_nm]

    def __call__(self, probabilities: Tensor, voxel_size_nm: Sequence[float]) -> NDArray[np.uint64]:
        """Segments, or the ids of the most probable classes; 0 is background.

        Args:
            probabilities: (C, D, H, W), of the whole volume.
            voxel_size_nm: of the volume, zyx; one that training has not seen is logged.

        Returns:
            (D, H, W).
        """
        self._warn_of_scale(voxel_size_nm)
        if self.segmenter is None:
            return predicted_classes(probabilities)
        return self.segmenter(as_uint8(probabilities))

    def _warn_of_scale(self, size: Sequence[float]) -> None:
        known = [np.allclose(size, trained, rtol=SAME_SCALE, atol=0) for trained in self.trained_nm]
        if known and not any(known):
            logger.warning(
                "the volume has voxels of %s nm, the model was trained on %s nm: expect a worse "
                "segmentation, or resample raw to such voxels",
                list(size),
                " and ".join(str(list(trained)) for trained in self.trained_nm),
            )


def stored_segmenter(
    description: Mapping[str, Any], segmenter: SegmentationMethod
) -> VolumeSegmenter:
    """The segmenter with the settings that are stored with a model.

    Args:
        description: ``model.json``.
        segmenter: of the training's configuration.

    Raises:
        InputError: the settings are those of another method.
    """
    sizes = [description.get("voxel_size_nm"), *description.get("other_voxel_sizes_nm", [])]
    of_classes = description.get("output_type") == "labels"
    best = None if of_classes else chosen_method(description, segmenter)
    return VolumeSegmenter(best, [size for size in sizes if size])
