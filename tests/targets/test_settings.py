import json
from dataclasses import fields
from inspect import signature
from typing import Any

import pytest

from custom.errors import InputError
from custom.targets.boundary_settings import BoundarySettings
from custom.targets.classes import ClassSettings
from custom.targets.settings import (
    KEYS,
    parse_target_settings,
    stored_settings,
    target_settings,
)

OFFSETS = [[0, 1, 0], [0, -3, 0]]
GIVEN: dict[str, Any] = {
    "affinity_offsets": OFFSETS,
    "lsd_sigma_nm": 40,
    "lsd_downsample": [1, 2, 3],
    "output_type": "affinities_lsds",
    "dimensions": 3,
    "affinity_background": "joined",
    "boundary_power": 1.5,
    "boundary_form": "gaussian",
    "boundary_between": "instances",
    "boundary_length_nm": None,
    "boundary_peak": 4.0,
    "boundary_sigma_nm": 30.0,
    "boundary_reach_nm": 70.0,
}
OLDER = {
    "affinity_offsets": [[1, 0, 0]],
    "lsd_sigma_nm": 40.0,
    "lsd_downsample": [1, 2, 3],
    "boundary_power": 0.0,
}


def test_settings_survive_json() -> None:
    settings = parse_target_settings(GIVEN)
    assert stored_settings(json.loads(json.dumps(settings.to_json()))) == settings
    assert settings.to_json() == GIVEN
    assert set(KEYS) == set(GIVEN)


def test_every_setting_of_a_weight_has_its_key() -> None:
    keys = {f"boundary_{field.name}" for field in fields(BoundarySettings)}
    assert keys == {key for key in signature(target_settings).parameters if "boundary" in key}


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"lsd_sigma_nm": None}, {"lsd_sigma_nm": 0}),
        ({"lsd_sigma_nm": None}, {"lsd_sigma_nm": 40, "output_type": "affinities"}),
        ({"lsd_sigma_nm": None}, {"lsd_sigma_nm": 0, "lsd_downsample": 2}),
        ({"lsd_sigma_nm": 9, "dimensions": 2}, {"lsd_downsample": [3, 1, 1]}),
        ({"boundary_power": 0}, {"boundary_reach_nm": 9.0, "boundary_length_nm": 3.0}),
        ({"boundary_power": 1}, {"boundary_peak": 9.0, "boundary_sigma_nm": 3.0}),
        ({"boundary_power": 1, "boundary_form": "gaussian"}, {"boundary_length_nm": 3.0}),
    ],
)
def test_what_makes_no_difference_is_no_difference(
    given: dict[str, Any], same: dict[str, Any]
) -> None:
    one = target_settings(**{"affinity_offsets": OFFSETS, "lsd_sigma_nm": None, **given})
    other = target_settings(**{"affinity_offsets": OFFSETS, "lsd_sigma_nm": None, **given, **same})
    assert one == other
    assert one.difference(other) == []


def test_affinities_alone_have_no_lsds_although_sigma_stays() -> None:
    settings = target_settings(OFFSETS, 80.0, output_type="affinities")
    assert settings.lsd_sigma_nm is None
    assert settings.layout.num_outputs == 2


def test_sections_have_six_lsds() -> None:
    assert target_settings(OFFSETS, 80.0, dimensions=2).layout.num_lsds == 6


def test_classes_have_neither_affinities_nor_lsds() -> None:
    settings = target_settings(
        [[0, 0, 0]], 80.0, output_type="labels", num_classes=4, ignore_label=7
    )
    assert settings.classes == ClassSettings(4, 7, "ids")
    assert settings.output_type == "labels"
    assert (settings.layout.num_outputs, settings.layout.num_targets) == (4, 3)


@pytest.mark.parametrize(
    ("erosion", "dimensions", "expected"),
    [(2, 3, (2, 2, 2)), (2, 2, (0, 2, 2)), ([1, 0, 3], 3, (1, 0, 3)), (0, 3, (0, 0, 0))],
)
def test_one_number_erodes_all_axes_that_there_are(
    erosion: Any, dimensions: int, expected: tuple[int, ...]
) -> None:
    settings = target_settings(OFFSETS, None, dimensions=dimensions, mask_erosion=erosion)
    assert settings.mask_erosion == expected


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("affinity_offsets", [[0, 1, 0]], "affinity_offsets ([[0, 1, 0], [0, -3, 0]], not "),
        ("dimensions", 2, "dimensions (3, not 2)"),
        ("lsd_sigma_nm", 50.5, "lsd_sigma_nm (40.0, not 50.5)"),
        ("lsd_downsample", 2, "lsd_downsample ([1, 2, 3], not [2, 2, 2])"),
        ("affinity_background", "apart", "affinity_background (joined, not apart)"),
        ("boundary_power", 0.5, "boundary_power (1.5, not 0.5)"),
        ("boundary_peak", 9, "boundary_peak (4.0, not 9.0)"),
        ("boundary_sigma_nm", 9, "boundary_sigma_nm (30.0, not 9.0)"),
        ("boundary_reach_nm", 9, "boundary_reach_nm (70.0, not 9.0)"),
        ("boundary_between", "all", "boundary_between (instances, not all)"),
    ],
)
def test_every_difference_is_told(key: str, value: Any, told: str) -> None:
    one, other = parse_target_settings(GIVEN), parse_target_settings({**GIVEN, key: value})
    (difference,) = one.difference(other)
    assert difference.startswith(told)
    assert one.difference(one) == []


