"""``python -m scripts.cache`` as a user meets it."""

import json
from pathlib import Path

import fire
import numpy as np
import pytest
from PIL import Image
from scripts import cache
from scripts.cache_table import COLUMNS

from custom.features.cache import open_cache
from custom.features.cache_files import VolumeFiles
from custom.features.cache_lock import exclusive
from custom.features.cache_writer import VolumeWriter
from tests.bundle.tiny import CONFIGS
from tests.features.cached import SHAPE, request, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished int8 volume and an unfinished one."""
    path = tmp_path / "cache"
    write(VolumeFiles(path, 0), request(0, dtype="int8"), compression="zstd")
    VolumeWriter(VolumeFiles(path, 1), request(1))
    return path


def run(*command: object) -> None:
    fire.Fire(cache.COMMANDS, command=[str(part) for part in command])


def test_list_shows_every_volume(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("list", folder)
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == list(COLUMNS)
    size = sum(p.stat().st_size for p in (folder / "volume_000000.zarr").rglob("*") if p.is_file())
    for words in ("cube0", "training", "20 x 12 x 30", "folder layers 2", "int8 zstd", "finished"):
        assert words in first
    assert f"{size}" in first and f"{size / np.prod(SHAPE):.1f}" in first
    assert "cube1" in second and second.rstrip().endswith("unfinished")


def test_list_says_how_features_were_made_finer_or_smaller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"stride": 4, "slice_step": [1, 3, 1], "pca": 3, "pca_digest": "0123"}
    write(VolumeFiles(tmp_path, 0), request(0, **changes))
    run("list", tmp_path)
    line = capsys.readouterr().out.splitlines()[1]
    assert "window 64, stride 4, xy xz yz slice_step 1,3,1, pca 3, float16" in line


def test_list_tells_the_layouts_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guide = {"upsampler": "some/anyup", "upsampler_digest": "4567"}
    for index, changes in enumerate(({}, {"layout": "dense"}, {"layout": "dense", **guide})):
        VolumeWriter(VolumeFiles(tmp_path, index), request(index, **changes))
    run("list", tmp_path)
    _, tokens, dense, guided = capsys.readouterr().out.splitlines()
    assert "dense" not in tokens
    assert "float16, dense  " in dense
    assert "float16, dense by anyup  " in guided


def test_check_says_what_is_wrong_and_ends_with_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunk = folder / "volume_000000.zarr" / "tokens_xy" / "c" / "0" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(SystemExit) as ended:
        run("check", folder)
    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("volume_000000 (cube0), tokens_xy, c/0/1/0/0: ")
    assert lines[1] == "volume_000001 (cube1): unfinished: run preprocessing"
    assert lines[2].startswith("2 volumes, 2 defects; read ") and lines[2].endswith("MB/s")


def test_prune_then_check_finds_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("prune", folder, "--dry_run")
    assert "would remove volume_000001 (cube1): unfinished" in capsys.readouterr().out
    assert (folder / "volume_000001.zarr").exists()
    assert not (folder / ".lock").exists()
    run("prune", folder)
    out = capsys.readouterr().out
    assert "removed volume_000001 (cube1): unfinished" in out and "MB in all freed" in out
    run("check", folder)
    assert "1 volumes, 0 defects" in capsys.readouterr().out


def test_prune_removes_what_a_datalist_does_not_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(VolumeFiles(folder, 2), request(2, dtype="int8"))
    np.save(tmp_path / "raw.npy", np.zeros(SHAPE, np.uint8))
    entry = {"id": "cube2", "raw": "raw.npy", "voxel_size_nm": {"raw": [8, 4, 4.5]}}
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"name": "cubes", "test": [entry]}))
    run("prune", folder, "--datalist", datalist)
    assert "removed volume_000000 (cube0): not in the datalist" in capsys.readouterr().out
    assert [volume.id for volume in open_cache(folder)] == ["cube2"]


@pytest.mark.parametrize("surplus", [["--dryrun"], ["x.json", "False", "yes"]])
def test_prune_removes_nothing_if_it_does_not_know_an_option(
    folder: Path, surplus: list[str]
) -> None:
    with pytest.raises(SystemExit, match=r"no option --dryrun; did you mean 'dry_run'|too many"):
        run("prune", folder, *surplus)
    assert (folder / "volume_000001.zarr").exists()


@pytest.mark.parametrize("name", ["cube0", "volume_000000"])
def test_show_writes_a_picture(
    folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run("show", folder, name, "--png", tmp_path / "volume.png")
    assert capsys.readouterr().out.strip() == str(tmp_path / "volume.png")
    with Image.open(tmp_path / "volume.png") as picture:
        assert picture.size[0] > 3 * SHAPE[2]


def test_copies_are_listed_shown_by_name_and_pruned(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, copy in ((2, 1), (3, 2)):
        asked = request(0, dtype="int8")
        asked["entry"]["copy"] = copy
        write(VolumeFiles(folder, index), asked)
    run("list", folder)
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "cube0",
        "cube1",
        "cube0, copy 1",
        "cube0, copy 2",
    ]
    run("show", folder, "volume_000003", "--png", tmp_path / "copy.png")
    assert (tmp_path / "copy.png").is_file()
    run("prune", folder, "--copies", 1)
    out = capsys.readouterr().out
    assert "removed volume_000003 (cube0, copy 2): extra copy" in out and "copy 1" not in out
    assert [v.copy for v in open_cache(folder, copies=True)] == [0, 1]
    with pytest.raises(SystemExit, match="--copies must be a whole number from 0 on, got -1"):
        run("prune", folder, "--copies", "-1")


OPTIONS = ("--affinity_offsets", "[[1,0,0],[0,0,2]]", "--lsd_sigma_nm", "6.5")


def test_update_targets_takes_a_config_with_overlays_and_options(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "overlay.json"
    overlay.write_text(json.dumps({"lsd_sigma_nm": 5.0, "boundary_power": 1.0}))
    run("update-targets", folder, "--config_file", [str(CONFIGS / "train.json"), str(overlay)])
    out = capsys.readouterr().out
    assert "volume_000000 (cube0): targets written" in out
    assert "1 volumes updated, 1 unfinished ones left alone" in out
    written = json.loads((folder / "volume_000000_metadata.json").read_text())["targets"]
    train = json.loads((CONFIGS / "train.json").read_text())
    assert written["affinity_offsets"] == train["affinity_offsets"]
    assert (written["lsd_sigma_nm"], written["boundary_power"]) == (5.0, 1.0)
    config = ("--config_file", CONFIGS / "train.json")
    run("update-targets", folder, *config, "--lsd_sigma_nm", 5, "--boundary_power", 1)
    assert "0 volumes updated" in capsys.readouterr().out
    run("update-targets", folder, *config, "--lsd_sigma_nm", 0, "--lsd_downsample", "[1,2,2]")
    written = json.loads((folder / "volume_000000_metadata.json").read_text())["targets"]
    assert written["lsd_sigma_nm"] is None


def test_targets_are_listed_and_removed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("update-targets", folder, *OPTIONS)
    run("list", folder)
    assert "2 affinities, LSDs 6.5 nm" in capsys.readouterr().out
    run("update-targets", folder, "--remove")
    assert "removed the targets of 1 volumes" in capsys.readouterr().out
    run("list", folder)
    assert "affinities" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "targets lacks 'affinity_offsets'"),
        (("--config_file", "absent.json"), "config_file 'absent.json' does not exist"),
        ((*OPTIONS, "--boundary_power", "-1"), "boundary_power must be a number from 0 on"),
        (("--remove", *OPTIONS), "takes no other option"),
        (("--remove", "false"), "--remove must be true or false, got 'false'"),
    ],
)
def test_update_targets_explains_a_mistake(
    folder: Path, arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        run("update-targets", folder, *arguments)


def test_update_targets_waits_for_no_other_writer(folder: Path) -> None:
    with exclusive(folder), pytest.raises(SystemExit, match="is being written by process"):
        run("update-targets", folder, *OPTIONS)


@pytest.mark.parametrize("verb", ["list", "check", "prune", "show", "update-targets"])
def test_a_mistake_ends_in_one_sentence(tmp_path: Path, verb: str) -> None:
    arguments = [tmp_path / "absent", *(["cube0"] if verb == "show" else [])]
    with pytest.raises(SystemExit, match=r"absent'.* no volume"):
        run(verb, *arguments)
    assert not (tmp_path / "absent").exists()


def test_show_names_the_volumes_there_are(folder: Path) -> None:
    with pytest.raises(SystemExit, match="has no volume 'cube7', only cube0, cube1"):
        run("show", folder, "cube7")
    with pytest.raises(SystemExit, match="not finished: run preprocessing"):
        run("show", folder, "cube1")
