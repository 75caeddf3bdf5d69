from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from funlib.geometry import Roi
from numpy.typing import NDArray

from custom.errors import InputError
from custom.volumes import VolumeMetadata, open_volume
from tests.written_volumes import (
    OFFSET,
    SHAPE,
    SIZE,
    VALUES,
    affine_of,
    write_nifti,
    write_nrrd,
)

METADATA = VolumeMetadata(SHAPE, "uint16", SIZE, OFFSET)
CYCLED = VALUES.transpose(1, 2, 0)  # stored as z, x, y
ROTATED = [[4, 3, 0], [-3, 4, 0], [0, 0, 30]]


def directions(steps: Any, units: Sequence[str] = ("nm",) * 3, **header: Any) -> dict[str, Any]:
    return {
        "space dimension": 3,
        "space directions": np.array(steps, dtype=float),
        "space units": list(units),
        "space origin": OFFSET[::-1],
        **header,
    }


def cycled_steps() -> NDArray[np.float64]:
    """Directions in x, y, z of axes that are z, x and y."""
    steps = np.zeros((3, 3))
    steps[0, 2], steps[1, 0], steps[2, 1] = SIZE[0], SIZE[2], SIZE[1]
    return steps


@pytest.mark.parametrize(
    "header",
    [
        {"encoding": encoding, "endian": endian}
        for encoding in ("raw", "gzip", "bzip2", "ascii")
        for endian in ("little", "big")
    ],
    ids=lambda header: " ".join(header.values()),
)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "float32"])
def test_nrrd_of_any_encoding_and_type_is_read(
    tmp_path: Path, header: dict[str, Any], dtype: str
) -> None:
    values = VALUES.astype(dtype)
    path = write_nrrd(tmp_path / "x.nrrd", values, **directions(np.diag(SIZE[::-1])), **header)
    volume = open_volume(path)
    assert volume.metadata == VolumeMetadata(SHAPE, dtype, SIZE, OFFSET)
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), values, strict=True)


def test_a_detached_nrrd_is_read(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "x.nhdr", **directions(np.diag(SIZE[::-1])))
    assert len(list(tmp_path.iterdir())) == 2
    volume = open_volume(path)
    assert volume.metadata == METADATA
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), VALUES, strict=True)


def test_an_uncompressed_nrrd_is_not_read_into_memory(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "x.nrrd", encoding="raw")
    volume = open_volume(path, SIZE)
    volume.read(volume.metadata.roi)
    assert volume._array._opened is not None
    assert isinstance(volume._array._opened[1], np.memmap)


def test_nrrd_axes_follow_their_directions(tmp_path: Path) -> None:
    volume = open_volume(write_nrrd(tmp_path / "x.nrrd", CYCLED, **directions(cycled_steps())))
    assert volume.metadata == METADATA
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), VALUES)


def test_an_nrrd_axis_of_one_channel_is_dropped(tmp_path: Path) -> None:
    steps = [[np.nan] * 3, *np.diag(SIZE[::-1]).tolist()]
    volume = open_volume(write_nrrd(tmp_path / "x.nrrd", VALUES[..., None], **directions(steps)))
    assert volume.metadata == METADATA
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), VALUES)


@pytest.mark.parametrize(
    ("unit", "factor"), [("nm", 1), ("um", 1e3), ("µm", 1e3), ("microns", 1e3), ("mm", 1e6)]
)
def test_nrrd_spacings_and_their_units_are_read(tmp_path: Path, unit: str, factor: float) -> None:
    """pynrrd writes and reads ASCII only; other programs write "µm" in UTF-8."""
    spacings = [s / factor for s in SIZE[::-1]]
    path = write_nrrd(tmp_path / "x.nrrd", spacings=spacings, units=["UNIT"] * 3)
    path.write_bytes(path.read_bytes().replace(b"UNIT", unit.encode()))
    volume = open_volume(path)
    np.testing.assert_allclose(volume.metadata.voxel_size_nm, SIZE, rtol=1e-12)
    assert volume.metadata.offset_nm == (0, 0, 0)
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), VALUES)


