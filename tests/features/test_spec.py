import json
from typing import Any

import pytest

from custom.errors import InputError
from custom.features.backbone import Backbone, load_backbone
from custom.features.spec import FeatureSpec, load_backbone_and_spec, make_spec

VIT = {
    "model_type": "dinov3_vit",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_register_tokens": 4,
    "patch_size": 8,
}
SETTINGS = {"layers": [1, -1], "pixels_per_voxel": [0.5, 2, 2.016], "window": 64, "overlap": 16}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(VIT, layers=[1, -1])


def test_a_spec_goes_through_json_unchanged(backbone: Backbone) -> None:
    spec = make_spec(SETTINGS, backbone)
    assert FeatureSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_says_what_the_settings_and_the_backbone_come_to(backbone: Backbone) -> None:
    spec = make_spec(SETTINGS, backbone)
    assert spec.layers == (1, 2)
    assert spec.channels == 64
    assert spec.pixels_per_voxel == (0.5, 2.0, 2.016)
    assert spec.voxels_per_patch == (16.0, 4.0, 8 / 2.016)
    assert spec.digest == backbone.digest
    assert spec.planes == ("xy", "xz", "yz")


def test_one_scale_is_for_all_axes() -> None:
    backbone, spec = load_backbone_and_spec(VIT, {"pixels_per_voxel": 2, "final_norm": False})
    assert spec.pixels_per_voxel == (2.0, 2.0, 2.0)
    assert (spec.final_norm, backbone.final_norm) == (False, False)


def test_difference_names_every_field_with_both_values(backbone: Backbone) -> None:
    one = make_spec(SETTINGS, backbone)
    other = make_spec({**SETTINGS, "window": 32, "planes": ["xy"]}, backbone)
    assert one.difference(one) == []
    assert one.difference(other) == [
        "window (64, not 32)",
        "planes ([xy, xz, yz], not [xy])",
    ]


def test_a_moved_backbone_is_the_same_other_weights_are_not(backbone: Backbone) -> None:
    here = make_spec(SETTINGS, backbone).to_json()
    moved = FeatureSpec.from_json({**here, "backbone": "/elsewhere"})
    other = FeatureSpec.from_json({**here, "backbone": "/elsewhere", "digest": "0"})
    assert FeatureSpec.from_json(here).difference(moved) == []
    assert len(FeatureSpec.from_json(here).difference(other)) == 2


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
        ({"pixels_per_voxel": 0}, "pixels_per_voxel must be one positive number"),
        ({"pixels_per_voxel": [1, 2]}, "pixels_per_voxel must be a list of 3 numbers"),
        ({"pixels_per_voxel": "2"}, "pixels_per_voxel must be"),
        ({"planes": ["xz", "xy"]}, "planes must be of .* in this order"),
        ({"planes": ["zy"]}, "planes must be of"),
        ({"planes": []}, "planes must name at least one"),
        ({"planes": "xy"}, "planes must be a list"),
        ({"intensity_percentiles": [99, 1]}, "the lower one first"),
        ({"intensity_percentiles": [1]}, "intensity_percentiles must be a list of 2"),
        ({"precision": "half"}, "precision must be 'bfloat16' or 'float32', got 'half'"),
        ({"dtype": "int4"}, "dtype must be 'float16' or 'float32' or 'int8', got 'int4'"),
        ({"layout": "features"}, "layout must be 'tokens', got 'features'"),
        ({"layers": [3]}, "3 does not exist"),
    ],
)
def test_a_wrong_setting_is_refused(
    backbone: Backbone, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_spec({**SETTINGS, **changes}, backbone)


def test_settings_of_another_loading_of_the_backbone_are_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="was loaded with layers"):
        make_spec({**SETTINGS, "layers": [1]}, backbone)
    with pytest.raises(ValueError, match="final_norm"):
        make_spec({**SETTINGS, "final_norm": False}, backbone)


def test_a_spec_of_another_version_is_refused(backbone: Backbone) -> None:
    values = make_spec(SETTINGS, backbone).to_json()
    with pytest.raises(InputError, match="overlap missing or unknown"):
        FeatureSpec.from_json({k: v for k, v in values.items() if k != "overlap"})
    with pytest.raises(InputError, match="stride missing or unknown"):
        FeatureSpec.from_json({**values, "stride": 8})


@pytest.mark.parametrize(("precision", "amp"), [("bfloat16", True), ("float32", False)])
def test_precision_decides_what_the_backbone_computes_in(precision: str, amp: bool) -> None:
    backbone, spec = load_backbone_and_spec(VIT, {"window": 32, "precision": precision})
    assert (backbone.amp, spec.precision) == (amp, precision)
