import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from funlib.geometry import Coordinate, Roi
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from custom.datalist import OpenEntry, _slabs, open_entry, parse_datalist
from custom.datalist_entry import DatalistEntry
from custom.errors import InputError
from custom.volumes import Volume, create_ome_zarr_array
from tests.written_volumes import write_n5, write_precomputed

SIZE = (30.5, 4.0, 4.25)
RAW_SHAPE = (6, 9, 13)
LABEL_SHAPE = (4, 5, 7)
LABEL_START = (1, 2, 3)  # in voxels of raw
RAW_OFFSET = (61.0, -8.0, 17.0)

RNG = np.random.default_rng(1)
RAW = RNG.integers(0, 255, RAW_SHAPE).astype(np.uint8)
LABELS = RNG.integers(0, 5, LABEL_SHAPE).astype(np.uint64)
LABELS[0, 0, 0] = 2**63 + 1
MASK = RNG.integers(0, 2, LABEL_SHAPE).astype(np.uint8)


def write(
    folder: Path,
    name: str,
    values: NDArray[Any],
    start: Sequence[float] = (0, 0, 0),
    size: Sequence[float] = SIZE,
) -> str:
    """An OME-Zarr image that starts at a voxel of raw; its path relative to the folder."""
    z, y, x = (o + s * e for o, s, e in zip(RAW_OFFSET, start, SIZE, strict=True))
    voxel_size = (size[0], size[1], size[2])
    create_ome_zarr_array(
        folder / "x.zarr",
        name,
        values.shape,
        values.dtype,
        "zyx",
        voxel_size,
        (z, y, x),
        (4,) * 3,
        {},
    ).write(values).result()
    return f"x.zarr/{name}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder, "raw", RAW)
    write(folder, "labels/cells", LABELS, LABEL_START)
    write(folder, "mask", MASK, LABEL_START)
    return folder


def entry(id_: str = "a", **fields: Any) -> dict[str, Any]:
    return {"id": id_, "raw": "x.zarr/raw", **fields}


def labelled(id_: str = "a", **fields: Any) -> dict[str, Any]:
    return entry(id_, **{"labels": "x.zarr/labels/cells", **fields})


def box(offset: Sequence[int], shape: Sequence[int]) -> dict[str, Any]:
    return {"offset": list(offset), "shape": list(shape)}


def save(folder: Path, **content: Any) -> Path:
    path = folder / "datalist.json"
    path.write_text(json.dumps({"name": "tiny", **content}))
    return path


def parsed(folder: Path, fields: dict[str, Any]) -> DatalistEntry:
    return parse_datalist(save(folder, test=[fields])).test[0]


def opened(folder: Path, fields: dict[str, Any]) -> OpenEntry:
    return open_entry(parsed(folder, fields))


@st.composite
def rois_around(draw: st.DrawFn, shape: Sequence[int]) -> Roi:
    """Boxes that may stick out on any side, or miss the volume."""
    starts = [draw(st.integers(-4, n + 3)) for n in shape]
    return Roi(starts, [draw(st.integers(1, 8)) for _ in shape])


def test_all_fields_are_read(data: Path) -> None:
    fields = labelled(
        mask="x.zarr/mask",
        roi=box((0, 1, 2), (3, 2, 4)),
        voxel_size_nm={"raw": [30.5, 4, 4.25], "labels": list(SIZE)},
        intensity_window=[10, 200],
    )
    assert parsed(data, fields) == DatalistEntry(
        id="a",
        raw=str(data / "x.zarr/raw"),
        labels=str(data / "x.zarr/labels/cells"),
        mask=str(data / "x.zarr/mask"),
        roi=Roi((0, 1, 2), (3, 2, 4)),
        raw_voxel_size_nm=SIZE,
        labels_voxel_size_nm=SIZE,
        intensity_window=(10.0, 200.0),
    )


def test_sections_keep_their_entries_in_order(data: Path) -> None:
    path = save(
        data,
        training=[labelled("a", roi=box((0, 0, 0), (2, 5, 7)))],
        validation=[labelled("b", roi=box((2, 0, 0), (2, 5, 7)))],
        test=[entry("c"), entry("d")],
    )
    datalist = parse_datalist(path)
    assert datalist.name == "tiny"
    assert [e.id for e in datalist.entries()] == ["a", "b", "c", "d"]
    assert [e.id for e in datalist.section("test")] == ["c", "d"]
    with pytest.raises(InputError, match="no section 'train'; did you mean 'training'"):
        datalist.section("train")


