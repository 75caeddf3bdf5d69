"""Pictures of the first validation volume, after every validation."""

from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from custom.distributed import is_writer
from custom.files import write_atomically
from custom.json_fields import whole_number
from custom.pictures import (
    Colours,
    beside_each_other,
    contact_sheet,
    gif_bytes,
    plane_slice,
    png_bytes,
    with_legend,
)
from custom.planes import PLANES
from custom.scores import ClassScore, Score
from custom.shown_volume import ShownVolume, columns, legend, shown_volume
from custom.tensorboard import TensorBoard
from custom.validation import trained_iterations

MOST_FRAMES = 48
PATTERNS = ("panel_[0-9]*.png", "sections_[0-9]*.gif")
ANIMATED = ("raw", "truth", "segmentation", "classes", "errors")


class SlicePanel:
    """Middle slices of the first validation volume, and an animation through its sections.

    ``panel_<epoch>.png`` has raw, features, truth, target, prediction, segmentation and errors in
    three planes, ``sections_<epoch>.gif`` some of them section by section. TensorBoard has both.
    Of large volumes a box in the middle of what counts is shown, and segmented on its own; of more
    than 48 sections every second, third and so on. As many as TensorBoard keeps are kept.

    Attach to the evaluator, after what scores.

    Args:
        folder: for the files.
        writer: TensorBoard.
        score: says what the prediction is; the best setting of segments segments.
        size: largest edge of what is shown, voxels.

    Raises:
        InputError: ``size`` is no whole number from 16 on.
    """

    def __init__(self, folder: str, writer: TensorBoard, score: Score, size: int = 128) -> None:
        self.folder = Path(folder)
        self.writer = writer
        self.score = score
        self.size = whole_number(size, 16, "picture_size")
        self._shown: ShownVolume | None = None

    def attach(self, engine: Engine) -> None:
        """Keep the first volume, draw it when all are scored; the process that writes has it."""
        if not is_writer():
            return
        engine.add_event_handler(Events.STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.COMPLETED, self)

    def _forget(self) -> None:
        self._shown = None

    def _keep(self, engine: Engine) -> None:
        if self._shown is None:
            state: Any = engine.state
            self._shown = shown_volume(
                state.batch[0], state.output[0], self.size, _channels(self.score)
            )

    def __call__(self, engine: Engine) -> None:
        """Draw."""
        if self._shown is None:
            return
        drawn = columns(self._shown, self.score)
        panel = png_bytes(draw_panel(self._shown, drawn, self.score))
        sections = draw_sections(self._shown, drawn)
        self._shown = None
        epoch = engine.state.epoch
        write_atomically(self.folder / f"panel_{epoch:04d}.png", panel)
        write_atomically(self.folder / f"sections_{epoch:04d}.gif", sections)
        for files in _files(self.folder):
            for old in files[: -self.writer.pictures_kept]:
                old.unlink(missing_ok=True)
        pictures = {"validation": panel, "validation_sections": sections}
        self.writer.add_images(pictures, trained_iterations(engine))


def draw_panel(shown: ShownVolume, drawn: dict[str, Colours], score: Score) -> Colours:
    """Contact sheet (rows, columns, 3) of the middle slices, with a legend of the errors.

    Args:
        shown: its features are drawn after raw.
        drawn: from ``columns``.
        score: of what was predicted.
    """
    sheet = {
        name: [plane_slice(volume, plane, shown.voxel_size_nm) for plane in PLANES]
        for name, volume in drawn.items()
    }
    if shown.features:
        colours = [plane_slice(shown.features[p], p, shown.voxel_size_nm) for p in PLANES]
        sheet = {"raw": sheet["raw"], "features": colours, **sheet}
    return with_legend(contact_sheet(sheet, PLANES), legend(score))


def draw_sections(shown: ShownVolume, drawn: dict[str, Colours]) -> bytes:
    """Animated GIF through z: raw, truth, segmentation and errors side by side.

    Args:
        shown: gives the voxel size.
        drawn: from ``columns``.
    """
    depth = len(shown.raw)
    sections = range(0, depth, -(-depth // MOST_FRAMES))
    volumes = [drawn[name] for name in ANIMATED if name in drawn]
    frames = [
        beside_each_other(
            [plane_slice(volume[z : z + 1], "xy", shown.voxel_size_nm) for volume in volumes]
        )
        for z in sections
    ]
    return gif_bytes(frames, [f"section {z}" for z in sections])


def _channels(score: Score) -> int:
    """How many of the prediction's channels pictures need."""
    if isinstance(score, ClassScore):
        return len(score.names)
    return len(score.segmenters[0].offsets)


def latest_pictures(folder: Path) -> list[Path]:
    """The last panel and the last animation, as far as there are any."""
    return [files[-1] for files in _files(folder) if files]


def _files(folder: Path) -> list[list[Path]]:
    """Panels and animations, each in the order of their epochs."""
    return [sorted(folder.glob(pattern), key=_epoch) for pattern in PATTERNS]


def _epoch(path: Path) -> int:
    """Epoch in the name of a picture."""
    return int("".join(character for character in path.name if character.isdigit()))
