import json
from pathlib import Path
from typing import Any

import pytest

from custom.changed_settings import ALWAYS, as_text, changed_settings, compared_settings
from tests.bundle.tiny import CONFIGS

TRAIN = CONFIGS / "train.json"


def changed(tmp_path: Path, defaults: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    (tmp_path / "defaults.json").write_text(json.dumps(defaults))
    return changed_settings(config, tmp_path / "defaults.json")


@pytest.mark.parametrize(
    ("defaults", "config", "expected"),
    [
        pytest.param({"a": 1}, {"a": 1}, {}, id="nothing"),
        pytest.param({"a": 1, "b": 2}, {"a": 3, "b": 2}, {"a": 3}, id="a value"),
        pytest.param({}, {"a": None}, {"a": None}, id="a new key"),
        pytest.param(
            {"a": {"b": 1, "c": {"d": [1, 2]}}},
            {"a": {"b": 1, "c": {"d": [1, 3]}}},
            {"a#c#d": [1, 3]},
            id="nested",
        ),
        pytest.param(
            {"a": {"_target_": "x", "b": 1}},
            {"a": {"_target_": "y", "b": 1}},
            {"a": {"_target_": "y", "b": 1}},
            id="another component",
        ),
        pytest.param({"a": "@b#c"}, {"a": "@b::c"}, {}, id="as MONAI writes references"),
        pytest.param({"eval_dir": "a"}, {"eval_dir": "b", "_meta_": {}}, {}, id="places"),
    ],
)
def test_settings_that_differ_are_found(
    tmp_path: Path, defaults: dict[str, Any], config: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert changed(tmp_path, defaults, config) == expected


def test_what_is_always_compared_is_in_the_configuration() -> None:
    config = json.loads(TRAIN.read_text())
    assert set(ALWAYS) <= set(config)
    found = compared_settings({**config, "amp": False, "features": {"window": 7}}, TRAIN)
    assert set(found) <= {*ALWAYS, "amp", "features#window"}
    assert (found["amp"], found["features#window"]) == (False, 7)
    assert found["crop_size"] == "[64, 64, 64]"
    assert found["learning_rate"] == config["learning_rate"]


def test_a_long_value_is_one_short_line() -> None:
    assert as_text("short") == "short"
    assert as_text(list(range(500))).endswith(" ...")
    assert len(as_text(list(range(500)))) == 120