def test_paths_are_relative_to_the_datalist(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(data, test=[entry()])
    monkeypatch.chdir(tmp_path)
    assert parse_datalist(path).test[0].raw == str(data / "x.zarr/raw")


def test_absolute_paths_are_kept(data: Path, tmp_path: Path) -> None:
    raw = str(data / "x.zarr/raw")
    assert parsed(tmp_path, entry(raw=raw)).raw == raw


@given(roi=rois_around(RAW_SHAPE))
def test_labels_are_read_in_raw_voxels_and_padded(data: Path, roi: Roi) -> None:
    found = opened(data, labelled())
    labels, annotated = found.read_labels(roi)
    for index in np.ndindex(*labels.shape):
        here = np.add(roi.offset, index) - LABEL_START
        inside = bool(np.all(here >= 0) and np.all(here < LABEL_SHAPE))
        assert annotated[index] == inside
        assert labels[index] == (LABELS[tuple(here)] if inside else 0)


@given(roi=rois_around(RAW_SHAPE))
def test_a_mask_narrows_what_is_annotated(data: Path, roi: Roi) -> None:
    labels, inside = opened(data, labelled()).read_labels(roi)
    masked_labels, annotated = opened(data, labelled(mask="x.zarr/mask")).read_labels(roi)
    np.testing.assert_array_equal(masked_labels, labels)
    for index in np.ndindex(*labels.shape):
        here = tuple(np.add(roi.offset, index) - LABEL_START)
        assert annotated[index] == bool(inside[index] and MASK[here])


def test_labels_are_uint64_and_keep_large_ids(data: Path) -> None:
    labels, _ = opened(data, labelled()).read_labels(Roi(LABEL_START, (1, 1, 1)))
    assert labels.dtype == np.uint64
    assert labels.item() == 2**63 + 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (entry(), Roi((0, 0, 0), RAW_SHAPE)),
        (entry(roi=box((1, 0, 2), (2, 3, 4))), Roi((1, 0, 2), (2, 3, 4))),
        (labelled(), Roi(LABEL_START, LABEL_SHAPE)),
        (labelled(roi=box((1, 0, 2), (2, 3, 4))), Roi((2, 2, 5), (2, 3, 4))),
    ],
    ids=["raw", "raw roi", "labels", "labels roi"],
)
def test_the_roi_is_in_raw_voxels(data: Path, fields: dict[str, Any], expected: Roi) -> None:
    found = opened(data, fields)
    assert found.roi == expected
    np.testing.assert_array_equal(found.read_raw(expected), RAW[expected.to_slices()])


def test_a_roi_beyond_the_labels_is_annotated_inside_them_only(data: Path) -> None:
    roi = {**box((-1, 2, -3), (6, 4, 12)), "beyond_labels": True}
    found = opened(data, labelled(roi=roi))
    assert found.roi == Roi((0, 4, 0), (6, 4, 12))
    labels, annotated = found.read_labels(found.roi)
    inside = np.zeros((6, 4, 12), bool)
    inside[1:5, :3, 3:10] = True
    np.testing.assert_array_equal(annotated, inside)
    np.testing.assert_array_equal(labels[inside], LABELS[:, 2:, :].ravel())
    assert not labels[~inside].any()


def test_a_roi_beyond_the_labels_overlaps_others_as_it_lies(data: Path) -> None:
    beyond = {**box((-1, 0, 0), (2, 5, 7)), "beyond_labels": True}
    above = entry("b", roi=box((0, 2, 3), (1, 1, 1)))
    path = save(data, training=[labelled("a", roi=beyond)], validation=[above])
    with pytest.raises(InputError, match=r"roi of training entry 'a' overlaps .* entry 'b'"):
        parse_datalist(path)


def test_labels_larger_than_raw_are_cut_to_it(data: Path) -> None:
    found = opened(
        data, entry(labels=write(data, "wide", np.ones((9, 9, 9), np.uint8), (-2, 3, 1)))
    )
    assert found.labels_offset == (-2, 3, 1)
    assert found.roi == Roi((0, 3, 1), (6, 6, 9))


