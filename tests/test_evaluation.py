import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from PIL import Image

from custom.errors import InputError
from custom.evaluation import Scores, SegmentationEvaluator
from custom.metrics import (
    adapted_rand_error,
    class_counts,
    class_scores,
    variation_of_information,
)
from custom.volumes import create_ome_zarr_array

ROOT = Path(__file__).resolve().parents[1]
VOXEL_SIZE = (40.0, 8.0, 10.0)
SHAPE = (12, 20, 26)
RAW_OFFSET = (400.0, 0.0, 80.0)
ROI = {"offset": [2, 3, 4], "shape": [8, 14, 18]}
INSIDE = (slice(2, 10), slice(3, 17), slice(4, 22))


def write(
    group: Path,
    path: str,
    array: NDArray[Any],
    first: tuple[int, int, int] = (0, 0, 0),
    voxel_size: tuple[float, float, float] = VOXEL_SIZE,
    attributes: Mapping[str, Any] | None = None,
    version: str = "0.4",
) -> None:
    """An array whose first voxel is the raw voxel ``first``."""
    z, y, x = (o + f * s for o, f, s in zip(RAW_OFFSET, first, voxel_size, strict=True))
    store = create_ome_zarr_array(
        group,
        path,
        array.shape,
        array.dtype,
        "zyx",
        voxel_size,
        (z, y, x),
        array.shape,
        attributes or {},
        version,
    )
    store[...] = array


def truth() -> NDArray[np.uint32]:
    """Eight bricks and an unlabelled corner."""
    z, y, x = np.indices(SHAPE)
    labels = (1 + (z >= 6) + 2 * (y >= 9) + 4 * (x >= 12)).astype(np.uint32)
    labels[:4, :6, :7] = 0
    return labels


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    write(tmp_path / "data.zarr", "raw", rng.integers(0, 255, SHAPE, dtype=np.uint8))
    write(tmp_path / "data.zarr", "labels/cells", truth())
    source = {"raw": "data.zarr/raw", "labels": "data.zarr/labels/cells"}
    datalist = {"name": "bricks", "test": [{"id": "cube", **source, "roi": ROI}]}
    (tmp_path / "datalist.json").write_text(json.dumps(datalist))
    return tmp_path


def segmentation() -> NDArray[np.uint64]:
    """The truth with ids that need 64 bits, two bricks merged, one cut, a hole."""
    labels = truth().astype(np.uint64)
    labels[labels == 2] = 1
    labels[:, 12:][labels[:, 12:] == 7] = 900
    labels[9, 10, 15] = 0
    return np.where(labels > 0, labels + np.uint64(2**40), labels)


def write_segmentation(folder: Path, array: NDArray[Any], **where: Any) -> None:
    write(folder / "output" / "cube.zarr", "labels/segmentation", array, **where)


def evaluate(folder: Path, section: str = "test") -> list[Any]:
    return SegmentationEvaluator(
        folder / "datalist.json", section, folder / "output", folder / "eval"
    ).run()


def test_scores_are_the_metrics_inside_the_roi(data: Path) -> None:
    write_segmentation(data, segmentation())
    (scores,) = evaluate(data)
    expected_truth, found = truth()[INSIDE], segmentation()[INSIDE]
    split, merge = variation_of_information(expected_truth, found)
    assert (scores.voi_split, scores.voi_merge) == (split, merge)
    assert scores.voi == split + merge > 0.2
    assert scores.adapted_rand == adapted_rand_error(expected_truth, found) > 0
    assert (scores.truth_objects, scores.segments) == (8, 8)
    assert scores.voxels == np.count_nonzero(expected_truth)


def test_voxels_beyond_the_labels_do_not_count(data: Path) -> None:
    write_segmentation(data, segmentation())
    (inside,) = evaluate(data)
    write(data / "data.zarr", "labels/part", truth()[INSIDE], first=(2, 3, 4))
    datalist = json.loads((data / "datalist.json").read_text())
    roi = {"offset": [-2, -3, -4], "shape": list(SHAPE), "beyond_labels": True}
    datalist["test"][0] |= {"labels": "data.zarr/labels/part", "roi": roi}
    (data / "datalist.json").write_text(json.dumps(datalist))
    assert evaluate(data) == [inside]


