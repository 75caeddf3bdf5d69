import pytest
import torch

from custom.errors import InputError
from custom.precision import Precision, loss_scaler


@pytest.mark.parametrize(
    ("amp", "dtype", "expected"),
    [
        (True, "bfloat16", torch.bfloat16),
        (True, "float16", torch.float16),
        (False, "float16", torch.float32),
    ],
)
def test_a_network_runs_in_the_dtype_that_is_asked_for(
    amp: bool, dtype: str, expected: torch.dtype
) -> None:
    with Precision(amp, dtype).autocast(torch.device("cpu")):
        found = torch.nn.Linear(3, 2)(torch.zeros(1, 3))
    assert found.dtype == expected


@pytest.mark.parametrize(
    ("amp", "dtype", "scaled"),
    [(True, "float16", True), (True, "bfloat16", False), (False, "float16", False)],
)
def test_only_float16_scales_its_loss(amp: bool, dtype: str, scaled: bool) -> None:
    scaler = loss_scaler(amp, dtype, torch.device("cpu"))
    assert (float(scaler.scale(torch.tensor(1.0))) > 1) is scaled
    assert bool(scaler.state_dict()) is scaled


@pytest.mark.parametrize("dtype", ["fp16", "float32", 16])
def test_another_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(InputError, match=r"amp_dtype must be 'bfloat16' or 'float16', got "):
        Precision(True, dtype)
