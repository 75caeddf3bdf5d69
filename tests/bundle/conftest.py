"""A tiny project that has gone through all four runs, once per session."""

import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from monai.utils import set_determinism

from tests.bundle import tiny


@pytest.fixture(autouse=True)
def _restored_process() -> Iterator[None]:
    """What runs change for their whole process is put back."""
    hook, handlers, level = sys.excepthook, logging.root.handlers[:], logging.root.level
    yield
    sys.excepthook = hook
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    set_determinism(None, use_deterministic_algorithms=False)


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
