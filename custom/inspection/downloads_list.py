"""``large_files.yml``: what MONAI would download into a bundle."""

import re
from collections.abc import Iterator

from custom.inspection.contents import name_fault
from custom.inspection.findings import quoted

_LINE = re.compile(r"^\s*(?:-\s*)?(large_files|path|url|hash_val|hash_type)\s*:\s*(.*?)\s*$")
WEIGHTS = (".pt", ".safetensors")


def download_faults(text: str) -> Iterator[str]:
    """What is wrong with a list of downloads, as ends of sentences.

    Only its plain form is read, one key per line, and everything else is a fault.
    """
    entries: list[dict[str, str]] = []
    for line in text.splitlines():
        if not line.strip() or line.strip() == "---":
            continue
        match = _LINE.match(line)
        if match is None:
            yield f"has a line that is no plain list of downloads: {quoted(line)}"
            return
        if line.lstrip().startswith("-"):
            entries.append({})
        if match[1] != "large_files":
            if not entries or match[1] in entries[-1]:
                yield f"has a line that is no plain list of downloads: {quoted(line)}"
                return
            entries[-1][match[1]] = match[2].strip("\"'")
    for entry in entries:
        yield from _entry_faults(entry)


def _entry_faults(entry: dict[str, str]) -> Iterator[str]:
    path, url = entry.get("path", ""), entry.get("url", "")
    if name_fault(path) or not path.startswith("models/"):
        yield f"would download to {quoted(path)}, which is not inside models/"
    elif not path.endswith(WEIGHTS):
        yield f"would download {quoted(path)}, which are no weights"
    if not url.startswith("https://"):
        yield f"would download from {quoted(url)}, which is no https address"
    if entry.get("hash_type", "") != "sha256" or not re.fullmatch(
        r"[0-9a-f]{64}", entry.get("hash_val", "")
    ):
        yield f"would download {quoted(path)} without its sha256"
