import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
import h5py
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scripts import datalists
from scripts.splits import Split, entry_id

from custom.datalist import open_entry, parse_datalist
from custom.errors import InputError

Size = tuple[float, float, float]
IDS = [f"crop{number}" for number in range(1, 21)]


def refused(command: Callable[[], None]) -> str:
    """The sentence that a command ends with."""
    with pytest.raises(SystemExit) as stopped:
        command()
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


def ids_of(out: Path) -> dict[str, list[str]]:
    """Ids of the sections; every entry opens."""
    datalist = parse_datalist(out)
    for entry in datalist.entries():
        open_entry(entry)
    return {
        name: [e.id for e in datalist.section(name)] for name in ("training", "validation", "test")
    }


# ---------------------------------------------------------------- splits


@given(
    st.sets(st.sampled_from(IDS), min_size=3),
    st.floats(0.01, 0.4),
    st.floats(0.01, 0.4),
    st.integers(0, 99),
    st.randoms(use_true_random=False),
)
def test_a_drawn_split_has_every_entry_once_and_does_not_depend_on_their_order(
    ids: set[str], validation: float, test: float, seed: int, random: Any
) -> None:
    split = Split(f"{validation}", f"{test}", f"{seed}")
    found = split.sections(sorted(ids))
    assert sorted(found["training"] + found["validation"] + found["test"]) == sorted(ids)
    assert len(found["validation"]) == max(1, round(validation * len(ids)))
    assert len(found["test"]) == max(1, round(test * len(ids)))
    shuffled = sorted(ids)
    random.shuffle(shuffled)
    assert split.sections(shuffled) == found


def test_another_seed_draws_others() -> None:
    drawn = {tuple(Split("0.3", seed=f"{seed}").sections(IDS)["validation"]) for seed in range(9)}
    assert len(drawn) > 5


def test_a_fraction_is_drawn_from_what_is_not_named() -> None:
    for seed in range(20):
        found = Split("0.5", "crop1,crop2?", f"{seed}").sections(["crop1", "crop20", "a", "b", "c"])
        assert found["test"] == ["crop1", "crop20"]
        assert len(found["validation"]) == 2
        assert len(found["training"]) == 1


def test_names_with_stars_take_all_that_match_and_nothing_else() -> None:
    found = Split("a-crop1*", "b-*").sections(["a-crop1", "a-crop12", "a-crop2", "b-crop1"])
    assert found == {
        "validation": ["a-crop1", "a-crop12"],
        "test": ["b-crop1"],
        "training": ["a-crop2"],
    }


def test_an_id_that_looks_like_a_number_is_an_id() -> None:
    assert Split("1", "0.5").sections(["0.5", "1", "2"]) == {
        "validation": ["1"],
        "test": ["0.5"],
        "training": ["2"],
    }


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split("crp1"), "--validation names 'crp1', which is not there; did you mean 'crop1'"),
        (Split("crop1", "crop*"), "both in --validation and in --test"),
        (Split("1.5"), "--validation must be ids or a fraction between 0 and 1, got 1.5"),
        (Split("", "0"), "--test must be ids or a fraction between 0 and 1, got 0"),
        (Split("0.9", "0.1"), "none of 20 entries for training"),
        (Split("nan"), "a fraction between 0 and 1"),
        (Split("0.5", seed="-1"), "--seed must be a whole number, got '-1'"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(split: Split, message: str) -> None:
    with pytest.raises(InputError) as found:
        split.sections(IDS)
    assert message in str(found.value)


@given(st.text(max_size=8))
def test_any_name_becomes_an_id_that_a_datalist_takes(name: str) -> None:
    found = entry_id(name)
    assert found[0] not in ".-"
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in found)
    assert entry_id(found) == found


# ---------------------------------------------------------------- CREMI


