from pathlib import Path

import pytest

from custom.errors import InputError
from custom.sharing.machine_paths import refuse_machine_paths, without_machine_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/models/dinov2", "dinov2"),
        ("/home/ann b/my models/dinov2/", "dinov2"),
        ("~/x/dinov2", "dinov2"),
        ("/home/ann/", "path"),
        ("C:\\Users\\ann", "path"),
        ("started by /home/ann at noon", "started by path at noon"),
        ("../models/dinov2", "dinov2"),
        ("C:\\Users\\ann\\dinov2", "dinov2"),
        ("file:///home/ann/x.zarr", "x.zarr"),
        ("$os.path.join('/home/ann/x', 'y')", "$os.path.join('x', 'y')"),
        ("written to /scratch/ann/x, later", "written to x, later"),
        ("facebook/dinov2-small", "facebook/dinov2-small"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("s3://bucket/a/b.zarr", "s3://bucket/a/b.zarr"),
        ("$@epochs * @steps // 20", "$@epochs * @steps // 20"),
        ("$@a / @b", "$@a / @b"),
        ("@features#planes", "@features#planes"),
        ("1/2", "1/2"),
    ],
)
def test_of_a_path_of_the_machine_only_the_last_name_is_left(text: str, expected: str) -> None:
    assert without_machine_paths({"a": [text, 3, None]}) == {"a": [expected, 3, None]}


def test_a_file_that_names_a_folder_of_the_machine_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "x"
    refuse_machine_paths([("a", b"nothing"), ("b", f"{inside}er".encode())], [inside])
    with pytest.raises(InputError, match="'b' would tell others of the folder"):
        refuse_machine_paths([("b", f'"{inside}/y"'.encode())], [inside])


def test_the_root_folder_is_in_every_text_and_is_no_danger() -> None:
    refuse_machine_paths([("a", b"1 / 2")], [Path("/")])
