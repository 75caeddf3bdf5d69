"""What an inspection notes down: dangers, remarks, and a list of everything that could run."""

import json
from dataclasses import dataclass, field
from typing import Any

MOST_LINES = 30  # of dangers, where they are printed
SHOWN = 160  # characters of anything that is quoted from a received file


@dataclass(frozen=True, order=True)
class Finding:
    """One thing in one file.

    Args:
        path: of the file inside the bundle; empty for the bundle itself.
        what: a sentence without its full stop.
    """

    path: str
    what: str


@dataclass(frozen=True, order=True)
class Executed:
    """Something that would be executed, whether that is allowed or not.

    Args:
        kind: "target", "expression", "import", "python" or "pickle".
        path: of the file inside the bundle.
        text: what would be executed; of a Python file, what it is.
    """

    kind: str
    path: str
    text: str


@dataclass
class Findings:
    """All that was found so far."""

    dangers: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    executed: list[Executed] = field(default_factory=list)

    def danger(self, path: str, what: str) -> None:
        """Something that makes the bundle unsafe."""
        self.dangers.append(Finding(printable(path), printable(what)))

    def note(self, path: str, what: str) -> None:
        """Something worth knowing that does no harm."""
        self.notes.append(Finding(printable(path), printable(what)))

    def executes(self, kind: str, path: str, text: str) -> None:
        """Something that would be executed."""
        self.executed.append(Executed(kind, printable(path), printable(text)))


@dataclass(frozen=True)
class Report:
    """Result of an inspection.

    Args:
        name: of the zip or folder.
        files: how many it has.
        size: of all files, bytes.
        findings: what was found.
    """

    name: str
    files: int
    size: int
    findings: Findings

    @property
    def safe(self) -> bool:
        """Whether nothing dangerous was found."""
        return not self.findings.dangers

    def lines(self) -> list[str]:
        """For a reader: the verdict, then every danger and note."""
        dangers = sorted(set(self.findings.dangers))
        verdict = "safe" if self.safe else f"NOT SAFE, {_counted(len(dangers), 'danger')}"
        kinds = [item.kind for item in self.findings.executed]
        counts = ", ".join(_counted(kinds.count(kind), kind) for kind in sorted(set(kinds)))
        counts = f"; would run: {counts}" if counts else ""
        size = f"{_counted(self.files, 'file')}, {self.size / 1e6:.1f} MB"
        left = len(dangers) - MOST_LINES
        return [
            f"{self.name}: {verdict}",
            *(f"danger: {_placed(found)}" for found in dangers[:MOST_LINES]),
            *([f"... and {left} more; --json has all"] if left > 0 else []),
            *(f"note: {_placed(found)}" for found in sorted(set(self.findings.notes))),
            f"{size}{counts}",
        ]

    def to_json(self) -> str:
        """Everything, for a program."""
        found = self.findings
        content: dict[str, Any] = {
            "name": self.name,
            "safe": self.safe,
            "files": self.files,
            "bytes": self.size,
            "dangers": [vars(item) for item in sorted(set(found.dangers))],
            "notes": [vars(item) for item in sorted(set(found.notes))],
            "executed": [vars(item) for item in sorted(set(found.executed))],
        }
        return json.dumps(content, indent=2)


def printable(text: str) -> str:
    """Text of a received file without line ends, escapes and length."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= SHOWN * 2 else f"{clean[: SHOWN * 2]}..."


def quoted(text: str) -> str:
    """A piece of a received file inside a sentence."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def _placed(found: Finding) -> str:
    return f"{found.path}: {found.what}" if found.path else found.what


def _counted(count: int, noun: str) -> str:
    plural = noun if noun == "python" or count == 1 else f"{noun}s"
    return f"{count} {plural}"