def write_cremi(path: Path, labelled: bool = True) -> Path:
    """Raw (6, 9, 10), labels of its inner part as in the padded files."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        raw = file.create_dataset("volumes/raw", data=rng.integers(0, 256, (6, 9, 10), "uint8"))
        raw.attrs["resolution"] = (40.0, 4.0, 4.0)
        if labelled:
            labels = rng.integers(1, 9, (3, 4, 5)).astype(np.uint64)
            found = file.create_dataset("volumes/labels/neuron_ids", data=labels)
            found.attrs["resolution"] = (40.0, 4.0, 4.0)
            found.attrs["offset"] = (80.0, 12.0, 16.0)
    return path


def test_cremi_files_become_entries_with_labels_at_their_offset(tmp_path: Path) -> None:
    files = [str(write_cremi(tmp_path / f"sample_{name}.hdf")) for name in "CAB"]
    out = tmp_path / "cremi.json"
    datalists.cremi(*files, str(out), validation="sample_C")
    assert ids_of(out) == {
        "training": ["sample_A", "sample_B"],
        "validation": ["sample_C"],
        "test": [],
    }
    entry = open_entry(parse_datalist(out).training[0])
    assert entry.voxel_size_nm == (40, 4, 4)
    assert entry.labels_offset == (2, 3, 4)
    assert parse_datalist(out).name == "cremi"


def test_a_cremi_file_without_labels_is_for_test_alone(tmp_path: Path) -> None:
    files = [str(write_cremi(tmp_path / "A.hdf")), str(write_cremi(tmp_path / "A+.hdf", False))]
    out = tmp_path / "cremi.json"
    assert "'A_' has no labels; name it in --test" in refused(
        lambda: datalists.cremi(*files, str(out))
    )
    assert not out.exists()
    datalists.cremi(*files, str(out), test="A_")
    assert ids_of(out)["test"] == ["A_"]
    assert parse_datalist(out).test[0].labels is None


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    files = [str(write_cremi(folder / "A.hdf")) for folder in (tmp_path, tmp_path / "more")]
    assert "'A' more than once" in refused(lambda: datalists.cremi(*files, f"{tmp_path}/x.json"))


@pytest.mark.parametrize("paths", [[], ["x.json"], ["A.hdf", "B.hdf"]])
def test_the_datalist_to_write_is_asked_for(paths: list[str]) -> None:
    assert "ends in .json" in refused(lambda: datalists.cremi(*paths))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    sentence = refused(lambda: datalists.cremi(f"{tmp_path}/no.hdf", f"{tmp_path}/x.json"))
    assert "no.hdf" in sentence


# ---------------------------------------------------------------- pairs


def write_pairs(folder: Path, images: Sequence[str], labels: Sequence[str]) -> Path:
    for name in (*images, *labels):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(len(name)).integers(1, 200, (3, 4, 5)).astype(np.uint8)
        tifffile.imwrite(path, values, photometric="minisblack")
    return folder


PATTERNS = {
    "two folders": ("images/*.tif", "labels/*.tif"),
    "endings": ("*_raw.tif", "*_cells.tif"),
    "a folder each": ("./*/raw.tif", "./*/truth.tif"),
}


@pytest.mark.parametrize("layout", PATTERNS)
def test_an_image_and_its_labels_have_the_same_text_at_the_star(
    tmp_path: Path, layout: str
) -> None:
    images, labels = PATTERNS[layout]
    names = ["b", "a1", "a10"]
    filled = [[p.replace("*", n) for n in names] for p in (images, labels)]
    folder = write_pairs(tmp_path / "data", *filled)
    (folder / images.replace("*", "._a1")).parent.mkdir(exist_ok=True)
    out = tmp_path / "x.json"
    datalists.pairs(str(folder), str(out), images, labels, voxel_size_nm="40,8,8", test="a1")
    assert ids_of(out) == {"training": ["a10", "b"], "validation": [], "test": ["a1"]}
    for entry in parse_datalist(out).entries():
        assert Path(entry.raw) == folder / images.replace("*", entry.id)
        assert Path(str(entry.labels)) == folder / labels.replace("*", entry.id)
        assert entry.raw_voxel_size_nm == entry.labels_voxel_size_nm == (40, 8, 8)


def test_images_may_be_finer_than_their_labels(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "data", ["images/a.tif"], ["labels/a.tif"])
    tifffile.imwrite(
        folder / "images/a.tif", np.zeros((3, 8, 10), np.uint8), photometric="minisblack"
    )
    out = tmp_path / "x.json"
    sizes = {"voxel_size_nm": "40,8,8", "raw_voxel_size_nm": "40,4,4"}
    datalists.pairs(str(folder), str(out), **sizes)
    entry = parse_datalist(out).training[0]
    assert (entry.raw_voxel_size_nm, entry.labels_voxel_size_nm) == ((40, 4, 4), (40, 8, 8))
    opened = open_entry(entry)
    assert (opened.raw.metadata.shape, opened.labels_offset) == ((3, 4, 5), (0, 0, 0))
    sizes["raw_voxel_size_nm"] = "four"
    sentence = refused(lambda: datalists.pairs(str(folder), str(out), **sizes))
    assert "--raw_voxel_size_nm must be one number or z,y,x, got 'four'" in sentence


def test_files_without_their_other_half_are_all_listed(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["images/a.tif", "images/b.tif"], ["labels/b.tif", "labels/c.tif"])
    sentence = refused(lambda: datalists.pairs(str(tmp_path), f"{tmp_path}/x.json"))
    assert "images/a.tif, labels/c.tif;" in sentence
    assert "b.tif" not in sentence


def test_labels_without_any_object_are_refused_before_writing(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["images/a.tif", "images/b.tif"], ["labels/a.tif", "labels/b.tif"])
    empty = np.zeros((3, 4, 5), np.uint8)
    tifffile.imwrite(tmp_path / "labels/b.tif", empty, photometric="minisblack")
    sentence = refused(
        lambda: datalists.pairs(str(tmp_path), f"{tmp_path}/x.json", voxel_size_nm="8")
    )
    assert "labels of entry 'b'" in sentence and "are all 0" in sentence
    assert not (tmp_path / "x.json").exists()


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["images/a.tif", "images/._a.tif"], ["labels/a.tif"])
    datalists.pairs(str(tmp_path), f"{tmp_path}/x.json", voxel_size_nm="8")
    assert ids_of(tmp_path / "x.json")["training"] == ["a"]


def test_files_without_a_voxel_size_need_one(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["images/a.tif"], ["labels/a.tif"])
    sentence = refused(lambda: datalists.pairs(str(tmp_path), f"{tmp_path}/x.json"))
    assert "has no voxel size" in sentence
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("pattern", ["images/a.tif", "*/*.tif", "../*.tif", "/x/*.tif", "*[1].tif"])
def test_a_pattern_has_one_star_and_stays_in_the_folder(tmp_path: Path, pattern: str) -> None:
    sentence = refused(lambda: datalists.pairs(str(tmp_path), f"{tmp_path}/x.json", pattern))
    assert "exactly one *" in sentence


@pytest.mark.parametrize("size", ["8,8", "eight", "0", "8,-8,8", "nan"])
def test_a_voxel_size_is_one_or_three_positive_numbers(tmp_path: Path, size: str) -> None:
    write_pairs(tmp_path, ["images/a.tif"], ["labels/a.tif"])
    sentence = refused(
        lambda: datalists.pairs(str(tmp_path), f"{tmp_path}/x.json", voxel_size_nm=size)
    )
    assert "--voxel_size_nm" in sentence


def test_nothing_that_matches_is_an_error(tmp_path: Path) -> None:
    sentence = refused(lambda: datalists.pairs(str(tmp_path), f"{tmp_path}/x.json"))
    assert "holds nothing that 'images/*.tif'" in sentence


# ---------------------------------------------------------------- CellMap


def write_levels(
    group: Path,
    sizes: Sequence[Size],
    offset: Size = (0, 0, 0),
    shape: Sequence[int] = (8, 6, 4),
    value: int = 3,
    annotation: Mapping[str, object] | None = None,
) -> None:
    """OME-Zarr 0.4 with a level of every voxel size, coarser ones smaller, centred as is right."""
    root = zarr.open_group(group, mode="w", zarr_format=2)
    datasets = []
    for number, size in enumerate(sizes):
        extent = [max(1, round(n * a / b)) for n, a, b in zip(shape, sizes[0], size, strict=True)]
        array = root.create_array(
            f"s{number}", data=np.full(extent, value, dtype=np.uint8), chunks=extent
        )
        if annotation is not None:
            array.attrs["cellmap"] = {"annotation": annotation}
        centre = [o + (b - a) / 2 for o, a, b in zip(offset, sizes[0], size, strict=True)]
        transforms = [
            {"type": "scale", "scale": list(size)},
            {"type": "translation", "translation": centre},
        ]
        datasets.append({"path": f"s{number}", "coordinateTransformations": transforms})
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    root.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


def ladder(*finest: float, levels: int = 3) -> list[Size]:
    z, y, x = finest
    return [(z * 2**n, y * 2**n, x * 2**n) for n in range(levels)]


FINE, COARSE = ladder(5, 4, 3), ladder(10, 8, 6)


def write_tree(tree: Path, em: str = "fibsem-uint8") -> Path:
    """Raw from 10 x 8 x 6 nm on; three crops with mitochondria, from 5 x 4 x 3 nm on."""
    zarr.open_group(tree, mode="w", zarr_format=2)
    write_levels(tree / "recon-1" / "em" / em, COARSE, shape=(40, 40, 40))
    for number, crop in enumerate(("crop1", "crop2", "crop10")):
        # a corner on the grid of every level of raw
        corner = [-s / 4 + s * 4 * number for s in COARSE[0]]
        write_crop(tree, crop, offset=(corner[0], corner[1], corner[2]))
    write_crop(tree, "crop11", label_class="nuc", offset=(0, 0, 0))
    for folder in ("recon-1", "recon-1/em", "recon-1/labels", "recon-1/labels/groundtruth"):
        zarr.open_group(tree / folder, mode="a", zarr_format=2)
    return tree


def write_crop(tree: Path, crop: str, label_class: str = "mito", **levels: Any) -> None:
    folder = tree / "recon-1" / "labels" / "groundtruth" / crop
    zarr.open_group(folder, mode="a", zarr_format=2)
    write_levels(folder / label_class, **{"sizes": FINE, **levels})


def test_crops_become_entries_at_the_levels_with_the_voxel_size(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "jrc_x-1.zarr")
    out = tmp_path / "mito.json"
    datalists.cellmap(
        str(tree), str(out), label_class="mito", voxel_size_nm="20,16,12", validation="*-crop2"
    )
    assert ids_of(out) == {
        "training": ["jrc_x-1-crop1", "jrc_x-1-crop10"],
        "validation": ["jrc_x-1-crop2"],
        "test": [],
    }
    entry = parse_datalist(out).validation[0]
    assert entry.raw == str(tree / "recon-1/em/fibsem-uint8/s1")
    assert entry.labels == str(tree / "recon-1/labels/groundtruth/crop2/mito/s2")
    opened = open_entry(entry)
    assert opened.voxel_size_nm == (20, 16, 12)
    assert opened.labels_offset == (2, 2, 2)


def test_a_finer_level_of_raw_is_placed_by_its_position(tmp_path: Path) -> None:
    """Levels lie by fractions of a voxel apart, and so do crops."""
    tree, out = write_tree(tmp_path / "a.zarr"), tmp_path / "mito.json"
    write_crop(tree, "crop3", offset=(-1.0, -2, -1.5))
    sizes = {"voxel_size_nm": "20,16,12", "raw_voxel_size_nm": "10,8,6"}
    datalists.cellmap(str(tree), str(out), label_class="mito", **sizes)
    entries = {entry.id: open_entry(entry) for entry in parse_datalist(out).training}
    for opened in entries.values():
        assert opened.entry.raw == str(tree / "recon-1/em/fibsem-uint8/s0")
        assert opened.voxel_size_nm == (20, 16, 12)
        assert [axis.ratio for axis in opened.raw_axes] == [2, 2, 2]
        assert opened.labels is not None
        labels, first = opened.labels.metadata.offset_nm, opened.raw.metadata.offset_nm
        apart = [o * v for o, v in zip(opened.labels_offset, opened.voxel_size_nm, strict=True)]
        assert labels == pytest.approx([f + a for f, a in zip(first, apart, strict=True)])
    assert entries["a-crop2"].labels_offset == (2, 2, 2)
    assert entries["a-crop2"].raw_axes[0].edge(0) == 0
    assert entries["a-crop3"].raw_axes[0].edge(0) == pytest.approx(0.15)  # of 10 nm


def test_several_trees_go_into_one_datalist(tmp_path: Path) -> None:
    trees = [str(write_tree(tmp_path / name)) for name in ("a.zarr", "b.zarr")]
    out = tmp_path / "mito.json"
    datalists.cellmap(*trees, str(out), label_class="mito", voxel_size_nm="10,8,6", test="b-*")
    found = ids_of(out)
    assert found["training"] == ["a-crop1", "a-crop2", "a-crop10"]
    assert found["test"] == ["b-crop1", "b-crop2", "b-crop10"]


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no such level": ({"sizes": ladder(40, 32, 24, levels=1)}, "no level with voxels of 10 x 8 x"),
    "between voxels of raw": ({"offset": (0.0, 0.0, 0.0)}, "which is not a whole number"),
    "outside raw": ({"offset": (9997.5, -2, -1.5)}, "does not overlap raw"),
    "no object": ({"offset": (-2.5, -2, -1.5), "value": 0}, "are all 0"),
    "semantic": (
        {"annotation": {"annotation_type": {"type": "semantic_segmentation"}}},
        "one id for all objects",
    ),
    "unknown voxels": (
        {"annotation": {"complement_counts": {"unknown": 7}}},
        "7 voxels of unknown",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_crop_that_cannot_be_used_is_left_out_and_the_reason_printed(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    levels, reason = UNUSABLE[case]
    tree = write_tree(tmp_path / "a.zarr")
    write_crop(tree, "crop3", **levels)
    datalists.cellmap(str(tree), f"{tmp_path}/x.json", label_class="mito", voxel_size_nm="10,8,6")
    assert len(ids_of(tmp_path / "x.json")["training"]) == 3
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("left out")]
    assert "crop3" in line
    assert reason in line


def test_several_classes_go_into_one_entry_in_the_order_stated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = write_tree(tmp_path / "a.zarr")
    semantic = {"annotation_type": {"type": "semantic_segmentation"}}
    unknown = {"complement_counts": {"unknown": 7}}
    corner = (-2.5, -2.0, -1.5)
    write_crop(tree, "crop1", "er", offset=corner, value=0, annotation=semantic)
    write_crop(tree, "crop2", "nuc", offset=(37.5, 30, 22.5), annotation=unknown)
    write_crop(tree, "crop11", "nuc", offset=corner)
    out = tmp_path / "x.json"
    datalists.cellmap(str(tree), str(out), label_class="nuc,er,mito", voxel_size_nm="10,8,6")
    entries = {entry.id: entry for entry in parse_datalist(out).training}
    assert list(entries) == ["a-crop1", "a-crop10", "a-crop11"]
    crops = tree / "recon-1/labels/groundtruth"
    assert list((entries["a-crop1"].classes or {}).items()) == [
        ("nuc", None),
        ("er", str(crops / "crop1/er/s1")),
        ("mito", str(crops / "crop1/mito/s1")),
    ]
    for name, id_ in (("a-crop1", 3), ("a-crop10", 3), ("a-crop11", 1)):
        opened = open_entry(entries[name])
        labels, annotated = opened.read_labels(opened.roi)
        assert annotated.all()
        assert set(np.unique(labels)) == {id_}
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("left out")]
    assert "crop2/nuc/s1 has 7 voxels of unknown class" in line


def test_instances_by_cellmaps_own_metadata_are_taken(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "a.zarr")
    annotation = {
        "annotation_type": {"type": "instance_segmentation", "encoding": {"absent": 0}},
        "complement_counts": {"absent": 5, "unknown": 0},
    }
    write_crop(tree, "crop3", offset=(-2.5, -2, -1.5), annotation=annotation)
    datalists.cellmap(str(tree), f"{tmp_path}/x.json", label_class="mito", voxel_size_nm="10,8,6")
    assert "a-crop3" in ids_of(tmp_path / "x.json")["training"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_class": "mitos"}, "is annotated for 'mitos'; did you mean 'mito'"),
        ({"voxel_size_nm": "9"}, "no level with voxels of 9 x 9 x 9 nm, but 10 x 8 x 6, 20 x 16"),
        ({"voxel_size_nm": "10,8,7"}, "no level with voxels of 10 x 8 x 7 nm, but 10 x 8 x 6"),
        ({"voxel_size_nm": "5,4,3"}, "no level with voxels of 5 x 4 x 3 nm, but 10 x 8 x 6"),
        ({"raw_voxel_size_nm": "5,4,3"}, "no level with voxels of 5 x 4 x 3 nm, but 10 x 8 x 6"),
        ({"raw_voxel_size_nm": "20,16,12"}, "may be finer than labels but not coarser"),
        ({"em": "tem"}, "recon-1/em has no 'tem'; known are fibsem-uint8"),
        ({"label_class": "nuc"}, "no crop with 'nuc' can be used"),
        ({"label_class": "mito,nucl"}, "is annotated for 'nucl'; did you mean 'nuc'"),
        ({"label_class": "mito,mito"}, "--label_class must be names with commas, each once"),
        ({"label_class": "mito,"}, "--label_class must be names with commas, each once"),
    ],
)
def test_what_a_tree_does_not_have_is_a_sentence(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    tree = write_tree(tmp_path / "a.zarr")
    arguments = {"label_class": "mito", "voxel_size_nm": "10,8,6", **change}
    sentence = refused(lambda: datalists.cellmap(str(tree), f"{tmp_path}/x.json", **arguments))
    assert message in sentence


def test_one_of_several_raw_volumes_is_chosen(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "a.zarr")
    write_levels(tree / "recon-1" / "em" / "fibsem-int16", COARSE, shape=(40, 40, 40))
    arguments = {"label_class": "mito", "voxel_size_nm": "10,8,6"}
    sentence = refused(lambda: datalists.cellmap(str(tree), f"{tmp_path}/x.json", **arguments))
    assert "holds fibsem-int16, fibsem-uint8; choose one with --em" in sentence
    datalists.cellmap(str(tree), f"{tmp_path}/x.json", **arguments, em="fibsem-int16")
    assert "fibsem-int16" in parse_datalist(tmp_path / "x.json").training[0].raw


def test_a_folder_that_is_no_cellmap_tree_is_refused(tmp_path: Path) -> None:
    sentence = refused(
        lambda: datalists.cellmap(
            str(tmp_path), f"{tmp_path}/x.json", label_class="mito", voxel_size_nm="8"
        )
    )
    assert "is it a CellMap tree?" in sentence


# ---------------------------------------------------------------- the file


def test_the_same_datalist_again_is_fine_and_another_is_refused_and_kept(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["images/a.tif", "images/b.tif"], ["labels/a.tif", "labels/b.tif"])
    out = tmp_path / "x.json"
    for _ in range(2):
        datalists.pairs(str(tmp_path), str(out), voxel_size_nm="8", validation="0.5")
    before = out.read_text()
    sentence = refused(lambda: datalists.pairs(str(tmp_path), str(out), voxel_size_nm="9"))
    assert "exists with other content" in sentence
    assert out.read_text() == before
    assert json.loads(before)["name"] == "x"


def test_training_and_validation_that_overlap_are_refused_before_writing(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "a.zarr")
    write_crop(tree, "crop3", offset=(-2.5, -2, -1.5))
    out = tmp_path / "x.json"
    sentence = refused(
        lambda: datalists.cellmap(
            str(tree),
            str(out),
            label_class="mito",
            voxel_size_nm="10,8,6",
            validation="a-crop3",
        )
    )
    assert f"datalist '{out}': the roi of training entry 'a-crop1' overlaps" in sentence
    assert not out.exists()


def test_the_command_line_takes_words_as_they_are_and_refuses_unknown_options(
    tmp_path: Path,
) -> None:
    names = ["001", "1_0", "10"]
    write_pairs(tmp_path, [f"images/{n}.tif" for n in names], [f"labels/{n}.tif" for n in names])
    command = ["pairs", str(tmp_path), f"{tmp_path}/x.json", "--voxel_size_nm", "40,8,8"]
    commands = {"pairs": datalists.pairs, "cellmap": datalists.cellmap}
    with pytest.raises(SystemExit, match="no option --validaton; did you mean 'validation'"):
        fire.Fire(commands, [*command, "--validaton", "1_0"])
    with pytest.raises(SystemExit, match="an argument too many: 'more'"):
        fire.Fire(commands, [*command, "images/*.tif", "labels/*.tif", "8", "0.2", "", "0", "more"])
    assert not (tmp_path / "x.json").exists()
    fire.Fire(commands, [*command, "--validation", "1_0,10"])
    assert ids_of(tmp_path / "x.json")["validation"] == ["10", "1_0"]
    tree = str(write_tree(tmp_path / "a.zarr"))
    options = ["--label_class", "mito", "--voxel_size_nm", "10,8,6", "--test=a-crop1,a-crop2"]
    fire.Fire(commands, ["cellmap", tree, f"{tmp_path}/y.json", *options])
    assert ids_of(tmp_path / "y.json")["test"] == ["a-crop1", "a-crop2"]
