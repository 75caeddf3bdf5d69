import json
import math
from pathlib import Path
from typing import Any

import daisy
import numpy as np
import pytest
import torch
from funlib.geometry import Roi
from torch import Tensor

from custom.blockwise.features import Extractor, Features, Forget, feature_block, owned
from custom.blockwise.lattice import blocks_of
from custom.blockwise.raw_source import RawSource, Region
from custom.datalist import OpenEntry, entries_in, place_entry
from custom.features.cache_files import open_array, token_array
from custom.features.extraction import extract_planes
from custom.features.lattice import grid_bytes
from custom.features.spec import FeatureSpec
from custom.features.triplane import PlaneGrid
from custom.inferers import WholeVolume
from custom.planes import PLANES
from custom.samples import add_extracted, image_of
from custom.volumes import create_ome_zarr_array
from tests.features.test_extraction import PatchMeans, spec_of
from tests.test_finer_raw import write_datalist

SHAPE = (23, 30, 41)
WINDOW = (20.0, 220.0)
BOX = Roi((3, 5, 2), (17, 22, 36))
BLOCK = (7, 12, 15)

SPECS: dict[str, dict[str, Any]] = {
    "windows side by side": {},
    "fractional scale": {"pixels_per_voxel": (1.3, 1.7, 0.9)},
    "shifted windows": {"stride": 2},
    "overlapping windows": {"overlap": 8},
    "all of it": {"overlap": 4, "stride": 1, "pixels_per_voxel": (1.0, 1.5, 2.0)},
    "steps between slices": {"slice_step": (1, 2, 3)},
    "one plane": {"planes": ("xy",)},
    "dense": {"layout": "dense", "dtype": "float16", "pixels_per_voxel": (0.8, 1.0, 1.0)},
}
EXACTLY_ONCE = [name for name, changes in SPECS.items() if not changes.get("overlap")]


