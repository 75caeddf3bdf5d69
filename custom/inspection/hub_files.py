"""What a hub adds to a bundle that was pushed to it, and nothing runs."""

from collections.abc import Sequence

from custom.inspection.contents import Entry

FOLDER = ".cache/huggingface/"
SUFFIXES = (".metadata", ".lock", "/CACHEDIR.TAG", "/.gitignore")
LONGEST_HEADER = 400  # bytes that MONAI writes before the model card


def without_hub_files(entries: Sequence[Entry]) -> list[Entry]:
    """All files but those: git's attributes, the hub's notes on downloads, and ``README.md``.

    The latter only where it is MONAI's copy of the model card with some tags before it.
    """
    cards = [entry for entry in entries if entry.path == "docs/README.md"]
    return [entry for entry in entries if not _of_a_hub(entry, cards)]


def _of_a_hub(entry: Entry, cards: Sequence[Entry]) -> bool:
    if entry.path.startswith(FOLDER):
        return entry.path.endswith(SUFFIXES)
    if entry.path == "README.md" and cards and entry.size < cards[0].size + LONGEST_HEADER:
        return entry.content().endswith(cards[0].content())
    return entry.path == ".gitattributes"
