"""Seeds, and runs that can be repeated bit by bit."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from monai.utils import set_determinism

from custom.errors import InputError
from custom.json_fields import flag

# torch's words for an operation that it cannot repeat bit by bit
_NO_ALGORITHM = re.compile(r"^(\S+) does not have a deterministic implementation")


def settle(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch, and choose torch's algorithms. Called before any work.

    Args:
        seed: of all of them.
        deterministic: only algorithms whose results can be repeated bit by bit; slower on a GPU.

    Raises:
        InputError: ``deterministic`` is not a bool.
    """
    if flag(deterministic, "deterministic"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it as it starts
    set_determinism(seed, use_deterministic_algorithms=deterministic)


@contextmanager
def explained() -> Iterator[None]:
    """What torch cannot repeat bit by bit is the user's to decide on, in one sentence.

    Raises:
        InputError: there is no such algorithm.
    """
    try:
        yield
    except RuntimeError as error:
        if found := _NO_ALGORITHM.match(str(error)):
            raise InputError(
                f"deterministic is true, but torch has no deterministic {found[1]} on this device: "
                f"set deterministic to false, or train on another device."
            ) from error
        raise
