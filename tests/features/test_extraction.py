from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from funlib.geometry.roi import Roi
from numpy.typing import NDArray
from torch import Tensor, nn

from custom.errors import InputError
from custom.features import extraction
from custom.features.backbone import load_backbone
from custom.features.extraction import PlaneExtraction, RawBox, extract_planes
from custom.features.settings import load_backbone_and_spec
from custom.features.spec import FeatureSpec
from custom.features.triplane import upsample
from custom.planes import NORMAL_AXIS, PLANES
from custom.volumes import open_volume
from custom.working_grid import RawAxes, RawAxis, filtered

SHAPE = (9, 14, 11)
WINDOW = (20.0, 220.0)
VIT = {
    "model_type": "dinov3_vit",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_register_tokens": 4,
    "patch_size": 4,
}
VIT_SETTINGS = {"pixels_per_voxel": [1.5, 2, 1], "window": 16, "overlap": 4, "dtype": "float32"}


class PatchMeans(nn.Module):
    """Stands in for a backbone: mean of the patch, mean of the window, place in the window."""

    patch_size, channels, own_channels, layers, digest, name = 4, 3, 3, (1,), "means", "means"
    image_mean, image_std = (0.3, 0.3, 0.3), (0.2, 0.2, 0.2)
    basis = None

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        means = F.avg_pool2d(images[:, 0], 4)
        rows, columns = torch.arange(means.shape[1])[:, None], torch.arange(means.shape[2])
        whole = means.mean((1, 2), keepdim=True).expand_as(means)
        return torch.stack([means, whole, (10.0 * rows + columns).expand_as(means)], dim=1)


def spec_of(backbone: Any, **changes: Any) -> FeatureSpec:
    values = {
        "backbone": backbone.name,
        "digest": backbone.digest,
        "patch_size": backbone.patch_size,
        "channels": backbone.channels,
        "layers": backbone.layers,
        "final_norm": True,
        "pixels_per_voxel": (1.0, 1.0, 1.0),
        "window": 16,
        "overlap": 0,
        "stride": backbone.patch_size,
        "planes": PLANES,
        "intensity_percentiles": (0.1, 99.9),
        "image_mean": backbone.image_mean,
        "image_std": backbone.image_std,
        "precision": "float32",
        "dtype": "float32",
        "layout": "tokens",
    }
    return FeatureSpec.from_json({**values, **changes})


@pytest.fixture
def raw() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def reader(raw: NDArray[Any]) -> Callable[[Roi], NDArray[Any]]:
    return lambda roi: raw[roi.to_slices()]


