import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry.roi import Roi
from safetensors.torch import save

from custom.errors import InputError
from custom.features import pca_fit
from custom.features.backbone import Backbone, load_backbone
from custom.features.extraction import PlaneExtraction, RawBox, extract_planes
from custom.features.lattice import AxisLattice
from custom.features.pca import BASIS_FILE, TENSORS, PcaBasis, basis_of_covariance, read_basis
from custom.features.pca_fit import fit_basis
from custom.features.reduced import with_basis
from custom.features.settings import load_backbone_and_spec, make_spec
from custom.features.spec import FeatureSpec
from custom.features.triplane import PlaneGrid, average

VIT = {
    "model_type": "dinov3_vit",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_register_tokens": 1,
    "patch_size": 8,
}
SETTINGS = {"pixels_per_voxel": [1.0, 2.0, 1.5], "window": 32, "overlap": 8, "precision": "float32"}
SHAPE = (22, 30, 41)


def raw() -> np.ndarray:
    rng = np.random.default_rng(3)
    coarse = rng.random((6, 8, 11)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    return (coarse[: SHAPE[0], : SHAPE[1], : SHAPE[2]] * 255).astype(np.uint8)


RAW = raw()


def box(*roi: tuple[int, int, int]) -> RawBox:
    return RawBox(lambda r: RAW[r.to_slices()], SHAPE, Roi(*roi), (0.0, 255.0))


BOXES = {"a": box((1, 2, 3), (17, 20, 31)), "b": box((18, 0, 0), (4, 9, 22))}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(VIT)


@pytest.fixture(scope="module")
def spec(backbone: Backbone) -> FeatureSpec:
    return make_spec(SETTINGS, backbone)


def fitted(backbone: Backbone, spec: FeatureSpec, n: int, **boxes: RawBox) -> PcaBasis:
    return fit_basis(boxes or BOXES, backbone, spec, n, show_progress=False)


def all_tokens(backbone: Backbone, spec: FeatureSpec, source: RawBox) -> torch.Tensor:
    """Every token of a box (N, C), float64."""
    parts = [
        slab.flatten(1).T.double()
        for plane in spec.planes
        for _, slab in PlaneExtraction(source, backbone, spec, plane).slabs()
    ]
    return torch.cat(parts)


def features(backbone: Backbone, spec: FeatureSpec) -> dict[str, PlaneGrid]:
    roi = Roi((3, 2, 5), (9, 14, 20))
    return extract_planes(lambda r: RAW[r.to_slices()], SHAPE, roi, backbone, spec, (0.0, 255.0))


def test_components_are_orthonormal_sorted_and_have_a_fixed_sign(
    backbone: Backbone, spec: FeatureSpec
) -> None:
    basis = fitted(backbone, spec, 7)
    torch.testing.assert_close(basis.components @ basis.components.T, torch.eye(7))
    assert (basis.variance.diff() <= 0).all() and basis.variance[0] > basis.variance[-1]
    largest = basis.components.abs().argmax(1)
    assert (basis.components[range(7), largest] > 0).all()


@pytest.mark.parametrize("n", [1, 5, 12])
def test_the_error_of_reconstruction_is_the_variance_that_is_dropped(n: int) -> None:
    rng = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=rng, dtype=torch.float64)
    tokens = torch.randn(500, 12, generator=rng, dtype=torch.float64) @ mixing + 9
    mean = tokens.mean(0)
    covariance = (tokens - mean).T @ (tokens - mean) / len(tokens)
    basis = basis_of_covariance(mean, covariance, n, {"features": {}})
    back = basis.project(tokens.float()) @ basis.components + basis.mean
    error = (back.double() - tokens).square().sum(1).mean()
    dropped = basis.total_variance - basis.variance.sum()
    torch.testing.assert_close(error.float(), dropped, rtol=1e-4, atol=1e-4)
    assert basis.explained == pytest.approx(1 - float(error / covariance.trace()), abs=1e-5)


def test_where_all_windows_are_drawn_the_basis_is_that_of_all_tokens(
    backbone: Backbone, spec: FeatureSpec
) -> None:
    """A ROI inside one window, so that no window is left out."""
    inside = box((2, 1, 1), (6, 7, 9))
    basis = fitted(backbone, spec, 3, inside=inside)
    one_by_one = [
        all_tokens(backbone, replace(spec, planes=(plane,)), box(*roi))
        for plane, axis in (("xy", 0), ("xz", 1), ("yz", 2))
        for roi in slices((2, 1, 1), (6, 7, 9), axis)
    ]
    expected = torch.cat(one_by_one)
    assert basis.fitted_on["tokens"] == len(expected)
    torch.testing.assert_close(basis.mean.double(), expected.mean(0), atol=1e-5, rtol=1e-4)
    variance = torch.linalg.eigvalsh(torch.cov(expected.T, correction=0)).flip(0)[:3]
    torch.testing.assert_close(basis.variance.double(), variance, atol=1e-5, rtol=1e-4)


