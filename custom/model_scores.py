"""Scores of a trained model on volumes with labels, without a training."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from custom.distributed import is_writer
from custom.files import write_atomically
from custom.model_files import read_description
from custom.segmentation.method import SegmentationMethod
from custom.segmentation_settings import SETTINGS, refuse_other_method

logger = logging.getLogger(__name__)


def stored_segmentation(
    model_dir: str | Path, segmenter: SegmentationMethod
) -> list[dict[str, Any]]:
    """A grid with the one setting that is stored with the model.

    Args:
        model_dir: folder of the model.
        segmenter: of the configuration.

    Raises:
        InputError: there is no model, it is damaged, or its settings are of another method.
    """
    description = read_description(model_dir)
    refuse_other_method(description, segmenter)
    return [dict(description.get(SETTINGS, {}))]


class ModelScores:
    """Write and log what a validation's engine has found: the scores of all volumes and of each.

    The file has ``section``, ``epoch`` of the model, ``segmentation``, ``scores`` and
    ``volume_scores``. Attach to the evaluator, after ``ModelLoader``.

    Args:
        path: of the JSON file.
        section: of the datalist, that the volumes are of.
    """

    def __init__(self, path: str, section: str) -> None:
        self.path = Path(path)
        self.section = section

    def attach(self, engine: Engine) -> None:
        """Run when all volumes are scored."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write and log."""
        if not is_writer():
            return
        state: Any = engine.state
        content = {
            "section": self.section,
            "epoch": state.model_description.get("epoch"),
            "segmentation": getattr(state, "segmentation", {}),
            "scores": dict(state.metrics),
            "volume_scores": state.volume_scores,
        }
        write_atomically(self.path, (json.dumps(content, indent=2) + "\n").encode())
        for name, scores in {**state.volume_scores, "all volumes": state.metrics}.items():
            logger.info("%s: %s", name, _listed(scores))


def _listed(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
