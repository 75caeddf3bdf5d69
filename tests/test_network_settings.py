"""Which settings make a network another one."""

import json
from typing import Any

import pytest

from custom.network_settings import network_difference, network_settings
from tests.bundle.overlays import EXPERIMENTS, config, content


def settings(**changes: Any) -> dict[str, Any]:
    """Of the shipped training configuration."""
    return network_settings({**config("training"), **changes})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unet_norm", "instance"),
        ("unet_norm", {"name": "group", "groups": 4}),
        ("unet_channels", [16, 32, 48]),
        ("unet_strides", [[1, 2, 2], [2, 2, 2]]),
        ("unet_residual", True),
        ("unet_upsampling", "interpolation"),
        ("unet_kernels", [1, 3, 3]),
        ("dimensions", 2),
        ("use_raw", False),
        ("token_channels", 0),
        ("fused_channels", 8),
        ("fusion", "weighted"),
        ("learned_upsampling_steps", 2),
        ("output_type", "affinities"),
    ],
)
def test_a_key_that_the_network_refers_to_is_named_with_both_values(key: str, value: Any) -> None:
    found = network_difference(settings(), settings(**{key: value}))
    before = config("training")[key]
    assert found == [f"{key} ({json.dumps(value)}, not {json.dumps(before)})"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpointing", True),
        ("unet_dropout", 0.3),
        ("lsd_sigma_nm", 60.0),
        ("learning_rate", 0.1),
        ("bundle_root", "/elsewhere"),
        ("mirror", True),
    ],
)
def test_a_key_that_changes_nothing_of_a_trained_network_is_not_compared(
    key: str, value: Any
) -> None:
    assert key in config("training")
    assert settings(**{key: value}) == settings()


def test_training_and_inference_describe_the_same_network() -> None:
    assert settings() == network_settings(config("inference"))


def test_another_class_is_named() -> None:
    other = settings(
        network_def={**config("training")["network_def"], "network": {"_target_": "N"}}
    )
    (found,) = network_difference(settings(), other)
    assert found == 'network_def#network#_target_ ("N", not "custom.networks.unet.UNet")'


def test_settings_of_another_version_and_none_at_all_are_taken() -> None:
    older = {key: value for key, value in settings().items() if key != "unet_residual"}
    assert network_difference(older, settings()) == network_difference(settings(), older) == []
    assert network_settings({}) == {}
    assert network_difference({}, settings()) == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_they_are_plain_json(name: str) -> None:
    flat = {k: v for k, v in content(name).items() if "#" not in k}
    found = settings(**flat)
    assert json.loads(json.dumps(found)) == found
