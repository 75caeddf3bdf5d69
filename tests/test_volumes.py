import json
import math
import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from funlib.geometry import Roi
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from custom.errors import InputError
from custom.volumes import Volume, VolumeMetadata, create_ome_zarr_array, open_volume
from tests.written_volumes import (
    OFFSET,
    PLANTED,
    SHAPE,
    SIZE,
    VALUES,
    affine_of,
    corner_of,
    write_n5,
    write_nifti,
    write_nrrd,
    write_precomputed,
)


def axis(name: str, unit: str | None = "nanometer") -> dict[str, str]:
    kind = {"c": "channel", "t": "time"}.get(name, "space")
    return {"name": name, "type": kind} | ({"unit": unit} if unit and kind == "space" else {})


def transforms(
    scale: Sequence[float] | None, translation: Sequence[float] | None
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if scale is not None:
        found.append({"type": "scale", "scale": list(scale)})
    if translation is not None:
        found.append({"type": "translation", "translation": list(translation)})
    return found


def write_ome(
    path: Path,
    values: NDArray[Any] = VALUES,
    axes: str = "zyx",
    unit: str | None = "nanometer",
    scale: Sequence[float] | None = SIZE,
    translation: Sequence[float] | None = OFFSET,
    whole: Sequence[dict[str, Any]] = (),
    version: str = "0.4",
    coarse_first: bool = False,
) -> Path:
    """An OME-Zarr written by zarr-python, with a coarser second level; ``values`` in ``axes``."""
    root = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    chunks = tuple(min(s, 4) for s in values.shape)
    root.create_array("s0", data=values, chunks=chunks)
    root.create_array("s1", data=values[..., ::2], chunks=chunks)
    coarse = None if scale is None else [*scale[:-1], scale[-1] * 2]
    datasets = [
        {"path": "s0", "coordinateTransformations": transforms(scale, translation)},
        {"path": "s1", "coordinateTransformations": transforms(coarse, translation)},
    ]
    multiscale = {
        "axes": [axis(name, unit) for name in axes],
        "datasets": datasets[::-1] if coarse_first else datasets,
        "coordinateTransformations": list(whole),
    }
    ome = {"multiscales": [multiscale | {"version": version}]}
    root.attrs.update(ome if version == "0.4" else {"ome": {"version": version, **ome}})
    return path


def write_transposed(path: Path) -> Path:
    """x, z, y: a cycle, so not its own inverse; micrometres."""
    return write_ome(
        path,
        VALUES.transpose(2, 0, 1),
        "xzy",
        "micrometer",
        [v / 1000 for v in (SIZE[2], SIZE[0], SIZE[1])],
        [v / 1000 for v in (OFFSET[2], OFFSET[0], OFFSET[1])],
    )


def write_whole_transforms(path: Path) -> Path:
    """Half the scale in the level, doubled by the whole; and a translation in each."""
    half = [v / 2 for v in SIZE]
    first = [10.0, 11.0, 12.0]
    rest = [o - 2 * f for o, f in zip(OFFSET, first, strict=True)]
    return write_ome(path, scale=half, translation=first, whole=transforms([2, 2, 2], rest))


def write_plain(path: Path, zarr_format: int, **attributes: Any) -> Path:
    """Big-endian in v2."""
    dtype = ">u2" if zarr_format == 2 else "u2"
    array = zarr.open_array(
        path, mode="w", shape=SHAPE, dtype=dtype, chunks=(2, 3, 4), zarr_format=zarr_format
    )
    array[:] = VALUES
    array.attrs.update(attributes)
    return path


def write_plain_xyz(path: Path) -> Path:
    array = zarr.create_array(path, data=VALUES.T, zarr_format=3, dimension_names=("x", "y", "z"))
    array.attrs.update({"voxel_size": SIZE[::-1], "offset": OFFSET[::-1], "units": ["nm"] * 3})
    return path


def write_hdf5(path: Path) -> Path:
    with h5py.File(path.with_suffix(".hdf"), "w") as file:
        raw = file.create_dataset("volumes/raw", data=VALUES.astype(">u2"), chunks=(2, 2, 2))
        raw.attrs["resolution"] = SIZE
        raw.attrs["offset"] = OFFSET
    return path.with_suffix(".hdf") / "volumes" / "raw"


def write_imagej(path: Path) -> Path:
    metadata = {"axes": "ZYX", "spacing": SIZE[0] / 1000, "unit": "um"}
    pixels_per_um = (1000 / SIZE[2], 1000 / SIZE[1])
    tifffile.imwrite(path, VALUES, imagej=True, resolution=pixels_per_um, metadata=metadata)
    return path


def write_ome_tiff(path: Path) -> Path:
    metadata = {"axes": "ZYX"}
    for name, size in zip("ZYX", SIZE, strict=True):
        metadata |= {f"PhysicalSize{name}": size * 10, f"PhysicalSize{name}Unit": "Å"}
    tifffile.imwrite(
        path, VALUES, ome=True, metadata=metadata, photometric="minisblack", compression="zlib"
    )
    return path


def write_tiff(path: Path) -> Path:
    tifffile.imwrite(path, VALUES.astype(">u2"), photometric="minisblack", byteorder=">")
    return path


def write_tiled(path: Path) -> Path:
    tifffile.imwrite(path, VALUES, photometric="minisblack", tile=(16, 16), compression="zlib")
    return path


def write_sections(path: Path, suffix: str, first: int = 8) -> Path:
    """From 8 on without padding, so that the order of names is not that of numbers."""
    path.mkdir()
    for z, section in enumerate(VALUES, start=first):
        if suffix == ".png":
            Image.fromarray(section).save(path / f"s{z}.png")
        else:
            tifffile.imwrite(path / f"s{z}{suffix}", section)
    (path / "notes.txt").write_text("not a section")
    return path


def write_npy(path: Path) -> Path:
    np.save(path, np.asfortranarray(VALUES))
    return path


# name -> writer, and whether the file has a voxel size, and a position
FORMS: dict[str, tuple[Callable[[Path], Path], bool, bool]] = {
    "ome04.zarr": (write_ome, True, True),
    "ome05.zarr": (lambda p: write_ome(p, version="0.5"), True, True),
    "ome_level.zarr": (lambda p: write_ome(p) / "s0", True, True),
    "ome05_level.zarr": (lambda p: write_ome(p, version="0.5") / "s0", True, True),
    "ome_coarse_first.zarr": (lambda p: write_ome(p, coarse_first=True), True, True),
    "ome_inner.zarr": (lambda p: write_ome(p / "em" / "raw"), True, True),
    "ome_transposed_um.zarr": (write_transposed, True, True),
    "ome_whole.zarr": (write_whole_transforms, True, True),
    "ome_no_translation.zarr": (lambda p: write_ome(p, translation=None), True, False),
    "ome_channel.zarr": (
        lambda p: write_ome(p, VALUES[None, None], "tczyx", "Å", *angstrom(1, 1)),
        True,
        True,
    ),
    "ome_last_channel.zarr": (
        lambda p: write_ome(p, VALUES.transpose(1, 0, 2)[..., None], "yzxc", "nm", *yzxc()),
        True,
        True,
    ),
    "plain2.zarr": (lambda p: write_plain(p, 2, voxel_size=SIZE, offset=OFFSET), True, True),
    "plain3.zarr": (
        lambda p: write_plain(
            p,
            3,
            resolution=[s / 1000 for s in SIZE],
            offset=[o / 1000 for o in OFFSET],
            units="µm",
        ),
        True,
        True,
    ),
    "plain_xyz": (write_plain_xyz, True, True),
    "bare.zarr": (lambda p: write_plain(p, 2), False, False),
    "hdf5": (write_hdf5, True, True),
    "imagej.tif": (write_imagej, True, False),
    "ome.tif": (write_ome_tiff, True, False),
    "plain.tiff": (write_tiff, False, False),
    "tiled.tif": (write_tiled, False, False),
    "png": (lambda p: write_sections(p, ".png"), False, False),
    "tifs": (lambda p: write_sections(p, ".tif"), False, False),
    "array.npy": (write_npy, False, False),
    "cosem.n5": (lambda p: write_n5(p / "em/raw/s0", transform=cosem_transform()), True, True),
    "bare.n5": (lambda p: write_n5(p / "raw"), False, False),
    "precomputed": (
        lambda p: write_precomputed(p, ("a", VALUES, SIZE, corner_of(SIZE, OFFSET))),
        True,
        True,
    ),
    "directions.nrrd": (
        lambda p: write_nrrd(
            p,
            **{"space dimension": 3, "space directions": np.diag(SIZE[::-1]), "encoding": "raw"},
            **{"space origin": OFFSET[::-1], "space units": ["nm"] * 3},
        ),
        True,
        True,
    ),
    "bare.nrrd": (write_nrrd, False, False),
    "affine.nii": (lambda p: write_nifti(p, affine_of(SIZE, OFFSET), "micron"), True, True),
    "affine.nii.gz": (lambda p: write_nifti(p, affine_of(SIZE, OFFSET), "micron"), True, True),
}


def cosem_transform() -> dict[str, Any]:
    return {
        "axes": ["z", "y", "x"],
        "scale": list(SIZE),
        "translate": list(OFFSET),
        "units": ["nm"] * 3,
    }


def angstrom(*rest: float) -> tuple[list[float], list[float]]:
    return [*rest, *(s * 10 for s in SIZE)], [*(0.0 for _ in rest), *(o * 10 for o in OFFSET)]


def yzxc() -> tuple[list[float], list[float]]:
    return [SIZE[1], SIZE[0], SIZE[2], 1], [OFFSET[1], OFFSET[0], OFFSET[2], 0]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("forms")
    return {name: write(folder / name) for name, (write, _, _) in FORMS.items()}


def opened(paths: dict[str, Path], form: str) -> Volume:
    return open_volume(paths[form], None if FORMS[form][1] else SIZE)


@st.composite
def rois(draw: st.DrawFn) -> Roi:
    starts = [draw(st.integers(0, n - 1)) for n in SHAPE]
    stops = [draw(st.integers(a + 1, n)) for a, n in zip(starts, SHAPE, strict=True)]
    return Roi(starts, [b - a for a, b in zip(starts, stops, strict=True)])


@pytest.mark.parametrize("form", FORMS)
@given(roi=rois())
def test_reading_a_box_equals_slicing_the_array(
    paths: dict[str, Path], form: str, roi: Roi
) -> None:
    found = opened(paths, form).read(roi)
    np.testing.assert_array_equal(found, VALUES[roi.to_slices()], strict=True)


@pytest.mark.parametrize("form", FORMS)
def test_a_planted_voxel_is_where_the_metadata_says(paths: dict[str, Path], form: str) -> None:
    metadata = opened(paths, form).metadata
    index = np.argwhere(opened(paths, form).read(metadata.roi) == 65535)[0]
    position = np.multiply(index, metadata.voxel_size_nm) + metadata.offset_nm
    offset = OFFSET if FORMS[form][2] else (0, 0, 0)
    # ImageJ stores a pixel's size as a ratio of integers
    np.testing.assert_allclose(position, np.multiply(PLANTED, SIZE) + offset, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_opening_reads_shape_and_type(paths: dict[str, Path], form: str) -> None:
    metadata = opened(paths, form).metadata
    assert (metadata.shape, metadata.dtype) == (SHAPE, "uint16")


@pytest.mark.parametrize("form", [name for name, row in FORMS.items() if not row[1]])
def test_no_voxel_size_anywhere_is_refused(paths: dict[str, Path], form: str) -> None:
    with pytest.raises(InputError, match=f"labels '.*{paths[form].name}' has no voxel size"):
        open_volume(paths[form], field="labels")


def test_an_explicit_voxel_size_wins_and_keeps_the_number_of_voxels(
    paths: dict[str, Path],
) -> None:
    metadata = open_volume(paths["ome04.zarr"], (61.0, 8.0, 2.125)).metadata
    assert metadata.voxel_size_nm == (61.0, 8.0, 2.125)
    assert metadata.offset_nm == (122.0, -16.0, 8.5)


def test_float_voxel_sizes_are_kept_as_they_are(paths: dict[str, Path]) -> None:
    metadata = open_volume(paths["ome04.zarr"]).metadata
    assert (metadata.voxel_size_nm, metadata.offset_nm) == (SIZE, OFFSET)


@pytest.mark.parametrize(
    ("unit", "nanometers"),
    [
        ("nanometer", 1),
        ("nm", 1),
        ("micrometer", 1000),
        ("um", 1000),
        ("\u00b5m", 1000),
        ("\u03bcm", 1000),
        ("angstrom", 0.1),
        ("\u00c5", 0.1),
        ("\u212b", 0.1),
    ],
)
def test_units_become_nanometers(tmp_path: Path, unit: str, nanometers: float) -> None:
    metadata = open_volume(write_ome(tmp_path / "x.zarr", unit=unit)).metadata
    np.testing.assert_allclose(metadata.voxel_size_nm, np.multiply(SIZE, nanometers))
    np.testing.assert_allclose(metadata.offset_nm, np.multiply(OFFSET, nanometers))


def test_a_box_that_sticks_out_is_refused(paths: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"sticks out of .*ome04"):
        opened(paths, "ome04.zarr").read(Roi((0, 0, 1), SHAPE))


@pytest.mark.parametrize("form", FORMS)
def test_a_pickled_volume_carries_no_handle_and_reads_again(
    paths: dict[str, Path], form: str
) -> None:
    volume = opened(paths, form)
    assert b"tensorstore" not in pickle.dumps(volume).replace(b"_tensorstore", b"")
    before = volume.read(volume.metadata.roi)
    again = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(again.read(again.metadata.roi), before)


@pytest.mark.parametrize("form", FORMS)
def test_what_was_read_may_be_changed(paths: dict[str, Path], form: str) -> None:
    volume = opened(paths, form)
    volume.read(volume.metadata.roi)[:] = 0
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), VALUES)