@pytest.mark.parametrize("name", ["unsigned short", "unsigned short int", "ushort", "uint16_t"])
def test_every_name_of_a_type_is_known(tmp_path: Path, name: str) -> None:
    path = write_nrrd(tmp_path / "x.nrrd", encoding="raw")
    path.write_bytes(path.read_bytes().replace(b"uint16", name.encode(), 1))
    volume = open_volume(path, SIZE)
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), VALUES, strict=True)


@pytest.mark.parametrize("unit", ["micron", "mm", "meter"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_gives_the_lengths_that_were_written(tmp_path: Path, unit: str, suffix: str) -> None:
    """Its float32 is read as the decimal number that was meant."""
    affine = affine_of(SIZE, OFFSET)
    affine[:3] /= {"micron": 1, "mm": 1e3, "meter": 1e6}[unit]
    volume = open_volume(write_nifti(tmp_path / f"x{suffix}", affine, unit))
    np.testing.assert_allclose(volume.metadata.voxel_size_nm, SIZE, rtol=1e-12)
    np.testing.assert_allclose(volume.metadata.offset_nm, OFFSET, rtol=1e-12)
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), VALUES, strict=True)


def test_nifti_axes_follow_their_directions(tmp_path: Path) -> None:
    affine = affine_of(SIZE, OFFSET)
    affine[:3, :3] = cycled_steps().T / 1000
    volume = open_volume(write_nifti(tmp_path / "x.nii", affine, "micron", CYCLED))
    np.testing.assert_allclose(volume.metadata.voxel_size_nm, SIZE)
    np.testing.assert_allclose(volume.metadata.offset_nm, OFFSET)
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), VALUES)


def test_a_nifti_placed_by_its_quaternion_is_read(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VALUES.T, None)
    image.header.set_xyzt_units("micron")
    image.set_qform(affine_of(SIZE, OFFSET), code=1)
    nibabel.save(image, tmp_path / "x.nii")
    metadata = open_volume(tmp_path / "x.nii").metadata
    np.testing.assert_allclose(metadata.voxel_size_nm, SIZE, rtol=1e-6)
    np.testing.assert_allclose(metadata.offset_nm, OFFSET, rtol=1e-6)


def test_a_nifti_that_is_placed_nowhere_starts_at_0(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VALUES.T, None)
    image.header.set_zooms([s / 1000 for s in SIZE[::-1]])
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "x.nii")
    metadata = open_volume(tmp_path / "x.nii").metadata
    np.testing.assert_allclose(metadata.voxel_size_nm, SIZE, rtol=1e-12)
    assert metadata.offset_nm == (0, 0, 0)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_scaled_nifti_is_float32(tmp_path: Path, suffix: str) -> None:
    image = nibabel.Nifti1Image(VALUES.T.astype(np.int16), affine_of(SIZE, OFFSET))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / f"x{suffix}")
    volume = open_volume(tmp_path / f"x{suffix}", SIZE)
    expected = VALUES.astype(np.int16) * np.float64(0.5) + 10
    found = volume.read(volume.metadata.roi)
    assert (found.dtype, volume.metadata.dtype) == (np.float32, "float32")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("write", ["nrrd", "nifti"])