def test_unannotated_classes_do_not_count(data: Path) -> None:
    write_segmentation(data, segmentation())
    write(data / "data.zarr", "labels/low", np.where(truth() < 5, truth(), 0))
    datalist = json.loads((data / "datalist.json").read_text())
    del datalist["test"][0]["labels"]
    inside = truth()[INSIDE]
    for high, claimed in (
        ("data.zarr/labels/cells", inside > 0),
        (None, (inside > 0) & (inside < 5)),
    ):
        datalist["test"][0]["classes"] = {"high": high, "low": "data.zarr/labels/low"}
        (data / "datalist.json").write_text(json.dumps(datalist))
        (scores,) = evaluate(data)
        assert scores.voxels == np.count_nonzero(claimed)
        assert scores.truth_objects == (2 if high else 1)


@pytest.mark.parametrize(
    ("first", "kept"),
    [
        ((2, 3, 4), INSIDE),
        ((1, 5, 0), (slice(1, 12), slice(5, 20), slice(0, 13))),
    ],
    ids=["the ROI alone", "a part of it"],
)
def test_a_segmentation_is_placed_by_its_position(
    data: Path, first: tuple[int, int, int], kept: tuple[slice, slice, slice]
) -> None:
    write_segmentation(data, segmentation()[kept], first=first)
    (scores,) = evaluate(data)
    shared = tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(kept, INSIDE, strict=True)
    )
    split, merge = variation_of_information(truth()[shared], segmentation()[shared])
    assert (scores.voi_split, scores.voi_merge) == (split, merge)
    assert scores.voxels == np.count_nonzero(truth()[shared])


