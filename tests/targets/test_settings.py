import json
from typing import Any

import pytest

from custom.errors import InputError
from custom.targets.settings import parse_target_settings, target_settings

GIVEN: dict[str, Any] = {
    "affinity_offsets": [[1, 0, 0], [0, -3, 0]],
    "lsd_sigma_nm": 40,
    "lsd_downsample": [1, 2, 3],
    "boundary_power": 1.5,
    "output_type": "affinities_lsds",
    "dimensions": 3,
}


def test_settings_survive_json() -> None:
    settings = parse_target_settings(GIVEN)
    assert parse_target_settings(json.loads(json.dumps(settings.to_json()))) == settings
    assert settings.to_json() == GIVEN


def test_without_lsds_their_sampling_makes_no_difference() -> None:
    given = {**GIVEN, "output_type": None}
    plain = [parse_target_settings({**given, "lsd_sigma_nm": s}) for s in (None, 0)]
    plain.append(parse_target_settings({**given, "output_type": "affinities"}))
    assert (
        plain[0] == plain[1] == plain[2] == target_settings(GIVEN["affinity_offsets"], None, 1, 1.5)
    )
    assert plain[0].layout.num_outputs == 2


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("affinity_offsets", [[1, 0, 0]], "affinity_offsets ([[1, 0, 0], [0, -3, 0]], not "),
        ("dimensions", 2, "dimensions (3, not 2)"),
        ("lsd_sigma_nm", 50.5, "lsd_sigma_nm (40.0, not 50.5)"),
        ("lsd_downsample", 2, "lsd_downsample ([1, 2, 3], not [2, 2, 2])"),
        ("boundary_power", 0, "boundary_power (1.5, not 0.0)"),
    ],
)
def test_every_difference_is_told(key: str, value: Any, told: str) -> None:
    one, other = parse_target_settings(GIVEN), parse_target_settings({**GIVEN, key: value})
    difference, *_ = one.difference(other)
    assert difference.startswith(told)
    assert one.difference(one) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"affinity_offsets": []}, "affinity_offsets must be a list"),
        ({"affinity_offsets": [[1, 0]]}, "each of affinity_offsets must be a list of 3"),
        ({"affinity_offsets": [[1, 0, 0.5]]}, "each of affinity_offsets must be 3 whole numbers"),
        ({"affinity_offsets": [[0, 0, 0]]}, "not its own neighbour"),
        ({"lsd_sigma_nm": -1}, "lsd_sigma_nm must be a number from 0 on, got -1"),
        ({"lsd_sigma_nm": "80"}, "lsd_sigma_nm must be a number"),
        ({"lsd_sigma_nm": float("nan")}, "lsd_sigma_nm must be a number"),
        ({"lsd_sigma_nm": None}, "needs lsd_sigma_nm"),
        ({"output_type": "lsds"}, "output_type 'lsds' is unknown"),
        ({"dimensions": 4}, "dimensions must be 2 or 3"),
        ({"lsd_downsample": 0}, "lsd_downsample must be"),
        ({"lsd_downsample": 1.5}, "lsd_downsample must be"),
        ({"lsd_downsample": [2, 2]}, "lsd_downsample must be"),
        ({"lsd_downsample": True}, "lsd_downsample must be"),
        ({"boundary_power": float("inf")}, "boundary_power must be"),
        ({"boundary_power": True}, "boundary_power must be"),
        ({"sigma": 3}, "targets has the unknown key 'sigma'"),
    ],
)
def test_a_mistake_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_target_settings({**GIVEN, **changes})


def test_what_lacks_is_named() -> None:
    with pytest.raises(InputError, match="targets lacks 'lsd_sigma_nm'"):
        parse_target_settings({"affinity_offsets": [[1, 0, 0]]})
    with pytest.raises(InputError, match="targets must be null or a JSON object, got 'all'"):
        parse_target_settings("all")
