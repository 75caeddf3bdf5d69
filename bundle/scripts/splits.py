"""Which entries of a datalist are for training, validation and test."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from custom.datalist import SECTIONS
from custom.errors import InputError
from custom.json_fields import hint


@dataclass(frozen=True)
class Split:
    """Which entries are not for training.

    Args:
        validation: ids with commas between them, in which ``*`` and ``?`` stand for any characters
            and any one; or a fraction of all entries; "" for none.
        test: the same.
        seed: whole number that decides which entries a fraction takes.
    """

    validation: str = ""
    test: str = ""
    seed: str = "0"

    def sections(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """The ids of every section of a datalist, whatever their order was.

        Raises:
            InputError: an id that is not there or is in two sections, a fraction that is none, or
                fractions that leave nothing for training.
        """
        known = sorted(ids)
        found, shares = self._stated(known)
        rest = [i for i in known if i not in found["validation"] + found["test"]]
        if shares and sum(shares.values()) >= len(rest):
            raise InputError(
                f"--validation {self.validation or 'none'} and --test {self.test or 'none'} leave "
                f"none of {len(known)} entries for training; take less or name them"
            )
        rng = np.random.default_rng(_whole_number(self.seed))
        rest = [rest[i] for i in rng.permutation(len(rest))]
        for name, count in shares.items():
            found[name], rest = sorted(rest[:count]), rest[count:]
        return found | {"training": sorted(rest)}

    def _stated(self, known: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, int]]:
        """Ids that are named for a section, and how many are to be drawn for it."""
        found: dict[str, list[str]] = {name: [] for name in SECTIONS}
        shares = {}
        for name, text in (("validation", self.validation), ("test", self.test)):
            share = None if text in known else _fraction(text, name)
            if share is None:
                found[name] = _named(text, known, name)
            else:
                shares[name] = max(1, round(share * len(known)))
        for id_ in set(found["validation"]) & set(found["test"]):
            raise InputError(f"'{id_}' is both in --validation and in --test; name it once")
        return found, shares


def entry_id(text: str) -> str:
    """What may be an id, as near to a name as possible."""
    return re.sub(r"^(?=[.-]|$)", "_", re.sub(r"[^A-Za-z0-9._-]", "_", text))


def _named(text: str, known: Sequence[str], section: str) -> list[str]:
    """Ids that a list of names, separated by commas, stands for."""
    found: set[str] = set()
    for name in filter(None, (part.strip() for part in text.split(","))):
        matching = {id_ for id_ in known if fnmatchcase(id_, name)}
        if not matching:
            raise InputError(f"--{section} names '{name}', which is not there{hint(name, known)}")
        found |= matching
    return sorted(found)


def _fraction(text: str, section: str) -> float | None:
    """A fraction, None for what is no number."""
    try:
        share = float(text)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise InputError(f"--{section} must be ids or a fraction between 0 and 1, got {text}")
    return share


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise InputError(f"--seed must be a whole number, got {text!r}")
    return int(text)
