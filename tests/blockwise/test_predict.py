from pathlib import Path
from typing import Any

import daisy
import numpy as np
import pytest
import torch
from funlib.geometry import Roi
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from custom.blockwise.arrays import open_store
from custom.blockwise.lattice import (
    BLOCK_BYTES,
    WindowLattice,
    block_size,
    blocks_of,
    bytes_of_sums,
)
from custom.blockwise.predict import Predict, Predictor
from custom.blockwise.runs import run_tasks
from custom.blockwise.sources import BlockSource
from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.features.triplane import Triple, take
from custom.inferers import TokenSlidingWindowInferer
from custom.outputs import images
from custom.planes import NORMAL_AXIS, PLANES, upsample_batch
from custom.scores import as_uint8, predicted_classes

STEP = 125 / 18
OFFSETS = [[1, 0, 0], [0, 2, 0], [0, 0, 3]]
CPU = torch.device("cpu")


class Mixing(nn.Module):
    """Something of all inputs, and of how they lie, in every channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv3d(1, channels, 3, padding=1)

    def forward(self, x: Tensor, **inputs: Tensor) -> Tensor:
        result = 4 * self.conv(x)
        shape = x.shape[2:]
        for name in (name for name in inputs if "tokens_" in name):
            placement = inputs[name.replace("tokens", "placement")]
            values = upsample_batch(inputs[name].float(), placement, shape, name[-2:])
            result = result + values[:, :1]
        if "features" in inputs:
            result = result + inputs["features"].float().mean(1, keepdim=True)
        if "context_image" in inputs:
            placed = inputs["context_placement"].sum() / 50
            result = result + 3 * inputs["context_image"] + placed
        if "context_features" in inputs:
            result = result + inputs["context_features"].float().mean(1, keepdim=True)
        return result


def volume(shape: tuple[int, ...], kind: str) -> dict[str, Tensor]:
    """A batch of one volume as a data loader gives it."""
    generator = torch.Generator().manual_seed(0)
    batch = {"image": torch.rand(1, 1, *shape, generator=generator) * 2 - 1}
    if kind == "dense":
        batch["features"] = torch.randn(1, 2, *shape, generator=generator).half()
    for plane in PLANES if kind == "tokens" else ():
        normal = NORMAL_AXIS[plane]
        step = [1.0 if a == normal else STEP for a in range(3)]
        start = [0.0 if a == normal else -0.4 * STEP for a in range(3)]
        count = [n if a == normal else int(n / STEP) + 2 for a, n in enumerate(shape)]
        batch[f"tokens_{plane}"] = torch.randn(1, 2, *count, generator=generator).half()
        batch[f"placement_{plane}"] = torch.tensor([[start, step]])
    return batch


class MemorySource(BlockSource):
    """A batch of one volume, read box by box; what it is asked for is kept."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        z, y, x = batch["image"].shape[2:]
        super().__init__((z, y, x), None)
        self.batch = batch
        self.read: list[Roi] = []

    @property
    def dense(self) -> bool:
        return "features" in self.batch

    @property
    def planes(self) -> tuple[str, ...]:
        return tuple(plane for plane in PLANES if f"tokens_{plane}" in self.batch)

    def image(self, roi: Roi) -> Tensor:
        assert Roi((0, 0, 0), self.shape).contains(roi)
        self.read.append(roi)
        return self.batch["image"][0][(slice(None), *roi.to_slices())]

    def placement(self, plane: str) -> tuple[Triple, Triple]:
        start, step = self.batch[f"placement_{plane}"][0].double().tolist()
        return (start[0], start[1], start[2]), (step[0], step[1], step[2])

    def entries(self, plane: str, entries: Roi) -> Tensor:
        return take(self.batch[f"tokens_{plane}"][0], entries.begin, entries.shape)

    def features(self, roi: Roi) -> Tensor:
        return self.batch["features"][0][(slice(None), *roi.to_slices())]


def whole(batch: dict[str, Tensor], network: nn.Module, **settings: Any) -> Tensor:
    """What today's inference makes of a volume in memory."""
    inferer = TokenSlidingWindowInferer(**settings)
    return inferer(batch["image"], network, **{k: v for k, v in batch.items() if k != "image"})[0]


def task(
    folder: Path, source: BlockSource, network: nn.Module, block: Any, **settings: Any
) -> Predict:
    """A task of a chain, its arrays made."""
    inferer = TokenSlidingWindowInferer(**settings)
    predictor = Predictor(network, inferer, source, CPU)
    layout = settings.get("layout") or ChannelLayout(3, 0)
    arrays = {"affinities": (0, 3), "lsds": (3, 13)} if layout.num_lsds else {"affinities": (0, 3)}
    if layout.num_classes:
        arrays = {"probabilities": (0, layout.num_classes)}
    made = Predict(
        state_dir=folder / "state",
        name="predict",
        volume="a",
        store=folder / "features.zarr",
        config=folder / "config.json",
        voxel_size_nm=(8.0, 4.0, 2.0),
        offset_nm=(0.0, 0.0, 0.0),
        shape=source.shape,
        window=predictor.lattice().window,
        overlap=inferer.overlap,
        context_factor=inferer.context_factor,
        block=block,
        output=folder / "out.zarr",
        arrays=arrays,
        classes="labels/segmentation" if layout.num_classes else None,
        live=predictor,
    )
    images.begin(made.output)
    made.init()
    return made


