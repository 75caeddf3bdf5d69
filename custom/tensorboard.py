"""Curves and pictures for TensorBoard."""

import io
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams

from custom.distributed import is_writer
from custom.json_fields import whole_number

PICTURES = "pictures"  # folder, which TensorBoard takes for a run of its own
STEP_MARK = ".step"


class TensorBoard:
    """Curves and pictures for TensorBoard; nothing is written before there is something to write.

    The step of every point is the trainer's iteration. Only one of several processes writes.
    Pictures of a step are a file of their own in the folder ``pictures`` of ``log_dir``, so that
    old ones can go: an event file only grows.

    Args:
        log_dir: folder of the event files.
        pictures_kept: pictures of so many steps are kept, the latest.

    Raises:
        InputError: ``pictures_kept`` is no whole number from 1 on.
    """

    def __init__(self, log_dir: str, pictures_kept: int = 10) -> None:
        self.log_dir = log_dir
        self.pictures_kept = whole_number(pictures_kept, 1, "pictures_kept")
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point on each of several curves."""
        if not is_writer():
            return
        writer = self._open()
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def add_images(self, images: Mapping[str, bytes], step: int) -> None:
        """Pictures by name, PNG or (animated) GIF."""
        if not is_writer():
            return
        suffix = f"{STEP_MARK}{step:012d}"
        with closing(SummaryWriter(self._pictures, filename_suffix=suffix)) as writer:
            values = [Summary.Value(tag=tag, image=_image(file)) for tag, file in images.items()]
            _file_writer(writer).add_summary(Summary(value=values), step)
        for _, path in sorted(self._picture_files())[: -self.pictures_kept]:
            path.unlink(missing_ok=True)

    def add_settings(
        self, settings: Mapping[str, str | float], scores: Mapping[str, float]
    ) -> None:
        """What TensorBoard's page HPARAMS compares runs by.

        Args:
            settings: of the configuration.
            scores: names of curves; the value that counts is the last one's.
        """
        if not is_writer():
            return
        writer = _file_writer(self._open())
        for summary in hparams(dict(settings), dict(scores)):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)
        writer.flush()

    def purge_from(self, iteration: int) -> None:
        """Training goes on after this iteration: later points vanish, to be drawn anew."""
        if not is_writer():
            return
        if self._writer is not None:
            self._writer.close()
        self._writer, self._purge_step = None, iteration + 1
        for step, path in self._picture_files():
            if step > iteration:
                path.unlink(missing_ok=True)

    @property
    def _pictures(self) -> str:
        return str(Path(self.log_dir) / PICTURES)

    def _picture_files(self) -> Iterator[tuple[int, Path]]:
        """Files of pictures with their steps."""
        for path in Path(self._pictures).glob(f"events.*{STEP_MARK}*"):
            yield int(path.suffix.removeprefix(STEP_MARK)), path

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = SummaryWriter(self.log_dir, purge_step=self._purge_step)
            self._purge_step = None
        return self._writer


def _file_writer(writer: SummaryWriter) -> FileWriter:
    """What writes ready-made summaries, which torch's writer has no method for."""
    found: FileWriter = writer._get_file_writer()  # type: ignore[no-untyped-call]
    return found


def _image(content: bytes) -> Summary.Image:
    """An image's file as TensorBoard keeps it."""
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
    return Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
