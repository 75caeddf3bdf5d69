import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from ignite.engine import Engine
from numpy.typing import NDArray

from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.output import SegmentationWriter, check_prediction
from custom.outputs.images import MARKER, is_complete
from custom.outputs.objects import read_table
from custom.outputs.settings import OutputSettings
from custom.scores import as_uint8
from custom.segmentation.segmenter import MutexWatershedSegmenter
from custom.volume_datasets import CachedVolumeDataset
from custom.volumes import open_volume
from tests.oracles import same_partition

OFFSETS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 3, 0))
SHAPE = (6, 10, 14)
VOXEL_SIZE = (40.0, 8.0, 12.5)
POSITION = (80.0, -16.0, 25.0)
SEGMENTER = MutexWatershedSegmenter(OFFSETS, bias=-0.5, long_range_stride=1)


def halves() -> NDArray[np.uint64]:
    """Two objects, cut along x."""
    labels = np.ones(SHAPE, dtype=np.uint64)
    labels[:, :, 5:] = 2
    return labels


def prediction(num_lsds: int = 10) -> torch.Tensor:
    """Perfect affinities of ``halves``, and LSDs that count up."""
    labels = halves()
    channels = []
    for offset in OFFSETS:
        moved = np.roll(labels, [-o for o in offset], axis=(0, 1, 2))
        channels.append((labels == moved).astype(np.float32))
    lsds = np.arange(num_lsds)[:, None, None, None] / 20 + np.zeros(SHAPE)
    return torch.from_numpy(np.concatenate([channels, lsds]).astype(np.float32))


class Volumes(CachedVolumeDataset):
    """Only the ids of volumes."""

    def __init__(self, *ids: str) -> None:
        self.volumes = [type("V", (), {"id": name})() for name in ids]


def write(folder: Path, dataset: CachedVolumeDataset | None = None, **changes: Any) -> None:
    """Inference on one volume, whose prediction is given."""
    settings = changes.pop("settings", None)
    described = changes.pop("described", None)
    values = changes.pop("values", prediction())
    layout = changes.pop("layout", ChannelLayout(4))

    def step(engine: Engine, batch: Any) -> Any:
        if described is not None:
            engine.state.model_description = described  # type: ignore[attr-defined]
        return [{"pred": values}]

    item = {
        "id": "cube",
        "voxel_size_nm": torch.tensor(VOXEL_SIZE, dtype=torch.float64),
        "offset_nm": torch.tensor(POSITION, dtype=torch.float64),
    }
    engine = Engine(step)
    writer = SegmentationWriter(
        str(folder), dataset or Volumes("cube"), SEGMENTER, layout, settings, **changes
    )
    writer.attach(engine)
    engine.run([[item]])


def group(folder: Path) -> zarr.Group:
    return zarr.open_group(folder / "cube.zarr", mode="r")


def array(folder: Path, path: str) -> zarr.Array[Any]:
    found = group(folder)[f"{path}/s0"]
    assert isinstance(found, zarr.Array)
    return found


def test_affinities_are_uint8_and_segments_uint64(tmp_path: Path) -> None:
    write(tmp_path)
    affinities, segments = array(tmp_path, "affinities"), array(tmp_path, "labels/segmentation")
    assert (affinities.dtype, segments.dtype) == (np.uint8, np.uint64)
    np.testing.assert_array_equal(affinities[:], as_uint8(prediction()[:4]))
    assert same_partition(np.asarray(segments[:]), halves())
    assert "lsds" not in group(tmp_path)


@pytest.mark.parametrize("path", ["affinities", "labels/segmentation"])
def test_both_are_where_the_volume_is(tmp_path: Path, path: str) -> None:
    write(tmp_path)
    multiscales: Any = group(tmp_path)[path].attrs["multiscales"]
    axes = [axis["name"] for axis in multiscales[0]["axes"]][-3:]
    changes = {c["type"]: c for c in multiscales[0]["datasets"][0]["coordinateTransformations"]}
    assert axes == ["z", "y", "x"]
    assert changes["scale"]["scale"][-3:] == list(VOXEL_SIZE)
    assert changes["translation"]["translation"][-3:] == list(POSITION)


def test_our_own_reader_finds_the_segments_in_their_place(tmp_path: Path) -> None:
    write(tmp_path)
    volume = open_volume(str(tmp_path / "cube.zarr" / "labels" / "segmentation"))
    assert volume.metadata.voxel_size_nm == VOXEL_SIZE
    assert volume.metadata.offset_nm == POSITION
    assert same_partition(volume.read(volume.metadata.roi), halves())


