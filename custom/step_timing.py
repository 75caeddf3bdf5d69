"""How fast training steps are, and how long they wait for data."""

import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from ignite.engine import Engine, Events

Clock = Callable[[], float]


@dataclass(frozen=True)
class StepTimes:
    """What steps took and what they had; the difference of two is what lies between them.

    Args:
        steps: number of steps.
        samples: in their batches.
        voxels: of these samples.
        seconds: of the steps, with the wait for their batches.
        waited: of them, seconds from asking for a batch to having it.
    """

    steps: int = 0
    samples: int = 0
    voxels: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def __add__(self, other: "StepTimes") -> "StepTimes":
        return StepTimes(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "StepTimes") -> "StepTimes":
        return StepTimes(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def data_wait_share(self) -> float:
        """Share of the time that was waiting for data, 0 to 1."""
        return self.waited / self.seconds if self.seconds else 0.0

    def figures(self, processes: int = 1) -> dict[str, float]:
        """Samples and voxels per second, and the share of waiting; empty without any time.

        Args:
            processes: so many train at this speed side by side.
        """
        if not self.seconds:
            return {}
        return {
            "samples_per_second": processes * self.samples / self.seconds,
            "voxels_per_second": processes * self.voxels / self.seconds,
            "data_wait_share": self.data_wait_share,
        }


class StepTiming:
    """Adds up the times of a training's steps.

    ::

        |--- waited ---|--- step ---|--- waited ---|--- step ---|   validation   |--- waited ---|
        asked for      batch        end, the next is asked for

    What lies between two epochs, such as a validation, is part of no step. On a GPU a step ends
    when something asks for its loss.

    Args:
        clock: seconds from any moment on.

    Attributes:
        total: of all steps so far.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self.total = StepTimes()
        self._asked = self._arrived = 0.0

    def attach(self, engine: Engine) -> None:
        """Run around every batch and after every step; attach after what else belongs to a step."""
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._arrive)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _ask(self) -> None:
        self._asked = self.clock()

    def _arrive(self) -> None:
        self._arrived = self.clock()

    def __call__(self, engine: Engine) -> None:
        """Add the step."""
        samples, voxels = _size(engine.state.batch)
        seconds, waited = self.clock() - self._asked, self._arrived - self._asked
        self.total += StepTimes(1, samples, voxels, seconds, waited)


def _size(batch: Any) -> tuple[int, int]:
    """Samples and voxels of a batch."""
    if not isinstance(batch, Mapping) or "image" not in batch:
        return 0, 0
    samples, _, *shape = batch["image"].shape
    voxels = samples
    for size in shape:
        voxels *= size
    return samples, voxels