def test_backward_axes_stay_as_stored_and_keep_volumes_beside_each_other(
    tmp_path: Path, write: str
) -> None:
    """ITK's programs write x and y backwards into NIfTI: a crop must stay where it was cut."""
    start, signs = (1, 2, 3), np.array([-1, -1, 1])
    crop = VALUES[1:, 2:, 3:]
    metadata = []
    for name, values, begin in (("whole", VALUES, (0, 0, 0)), ("crop", crop, start)):
        steps = np.diag(SIZE[::-1] * signs)
        origin = steps @ np.array(begin[::-1]) + OFFSET[::-1]
        if write == "nrrd":
            header = directions(steps) | {"space origin": origin}
            path = write_nrrd(tmp_path / f"{name}.nrrd", values, **header)
        else:
            affine = np.eye(4)
            affine[:3, :3], affine[:3, 3] = steps / 1000, origin / 1000
            path = write_nifti(tmp_path / f"{name}.nii", affine, "micron", values)
        volume = open_volume(path)
        np.testing.assert_array_equal(volume.read(volume.metadata.roi), values)
        metadata.append(volume.metadata)
    moved = np.subtract(metadata[1].offset_nm, metadata[0].offset_nm)
    np.testing.assert_allclose(moved, np.multiply(start, SIZE), atol=1e-3)


def write_cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-200])
    return path


def write_junk(path: Path) -> Path:
    path.write_bytes(b"nothing like that")
    return path


def rotated_affine() -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = ROTATED
    return affine


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: write_nrrd(p / "x.nrrd"), "raw '.*x.nrrd' has no voxel size"),
        (lambda p: write_nrrd(p / "x.nrrd", spacings=[4, 4, 4]), "without unit"),
        (
            lambda p: write_nrrd(p / "x.nrrd", **directions(ROTATED)),
            r"rotated: .*4.0, 3.0",
        ),
        (
            lambda p: write_nrrd(p / "x.nrrd", **directions(np.diag([4, 4, 0]))),
            "it has no length",
        ),
        (
            lambda p: write_nrrd(p / "x.nrrd", **directions([[1, 0, 0], [2, 0, 0], [0, 0, 1]])),
            "gives two axes one direction",
        ),
        (
            lambda p: write_nrrd(p / "x.nrrd", **directions(np.eye(3), ["parsec"] * 3)),
            "unknown unit 'parsec'",
        ),
        (lambda p: write_nrrd(p / "x.nrrd", VALUES[0]), r"wrong number of axes.*\(11, 7\)"),
        (lambda p: write_junk(p / "x.nrrd"), "x.nrrd' is not a readable NRRD file"),
        (lambda p: write_nifti(p / "x.nii", np.eye(4)), "without unit"),
        (lambda p: write_nifti(p / "x.nii", rotated_affine(), "mm"), "is rotated: "),
        (
            lambda p: write_nifti(p / "x.nii", np.eye(4), "mm", VALUES[0]),
            r"wrong number of axes.*\(11, 7\)",
        ),
        (
            lambda p: write_nifti(p / "x.nii", np.eye(4), "mm", VALUES[None].repeat(2, 0)),
            "2 entries along axis c",
        ),
        (
            lambda p: write_nifti(p / "x.nii", np.eye(4), "mm", VALUES.astype(np.complex64)),
            "data type complex64; convert",
        ),
        (lambda p: write_junk(p / "x.nii"), "x.nii' is not a readable NIfTI file"),
        (lambda p: write_junk(p / "x.nii.gz"), "x.nii.gz' is not a readable NIfTI file"),
    ],
    ids=lambda value: "" if callable(value) else value,
)
def test_mistakes_are_named(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_volume(make(tmp_path))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: write_nrrd(p / "x.nrrd", encoding="raw"),
        lambda p: write_nrrd(p / "x.nrrd", encoding="gzip"),
        lambda p: write_nifti(p / "x.nii", np.eye(4)),
        lambda p: write_nifti(p / "x.nii.gz", np.eye(4)),
    ],
    ids=["raw nrrd", "gzip nrrd", "nii", "nii.gz"],
)
def test_a_truncated_file_is_named(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = write_cut(make(tmp_path))
    with pytest.raises(InputError, match=r"raw '.*x.*' (cannot be decoded|is not a readable)"):
        open_volume(path, SIZE).read(Roi((0, 0, 0), SHAPE))
