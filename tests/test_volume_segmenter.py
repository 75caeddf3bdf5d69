import numpy as np
import pytest
import torch

from custom.segmentation.segmenter import MutexWatershedSegmenter
from custom.volume_segmenter import stored_segmenter

SEGMENTER = MutexWatershedSegmenter(((1, 0, 0), (0, 1, 0), (0, 0, 1)), bias=-0.5)
SIZE = (40.0, 8.0, 8.0)


def test_stored_settings_win_over_those_of_the_configuration() -> None:
    found = stored_segmenter({"segmentation": {"bias": -0.3, "threshold": 0.7}}, SEGMENTER)
    assert found.segmenter == SEGMENTER.with_settings(bias=-0.3, threshold=0.7)


def test_of_classes_the_most_probable_one_is_given() -> None:
    probabilities = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    segment = stored_segmenter({"output_type": "labels", "voxel_size_nm": SIZE}, SEGMENTER)
    found = segment(probabilities, SIZE)
    np.testing.assert_array_equal(found, probabilities.numpy().argmax(0))
    assert set(np.unique(found)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("size", "warned"),
    [(SIZE, False), ((40.0, 8.2, 8.0), False), ((4.0, 4.0, 4.0), False), ((8.0, 8.0, 40.0), True)],
)
def test_a_voxel_size_that_training_has_not_seen_is_logged(
    caplog: pytest.LogCaptureFixture, size: tuple[float, float, float], warned: bool
) -> None:
    described = {"voxel_size_nm": SIZE, "other_voxel_sizes_nm": [[4.0, 4.0, 4.0]]}
    stored_segmenter(described, SEGMENTER)(torch.ones(3, 2, 4, 5), size)
    assert ("expect a worse segmentation" in caplog.text) is warned
