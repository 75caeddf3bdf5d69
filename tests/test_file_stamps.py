import os
from pathlib import Path

import pytest

from custom import file_stamps
from custom.file_stamps import file_stamp


def test_a_stamp_changes_with_any_file_and_with_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "x.zarr"
    (folder / "0").mkdir(parents=True)
    (folder / ".zarray").write_text("{}")
    (folder / "0" / "0").write_bytes(b"chunk")
    before = file_stamp(str(folder))
    assert file_stamp(str(folder)) == before
    (folder / "0" / "0").write_bytes(b"other")
    os.utime(folder / "0" / "0", ns=(1, 1))
    changed = file_stamp(str(folder))
    (folder / "0" / "1").write_bytes(b"new")
    assert len({before, changed, file_stamp(str(folder))}) == 3


def test_a_volume_inside_a_file_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.h5"
    file.write_bytes(b"one")
    before = file_stamp(f"{file}/volumes/raw")
    file.write_bytes(b"other")
    assert file_stamp(f"{file}/volumes/raw") != before


@pytest.mark.parametrize("name", ["x.nhdr", "x.nrrd"])
@pytest.mark.parametrize("field", ["data file: apart.raw", "datafile:apart.raw"])
def test_a_header_changes_with_the_data_that_it_names(
    tmp_path: Path, name: str, field: str
) -> None:
    header, data = tmp_path / name, tmp_path / "apart.raw"
    header.write_text(f"NRRD0004\ntype: uint8\n{field}\n")
    data.write_bytes(b"one")
    before = file_stamp(str(header))
    assert file_stamp(str(header)) == before
    data.write_bytes(b"other")
    changed = file_stamp(str(header))
    data.unlink()
    assert len({before, changed, file_stamp(str(header))}) == 3


def test_of_many_files_the_first_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_stamps, "MOST_FILES", 2)
    for name in "abc":
        (tmp_path / name).write_text(name)
    before = file_stamp(str(tmp_path))
    (tmp_path / "c").write_text("changed")
    assert file_stamp(str(tmp_path)) == before
    (tmp_path / "b").write_text("changed")
    assert file_stamp(str(tmp_path)) != before


def test_a_url_is_not_asked() -> None:
    assert file_stamp("https://localhost:1/x") == file_stamp("https://localhost:1/x")
