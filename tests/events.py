"""What TensorBoard would show of a folder."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}


def read(folder: Path) -> EventAccumulator:
    """All points and pictures, none left out."""
    events = EventAccumulator(str(folder), size_guidance=EVERYTHING)
    events.Reload()
    return events


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    """Step and value of every point of a curve."""
    return [(event.step, event.value) for event in read(folder).Scalars(name)]


def curves(folder: Path) -> set[str]:
    """Names of all curves."""
    return set(read(folder).Tags()["scalars"])
