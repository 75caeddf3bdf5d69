import io

import numpy as np
import pytest
from PIL import Image

from custom.pictures import (
    channels_as_colours,
    contact_sheet,
    grey_image,
    label_colours,
    matched_by_section,
    matched_to_truth,
    paint,
    plane_slice,
    png_bytes,
    principal_colours,
)


@pytest.mark.parametrize(
    ("plane", "shape"), [("xy", (7 * 2, 9)), ("xz", (5 * 5, 9)), ("yz", (5 * 2, 7))]
)
def test_a_slice_has_square_pixels(plane: str, shape: tuple[int, int]) -> None:
    volume = np.arange(5 * 7 * 9).reshape(5, 7, 9)
    image = plane_slice(volume, plane, (40.0, 16.0, 8.0))
    assert image.shape == shape


def test_a_slice_is_the_middle_one_with_rows_before_columns() -> None:
    volume = np.arange(5 * 7 * 9).reshape(5, 7, 9)
    np.testing.assert_array_equal(plane_slice(volume, "xy", (1, 1, 1)), volume[2])
    np.testing.assert_array_equal(plane_slice(volume, "xz", (1, 1, 1)), volume[:, 3])
    np.testing.assert_array_equal(plane_slice(volume, "yz", (1, 1, 1)), volume[:, :, 4])


def test_a_colour_depends_on_its_id_alone_and_zero_is_black() -> None:
    colours = label_colours(np.arange(50))
    np.testing.assert_array_equal(label_colours(np.array([0, 17, 3])), colours[[0, 17, 3]])
    assert not colours[0].any()
    assert len({tuple(colour) for colour in colours}) == 50
    assert (colours[1:].max(axis=1) > 100).all()


def test_paint_gives_every_voxel_the_colour_of_its_label() -> None:
    labels = np.array([[[0, 5], [5, 9]]])
    np.testing.assert_array_equal(paint(labels), label_colours(labels.ravel()).reshape(1, 2, 2, 3))


def test_agreement_gets_the_ids_of_the_truth() -> None:
    truth = np.array([1, 1, 2, 2, 2, 3, 0])
    renamed = np.array([30, 30, 10, 10, 10, 20, 5], dtype=np.uint64)
    np.testing.assert_array_equal(matched_to_truth(truth, renamed)[:6], truth[:6])


def test_a_split_is_a_new_id_and_a_merge_one_id_over_both() -> None:
    truth = np.array([1, 1, 1, 1, 1, 2, 2, 2, 3, 3])
    found = np.array([4, 4, 4, 6, 6, 8, 8, 8, 8, 8])
    matched = matched_to_truth(truth, found)
    assert matched[:3].tolist() == [1, 1, 1]
    assert set(matched[3:5]) == {4}
    assert set(matched[5:]) == {2}


def test_ids_of_64_bits_are_matched_and_have_colours_of_their_own() -> None:
    first = 2**63 + 40
    truth = np.array([0, *[first + n for n in range(4)], 1], dtype=np.uint64)
    found = truth[::-1].copy()
    matched = matched_to_truth(truth, found)
    np.testing.assert_array_equal(matched[1:5], truth[1:5])
    assert matched[0] == 2 and matched[5] == 0
    assert len(np.unique(label_colours(truth), axis=0)) == 6


def test_neither_zero_of_truth_nor_of_segmentation_is_matched() -> None:
    truth = np.array([0, 0, 0, 7, 7])
    found = np.array([5, 5, 5, 0, 0])
    matched = matched_to_truth(truth, found)
    assert matched[3:].tolist() == [0, 0]
    assert matched[0] not in (0, 7)


def test_grey_image_stretches_and_cuts() -> None:
    image = grey_image(np.array([[5, 10, 20, 30]]), 10, 20)
    np.testing.assert_array_equal(image[0, :, 0], [0, 0, 255, 255])
    assert image.shape == (1, 4, 3)


def test_a_contact_sheet_holds_every_image() -> None:
    images = [np.full((4 + i, 40, 3), 40 * (i + 1), dtype=np.uint8) for i in range(2)]
    sheet = contact_sheet({"a": images, "b": [image + 5 for image in images]}, ["xy", "xz"])
    assert sheet.shape == ((4 + 5) * 8 + 2 * 16, 2 * (40 * 8 + 4), 3)
    for value, rows in ((40, 4), (80, 5), (45, 4), (85, 5)):
        assert (sheet == value).all(axis=-1).sum() >= rows * 40 * 64


def test_png_bytes_are_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(image)))), image)


def test_equal_features_have_one_colour_in_all_pictures() -> None:
    features = np.random.default_rng(0).standard_normal((6, 5, 7)).astype(np.float32)
    whole, part = principal_colours([features, features[2:4, 1:]])
    assert whole.shape == (6, 5, 3) and whole.dtype == np.uint8
    np.testing.assert_array_equal(part, whole[2:4, 1:])
    assert (whole.reshape(-1, 3).max(0) == 255).all() and (whole.reshape(-1, 3).min(0) == 0).all()


def test_the_direction_in_which_features_differ_most_is_red() -> None:
    rng = np.random.default_rng(0)
    amount = rng.uniform(-1, 1, 500)
    features = amount[:, None] * np.array([0.0, 9.0, 3.0, 0.0]) + rng.normal(0, 0.1, (500, 4))
    (colours,) = principal_colours([features])
    assert np.corrcoef(colours[:, 0], amount)[0, 1] > 0.97
    assert abs(np.corrcoef(colours[:, 1], amount)[0, 1]) < 0.2


def test_fewer_than_three_channels_leave_a_colour_out() -> None:
    (colours,) = principal_colours([np.arange(12.0).reshape(6, 2)])
    assert not colours[:, 2].any()


def test_unknown_ids_are_grey() -> None:
    painted = paint(np.array([[-1, 0], [3, -7]]))
    assert painted[0, 0].tolist() == painted[1, 1].tolist() == [painted[0, 0, 0]] * 3
    assert 0 < painted[0, 0, 0] < 255
    np.testing.assert_array_equal(painted[1, 0], label_colours(np.array([3]))[0])


def test_sections_are_matched_one_by_one() -> None:
    truth = np.array([[[1, 1, 2]], [[2, 2, 1]]])
    found = np.array([[[7, 7, 8]], [[5, 5, 6]]])
    np.testing.assert_array_equal(matched_by_section(truth, found), truth)
    assert (matched_to_truth(truth, found) != truth).any()


def test_channels_that_are_missing_are_dark_and_one_alone_is_grey() -> None:
    values = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)
    np.testing.assert_array_equal(channels_as_colours(values), np.moveaxis(values[:3], 0, -1))
    two = channels_as_colours(values[:2])
    np.testing.assert_array_equal(two[..., :2], np.moveaxis(values[:2], 0, -1))
    assert not two[..., 2].any()
    np.testing.assert_array_equal(channels_as_colours(values[1:2]), np.stack([values[1]] * 3, -1))