def test_a_volume_reads_in_a_spawned_process(paths: dict[str, Path]) -> None:
    volume = opened(paths, "ome04.zarr")
    volume.read(Roi((0, 0, 0), (1, 1, 1)))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(volume.read, [volume.metadata.roi]), VALUES)


@pytest.mark.parametrize("form", FORMS)
def test_threads_read_what_one_thread_reads(paths: dict[str, Path], form: str) -> None:
    volume = opened(paths, form)
    boxes = [Roi((z, y, 0), (1, 2, 11)) for z in range(5) for y in range(6)]
    with ThreadPoolExecutor(4) as pool:
        for box, found in zip(boxes, pool.map(volume.read, boxes), strict=True):
            np.testing.assert_array_equal(found, VALUES[box.to_slices()])


def test_opening_touches_no_chunk(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "x.zarr", 2, voxel_size=SIZE)
    for chunk in path.glob("[0-9]*"):
        chunk.write_bytes(b"not a chunk")
    volume = open_volume(path)
    with pytest.raises(ValueError, match=r"x\.zarr"):
        volume.read(volume.metadata.roi)


def write_group(path: Path) -> Path:
    zarr.open_group(path, mode="w", zarr_format=2)
    write_ome(path / "em")
    return path


def bad_zarr(tmp_path: Path, **changes: Any) -> Path:
    path = write_ome(tmp_path / "bad.zarr")
    attributes = json.loads((path / ".zattrs").read_text())
    attributes["multiscales"][0].update(changes)
    (path / ".zattrs").write_text(json.dumps(attributes))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.tif", "raw '.*none.tif' does not exist$"),
        (
            lambda p: write_ome(p / "x.zarr") / "s00" / "raw",
            "does not exist: .*holds s0, s1; did you mean 's0'",
        ),
        (lambda p: write_group(p / "x.zarr"), r"is a Zarr group, .*add what to read \(em\)"),
        (lambda p: write_ome(p / "x.zarr", unit="furlong"), "unknown unit 'furlong'"),
        (lambda p: write_ome(p / "x.zarr", unit=None), "without unit; give voxel_size_nm"),
        (
            lambda p: write_ome(p / "x.zarr", scale=None, translation=None),
            "has no voxel size; give voxel_size_nm in the datalist, for a mask that of its labels",
        ),
        (lambda p: write_ome(p / "x.zarr", scale=(4, 0, 4)), "three positive numbers"),
        (
            lambda p: write_ome(
                p / "x.zarr", np.zeros((2, *SHAPE), np.uint8), "czyx", "nm", (1, *SIZE), None
            ),
            r"2 entries along axis c \(shape \(2, 5, 7, 11\)\)",
        ),
        (
            lambda p: write_ome(p / "x.zarr", VALUES[0], "yx", "nm", SIZE[1:], OFFSET[1:]),
            r"wrong number of axes.* shape \(7, 11\)",
        ),
        (lambda p: bad_zarr(p, axes=None), "metadata that cannot be understood"),
        (lambda p: bad_zarr(p, datasets=[{"path": "s9"}]), "level 's9' .*does not hold it"),
        (
            lambda p: bad_zarr(p, coordinateTransformations=[{"type": "rotation"}]),
            "coordinate transformation 'rotation'",
        ),
    ],
    ids=lambda value: "" if callable(value) else value,
)
def test_zarr_mistakes_are_named(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_volume(make(tmp_path).resolve())


def write_file(path: Path, content: bytes = b"nothing like that") -> Path:
    path.write_bytes(content)
    return path


def write_flat_npy(path: Path) -> Path:
    np.save(path, VALUES[0])
    return path


def write_rgb_png(path: Path) -> Path:
    path.mkdir()
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(path / "0.png")
    return path


def write_unknown_compression(path: Path) -> Path:
    tifffile.imwrite(path, VALUES, compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for page in file.pages:
            page.tags["Compression"].overwrite(32809)  # ThunderScan, which nobody decodes
    return path


def write_unequal(path: Path) -> Path:
    write_sections(path, ".tif")
    tifffile.imwrite(path / "s99.tif", VALUES[0, 1:])
    return path


def write_empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: write_file(p / "a.tif"), "a.tif' is not a readable TIFF"),
        (lambda p: write_file(p / "a.h5") / "raw", "raw' is not a readable HDF5"),
        (lambda p: write_file(p / "a.npy"), "a.npy' is not a readable .npy"),
        (lambda p: write_file(p / "a.doc"), "a.doc' has an unknown format"),
        (lambda p: write_hdf5(p / "a").parent, "volumes' names no array .*holds: volumes/raw"),
        (lambda p: write_hdf5(p / "a").parents[1], "names no array .*holds: volumes/raw"),
        (lambda p: write_flat_npy(p / "a.npy"), r"wrong number of axes.* shape \(7, 11\)"),
        (lambda p: write_rgb_png(p / "rgb"), r"section 0.png has shape \(4, 5, 3\)"),
        (lambda p: write_unequal(p / "u"), r"section s99.tif has shape \(6, 11\)"),
        (lambda p: write_empty_folder(p / "e"), "neither Zarr, N5 or precomputed metadata nor PNG"),
        (lambda p: write_unknown_compression(p / "c.tif"), "c.tif' cannot be decoded: .*32809"),
    ],
    ids=lambda value: "" if callable(value) else value,
)
def test_file_mistakes_are_named(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        volume = open_volume(make(tmp_path), SIZE)
        volume.read(volume.metadata.roi)


def test_metadata_refuses_an_empty_volume() -> None:
    with pytest.raises(ValueError, match="cannot be empty"):
        VolumeMetadata((1, 0, 1), "uint8", SIZE)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("array_path", "axes", "dtype"),
    [
        ("affinities", "czyx", "uint8"),
        ("labels/segmentation", "zyx", "uint64"),
        ("em/raw", "zyx", "float32"),
    ],
)
class TestCreatedArray:
    """What is created can be read back, by us and by zarr-python."""

    @staticmethod
    def create(folder: Path, array_path: str, axes: str, dtype: str, version: str) -> NDArray[Any]:
        shape = SHAPE if axes == "zyx" else (1, *SHAPE)
        values = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
        chunks = (100, 4, 4, 4)[-len(axes) :]
        store = create_ome_zarr_array(
            folder, array_path, shape, dtype, axes, SIZE, OFFSET, chunks, {"k": [1, 2]}, version
        )
        store.write(values).result()
        return values

    def test_our_reader(
        self, tmp_path: Path, array_path: str, axes: str, dtype: str, version: str
    ) -> None:
        values = self.create(tmp_path / "x.zarr", array_path, axes, dtype, version)
        volume = open_volume(tmp_path / "x.zarr" / array_path)
        assert volume.metadata == VolumeMetadata(SHAPE, dtype, SIZE, OFFSET)
        found = volume.read(volume.metadata.roi)
        np.testing.assert_array_equal(found, values.reshape(SHAPE), strict=True)

    def test_zarr_python(
        self, tmp_path: Path, array_path: str, axes: str, dtype: str, version: str
    ) -> None:
        values = self.create(tmp_path / "x.zarr", array_path, axes, dtype, version)
        root = zarr.open_group(tmp_path / "x.zarr", mode="r")
        image = root[array_path]
        assert isinstance(image, zarr.Group)
        array = image["s0"]
        assert isinstance(array, zarr.Array)
        np.testing.assert_array_equal(array[:], values, strict=True)
        assert array.chunks == (1, 4, 4, 4)[-len(axes) :]
        assert array.metadata.zarr_format == (2 if version == "0.4" else 3)
        assert array.attrs["k"] == image.attrs["k"] == [1, 2]
        ome = image.attrs if version == "0.4" else image.attrs["ome"]
        names = [a["name"] for a in ome["multiscales"][0]["axes"]]
        assert names == list(axes)
        assert ("image-label" in ome) == array_path.startswith("labels/")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_index_of_labels_grows(tmp_path: Path, version: str) -> None:
    for name in ("segmentation", "fragments"):
        path = f"labels/{name}"
        create_ome_zarr_array(tmp_path, path, SHAPE, "u8", "zyx", SIZE, OFFSET, SHAPE, {}, version)
    attributes = zarr.open_group(tmp_path / "labels", mode="r").attrs.asdict()
    index = attributes if version == "0.4" else attributes["ome"]
    assert index["labels"] == ["fragments", "segmentation"]


