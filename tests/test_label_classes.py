import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from funlib.geometry import Roi
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from custom.datalist import Datalist, OpenEntry, open_entry, parse_datalist
from custom.errors import InputError
from custom.label_classes import class_ids, class_names
from custom.volumes import create_ome_zarr_array

SIZE = (30.5, 4.0, 4.25)
RAW_SHAPE = (6, 9, 13)
RAW_OFFSET = (61.0, -8.0, 17.0)
STARTS = {"mito": (1, 2, 3), "er": (0, 3, 1), "nuc": (2, 0, 0)}
SHAPES = {"mito": (4, 5, 7), "er": (5, 5, 8), "nuc": (4, 9, 9)}
COMMON = Roi((2, 3, 3), (3, 4, 6))  # of all three, in voxels of raw

RNG = np.random.default_rng(2)
LABELS: dict[str, NDArray[Any]] = {
    name: RNG.choice([0, 0, 3, 2**40], shape).astype(np.uint64) for name, shape in SHAPES.items()
}


def write(
    folder: Path,
    name: str,
    values: NDArray[Any],
    start: Sequence[float] = (0, 0, 0),
    size: Sequence[float] = SIZE,
) -> str:
    """An OME-Zarr image that starts at a voxel of raw; its path relative to the folder."""
    z, y, x = (o + s * e for o, s, e in zip(RAW_OFFSET, start, SIZE, strict=True))
    create_ome_zarr_array(
        folder / "x.zarr",
        name,
        values.shape,
        values.dtype,
        "zyx",
        (size[0], size[1], size[2]),
        (z, y, x),
        (4,) * 3,
        {},
    ).write(values).result()
    return f"x.zarr/{name}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder, "raw", RNG.integers(0, 255, RAW_SHAPE).astype(np.uint8))
    for name, values in LABELS.items():
        write(folder, name, values, STARTS[name])
    return folder


def entry(classes: Mapping[str, str | None], id_: str = "a", **fields: Any) -> dict[str, Any]:
    return {"id": id_, "raw": "x.zarr/raw", "classes": classes, **fields}


def parsed(folder: Path, *entries: dict[str, Any]) -> Datalist:
    path = folder / "datalist.json"
    path.write_text(json.dumps({"name": "classes", "test": entries}))
    return parse_datalist(path)


def opened(folder: Path, classes: Mapping[str, str | None], **fields: Any) -> OpenEntry:
    return open_entry(parsed(folder, entry(classes, **fields)).test[0])


def paths(*names: str) -> dict[str, str | None]:
    return {name: f"x.zarr/{name}" for name in names}


def value(name: str, voxel: Sequence[int]) -> int | None:
    """Label of a class at a voxel of raw, None outside its volume."""
    here = np.subtract(voxel, STARTS[name])
    inside = bool(np.all(here >= 0) and np.all(here < SHAPES[name]))
    return int(LABELS[name][tuple(here)]) if inside else None


@settings(max_examples=40)
@given(
    order=st.permutations(sorted(STARTS)),
    absent=st.sampled_from([(), ("er",), ("mito",), ("er", "nuc")]),
    start=st.tuples(*[st.integers(-2, n) for n in RAW_SHAPE]),
)
def test_a_voxel_has_the_last_class_that_claims_it_where_all_annotated_classes_are(
    data: Path, order: list[str], absent: Sequence[str], start: tuple[int, int, int]
) -> None:
    classes = {name: None if name in absent else f"x.zarr/{name}" for name in order}
    labels, annotated = opened(data, classes).read_labels(Roi(start, (4, 5, 6)))
    for index in np.ndindex(*labels.shape):
        voxel = np.add(start, index)
        found = {name: value(name, voxel) for name in order if name not in absent}
        claims = [order.index(name) + 1 for name, here in found.items() if here]
        inside = all(here is not None for here in found.values())
        known = inside and (bool(claims) or not absent)
        assert annotated[index] == known
        if known:
            assert labels[index] == (claims[-1] if claims else 0)


def test_one_class_keeps_its_instances(data: Path) -> None:
    found = opened(data, paths("mito"))
    labels, annotated = found.read_labels(Roi(STARTS["mito"], SHAPES["mito"]))
    np.testing.assert_array_equal(labels, LABELS["mito"])
    assert annotated.all()
    assert found.label_ids().tolist() == [0, 3, 2**40]


def test_all_of_several_classes_have_ids_wherever_they_occur(data: Path) -> None:
    found = opened(data, {**paths("mito"), "er": None, "nuc": None})
    assert found.label_ids().tolist() == [0, 1, 2, 3], "an id means the same in every volume"


def test_the_roi_of_several_classes_is_their_common_box(data: Path) -> None:
    assert opened(data, paths("mito", "er", "nuc")).roi == COMMON
    roi = {"offset": [1, 0, 2], "shape": [2, 4, 3]}
    assert opened(data, paths("er", "nuc", "mito"), roi=roi).roi == Roi((3, 3, 5), (2, 4, 3))


