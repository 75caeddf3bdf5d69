"""Curves and pictures for TensorBoard."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Curves and pictures for TensorBoard; nothing is written before there is something to write.

    Args:
        log_dir: folder of the event files.
    """

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir
        self._writer: SummaryWriter | None = None

    def add_scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """One point on each of several curves."""
        for name, value in values.items():
            self._open().add_scalar(name, value, epoch)
        self._open().flush()

    def add_image(self, name: str, image: NDArray[np.uint8], epoch: int) -> None:
        """An image (H, W, 3)."""
        self._open().add_image(name, image, epoch, dataformats="HWC")
        self._open().flush()

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = SummaryWriter(self.log_dir)
        return self._writer