def test_an_open_entry_is_pickled(data: Path) -> None:
    found = opened(data, labelled())
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.read_labels(found.roi)[0], found.read_labels(found.roi)[0])


@pytest.mark.parametrize("z", range(LABEL_SHAPE[0]))
def test_one_labelled_section_is_enough(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, z: int
) -> None:
    monkeypatch.setattr("custom.datalist.SLAB_VOXELS", 2 * 5 * 7)
    values = np.zeros_like(LABELS)
    values[z, 4, 6] = 1
    fields = entry(raw=str(data / "x.zarr/raw"), labels=write(tmp_path, "one", values))
    assert opened(tmp_path, fields).read_labels(Roi((z, 4, 6), (1, 1, 1)))[0].item() == 1


@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(-3, 3)] * 3),
    st.integers(1, 200),
)
def test_labels_are_looked_through_in_pieces_that_tile_the_roi(
    shape: tuple[int, int, int], offset: tuple[int, int, int], most: int
) -> None:
    seen = np.zeros(shape, int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("custom.datalist.SLAB_VOXELS", most)
        for piece in _slabs(Roi(offset, shape)):
            assert 0 < piece.size <= most and Roi(offset, shape).contains(piece)
            seen[(piece - Coordinate(offset)).to_slices()] += 1
    assert (seen == 1).all()


def test_labels_in_the_middle_are_found_without_reading_all(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("custom.datalist.SLAB_VOXELS", 30)
    values = np.zeros((100, 5, 6), np.uint8)
    values[40:60] = 7
    np.save(tmp_path / "labels.npy", values)
    np.save(tmp_path / "raw.npy", values)
    reads: list[Roi] = []
    read = Volume.read
    monkeypatch.setattr(Volume, "read", lambda *args: reads.append(args[1]) or read(*args))
    size = {"raw": list(SIZE), "labels": list(SIZE)}
    opened(tmp_path, entry(raw="raw.npy", labels="labels.npy", voxel_size_nm=size))
    assert len(reads) < 10


def test_bool_labels_are_ids_0_and_1(data: Path) -> None:
    found = opened(data, entry(labels=write(data, "bool", LABELS > 2)))
    np.testing.assert_array_equal(found.read_labels(found.roi)[0], LABELS > 2)


def test_positive_signed_labels_are_read(data: Path) -> None:
    values = LABELS.clip(0, 9).astype(np.int32)
    found = opened(data, entry(labels=write(data, "signed", values)))
    np.testing.assert_array_equal(found.read_labels(found.roi)[0], values)


def test_negative_labels_are_refused(data: Path) -> None:
    values = LABELS.clip(0, 9).astype(np.int16)
    values[3, 4, 6] = -7
    fields = entry(labels=write(data, "negative", values))
    with pytest.raises(InputError, match="entry 'a' hold the negative id -7"):
        opened(data, fields).read_labels(Roi((0, 0, 0), LABEL_SHAPE))


def test_rounding_in_positions_is_forgiven(data: Path) -> None:
    start = [s + 0.004 for s in LABEL_START]
    found = opened(data, entry(labels=write(data, "rounded", LABELS, start)))
    assert found.labels_offset == LABEL_START


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: labelled(labels=write(p, "float", LABELS.astype(np.float32))),
            "labels '.*float' has type float32; convert it to integers",
        ),
        (
            lambda p: labelled(mask=write(p, "soft", MASK.astype(np.float32))),
            "mask '.*soft' has type float32",
        ),
        (
            lambda p: labelled(labels=write(p, "zero", np.zeros_like(LABELS))),
            "labels of entry 'a' .*zero.* are all 0 in the ROI",
        ),
        (
            lambda p: labelled(mask=write(p, "hidden", np.zeros_like(LABELS))),
            "labels of entry 'a' .* are all 0 where mask '.*hidden' is not 0, in the ROI",
        ),
        (
            lambda p: labelled(labels=write(p, "far", LABELS, (0, 9, 0))),
            r"labels '.*far' does not overlap raw: it starts at voxel \(0, 9, 0\)",
        ),
        (
            lambda p: labelled(mask=write(p, "far_mask", MASK, (-4, 0, 0))),
            "mask '.*far_mask' does not overlap raw",
        ),
        (
            lambda p: labelled(labels=write(p, "half", LABELS, (0, 0.5, 0))),
            r"labels '.*half' starts at voxel \[0.0, 0.5, 0.0\] of raw, which is not a whole",
        ),
        (
            lambda p: labelled(labels=write(p, "fine", LABELS, size=(30.5, 4.0, 2.0))),
            "labels '.*fine' has voxels of .* finer than raw's of .* downsample the labels",
        ),
        (
            lambda p: labelled(roi=box((0, 0, 1), LABEL_SHAPE)),
            r"roi has offset \[0, 0, 1\] .*sticks out of labels, whose shape is \[4, 5, 7\]",
        ),
        (
            lambda p: labelled(roi={**box((-2, 0, 0), LABEL_SHAPE), "beyond_labels": True}),
            r"roi moved to raw voxels has offset \[-1, 2, 3\] .*sticks out of raw",
        ),
        (
            lambda p: labelled(roi={**box((-1, 0, 0), (1, 5, 7)), "beyond_labels": True}),
            "labels of entry 'a' .*are all 0 in the ROI",
        ),
        (
            lambda p: entry(roi=box((0, 0, 1), RAW_SHAPE)),
            r"roi has offset \[0, 0, 1\] .*sticks out of raw, whose shape is \[6, 9, 13\]",
        ),
        (
            lambda p: labelled(
                labels=write(p, "out", LABELS, (4, 0, 0)), roi=box((0, 0, 0), LABEL_SHAPE)
            ),
            "roi moved to raw voxels .*sticks out of raw",
        ),
    ],
    ids=lambda value: "" if callable(value) else value,
)
def test_volumes_that_do_not_fit_are_refused(
    data: Path, tmp_path: Path, make: Callable[[Path], dict[str, Any]], message: str
) -> None:
    fields = make(tmp_path)
    fields["raw"] = str(data / fields["raw"])
    if (tmp_path / fields.get("labels", "")).name == "cells":
        fields["labels"] = str(data / fields["labels"])
    with pytest.raises(InputError, match=message):
        opened(tmp_path, fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"raw": "x.zarr/raw"}, r"test\[0\], id must be letters.* got None"),
        (entry("a/b"), "id must be letters, digits .* got 'a/b'"),
        ({"id": "a"}, r"test\[0\] \('a'\) has no 'raw'"),
        (entry(label="y"), r"test\[0\] \('a'\) has the unknown key 'label'; did you mean 'labels'"),
        (entry(raw=7), r"test\[0\] \('a'\), raw must be a path or a URL, got 7"),
        (entry(raw="none.tif"), "entry 'a', raw '.*none.tif' does not exist"),
        (labelled(labels="x.zarr/label"), "entry 'a', labels '.*label' does not exist"),
        (labelled(mask="none.npy"), "entry 'a', mask '.*none.npy' does not exist"),
        (entry(roi=[1, 2]), "roi must be a JSON object"),
        (entry(roi={"offset": [0, 0, 0]}), "roi.shape must be a list of 3 numbers, got None"),
        (entry(roi=box((0, 0, 0), (1, 1))), "roi.shape must be a list of 3 numbers"),
        (entry(roi=box((0, 0, 0), (1, 0, 1))), "roi.shape must be 3 whole numbers from 1 on"),
        (entry(roi=box((0, -1, 0), (1, 1, 1))), "roi.offset must be 3 whole numbers from 0 on"),
        (entry(roi={"offset": [0, 0.5, 0], "shape": [1, 1, 1]}), "roi.offset must be 3 whole"),
        (entry(roi={**box((0, 0, 0), (1, 1, 1)), "size": 1}), "roi has the unknown key 'size'"),
        (entry(voxel_size_nm=[1, 1, 1]), "voxel_size_nm must be a JSON object"),
        (entry(voxel_size_nm={"raw": [1, 0, 1]}), "raw must be positive"),
        (entry(voxel_size_nm={"raw": 4}), "raw must be a list of 3 numbers, got 4"),
        (entry(voxel_size_nm={"label": 4}), "voxel_size_nm has the unknown key 'label'"),
        (entry(intensity_window=[5, 5]), r"intensity_window must be \[low, high\]"),
        (entry(intensity_window=[True, 5]), "intensity_window must be a list of 2 numbers"),
        (entry(classes=["a"]), "classes must be a JSON object"),
        (entry(classes={"a": None}), "classes gives no path for any class"),
        (entry(classes={"a": 3}), "classes.a must be a path or a URL, got 3"),
        (labelled(classes={"a": "x.npy"}), "has both 'labels' and 'classes'; keep one"),
        (entry(roi={**box((0, 0, 0), (1, 1, 1)), "beyond_labels": "yes"}), "must be true or false"),
        (entry(roi={**box((0, 0, 0), (1, 1, 1)), "beyond_labels": True}), "there are no labels"),
        ("x", r"test\[0\] must be a JSON object, got 'x'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_in_an_entry_are_named(data: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_datalist(save(data, test=[fields]))
    assert str(data / "datalist.json") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "has no entries"),
        ('{"train": []}', "unknown key 'train'; did you mean 'training'"),
        ('{"test": {}}', "test must be a list"),
        (None, "datalist '.*datalist.json' does not exist"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "datalist.json").write_text(content)
    with pytest.raises(InputError, match=message):
        parse_datalist(tmp_path / "datalist.json")


