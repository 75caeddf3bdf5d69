import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from monai.utils import set_determinism

from custom.determinism import explained, settle
from custom.errors import InputError


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    set_determinism(None, use_deterministic_algorithms=False)


def drawn() -> tuple[float, float, float]:
    legacy = float(np.random.rand())  # noqa: NPY002  # what libraries may draw from
    return random.random(), legacy, float(torch.rand(()))


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_seed_decides_what_is_drawn(deterministic: bool) -> None:
    found = []
    for seed in (3, 4, 3):
        settle(seed, deterministic)
        found.append(drawn())
    assert found[0] == found[2]
    assert not set(found[0]) & set(found[1])


@pytest.mark.parametrize("deterministic", [True, False])
def test_only_repeatable_algorithms_are_taken_on_request(deterministic: bool) -> None:
    settle(0, deterministic)
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is deterministic


def test_a_setting_of_the_user_for_cublas_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    settle(0, True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_what_torch_cannot_repeat_is_one_sentence() -> None:
    with (
        pytest.raises(InputError, match=r"has no deterministic upsample_trilinear3d_backward_out_"),
        explained(),
    ):
        raise RuntimeError(
            "upsample_trilinear3d_backward_out_cuda does not have a deterministic implementation, "
            "but you set 'torch.use_deterministic_algorithms(True)'. You can turn off determinism"
        )
    with pytest.raises(RuntimeError, match=r"^out of memory$"), explained():
        raise RuntimeError("out of memory")


def test_a_word_is_no_flag() -> None:
    with pytest.raises(InputError, match="deterministic must be true or false, got 'false'"):
        settle(0, "false")  # type: ignore[arg-type]
