import gc
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry.roi import Roi
from numpy.typing import NDArray
from torch import Tensor

from custom.errors import InputError
from custom.features import extraction, upsampling
from custom.features.extraction import PlaneExtraction, RawBox, extract_planes
from custom.features.image_statistics import IMAGENET_MEAN, IMAGENET_STD
from custom.features.lattice import AxisLattice
from custom.features.settings import load_backbone_and_spec
from custom.features.spec import FeatureSpec
from custom.features.triplane import upsample
from custom.features.upsampling import GuidedUpsampler, load_upsampler
from custom.planes import NORMAL_AXIS, PLANES
from tests.features.guided import HUBCONF, guided, write_hub
from tests.features.test_extraction import (
    SHAPE,
    VIT,
    VIT_SETTINGS,
    WINDOW,
    PatchMeans,
    reader,
    slow_window,
    spec_of,
)
from tests.server import serve

pytestmark = pytest.mark.slow

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.3, 0.1)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_hub(tmp_path_factory.mktemp("hub") / "guided")


@pytest.fixture
def raw() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def with_upsampler(backbone: Any, hub: str, **changes: Any) -> FeatureSpec:
    """Spec of a backbone that has got the upsampler."""
    backbone.upsampler = load_upsampler(hub, backbone.image_mean, backbone.image_std)
    digest = backbone.upsampler.digest
    guide = {"layout": "dense", "upsampler": hub, "upsampler_digest": digest}
    return spec_of(backbone, **{**guide, **changes})


def normalised(unit: Tensor, mean: Any, std: Any) -> Tensor:
    return (unit - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


# --- the model ---


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), (IMAGENET_MEAN, IMAGENET_STD)], ids=str)
def test_the_guide_is_the_backbones_image_as_imagenet_is_normalised(
    hub: str, mean: Any, std: Any
) -> None:
    unit = torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    tokens = torch.randn(2, 5, 2, 3)
    found = load_upsampler(hub, mean, std)(normalised(unit, mean, std), tokens, (3, 2))
    assert found.shape == (2, 5, 6, 6)
    torch.testing.assert_close(found, guided(unit, tokens, (6, 6)), atol=1e-5, rtol=0)


def test_a_few_images_at_a_time_give_what_all_of_them_give(hub: str) -> None:
    images = normalised(torch.rand(3, 1, 8, 8), MEAN, STD)
    tokens = torch.randn(3, 5, 2, 2)
    upsampler = load_upsampler(hub, MEAN, STD)
    pieces = list(upsampler.pieces(images, tokens, (2, 4)))
    assert [first for first, _ in pieces] == [0, 1, 2], "on a CPU one at a time"
    whole = upsampler(images, tokens, (2, 4))
    torch.testing.assert_close(torch.cat([piece for _, piece in pieces]), whole)


