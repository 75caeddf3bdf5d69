import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray
from scripts.cubes import cubes

from custom.datalist import OpenEntry, open_entry, parse_datalist
from custom.errors import InputError
from custom.sampling import CubeRules, CubeSampler, matching
from custom.volumes import create_ome_zarr_array

SIZE = (5, 4, 7)
VOXEL_SIZE = [40.0, 8.0, 8.5]


def write_sources(folder: Path) -> Path:
    """Two labelled sources, labels of one elsewhere on raw's grid; one without labels."""
    rng = np.random.default_rng(0)
    for name, shape in (("large", (21, 30, 33)), ("small", (9, 9, 11)), ("bare", (9, 9, 9))):
        np.save(folder / f"{name}.npy", rng.integers(0, 255, shape, dtype=np.uint8))
    labels = np.repeat(np.repeat(rng.integers(0, 4, (7, 10, 11)), 3, 1), 3, 2).astype(np.uint64)
    labels = np.repeat(labels, 3, 0)
    labels[:, :, :12] = 0
    labels[labels == 2] = 2**40
    np.save(folder / "large_labels.npy", labels)
    np.save(folder / "small_labels.npy", np.full((9, 9, 11), 7, np.uint16))
    np.save(folder / "mask.npy", (np.arange(30) < 18)[None, :, None] & np.ones((21, 30, 33), bool))
    size = {"voxel_size_nm": {"raw": VOXEL_SIZE, "labels": VOXEL_SIZE}}
    box = {"offset": [2, 0, 3], "shape": [18, 29, 30]}
    entries = [
        {"id": "large", "raw": "large.npy", "labels": "large_labels.npy", "roi": box, **size},
        {"id": "small", "raw": "small.npy", "labels": "small_labels.npy", **size},
    ]
    entries[0]["mask"] = "mask.npy"
    held = {"id": "held", "raw": "small.npy", **size}
    bare = {"id": "bare", "raw": "bare.npy", **size}
    path = folder / "sources.json"
    path.write_text(json.dumps({"name": "big", "training": [*entries, bare], "test": [held]}))
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def opened(sources: Path) -> list[OpenEntry]:
    return [open_entry(entry) for entry in parse_datalist(sources).training]


def test_every_cube_lies_in_its_roi_and_keeps_the_rules(opened: list[OpenEntry]) -> None:
    rules = CubeRules(0.5, 0.3, 3)
    found = CubeSampler(opened[:2], SIZE, rules, seed=1).draw(40)
    assert len({(c.source, *c.roi.offset) for c in found}) == 40
    for cube in found:
        source = opened[cube.source]
        assert source.roi.contains(cube.roi) and tuple(cube.roi.shape) == SIZE
        labels, annotated = source.read_labels(cube.roi)
        counted = [int(i) for i, a in zip(labels.ravel(), annotated.ravel(), strict=True) if a]
        objects = [i for i in counted if i]
        assert len(counted) >= 0.5 * labels.size
        assert len(objects) >= 0.3 * len(counted)
        assert len(set(objects)) >= 3, "background is no object"