def slow_grid(raw: NDArray[Any], spec: FeatureSpec, backbone: nn.Module, plane: str) -> Tensor:
    """The whole volume's grid, one image per shift, their tokens interleaved: (C, slices, h, w)."""
    normal = NORMAL_AXIS[plane]
    every = spec.slice_step_of(plane)
    unit = np.clip((raw.astype(np.float64) - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)
    slices = np.moveaxis(unit, normal, 0)[::every]
    scales = [s for axis, s in enumerate(spec.pixels_per_voxel) if axis != normal]
    shifts = spec.patch_size // spec.stride
    margin = (
        -(shifts // 2) * spec.stride
    )  # the first shift; an even number sticks out by half a stride
    sizes = [
        n * s + (spec.stride / 2 if shifts % 2 == 0 else 0)
        for n, s in zip(slices.shape[1:], scales, strict=True)
    ]
    counts = [int(np.ceil(round(size / spec.stride, 6))) for size in sizes]
    result = np.zeros((spec.channels, len(slices), *counts))
    for a, b in product(range(shifts), repeat=2):
        wanted = result[:, :, a::shifts, b::shifts]
        first = (margin + a * spec.stride, margin + b * spec.stride)
        for index, image in enumerate(slices):
            wanted[:, index] = slow_shift(image, spec, backbone, scales, first, wanted.shape[2:])
    return torch.tensor(result, dtype=torch.float32)


def slow_shift(
    image: NDArray[Any],
    spec: FeatureSpec,
    backbone: nn.Module,
    scales: list[float],
    first: tuple[int, int],
    counts: tuple[int, ...],
) -> NDArray[Any]:
    """Patches of one slice, the first of them at pixel ``first``, every window one by one."""
    patch, window = spec.patch_size, spec.window
    per_window, per_overlap = window // patch, spec.overlap // patch
    stride = per_window - per_overlap
    windows = [1 + max(0, -(-(count - per_window) // stride)) for count in counts]
    inside = np.arange(per_window) + 0.5
    ramp = np.minimum(1, np.minimum(inside, per_window - inside) / max(per_overlap, 0.5))
    total, weight = np.zeros((spec.channels, *counts)), np.zeros(counts)
    for a, b in product(range(windows[0]), range(windows[1])):
        corner = (first[0] + a * stride * patch, first[1] + b * stride * patch)
        tokens = slow_window(image, spec, backbone, scales, corner)
        for i, j in product(range(per_window), repeat=2):
            row, column = a * stride + i, b * stride + j
            if row < counts[0] and column < counts[1]:
                share = ramp[i] * ramp[j]
                total[:, row, column] += share * tokens[:, i, j]
                weight[row, column] += share
    return total / weight


def slow_window(
    image: NDArray[Any],
    spec: FeatureSpec,
    backbone: nn.Module,
    scales: list[float],
    corner: tuple[int, int],
) -> NDArray[Any]:
    """Tokens of the window that begins at a pixel, the image reflected beyond its borders."""
    pad = 3 * spec.window
    for axis, (pixel, scale) in enumerate(zip(corner, scales, strict=True)):
        place = (np.arange(spec.window) + pixel + 0.5) / scale - 0.5
        padded = np.pad(image, [(pad, pad) if i == axis else (0, 0) for i in (0, 1)], "reflect")
        voxels = np.arange(padded.shape[axis]) - pad
        image = np.apply_along_axis(
            lambda line, at=place, xs=voxels: np.interp(at, xs, line), axis, padded
        )
    normalised = (image[None] - np.reshape(spec.image_mean, (3, 1, 1))) / np.reshape(
        spec.image_std, (3, 1, 1)
    )
    return backbone(torch.tensor(normalised, dtype=torch.float32)[None])[0].detach().numpy()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"overlap": 4},
        {"window": 12, "overlap": 8},  # three windows share a patch
        {"pixels_per_voxel": (1.0, 2.0, 1.5), "overlap": 4},
        {"pixels_per_voxel": (4.0, 1.25, 3.0), "window": 20},
        {"stride": 2},
        {"stride": 1, "overlap": 8, "window": 12},
        {"stride": 2, "pixels_per_voxel": (1.0, 2.0, 1.5), "overlap": 4},
        {"stride": 2, "slice_step": [2, 1, 4]},
        {"slice_step": [5, 1, 3], "planes": ("xy", "yz")},
    ],
    ids=str,
)
def test_features_are_those_of_a_slow_loop_over_all_windows(
    raw: NDArray[np.uint8], changes: dict[str, Any]
) -> None:
    backbone: Any = PatchMeans()
    spec = spec_of(backbone, **changes)
    whole = Roi((0, 0, 0), SHAPE)
    grids = extract_planes(reader(raw), SHAPE, whole, backbone, spec, WINDOW)
    assert tuple(grids) == spec.planes
    for plane, grid in grids.items():
        expected = slow_grid(raw, spec, backbone, plane).movedim(1, 1 + NORMAL_AXIS[plane])
        torch.testing.assert_close(grid.values, expected, atol=2e-5, rtol=1e-5)
        even = spec.stride < backbone.patch_size
        for axis in range(3):
            is_normal = axis == NORMAL_AXIS[plane]
            every = spec.slice_step_of(plane)
            step = every if is_normal else spec.stride / spec.pixels_per_voxel[axis]
            assert grid.step[axis] == step
            assert grid.start[axis] == ((1 - every) / 2 if is_normal else -even * step / 2)


FINER = {"stride": 2, "slice_step": [3, 2, 4]}
ALL_LAYERS = {"stride": 1, "layers": [1, 2], "final_norm": False, "planes": ["yz"]}
XY_ALONE = {"stride": 2, "slice_step": 5, "planes": ["xy"], "pixels_per_voxel": 0.8}


@pytest.mark.parametrize("roi", [Roi((2, 3, 1), (5, 6, 7)), Roi((8, 0, 10), (1, 14, 1))], ids=str)
@pytest.mark.parametrize("changes", [{}, FINER, ALL_LAYERS, XY_ALONE], ids=str)
def test_features_of_a_box_are_those_of_the_volume_cropped(
    raw: NDArray[np.uint8], roi: Roi, changes: dict[str, Any]
) -> None:
    backbone, spec = load_backbone_and_spec(VIT, {**VIT_SETTINGS, **changes})
    whole = Roi((0, 0, 0), SHAPE)
    all_of_it = extract_planes(reader(raw), SHAPE, whole, backbone, spec, WINDOW)
    part = extract_planes(reader(raw), SHAPE, roi, backbone, spec, WINDOW, windows_at_once=3)
    for plane in spec.planes:
        expected = upsample(all_of_it[plane], SHAPE, plane)[:, *roi.to_slices()]
        found = upsample(part[plane], roi.shape, plane)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


VIT_14 = {**VIT, "model_type": "dinov2", "patch_size": 14, "image_size": 28, "hidden_size": 16}
VIT_14 = {k: v for k, v in VIT_14.items() if k not in ("num_register_tokens", "intermediate_size")}
VIT_16 = {**VIT, "patch_size": 16, "hidden_size": 16}
CONVNEXT = {
    "model_type": "dinov3_convnext",
    "hidden_sizes": [8, 12, 16, 20],
    "depths": [1, 1, 1, 1],
}
FAMILIES = {
    "ViT-14": (VIT_14, {"window": 28, "stride": 7, "layers": [1, -1]}),
    "ViT-14, scaled": (
        VIT_14,
        {"window": 28, "overlap": 14, "stride": 7, "pixels_per_voxel": 2.016},
    ),
    "ViT-16": (VIT_16, {"window": 32, "stride": 4, "layers": [2], "final_norm": False}),
    "ViT-16, two layers": (
        VIT_16,
        {"window": 32, "overlap": 16, "stride": 8, "layers": [1, 2], "final_norm": False},
    ),
    "ConvNeXt, stage 2": (
        CONVNEXT,
        {"window": 32, "overlap": 8, "stride": 4, "layers": [2], "final_norm": False},
    ),
    "ConvNeXt, last stage": (
        CONVNEXT,
        {"window": 32, "stride": 16, "pixels_per_voxel": [1, 2, 2.5]},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_shifts_are_those_of_the_obvious_loop_for_every_backbone(family: str) -> None:
    source, changes = FAMILIES[family]
    settings = {"precision": "float32", "dtype": "float32", "planes": ["xz"], "slice_step": 3}
    backbone, spec = load_backbone_and_spec(source, {**settings, **changes})
    shape = (15, 4, 34)
    raw = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    found = extract_planes(reader(raw), shape, Roi((0, 0, 0), shape), backbone, spec, WINDOW)["xz"]
    expected = slow_grid(raw, spec, backbone, "xz").movedim(1, 2)
    assert expected.std() > 1e-2
    torch.testing.assert_close(found.values, expected, atol=1e-4, rtol=0)


def test_a_stride_of_one_patch_is_what_there_was_without(raw: NDArray[np.uint8]) -> None:
    whole = Roi((0, 0, 0), SHAPE)
    grids = []
    for changes in ({}, {"stride": 4, "slice_step": [1, 1, 1]}):
        backbone, spec = load_backbone_and_spec(VIT, {**VIT_SETTINGS, **changes})
        grids.append(extract_planes(reader(raw), SHAPE, whole, backbone, spec, WINDOW))
    for plane in PLANES:
        assert torch.equal(grids[0][plane].values, grids[1][plane].values)
        assert grids[0][plane].start == grids[1][plane].start == (0, 0, 0)


def blob_in(shape: tuple[int, ...], centre: tuple[float, ...], sigma: float) -> NDArray[np.float32]:
    """A ball on black; ``centre`` is measured from the corner of the volume."""
    axes = np.meshgrid(*(np.arange(n) + 0.5 for n in shape), indexing="ij")
    squares = sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True))
    return (255 * np.exp(-squares / (2 * sigma**2))).astype(np.float32)


RESOLUTIONS = [
    {"stride": stride, "pixels_per_voxel": scale}
    for stride in (4, 2, 1)
    for scale in (1.0, 2.0, 1.3)
]


@pytest.mark.parametrize("changes", [*RESOLUTIONS, {"stride": 2, "slice_step": [3, 3, 3]}], ids=str)
@pytest.mark.parametrize("centre", [(12.0, 14.0, 10.0), (12.9, 13.2, 11.4)], ids=str)
def test_a_blobs_centre_of_mass_stays_where_it_is(
    changes: dict[str, Any], centre: tuple[float, ...]
) -> None:
    backbone: Any = PatchMeans()
    scale = (changes.get("pixels_per_voxel", 1.0),) * 3
    spec = spec_of(backbone, window=96, **{**changes, "pixels_per_voxel": scale})
    shape = (25, 26, 23)
    raw = blob_in(shape, centre, sigma=3.0)
    grids = extract_planes(reader(raw), shape, Roi((0, 0, 0), shape), backbone, spec, (0.0, 255.0))
    for plane in PLANES:
        dense = upsample(grids[plane], shape, plane)[0].double()
        mass = (dense - dense.min()).clamp(min=0)
        for axis in range(3):
            along = mass.sum([a for a in range(3) if a != axis])
            place = (along * (torch.arange(shape[axis]) + 0.5)).sum() / along.sum()
            assert abs(place - centre[axis]) < 0.1, (plane, axis)


def make_symmetric_(backbone: nn.Module) -> None:
    """Kernels without a side: a random one answers most to what lies off its centre."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            kernel = module.weight.data
            kernel.copy_(kernel.mean((2, 3), keepdim=True).expand_as(kernel))


@pytest.mark.parametrize("shifts", [1, 2, 4])
@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(
    ("source", "patch", "layer"),
    [(VIT_14, 14, 1), (VIT_16, 16, 1), (CONVNEXT, 8, 2)],
    ids=["ViT-14", "ViT-16", "ConvNeXt"],
)
def test_a_blobs_peak_response_is_within_half_a_voxel(
    source: dict[str, Any], patch: int, layer: int, scale: float, shifts: int
) -> None:
    if patch % shifts:
        shifts = 7  # of a patch of 14 pixels
    settings = {
        "layers": [layer],
        "final_norm": False,
        "pixels_per_voxel": scale,
        "window": 4 * patch,
        "stride": patch // shifts,
        "planes": ["xy"],
        "precision": "float32",
        "dtype": "float32",
    }
    backbone, spec = load_backbone_and_spec(source, settings)
    make_symmetric_(backbone)
    shape = (1, int(4 * patch / scale), int(4 * patch / scale))
    centre = (0.5, 1.5 * patch / scale, 2.5 * patch / scale)  # the centre of a patch of every shift
    whole, dense = Roi((0, 0, 0), shape), []
    for volume in (blob_in(shape, centre, patch / scale / 4), np.zeros(shape, np.float32)):
        grid = extract_planes(reader(volume), shape, whole, backbone, spec, (0.0, 255.0))["xy"]
        dense.append(upsample(grid, shape, "xy")[:, 0])
    response = (dense[0] - dense[1]).norm(dim=0)
    peak = (response > response.max() * (1 - 1e-4)).nonzero() + 0.5  # several where it is flat
    assert (peak.mean(0) - torch.tensor(centre[1:])).abs().max() <= 0.5


def test_only_windows_with_a_wanted_patch_are_computed_and_only_their_voxels_read() -> None:
    backbone: Any = PatchMeans()
    spec = spec_of(backbone, planes=("xy",))
    read: list[Roi] = []

    def spy(roi: Roi) -> NDArray[np.uint8]:
        read.append(roi)
        return np.zeros(tuple(roi.shape), np.uint8)

    box = RawBox(spy, (40, 100, 100), Roi((3, 36, 4), (18, 8, 4)), WINDOW)
    plane = PlaneExtraction(box, backbone, spec, "xy")
    list(plane.slabs())
    assert plane.num_windows == 18  # patches 8 to 12 by 0 to 3: one window per slice
    assert read == [Roi((3, 32, 0), (16, 16, 16)), Roi((19, 32, 0), (2, 16, 16))]


@pytest.mark.parametrize("slab_bytes", [1, 1100, 4100])
def test_thin_slabs_for_little_memory_give_the_same_features(
    raw: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, slab_bytes: int
) -> None:
    backbone: Any = PatchMeans()
    box = RawBox(reader(raw), SHAPE, Roi((0, 0, 0), SHAPE), WINDOW)
    plane = PlaneExtraction(box, backbone, spec_of(backbone), "xz")
    whole = torch.cat([slab for _, slab in plane.slabs()], dim=1)
    monkeypatch.setattr(extraction, "SLAB_BYTES", slab_bytes)
    slabs = list(plane.slabs())
    assert len(slabs) > 1
    torch.testing.assert_close(torch.cat([slab for _, slab in slabs], dim=1), whole)


def test_slices_between_those_with_tokens_are_read_but_not_computed() -> None:
    backbone: Any = PatchMeans()
    spec = spec_of(backbone, planes=("xz",), slice_step=[1, 4, 1])
    read: list[Roi] = []

    def spy(roi: Roi) -> NDArray[np.uint8]:
        read.append(roi)
        return np.zeros(tuple(roi.shape), np.uint8)

    plane = PlaneExtraction(
        RawBox(spy, (16, 90, 16), Roi((3, 9, 2), (4, 3, 4)), WINDOW), backbone, spec, "xz"
    )
    assert plane.shape[1] == plane.num_windows == 2
    assert [begin for begin, _ in plane.slabs()] == [0]
    assert read == [Roi((0, 8, 0), (16, 5, 16))]  # slices 8 and 12


def test_an_extraction_can_go_on_where_it_stood(raw: NDArray[np.uint8]) -> None:
    backbone: Any = PatchMeans()
    box = RawBox(reader(raw), SHAPE, Roi((0, 0, 0), SHAPE), WINDOW)
    plane = PlaneExtraction(box, backbone, spec_of(backbone), "yz")
    whole = torch.cat([slab for _, slab in plane.slabs()], dim=1)
    windows: list[int] = []
    rest = list(plane.slabs(first=4, on_windows=windows.append))
    assert rest[0][0] == 4
    torch.testing.assert_close(torch.cat([slab for _, slab in rest], dim=1), whole[:, 4:])
    assert sum(windows) == plane.num_windows - 4 * plane.windows_per_slice


def test_grey_values_beyond_the_window_are_clipped(raw: NDArray[np.uint8]) -> None:
    backbone: Any = PatchMeans()
    spec, whole = spec_of(backbone), Roi((0, 0, 0), SHAPE)
    clipped = np.clip(raw.astype(np.float32), *WINDOW)
    expected = extract_planes(reader(clipped), SHAPE, whole, backbone, spec, WINDOW)
    found = extract_planes(reader(raw), SHAPE, whole, backbone, spec, WINDOW)
    other = extract_planes(reader(raw), SHAPE, whole, backbone, spec, (0.0, 255.0))
    assert torch.equal(found["xy"].values, expected["xy"].values)
    assert not torch.allclose(found["xy"].values, other["xy"].values)


def test_features_are_stored_in_the_specs_type(raw: NDArray[np.uint8]) -> None:
    backbone: Any = PatchMeans()
    spec, whole = spec_of(backbone, dtype="float16"), Roi((0, 0, 0), SHAPE)
    grids = extract_planes(reader(raw), SHAPE, whole, backbone, spec, WINDOW)
    assert grids["xy"].values.dtype == torch.float16


def test_features_that_are_not_finite_are_refused(raw: NDArray[np.uint8]) -> None:
    backbone: Any = PatchMeans()
    spec, broken = spec_of(backbone), raw.astype(np.float32)
    broken[4, 2, 3] = np.nan
    with pytest.raises(InputError, match=r"plane xy, slices 0 to 8 .* not finite"):
        extract_planes(reader(broken), SHAPE, Roi((0, 0, 0), SHAPE), backbone, spec, WINDOW)


def test_a_box_beyond_the_volume_and_a_foreign_backbone_are_refused(
    raw: NDArray[np.uint8],
) -> None:
    backbone: Any = PatchMeans()
    spec = spec_of(backbone)
    with pytest.raises(ValueError, match="must lie inside the volume"):
        extract_planes(reader(raw), SHAPE, Roi((5, 0, 0), (5, 5, 5)), backbone, spec, WINDOW)
    with pytest.raises(ValueError, match="intensity_window"):
        extract_planes(reader(raw), SHAPE, Roi((0, 0, 0), (5, 5, 5)), backbone, spec, (3.0, 3.0))
    with pytest.raises(ValueError, match="another backbone"):
        other = load_backbone(VIT)
        extract_planes(reader(raw), SHAPE, Roi((0, 0, 0), (5, 5, 5)), other, spec, WINDOW)


def test_a_progress_bar_counts_windows(
    raw: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    backbone: Any = PatchMeans()
    roi = Roi((0, 0, 0), (2, 3, 4))
    extract_planes(reader(raw), SHAPE, roi, backbone, spec_of(backbone), WINDOW, progress=True)
    captured = capsys.readouterr()
    assert "9/9" in captured.err and not captured.out
    extract_planes(reader(raw), SHAPE, roi, backbone, spec_of(backbone), WINDOW)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- raw finer than the volume's grid

FINE_SHAPE = (19, 23, 40)
GRID = (9, 15, 13)
AXES = (RawAxis(19, 2, 0.8), RawAxis(23, 1.5, 0.25), RawAxis(40, 3, 1))


@pytest.fixture
def fine() -> NDArray[np.uint8]:
    return np.random.default_rng(4).integers(0, 256, FINE_SHAPE, dtype=np.uint8)


class Camera(PatchMeans):
    """Keeps the images that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.images.append(images[:, 0] * 0.2 + 0.3)
        return super().forward(images)


def test_the_backbone_sees_the_pixels_of_finer_raw_as_they_are() -> None:
    backbone: Any = Camera()
    raw = np.random.default_rng(5).integers(0, 256, (3, 16, 48), dtype=np.uint8)
    axes = (RawAxis(3), RawAxis(16, 2, 0.5), RawAxis(48, 3, 1))
    spec = spec_of(backbone, pixels_per_voxel=(7.0, 2.0, 3.0), planes=("xy",))
    shape = (3, 8, 16)
    window = (0.0, 256.0)  # exact in floating point
    box = RawBox(reader(raw), shape, Roi((0, 0, 0), shape), window, axes)
    list(PlaneExtraction(box, backbone, spec, "xy", windows_at_once=3).slabs())
    seen = torch.cat(backbone.images, dim=2)  # three windows, side by side
    torch.testing.assert_close(seen * 256, torch.tensor(raw).float(), atol=1e-3, rtol=0)
    plane = PlaneExtraction(box, backbone, spec, "xy")
    for rows, columns in product(plane.lattice.windows[0], plane.lattice.windows[1]):
        for axis, window_ in zip(plane.lattice.axes, (rows, columns), strict=True):
            assert torch.equal(axis.resampling(window_)[1], torch.eye(16))


@pytest.mark.parametrize("plane", PLANES)
def test_features_of_finer_raw_are_those_of_that_raw_at_another_scale(
    fine: NDArray[np.uint8], plane: str
) -> None:
    """Windows and pixels are the same, when both grids share their corner and slices."""
    ratio, scale = [2.0, 1.5, 3.0], [1.2, 3.0, 4.5]
    ratio[NORMAL_AXIS[plane]] = 1.0
    backbone, spec = load_backbone_and_spec(
        VIT, {**VIT_SETTINGS, "pixels_per_voxel": scale, "planes": [plane]}
    )
    shape = (*(int(n // r) for n, r in zip((18, 21, 39), ratio, strict=True)),)
    fine = fine[:18, :21, :39]
    axes = [RawAxis(n, r, (r - 1) / 2) for n, r in zip(fine.shape, ratio, strict=True)]
    raw_axes: RawAxes = axes[0], axes[1], axes[2]
    whole = Roi((0, 0, 0), shape)
    found = extract_planes(reader(fine), shape, whole, backbone, spec, WINDOW, raw_axes=raw_axes)
    scale = [s / r for s, r in zip(scale, ratio, strict=True)]
    _, other = load_backbone_and_spec(
        VIT, {**VIT_SETTINGS, "pixels_per_voxel": scale, "planes": [plane]}
    )
    expected = extract_planes(
        reader(fine), fine.shape, Roi((0, 0, 0), fine.shape), backbone, other, WINDOW
    )
    torch.testing.assert_close(found[plane].values, expected[plane].values, atol=1e-5, rtol=0)
    assert found[plane].step == pytest.approx(
        [a / r for a, r in zip(expected[plane].step, ratio, strict=True)]
    )


@pytest.mark.parametrize("plane", PLANES)
def test_slices_of_finer_raw_are_antialiased_along_their_normal(
    fine: NDArray[np.uint8], plane: str
) -> None:
    """As if raw had been brought onto the slices before."""
    backbone: Any = PatchMeans()
    spec = spec_of(backbone, planes=(plane,), pixels_per_voxel=(1.0, 2.0, 1.5))
    normal, whole = NORMAL_AXIS[plane], Roi((0, 0, 0), GRID)
    found = extract_planes(reader(fine), GRID, whole, backbone, spec, WINDOW, raw_axes=AXES)
    unit = (np.clip(fine.astype(np.float32), *WINDOW) - WINDOW[0]) / (WINDOW[1] - WINDOW[0])
    slices = filtered(unit, normal, *AXES[normal].taps(range(GRID[normal])))
    there = [*AXES]
    there[normal] = RawAxis(GRID[normal])
    axes = (there[0], there[1], there[2])
    expected = extract_planes(
        reader(slices), GRID, whole, backbone, spec, (0.0, 1.0), raw_axes=axes
    )
    torch.testing.assert_close(found[plane].values, expected[plane].values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("roi", [Roi((2, 3, 1), (5, 6, 7)), Roi((8, 0, 10), (1, 15, 3))], ids=str)
@pytest.mark.parametrize("changes", [{}, FINER, XY_ALONE], ids=str)
def test_features_of_a_box_of_finer_raw_are_those_of_the_volume_cropped(
    fine: NDArray[np.uint8], roi: Roi, changes: dict[str, Any]
) -> None:
    backbone, spec = load_backbone_and_spec(VIT, {**VIT_SETTINGS, **changes})

    def features(box: Roi, at_once: int) -> dict[str, Tensor]:
        grids = extract_planes(
            reader(fine), GRID, box, backbone, spec, WINDOW, at_once, raw_axes=AXES
        )
        return {plane: upsample(grid, box.shape, plane) for plane, grid in grids.items()}

    whole = features(Roi((0, 0, 0), GRID), 8)
    for plane, part in features(roi, 3).items():
        expected = whole[plane][:, *roi.to_slices()]
        torch.testing.assert_close(part, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("plane", PLANES)
def test_images_of_finer_raw_depend_on_no_slab(
    fine: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, plane: str
) -> None:
    """Bit for bit, where the backbone is."""
    backbone: Any = PatchMeans()
    box = RawBox(reader(fine), GRID, Roi((0, 0, 0), GRID), WINDOW, AXES)
    extraction_ = PlaneExtraction(box, backbone, spec_of(backbone), plane, windows_at_once=1)
    thick = list(extraction_.slabs())
    monkeypatch.setattr(extraction, "SLAB_BYTES", 1)
    thin = list(extraction_.slabs())
    assert len(thin) == extraction_.shape[1] > len(thick)
    assert torch.equal(*(torch.cat([s for _, s in slabs], dim=1) for slabs in (thick, thin)))


def test_slabs_of_finer_raw_are_thinner() -> None:
    backbone: Any = PatchMeans()
    read: list[Roi] = []

    def spy(roi: Roi) -> NDArray[np.uint8]:
        read.append(roi)
        return np.zeros(tuple(roi.shape), np.uint8)

    def largest(axes: RawAxes | None) -> int:
        read.clear()
        box = RawBox(spy, (64, 32, 32), Roi((0, 0, 0), (64, 32, 32)), WINDOW, axes)
        for _ in PlaneExtraction(box, backbone, spec_of(backbone), "xy").slabs():
            pass
        return max(roi.size for roi in read)

    with pytest.MonkeyPatch.context() as patch:
        axes = RawAxis(256, 4, 1.5), RawAxis(64, 2, 0.5), RawAxis(64, 2, 0.5)
        assert (largest(None), largest(axes)) == (16 * 32 * 32, 69 * 64 * 64)
        patch.setattr(extraction, "SLAB_BYTES", 300_000)
        assert largest(None) == 16 * 32 * 32
        assert 4 * largest(axes) < 300_000


@pytest.mark.parametrize("changes", RESOLUTIONS[::2], ids=str)
@pytest.mark.parametrize("ratio", [(2.0, 3.0, 4.0), (1.0, 1.5, 2.62)], ids=str)
def test_a_blob_in_finer_raw_is_where_its_features_are(
    changes: dict[str, Any], ratio: tuple[float, float, float]
) -> None:
    backbone: Any = PatchMeans()
    scale = (changes["pixels_per_voxel"],) * 3
    spec = spec_of(backbone, window=96, **{**changes, "pixels_per_voxel": scale})
    shape, centre = (25, 26, 23), (12.9, 13.2, 11.4)  # working voxels, from the corner
    start = [-0.3 * (r > 1) for r in ratio]  # corner of the grid in voxels of raw
    sizes = [int(np.ceil(n * r)) for n, r in zip(shape, ratio, strict=True)]
    axes = [RawAxis(n, r, s + (r - 1) / 2) for n, r, s in zip(sizes, ratio, start, strict=True)]
    place = tuple(s + c * r for s, c, r in zip(start, centre, ratio, strict=True))
    grid = np.meshgrid(*(np.arange(n) + 0.5 for n in sizes), indexing="ij", sparse=True)
    squares = sum(((x - c) / r) ** 2 for x, c, r in zip(grid, place, ratio, strict=True))
    raw = (255 * np.exp(-squares / 18)).astype(np.float32)
    grids = extract_planes(
        reader(raw), shape, Roi((0, 0, 0), shape), backbone, spec, (0.0, 255.0),
        raw_axes=(axes[0], axes[1], axes[2]),
    )  # fmt: skip
    for plane in PLANES:
        dense = upsample(grids[plane], shape, plane)[0].double()
        mass = (dense - dense.min()).clamp(min=0)
        for axis in range(3):
            along = mass.sum([a for a in range(3) if a != axis])
            found = (along * (torch.arange(shape[axis]) + 0.5)).sum() / along.sum()
            assert abs(found - centre[axis]) < 0.15, (plane, axis)


@pytest.mark.weights
def test_real_features_of_a_small_box_are_those_of_a_larger_one_cropped(
    shared_data: Path, shared_backbone: Path
) -> None:
    volume = open_volume(shared_data / "raw")
    settings = {"pixels_per_voxel": 2.016, "window": 126}
    backbone, spec = load_backbone_and_spec(shared_backbone, settings)
    large, small = Roi((100, 60, 110), (4, 4, 4)), Roi((101, 62, 111), (2, 1, 3))
    shape = volume.metadata.shape
    window = (60.0, 202.0)
    outer = extract_planes(volume.read, shape, large, backbone, spec, window)
    inner = extract_planes(volume.read, shape, small, backbone, spec, window, windows_at_once=2)
    for plane in PLANES:
        inside = (slice(None), *(small - large.offset).to_slices())
        expected = upsample(outer[plane], large.shape, plane)[inside]
        found = upsample(inner[plane], small.shape, plane)
        assert expected.std() > 0.1
        torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)
