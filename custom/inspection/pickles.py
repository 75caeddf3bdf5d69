"""Pickles, read opcode by opcode and never loaded: what they would import and call."""

import pickletools
import zipfile
from collections.abc import Iterator
from typing import IO

from custom.inspection.allow_lists import PICKLED
from custom.inspection.contents import UNREADABLE

MOST_BYTES = 64 * 2**20  # of one pickle; tensors lie beside it
MOST_IN_A_ROW = 8  # torch's old format is five pickles, then tensors

_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_PUT = {"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}


def globals_of(file: IO[bytes]) -> tuple[list[str], str | None]:
    """Names that a pickle would import, and what is wrong with it.

    Args:
        file: at the start of the pickle.

    Returns:
        Names as "module name", in order; and a fault where they cannot all be told, or None.
    """
    found: list[str] = []
    try:
        for name in _named(file):
            found.append(name)
    except Exception as error:  # pickletools raises whatever a broken pickle leads to
        return found, f"is no pickle that can be read to its end ({type(error).__name__})"
    hidden = "?" in found
    return found, "hides the name of what it would import" if hidden else None


def _named(file: IO[bytes]) -> Iterator[str]:
    """Every global; "?" for one whose name is put together while loading."""
    strings: list[str | None] = []  # what was pushed last, None for what is no plain string
    memo: dict[int, str | None] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            yield str(argument)
        elif name == "STACK_GLOBAL":
            both = strings[-2:]
            yield "?" if len(both) < 2 or None in both else f"{both[0]} {both[1]}"
        elif name in ("EXT1", "EXT2", "EXT4"):
            yield "?"
        if name in _PUT:
            key = len(memo) if name == "MEMOIZE" else int(argument or 0)
            memo[key] = strings[-1] if strings else None
        elif name in _GET:
            strings.append(memo.get(int(argument or 0)))
        else:
            strings.append(argument if name in _STRINGS else None)


def pickle_faults(file: IO[bytes]) -> Iterator[str]:
    """What a file of one or more pickles would do beyond making tensors, as ends of sentences."""
    for position in range(MOST_IN_A_ROW):
        start = file.tell()
        head = file.read(2)
        file.seek(start)
        if position and not (head[:1] == b"\x80" and head[1:] in (b"\x02", b"\x03", b"\x04")):
            return
        found, fault = globals_of(file)
        yield from (f"would import {name!r}" for name in found if name not in {*PICKLED, "?"})
        if fault:
            yield fault
            return


def torch_faults(file: IO[bytes]) -> Iterator[str]:
    """The same of a file that ``torch.save`` writes: a zip with a pickle, or pickles alone."""
    head = file.read(4)
    file.seek(0)
    if head[:2] != b"PK":
        yield from pickle_faults(file)
        return
    try:
        with zipfile.ZipFile(file) as archive:
            yield from _archive_faults(archive)
    except UNREADABLE as error:
        yield f"is damaged ({type(error).__name__})"


def _archive_faults(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    if len(set(names)) < len(names):
        yield "holds one name twice"
    parts = [name.split("/") for name in names]
    if any("code" in part or part[-1] == "constants.pkl" for part in parts):
        yield "is TorchScript, a program that cannot be judged"
    if not any(part[-1] == "data.pkl" for part in parts):
        yield "is a zip, but no file of torch's"
    for info in archive.infolist():
        if info.filename.rsplit("/", 1)[-1].endswith(".pkl"):
            if info.file_size > MOST_BYTES:
                yield f"has a pickle of {info.file_size} bytes"
                continue
            with archive.open(info) as file:
                yield from pickle_faults(file)


def array_faults(file: IO[bytes]) -> Iterator[str]:
    """The same of a ``.npy`` file, whose objects are a pickle."""
    head = file.read(4096)
    if b"'O'" in head or b"|O" in head:
        yield "is an array of objects, which are a pickle"
