import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts.cubes import cubes

from custom.datalist import OpenEntry, open_entry, parse_datalist
from custom.errors import InputError
from custom.sampling import CubeRules, CubeSampler, matching

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be 3 whole numbers from 1 on"),
        ({"size": 4, "count": 0}, "count must be 1 whole numbers from 1 on"),
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