def test_an_id_is_used_once(data: Path) -> None:
    path = save(data, training=[entry("a")], test=[entry("a")])
    with pytest.raises(InputError, match="id 'a' more than once"):
        parse_datalist(path)


@pytest.mark.parametrize(
    ("training", "validation"),
    [
        (labelled("a"), labelled("b")),
        (
            labelled("a", roi=box((0, 0, 0), (3, 5, 7))),
            labelled("b", roi=box((2, 4, 6), (2, 1, 1))),
        ),
        # 1 voxel of raw in common: labels start at (1, 2, 3) of raw
        (labelled("a", roi=box((0, 0, 0), (1, 1, 1))), entry("b", roi=box((1, 2, 3), (1, 1, 1)))),
        (labelled("a"), labelled("b", raw="x.zarr/raw/s0")),
        (labelled("a"), labelled("b", raw="x.zarr/../x.zarr/raw")),
        (labelled("a", raw="x.zarr/../x.zarr/raw"), labelled("b")),
    ],
)
def test_training_and_validation_may_not_overlap(
    data: Path, training: dict[str, Any], validation: dict[str, Any]
) -> None:
    path = save(data, training=[training], validation=[validation])
    with pytest.raises(InputError, match=r"roi of training entry 'a' overlaps .* entry 'b'"):
        parse_datalist(path)


