import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore

from custom.errors import InputError
from custom.volumes import VolumeMetadata, open_volume
from tests.written_volumes import SHAPE, SIZE, VALUES, write_precomputed

CORNER = (-3, 5, 2)
COARSE_SIZE = (61.0, 12.0, 4.25)
COARSE_CORNER = (7, 0, 2)
COARSE = VALUES[1:4, 2:6, 3:8] // 2


def write_two_scales(path: Path) -> Path:
    return write_precomputed(
        path, ("fine", VALUES, SIZE, CORNER), ("mip/1", COARSE, COARSE_SIZE, COARSE_CORNER)
    )


@pytest.mark.parametrize("name", ["x", "x/fine"])
@pytest.mark.parametrize("prefix", ["", "precomputed://", "precomputed://file://"])
def test_the_first_scale_is_read_by_the_folder_or_by_its_key(
    tmp_path: Path, name: str, prefix: str
) -> None:
    write_two_scales(tmp_path / "x")
    volume = open_volume(f"{prefix}{tmp_path / name}")
    offset = tuple(c * s for c, s in zip(CORNER, SIZE, strict=True))
    assert volume.metadata == VolumeMetadata(SHAPE, "uint16", SIZE, offset)
    assert volume.path == str(tmp_path / "x/fine")
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), VALUES, strict=True)


def test_another_scale_is_read_by_its_key(tmp_path: Path) -> None:
    volume = open_volume(write_two_scales(tmp_path / "x") / "mip/1")
    assert volume.metadata.voxel_size_nm == COARSE_SIZE
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), COARSE, strict=True)


def test_scales_share_their_corners(tmp_path: Path) -> None:
    """Corners of voxels, counted as Neuroglancer does, differ by a whole number of fine voxels."""
    path = write_two_scales(tmp_path / "x")
    fine, coarse = (open_volume(path / key).metadata for key in ("fine", "mip/1"))
    corners = [np.subtract(m.offset_nm, np.divide(m.voxel_size_nm, 2)) for m in (fine, coarse)]
    expected = np.multiply(COARSE_CORNER, COARSE_SIZE) - np.multiply(CORNER, SIZE)
    np.testing.assert_allclose(corners[1] - corners[0], expected)


def test_compressed_labels_written_by_tensorstore_are_read(tmp_path: Path) -> None:
    labels = VALUES.astype(np.uint64) * 2**40
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{tmp_path}/x/"},
        "multiscale_metadata": {"type": "segmentation", "data_type": "uint64", "num_channels": 1},
        "scale_metadata": {
            "size": SHAPE[::-1],
            "voxel_offset": CORNER[::-1],
            "resolution": SIZE[::-1],
            "chunk_size": [4, 4, 4],
            "encoding": "compressed_segmentation",
            "compressed_segmentation_block_size": [2, 2, 2],
        },
    }
    tensorstore.open(spec, create=True).result().write(labels.T[..., None]).result()
    volume = open_volume(tmp_path / "x")
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), labels, strict=True)


def write_info(path: Path, **info: Any) -> Path:
    path.mkdir()
    (path / "info").write_text(json.dumps(info))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: write_two_scales(p) / "coarse", "names no scale of .*; it holds fine, mip/1"),
        (lambda p: write_info(p, type="segmentation"), "info without scales"),
        (lambda p: write_info(p, scales=[]), "info that cannot be understood"),
        (lambda p: write_info(p, scales=[{"key": "a"}]), "info that cannot be understood"),
        (
            lambda p: write_precomputed(p, ("a", VALUES, SIZE, CORNER), num_channels=2),
            "2 entries along axis c",
        ),
        (lambda p: write_precomputed(p, ("a", VALUES, (1, 0, 1), CORNER)), "three positive"),
    ],
    ids=lambda value: "" if callable(value) else value,
)
def test_mistakes_are_named(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_volume(make(tmp_path / "x"), field="labels")
