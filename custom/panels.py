"""Pictures of the first validation volume, one after every validation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from custom.distributed import is_writer
from custom.files import write_atomically
from custom.pictures import (
    Colours,
    channels_as_colours,
    contact_sheet,
    grey_image,
    matched_by_section,
    matched_to_truth,
    paint,
    plane_slice,
    png_bytes,
)
from custom.planes import PLANES
from custom.scores import ClassScore, Score, SegmentationScore, as_uint8, predicted_classes
from custom.tensorboard import TensorBoard
from custom.validation import trained_iterations


class SlicePanel:
    """Middle slices of the first validation volume: raw, truth, prediction, segmentation.

    Written after every validation as PNG and to TensorBoard. Attach to the evaluator.

    Args:
        folder: for ``panel_<epoch>.png``.
        writer: TensorBoard.
        score: says what the prediction is; the best setting of segments segments.
    """

    def __init__(self, folder: str, writer: TensorBoard, score: Score) -> None:
        self.folder = Path(folder)
        self.writer = writer
        self.score = score
        self._item: Mapping[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Keep the first volume, draw it when all are scored; the process that writes has it."""
        if not is_writer():
            return
        engine.add_event_handler(Events.STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.COMPLETED, self)

    def _forget(self, engine: Engine) -> None:
        self._item = {}

    def _keep(self, engine: Engine) -> None:
        if not self._item:
            state: Any = engine.state
            self._item = {**state.output[0], "voxel_size_nm": state.batch[0]["voxel_size_nm"]}

    def __call__(self, engine: Engine) -> None:
        """Draw the panel."""
        panel = png_bytes(draw_panel(self._item, self.score))
        write_atomically(self.folder / f"panel_{engine.state.epoch:04d}.png", panel)
        self.writer.add_images({"validation": panel}, trained_iterations(engine))


def draw_panel(item: Mapping[str, Any], score: Score) -> NDArray[np.uint8]:
    """Contact sheet (rows, columns, 3) of a volume's raw, truth, prediction and segmentation.

    Args:
        item: ``image`` (1, D, H, W) in [-1, 1], ``label`` (1, D, H, W), ``pred`` (C, D, H, W)
            probabilities, ``voxel_size_nm`` (3,).
        score: of what was predicted.
    """
    raw = {"raw": grey_image(item["image"][0].cpu().numpy(), -1, 1)}
    predicted = (
        _class_columns(item) if isinstance(score, ClassScore) else _segment_columns(item, score)
    )
    size = [float(s) for s in item["voxel_size_nm"]]
    columns = {
        name: [plane_slice(volume, plane, size) for plane in PLANES]
        for name, volume in (raw | predicted).items()
    }
    return contact_sheet(columns, PLANES)


def _segment_columns(item: Mapping[str, Any], score: SegmentationScore) -> dict[str, Colours]:
    """Volumes (D, H, W, 3) by name: truth, the first affinities, segments in its colours."""
    segmenter = score.best_segmenter
    affinities = as_uint8(item["pred"])
    truth = item["label"][0].cpu().numpy()
    shown = min(3, len(segmenter.offsets))
    matched = matched_by_section if score.per_section else matched_to_truth
    return {
        "truth": paint(truth),
        "affinity 1" if shown == 1 else f"affinities 1-{shown}": channels_as_colours(
            affinities[:shown]
        ),
        "segmentation": paint(matched(truth, segmenter(affinities))),
    }


def _class_columns(item: Mapping[str, Any]) -> dict[str, Colours]:
    """Volumes (D, H, W, 3) by name: truth, probability of any class, most probable class."""
    background = as_uint8(item["pred"][:1])
    return {
        "truth": paint(item["label"][0].cpu().numpy()),
        "not background": channels_as_colours(255 - background),
        "classes": paint(predicted_classes(item["pred"])),
    }
