"""How many windows go through a backbone at once."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from custom.errors import InputError
from custom.features.spec import FeatureSpec
from custom.memory import free_memory

logger = logging.getLogger(__name__)

MOST_AT_ONCE = {"cpu": 8, "cuda": 64}  # more windows at once are not faster
SHARE_OF_FREE = 0.5
# Numbers per patch and channel while one window is in the backbone: a block's intermediate values,
# and the outputs of all blocks, which are held where an early layer is wanted.
NUMBERS_PER_FEATURE = 56


def checked_windows_at_once(value: Any) -> int | None:
    """The config's ``windows_at_once``.

    Raises:
        InputError: neither null nor a whole number from 1 on.
    """
    if value is None or (type(value) is int and value >= 1):
        return value
    raise InputError(
        f"windows_at_once must be a whole number from 1 on, or null for as many as fit into "
        f"memory, got {value!r}."
    )


def windows_that_fit(spec: FeatureSpec, device: torch.device) -> int:
    """Windows that half of the device's free memory holds, at most as many as are of use."""
    most = MOST_AT_ONCE.get(device.type, MOST_AT_ONCE["cpu"])
    free = free_memory(device)
    if free is None:
        return most
    return max(1, min(most, int(SHARE_OF_FREE * free / bytes_of_window(spec))))


def bytes_of_window(spec: FeatureSpec) -> int:
    """Memory that one window takes in the backbone, roughly: float32 values of its blocks."""
    patches = (spec.window // spec.patch_size) ** 2
    return 4 * NUMBERS_PER_FEATURE * patches * spec.channels // len(spec.layers)


class InBatches:
    """A backbone that takes fewer images at once when memory runs out.

    Args:
        backbone: images (B, 3, H, W) to features (B, C, h, w).
        size: most images at once, to begin with.
    """

    def __init__(self, backbone: Callable[[Tensor], Tensor], size: int) -> None:
        self.backbone = backbone
        self.size = size

    def __call__(self, images: Tensor) -> Tensor:
        """Features of any number of images.

        Raises:
            InputError: a single image does not fit into memory.
        """
        parts: list[Tensor] = []
        done = 0
        while done < len(images):
            part = self._attempt(images[done : done + self.size])
            if part is not None:
                parts.append(part)
                done += len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attempt(self, images: Tensor) -> Tensor | None:
        """Features, or ``None`` where memory ran out, and half as many are to be tried."""
        try:
            return self.backbone(images)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if len(images) == 1:
                raise InputError(
                    f"a window of {images.shape[-1]} pixels does not fit into the memory of "
                    f"{images.device} beside what is there already: make features.window smaller, "
                    "free memory, or use another device."
                ) from error
        # Only here, after the exception has let go of what was computed so far.
        self.size = len(images) // 2
        if images.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning(
            "out of memory on %s: %d windows at once from now on", images.device, self.size
        )
        return None


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate; on the CPU it says so in words only."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
