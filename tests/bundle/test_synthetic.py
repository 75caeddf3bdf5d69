from pathlib import Path

import numpy as np
import pytest
from scripts.synthetic import (
    MITOCHONDRION,
    _add_organelles_,
    demo_datalist,
    smooth_noise,
    synthetic_volume,
    write_demo_data,
)
from skimage.measure import label as connected_objects
from skimage.segmentation import find_boundaries

from custom.datalist import open_entry, parse_datalist
from custom.errors import InputError
from custom.metrics import adapted_rand_error

SHAPE = (28, 40, 48)
VOXEL_SIZE = (40.0, 16.0, 12.0)


def test_equal_seeds_give_equal_volumes_and_others_do_not() -> None:
    raw, labels = synthetic_volume(SHAPE, 3, VOXEL_SIZE)
    again_raw, again_labels = synthetic_volume(SHAPE, 3, VOXEL_SIZE)
    other_raw, _ = synthetic_volume(SHAPE, 4, VOXEL_SIZE)
    np.testing.assert_array_equal(raw, again_raw)
    np.testing.assert_array_equal(labels, again_labels)
    assert (raw != other_raw).mean() > 0.5
    assert (raw.dtype, labels.dtype) == (np.uint8, np.uint32)
    assert raw.shape == labels.shape == SHAPE


def test_every_label_is_one_face_connected_object_and_cells_fill_the_volume() -> None:
    _, labels = synthetic_volume(SHAPE, 0, VOXEL_SIZE)
    assert connected_objects(labels, connectivity=1).max() == labels.max() > 5
    assert labels.min() == 1


def test_a_gap_keeps_cells_apart_and_is_label_zero() -> None:
    _, labels = synthetic_volume((48, 48, 48), 0, extracellular_nm=60.0)
    assert 0.05 < (labels == 0).mean() < 0.5
    pairs = [(labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])]
    touching = [((a != b) & (a != 0) & (b != 0)).mean() for a, b in pairs]
    assert max(touching) < 1e-3


def test_walls_between_cells_are_darker_than_cells() -> None:
    raw, labels = synthetic_volume((48, 48, 48), 1)
    wall = find_boundaries(labels, mode="thick")
    assert raw[wall].mean() < raw[~wall].mean() - 25


def test_another_voxel_size_samples_the_same_tissue() -> None:
    _, labels = synthetic_volume((48, 48, 48), 2, (16.0, 16.0, 16.0))
    _, sampled = synthetic_volume((24, 96, 48), 2, (32.0, 8.0, 16.0))
    assert labels.max() > 8
    assert adapted_rand_error(labels[::2], sampled[:, ::2]) < 0.05


def test_a_membrane_of_twice_the_thickness_is_darker_over_more_voxels() -> None:
    shape, voxel_size = (24, 96, 48), (32.0, 8.0, 16.0)
    thin, thick = (
        synthetic_volume(shape, 2, voxel_size, membrane_nm=nm, noise=0.0)[0] for nm in (30.0, 60.0)
    )
    assert (thick < 100).mean() > 1.4 * (thin < 100).mean()


def test_organelles_stay_where_the_cell_has_room() -> None:
    shape, voxel_size = (30, 40, 50), np.array([16.0, 16.0, 16.0])
    axes = [(np.arange(n) + 0.5) * 16 for n in shape]
    position = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    room_nm = np.abs(position[1] - 320).astype(np.float32) - 20  # a wall across the middle
    grey = np.full(shape, -1, dtype=np.float32)
    points = np.array([[240.0, 330.0, 400.0]] * 6)
    _add_organelles_(grey, position, room_nm, points, voxel_size, np.random.default_rng(0))
    drawn = grey != -1
    assert drawn[room_nm > 14].any()
    assert not drawn[room_nm <= 14].any()
    assert abs(np.median(grey[drawn]) - MITOCHONDRION) < 40


def test_smooth_noise_has_unit_variance_and_its_scale() -> None:
    rng = np.random.default_rng(0)
    noise = smooth_noise((60, 60, 60), np.array([20.0, 10.0, 10.0]), 40.0, rng)
    assert 0.7 < noise.std() < 1.3
    steps = [np.abs(np.diff(noise, axis=axis)).mean() for axis in range(3)]
    assert 1.6 < steps[0] / steps[1] < 2.4


@pytest.mark.parametrize(
    ("shape", "voxel_size"), [((8, 8), (1, 1, 1)), ((8, 8, 0), (1, 1, 1)), ((8, 8, 8), (1, 0, 1))]
)
def test_sizes_that_are_not_three_positive_numbers_are_refused(
    shape: tuple[int, ...], voxel_size: tuple[float, ...]
) -> None:
    with pytest.raises(InputError, match="three positive sizes"):
        synthetic_volume(shape, 0, voxel_size)


def test_data_on_disk_are_the_volume_and_its_parts_do_not_touch(tmp_path: Path) -> None:
    shape = (24, 64, 32)
    datalist = parse_datalist(write_demo_data(tmp_path, shape, 5, VOXEL_SIZE))
    raw, labels = synthetic_volume(shape, 5, VOXEL_SIZE)
    training, validation = open_entry(datalist.training[0]), open_entry(datalist.validation[0])
    assert training.roi.end[1] + 160 / VOXEL_SIZE[1] <= validation.roi.offset[1]
    test = open_entry(datalist.test[0])
    assert test.roi == validation.roi
    assert test.voxel_size_nm == VOXEL_SIZE
    assert test.raw.metadata.shape == shape
    np.testing.assert_array_equal(test.read_raw(test.roi), raw[test.roi.to_slices()])
    found, annotated = test.read_labels(test.roi)
    np.testing.assert_array_equal(found, labels[test.roi.to_slices()])
    assert annotated.all()


def test_writing_again_replaces_the_data(tmp_path: Path) -> None:
    write_demo_data(tmp_path, (16, 64, 16), 0, (16.0, 16.0, 16.0))
    datalist = write_demo_data(tmp_path, (20, 64, 16), 1, (16.0, 16.0, 16.0))
    assert open_entry(parse_datalist(datalist).test[0]).raw.metadata.shape == (20, 64, 16)


def test_a_volume_too_small_to_split_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too small to hold training and validation"):
        write_demo_data(tmp_path / "data", (16, 16, 16), 0, (16.0, 16.0, 16.0))
    assert not (tmp_path / "data").exists()


def test_training_is_larger_than_what_is_held_out() -> None:
    lists = demo_datalist((64, 128, 64), (16.0, 16.0, 16.0))
    training, held_out = (lists[name][0]["roi"] for name in ("training", "validation"))  # type: ignore[index]
    assert training["shape"] == [64, 80, 64]
    assert held_out == {"offset": [0, 90, 0], "shape": [64, 38, 64]}