def test_neighbouring_rois_and_other_volumes_do_not_overlap(data: Path, tmp_path: Path) -> None:
    write(tmp_path, "raw", RAW)
    path = save(
        data,
        training=[labelled("a", roi=box((0, 0, 0), (2, 5, 7)))],
        validation=[
            labelled("b", roi=box((2, 0, 0), (2, 5, 7))),
            entry("c", raw=str(tmp_path / "x.zarr/raw")),
        ],
    )
    assert [e.id for e in parse_datalist(path).validation] == ["b", "c"]


def test_real_data_opens_with_its_labels(shared_data: Path, tmp_path: Path) -> None:
    fields = {
        "id": "fib25",
        "raw": str(shared_data / "raw"),
        "labels": str(shared_data / "labels" / "neurons"),
        "roi": box((129, 0, 0), (37, 250, 250)),
    }
    found = opened(tmp_path, fields)
    labels, annotated = found.read_labels(Roi((160, 100, 100), (10, 20, 20)))
    assert annotated[:6].all()
    assert not annotated[6:].any()
    assert labels[:6].any()


# ---------------------------------------------------------------- raw finer than labels

COARSE = (61.0, 6.0, 12.75)  # 2, 1.5 and 3 voxels of raw
WIDE = np.random.default_rng(3).integers(1, 9, (2, 3, 2)).astype(np.uint16)


def centred(ratio: Sequence[float], corner: Sequence[float]) -> list[float]:
    """Centre of a voxel whose corner is so many voxels of raw behind raw's."""
    return [c + (r - 1) / 2 for r, c in zip(ratio, corner, strict=True)]