def test_an_existing_array_is_not_replaced(tmp_path: Path) -> None:
    arguments = ("raw", SHAPE, "u1", "zyx", SIZE, OFFSET, SHAPE, {})
    create_ome_zarr_array(tmp_path, *arguments).write(7).result()
    with pytest.raises(InputError, match="exists already"):
        create_ome_zarr_array(tmp_path, *arguments)
    assert (open_volume(tmp_path / "raw").read(Roi((0, 0, 0), SHAPE)) == 7).all()


@pytest.mark.parametrize(
    ("axes", "version", "message"), [("xyz", "0.4", "do not fit"), ("zyx", "0.3", "version must")]
)
def test_wrong_arguments_of_a_new_array_are_refused(
    tmp_path: Path, axes: str, version: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create_ome_zarr_array(tmp_path, "raw", SHAPE, "u1", axes, SIZE, OFFSET, SHAPE, {}, version)
    assert list(tmp_path.iterdir()) == []


def test_real_data_has_the_voxel_size_that_its_makers_state(shared_data: Path) -> None:
    raw = open_volume(shared_data / "raw")
    assert raw.metadata == VolumeMetadata((250, 250, 250), "uint8", (10.0, 10.0, 10.0))
    assert 100 < raw.read(Roi((100, 100, 100), (20, 20, 20))).mean() < 160