class Counting(PatchMeans):
    """A backbone that counts its images."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return super().forward(images)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenEntry:
    """An entry with raw of noise and a mask of its left side."""
    folder = tmp_path_factory.mktemp("raw")
    random = np.random.default_rng(0)
    np.save(folder / "raw.npy", random.integers(0, 256, SHAPE, dtype=np.uint8))
    mask = np.zeros(SHAPE, np.uint8)
    mask[..., :20] = 1
    np.save(folder / "mask.npy", mask)
    entry = {"id": "a", "raw": "raw.npy", "mask": "mask.npy"}
    entry |= {"voxel_size_nm": {"raw": [8, 4, 5]}}  # type: ignore[dict-item]
    (folder / "datalist.json").write_text(json.dumps({"name": "x", "test": [entry]}))
    return place_entry(entries_in(folder / "datalist.json", "test")[0])


def task(folder: Path, region: Region, spec: FeatureSpec, backbone: Any, block: Any) -> Features:
    made = Features(
        state_dir=folder / "state",
        name="features",
        volume="a",
        shape=region.shape,
        block=block,
        spec=spec.to_json(),
        intensity_window=region.window,
        store=folder / "features.zarr",
        config=folder / "config.json",
        live=Extractor(region, backbone, spec),
    )
    with made.process_block_func() as process:
        for number, roi in enumerate(blocks_of(region.shape, block)):
            process(daisy.Block(roi, roi, roi, block_id=("features", number)))
    return made


def whole(region: Region, spec: FeatureSpec, backbone: Any) -> dict[str, PlaneGrid]:
    """Of the region at once, as inference on the whole volume extracts them."""
    opened = region.opened
    shape, axes = opened.raw.metadata.shape, opened.raw_axes
    return extract_planes(
        opened.source.read, shape, region.roi, backbone, spec, region.window, raw_axes=axes
    )


@pytest.mark.parametrize("name", SPECS)
def test_blocks_give_the_features_of_the_whole_and_windows_their_inputs(
    name: str, opened: OpenEntry, tmp_path: Path
) -> None:
    region, backbone = Region(opened, BOX, WINDOW), Counting()
    spec = spec_of(backbone, **SPECS[name])
    expected = whole(region, spec, backbone)
    computed, backbone.seen = backbone.seen, 0
    made = task(tmp_path, region, spec, backbone, BLOCK)
    assert (backbone.seen == computed) is (name in EXACTLY_ONCE)
    source = RawSource(region, spec, made.store)
    stored = 0
    for plane, grid in expected.items():
        entries = Roi((0, 0, 0), grid.values.shape[1:])
        assert torch.equal(source.entries(plane, entries), grid.values)
        assert source.placement(plane) == (grid.start, grid.step)
        array = open_array(made.store / token_array(plane))
        stored += math.prod(array.shape) * array.dtype.numpy_dtype.itemsize
    shape, axes = opened.raw.metadata.shape, opened.raw_axes
    assert grid_bytes(spec, shape, BOX, axes) == stored
    same_inputs(source, region, spec, expected)


def same_inputs(
    source: RawSource, region: Region, spec: FeatureSpec, grids: dict[str, PlaneGrid]
) -> None:
    """What windows are given is what they are given of a whole volume."""
    image = image_of(region.opened.read_raw(region.roi), region.window)
    sample = {"image": image}
    add_extracted(sample, spec, grids)
    placed = {
        p: PlaneGrid.placed(sample[f"tokens_{p}"], sample[f"placement_{p}"])
        for p in PLANES
        if f"tokens_{p}" in sample
    }
    volume = WholeVolume(placed, sample.get("features"), None)
    for offset in ((0, 0, 0), (2, 5, 1), tuple(n - 6 for n in region.shape)):
        box = Roi(offset, (6, 6, 6))
        assert torch.equal(source.image(box), image[(slice(None), *box.to_slices())])
        found, expected = (s.around(offset, (6, 6, 6)) for s in (source, volume))
        assert found.keys() >= expected.keys() > set()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_raw_that_is_finer_than_the_grid_is_read_alike_in_blocks(tmp_path: Path) -> None:
    opened = place_entry(entries_in(write_datalist(tmp_path), "training")[0])
    region, backbone = Region(opened, opened.roi, WINDOW), PatchMeans()
    spec = spec_of(backbone, pixels_per_voxel=(1.0, 1.5, 3.0))
    made = task(tmp_path, region, spec, backbone, (4, 5, 6))
    source = RawSource(region, spec, made.store)
    same_inputs(source, region, spec, whole(region, spec, backbone))


def test_a_grid_moved_by_a_part_of_its_voxels_is_another_region(tmp_path: Path) -> None:
    """Its features are of other raw, though the box has the same numbers."""
    regions = []
    for start_nm in (34.0, 36.0):
        folder = tmp_path / str(start_nm)
        folder.mkdir()
        arrays = {"raw": (4.0, 0.0, (32, 32, 32)), "labels": (8.0, start_nm, (8, 8, 8))}
        for name, (size, start, shape) in arrays.items():
            create_ome_zarr_array(
                folder / "d.zarr", name, shape, np.uint8, "zyx", (size,) * 3, (start,) * 3,
                (32, 32, 32), {},
            ).write(np.ones(shape, np.uint8)).result()  # fmt: skip
        entry = {"id": "a", "raw": "d.zarr/raw", "labels": "d.zarr/labels"}
        (folder / "datalist.json").write_text(json.dumps({"name": "x", "test": [entry]}))
        opened = place_entry(entries_in(folder / "datalist.json", "test")[0])
        regions.append(Region(opened, opened.roi, WINDOW))
    one, other = (region.place() for region in regions)
    assert {name for name in one if one[name] != other[name]} == {"raw", "raw_axes"}


@pytest.mark.parametrize("block", [BLOCK, (16, 16, 16), (64, 64, 64)])
def test_every_patch_has_one_owner(block: Any, opened: OpenEntry) -> None:
    region = Region(opened, BOX, WINDOW)
    spec = spec_of(PatchMeans(), **SPECS["all of it"])
    for plane in PLANES:
        lattice = region.lattice(spec, plane)
        owners = np.zeros(lattice.shape, int)
        first = [part.start for part in (lattice.normal, *lattice.patches)]
        for roi in blocks_of(region.shape, block):
            part = owned(lattice, region.roi, roi)
            if part is not None:
                spans = zip((part.normal, *part.patches), first, strict=True)
                owners[tuple(slice(p.start - f, p.stop - f) for p, f in spans)] += 1
        assert (owners == 1).all()


def test_blocks_are_whole_windows_and_whole_slabs_of_slices() -> None:
    spec = spec_of(PatchMeans(), window=512, pixels_per_voxel=(2.0, 1.0, 8.0))
    assert feature_block(spec, (3000, 3000, 3000)) == (256, 512, 256)
    assert feature_block(spec, (100, 3000, 40)) == (100, 512, 40)


def test_a_store_that_is_not_needed_any_more_may_be_gone(opened: OpenEntry, tmp_path: Path) -> None:
    region, backbone = Region(opened, BOX, WINDOW), PatchMeans()
    made = task(tmp_path, region, spec_of(backbone), backbone, BLOCK)
    common = made.model_dump(include=set(Forget.model_fields)) | {"name": "forget"}
    forget = Forget(**common)
    assert not forget.outputs_exist()
    with forget.process_block_func() as process:
        process(daisy.Block(forget.write_roi, forget.write_roi, forget.write_roi))
    assert not made.outputs_exist() and not list(tmp_path.glob("*features.zarr*"))
    assert forget.outputs_exist() and made.model_copy(update={"spent": True}).outputs_exist()


def test_a_kill_leaves_no_part_of_a_store_at_its_place(
    opened: OpenEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task(tmp_path, Region(opened, BOX, WINDOW), spec_of(PatchMeans()), PatchMeans(), BLOCK)
    forget = Forget(**made.model_dump(include=set(Forget.model_fields)) | {"name": "forget"})
    monkeypatch.setattr("custom.blockwise.features.shutil.rmtree", lambda *_, **__: None)
    with forget.process_block_func() as process:
        process(daisy.Block(forget.write_roi, forget.write_roi, forget.write_roi))
    assert list(tmp_path.glob("*features.zarr*")) and not made.outputs_exist()


def test_where_the_mask_is_0_or_raw_is_constant_there_is_nothing(opened: OpenEntry) -> None:
    source = RawSource(Region(opened, BOX, WINDOW), None, Path("none"))
    assert not source.empty(Roi((0, 0, 0), (5, 5, 20)))
    assert not source.empty(Roi((0, 0, 17), (5, 5, 5)))
    assert source.empty(Roi((0, 0, 18), (5, 5, 5)))
    black = RawSource(Region(opened, BOX, (300.0, 400.0)), None, Path("none"))
    black.image = lambda roi: torch.full((1, *roi.shape), -1.0)  # type: ignore[method-assign]
    assert black.empty(Roi((0, 0, 0), (5, 5, 5)))
    assert opened.mask is not None
    assert source.mask == (opened.mask.path, (3, 5, 2))
    before = source.region.describe()
    Path(opened.mask.path).touch()
    assert source.region.describe() != before, "another mask may be there"