def finer(folder: Path, corner: Sequence[float] = (2, 1.5, 4), **fields: Any) -> dict[str, Any]:
    """An entry with labels of COARSE voxels."""
    ratio = np.divide(COARSE, SIZE)
    labels = write(folder, "coarse", WIDE, centred(ratio, corner), COARSE)
    return entry(labels=labels, **fields)


def test_labels_coarser_than_raw_give_the_voxel_grid(data: Path, tmp_path: Path) -> None:
    fields = finer(tmp_path, raw=str(data / "x.zarr/raw"))
    found = opened(tmp_path, fields)
    assert found.voxel_size_nm == COARSE
    assert found.labels_offset == (1, 1, 1)
    assert found.raw.metadata.shape == (3, 6, 4)  # from corner (0, 0, 1) of raw on
    assert found.roi == Roi((1, 1, 1), WIDE.shape)
    assert found.source.metadata.shape == RAW_SHAPE
    assert [axis.edge(0) for axis in found.raw_axes] == [0, 0, 1]
    for axis in range(3):
        here, there = found.raw.metadata, found.labels.metadata  # type: ignore[union-attr]
        assert there.offset_nm[axis] == pytest.approx(here.offset_nm[axis] + COARSE[axis])
    labels, annotated = found.read_labels(found.roi)
    assert annotated.all()
    np.testing.assert_array_equal(labels, WIDE)
    values = found.read_raw(Roi((1, 1, 1), (1, 2, 3)))
    assert values.dtype == RAW.dtype
    np.testing.assert_array_equal(values, found.read_raw(found.raw.metadata.roi)[1:2, 1:3, 1:4])


def test_a_mask_has_the_voxel_size_of_labels(data: Path, tmp_path: Path) -> None:
    ratio = np.divide(COARSE, SIZE)
    fields = finer(tmp_path, raw=str(data / "x.zarr/raw"))
    mask = np.zeros(WIDE.shape, np.uint8)
    mask[1, 2, 0] = 1
    fields["mask"] = write(tmp_path, "mask", mask, centred(ratio, (2, 1.5, 4)), COARSE)
    found = opened(tmp_path, fields)
    assert found.mask_offset == found.labels_offset
    np.testing.assert_array_equal(found.read_labels(found.roi)[1], mask)
    fields["mask"] = str(write(tmp_path, "fine_mask", np.ones(RAW_SHAPE, np.uint8)))
    with pytest.raises(InputError, match=r"raw and labels are used at .* they must be equal, res"):
        opened(tmp_path, fields)


def test_without_labels_their_voxel_size_gives_the_grid(data: Path) -> None:
    sizes = {"voxel_size_nm": {"labels": list(COARSE)}}
    found = opened(data, entry(roi=box((1, 0, 2), (1, 2, 2)), **sizes))
    assert found.voxel_size_nm == COARSE
    assert found.raw.metadata.shape == (3, 6, 4)
    assert [axis.edge(0) for axis in found.raw_axes] == [0, 0, 0], "corners coincide"
    assert found.roi == Roi((1, 0, 2), (1, 2, 2))
    with pytest.raises(InputError, match=r"sticks out of raw, whose shape is \[3, 6, 4\]"):
        opened(data, entry(roi=box((2, 0, 0), (2, 1, 1)), **sizes))
    with pytest.raises(
        InputError, match=r"voxel_size_nm\.labels has voxels of .* finer than raw's"
    ):
        opened(data, entry(voxel_size_nm={"labels": [30.5, 4, 4]}))


def without_position(kind: str, folder: Path, values: NDArray[Any], size: Sequence[float]) -> str:
    """A file that says no more than its voxel size, and the first not even that."""
    name = f"{kind}-{values.dtype}"
    if kind == "npy":
        np.save(folder / f"{name}.npy", values)
        return f"{name}.npy"
    if kind == "h5":
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.create_dataset("values", data=values).attrs["resolution"] = list(size)
        return f"{name}.h5/values"
    if kind == "n5":
        resolution = {"unit": "nm", "dimensions": list(size[::-1])}
        return str(write_n5(folder / f"{name}.n5" / "x", values, pixelResolution=resolution))
    group = zarr.open_group(folder / f"{name}.zarr", mode="w", zarr_format=2)
    group.create_array("s0", data=values)
    scale = {"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": list(size)}]}
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [scale]}]
    return f"{name}.zarr"


