"""Curves of every validation volume's scores."""

from typing import Any

from ignite.engine import Engine, Events

from custom.tensorboard import TensorBoard
from custom.validation import trained_iterations


class VolumeCurves:
    """Points on TensorBoard's curves of every validation volume, after every validation.

    ``volumes/<id>/<score>`` from ``engine.state.volume_scores``, ``affinity_<score>/<id>/<offset>``
    from ``engine.state.affinity_scores``. Attach to the evaluator after what scores.

    Args:
        writer: TensorBoard.
    """

    def __init__(self, writer: TensorBoard) -> None:
        self.writer = writer

    def attach(self, engine: Engine) -> None:
        """Run after every validation."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the points."""
        state: Any = engine.state
        points = {
            f"volumes/{volume}/{name}": value
            for volume, scores in getattr(state, "volume_scores", {}).items()
            for name, value in scores.items()
        }
        points |= {
            f"affinity_{name}/{volume}/{offset}": value
            for volume, offsets in getattr(state, "affinity_scores", {}).items()
            for offset, scores in offsets.items()
            for name, value in scores.items()
        }
        self.writer.add_scalars(points, trained_iterations(engine))