def slices(offset: tuple[int, ...], shape: tuple[int, ...], axis: int) -> list[Any]:
    """The box cut into slices along an axis."""
    thin = [1 if a == axis else s for a, s in enumerate(shape)]
    return [
        (tuple(o + k * (a == axis) for a, o in enumerate(offset)), tuple(thin))
        for k in range(shape[axis])
    ]


def test_all_components_give_back_the_features_and_fewer_lose_the_rest(
    backbone: Backbone, spec: FeatureSpec
) -> None:
    whole = features(backbone, spec)
    for n, tolerance in ((16, 2e-3), (4, None)):
        basis = fitted(backbone, spec, n)
        reduced = features(
            *with_basis(backbone, make_spec({**SETTINGS, "pca": n}, backbone), basis, "")
        )
        for plane, grid in reduced.items():
            assert grid.values.dtype == torch.float16 and len(grid.values) == n
            assert (grid.start, grid.step) == (whole[plane].start, whole[plane].step)
            back = grid.values.float().movedim(0, -1) @ basis.components + basis.mean
            error = (back.movedim(-1, 0) - whole[plane].values.float()).abs().max()
            assert error < tolerance if tolerance else error > 0.05


def test_reduction_commutes_with_blending_upsampling_and_averaging(
    backbone: Backbone, spec: FeatureSpec
) -> None:
    exact = replace(spec, dtype="float32")
    basis = fitted(backbone, exact, 4)
    asked = make_spec({**SETTINGS, "pca": 4, "dtype": "float32"}, backbone)
    reduced = features(*with_basis(backbone, asked, basis, ""))
    one = average(reduced, (9, 14, 20))
    other = basis.project(average(features(backbone, exact), (9, 14, 20))[None])[0]
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_the_same_volumes_give_the_same_basis_and_other_ones_another(
    backbone: Backbone, spec: FeatureSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pca_fit, "TOKENS", 300)  # fewer than there are: the draw matters
    one, again = (fitted(backbone, spec, 4) for _ in range(2))
    assert one.digest == again.digest
    assert 300 <= one.fitted_on["tokens"] < 500
    assert one.digest != fitted(backbone, spec, 4, b=BOXES["b"], a=BOXES["a"]).digest
    monkeypatch.setattr(pca_fit, "SEED", 1)
    assert one.digest != fitted(backbone, spec, 4).digest


