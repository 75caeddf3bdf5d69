"""Loops that are compiled, by numba."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import numba


def compiled(function: Callable[..., Any], cache: bool = False) -> Callable[..., Any]:
    """``function`` compiled when it is first called, alone or into a compiled caller."""
    options = partial(numba.njit, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
    return options(cache=cache)(function)


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """As ``compiled``, and kept on disk for the next process where there is a place."""
    try:
        ready = compiled(function, cache=True)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return compiled(function)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return ready(*arguments)
        except OSError:  # no room left there: it was compiled all the same
            return ready(*arguments)

    return call
