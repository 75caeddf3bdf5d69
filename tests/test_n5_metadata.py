import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from custom.errors import InputError
from custom.volumes import VolumeMetadata, open_volume
from tests.written_volumes import OFFSET, SHAPE, SIZE, VALUES, write_n5

XYZ = SIZE[::-1]
COARSE_FACTORS = (4, 3, 2)  # x, y, z
COARSE = VolumeMetadata(
    SHAPE, "uint16", (61.0, 12.0, 17.0), (30.5 / 2, 4.0, 1.5 * 4.25)
)  # centres lie (factor - 1) / 2 fine voxels after those of the finest level


def add_attributes(group: Path, **attributes: Any) -> None:
    (group / "attributes.json").write_text(json.dumps(attributes))


def write_pyramid(group: Path, level: dict[str, Any], **attributes: Any) -> Path:
    """Two levels; only the attributes matter here, so both hold the same values."""
    write_n5(group / "s0")
    write_n5(group / "s1", **level)
    add_attributes(group, **attributes)
    return group


def um(values: tuple[float, ...]) -> list[float]:
    return [v / 1000 for v in values]


FINE_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "resolution": {"resolution": XYZ, "offset": OFFSET[::-1]},
    "units": {"resolution": um(XYZ), "offset": um(OFFSET[::-1]), "units": ["um"] * 3},
    "pixelResolution": {
        "pixelResolution": {"dimensions": um(XYZ), "unit": "um"},
        "offset": um(OFFSET[::-1]),
    },
    "transform": {
        "transform": {
            "axes": ["z", "y", "x"],
            "scale": SIZE,
            "translate": OFFSET,
            "units": ["nm"] * 3,
        },
        "pixelResolution": {"dimensions": [1, 2, 3], "unit": "nm"},
    },
    "transform xyz": {
        "transform": {
            "axes": ["x", "y", "z"],
            "scale": XYZ,
            "translate": OFFSET[::-1],
            "units": ["nm"] * 3,
        }
    },
}


@pytest.mark.parametrize("attributes", FINE_ATTRIBUTES.values(), ids=FINE_ATTRIBUTES.keys())
def test_every_attribute_that_places_a_dataset_is_read(
    tmp_path: Path, attributes: dict[str, Any]
) -> None:
    metadata = open_volume(write_n5(tmp_path / "x.n5/raw", **attributes)).metadata
    assert (metadata.shape, metadata.dtype) == (SHAPE, "uint16")
    np.testing.assert_allclose(metadata.voxel_size_nm, SIZE, rtol=1e-12)
    np.testing.assert_allclose(metadata.offset_nm, OFFSET, rtol=1e-12)


@pytest.mark.parametrize(
    ("level", "group"),
    [
        ({"downsamplingFactors": COARSE_FACTORS}, {"resolution": XYZ}),
        ({}, {"resolution": XYZ, "scales": [[1, 1, 1], COARSE_FACTORS]}),
        (
            {},
            {
                "pixelResolution": {"dimensions": XYZ, "unit": "nm"},
                "downsamplingFactors": [[1, 1, 1], COARSE_FACTORS],
            },
        ),
        (
            {},
            {
                "multiscales": [
                    {
                        "datasets": [
                            {"path": "s0", "transform": {}},
                            {
                                "path": "s1",
                                "transform": {
                                    "axes": ["y", "z", "x"],
                                    "scale": [12, 61, 17],
                                    "translate": [4, 15.25, 6.375],
                                    "units": ["nm"] * 3,
                                },
                            },
                        ]
                    }
                ]
            },
        ),
    ],
    ids=["factors of the level", "scales of the group", "factors of the group", "multiscales"],
)
def test_a_coarse_level_lies_on_the_voxels_that_it_covers(
    tmp_path: Path, level: dict[str, Any], group: dict[str, Any]
) -> None:
    path = write_pyramid(tmp_path / "x.n5/em", level, **group)
    assert open_volume(path / "s1").metadata == COARSE


def test_root_attributes_count_for_all_channels(tmp_path: Path) -> None:
    """n5-viewer's layout: ``c0/s1`` below a root with scales and resolution."""
    write_pyramid(tmp_path / "x.n5/c0", {})
    add_attributes(tmp_path / "x.n5", resolution=XYZ, scales=[[1, 1, 1], COARSE_FACTORS])
    assert open_volume(tmp_path / "x.n5/c0/s1").metadata == COARSE


@pytest.mark.parametrize("attributes", [{"resolution": XYZ}, {}])
def test_a_group_is_its_finest_level(tmp_path: Path, attributes: dict[str, Any]) -> None:
    path = write_pyramid(tmp_path / "x.n5/em", {}, **attributes)
    if not attributes:
        (path / "attributes.json").unlink()
    volume = open_volume(path, SIZE)
    assert volume.path == str(path / "s0")
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), VALUES)


def test_axes_in_another_order_are_brought_to_zyx(tmp_path: Path) -> None:
    cycled = VALUES.transpose(1, 2, 0)  # stored as z, x, y
    path = write_n5(
        tmp_path / "x.n5",
        cycled,
        axes=["z", "x", "y"],
        resolution=[SIZE[0], SIZE[2], SIZE[1]],
        offset=[OFFSET[0], OFFSET[2], OFFSET[1]],
    )
    volume = open_volume(path)
    assert volume.metadata == VolumeMetadata(SHAPE, "uint16", SIZE, OFFSET)
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), VALUES)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "float32"])
def test_values_of_any_type_are_read(tmp_path: Path, dtype: str) -> None:
    values = VALUES.astype(dtype)
    volume = open_volume(write_n5(tmp_path / "x.n5", values), SIZE)
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), values, strict=True)


def write_empty_group(path: Path) -> Path:
    path.mkdir()
    add_attributes(path, n5="2.5.0")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: write_n5(p), "raw '.*x.n5' has no voxel size"),
        (lambda p: write_n5(p, VALUES[0], resolution=[1, 1]), r"wrong number of axes.*\(11, 7\)"),
        (lambda p: write_n5(p, resolution=[4, 4]), "metadata that cannot be understood"),
        (lambda p: write_n5(p, transform={"axes": ["x"]}), "metadata that cannot be understood"),
        (lambda p: write_n5(p, resolution=XYZ, isLabelMultiset=True), "label multiset"),
        (lambda p: write_n5(p, pixelResolution=[4, 4, 4]), "without unit"),
        (lambda p: write_n5(p, resolution=XYZ, dataType="object9"), "unsupported data type"),
        (write_empty_group, "is an N5 group, not a dataset"),
    ],
    ids=lambda value: "" if callable(value) else value,
)
def test_mistakes_are_named(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_volume(make(tmp_path / "x.n5"))