def test_offsets_are_told_by_the_group_and_by_the_array(tmp_path: Path) -> None:
    write(tmp_path)
    for node in (group(tmp_path)["affinities"], array(tmp_path, "affinities")):
        assert node.attrs["offsets"] == [list(offset) for offset in OFFSETS]
        assert node.attrs["voxel_size_nm"] == list(VOXEL_SIZE)


def test_lsds_are_written_on_request(tmp_path: Path) -> None:
    write(tmp_path, write_lsds=True)
    lsds = np.asarray(array(tmp_path, "lsds")[:])
    assert (lsds.shape, lsds.dtype) == ((10, *SHAPE), np.uint8)
    np.testing.assert_array_equal(lsds[:, 0, 0, 0], np.rint(np.arange(10) / 20 * 255))


CLASSES = ChannelLayout(0, 0, 3)


def class_prediction() -> torch.Tensor:
    """Probabilities of three classes; at the first voxel two are equal."""
    logits = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    logits[:, 0, 0, 0] = torch.tensor([0.0, 1.0, 1.0])
    return logits.softmax(0)


@pytest.mark.parametrize("names", [None, ["background", "mito", "er"]])
def test_classes_are_written_with_their_probabilities_and_names(
    tmp_path: Path, names: list[str] | None
) -> None:
    described = {} if names is None else {"predicted_classes": {"names": names}}
    write(tmp_path, values=class_prediction(), layout=CLASSES, described=described)
    assert sorted(group(tmp_path)) == ["labels", "probabilities"]
    probabilities, classes = (
        array(tmp_path, "probabilities"),
        array(tmp_path, "labels/segmentation"),
    )
    np.testing.assert_array_equal(probabilities[:], as_uint8(class_prediction()))
    assert classes.dtype == np.uint64
    expected = class_prediction().numpy().argmax(0)
    np.testing.assert_array_equal(classes[:], expected)
    assert expected[0, 0, 0] == 1
    for node in (probabilities, classes):
        stored: Any = node.attrs["classes"]
        assert stored["names"] == (names or ["background", "class_1", "class_2"])


@pytest.mark.parametrize("name", ["affinities", "probabilities"])
def test_a_prediction_names_the_weights_that_made_it(tmp_path: Path, name: str) -> None:
    described = {"sha256": {"model.pt": "f00", "model.safetensors": "ba5"}}
    classes = {"values": class_prediction(), "layout": CLASSES} if name == "probabilities" else {}
    write(tmp_path, described=described, **classes)
    assert array(tmp_path, name).attrs["model_sha256"] == "f00"
    write(tmp_path, described={}, **classes)
    assert "model_sha256" not in array(tmp_path, name).attrs, "a model of 0.1.0"


@pytest.mark.parametrize("dimensions", [2, 3])
def test_segments_say_whether_they_are_of_sections(tmp_path: Path, dimensions: int) -> None:
    write(tmp_path, dimensions=dimensions)
    assert array(tmp_path, "labels/segmentation").attrs["dimensions"] == dimensions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"write_lsds": True, "layout": ChannelLayout(4, 0)}, "write_lsds .* 'affinities'"),
        ({"write_lsds": True, "layout": CLASSES}, "write_lsds has no meaning for .*'labels'"),
        ({"settings": {"bias": 0.1}, "layout": CLASSES}, "segmentation_settings .* 'labels'"),
    ],
)
def test_settings_of_what_is_not_predicted_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write(tmp_path, **changes)


@pytest.mark.parametrize(
    ("described", "settings", "threshold"),
    [
        (None, None, None),
        ({"segmentation": {"threshold": 0.25}}, None, 0.25),
        ({"segmentation": {"threshold": 0.25}}, {"threshold": 0.75}, 0.75),
    ],
    ids=["the segmenter's", "the model's", "the config's"],
)
def test_settings_of_the_config_win_over_the_models(
    tmp_path: Path, described: Any, settings: Any, threshold: float | None
) -> None:
    write(tmp_path, described=described, settings=settings)
    used: Any = group(tmp_path)["labels/segmentation"].attrs["segmentation"]
    assert used["threshold"] == threshold


