import errno

import numba
import pytest
from numba.core.caching import IndexDataCacheFile

from custom.compiling import kept


def twice(number):
    return 2 * number


def test_without_a_place_to_keep_it_code_is_compiled_all_the_same(monkeypatch):
    compile_ = numba.njit

    def njit(**options):
        if options["cache"]:
            raise RuntimeError("cannot cache function 'twice': no locator available")
        return compile_(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert kept(twice)(21) == 42


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_stops_nothing(monkeypatch, code):
    saved = []

    def save(*_):
        saved.append(code)
        raise OSError(code, "no room")

    monkeypatch.setattr(IndexDataCacheFile, "save", save)
    compiled = kept(twice)
    assert [compiled(21), compiled(4)] == [42, 8]
    assert saved == [code]
