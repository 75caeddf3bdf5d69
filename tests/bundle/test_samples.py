import gzip
import hashlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scripts import fib25 as recipe
from scripts import samples

from custom.downloads import read_checksums
from custom.errors import InputError
from custom.volumes import open_volume
from tests.oracles import same_partition
from tests.server import Served, serve

SHAPE = (12, 5, 7)  # sections 8 to 19: their names sort differently as text
RAW = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
SUPERVOXELS = np.random.default_rng(1).choice([0, 4, 6, 9, 70000, 80000], SHAPE).astype(np.int32)
PAIRS = np.array([[4, 900], [6, 4], [9, 900], [70000, 70000]])  # 80000 is its own body


def body_of(supervoxel: int) -> int:
    return dict(PAIRS.tolist()).get(supervoxel, supervoxel)


BODIES = np.vectorize(body_of)(SUPERVOXELS)


@dataclass
class Source:
    """Files of the same form as the public ones, and their list."""

    folder: Path
    checksums: Path
    server: Served

    def list_files(self) -> None:
        files = sorted(p for p in self.folder.rglob("*") if p.is_file())
        lines = [
            f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(self.folder)}\n"
            for p in files
        ]
        self.checksums.write_text("".join(lines))

    def get(self, folder: Path) -> None:
        samples.fib25(str(folder), url=self.server.url + "/", checksums=str(self.checksums))


