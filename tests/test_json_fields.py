import pytest

from custom.errors import InputError
from custom.json_fields import picked


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([2], ["right"]),
        (["right", "left"], ["left", "right"]),
        ([1, "left"], ["left", "0"]),
        (["0"], ["0"]),  # an id, not a position
        ([0], ["left"]),
    ],
)
def test_what_is_picked_keeps_its_order(wanted: object, expected: list[str]) -> None:
    assert picked(["left", "0", "right"], wanted, "volume_indices") == expected


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (3, "volume_indices must be a list, got 3"),
        ([], "volume_indices must name at least one"),
        ([0, "left"], "none twice"),
        ([3], "names 3, which is neither one of left, 0, right nor a position from 0 to 2"),
        ([-1], "names -1, which"),
        ([True], "names True, which"),
        (["lef"], "names 'lef', which"),
        ([1.0], r"names 1\.0, which"),
    ],
)
def test_rejects(wanted: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        picked(["left", "0", "right"], wanted, "volume_indices")