def test_an_upsampler_is_known_by_its_weights(hub: str, tmp_path: Path) -> None:
    copy = write_hub(tmp_path / "copy")
    other = write_hub(tmp_path / "other", HUBCONF.replace("0.25", "0.5"))
    digests = [load_upsampler(folder, MEAN, STD).digest for folder in (hub, copy, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("hubconf", "message"),
    [
        ("def anyup():\n    return 3", "must return a torch module, it returned int"),
        (
            "def other():\n    pass",
            r"anyup\(\) of its hubconf.py failed \(RuntimeError: Cannot find",
        ),
        ("import nowhere_at_all", r"failed \(ModuleNotFoundError: No module named"),
        ("dependencies = ['nowhere']", r"failed \(RuntimeError: Missing dependencies"),
    ],
)
def test_a_folder_that_does_not_load_is_said(tmp_path: Path, hubconf: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_upsampler(write_hub(tmp_path / "hub", hubconf), MEAN, STD)
    assert "\n" not in str(caught.value)


def test_a_folder_without_hubconf_is_said(tmp_path: Path) -> None:
    for source in (str(tmp_path), str(tmp_path / "absent"), "anyupp"):
        with pytest.raises(InputError, match="must be null, 'anyup' or a folder that holds a hub"):
            load_upsampler(source, MEAN, STD)


def test_a_model_that_returns_another_size_is_refused(tmp_path: Path) -> None:
    wrong = write_hub(tmp_path, HUBCONF.replace("return F.interpolate(features, output_size", """
        output_size = (output_size[0], output_size[1] + 1)
        bright = F.adaptive_avg_pool2d(bright, output_size)
        return F.interpolate(features, output_size"""))  # fmt: skip
    images = normalised(torch.rand(1, 1, 8, 8), MEAN, STD)
    with pytest.raises(InputError, match=r"of shape \(1, 5, 4, 8\), it returned \(1, 5, 4, 9\)"):
        load_upsampler(wrong, MEAN, STD)(images, torch.randn(1, 5, 2, 2), (2, 4))


# --- the authors' repository ---


# torch.hub leaves its connection to the garbage collector, which may find it in any test.
LEFT_OPEN = "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"


@pytest.fixture
def archive(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an archive such as GitHub's, and a torch.hub that is empty."""
    inside = tmp_path / "packed" / "wimmerth-anyup-1551eaa"
    shutil.copytree(hub, inside, ignore=shutil.ignore_patterns("__pycache__"))
    served = tmp_path / "served"
    served.mkdir()
    shutil.make_archive(str(served / "anyup"), "zip", inside.parent)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    yield served
    gc.collect()


@pytest.mark.filterwarnings(LEFT_OPEN)
def test_anyup_is_fetched_once_at_the_pinned_commit(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = []
    with serve(archive) as server:

        def link(owner: str, name: str, ref: str) -> str:
            wanted.append((owner, name, ref))
            return f"{server.url}/anyup.zip"

        monkeypatch.setattr(torch.hub, "_git_archive_link", link)
        upsampler = load_upsampler("anyup", MEAN, STD)
        again = load_upsampler("anyup", MEAN, STD)
        assert server.asked == ["anyup.zip"]
    assert wanted == [("wimmerth", "anyup", "1551eaa16b61600de78093c510005ae59ece8866")]
    assert upsampler.name == again.name == "anyup"
    assert upsampler.digest == again.digest


@pytest.mark.filterwarnings(LEFT_OPEN)
@pytest.mark.parametrize("fault", ["404", "cut", "no server", "no zip"])
def test_an_unreachable_hub_is_said_in_one_sentence(
    archive: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "no zip":
        (archive / "anyup.zip").write_text("<html>log in</html>")
    with serve(archive) as server:
        server.status = {"anyup.zip": 404} if fault == "404" else {}
        server.cut = "anyup.zip" if fault == "cut" else None
        url = "http://127.0.0.1:9" if fault == "no server" else server.url
        monkeypatch.setattr(torch.hub, "_git_archive_link", lambda *_: f"{url}/anyup.zip")
        with pytest.raises(InputError, match=r"cannot be downloaded from GitHub .*: connect") as e:
            load_upsampler("anyup", MEAN, STD)
    assert "\n" not in str(e.value)
    assert str(upsampling.torch.hub.get_dir()) in str(e.value)


# --- in extraction ---


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (1.5, 2.0, 1.25)], ids=str)
def test_upsampled_windows_are_those_of_a_slow_loop(
    raw: NDArray[np.uint8], hub: str, scales: tuple[float, ...]
) -> None:
    """One window per slice; patches of 4 pixels, so 4 values each, or 3, 2 and 3."""
    backbone: Any = PatchMeans()
    spec = with_upsampler(backbone, hub, window=32, pixels_per_voxel=scales)
    factors = [round(4 / scale) for scale in scales]
    grids = extract_planes(reader(raw), SHAPE, Roi((0, 0, 0), SHAPE), backbone, spec, WINDOW)
    unit = np.clip((raw.astype(np.float64) - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)
    for plane, grid in grids.items():
        normal = NORMAL_AXIS[plane]
        here = [axis for axis in range(3) if axis != normal]
        size = (8 * factors[here[0]], 8 * factors[here[1]])
        for index, image in enumerate(np.moveaxis(unit, normal, 0)):
            own = [scales[axis] for axis in here]
            tokens = torch.tensor(slow_window(image, spec, backbone, own, (0, 0)))[None]
            pixels = slow_window(image, spec, pixels_of, own, (0, 0))
            grey = torch.tensor(pixels * spec.image_std[0] + spec.image_mean[0])[None]
            expected = guided(grey, tokens, size)[0]
            found = grid.values.select(1 + normal, index)
            rows, columns = found.shape[1:]
            torch.testing.assert_close(
                found, expected[:, :rows, :columns].float(), atol=1e-4, rtol=1e-5
            )
        for axis in here:
            assert grid.step[axis] == pytest.approx(4 / scales[axis] / factors[axis])
            assert grid.start[axis] == 0
            covered = grid.values.shape[1 + axis] * grid.step[axis]
            assert SHAPE[axis] <= covered + 1e-6 < SHAPE[axis] + grid.step[axis]


def pixels_of(images: Tensor) -> Tensor:
    """The image itself, in place of a backbone."""
    return images[:, :1]


@pytest.mark.parametrize("roi", [Roi((2, 3, 1), (5, 6, 7)), Roi((8, 0, 10), (1, 14, 1))], ids=str)
@pytest.mark.parametrize("changes", [{}, {"overlap": 8}, {"slice_step": [3, 2, 4]}], ids=str)
def test_upsampled_features_of_a_box_are_those_of_the_volume_cropped(
    raw: NDArray[np.uint8], hub: str, roi: Roi, changes: dict[str, Any]
) -> None:
    settings = {**VIT_SETTINGS, **changes, "layout": "dense", "upsampler": hub}
    backbone, spec = load_backbone_and_spec(VIT, {**settings, "precision": "float32"})
    assert spec.refinement == (3, 2, 4)
    whole = Roi((0, 0, 0), SHAPE)
    all_of_it = extract_planes(reader(raw), SHAPE, whole, backbone, spec, WINDOW)
    part = extract_planes(reader(raw), SHAPE, roi, backbone, spec, WINDOW, windows_at_once=3)
    for plane in spec.planes:
        expected = upsample(all_of_it[plane], SHAPE, plane)[:, *roi.to_slices()]
        found = upsample(part[plane], roi.shape, plane)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    coarse, plain = load_backbone_and_spec(VIT, {**VIT_SETTINGS, **changes})
    linear = extract_planes(reader(raw), SHAPE, whole, coarse, plain, WINDOW)["xy"]
    assert (upsample(linear, SHAPE, "xy") - upsample(all_of_it["xy"], SHAPE, "xy")).std() > 0.05


def test_finer_entries_are_blended_like_their_patches() -> None:
    """Shares of all windows sum to one, and a finer ramp has the coarse one's mean in a patch."""
    coarse, fine = (AxisLattice(50, 1.0, 4, 20, 12, 4, finer=finer) for finer in (1, 3))
    assert fine.num_patches == 38 and coarse.num_patches == 13
    assert fine.windows_touching(range(38)) == coarse.windows_touching(range(13))
    total = torch.zeros(60)
    for window in fine.windows_touching(range(38)):
        entries = fine.patches_of(window)
        assert list(entries)[::3] == [3 * patch for patch in coarse.patches_of(window)]
        total[entries.start : entries.stop] += fine.blending(window)
    torch.testing.assert_close(total[:38], torch.ones(38))
    inner = fine.blending(1).view(-1, 3)
    assert (inner[1:2].diff() > 0).all(), "a ramp inside a patch, not a step per patch"


def test_the_upsampler_must_be_the_specs(raw: NDArray[np.uint8], hub: str, tmp_path: Path) -> None:
    backbone: Any = PatchMeans()
    spec = with_upsampler(backbone, hub)
    box = RawBox(reader(raw), SHAPE, Roi((0, 0, 0), SHAPE), WINDOW)
    PlaneExtraction(box, backbone, spec, "xy")
    other = write_hub(tmp_path, HUBCONF.replace("0.25", "0.5"))
    for wrong in (None, load_upsampler(other, MEAN, STD)):
        backbone.upsampler = wrong
        with pytest.raises(ValueError, match="made with another upsampler than means has"):
            PlaneExtraction(box, backbone, spec, "xy")


def test_memory_holds_one_upsampled_window(
    raw: NDArray[np.uint8], hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, forward = [], GuidedUpsampler.forward

    def counted(self: GuidedUpsampler, images: Tensor, *rest: Any) -> Tensor:
        seen.append(len(images))
        return forward(self, images, *rest)

    monkeypatch.setattr(GuidedUpsampler, "forward", counted)
    backbone: Any = PatchMeans()
    spec = with_upsampler(backbone, hub)
    extract_planes(reader(raw), SHAPE, Roi((0, 0, 0), SHAPE), backbone, spec, WINDOW)
    assert seen == [1] * sum(SHAPE)
    monkeypatch.setattr(extraction, "SLAB_BYTES", 4 * 4 * 3 * 14 * 11)
    box = RawBox(reader(raw), SHAPE, Roi((0, 0, 0), SHAPE), WINDOW)
    slabs = [slab.shape[1] for _, slab in PlaneExtraction(box, backbone, spec, "xy").slabs()]
    assert max(slabs) == 2, "slabs count the finer values"


# --- in the spec ---


SETTINGS: dict[str, Any] = {"window": 16, "layout": "dense"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "tokens"}, "is not linear.*set features.layout to 'dense'"),
        ({"stride": 2}, "works on whole patches: set features.stride to null, not 2"),
        (
            {"window": 4},
            "needs neighbouring patches: set features.window to at least 8 pixels, not 4",
        ),
        ({"upsampler": 3}, "upsampler must be null, 'anyup' or a folder, got 3"),
    ],
)
def test_what_an_upsampler_cannot_do_is_refused_before_it_is_loaded(
    changes: dict[str, Any], message: str
) -> None:
    settings = {**SETTINGS, "upsampler": "nowhere", **changes}
    with pytest.raises(InputError, match=message):
        load_backbone_and_spec(VIT, settings)


def test_the_spec_knows_the_upsampler_by_its_weights(hub: str, tmp_path: Path) -> None:
    copy, other = (
        write_hub(tmp_path / name, HUBCONF.replace("0.25", strength))
        for name, strength in (("copy", "0.25"), ("other", "0.5"))
    )
    plain, one, same, another = (
        load_backbone_and_spec(VIT, {**SETTINGS, "upsampler": source})[1]
        for source in (None, hub, copy, other)
    )
    assert FeatureSpec.from_json(one.to_json()) == one
    assert one.difference(same) == []
    assert [d.split()[0] for d in one.difference(another)] == ["upsampler", "upsampler_digest"]
    assert re.match(r"upsampler \(None, not .*guided\)", plain.difference(one)[0])


def test_a_spec_from_before_there_were_upsamplers_has_none(hub: str) -> None:
    _, spec = load_backbone_and_spec(VIT, {"window": 16})
    values = spec.to_json()
    del values["upsampler"], values["upsampler_digest"]
    assert FeatureSpec.from_json(values) == spec


@pytest.mark.parametrize("plane", PLANES)
def test_token_steps_are_those_of_the_grids(raw: NDArray[np.uint8], plane: str) -> None:
    settings = {**VIT_SETTINGS, "stride": 2, "slice_step": [3, 2, 4]}
    backbone, spec = load_backbone_and_spec(VIT, settings)
    box = RawBox(reader(raw), SHAPE, Roi((0, 0, 0), SHAPE), WINDOW)
    assert spec.token_steps(plane) == PlaneExtraction(box, backbone, spec, plane).lattice.step
    assert spec.refinement == (1, 1, 1)
