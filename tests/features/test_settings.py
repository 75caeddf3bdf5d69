from typing import Any

import pytest
import torch

from custom.errors import InputError
from custom.features.backbone import Backbone, load_backbone
from custom.features.settings import load_backbone_and_spec, make_spec

VIT = {
    "model_type": "dinov3_vit",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_register_tokens": 4,
    "patch_size": 8,
}
CONVNEXT = {
    "model_type": "dinov3_convnext",
    "hidden_sizes": [8, 12, 16, 20],
    "depths": [1, 1, 1, 1],
}
SETTINGS = {"layers": [1, -1], "pixels_per_voxel": [0.5, 2, 2.016], "window": 64, "overlap": 16}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(VIT, layers=[1, -1])


def test_a_spec_says_what_the_settings_and_the_backbone_come_to(backbone: Backbone) -> None:
    spec = make_spec(SETTINGS, backbone)
    assert spec.layers == (1, 2)
    assert spec.channels == 64
    assert spec.pixels_per_voxel == (0.5, 2.0, 2.016)
    assert spec.voxels_per_patch == (16.0, 4.0, 8 / 2.016)
    assert spec.digest == backbone.digest
    assert spec.planes == ("xy", "xz", "yz")
    assert (spec.stride, spec.slice_step) == (8, (1, 1, 1))


def test_a_window_holds_whole_entries_of_every_chosen_stage() -> None:
    backbone = load_backbone(CONVNEXT, layers=[2, 4])
    settings = {"layers": [2, 4], "window": 72}
    with pytest.raises(InputError, match=r"multiple of 32 pixels for stages \[2, 4\] .* got 72"):
        make_spec(settings, backbone)
    spec = make_spec({**settings, "window": 96, "stride": 4}, backbone)
    assert (spec.patch_size, spec.channels, spec.stride) == (8, 32, 4)


def test_one_scale_is_for_all_axes() -> None:
    backbone, spec = load_backbone_and_spec(VIT, {"pixels_per_voxel": 2, "final_norm": False})
    assert spec.pixels_per_voxel == (2.0, 2.0, 2.0)
    assert (spec.final_norm, backbone.final_norm) == (False, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windw": 64}, "unknown key 'windw'; did you mean 'window'"),
        ({"window": 60}, r"window must be a multiple of .* 8 pixels, got 60; try 56"),
        ({"window": 0}, "window must be a multiple"),
        ({"window": 64.5}, "window must be a whole number"),
        ({"overlap": 12}, "overlap must be a multiple"),
        ({"overlap": 64}, "below the window of 64"),
        ({"overlap": -8}, "overlap must be"),
        ({"window": 4}, "window must be at least 8 pixels for random dinov3_vit, got 4"),
        ({"window": -8}, "window must be a multiple"),
        ({"stride": 3}, r"stride must divide the backbone's patch size of 8 pixels \(1, 2, 4, 8\)"),
        ({"stride": 16}, "stride must divide .*, got 16"),
        ({"stride": 0}, "stride must divide .*, got 0"),
        ({"stride": -4}, "stride must divide .*, got -4"),
        ({"stride": 4.0}, "stride must be a whole number of pixels, got 4.0"),
        ({"stride": True}, "stride must be a whole number"),
        (
            {"slice_step": 0},
            r"slice_step must be one whole number from 1 on, or .*, got 0",
        ),
        (
            {"slice_step": [2, 1]},
            r"one for each of features.planes \['xy', 'xz', 'yz'\], got \[2, 1\]",
        ),
        ({"slice_step": []}, "slice_step must be one"),
        ({"slice_step": [1, 2, -1]}, "slice_step must be one"),
        ({"slice_step": 2.0}, "slice_step must be one whole number from 1 on, .*, got 2.0"),
        ({"slice_step": [1, True, 1]}, "slice_step must be one"),
        ({"slice_step": "2"}, "slice_step must be one"),
        ({"pixels_per_voxel": 0}, "pixels_per_voxel must be one positive number"),
        ({"pixels_per_voxel": [1, 2]}, "pixels_per_voxel must be a list of 3 numbers"),
        ({"pixels_per_voxel": "2"}, "pixels_per_voxel must be"),
        ({"planes": ["xz", "xy"]}, "planes must be of .* in this order"),
        ({"planes": ["zy"]}, "planes must be of"),
        ({"planes": [["xy"]]}, "planes must be of"),
        ({"planes": []}, "planes must name at least one"),
        ({"planes": "xy"}, "planes must be a list"),
        ({"intensity_percentiles": [99, 1]}, "the lower one first"),
        ({"intensity_percentiles": [1]}, "intensity_percentiles must be a list of 2"),
        ({"precision": "half"}, "precision must be 'bfloat16' or 'float32', got 'half'"),
        ({"dtype": "int4"}, "dtype must be 'float16' or 'float32' or 'int8', got 'int4'"),
        ({"layout": "features"}, "layout must be 'tokens' or 'dense', got 'features'"),
        ({"layers": [3]}, "3 does not exist"),
    ],
)
def test_a_wrong_setting_is_refused(
    backbone: Backbone, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_spec({**SETTINGS, **changes}, backbone)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_window_below_a_convnexts_last_patch_is_refused(stage: int) -> None:
    settings: dict[str, Any] = {"layers": [stage], "final_norm": False}
    backbone = load_backbone(CONVNEXT, **settings)
    with pytest.raises(InputError, match=r"window must be at least 32 pixels for .*, got 16"):
        make_spec({**settings, "window": 16}, backbone)
    spec = make_spec({**settings, "window": 32, "stride": 2}, backbone)
    assert backbone(torch.zeros(1, 3, 32, 32)).shape[2:] == (32 // spec.patch_size,) * 2


def test_settings_of_another_loading_of_the_backbone_are_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="was loaded with layers"):
        make_spec({**SETTINGS, "layers": [1]}, backbone)
    with pytest.raises(ValueError, match="final_norm"):
        make_spec({**SETTINGS, "final_norm": False}, backbone)


@pytest.mark.parametrize(("precision", "amp"), [("bfloat16", True), ("float32", False)])
def test_precision_decides_what_the_backbone_computes_in(precision: str, amp: bool) -> None:
    backbone, spec = load_backbone_and_spec(VIT, {"window": 32, "precision": precision})
    assert (backbone.amp, spec.precision) == (amp, precision)
