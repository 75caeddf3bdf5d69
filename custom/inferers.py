"""How a batch reaches the network: with its tokens, in windows, in half precision."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import PrepareBatch
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor

from custom.channels import LSD_CHANNELS_3D, ChannelLayout
from custom.checkpoints import first_mismatch
from custom.context import CONTEXT, CoarseVolume, coarse_volume, context_factor_of
from custom.errors import InputError
from custom.features.triplane import PlaneGrid, crop
from custom.json_fields import flag, whole_numbers
from custom.mirroring import SPATIAL_AXES, Mirroring
from custom.planes import PLANES
from custom.precision import Precision


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
        grids, features = _grids(kwargs), kwargs.get("features")
        coarse = coarse_volume(inputs, kwargs, self.context_factor) if self.context_factor else None

        def predict(windows: Tensor, places: Sequence[Sequence[slice]]) -> Tensor:
            tokens = _tokens_at(grids, places, windows.shape[2:], windows.device)
            if features is not None:
                tokens["features"] = _features_at(features, places, windows.device)
            if coarse is not None:
                tokens |= _contexts_at(coarse, places, windows)
            if self.mirroring:
                return self.mirroring(probabilities, windows, tokens)
            return probabilities(windows, tokens)

        def probabilities(windows: Tensor, tokens: dict[str, Tensor]) -> Tensor:
            with self.precision.autocast(windows.device):
                logits = network(windows, *args, **tokens).float()
            return as_probabilities(logits, self.layout)

        roi_size = [min(r, s) for r, s in zip(self.roi_size, inputs.shape[2:], strict=True)]
        inferer = SlidingWindowInferer(
            roi_size,
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


def as_probabilities(logits: Tensor, layout: ChannelLayout | None) -> Tensor:
    """Probabilities of logits (B, C, ...): a softmax over the channels of classes, else a sigmoid.

    Args:
        logits: of the network.
        layout: of its channels; None for affinities, with or without LSDs.
    """
    of_classes = layout is not None and layout.num_classes > 0
    return logits.softmax(dim=1) if of_classes else logits.sigmoid()


def _grids(tokens: Mapping[str, Tensor]) -> dict[str, PlaneGrid]:
    """Plane grids of a batch of one volume."""
    return {
        plane: PlaneGrid.placed(tokens[f"tokens_{plane}"][0], tokens[f"placement_{plane}"][0])
        for plane in PLANES
        if f"tokens_{plane}" in tokens
    }


def _tokens_at(
    grids: Mapping[str, PlaneGrid],
    places: Sequence[Sequence[slice]],
    shape: Sequence[int],
    device: torch.device,
) -> dict[str, Tensor]:
    """Tokens of a batch of windows, by the network's argument names."""
    tokens: dict[str, Tensor] = {}
    for plane, grid in grids.items():
        parts = [crop(grid, [s.start for s in place[-3:]], shape) for place in places]
        tokens[f"tokens_{plane}"] = torch.stack([p.values for p in parts]).to(device)
        tokens[f"placement_{plane}"] = torch.stack([p.placement for p in parts]).to(device)
    return tokens


def _features_at(
    features: Tensor, places: Sequence[Sequence[slice]], device: torch.device
) -> Tensor:
    """Dense features (B, C, D, H, W) of a batch of windows of one volume."""
    return torch.stack([features[0][(slice(None), *place[-3:])] for place in places]).to(device)


def _contexts_at(
    coarse: CoarseVolume, places: Sequence[Sequence[slice]], windows: Tensor
) -> dict[str, Tensor]:
    """Contexts of a batch of windows of one volume, by the network's argument names."""
    parts = [coarse.around([s.start for s in p[-3:]], windows.shape[2:]) for p in places]
    return {name: torch.stack([p[name] for p in parts]).to(windows.device) for name in parts[0]}
