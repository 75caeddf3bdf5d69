import json
import zipfile
from pathlib import Path

from custom.sharing.archive import write_archive


def test_a_zip_is_sorted_dated_alike_and_has_a_manifest(tmp_path: Path) -> None:
    files = {"b.txt": b"b", "a/c.txt": b"cc"}
    write_archive(tmp_path / "x.zip", "x", "1", files)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        infos = archive.infolist()
        manifest = json.loads(archive.read("x/manifest.json"))
    assert [info.filename for info in infos] == ["x/a/c.txt", "x/b.txt", "x/manifest.json"]
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {info.external_attr >> 16 for info in infos} == {0o100644}
    assert {name: item["size"] for name, item in manifest["files"].items()} == {
        "a/c.txt": 2,
        "b.txt": 1,
    }


def test_the_order_of_files_does_not_change_the_bytes(tmp_path: Path) -> None:
    files = {"b.txt": b"b", "a.txt": b"a"}
    write_archive(tmp_path / "x.zip", "x", "1", files)
    write_archive(tmp_path / "y.zip", "x", "1", dict(reversed(files.items())))
    assert (tmp_path / "x.zip").read_bytes() == (tmp_path / "y.zip").read_bytes()