def test_a_mask_hides_classes_as_it_hides_labels(data: Path) -> None:
    values = RNG.integers(0, 2, RAW_SHAPE).astype(np.uint8)
    mask = write(data, "mask", values)
    plain, masked = (opened(data, paths("mito", "er"), **f) for f in ({}, {"mask": mask}))
    whole = Roi((0, 0, 0), RAW_SHAPE)
    np.testing.assert_array_equal(
        masked.read_labels(whole)[1], plain.read_labels(whole)[1] & (values != 0)
    )


def test_classes_lie_on_finer_raw_where_they_lie_on_raw(data: Path, tmp_path: Path) -> None:
    fine = RNG.integers(0, 255, (6, 18, 13)).astype(np.uint8)
    raw = str(tmp_path / write(tmp_path, "raw", fine, (0, -0.25, 0), (30.5, 2.0, 4.25)))
    for order in (("er", "nuc", "mito"), ("mito", "er", "nuc")):
        finer, plain = (opened(data, paths(*order), **f) for f in ({"raw": raw}, {}))
        assert finer.voxel_size_nm == SIZE
        assert finer.roi == plain.roi == COMMON
        for one, other in zip(finer.read_labels(COMMON), plain.read_labels(COMMON), strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_open_entry_with_classes_is_pickled(data: Path) -> None:
    found = opened(data, paths("mito", "er"))
    again = pickle.loads(pickle.dumps(found))
    for one, other in zip(found.read_labels(found.roi), again.read_labels(found.roi), strict=True):
        np.testing.assert_array_equal(one, other)


def test_ids_follow_the_stated_order() -> None:
    assert class_ids({"mito": "a"}) == {"mito": "instances"}
    assert class_ids({"nuc": None, "er": "a", "mito": "b"}) == {"nuc": 1, "er": 2, "mito": 3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: {"er": write(p, "f", LABELS["er"].astype(np.float32))},
            "classes.er has type float32; convert it to integers",
        ),
        (
            lambda p: {"er": write(p, "s", LABELS["er"], size=(30.5, 4.0, 2.0))},
            "classes.er has voxel size .* mito has .* they must be equal",
        ),
        (
            lambda p: {"er": write(p, "h", LABELS["er"], (1, 2.5, 3))},
            r"classes.er starts at voxel \[0.0, 0.5, 0.0\] of mito, which is not a whole",
        ),
        (
            lambda p: {"er": None, "nuc": write(p, "o", LABELS["nuc"], (5, 2, 3))},
            "classes.nuc has no voxel in common with mito",
        ),
        (
            lambda p: {"er": write(p, "n", np.full(SHAPES["er"], -2, np.int8), STARTS["er"])},
            "holds the negative id -2",
        ),
        (lambda _: {"er": "x.zarr/absent"}, "classes.er '.*absent' does not exist"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    tmp_path: Path, make: Callable[[Path], dict[str, str | None]], message: str
) -> None:
    write(tmp_path, "raw", np.ones(RAW_SHAPE, np.uint8))
    mito = write(tmp_path, "mito", LABELS["mito"], STARTS["mito"])
    classes = {"mito": mito, **make(tmp_path)}
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path, classes)
    assert "\n" not in str(caught.value)


def test_classes_without_any_object_are_refused(tmp_path: Path) -> None:
    for name in ("raw", "mito", "er"):
        write(tmp_path, name, np.zeros(RAW_SHAPE, np.uint8))
    with pytest.raises(InputError, match=r"labels of entry 'a' .*er.* are all 0 in the ROI"):
        opened(tmp_path, paths("mito", "er"))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (paths("er", "mito"), "the classes er, mito"),
        (paths("mito"), "the classes mito"),
        (paths("mito", "er", "nuc"), "the classes mito, er, nuc"),
        (None, "'labels'"),
    ],
)
def test_all_entries_with_labels_name_the_same_classes_in_the_same_order(
    data: Path, other: dict[str, str | None] | None, said: str
) -> None:
    labelled = {"id": "b", "raw": "x.zarr/raw", "labels": "x.zarr/mito"}
    second = labelled if other is None else entry(other, "b")
    with pytest.raises(InputError) as caught:
        parsed(data, entry(paths("mito", "er")), second)
    assert f"entry 'a' has the classes mito, er, entry 'b' has {said}" in str(caught.value)


def test_a_class_may_be_annotated_in_some_entries_only(data: Path) -> None:
    bare = {"id": "c", "raw": "x.zarr/raw"}
    second = {**paths("mito"), "er": None}
    found = parsed(data, entry(paths("mito", "er")), entry(second, "b"), bare)
    assert [e.class_ids for e in found.test] == [{"mito": 1, "er": 2}] * 2 + [None]


@pytest.mark.parametrize(
    ("ids", "number", "names"),
    [
        (None, 2, ["foreground"]),
        (None, 4, ["class_1", "class_2", "class_3"]),
        ({"mito": "instances"}, 2, ["mito"]),
        ({"er": 2, "mito": 1}, 3, ["mito", "er"]),
        ({"mito": 1, "er": 2, "nuc": 3}, 3, ["mito", "er"]),
    ],
)
def test_classes_are_named_in_the_order_of_their_ids(
    ids: dict[str, int | str] | None, number: int, names: list[str]
) -> None:
    assert class_names(ids, number) == ["background", *names]
