"""Optional real data and weights, and hypothesis' settings."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Processes side by side get one thread each; said before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]

# The same examples in every run: a failure is a change's, never chance's. No deadline: the machine
# may be busy.
settings.register_profile("emseg", derandomize=True, deadline=None, database=None)
settings.load_profile("emseg")


def _optional(variable: str, default: Path, what: str) -> Path:
    """Path that a variable names, else the default; skips the test when neither is there."""
    named = os.environ.get(variable)
    path = Path(named).resolve() if named else default
    if named and not path.exists():
        pytest.fail(f"{variable} names {path}, which does not exist")
    if not path.exists():
        pytest.skip(f"{what} is absent: set {variable} to its path to run this test")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real FIB-SEM: an OME-Zarr with ``raw`` (250^3) and ``labels/neurons`` (166, 250, 250)."""
    default = ROOT.parent / "shared" / "data" / "fib25.zarr"
    return _optional("EMSEG_TEST_DATA", default, "fib25.zarr")


@pytest.fixture(scope="session")
def shared_backbone() -> Path:
    """Folder with a small pretrained DINOv2 in Hugging Face form."""
    default = ROOT.parent / "shared" / "models" / "dinov2-small"
    return _optional("EMSEG_TEST_BACKBONE", default, "a pretrained dinov2-small")
