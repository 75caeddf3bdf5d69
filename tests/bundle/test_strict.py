import pytest
from scripts.strict import strict


@strict
def interrupted(word: str) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_ends_a_command_in_one_word() -> None:
    with pytest.raises(SystemExit) as caught:
        interrupted("now")
    assert caught.value.code == "interrupted"
