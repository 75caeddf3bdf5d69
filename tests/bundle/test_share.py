"""A trained model is shared, downloaded by MONAI, inspected, and run elsewhere."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import zarr
from scripts.share import inspect, share

from tests.bundle import tiny

# Runs MONAI's command line as a receiver has it: without the project, installed or not.
ELSEWHERE = """
import runpy, sys
from pathlib import Path
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
sys.path[:] = [p for p in sys.path if p and not (Path(p) / "custom").is_dir()]
sys.argv = ["monai.bundle", *sys.argv[1:]]
try:
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
finally:
    found = sorted({m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "custom"})
    print("custom from", *found, sep="\\n")
"""


@pytest.fixture(scope="module")
def received(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the bundle after MONAI has downloaded it."""
    place = tmp_path_factory.mktemp("receiver")
    share("cells", str(finished / "model"), str(finished / "eval"), str(place / "sent"))
    zipped = (place / "sent" / "cells.zip").as_uri()
    monai.bundle.download(name="cells", url=zipped, bundle_dir=str(place), progress=False)
    return place / "cells"


def inspected(path: Path, *options: str) -> tuple[int, str]:
    """Status and output of inspect."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            inspect(str(path), *(option == "json" for option in options))
        except SystemExit as ended:
            return int(ended.code or 0), printed.getvalue()
    return 0, printed.getvalue()


@pytest.mark.slow
def test_a_downloaded_bundle_is_safe_and_predicts_what_the_original_does(
    received: Path, finished: Path, tmp_path: Path
) -> None:
    status, lines = inspected(received)
    assert status == 0 and "cells: safe" in lines, lines
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-c", ELSEWHERE, "run", "inference"),
            *("--config_file", str(received / "configs" / "inference.json")),
            *("--bundle_root", str(received), "--output_dir", str(tmp_path / "output")),
            *("--datalist", str(finished / "data" / "datalist.json"), "--region", "roi"),
        ],
        cwd=tmp_path,
        env=tiny.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    modules = done.stdout.partition("custom from\n")[2].split()
    assert len(modules) > 20
    assert all(Path(path).is_relative_to(received / "custom") for path in modules)
    there = zarr.open_array(tmp_path / "output" / "synthetic.zarr" / "affinities" / "s0", mode="r")
    here = zarr.open_array(finished / "output" / "synthetic.zarr" / "affinities" / "s0", mode="r")
    difference = np.abs(np.asarray(there[:], float) - np.asarray(here[:], float)) / 255
    assert difference.max() <= 1e-6
    assert np.asarray(here[:]).std() > 0


@pytest.mark.slow
def test_inspect_says_by_its_status_what_it_found(received: Path, tmp_path: Path) -> None:
    zipped = received.parent / "sent" / "cells.zip"
    assert inspected(zipped)[0] == 0
    changed = tmp_path / "changed.zip"
    changed.write_bytes(zipped.read_bytes().replace(b"# cells", b"# bells", 1))
    assert inspected(changed)[0] == 1
    status, printed = inspected(changed, "json")
    assert status == 1
    assert json.loads(printed)["safe"] is False
    assert inspected(tmp_path / "nothing.zip") == (
        2,
        f"'{tmp_path / 'nothing.zip'}' is neither a zip nor a folder\n",
    )


@pytest.mark.slow
def test_downloaded_weights_are_the_originals_to_the_byte(received: Path, finished: Path) -> None:
    for name in ("model.pt", "model.safetensors"):
        assert (received / "models" / name).read_bytes() == (finished / "model" / name).read_bytes()
