from typing import Any

import pytest

from custom.blockwise.settings import BlockSettings
from custom.errors import InputError
from custom.workforce import Workforce


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"threads": 0}, "threads must be"), ({"keep_features": "no"}, "keep_features must be")],
    ids=str,
)
def test_what_is_no_setting_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BlockSettings(Workforce(), **changes)


def test_tasks_are_given_what_the_configuration_says() -> None:
    settings = BlockSettings(Workforce(workers=3, retries=5), threads=2)
    assert settings.of_tasks() == {"threads": 2, "retries": 5, "worker_config": None}
