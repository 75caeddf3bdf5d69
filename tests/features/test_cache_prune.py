from pathlib import Path

import pytest

from custom.features.cache import open_cache
from custom.features.cache_check import check_cache
from custom.features.cache_files import VolumeFiles, volumes_in
from custom.features.cache_prune import removable
from custom.features.cache_writer import VolumeWriter
from tests.features.cached import SHAPE, request, voxels, write


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """A finished volume, an unfinished one, and a finished one with what a kill left beside it."""
    write(VolumeFiles(tmp_path, 0), request(0))
    writer = VolumeWriter(VolumeFiles(tmp_path, 1), request(1))
    writer.create_voxels("raw", SHAPE, "uint8")
    writer.write_voxels("raw", 0, voxels()["raw"])
    write(VolumeFiles(tmp_path, 2), request(2))
    (tmp_path / ".volume_000002_progress.json.x1y2").write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("wanted", [None, {"cube0", "cube2"}, {"cube2"}, {"cube1"}, set()])
def test_what_goes_is_unfinished_left_over_or_not_wanted_and_its_size_is_told(
    cache_dir: Path, wanted: set[str] | None
) -> None:
    for item in removable(cache_dir, wanted):
        before, told = size(cache_dir), item.size
        item.remove()
        assert before - size(cache_dir) == told > 0
    kept = sorted({"cube0", "cube2"} & ({"cube0", "cube2"} if wanted is None else wanted))
    if kept:
        assert [volume.id for volume in open_cache(cache_dir)] == kept
        assert check_cache(cache_dir, show_progress=False).defects == ()
    assert len(names(cache_dir)) == 1 + 2 * len(kept), "nothing beside the kept volumes and notes"
    assert removable(cache_dir, wanted) == []


def test_a_removal_that_was_killed_leaves_an_unfinished_volume(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: VolumeFiles) -> None:
        raise KeyboardInterrupt

    (item,) = [item for item in removable(cache_dir, {"cube2"}) if item.files.index == 0]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VolumeFiles, "remove_arrays", killed)
        item.remove()
    assert not volumes_in(cache_dir)[0].finished
    assert removable(cache_dir)[0].reason == "unfinished"
    removable(cache_dir)[0].remove()
    assert not list(cache_dir.glob("volume_000000*"))
