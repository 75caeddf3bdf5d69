"""A tiny project that has gone through all four runs, once per session."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from monai.utils import set_determinism

from tests.bundle import tiny


@pytest.fixture(autouse=True)
def _restored_process() -> Iterator[None]:
    """What runs change for their whole process is put back."""
    hook, threads = sys.excepthook, torch.get_num_threads()
    yield
    sys.excepthook = hook
    torch.set_num_threads(threads)
    set_determinism(None)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a project whose runs have all ended; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.write_data(folder)
    for name in tiny.RUNS:
        tiny.run(name, folder)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished project, to be changed."""
    return shutil.copytree(finished, tmp_path / "project")
