"""How a batch reaches the network: with its tokens, in windows, in half precision."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import PrepareBatch
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor

from custom.channels import LSD_CHANNELS_3D, ChannelLayout
from custom.checkpoints import first_mismatch
from custom.context import CONTEXT, CoarseVolume, Factor, coarse_volume, context_factor_of
from custom.errors import InputError
from custom.features.triplane import PlaneGrid, crop
from custom.json_fields import flag, whole_numbers
from custom.mirroring import SPATIAL_AXES, Mirroring
from custom.planes import PLANES
from custom.precision import Precision
from custom.samples import Sample, add_grid

PredictWindows = Callable[[Tensor, dict[str, Tensor]], Tensor]


class PrepareTokenBatch(PrepareBatch):
    """Image, label, and as keyword arguments the batch's tokens and placements, or its features.

    A context goes with them.

    Args:
        tokens_to_device: move tokens along with the image; False leaves them where they are, for an
            inferer that takes what each window needs.
    """

    def __init__(self, tokens_to_device: bool = True) -> None:
        self.tokens_to_device = tokens_to_device

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, tuple[()], dict[str, Tensor]]:
        """Image, label or None, no positional arguments, tokens by the network's argument names."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=non_blocking, **kwargs)

        names = [f"{kind}_{plane}" for plane in PLANES for kind in ("tokens", "placement")]
        extra = {name: batchdata[name] for name in (*names, "features") if name in batchdata}
        extra |= {name: batchdata[name] for name in batchdata if name.startswith(CONTEXT)}
        if self.tokens_to_device:
            extra = {name: moved(value) for name, value in extra.items()}
        label = batchdata.get("label")
        return moved(batchdata["image"]), None if label is None else moved(label), (), extra


class CropInferer(Inferer):
    """The network on whole crops.

    Args:
        amp: run the network under autocast, in half precision.
        amp_dtype: which: "bfloat16" or "float16".
        compile: run it through torch.compile, which translates it when it first runs; the network
            itself, which validation uses and files hold, stays as it is.

    Raises:
        InputError: ``amp`` or ``compile`` is not a bool, ``amp_dtype`` another word; on call:
            compiling fails.
    """

    def __init__(
        self, amp: bool = False, amp_dtype: str = "bfloat16", compile: bool = False
    ) -> None:
        super().__init__()
        self.precision = Precision(amp, amp_dtype)
        self.compile = flag(compile, "compile_network")
        self._compiled: tuple[Callable[..., Tensor], Callable[..., Tensor]] | None = None

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Logits (B, C, D, H, W), float32."""
        run = self._run_compiled if self.compile else _run
        positional = [_plain(value) for value in (inputs, *args)]
        named = {name: _plain(value) for name, value in kwargs.items()}
        with self.precision.autocast(inputs.device):
            return run(network, *positional, **named).float()

    def _run_compiled(self, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        if self._compiled is None or self._compiled[0] is not network:
            self._compiled = network, torch.compile(network)
        try:
            return self._compiled[1](*args, **kwargs)
        except TorchDynamoException as error:
            raise InputError(
                f"compile_network is true, but torch.compile fails for the network "
                f"({first_mismatch(error)}): install a C++ compiler (for CUDA, Triton comes with "
                "torch), or set compile_network to false."
            ) from error


def _plain(value: Any) -> Any:
    """A tensor without MONAI's metadata, which torch.compile does not take, and which cost time."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value


