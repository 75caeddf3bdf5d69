"""Inference runs of the bundle, block by block, on a tiny project; one training serves all."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from custom.blockwise.arrays import open_store
from custom.blockwise.freshness import IDENTITY
from custom.blockwise.volume_run import warn_of_mask
from custom.outputs.images import is_complete
from tests.bundle import tiny

pytestmark = pytest.mark.slow

BLOCKS = {"block_size": [16, 16, 16], "section": "validation"}
ID = "synthetic-validation"
WHOLE = [str(tiny.CONFIGS / f"{name}.json") for name in ("inference", "experiments/whole_volume")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model, its cache, and what inference on the whole volume makes of both sources."""
    folder = tmp_path_factory.mktemp("project")
    tiny.write_data(folder)
    tiny.run("preprocessing", folder)
    tiny.run("training", folder, epochs=1)
    infer(folder, "whole", config_file=WHOLE, section="validation")
    return folder


def infer(folder: Path, output: str, **changes: Any) -> None:
    tiny.run("inference", folder, output_dir=str(folder / output), **changes)


def array(folder: Path, output: str, name: str = "affinities") -> NDArray[Any]:
    """An array of a result."""
    values: NDArray[Any] = open_store(folder / output / f"{ID}.zarr" / name / "s0").read().result()
    return values


def times(folder: Path, output: str) -> dict[str, int]:
    """How many blocks each task has processed so far."""
    lines: dict[str, int] = {}
    for path in (folder / output / f"{ID}.blocks").glob("*/times/*.jsonl"):
        name = path.parts[-3]
        lines[name] = lines.get(name, 0) + len(path.read_text().splitlines())
    return lines


@pytest.mark.parametrize("source", ["raw", "cache"])
def test_blocks_predict_what_the_whole_volume_does_and_a_second_run_does_nothing(
    source: str, project: Path
) -> None:
    infer(project, source, source=source, **BLOCKS)
    np.testing.assert_array_equal(array(project, source), array(project, "whole"))
    assert array(project, source, "labels/segmentation").any()
    assert is_complete(project / source / f"{ID}.zarr")
    assert not (project / source / f"{ID}.blocks" / "features.zarr").exists()
    before = times(project, source)
    assert before["predict"] == 8 and ("features" in before) == (source == "raw")
    infer(project, source, source=source, **BLOCKS)
    assert times(project, source) == before


def test_another_setting_begins_anew_where_it_counts(project: Path) -> None:
    output = "changed"
    infer(project, output, **BLOCKS)
    infer(project, output, **BLOCKS, segmentation_settings={"bias": -0.2})
    done = times(project, output)
    assert done["features"] == 1 and done["predict"] == 8
    infer(project, output, **BLOCKS, mirror=True)
    assert not np.array_equal(array(project, output), array(project, "whole"))
    infer(project, output, **BLOCKS, mirror=False, keep_features=True)
    np.testing.assert_array_equal(array(project, output), array(project, "whole"))
    state = project / output / f"{ID}.blocks"
    assert (state / "features.zarr").exists()
    before = (state / "fragments" / IDENTITY).stat().st_mtime_ns
    infer(project, output, **BLOCKS, mirror=False)
    assert not (state / "features.zarr").exists()
    assert (state / "fragments" / IDENTITY).stat().st_mtime_ns == before


@pytest.mark.parametrize("block_size", [[16, 16, 16], [32, 32, 32]])
def test_features_that_were_forgotten_are_made_again_for_a_new_prediction(
    block_size: list[int], project: Path
) -> None:
    """Where the output is gone, or blocks have another size."""
    output = "forgotten"
    infer(project, output, **BLOCKS)
    if block_size == BLOCKS["block_size"]:
        shutil.rmtree(project / output / f"{ID}.zarr")
    infer(project, output, **BLOCKS | {"block_size": block_size})
    np.testing.assert_array_equal(array(project, output), array(project, "whole"))
    assert is_complete(project / output / f"{ID}.zarr")


