"""What made the features: everything that two sets of features must share to be comparable."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from custom.errors import InputError
from custom.features.backbone import Backbone
from custom.planes import NORMAL_AXIS, PLANES
from custom.voxel_grid import Triple

PRECISIONS = ("bfloat16", "float32")
DTYPES = ("float16", "float32", "int8")
LAYOUTS = ("tokens", "dense")


@dataclass(frozen=True)
class FeatureSpec:
    """Backbone, scale, window and intensities that a set of features was made with.

    Args:
        backbone: what the user called it: hub id, folder, or "random <model_type>".
        digest: of the backbone's weights (``weights_digest``).
        patch_size: pixels per patch along either axis.
        channels: of the features: those of all layers together, or ``pca``.
        layers: numbers of the blocks, 1 to n.
        final_norm: whether the model's last norm was applied to each of them.
        pixels_per_voxel: zyx; the scale at which the backbone sees the volume.
        window: edge of the square image given to the backbone at once, pixels.
        overlap: of neighbouring windows, pixels; tokens are blended there.
        stride: pixels between neighbouring tokens; where it is below the patch size, every window
            is computed at shifted places, too.
        planes: of "xy", "xz", "yz", in this order.
        slice_step: voxels between the slices that have tokens, of xy, xz and yz; 1 for a plane that
            is not in ``planes``.
        intensity_percentiles: of the raw source, mapped to 0 and 1 where no window is given.
        image_mean: subtracted from images in [0, 1], per channel.
        image_std: images are divided by it, per channel.
        precision: that the backbone computes in, "bfloat16" (autocast) or "float32".
        dtype: of the stored features; "int8" has one scale per channel and volume, of tokens one
            per plane, too.
        layout: "tokens": patch grids of the planes; "dense": one vector per voxel, the mean over
            the planes of their upsampled grids.
        upsampler: what the user called the guided upsampler: "anyup" or a folder; None for linear
            upsampling.
        upsampler_digest: of its weights.
        pca: number of principal components that the backbone's features were reduced to; None
            where they were not.
        pca_digest: of the components' basis (``PcaBasis``); None where none is fitted yet, which
            is no difference from any other.

    Raises:
        InputError: a value out of range, or values that contradict each other.
    """

    backbone: str
    digest: str
    patch_size: int
    channels: int
    layers: tuple[int, ...]
    final_norm: bool
    pixels_per_voxel: Triple
    window: int
    overlap: int
    stride: int
    planes: tuple[str, ...]
    slice_step: tuple[int, int, int]
    intensity_percentiles: tuple[float, float]
    image_mean: Triple
    image_std: Triple
    precision: str
    dtype: str
    layout: str
    upsampler: str | None = None
    upsampler_digest: str | None = None
    pca: int | None = None
    pca_digest: str | None = None

    def __post_init__(self) -> None:
        self._check_scale()
        self._check_windows()
        self._check_planes()
        for name, known in (("precision", PRECISIONS), ("dtype", DTYPES), ("layout", LAYOUTS)):
            known_setting(name, getattr(self, name), known)
        self._check_upsampler()
        if self.pca not in (None, self.channels) or (self.pca_digest and not self.pca):
            raise InputError(
                f"a feature spec with {self.channels} channels cannot have pca {self.pca} and "
                f"pca_digest {self.pca_digest}."
            )

    def _check_upsampler(self) -> None:
        if self.upsampler is None:
            return
        if not isinstance(self.upsampler, str):
            raise InputError(
                f"features.upsampler must be null, 'anyup' or a folder, got {self.upsampler!r}."
            )
        if self.layout != "dense":
            raise InputError(
                f"features.upsampler {self.upsampler!r} is not linear, so its features cannot be "
                f"upsampled in the network: set features.layout to 'dense', or features.upsampler "
                f"to null."
            )
        if self.stride != self.patch_size:
            raise InputError(
                f"features.upsampler {self.upsampler!r} works on whole patches: set "
                f"features.stride to null, not {self.stride}, or features.upsampler to null."
            )
        if self.window < 2 * self.patch_size:
            raise InputError(
                f"features.upsampler {self.upsampler!r} needs neighbouring patches: set "
                f"features.window to at least {2 * self.patch_size} pixels, not {self.window}."
            )

    def _check_planes(self) -> None:
        if list(self.planes) != [plane for plane in PLANES if plane in self.planes]:
            raise InputError(
                f"features.planes must be of {list(PLANES)}, in this order, "
                f"got {list(self.planes)}."
            )
        if not self.planes:
            raise InputError(f"features.planes must name at least one of {list(PLANES)}.")
        if len(self.slice_step) != len(PLANES) or min(self.slice_step) < 1:
            raise InputError(
                f"slice_step of a feature spec must be three whole numbers from 1 on for "
                f"{', '.join(PLANES)}, got {list(self.slice_step)}."
            )

    def _check_scale(self) -> None:
        if len(self.pixels_per_voxel) != 3 or min(self.pixels_per_voxel) <= 0:
            raise InputError(
                "features.pixels_per_voxel must be one positive number, or three for z, y and x, "
                f"got {list(self.pixels_per_voxel)}."
            )
        percentiles = self.intensity_percentiles
        if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise InputError(
                "features.intensity_percentiles must be two numbers between 0 and 100, the lower "
                f"one first, got {list(percentiles)}."
            )

    def _check_windows(self) -> None:
        if 0 < self.window < self.patch_size:
            raise InputError(
                f"features.window must be at least {self.patch_size} pixels for {self.backbone}, "
                f"got {self.window}."
            )
        if self.window <= 0 or self.window % self.patch_size:
            below = max(1, self.window // self.patch_size) * self.patch_size
            raise InputError(
                f"features.window must be a multiple of the backbone's patch size of "
                f"{self.patch_size} pixels, got {self.window}; try {below}."
            )
        if not 0 <= self.overlap < self.window or self.overlap % self.patch_size:
            raise InputError(
                f"features.overlap must be a multiple of the backbone's patch size of "
                f"{self.patch_size} pixels, from 0 to below the window of {self.window}, "
                f"got {self.overlap}."
            )
        if self.stride < 1 or self.patch_size % self.stride:
            divisors = [str(s) for s in range(1, self.patch_size + 1) if self.patch_size % s == 0]
            raise InputError(
                f"features.stride must divide the backbone's patch size of {self.patch_size} "
                f"pixels ({', '.join(divisors)}), got {self.stride}."
            )

    @property
    def voxels_per_patch(self) -> Triple:
        """Edge of a patch in voxels, zyx, for the axes that lie in a plane."""
        z, y, x = (self.patch_size / scale for scale in self.pixels_per_voxel)
        return z, y, x

    @property
    def refinement(self) -> tuple[int, int, int]:
        """Values that the upsampler makes of a patch along an axis, zyx: about one per voxel."""
        if self.upsampler is None:
            return 1, 1, 1
        z, y, x = (max(1, round(voxels)) for voxels in self.voxels_per_patch)
        return z, y, x

    def token_steps(self, plane: str) -> Triple:
        """Voxels between neighbouring tokens of the backbone, zyx, one of them between slices."""
        steps = [self.stride / scale for scale in self.pixels_per_voxel]
        steps[NORMAL_AXIS[plane]] = float(self.slice_step_of(plane))
        return steps[0], steps[1], steps[2]

    def slice_step_of(self, plane: str) -> int:
        """Voxels between the slices of one of ``planes`` that have tokens."""
        return self.slice_step[PLANES.index(plane)]

    @property
    def float_dtype(self) -> str:
        """Type of features in memory: those that are stored as int8 are float16 there."""
        return "float16" if self.dtype == "int8" else self.dtype

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``json.dump``."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "FeatureSpec":
        """The spec that ``to_json`` was called on.

        One from before there were ``stride`` and ``slice_step`` has a token for every patch and
        every slice; one from before there was ``upsampler`` has none, one from before ``pca`` all
        channels.

        Raises:
            InputError: a key is missing or unknown.
        """
        values = {
            "stride": values.get("patch_size"),
            "slice_step": (1, 1, 1),
            "upsampler": None,
            "upsampler_digest": None,
            "pca": None,
            "pca_digest": None,
            **values,
        }
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            wrong = sorted(names.symmetric_difference(values))
            raise InputError(
                f"this feature spec was written by another version: {', '.join(wrong)} missing or "
                "unknown. Extract the features again."
            )
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**given)

    def difference(self, other: "FeatureSpec") -> list[str]:
        """What differs, each as "window (512, not 896)": this spec's value, then the other's.

        A backbone is its weights: its name counts only where the digests differ; an upsampler
        likewise. Steps of slices count only in planes that both have, channels and bases
        only where both have the same number of components.
        """
        common = set(self.planes) & set(other.planes)
        same = {
            "backbone": self.digest == other.digest,
            "upsampler": self.upsampler_digest == other.upsampler_digest,
            "slice_step": all(self.slice_step_of(p) == other.slice_step_of(p) for p in common),
            "channels": self.pca != other.pca,
            "pca_digest": self.pca != other.pca or None in (self.pca_digest, other.pca_digest),
        }
        here, there = self.to_json(), other.to_json()
        return [
            f"{name} ({_short(here[name])}, not {_short(there[name])})"
            for name in here
            if here[name] != there[name] and not same.get(name, False)
        ]

    def made_with(self, backbone: Backbone) -> bool:
        """Whether these are features of this backbone, and of its basis if it has one."""
        basis = backbone.basis
        weights = (self.digest, self.layers) == (backbone.digest, backbone.layers)
        if basis is None or self.pca is None:
            return weights and basis is None and self.pca is None
        return weights and self.pca_digest == basis.digest


def known_setting(name: str, value: Any, known: tuple[str, ...]) -> Any:
    """A setting's value, if it is one of those known."""
    if value not in known:
        raise InputError(f"features.{name} must be {' or '.join(map(repr, known))}, got {value!r}.")
    return value


def _short(value: Any) -> str:
    return ", ".join(map(str, value)).join("[]") if isinstance(value, list) else str(value)
