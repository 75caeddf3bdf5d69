"""What is wrong with a configuration, said in one sentence each."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import IntEnum


class Rank(IntEnum):
    """How much a finding matters: what comes first often explains what comes after."""

    FILE = 0
    KEY = 1
    VALUE = 2
    RUN = 3
    REFERENCE = 4
    EXPRESSION = 5
    COMPONENT = 6
    NOTE = 7
    """Worth a word, but nothing is wrong."""


@dataclass(frozen=True)
class Finding:
    """One mistake.

    Args:
        rank: its importance.
        where: the file, or "command line".
        key: nested key with ``#`` between its parts, as a user writes it; empty for a whole file.
        what: the rest of the sentence, with the way out.
    """

    rank: Rank
    where: str
    key: str
    what: str

    def __str__(self) -> str:
        place = f"{self.where}: '{self.key}'" if self.key else self.where
        return f"{place} {self.what}"


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Each once, most important first, else as they were found."""
    return sorted(dict.fromkeys(findings), key=lambda finding: finding.rank)


def mistakes(findings: Iterable[Finding]) -> list[Finding]:
    """Those that stop a run, most important first."""
    return [finding for finding in in_order(findings) if finding.rank is not Rank.NOTE]


def notes(findings: Iterable[Finding]) -> list[Finding]:
    """Those that do not."""
    return [finding for finding in in_order(findings) if finding.rank is Rank.NOTE]


def message(found: Iterable[Finding]) -> str:
    """The sentence of a single mistake; of several, one per line under their number."""
    sentences = [str(finding) for finding in found]
    if len(sentences) == 1:
        return sentences[0]
    return "\n".join([f"the configuration has {len(sentences)} mistakes:", *sentences])


def close_to(word: str, known: Iterable[str], least: float = 0.6) -> str | None:
    """The known word that is most like one, if any is."""
    found = get_close_matches(word, list(known), n=1, cutoff=least)
    return found[0] if found else None


def did_you_mean(word: str | None) -> str:
    """Ending of a sentence."""
    return f"; did you mean '{word}'?" if word else ""
