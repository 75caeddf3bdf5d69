from pathlib import Path
from unittest.mock import Mock

import pytest

from custom.disk_space import refuse_full_disk, size
from custom.errors import InputError


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> list[Path]:
    """A disk with so many bytes left; the folders that are asked about."""
    asked: list[Path] = []

    def usage(folder: Path) -> Mock:
        asked.append(folder)
        return Mock(free=free)

    monkeypatch.setattr("shutil.disk_usage", usage)
    return asked


def test_what_fits_to_the_last_byte_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room(monkeypatch, 12_000)
    refuse_full_disk("model_dir", tmp_path, 12_000, "make room")
    with pytest.raises(InputError) as caught:
        refuse_full_disk("model_dir", tmp_path, 13_000, "make room")
    assert str(caught.value) == (
        f"model_dir '{tmp_path}' needs 13.0 kB, its disk has 12.0 kB left; make room"
    )


def test_the_disk_of_a_folder_that_is_not_there_yet_is_that_of_the_nearest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = room(monkeypatch, 10)
    refuse_full_disk("output_dir", tmp_path / "a" / "b", 10, "make room")
    assert asked == [tmp_path]
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (2_560_000, "2.6 MB"),
        (3.24e9, "3.2 GB"),
        (7.1e15, "7100.0 TB"),
    ],
)
def test_sizes_are_for_people(number: float, text: str) -> None:
    assert size(number) == text