def test_the_bar_ends_full_where_there_are_few_tokens(
    backbone: Backbone, spec: FeatureSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    basis = fit_basis(BOXES, backbone, spec, 2)
    tokens = basis.fitted_on["tokens"]
    assert "100%" in (last := capsys.readouterr().err.split("\r")[-1])
    assert f" {tokens}/{tokens} " in last


def test_drawn_windows_are_inside_the_roi_and_one_window_each(spec: FeatureSpec) -> None:
    """And they reach all of the volumes, planes and slices."""
    drawn = list(pca_fit._drawn(BOXES, spec))
    assert len({(str(b.roi), id(b.read), plane) for b, plane in drawn}) == len(drawn)
    seen = set()
    for part, plane in drawn:
        source = next(name for name, b in BOXES.items() if b.roi.contains(part.roi))
        normal = spec.planes.index(plane)
        assert part.roi.shape[normal] == 1
        seen.add((source, plane, part.roi.begin[normal]))
    slices = sum(sum(b.roi.shape) for b in BOXES.values())
    assert len(seen) == slices


@pytest.mark.parametrize(("begin", "end"), [(0, 100), (7, 100), (40, 63), (3, 5), (22, 26)])
@pytest.mark.parametrize("overlap", [0, 8])
def test_a_span_inside_a_window_needs_that_window_only(begin: int, end: int, overlap: int) -> None:
    lattice = AxisLattice(100, 1.5, 8, 48, overlap, 8)
    parts = pca_fit._inside_windows(
        (begin, end), 48 / 1.5, (48 - overlap) / 1.5, (overlap + 8) / 1.5
    )
    assert all(begin <= low < high <= end for low, high in parts)
    if parts != [(begin, end)]:
        for low, high in parts:
            assert len(lattice.windows_touching(lattice.patches_for(low, high - low))) == 1


def test_a_basis_goes_through_its_file_unchanged(
    backbone: Backbone, spec: FeatureSpec, tmp_path: Path
) -> None:
    basis = fitted(backbone, spec, 5)
    (tmp_path / BASIS_FILE).write_bytes(basis.to_bytes())
    again = read_basis(tmp_path, "do something")
    assert again.digest == basis.digest
    assert again.fitted_on == basis.fitted_on == json.loads(json.dumps(basis.fitted_on))
    assert FeatureSpec.from_json(again.fitted_on["features"]) == spec
    tokens = torch.randn(2, 16, 3, 4)
    assert torch.equal(again.project(tokens), basis.project(tokens))


@pytest.mark.parametrize("damage", ["missing", "cut", "nothing", "text", "other tensors", "NaN"])
def test_a_missing_or_damaged_file_is_one_sentence(
    damage: str, backbone: Backbone, spec: FeatureSpec, tmp_path: Path
) -> None:
    path = tmp_path / BASIS_FILE
    basis = fitted(backbone, spec, 5)
    content = {
        "cut": basis.to_bytes()[:-40],
        "nothing": b"",
        "text": b"mean, components" * 20,
        "other tensors": save({"weight": torch.ones(2)}, {"fitted_on": "{}"}),
        "NaN": save(
            {n: getattr(basis, n) * float("nan") for n in TENSORS},
            {"fitted_on": '{"features": {}}'},
        ),
    }
    if damage != "missing":
        path.write_bytes(content[damage])
    with pytest.raises(InputError, match=r"is missing|is damaged") as caught:
        read_basis(tmp_path, "run preprocessing")
    assert str(path) in str(caught.value) and str(caught.value).endswith(": run preprocessing.")


@pytest.mark.parametrize("n", [0, -3, 17, True, 2.0, "4", [4]])
def test_a_number_of_components_that_cannot_be_is_one_sentence(n: Any, backbone: Backbone) -> None:
    with pytest.raises(
        InputError, match=r"features\.pca must be null, or .* from 1 to the 16 chan"
    ):
        make_spec({**SETTINGS, "pca": n}, backbone)


def test_too_few_tokens_are_one_sentence(backbone: Backbone, spec: FeatureSpec) -> None:
    tiny = box((2, 3, 5), (2, 3, 2))
    with pytest.raises(InputError, match=r"features\.pca 16 is fitted to at least 320 tokens, but"):
        fitted(backbone, spec, 16, tiny=tiny)
    least, plane = box((2, 3, 5), (1, 1, 1)), replace(spec, planes=("xy",))
    with pytest.raises(InputError, match=r"at least 20 tokens, .*: choose null, or more volumes"):
        fitted(backbone, plane, 1, least=least)


def test_a_basis_of_other_features_is_refused(backbone: Backbone, spec: FeatureSpec) -> None:
    basis = fitted(backbone, spec, 4)
    other = make_spec({**SETTINGS, "pca": 4, "window": 40}, backbone)
    with pytest.raises(InputError, match=r"'here/pca.safetensors' was .* window \(32, not 40\)\. "):
        with_basis(backbone, other, basis, "here")
    with pytest.raises(InputError, match=r"differ from the request in: pca \(4, not 6\)\. "):
        with_basis(backbone, make_spec({**SETTINGS, "pca": 6}, backbone), basis, "here")


def test_a_reduced_spec_is_extracted_with_its_basis_only(
    backbone: Backbone, spec: FeatureSpec
) -> None:
    one, other = fitted(backbone, spec, 4), fitted(backbone, spec, 4, b=BOXES["b"])
    asked = make_spec({**SETTINGS, "pca": 4}, backbone)
    reduced, reduced_spec = with_basis(backbone, asked, one, "")
    assert (reduced.channels, backbone.channels) == (4, 16)
    for wrong in ((backbone, asked), (backbone, reduced_spec), (reduced, spec), (reduced, asked)):
        with pytest.raises(ValueError, match="another backbone or basis"):
            features(*wrong)
    with pytest.raises(ValueError, match="another backbone or basis"):
        features(backbone.reduced(other), reduced_spec)


def test_specs_differ_by_components_and_by_basis(backbone: Backbone, spec: FeatureSpec) -> None:
    basis, other = fitted(backbone, spec, 4), fitted(backbone, spec, 4, b=BOXES["b"])
    asked = make_spec({**SETTINGS, "pca": 4}, backbone)
    here, there = (with_basis(backbone, asked, b, "")[1] for b in (basis, other))
    assert here.difference(there) == [f"pca_digest ({basis.digest}, not {other.digest})"]
    assert here.difference(asked) == asked.difference(here) == []  # nothing is fitted yet
    assert spec.difference(here) == ["pca (None, not 4)"]
    assert here.difference(make_spec({**SETTINGS, "pca": 5}, backbone)) == ["pca (4, not 5)"]
    assert FeatureSpec.from_json(json.loads(json.dumps(here.to_json()))) == here
    older = {k: v for k, v in spec.to_json().items() if not k.startswith("pca")}
    assert FeatureSpec.from_json(older) == spec


def test_channels_are_those_of_the_components() -> None:
    _, spec = load_backbone_and_spec(VIT, {"window": 32, "pca": 3})
    assert (spec.channels, spec.pca, spec.pca_digest) == (3, 3, None)
    with pytest.raises(InputError, match="3 channels cannot have pca 4"):
        replace(spec, pca=4)
    with pytest.raises(InputError, match="cannot have pca None and pca_digest 01"):
        replace(spec, pca=None, pca_digest="01")
