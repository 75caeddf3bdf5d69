import json

import pytest

from custom.errors import InputError
from custom.features.backbone import Backbone, load_backbone
from custom.features.settings import make_spec
from custom.features.spec import FeatureSpec

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


def test_a_stride_and_slice_steps_are_kept(backbone: Backbone) -> None:
    planes = {"planes": ["xy", "yz"]}
    spec = make_spec({**SETTINGS, **planes, "stride": 2, "slice_step": [3, 1]}, backbone)
    assert (spec.stride, spec.slice_step) == (2, (3, 1, 1))
    assert FeatureSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert make_spec({**SETTINGS, **planes, "slice_step": [1, 4]}, backbone).slice_step == (1, 1, 4)
    assert make_spec({**SETTINGS, **planes, "slice_step": 4}, backbone).slice_step == (4, 1, 4)


def test_a_spec_from_before_stride_and_slice_step_has_a_token_per_patch_and_slice(
    backbone: Backbone,
) -> None:
    spec = make_spec({**SETTINGS, "planes": ["xz", "yz"]}, backbone)
    older = {k: v for k, v in spec.to_json().items() if k not in ("stride", "slice_step")}
    assert FeatureSpec.from_json(older) == spec
    finer = make_spec(
        {**SETTINGS, "planes": ["xz", "yz"], "stride": 4, "slice_step": [1, 2]}, backbone
    )
    assert FeatureSpec.from_json(older).difference(finer) == [
        "stride (8, not 4)",
        "slice_step ([1, 1, 1], not [1, 1, 2])",
    ]


def test_difference_names_every_field_with_both_values(backbone: Backbone) -> None:
    one = make_spec(SETTINGS, backbone)
    other = make_spec({**SETTINGS, "window": 32, "planes": ["xy"]}, backbone)
    assert one.difference(one) == []
    assert one.difference(other) == [
        "window (64, not 32)",
        "planes ([xy, xz, yz], not [xy])",
    ]


def test_steps_of_slices_differ_where_both_have_the_plane(backbone: Backbone) -> None:
    one = make_spec({**SETTINGS, "slice_step": [1, 2, 3]}, backbone)
    part = make_spec({**SETTINGS, "planes": ["xy", "yz"], "slice_step": [1, 3]}, backbone)
    other = make_spec({**SETTINGS, "planes": ["xy", "yz"], "slice_step": [1, 2]}, backbone)
    assert one.difference(part) == ["planes ([xy, xz, yz], not [xy, yz])"]
    assert "slice_step ([1, 2, 3], not [1, 1, 2])" in one.difference(other)


def test_a_moved_backbone_is_the_same_other_weights_are_not(backbone: Backbone) -> None:
    here = make_spec(SETTINGS, backbone).to_json()
    moved = FeatureSpec.from_json({**here, "backbone": "/elsewhere"})
    other = FeatureSpec.from_json({**here, "backbone": "/elsewhere", "digest": "0"})
    assert FeatureSpec.from_json(here).difference(moved) == []
    assert len(FeatureSpec.from_json(here).difference(other)) == 2


def test_a_spec_of_another_version_is_refused(backbone: Backbone) -> None:
    values = make_spec(SETTINGS, backbone).to_json()
    with pytest.raises(InputError, match="overlap missing or unknown"):
        FeatureSpec.from_json({k: v for k, v in values.items() if k != "overlap"})
    for steps in ([1, 1], [1, 0, 1]):
        with pytest.raises(InputError, match="slice_step of a feature spec must be three"):
            FeatureSpec.from_json({**values, "slice_step": steps})
    with pytest.raises(InputError, match="pitch missing or unknown"):
        FeatureSpec.from_json({**values, "pitch": 8})
    with pytest.raises(InputError, match="patch_size missing or unknown"):
        FeatureSpec.from_json({k: v for k, v in values.items() if k != "patch_size"})