def test_cubes_follow_from_the_seed_alone(opened: list[OpenEntry]) -> None:
    one, same, other = (CubeSampler(opened, SIZE, seed=seed).draw(12) for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_more_cubes_go_on_from_the_same_ones(opened: list[OpenEntry]) -> None:
    few, many = (CubeSampler(opened, SIZE, seed=5).draw(n) for n in (4, 15))
    assert many[:4] == few


def test_weights_choose_the_sources(opened: list[OpenEntry]) -> None:
    easy = CubeRules(0, 0, 0)
    counts = {
        weights: Counter(
            c.source for c in CubeSampler(opened[:2], (8, 8, 8), easy, weights).draw(80)
        )
        for weights in ("uniform", "size")
    }
    places = [11 * 22 * 23, 2 * 2 * 4]
    assert counts["size"][1] <= 80 * 5 * places[1] / sum(places)
    assert counts["uniform"][1] == places[1], "all of its places, each once"


def test_sources_without_labels_need_no_rules(opened: list[OpenEntry]) -> None:
    found = CubeSampler(opened[2:], SIZE, CubeRules(1, 1, 99)).draw(5)
    assert len(found) == 5


def test_too_few_says_what_was_rejected(opened: list[OpenEntry]) -> None:
    with pytest.raises(InputError, match=r"found only 0 of 3 cubes .* \d+ by min_unique_ids"):
        CubeSampler(opened[1:2], SIZE, CubeRules(0, 0, 2)).draw(3)
    with pytest.raises(InputError, match=r"min_label_fraction"):
        CubeSampler(opened[:1], (12, 12, 12), CubeRules(0, 1, 0)).draw(3)
    with pytest.raises(InputError, match=r"found only 1 of 2 .* 199 by drawn before"):
        CubeSampler(opened[1:2], (9, 9, 11), CubeRules(0, 0, 0)).draw(2)


def test_a_cube_larger_than_every_source_is_refused(opened: list[OpenEntry]) -> None:
    with pytest.raises(InputError, match=r"\[19, 4, 4\] voxels is larger than every source"):
        CubeSampler(opened, (19, 4, 4))
    assert {c.source for c in CubeSampler(opened, (10, 9, 9)).draw(5)} == {0}, "where it fits"


BEYOND = Roi((0, 4, 3), (5, 10, 8))  # of labels, in raw of (9, 14, 13): to its end along y


def write_beyond(folder: Path, roi: dict[str, Any] | None = None) -> Path:
    """Labels in a part of raw, and a validation entry without labels beside them."""
    rng = np.random.default_rng(0)
    for name, values, first in (
        ("raw", rng.integers(0, 255, (9, 14, 13), np.uint8), (0, 0, 0)),
        ("labels", rng.integers(1, 9, BEYOND.shape, np.uint8), BEYOND.offset),
    ):
        z, y, x = (float(s * f) for s, f in zip(VOXEL_SIZE, first, strict=True))
        store = create_ome_zarr_array(
            folder / "x.zarr", name, values.shape, values.dtype, "zyx", (40.0, 8.0, 8.5),
            (z, y, x), (4, 4, 4), {},
        )  # fmt: skip
        store[...] = values
    source = {"id": "part", "raw": "x.zarr/raw", "labels": "x.zarr/labels"}
    held = {"id": "held", "raw": "x.zarr/raw", "roi": {"offset": [5, 0, 0], "shape": [4, 14, 13]}}
    content = {"training": [source | ({"roi": roi} if roi else {})], "validation": [held]}
    path = folder / "sources.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("size", [(4, 5, 6), (3, 4, 9)])
@pytest.mark.parametrize(
    "roi",
    [
        None,
        {"offset": [0, 2, 0], "shape": [5, 8, 7]},
        {"offset": [0, -1, 1], "shape": [5, 4, 9], "beyond_labels": True},
    ],
    ids=["all labels", "short of two sides", "beyond"],
)
def test_cubes_beyond_the_labels_are_all_that_the_rule_allows(
    tmp_path: Path, roi: dict[str, Any] | None, size: tuple[int, int, int]
) -> None:
    (entry,) = parse_datalist(write_beyond(tmp_path, roi)).training
    opened = open_entry(entry)
    begin, end = list(opened.roi.begin), list(opened.roi.end)
    for axis, whole in enumerate((9, 14, 13)):
        if begin[axis] <= BEYOND.begin[axis]:
            begin[axis] = 0
        if end[axis] >= BEYOND.end[axis]:
            end[axis] = whole
    centres = opened.roi.intersect(BEYOND)
    allowed = {
        corner
        for corner in np.ndindex(9, 14, 13)
        if all(b <= c and c + s <= e for b, c, s, e in zip(begin, corner, size, end, strict=True))
        and centres.contains(Coordinate(c + s // 2 for c, s in zip(corner, size, strict=True)))
    }
    sampler = CubeSampler([opened], size, CubeRules(0, 0, 0), beyond_labels=True)
    found = sampler.draw(len(allowed))
    assert {tuple(cube.roi.offset) for cube in found} == allowed


def test_cubes_beyond_the_labels_stay_out_of_validation_and_keep_their_places(
    tmp_path: Path,
) -> None:
    path = write_beyond(tmp_path)
    rules = {"min_ground_truth_fraction": 0.3, "min_label_fraction": 0, "min_unique_ids": 0}
    cubes(str(path), f"{tmp_path}/c.json", (4, 5, 6), 40, beyond_labels=True, **rules)
    found = [open_entry(entry) for entry in parse_datalist(tmp_path / "c.json").training]
    assert all(opened.roi.end[0] <= 5 for opened in found), "validation begins there"
    inside = [opened.roi.intersect(BEYOND).size / opened.roi.size for opened in found]
    assert min(inside) >= 0.3 and max(inside) == 1 and len(set(inside)) > 5
    for opened, share in zip(found, inside, strict=True):
        labels, annotated = opened.read_labels(opened.roi)
        assert annotated.mean() == pytest.approx(share)
        assert opened.entry.beyond_labels == (share < 1)
        assert (labels[annotated] > 0).all() and not labels[~annotated].any()


def one_source(folder: Path, labels: NDArray[Any], **fields: str) -> OpenEntry:
    """An entry of raw and labels on the same voxels."""
    np.save(folder / "raw.npy", np.ones(labels.shape, np.uint8))
    np.save(folder / "labels.npy", labels)
    size = {"raw": VOXEL_SIZE, "labels": VOXEL_SIZE}
    entry = {"id": "a", "raw": "raw.npy", "labels": "labels.npy", "voxel_size_nm": size, **fields}
    (folder / "one.json").write_text(json.dumps({"training": [entry]}))
    return open_entry(parse_datalist(folder / "one.json").training[0])


def test_a_mask_that_hides_nearly_everything_leaves_no_cube(tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", np.arange(9 * 8 * 7).reshape(9, 8, 7) < 2)
    opened = one_source(tmp_path, np.ones((9, 8, 7), np.uint8), mask="mask.npy")
    with pytest.raises(InputError, match="rejected: 200 by min_ground_truth_fraction"):
        CubeSampler([opened], (4, 4, 4)).draw(2)


def test_labels_may_be_their_own_mask(tmp_path: Path) -> None:
    labels = np.zeros((9, 8, 7), np.uint8)
    labels[2:7] = 5
    opened = one_source(tmp_path, labels, mask="labels.npy")
    for cube in CubeSampler([opened], (4, 3, 2), CubeRules(0.75, 1, 1)).draw(9):
        assert 1 <= cube.roi.begin[0] <= 4, "three of its four sections lie within 2 to 6"


def test_objects_of_one_voxel_and_ids_of_64_bits_count(tmp_path: Path) -> None:
    labels = np.zeros((9, 8, 7), np.uint64)
    labels[4, 4, 3], labels[4, 4, 4] = 7, 2**32 + 7
    opened = one_source(tmp_path, labels)
    found = CubeSampler([opened], (3, 3, 3), CubeRules(0, 0, 2)).draw(3)
    inside = [c.roi.contains(Roi((4, 4, 3), (1, 1, 2))) for c in found]
    assert inside == [True] * 3
    with pytest.raises(InputError, match="by min_unique_ids"):
        CubeSampler([opened], (3, 3, 3), CubeRules(0, 0, 3)).draw(1)


def test_a_source_is_opened_once_however_many_cubes_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens: list[Path] = []

    def counted(path: Path) -> NDArray[Any]:
        opens.append(path)
        found: NDArray[Any] = np.load(path, mmap_mode="r")
        return found

    monkeypatch.setattr("custom.file_arrays._open_npy", counted)
    opened = one_source(tmp_path, np.ones((9, 8, 7), np.uint8))
    before = len(opens)
    sampler = CubeSampler([opened], (3, 3, 3), CubeRules(0, 0, 2))
    with pytest.raises(InputError, match="500 by min_unique_ids"):
        sampler.draw(5)
    assert len(opens) == before, "open_entry has opened the labels for all reads to come"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CubeRules(min_label_fraction=1.5), "min_label_fraction must be a number from 0"),
        (lambda: CubeRules(min_ground_truth_fraction=True), "min_ground_truth_fraction"),
        (lambda: CubeRules(min_unique_ids=-1), "min_unique_ids must be a whole number"),
        (lambda: CubeSampler([], SIZE, weights="big"), "weights must be uniform or size"),
    ],
)
def test_mistakes(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_patterns() -> None:
    names = ["jrc_hela", "jrc_cos7", "fib25"]
    assert [n for n in names if matching(n, ["jrc_*"], ["*cos*"])] == ["jrc_hela"]


# --- from datalist to datalist ---


def test_the_new_datalist_opens_to_the_same_cubes(sources: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "cubes.json"
    cubes(str(sources), str(out), size=SIZE, count=9, exclude="bare", seed=2)
    written = parse_datalist(out)
    assert [e.id for e in written.test] == ["held"]
    assert len({e.id for e in written.training}) == 9
    big = {e.id: open_entry(e) for e in parse_datalist(sources).training}
    drawn = CubeSampler([big["large"], big["small"]], SIZE, seed=2).draw(9)
    for entry, cube in zip(written.training, drawn, strict=True):
        here, there = open_entry(entry), list(big.values())[cube.source]
        assert here.roi == cube.roi
        np.testing.assert_array_equal(here.read_raw(here.roi), there.read_raw(cube.roi))
        for one, other in zip(here.read_labels(here.roi), there.read_labels(cube.roi), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_same_command_again_is_fine_another_is_refused(sources: Path, tmp_path: Path) -> None:
    out = tmp_path / "cubes.json"
    for _ in range(2):
        cubes(str(sources), str(out), size=4, count=3)
    before = out.read_text()
    with pytest.raises(SystemExit, match="exists and holds something else"):
        cubes(str(sources), str(out), size=4, count=4)
    assert out.read_text() == before


def test_a_source_that_a_cube_does_not_fit_into_is_named(
    sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cubes(str(sources), str(tmp_path / "cubes.json"), size=(9, 10, 9), count=3)
    printed = capsys.readouterr().out
    assert "left out: 'small', which is smaller" in printed
    assert "left out: 'bare'" in printed
    assert "'large'" not in printed


def test_a_source_that_is_all_0_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all 0"):
        one_source(tmp_path, np.zeros((9, 8, 7), np.uint8))
    with pytest.raises(SystemExit, match=r"labels of entry 'a' .*labels.npy'\) are all 0"):
        cubes(str(tmp_path / "one.json"), str(tmp_path / "cubes.json"), size=3, count=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 4, "beyond_labels": "yes"}, "beyond_labels must be True or False, got 'yes'"),
        ({"size": 0}, "size must be one or three whole numbers from 1 on, got 0"),
        ({"size": 2.5}, "size must be one or three whole numbers from 1 on, got 2.5"),
        ({"size": (4, 0, 4)}, "size must be 3 whole numbers from 1 on"),
        ({"size": 4, "seed": -1}, "seed must be a whole number from 0 on, got -1"),
        ({"size": 4, "seed": "x"}, "seed must be a whole number from 0 on, got 'x'"),
        ({"size": 4, "section": 3}, "no section '3'; known are training"),
        ({"size": 4, "include": 7}, r"matches include \['7'\]"),
        ({"size": 4, "count": 0}, "count must be a whole number from 1 on, got 0"),
        ({"size": 4, "include": "x*"}, "no entry of section 'training' .* its ids are: large"),
        ({"size": 4, "cuont": 3}, "there is no option --cuont"),
        ({"size": 4, "section": "train"}, "did you mean 'training'"),
    ],
)
def test_mistakes_write_nothing(
    sources: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    out = tmp_path / "cubes.json"
    with pytest.raises(SystemExit, match=message):
        cubes(str(sources), str(out), **arguments)
    assert not out.exists()


def test_an_id_that_looks_like_a_number_may_be_named(tmp_path: Path) -> None:
    labels = np.ones((9, 8, 7), np.uint8)
    one_source(tmp_path, labels)
    given = json.loads((tmp_path / "one.json").read_text())
    given["training"][0]["id"] = "7"
    (tmp_path / "one.json").write_text(json.dumps(given))
    cubes(str(tmp_path / "one.json"), str(tmp_path / "out.json"), size=3, count=2, include=7)
    assert {e.id for e in parse_datalist(tmp_path / "out.json").training} == {"7-0000", "7-0001"}


def test_a_folder_in_the_place_of_the_new_datalist_is_a_sentence(
    sources: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="cannot be read or written"):
        cubes(str(sources), str(tmp_path), size=4, count=1)


def test_an_argument_too_many_is_refused_before_anything_is_drawn(
    sources: Path, tmp_path: Path
) -> None:
    options = [4, 1, "training", "uniform", 0.0, 0.0, 1, "*", (), 0, False]
    with pytest.raises(SystemExit, match="an argument too many: 'more'"):
        cubes(str(sources), str(tmp_path / "cubes.json"), *options, "more")
    assert not (tmp_path / "cubes.json").exists()