def packed_truth(supervoxels: NDArray[np.integer]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["stack"], file["transforms"] = supervoxels, PAIRS
    return gzip.compress(buffer.getvalue())


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "source"
    (folder / "grayscale_maps").mkdir(parents=True)
    for z, section in enumerate(RAW):
        Image.fromarray(section).save(folder / "grayscale_maps" / f"iso.{8 + z}.png")
    (folder / "groundtruth.h5.gz").write_bytes(packed_truth(SUPERVOXELS))
    with serve(folder) as server:
        found = Source(folder, tmp_path / "list.sha256", server)
        found.list_files()
        yield found


def everything(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_the_cube_has_the_layout_that_the_recipe_takes(source: Source, tmp_path: Path) -> None:
    source.get(tmp_path / "data")
    cube = tmp_path / "data" / "fib25.zarr"
    raw, labels = open_volume(cube / "raw"), open_volume(cube / recipe.LABELS)
    for volume, dtype in ((raw, "uint8"), (labels, "uint32")):
        assert volume.metadata.shape == SHAPE
        assert volume.metadata.dtype == dtype
        assert volume.metadata.voxel_size_nm == (10, 10, 10)
        assert volume.metadata.offset_nm == (0, 0, 0)
    np.testing.assert_array_equal(raw.read(raw.metadata.roi), RAW)
    assert (cube / "raw" / "s0" / ".zarray").is_file()
    assert (cube / "labels" / "neurons" / "s0" / ".zarray").is_file()


def test_labels_are_bodies_with_consecutive_ids(source: Source, tmp_path: Path) -> None:
    source.get(tmp_path / "data")
    labels = open_volume(tmp_path / "data" / "fib25.zarr" / recipe.LABELS)
    found = labels.read(labels.metadata.roi)
    assert same_partition(found, BODIES)
    assert np.unique(found).tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(found == 0, SUPERVOXELS == 0)


def test_ids_are_consecutive_from_one_where_nothing_is_unlabelled() -> None:
    found = samples.bodies(np.array([[[7, 5, 5]]]), np.array([[7, 3]]))
    assert found.tolist() == [[[1, 2, 2]]]


def test_the_layout_is_that_of_the_shared_cube(
    source: Source, tmp_path: Path, shared_data: Path
) -> None:
    source.get(tmp_path / "data")
    for array in ("raw", recipe.LABELS):
        ours = open_volume(tmp_path / "data" / "fib25.zarr" / array).metadata
        theirs = open_volume(shared_data / array).metadata
        assert (ours.dtype, ours.voxel_size_nm) == (theirs.dtype, theirs.voxel_size_nm)
        assert ours.offset_nm == theirs.offset_nm


def test_a_break_keeps_what_is_whole_and_the_same_command_goes_on(
    source: Source, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    source.server.cut = "grayscale_maps/iso.15.png"
    with pytest.raises(SystemExit, match=r"iso\.15\.png could not be downloaded"):
        source.get(data)
    kept, asked = everything(data), source.server.asked[:-1]
    assert {f"training_sample2/{path}" for path in asked} == set(kept)
    assert 0 < len(asked) < SHAPE[0]
    source.server.cut = None
    source.server.asked.clear()
    source.get(data)
    assert not set(source.server.asked) & set(asked)
    assert everything(data).items() >= kept.items()
    assert (data / "fib25.zarr").is_dir()


def test_a_damaged_file_on_the_disk_is_fetched_again(source: Source, tmp_path: Path) -> None:
    data = tmp_path / "data"
    source.get(data)
    section = data / "training_sample2" / "grayscale_maps" / "iso.10.png"
    section.write_bytes(section.read_bytes()[:-1])
    before = everything(data / "fib25.zarr")
    shutil.rmtree(data / "fib25.zarr")
    source.server.asked.clear()
    source.get(data)
    assert source.server.asked == ["grayscale_maps/iso.10.png"]
    assert everything(data / "fib25.zarr") == before


def test_a_finished_cube_is_left_alone(source: Source, tmp_path: Path) -> None:
    source.get(tmp_path)
    before = everything(tmp_path)
    source.server.asked.clear()
    source.get(tmp_path)
    assert source.server.asked == []
    assert everything(tmp_path) == before


def test_what_an_interrupted_build_left_is_neither_taken_nor_kept(
    source: Source, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / ".fib25.zarr.part" / "raw" / "s0").mkdir(parents=True)
    source.get(data)
    assert sorted(p.name for p in data.iterdir()) == ["fib25.zarr", "training_sample2"]


def test_a_build_that_fails_leaves_no_cube(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(group: Path, name: str, values: NDArray[np.integer]) -> None:
        (group / name).mkdir(parents=True)
        if name != "raw":
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(samples, "_write", full)
        with pytest.raises(SystemExit, match="No space left"):
            source.get(tmp_path / "data")
    assert not (tmp_path / "data" / "fib25.zarr").exists()
    source.get(tmp_path / "data")
    assert open_volume(tmp_path / "data" / "fib25.zarr" / "raw").metadata.shape == SHAPE


def test_a_file_with_another_checksum_is_refused_by_its_address(
    source: Source, tmp_path: Path
) -> None:
    (source.folder / "grayscale_maps" / "iso.9.png").write_bytes(b"something else")
    with pytest.raises(SystemExit, match=r"iso\.9\.png holds another file than expected"):
        source.get(tmp_path / "data")
    assert not (tmp_path / "data" / "fib25.zarr").exists()


def test_a_missing_file_is_refused_by_its_address(source: Source, tmp_path: Path) -> None:
    (source.folder / "grayscale_maps" / "iso.19.png").unlink()
    with pytest.raises(SystemExit, match=r"iso\.19\.png answered 404") as stopped:
        source.get(tmp_path / "data")
    assert "\n" not in str(stopped.value)


def test_a_section_too_many_is_named(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "training_sample2" / "grayscale_maps"
    folder.mkdir(parents=True)
    Image.fromarray(RAW[0]).save(folder / "iso.20.png")
    with pytest.raises(SystemExit, match=r"1 images too many: remove iso\.20\.png"):
        source.get(tmp_path / "data")


def test_a_section_too_few_in_the_list_does_not_fit_the_truth(
    source: Source, tmp_path: Path
) -> None:
    (source.folder / "grayscale_maps" / "iso.19.png").unlink()
    source.list_files()
    with pytest.raises(SystemExit, match=r"shape \(12, 5, 7\).*\(11, 5, 7\)"):
        source.get(tmp_path / "data")


@pytest.mark.parametrize("lacking", ["groundtruth.h5.gz", "grayscale_maps"])
def test_a_list_that_cannot_make_a_cube_is_refused(
    source: Source, tmp_path: Path, lacking: str
) -> None:
    lines = source.checksums.read_text().splitlines(keepends=True)
    source.checksums.write_text("".join(line for line in lines if lacking not in line))
    with pytest.raises(SystemExit, match="the list of checksums lacks"):
        source.get(tmp_path / "data")


def test_a_truth_of_another_form_is_refused(source: Source, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["main"] = SUPERVOXELS
    (source.folder / "groundtruth.h5.gz").write_bytes(gzip.compress(buffer.getvalue()))
    source.list_files()
    with pytest.raises(SystemExit, match="holds main instead of stack and transforms"):
        source.get(tmp_path / "data")


def test_a_folder_that_cannot_be_one_is_a_sentence(source: Source, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(SystemExit, match="taken cannot be written"):
        source.get(tmp_path / "taken")


def test_a_misspelt_option_is_refused_before_anything_is_asked(
    source: Source, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="no option --ulr"):
        samples.fib25(str(tmp_path), url=source.server.url, ulr="x")
    with pytest.raises(SystemExit, match="an argument too many: 'more'"):
        samples.fib25(str(tmp_path), source.server.url, "sums.sha256", "more")
    assert source.server.asked == []


def test_the_list_in_the_bundle_names_250_sections_in_a_row_and_the_truth() -> None:
    files = read_checksums(samples.FIB25_CHECKSUMS)
    sections = [f"{samples.SECTIONS}/iso.{number}.png" for number in range(2600, 2850)]
    assert set(files) == {samples.TRUTH, *sections}
    assert len(set(files.values())) == len(files)


def test_the_recipe_says_how_to_get_its_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"python -m scripts\.samples fib25"):
        recipe.fib25_datalist(tmp_path / "absent.zarr")