def process(made: Predict) -> None:
    """All blocks, without the engine."""
    with made.process_block_func() as process_block:
        for number, roi in enumerate(blocks_of(made.shape, made.block)):
            process_block(daisy.Block(roi, roi, roi, block_id=("predict", number)))


def written(made: Predict) -> dict[str, np.ndarray[Any, Any]]:
    """All arrays of a task."""
    return {name: open_store(made.output / name / "s0").read().result() for name in made.names}


ODD = (13, 29, 18)
CASES = {
    "tokens": ({"kind": "tokens"}, {"overlap": 0.5}),
    "no overlap": ({"kind": "tokens"}, {"overlap": 0.0}),
    "a quarter": ({"kind": "tokens", "block": (5, 12, 7)}, {"overlap": 0.25}),
    "raw alone": ({"kind": "raw"}, {"overlap": 0.5}),
    "dense": ({"kind": "dense"}, {"overlap": 0.5}),
    "mirrored": ({"kind": "tokens"}, {"overlap": 0.25, "mirror": True}),
    "sections": ({"kind": "tokens"}, {"roi_size": (1, 8, 8), "overlap": 0.5, "dimensions": 2}),
    "smaller than a window": ({"kind": "tokens", "shape": (4, 6, 20)}, {"overlap": 0.5}),
    "one block": ({"kind": "tokens", "block": ODD}, {"overlap": 0.5}),
    "block beyond the volume": ({"kind": "raw", "block": (64, 64, 64)}, {"overlap": 0.5}),
    "context": ({"kind": "tokens"}, {"overlap": 0.5, "context_factor": 3}),
    "flat context": ({"kind": "tokens"}, {"overlap": 0.25, "context_factor": (1, 2, 3)}),
    "dense context": ({"kind": "dense"}, {"overlap": 0.5, "context_factor": 2}),
    "context, mirrored": ({"kind": "tokens"}, {"mirror": True, "context_factor": (2, 3, 1)}),
    "LSDs": ({"kind": "tokens"}, {"overlap": 0.5, "layout": ChannelLayout(3, 10)}),
    "classes": ({"kind": "tokens"}, {"overlap": 0.5, "layout": ChannelLayout(0, 0, 4)}),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_give_what_the_whole_volume_gives(case: str, tmp_path: Path) -> None:
    data, settings = CASES[case]
    settings = {"roi_size": (6, 10, 8), "affinity_offsets": OFFSETS, **settings}
    layout = settings.get("layout") or ChannelLayout(3, 0)
    batch, network = volume(data.get("shape", ODD), data["kind"]), Mixing(layout.num_outputs)
    made = task(tmp_path, MemorySource(batch), network, data.get("block", (8, 10, 11)), **settings)
    process(made)
    expected = whole(batch, network, **settings)
    found = written(made)
    for name, (begin, end) in made.arrays.items():
        np.testing.assert_array_equal(found[name], as_uint8(expected[begin:end]))
        assert len(np.unique(found[name])) > 20
    if made.classes:
        np.testing.assert_array_equal(found[made.classes], predicted_classes(expected))


class Masked(MemorySource):
    """With a mask of its left side."""

    def inside(self, roi: Roi) -> np.ndarray[Any, Any]:
        return np.broadcast_to(np.arange(roi.begin[2], roi.end[2]) < 7, roi.shape)


@pytest.mark.parametrize("block", [ODD, (8, 10, 11)])
def test_beyond_the_mask_is_nothing_whatever_the_blocks(block: Any, tmp_path: Path) -> None:
    settings = {"roi_size": (6, 10, 8), "overlap": 0.5, "layout": ChannelLayout(0, 0, 4)}
    batch, network = volume(ODD, "raw"), Mixing(4)
    made = task(tmp_path, Masked(batch), network, block, **settings)
    process(made)
    expected, found = whole(batch, network, **settings), written(made)
    assert not any(values[..., 7:].any() for values in found.values())
    np.testing.assert_array_equal(found["probabilities"][..., :7], as_uint8(expected[..., :7]))
    classes = found["labels/segmentation"]
    np.testing.assert_array_equal(classes[..., :7], predicted_classes(expected)[..., :7])


@settings(max_examples=25)
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.integers(6, 15)] * 3),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.tuples(*[st.integers(7, 20)] * 3),
)
def test_what_windows_of_a_block_read_is_within_its_context(
    shape: Any, roi_size: Any, overlap: float, block: Any
) -> None:
    window = tuple(min(r, s) for r, s in zip(roi_size, shape, strict=True))
    lattice = WindowLattice(shape, window, overlap)
    total = 0
    for roi in blocks_of(shape, block):
        corners = lattice.touching(roi)
        total += len(corners)
        around = roi.grow(lattice.context, lattice.context)
        assert all(around.contains(Roi(corner, window)) for corner in corners)
    windows = len(lattice.touching(Roi((0, 0, 0), shape)))
    assert total / windows - 1 == pytest.approx(lattice.recomputed(block))