def _run(network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return network(*args, **kwargs)


class TokenSlidingWindowInferer(Inferer):
    """The network in overlapping windows, each with its tokens, blended by a Gaussian.

    Works on whole volumes: logits become probabilities before they are blended, so the result needs
    no activation. It is a softmax over the channels of classes, else a sigmoid.

    Args:
        roi_size: (D, H, W) of a window; axes on which the volume is smaller use the volume's size.
        overlap: of neighbouring windows, a fraction from 0 to below 1.
        sw_batch_size: windows per forward pass.
        amp: run the network under autocast, in half precision.
        progress: show a progress bar.
        mirror: predict every window in its eight mirrorings and take the mean: eight times the
            work for smoother predictions. In 2D, four times.
        affinity_offsets: of the network's affinities, voxels, zyx; needed to mirror them.
        layout: of the network's channels; None for affinities, with or without LSDs.
        dimensions: 2 for a network that sees one section at a time: z is not mirrored then.
        context_factor: of the network's context, one or three whole numbers; None without.
        amp_dtype: of autocast, "bfloat16" or "float16".

    Raises:
        InputError: ``amp`` or ``mirror`` is not a bool, ``overlap`` or ``roi_size`` is out of
            range, ``amp_dtype`` is another word, or the offsets are missing.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        overlap: float = 0.25,
        sw_batch_size: int = 1,
        amp: bool = False,
        progress: bool = False,
        mirror: bool = False,
        affinity_offsets: Sequence[Sequence[int]] | None = None,
        layout: ChannelLayout | None = None,
        dimensions: int = 3,
        context_factor: int | Sequence[int] | None = None,
        amp_dtype: str = "bfloat16",
    ) -> None:
        super().__init__()
        self.roi_size = whole_numbers(list(roi_size), 3, 1, "the inferer's roi_size")
        if not 0 <= overlap < 1:
            raise InputError(f"the inferer's overlap must be from 0 to below 1, got {overlap}.")
        self.overlap = overlap
        self.sw_batch_size = sw_batch_size
        self.precision = Precision(amp, amp_dtype)
        self.progress = progress
        self.layout = layout
        of_classes = layout is not None and layout.num_classes > 0
        self.mirroring: Mirroring | None = None
        if flag(mirror, "mirror"):
            if not (affinity_offsets or of_classes):
                raise InputError("to mirror, the inferer needs affinity_offsets.")
            self.mirroring = Mirroring(
                () if of_classes else affinity_offsets or (),
                LSD_CHANNELS_3D if layout is None else layout.num_lsds,
                SPATIAL_AXES[-dimensions:],
            )
        self.context_factor = context_factor_of(context_factor)

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Probabilities (1, C, D, H, W) float32 of one volume (1, 1, D, H, W).

        Raises:
            ValueError: more than one volume at a time.
        """
        if inputs.shape[0] != 1:
            raise ValueError(f"one volume at a time, got a batch of {inputs.shape[0]}")
        volume = _whole_volume(inputs, kwargs, self.context_factor)
        predict_windows = self.predictor(network, *args)

        def predict(windows: Tensor, places: Sequence[Sequence[slice]]) -> Tensor:
            corners = [[s.start for s in place[-3:]] for place in places]
            parts = [volume.around(corner, windows.shape[2:]) for corner in corners]
            return predict_windows(windows, stacked(parts, windows.device))

        inferer = SlidingWindowInferer(
            self.window_in(inputs.shape[2:]),
            self.sw_batch_size,
            self.overlap,
            mode="gaussian",
            progress=self.progress,
            with_coord=True,
        )
        with torch.inference_mode():
            result = inferer(inputs, predict)
        assert isinstance(result, Tensor)  # a dictionary only if the network returns one
        return result

    def window_in(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """(D, H, W) of the windows in a volume of ``shape``."""
        z, y, x = (min(r, s) for r, s in zip(self.roi_size, shape, strict=True))
        return z, y, x

    def predictor(self, network: Callable[..., Tensor], *args: Any) -> PredictWindows:
        """What makes probabilities (B, C, D, H, W) float32 of windows and their other inputs.

        Args:
            network: gives logits.
            *args: of the network, after the windows.
        """

        def probabilities(windows: Tensor, inputs: dict[str, Tensor]) -> Tensor:
            with self.precision.autocast(windows.device):
                logits = network(windows, *args, **inputs).float()
            return as_probabilities(logits, self.layout)

        def mirrored(windows: Tensor, inputs: dict[str, Tensor]) -> Tensor:
            assert self.mirroring is not None
            return self.mirroring(probabilities, windows, inputs)

        return mirrored if self.mirroring else probabilities


def as_probabilities(logits: Tensor, layout: ChannelLayout | None) -> Tensor:
    """Probabilities of logits (B, C, ...): a softmax over the channels of classes, else a sigmoid.

    Args:
        logits: of the network.
        layout: of its channels; None for affinities, with or without LSDs.
    """
    of_classes = layout is not None and layout.num_classes > 0
    return logits.softmax(dim=1) if of_classes else logits.sigmoid()


@dataclass(frozen=True)
class WholeVolume:
    """What the windows of a volume in memory are given beside raw.

    Args:
        grids: tokens by plane.
        features: (C, D, H, W), of the dense layout; None with tokens or none.
        coarse: the volume as contexts see it; None without.
    """

    grids: Mapping[str, PlaneGrid]
    features: Tensor | None
    coarse: CoarseVolume | None

    def around(self, offset: Sequence[int], shape: Sequence[int]) -> Sample:
        """Inputs of the window of ``shape`` at ``offset``, by the network's argument names."""
        part: Sample = {}
        for plane, grid in self.grids.items():
            add_grid(part, plane, crop(grid, offset, shape))
        if self.features is not None:
            box = (slice(o, o + s) for o, s in zip(offset, shape, strict=True))
            part["features"] = self.features[(slice(None), *box)]
        return part if self.coarse is None else part | self.coarse.around(offset, shape)


def _whole_volume(
    image: Tensor, inputs: Mapping[str, Tensor], factor: Factor | None
) -> WholeVolume:
    """Of a batch of one volume."""
    grids = {
        plane: PlaneGrid.placed(inputs[f"tokens_{plane}"][0], inputs[f"placement_{plane}"][0])
        for plane in PLANES
        if f"tokens_{plane}" in inputs
    }
    features = inputs["features"][0] if "features" in inputs else None
    return WholeVolume(grids, features, coarse_volume(image, inputs, factor) if factor else None)


def stacked(parts: Sequence[Sample], device: torch.device) -> dict[str, Tensor]:
    """A batch of the inputs of windows."""
    return {name: torch.stack([p[name] for p in parts]).to(device) for name in parts[0]}
