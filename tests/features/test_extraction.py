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
from custom.features.spec import FeatureSpec, load_backbone_and_spec
from custom.features.triplane import upsample
from custom.planes import NORMAL_AXIS, PLANES
from custom.volumes import open_volume

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

    patch_size, channels, layers, digest, name = 4, 3, (1,), "means", "means"
    image_mean, image_std = (0.3, 0.3, 0.3), (0.2, 0.2, 0.2)

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
    """Every window of every slice of the whole volume, one by one: (C, slices, h, w)."""
    normal = NORMAL_AXIS[plane]
    slices = np.moveaxis(raw, normal, 0).astype(np.float64)
    scales = [s for axis, s in enumerate(spec.pixels_per_voxel) if axis != normal]
    patch, window, overlap = spec.patch_size, spec.window, spec.overlap
    counts = [
        int(np.ceil(round(n * s / patch, 6))) for n, s in zip(slices.shape[1:], scales, strict=True)
    ]
    per_window, per_overlap = window // patch, overlap // patch
    stride = per_window - per_overlap
    windows = [1 + max(0, -(-(count - per_window) // stride)) for count in counts]
    inside = np.arange(per_window) + 0.5
    ramp = np.minimum(1, np.minimum(inside, per_window - inside) / max(per_overlap, 0.5))
    total = np.zeros((spec.channels, len(slices), *counts))
    weight = np.zeros(counts)
    pad = 3 * window
    for index, image in enumerate(slices):
        for a, b in product(range(windows[0]), range(windows[1])):
            unit = np.clip((image - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)
            for axis, (k, scale) in enumerate(zip((a, b), scales, strict=True)):
                pixels = np.arange(window) + k * stride * patch
                place = (pixels + 0.5) / scale - 0.5
                padded = np.pad(
                    unit, [(pad, pad) if i == axis else (0, 0) for i in (0, 1)], "reflect"
                )
                voxels = np.arange(padded.shape[axis]) - pad
                unit = np.apply_along_axis(
                    lambda line, at=place, xs=voxels: np.interp(at, xs, line), axis, padded
                )
            normalised = (unit - spec.image_mean[0]) / spec.image_std[0]
            images = torch.tensor(normalised, dtype=torch.float32).expand(1, 3, window, window)
            tokens = backbone(images)[0].detach().numpy()
            for i, j in product(range(per_window), range(per_window)):
                row, column = a * stride + i, b * stride + j
                if row < counts[0] and column < counts[1]:
                    share = ramp[i] * ramp[j]
                    total[:, index, row, column] += share * tokens[:, i, j]
                    if index == 0:
                        weight[row, column] += share
    return torch.tensor(total / weight, dtype=torch.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"overlap": 4},
        {"window": 12, "overlap": 8},  # three windows share a patch
        {"pixels_per_voxel": (1.0, 2.0, 1.5), "overlap": 4},
        {"pixels_per_voxel": (4.0, 1.25, 3.0), "window": 20},
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
    assert tuple(grids) == PLANES
    for plane, grid in grids.items():
        expected = slow_grid(raw, spec, backbone, plane).movedim(1, 1 + NORMAL_AXIS[plane])
        torch.testing.assert_close(grid.values, expected, atol=2e-5, rtol=1e-5)
        assert grid.start == (0, 0, 0)


@pytest.mark.parametrize("roi", [Roi((2, 3, 1), (5, 6, 7)), Roi((8, 0, 10), (1, 14, 1))], ids=str)
def test_features_of_a_box_are_those_of_the_volume_cropped(
    raw: NDArray[np.uint8], roi: Roi
) -> None:
    backbone, spec = load_backbone_and_spec(VIT, VIT_SETTINGS)
    whole = Roi((0, 0, 0), SHAPE)
    all_of_it = extract_planes(reader(raw), SHAPE, whole, backbone, spec, WINDOW)
    part = extract_planes(reader(raw), SHAPE, roi, backbone, spec, WINDOW, windows_at_once=3)
    for plane in PLANES:
        expected = upsample(all_of_it[plane], SHAPE, plane)[:, *roi.to_slices()]
        found = upsample(part[plane], roi.shape, plane)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


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
