"""In what precision networks run: their forward pass, and the scale of their loss."""

import torch
from torch.amp import GradScaler

from custom.errors import InputError
from custom.json_fields import flag, hint

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """Automatic mixed precision, or none.

    float16 has too small a range for some gradients, so its loss is scaled up before the backward
    pass, and gradients down after it; bfloat16 needs no scale.

    Args:
        amp: the config's ``amp``; False: float32, whatever the dtype.
        dtype: the config's ``amp_dtype``, a key of ``AMP_DTYPES``.

    Raises:
        InputError: ``amp`` is not a bool, or ``dtype`` is another word.
    """

    def __init__(self, amp: bool = False, dtype: str = "bfloat16") -> None:
        self.amp = flag(amp, "amp")
        if dtype not in AMP_DTYPES:
            raise InputError(
                f"amp_dtype must be 'bfloat16' or 'float16', got {dtype!r}"
                f"{hint(str(dtype), list(AMP_DTYPES))}"
            )
        self.dtype = AMP_DTYPES[dtype]

    def autocast(self, device: torch.device) -> torch.autocast:
        """A context for a network's forward pass."""
        return torch.autocast(device.type, self.dtype, enabled=self.amp)


def loss_scaler(amp: bool, dtype: str, device: torch.device) -> GradScaler:
    """Scales the loss of float16; without a state, and without effect, for all others.

    Args:
        amp: as in ``Precision``.
        dtype: likewise.
        device: of the network.
    """
    precision = Precision(amp, dtype)
    return GradScaler(device.type, enabled=precision.amp and precision.dtype == torch.float16)