def test_an_earlier_result_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path, write_lsds=True)
    write(tmp_path)
    assert "lsds" not in group(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cube.zarr"]


@pytest.mark.parametrize("before", [False, True], ids=["nothing", "an earlier result"])
def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before:
        write(tmp_path, write_lsds=True)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("custom.output.finish", full)
        with pytest.raises(OSError, match="no space left"):
            write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == (["cube.zarr"] if before else [])
    assert not before or "lsds" in group(tmp_path)


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    for kind in ("part", "old"):
        (tmp_path / f".cube.zarr.{kind}" / "affinities").mkdir(parents=True)
    write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cube.zarr"]


@pytest.mark.parametrize("content", [None, "{}", "{", '{"multiscales": []}'])
def test_other_zarrs_are_refused_before_any_work(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "other.zarr").mkdir()
    if content is not None:
        (tmp_path / "other.zarr" / ".zattrs").write_text(content)
    with pytest.raises(InputError, match=r"other\.zarr' exists and is not a result of inference"):
        write(tmp_path, Volumes("cube", "other"))
    assert [path.name for path in tmp_path.iterdir()] == ["other.zarr"]


def test_the_marker_is_beside_the_attributes_that_were_there(tmp_path: Path) -> None:
    write(tmp_path)
    attributes = json.loads((tmp_path / "cube.zarr" / ".zattrs").read_text())
    assert MARKER in attributes


@pytest.mark.parametrize(
    ("probability", "stored"), [(0.0, 0), (1.0, 255), (0.5, 128), (0.998, 254), (0.9981, 255)]
)
def test_probabilities_are_rounded(probability: float, stored: int) -> None:
    assert as_uint8(torch.tensor([probability])).tolist() == [stored]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("kind", ["parquet", "csv", None])
def test_pyramid_and_table_are_written_in_the_wanted_format(
    tmp_path: Path, version: str, kind: str | None
) -> None:
    write(tmp_path, output_format=OutputSettings("0.4", None, True, "csv"))
    write(tmp_path, output_format=OutputSettings(version, None, True, kind))
    (store,) = (path for path in tmp_path.iterdir() if path.is_dir())
    tables = [path.name for path in tmp_path.iterdir() if path.is_file()]
    assert tables == ([f"cube_objects.{kind}"] if kind else [])
    segments = open_volume(store / "labels" / "segmentation")
    assert segments.metadata.offset_nm == POSITION
    assert array(tmp_path, "affinities").metadata.zarr_format == {"0.4": 2, "0.5": 3}[version]
    table = read_table(store)
    if table is not None:
        halves_nm = [POSITION[2] + VOXEL_SIZE[2] * (voxel - 0.5) for voxel in (0, 5, SHAPE[2])]
        assert sorted(table["x_begin_nm"]) == pytest.approx(halves_nm[:2])
        assert sorted(table["x_end_nm"]) == pytest.approx(halves_nm[1:])
    assert is_complete(store)


def test_large_images_have_more_levels_if_wanted(tmp_path: Path) -> None:
    values = torch.zeros((4, 3, 5, 70))
    for wanted in (True, False):
        write(tmp_path, values=values, output_format=OutputSettings(pyramid=wanted))
        for name in ("affinities", "labels/segmentation"):
            multiscales: Any = group(tmp_path)[name].attrs["multiscales"]
            assert len(multiscales[0]["datasets"]) == 1 + wanted
            assert (f"{name}/s1" in group(tmp_path)) == wanted


# --- models of something else ---

TRAINED = {"output_type": "affinities", "dimensions": 3, "num_classes": None}


@pytest.mark.parametrize(
    ("trained", "layout", "dimensions", "message"),
    [
        (
            {"output_type": "labels", "num_classes": 2},
            ChannelLayout(2, 0),
            3,
            "output_type 'labels'",
        ),
        ({}, ChannelLayout(0, 0, 2), 3, "output_type 'affinities', the config has 'labels'"),
        ({"output_type": "affinities_lsds"}, ChannelLayout(2, 0), 3, "output_type"),
        ({}, ChannelLayout(2, 0), 2, "dimensions 3, the config has 2"),
        (
            {"output_type": "labels", "num_classes": 4},
            ChannelLayout(0, 0, 3),
            3,
            "num_classes 4, the config has 3",
        ),
        ({}, ChannelLayout(2, 0), 3, None),
        ({"output_type": "labels", "num_classes": 3}, ChannelLayout(0, 0, 3), 3, None),
    ],
)
def test_a_model_of_something_else_is_refused_by_the_key_that_differs(
    trained: dict[str, Any], layout: ChannelLayout, dimensions: int, message: str | None
) -> None:
    description = {**TRAINED, **trained}
    if message is None:
        check_prediction(description, layout, dimensions, "models")
        return
    with pytest.raises(InputError, match=message):
        check_prediction(description, layout, dimensions, "models")


@pytest.mark.parametrize(
    ("described", "layout"),
    [({"lsd_sigma_nm": 80.0}, ChannelLayout(2)), ({"lsd_sigma_nm": None}, ChannelLayout(2, 0))],
)
def test_models_of_earlier_versions_predict_what_their_sigma_says(
    described: dict[str, Any], layout: ChannelLayout
) -> None:
    check_prediction(described, layout, 3, "models")
    with pytest.raises(InputError, match="trained with output_type"):
        check_prediction(described, ChannelLayout(2, 10 - layout.num_lsds), 3, "models")
