import numpy as np
import pytest

from custom.errors import InputError
from custom.targets.classes import ClassSettings, class_settings, classified

IDS = np.array([0, 2, 1, 255], np.uint64)  # of the labels 0 to 3
LABELS = np.array([[[0, 1, 2], [3, 3, 1]]], np.uint32)
MASK = np.array([[[True, True, False], [True, False, True]]])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (ClassSettings(256), [0, 2, 1, 255]),
        (ClassSettings(3, 255), [0, 2, 1, -1]),
        (ClassSettings(256, 0), [-1, 2, 1, 255]),
        (ClassSettings(2, None, "foreground"), [0, 1, 1, 1]),
        (ClassSettings(2, 255, "foreground"), [0, 1, 1, -1]),
    ],
    ids=["ids", "ignored", "background ignored", "foreground", "an object ignored"],
)
def test_every_id_has_its_class(settings, expected):
    assert settings.table(IDS, "labels").tolist() == expected


def test_an_id_that_is_no_class_is_named():
    with pytest.raises(InputError, match=r"labels of volume 'a' hold the id 255, .* 0 to 2: raise"):
        ClassSettings(3).table(IDS, "labels of volume 'a'")
    huge = 2**63 + 1
    with pytest.raises(InputError, match=f"id {huge}"):
        ClassSettings(3).table(np.array([0, huge], np.uint64), "labels")


def test_ignored_voxels_do_not_count():
    classes, mask = classified(LABELS, MASK, ClassSettings(3, 255).table(IDS, "labels"))
    np.testing.assert_array_equal(classes, [[[0, 2, 1], [0, 0, 2]]])
    np.testing.assert_array_equal(mask, [[[True, True, False], [False, False, True]]])
    assert classes.dtype == np.int64 and mask.dtype == np.bool_


@pytest.mark.parametrize("ignored", [True, "255", 1.0])
def test_an_ignored_label_is_a_whole_number(ignored):
    with pytest.raises(InputError, match="ignore_label must be null or a whole number"):
        class_settings(3, ignored)