def test_targets_of_earlier_versions_are_those_of_the_defaults() -> None:
    assert stored_settings(OLDER) == target_settings([[1, 0, 0]], 40.0, [1, 2, 3])
    plain = stored_settings({**OLDER, "lsd_sigma_nm": None, "lsd_downsample": [1, 1, 1]})
    assert plain == target_settings([[1, 0, 0]], None)


def test_weights_of_earlier_versions_had_no_end_and_are_others() -> None:
    found = stored_settings({**OLDER, "boundary_power": 2.0})
    now = target_settings([[1, 0, 0]], 40.0, [1, 2, 3], 2.0)
    assert found.difference(now) == ["boundary_reach_nm (None, not 240.0)"]
    assert stored_settings(found.to_json()) == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"affinity_offsets": []}, "affinity_offsets must be a list"),
        ({"affinity_offsets": [[1, 0]]}, "each of affinity_offsets must be a list of 3"),
        ({"affinity_offsets": [[1, 0, 0.5]]}, "each of affinity_offsets must be 3 whole numbers"),
        ({"affinity_offsets": [[0, 0, 0]]}, "not its own neighbour"),
        ({"affinity_offsets": [[1, 0, 0]], "dimensions": 2}, "leaves its section"),
        ({"lsd_sigma_nm": -1}, "lsd_sigma_nm must be a number from 0 on, got -1"),
        ({"lsd_sigma_nm": "80"}, "lsd_sigma_nm must be a number"),
        ({"lsd_sigma_nm": float("nan")}, "lsd_sigma_nm must be a number"),
        ({"lsd_sigma_nm": 0}, "needs lsd_sigma_nm"),
        ({"output_type": "lsds"}, "output_type 'lsds' is unknown"),
        ({"output_type": "labels"}, "are the labels themselves"),
        ({"dimensions": 4}, "dimensions must be 2 or 3"),
        ({"lsd_downsample": 0}, "lsd_downsample must be"),
        ({"lsd_downsample": 1.5}, "lsd_downsample must be"),
        ({"lsd_downsample": [2, 2]}, "lsd_downsample must be"),
        ({"lsd_downsample": True}, "lsd_downsample must be"),
        ({"affinity_background": "join"}, "did you mean 'joined'"),
        ({"boundary_power": float("inf")}, "boundary_power must be"),
        ({"boundary_power": True}, "boundary_power must be"),
        ({"boundary_power": 0}, "has no effect with boundary_power 0"),
        ({"boundary_form": "linear"}, "boundary_form 'linear' is unknown"),
        ({"boundary_between": "instance"}, "did you mean 'instances'"),
        ({"boundary_sigma_nm": 0}, "boundary_sigma_nm must be positive, got 0"),
        ({"boundary_peak": float("nan")}, "boundary_peak must be a number"),
        (
            {"boundary_form": "gaussian", "boundary_peak": 10.0, "boundary_power": 5.0},
            "boundary_peak 10 to the power of boundary_power 5 weighs boundaries more than 65504",
        ),
        ({"boundary_length_nm": 0.0}, "boundary_length_nm must be positive"),
        ({"boundary_reach_nm": None}, "boundary_reach_nm must be a number"),
        ({"mask_erosion": 3}, "targets has the unknown key 'mask_erosion'"),
        ({"sigma": 3}, "targets has the unknown key 'sigma'"),
    ],
)
def test_a_mistake_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_target_settings({**GIVEN, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_erosion": -1}, "mask_erosion must be one or three whole numbers from 0 on, got -1"),
        ({"mask_erosion": [1, 2]}, "mask_erosion must be a list of 3"),
        ({"mask_erosion": [1, 0, 0], "dimensions": 2}, "mask_erosion .* leaves its section"),
        ({"output_type": "labels", "num_classes": 1}, "num_classes must be a whole number from 2"),
        ({"output_type": "labels", "ignore_label": -1}, "ignore_label must be null or a whole"),
        ({"output_type": "labels", "class_of_labels": "id"}, "did you mean 'ids'"),
        (
            {"output_type": "labels", "class_of_labels": "foreground", "num_classes": 3},
            "'foreground' has two classes",
        ),
    ],
)
def test_a_mistake_in_what_no_cache_has_is_one_sentence(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        target_settings(OFFSETS, None, **changes)


@pytest.mark.parametrize(("size", "fits"), [((1, 4, 1), True), ((1, 3, 9), False)])
def test_a_crop_that_no_offset_fits_into_is_refused(size: tuple[int, ...], fits: bool) -> None:
    settings = target_settings(OFFSETS, None)
    if fits:
        settings.refuse_crop(size)
        return
    with pytest.raises(InputError, match=r"holds \[0, -3, 0\], which leads out of every crop"):
        settings.refuse_crop(size)


def test_what_lacks_is_named() -> None:
    with pytest.raises(InputError, match="targets lacks 'lsd_sigma_nm'"):
        parse_target_settings({"affinity_offsets": [[1, 0, 0]]})
    with pytest.raises(InputError, match="targets must be null or a JSON object, got 'all'"):
        parse_target_settings("all")