def test_a_partly_covered_roi_is_said(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_segmentation(data, segmentation()[:6])
    evaluate(data)
    assert "covers" in caplog.text


def test_renaming_the_truth_scores_zero(data: Path) -> None:
    write_segmentation(data, truth().astype(np.uint64) * 7 + 3)
    (scores,) = evaluate(data)
    assert (scores.voi, scores.adapted_rand) == (0.0, 0.0)


def test_json_and_csv_hold_the_scores_and_nothing_else_is_left(data: Path) -> None:
    write_segmentation(data, segmentation())
    (scores,) = evaluate(data)
    assert {path.name for path in (data / "eval").iterdir()} == {
        "scores.json",
        "scores.csv",
        "cube.png",
        "cube_splits.csv",
        "cube_merges.csv",
        "cube.blocks",
    }
    content = json.loads((data / "eval" / "scores.json").read_text())
    assert content["section"] == "test"
    assert Scores(**content["entries"][0]) == scores
    with (data / "eval" / "scores.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["id"] == "cube"
    assert float(row["voi_split"]) == scores.voi_split
    assert int(row["voxels"]) == scores.voxels


def test_the_picture_shows_agreement_as_equal_colours(data: Path) -> None:
    write_segmentation(data, truth().astype(np.uint64) + 5)
    evaluate(data)
    image = np.asarray(Image.open(data / "eval" / "cube.png"))
    width = image.shape[1] // 3
    raw, true, found = (image[16:, i * width : (i + 1) * width] for i in range(3))
    first_row = slice(0, 14)
    np.testing.assert_array_equal(true[first_row], found[first_row])
    assert (true != raw).any()


def without_labels(entry: dict[str, Any]) -> None:
    del entry["labels"]


def in_the_unlabelled_corner(entry: dict[str, Any]) -> None:
    entry["roi"] = {"offset": [0, 0, 0], "shape": [4, 6, 7]}


def unchanged(entry: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        (without_labels, {}, "entry 'cube' has no labels"),
        (in_the_unlabelled_corner, {}, "entry 'cube'.* all 0"),
        (unchanged, {"voxel_size": (40.0, 8.0, 8.0)}, "has voxels of"),
        (unchanged, {"first": (0.0, 0.5, 0.0)}, "not whole numbers"),
        (unchanged, {"first": (0, 0, 40)}, "covers none of the ROI"),
    ],
    ids=["no labels", "no truth", "other voxels", "between voxels", "elsewhere"],
)
def test_what_cannot_be_compared_is_said(
    data: Path, change: Any, where: Mapping[str, Any], message: str
) -> None:
    datalist = json.loads((data / "datalist.json").read_text())
    change(datalist["test"][0])
    (data / "datalist.json").write_text(json.dumps(datalist))
    write_segmentation(data, segmentation(), **where)
    with pytest.raises(InputError, match=message):
        evaluate(data)
    assert not (data / "eval").exists()


def test_entries_without_labels_are_named_and_the_others_scored(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datalist = json.loads((data / "datalist.json").read_text())
    bare = {**datalist["test"][0], "id": "bare"}
    without_labels(bare)
    datalist["test"].insert(0, bare)
    (data / "datalist.json").write_text(json.dumps(datalist))
    write_segmentation(data, segmentation())
    assert [scores.id for scores in evaluate(data)] == ["cube"]
    assert "without labels, so not scored: bare" in caplog.text


def test_a_segmentation_over_unlabelled_voxels_alone_is_said(data: Path) -> None:
    write_segmentation(data, segmentation()[:4, :6, :7])
    with pytest.raises(InputError, match="all zero where the segmentation is"):
        evaluate(data)


def test_a_missing_segmentation_says_to_run_inference(data: Path) -> None:
    with pytest.raises(InputError, match=r"no segmentation of entry 'cube'.*run inference first"):
        evaluate(data)


@pytest.mark.parametrize(
    ("marker", "refused"),
    [
        ({"complete": False}, True),
        ({"complete": True, "model": {"id": "a"}}, False),
        ("0.1", False),
    ],
)
def test_an_unfinished_output_is_refused(data: Path, marker: Any, refused: bool) -> None:
    write_segmentation(data, segmentation())
    (data / "output" / "cube.zarr" / ".zattrs").write_text(json.dumps({"custom_inference": marker}))
    if refused:
        with pytest.raises(InputError, match="inference of entry 'cube' has not finished writing"):
            evaluate(data)
        assert not (data / "eval").exists()
    else:
        evaluate(data)
        content = json.loads((data / "eval" / "scores.json").read_text())
        assert content["outputs"]["cube"]["inference"] == marker
        assert "model_sha256" not in content["outputs"]["cube"]


def test_scores_of_objects_say_what_lowers_them(data: Path) -> None:
    write_segmentation(data, segmentation(), attributes={"segmentation": {"bias": -0.5}})
    group = data / "output" / "cube.zarr"
    write(group, "affinities", np.zeros(SHAPE, np.uint8), attributes={"model_sha256": "f00"})
    (scores,) = evaluate(data)
    content = json.loads((data / "eval" / "scores.json").read_text())
    assert content["outputs"]["cube"]["model_sha256"] == "f00"
    assert content["outputs"]["cube"]["segmentation"] == {"bias": -0.5}
    assert content["outputs"]["cube"]["path"].endswith("cube.zarr/labels/segmentation/s0")
    for name, score in (("splits", scores.voi_split), ("merges", scores.voi_merge)):
        with (data / "eval" / f"cube_{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        column = f"voi_{name.removesuffix('s')}"
        assert sum(float(row[f"{column}_part"]) for row in rows) == pytest.approx(score)
        worst = content[f"worst_{name}"]["cube"]
        assert worst[0][column] == float(rows[0][column]) > 0
    cut = content["worst_splits"]["cube"][0]
    assert cut["truth_id"] in (5, 7), "of the brick that was cut, or of the one with the hole"
    at = tuple(cut[axis] for axis in "zyx")
    assert (truth()[at], segmentation()[at]) == (cut["truth_id"], cut["segment_id"])
    place = [o + i * s for o, i, s in zip(RAW_OFFSET, at, VOXEL_SIZE, strict=True)]
    assert [cut[f"{axis}_nm"] for axis in "zyx"] == pytest.approx(place)


def test_an_empty_section_is_said(data: Path) -> None:
    with pytest.raises(InputError, match="has no entries in its section 'validation'"):
        evaluate(data, "validation")


@pytest.mark.parametrize("run_id", ["evaluating", "run"])
def test_the_configuration_runs_it(data: Path, run_id: str) -> None:
    write_segmentation(data, segmentation())
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundle" / "configs" / "evaluate.json"))
    parser["bundle_root"] = str(ROOT / "bundle")
    parser["datalist"] = str(data / "datalist.json")
    parser["output_dir"] = str(data / "output")
    parser["eval_dir"] = str(data / "eval")
    parser.parse()
    parser.get_parsed_content("initialize")
    parser.get_parsed_content(run_id)
    assert (data / "eval" / "scores.json").exists()


# --- skeletons ---


def add_skeletons(folder: Path, **changes: Any) -> None:
    """Along x through two bricks that are one segment, and through one that is whole."""
    (folder / "swc").mkdir()
    for name, z, y, xs in (("a", 3, 4, (13, 17, 21)), ("b", 4, 5, (8, 11)), ("c", 7, 4, (5, 11))):
        lines = [
            f"{i} 0 {80 + x * 10} {y * 8} {400 + z * 40} 1 {i - 1 or -1}"
            for i, x in enumerate(xs, start=1)
        ]
        (folder / "swc" / f"{name}.swc").write_text("\n".join(lines))
    datalist = json.loads((folder / "datalist.json").read_text())
    datalist["test"][0] |= {"skeletons": "swc", **changes}
    (folder / "datalist.json").write_text(json.dumps(datalist))


@pytest.mark.parametrize("labels", ["data.zarr/labels/cells", None])
def test_skeletons_have_an_expected_run_length(data: Path, labels: str | None) -> None:
    """Bricks 1 and 2 are one segment, so b and c are merged; a is whole."""
    write_segmentation(data, segmentation())
    add_skeletons(data, labels=labels)
    *objects, skeletons = evaluate(data)
    assert len(objects) == (labels is not None)
    assert skeletons.run.expected == pytest.approx(80 * 80 / (80 + 30 + 60))
    (row,) = json.loads((data / "eval" / "scores.json").read_text())["entries"]
    assert row["erl_nm"] == skeletons.run.expected
    assert (row["skeletons"], row["skeleton_nm"]) == (3, pytest.approx(170))
    assert row["edges_merged"] == pytest.approx(90 / 170)
    assert row["edges_correct"] == pytest.approx(80 / 170)
    assert ("voi" in row) == (labels is not None)
    with (data / "eval" / "scores.csv").open() as file:
        (written,) = csv.DictReader(file)
    assert float(written["erl_nm"]) == skeletons.run.expected


def test_skeletons_elsewhere_are_said(data: Path) -> None:
    write_segmentation(data, segmentation())
    add_skeletons(data)
    for path in (data / "swc").iterdir():
        path.write_text("1 0 0 0 0 1 -1\n2 0 1 1 1 1 1")
    with pytest.raises(InputError, match=r"no edge of the skeletons of entry 'cube'.*in nm"):
        evaluate(data)


# --- sections ---


def assert_painted_alike(folder: Path) -> None:
    """Truth and segmentation have the same picture, not that of raw."""
    image = np.asarray(Image.open(folder / "eval" / "cube.png"))
    width = image.shape[1] // 3
    raw, true, found = (image[16:200, i * width : (i + 1) * width] for i in range(3))
    np.testing.assert_array_equal(true, found)
    assert (true != raw).any()


def test_segments_of_sections_are_compared_section_by_section(data: Path) -> None:
    apart = truth().astype(np.uint64) * 100 + np.arange(SHAPE[0], dtype=np.uint64)[:, None, None]
    write_segmentation(data, np.where(truth() > 0, apart, 0), attributes={"dimensions": 2})
    (scores,) = evaluate(data)
    assert (scores.voi, scores.adapted_rand) == (0, 0)
    inside = truth()[INSIDE]
    pieces = sum(len(set(section[section > 0])) for section in inside)
    assert (scores.truth_objects, scores.segments) == (pieces, pieces)
    assert_painted_alike(data)


def test_the_same_segments_without_the_attribute_are_split(data: Path) -> None:
    apart = truth().astype(np.uint64) * 100 + np.arange(SHAPE[0], dtype=np.uint64)[:, None, None]
    write_segmentation(data, np.where(truth() > 0, apart, 0), attributes={"dimensions": 3})
    (scores,) = evaluate(data)
    assert scores.voi_split > 1


# --- classes ---

NAMES = ["background", "mito", "er", "nucleus"]


def write_classes(folder: Path, true: NDArray[Any], found: NDArray[Any], **meant: Any) -> None:
    write(folder / "data.zarr", "labels/classes", true)
    datalist = json.loads((folder / "datalist.json").read_text())
    datalist["test"][0]["labels"] = "data.zarr/labels/classes"
    (folder / "datalist.json").write_text(json.dumps(datalist))
    write_segmentation(
        folder, found.astype(np.uint64), attributes={"classes": {"names": NAMES} | meant}
    )


def class_truth() -> NDArray[np.uint8]:
    """Background, mito and er; no nucleus."""
    return (truth() % 3).astype(np.uint8)


def test_classes_score_dice_and_iou(data: Path) -> None:
    found = class_truth()
    found[:, 10:] = (found[:, 10:] + 1) % 3
    found[3, 4, 5] = 3
    write_classes(data, class_truth(), found)
    (scores,) = evaluate(data)
    counts = class_counts(class_truth()[INSIDE], found[INSIDE], 4)
    assert scores.values == class_scores(counts, NAMES)
    assert 0 < scores.values["iou"] < scores.values["dice"] < 1
    assert "dice_nucleus" not in scores.values
    assert scores.voxels == 8 * 14 * 18, "background counts"
    assert list(scores.row()) == ["id", "dice", "iou", "dice_mito", "dice_er", "iou_mito",
                                  "iou_er", "voxels"]  # fmt: skip
    content = json.loads((data / "eval" / "scores.json").read_text())
    assert content["entries"] == [scores.row()]
    with (data / "eval" / "scores.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["dice_er"]) == scores.values["dice_er"]


def test_a_perfect_class_segmentation_has_dice_one_and_the_truths_colours(data: Path) -> None:
    write_classes(data, class_truth(), class_truth())
    (scores,) = evaluate(data)
    assert {value for name, value in scores.values.items()} == {1.0}
    assert_painted_alike(data)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_inference_said_of_its_voxels_is_read_in_both_formats(
    data: Path, version: str
) -> None:
    write_segmentation(
        data, segmentation(), attributes={"classes": {"names": NAMES}}, version=version
    )
    with pytest.raises(InputError, match="hold the id"):  # the truth has 8 objects, no 4 classes
        evaluate(data)


def test_classes_do_not_count_where_the_mask_hides_them(data: Path) -> None:
    found = class_truth()
    found[:, 10:] = (found[:, 10:] + 1) % 3
    write_classes(data, class_truth(), found)
    mask = np.ones(SHAPE, np.uint8)
    mask[:, 10:] = 0
    write(data / "data.zarr", "mask", mask)
    datalist = json.loads((data / "datalist.json").read_text())
    datalist["test"][0]["mask"] = "data.zarr/mask"
    (data / "datalist.json").write_text(json.dumps(datalist))
    (scores,) = evaluate(data)
    assert scores.values["dice"] == 1.0
    assert scores.voxels == 8 * 7 * 18


def test_entries_of_other_kinds_share_one_table(data: Path) -> None:
    write_classes(data, class_truth(), class_truth())
    datalist = json.loads((data / "datalist.json").read_text())
    objects = {**datalist["test"][0], "id": "objects", "labels": "data.zarr/labels/cells"}
    datalist["test"].append(objects)
    (data / "datalist.json").write_text(json.dumps(datalist))
    write(data / "output" / "objects.zarr", "labels/segmentation", segmentation())
    evaluate(data)
    with (data / "eval" / "scores.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["dice"], first["voi"], second["dice"]) == ("1.0", "", "")
    assert float(second["voi"]) > 0


@pytest.mark.parametrize(
    ("true", "message"),
    [
        (class_truth() + 2, r"entry 'cube' hold the id 4, .* num_classes 4"),
        (
            np.where(np.arange(SHAPE[0])[:, None, None] < 9, 0, class_truth()),
            "hold none of the classes mito, er, nucleus where the segmentation is",
        ),
    ],
    ids=["beyond", "background alone"],
)
def test_truth_that_is_not_of_these_classes_is_said(
    data: Path, true: NDArray[Any], message: str
) -> None:
    write_classes(data, true, class_truth()[:9])
    with pytest.raises(InputError, match=message):
        evaluate(data)


def test_labels_mean_at_evaluating_what_they_meant_in_training(data: Path) -> None:
    """Instances as foreground; one id that does not count."""
    inside = truth()[INSIDE]
    meant = {"names": ["background", "cell"], "class_of_labels": "foreground", "ignore_label": 7}
    write_classes(data, truth(), truth() > 0, **meant)
    (scores,) = evaluate(data)
    assert set(scores.values) == {"dice", "iou", "dice_cell", "iou_cell"}
    assert set(scores.values.values()) == {1.0}
    assert scores.voxels == np.count_nonzero(inside != 7) < inside.size


@pytest.mark.parametrize(("number", "plural"), [(1, ""), (2, "s"), (0, "s")])
def test_a_summary_has_the_singular_of_one(number: int, plural: str) -> None:
    line = Scores("a", 0.0, 0.0, 0.0, 0.0, number, number, number, 1.0, 1.0, 1.0).summary()
    assert line.endswith(
        f", {number} segment{plural} for {number} object{plural}, {number} voxel{plural}"
    )