def test_a_block_reads_no_more_than_its_context(tmp_path: Path) -> None:
    source = MemorySource(volume(ODD, "tokens"))
    made = task(tmp_path, source, Mixing(3), (8, 10, 11), roi_size=(6, 10, 8), context_factor=2)
    for roi in blocks_of(made.shape, made.block):
        source.read.clear()
        list(made.live.slabs(roi, slice(0, 3), 5))
        around = roi.grow(made.context_size, made.context_size)
        assert all(around.contains(box) for box in source.read)


def lattice_of(shape: Any, overlap: float = 0.5, window: Any = (64, 64, 64)) -> WindowLattice:
    return WindowLattice(
        shape, tuple(min(w, n) for w, n in zip(window, shape, strict=True)), overlap
    )


@pytest.mark.parametrize("value", [64, 128, [64, 10, 200], 20, 512])
def test_blocks_never_share_a_chunk(value: Any) -> None:
    shape = (300, 10, 200)
    block = block_size(value, lattice_of(shape), 9)
    assert all(b % 64 == 0 or b <= 64 or b == n for b, n in zip(block, shape, strict=True))


def test_a_block_size_that_cuts_chunks_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"block_size \[100, 64, 64\]: 100 is not a multiple of 64"
    ):
        block_size([100, 64, 64], lattice_of((300, 300, 300)), 9)
    with pytest.raises(InputError, match="128 is not a multiple of 256"):
        block_size(128, lattice_of((300, 300, 300)), 9, unit=256)


def test_a_chosen_block_is_of_whole_chunks_and_windows_and_bounded() -> None:
    assert block_size(None, lattice_of((5000, 5000, 100)), 9) == (256, 256, 100)
    assert block_size(None, lattice_of((5000, 5000, 100), window=(64, 96, 64)), 9)[1] == 192
    many = lattice_of((5000, 5000, 5000))
    block = block_size(None, many, 40)
    assert block < (256, 256, 256) and bytes_of_sums(many, block[1:], 40) <= BLOCK_BYTES
    assert block_size(None, lattice_of((90, 80, 70)), 9) == (90, 80, 70), "small: one block"


@pytest.mark.parametrize("thickness", [1, 4, 5, 64])
def test_slabs_come_as_soon_as_they_are_done_and_are_those_of_the_whole(thickness: int) -> None:
    batch, network = volume(ODD, "tokens"), Mixing(3)
    inferer = TokenSlidingWindowInferer((6, 10, 8), 0.5)
    predictor = Predictor(network, inferer, MemorySource(batch), CPU)
    roi = Roi((2, 5, 3), (10, 20, 12))
    slabs = list(predictor.slabs(roi, slice(1, 3), thickness))
    assert [box.shape[0] for box, _ in slabs][:-1] == [thickness] * (len(slabs) - 1)
    found = torch.cat([values for _, values in slabs], 1)
    expected = whole(batch, network, roi_size=(6, 10, 8), overlap=0.5)[1:3]
    assert torch.equal(found, expected[(slice(None), *roi.to_slices())])


def test_as_a_task_it_does_the_same_and_leaves_empty_blocks_out(tmp_path: Path) -> None:
    batch, network = volume((13, 20, 8), "tokens"), Mixing(3)
    batch["image"][..., 10:, :] = 0.25
    made = task(tmp_path, MemorySource(batch), network, (13, 10, 8), roi_size=(6, 10, 8))
    run_tasks([made], tmp_path / "state")
    found = written(made)["affinities"]
    expected = as_uint8(whole(batch, network, roi_size=(6, 10, 8)))
    np.testing.assert_array_equal(found[:, :, :10], expected[:, :, :10])
    assert not found[:, :, 10:].any() and made.num_empty == 1


def test_a_prediction_that_is_not_finite_names_its_block(tmp_path: Path) -> None:
    batch = volume((13, 20, 8), "raw")
    batch["image"][0, 0, 5, 15, 3] = torch.nan
    made = task(tmp_path, MemorySource(batch), Mixing(3), (13, 10, 8), roi_size=(6, 10, 8))
    with pytest.raises(
        InputError, match=r"1 of 2 blocks.*NaN.* at \[0, 10, 0\], shape \[13, 10, 8"
    ):
        run_tasks([made], tmp_path / "state")