def test_a_result_of_the_whole_volume_is_replaced_and_the_other_way_round(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = "replaced"
    shutil.copytree(project / "whole", project / output)
    infer(project, output, **BLOCKS, source="cache")
    assert f"{output}/{ID}.zarr' is removed, and all of it made anew" in caplog.text
    assert times(project, output)["predict"] == 8
    infer(project, output, config_file=WHOLE, section="validation", source="cache")
    assert not (project / output / f"{ID}.blocks").exists()


def test_what_is_no_result_is_left_alone(project: Path) -> None:
    place = project / "foreign" / f"{ID}.zarr"
    place.mkdir(parents=True)
    (place / "notes").write_text("mine")
    said = tiny.mistake(lambda: infer(project, "foreign", **BLOCKS))
    assert "is not a result of inference" in said
    assert (place / "notes").read_text() == "mine"


def test_a_mistake_is_one_sentence_before_any_work(project: Path) -> None:
    wrong = {**BLOCKS, "block_size": [16, 0, 16]}
    said = tiny.mistake(lambda: infer(project, "wrong", **wrong))
    assert "block_size must be" in said
    assert not (project / "wrong").exists()


def several(project: Path, value: float, **of_the_second: Any) -> Path:
    """A datalist of three volumes; all voxels of a section of the second one are ``value``."""
    data = project / "data"
    raw = open_store(data / "synthetic.zarr" / "raw" / "s0").read().result().astype(np.float32)
    raw[:, 50] = value
    np.save(data / "odd.npy", raw)
    datalist = json.loads((data / "datalist.json").read_text())
    (good,) = datalist["validation"]
    window = {"intensity_window": [0, 255]}
    size = {"voxel_size_nm": dict.fromkeys(("raw", "labels"), tiny.VOXEL_SIZE)}
    odd = {**good, "id": "odd", "raw": "odd.npy", **size, **of_the_second}
    datalist["test"] = [{**good, **window, "id": "one"}, odd, {**good, **window, "id": "two"}]
    path = data / "several.json"
    path.write_text(json.dumps(datalist))
    return path


def test_blocks_that_fail_leave_the_other_volumes_alone(project: Path) -> None:
    changes = {**BLOCKS, "section": "test", "source": "raw", "retries": 0}
    datalist = str(several(project, float("nan"), intensity_window=[0, 255]))
    said = tiny.mistake(lambda: infer(project, "several", datalist=datalist, **changes))
    assert said.startswith("1 of 3 volumes failed (odd), the others are done; of 'odd': ")
    assert "NaN" in said and "tries them again" in said
    done = {name: project / "several" / f"{name}.zarr" for name in ("one", "odd", "two")}
    assert [is_complete(path) for path in done.values()] == [True, False, True]
    datalist = str(several(project, 7.0, intensity_window=[0, 255]))
    infer(project, "several", datalist=datalist, **changes)
    assert all(is_complete(path) for path in done.values())


def test_a_volume_that_cannot_be_read_is_spoken_of_before_any_work(project: Path) -> None:
    changes = {**BLOCKS, "section": "test", "source": "raw"}
    datalist = str(several(project, float("nan")))
    said = tiny.mistake(lambda: infer(project, "unread", datalist=datalist, **changes))
    assert "odd.npy holds NaN" in said
    assert not (project / "unread").exists()


def test_worker_processes_build_what_they_need_from_the_configuration(project: Path) -> None:
    infer(project, "workers", workers=1, threads=2, **BLOCKS)
    for name in ("affinities", "labels/segmentation"):
        found = array(project, "workers", name)
        assert found.any()
    np.testing.assert_array_equal(array(project, "workers"), array(project, "whole"))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"mask": "m.zarr", "labels": None}, True),
        ({"mask": "m.zarr", "labels": "l.zarr"}, False),
        ({"mask": "m.zarr", "labels": None, "classes": {"nucleus": "n.zarr"}}, False),
        ({"mask": None, "labels": None}, False),
    ],
)
def test_a_mask_that_a_cache_does_not_have_is_spoken_of(
    entry: dict[str, Any], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_mask(SimpleNamespace(id="a", metadata={"entry": entry}))  # type: ignore[arg-type]
    assert ("a: its mask is not heeded" in caplog.text) == said