@pytest.mark.parametrize("kind", ["npy", "h5", "n5", "ome"])
def test_files_without_a_position_share_their_corner(tmp_path: Path, kind: str) -> None:
    fields = {
        "id": "a",
        "raw": without_position(kind, tmp_path, RAW, SIZE),
        "labels": without_position(kind, tmp_path, WIDE, COARSE),
    }
    if kind == "npy":
        fields["voxel_size_nm"] = {"raw": list(SIZE), "labels": list(COARSE)}  # type: ignore[assignment]
    found = opened(tmp_path, fields)
    assert found.labels_offset == (0, 0, 0)
    assert [axis.edge(0) for axis in found.raw_axes] == [0, 0, 0]
    assert found.raw.metadata.offset_nm == pytest.approx((30.5 / 2, 1, 4.25))
    np.testing.assert_array_equal(found.read_labels(found.roi)[0], WIDE)


@pytest.mark.parametrize("with_labels", [True, False])
def test_a_file_without_a_position_fits_one_with_it(tmp_path: Path, with_labels: bool) -> None:
    """As voxels of one size do: the position 0 is that of corners here, and of centres there."""
    array = create_ome_zarr_array(
        tmp_path / "x.zarr", "raw", RAW_SHAPE, "uint8", "zyx", SIZE, (0, 0, 0), (4,) * 3, {}
    )
    array.write(RAW).result()
    for name in ("labels", "mask"):
        np.save(tmp_path / f"{name}.npy", WIDE)
    fields = entry(mask="mask.npy", voxel_size_nm={"raw": list(SIZE), "labels": list(COARSE)})
    if with_labels:
        fields["labels"] = "labels.npy"
    found = opened(tmp_path, fields)
    assert found.labels_offset == found.mask_offset == (0, 0, 0)
    assert [axis.edge(0) for axis in found.raw_axes] == [0, 0, 0]
    assert found.raw.metadata.shape == (3, 6, 4)


def test_stated_positions_are_centres(tmp_path: Path) -> None:
    """Labels that are every second voxel of raw, from the first on: nothing may move."""
    values = np.zeros((1, 1, 20), np.float32)
    values[0, 0, 8] = 1
    raw = write(tmp_path, "raw", values)
    labels = write(
        tmp_path, "labels", (values[:, :, ::2] + 1).astype(np.uint8), size=(*SIZE[:2], 8.5)
    )
    found = opened(tmp_path, {"id": "a", "raw": raw, "labels": labels})
    assert found.labels_offset == (0, 0, 0)
    assert found.read_raw(found.roi).argmax() == found.read_labels(found.roi)[0].argmax() == 4


def test_precomputed_volumes_share_their_corner(tmp_path: Path) -> None:
    write_precomputed(tmp_path / "raw", ("8", RAW, SIZE, (1, 0, 2)))
    write_precomputed(tmp_path / "labels", ("16", WIDE, COARSE, (1, 0, 1)))
    found = opened(tmp_path, {"id": "a", "raw": "raw", "labels": "labels"})
    assert [axis.edge(0) for axis in found.raw_axes] == [-1, 0, 1]
    assert found.labels_offset == (1, 0, 0)


@pytest.mark.parametrize(("begin", "overlap"), [((2, 0, 0), False), ((1, 0, 0), True)])
def test_rois_of_unequal_voxels_overlap_in_space(
    data: Path, tmp_path: Path, begin: tuple[int, int, int], overlap: bool
) -> None:
    raw = str(data / "x.zarr/raw")
    training = finer(tmp_path, (0, 0, 0), raw=raw, roi=box((0, 0, 0), (1, 3, 2)))  # 2 sections
    validation = {**training, "id": "b", "roi": box(begin, (1, 9, 13))}
    validation |= {"labels": write(tmp_path, "fine", np.ones_like(RAW))}
    path = save(tmp_path, training=[training], validation=[validation])
    if not overlap:
        assert parse_datalist(path).validation
        return
    with pytest.raises(InputError, match=r"overlaps .*\[1:2, 0:5, 0:6\] \(1, 5, 6\) \(raw voxels"):
        parse_datalist(path)
