"""Pickles are read, never loaded."""

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from custom.inspection.pickles import globals_of, pickle_faults, torch_faults


class Gadget:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def saved(value: Any, **options: Any) -> io.BytesIO:
    content = io.BytesIO()
    torch.save(value, content, **options)
    content.seek(0)
    return content


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_weights_and_plain_values_of_any_type_are_safe(zipped: bool) -> None:
    state = OrderedDict(
        {str(dtype): torch.ones(2, 3).to(dtype) for dtype in DTYPES},
        parameter=torch.nn.Parameter(torch.ones(3)),
        strided=torch.ones(4, 6)[:, ::2],
        shape=torch.Size([1, 2]),
        dtype=torch.float16,
        device=torch.device("cpu"),
        plain={"a": [1, 2.5, None, True, "x", (1, 2)]},
    )
    file = saved(state, _use_new_zipfile_serialization=zipped)
    assert list(torch_faults(file)) == []
    file.seek(0)
    torch.load(file, weights_only=True)  # torch is of the same opinion


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_gadget_of_any_protocol_is_found_and_does_not_run(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    content = pickle.dumps([1, {"a": Gadget(f"touch {marker}")}], protocol=protocol)
    found, fault = globals_of(io.BytesIO(content))
    assert found == ["posix system"]
    assert fault is None
    assert list(torch_faults(io.BytesIO(content))) == ["would import 'posix system'"]
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_a_gadget_among_weights_is_found(zipped: bool) -> None:
    file = saved({"w": torch.ones(2), "x": Gadget("true")}, _use_new_zipfile_serialization=zipped)
    assert list(torch_faults(file)) == ["would import 'posix system'"]


@pytest.mark.parametrize(
    "content",
    [
        # the name is taken from the memo after something else was put there
        b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x30h\x00h\x01\x93.",
        b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94h\x00h\x01\x93.",
        b"\x80\x04\x8c\x05posix2\x93.",
        # an extension's code stands for a name
        b"\x80\x02\x82\x01.",
        # what was pushed last is no string
        b"\x80\x04\x8c\x05posix\x8c\x06system\x8c\x01x0\x93.",
    ],
)
def test_a_name_that_is_put_together_while_loading_is_a_danger(content: bytes) -> None:
    assert list(pickle_faults(io.BytesIO(content)))


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_pickle_that_ends_early_still_tells_what_it_imports(cut: int) -> None:
    content = pickle.dumps({"a": Gadget("true"), "b": "x" * 100}, protocol=2)[:-cut]
    faults = list(pickle_faults(io.BytesIO(content)))
    assert faults[0] == "would import 'posix system'"
    assert "cannot" in faults[-1] or "no pickle" in faults[-1]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x00" * 100, b"text"])
def test_what_is_no_file_of_torchs_is_a_danger(content: bytes) -> None:
    assert list(torch_faults(io.BytesIO(content)))
