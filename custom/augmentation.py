"""Random changes of training samples, on raw, labels, mask and tokens together."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import permutations
from typing import Any

from monai.transforms import MapTransform, RandomizableTransform

from custom.context import context_in, mirrored, named
from custom.errors import InputError
from custom.features import triplane
from custom.planes import NORMAL_AXIS, PLANES
from custom.targets.settings import TargetSettings

SYMMETRIES = {
    "auto": tuple(permutations(range(3))),
    "cube": tuple(permutations(range(3))),
    "square": ((0, 1, 2), (0, 2, 1)),
    "box": ((0, 1, 2),),
    "none": ((0, 1, 2),),
}


def orient(
    sample: Mapping[Hashable, Any],
    keys: Sequence[str],
    axes: Sequence[int],
    flips: Sequence[int],
) -> dict[Hashable, Any]:
    """Transpose, then mirror, a sample's volumes and token grids.

    Args:
        sample: volumes (C, D, H, W) under ``keys``, the first of which is the crop itself; grids
            under ``tokens_<plane>`` with ``placement_<plane>``, or ``features`` (C, D, H, W); a
            context likewise, with the prefix ``context_``, and its ``context_placement``.
        keys: volumes to orient, beside the features.
        axes: new order of the spatial axes, as in ``numpy.transpose``.
        flips: spatial axes to mirror after the transposition (0 is z).
    """
    result = dict(sample)
    for key in (*keys, *(key for key in ("features",) if key in sample)):
        moved = sample[key].permute(0, *(1 + a for a in axes))
        result[key] = moved.flip([1 + a for a in flips]).contiguous()
    shape = result[keys[0]].shape[1:]
    for plane, grid in triplane.permute(token_grids(sample), axes).items():
        turned = triplane.flip(grid, flips, shape)
        result[f"tokens_{plane}"] = turned.values.contiguous()
        result[f"placement_{plane}"] = turned.placement
    if context := context_in(sample):
        result |= named(_oriented_context(context, shape, axes, flips))
    return result


def _oriented_context(
    context: Mapping[Hashable, Any],
    shape: Sequence[int],
    axes: Sequence[int],
    flips: Sequence[int],
) -> dict[Hashable, Any]:
    """Parts of the context of a crop that has ``shape`` after the transposition."""
    result = orient(context, ("image",), axes, flips)
    placement = context["placement"][:, list(axes)]
    result["placement"] = mirrored(placement, result["image"].shape[1:], shape, flips)
    return result


def token_grids(sample: Mapping[Hashable, Any]) -> dict[str, triplane.PlaneGrid]:
    """A sample's grids of tokens by plane; none with dense features, or without any."""
    return {
        plane: triplane.PlaneGrid.placed(sample[f"tokens_{plane}"], sample[f"placement_{plane}"])
        for plane in PLANES
        if f"tokens_{plane}" in sample
    }


def _steps(sample: Mapping[Hashable, Any]) -> dict[str, tuple[float, ...]]:
    """Distances of a sample's tokens, zyx, by plane; none without features."""
    if "features" not in sample:
        return {plane: grid.step for plane, grid in token_grids(sample).items()}
    steps = zip(PLANES, sample["token_steps"].tolist(), strict=True)
    return {plane: tuple(step) for plane, step in steps if any(step)}


def _are_kept(steps: Mapping[str, tuple[float, ...]], axes: Sequence[int]) -> bool:
    """Whether a transposition gives features of the same planes with the same steps."""
    moved = {
        PLANES[list(axes).index(NORMAL_AXIS[plane])]: tuple(step[axis] for axis in axes)
        for plane, step in steps.items()
    }
    return moved == dict(steps)


class RandOrientationd(RandomizableTransform, MapTransform):
    """One of the orientations of the cube, drawn uniformly, for volumes and token grids together.

    Reads ``voxel_size_nm`` (3,) of the sample too, and with dense features ``token_steps`` (3, 3).

    Args:
        keys: volumes (C, D, H, W), the crop first.
        symmetry: "auto": all orientations that keep the crop's shape and the voxel size; "cube":
            all 48, for isotropic voxels and cubic crops; "square": the 16 that keep z apart, for
            voxels and crops that are square in y and x; "box": the 8 mirrorings, for any; "none":
            samples stay as they are, as those with cached targets have to. With tokens, these too
            must be alike along axes that trade places: a sample keeps its planes and the distances
            of its tokens, so that a network sees no others than in inference. So with the factors
            of a context, and with what ``targets`` tell apart.
        prob: probability that an orientation is drawn at all.
        targets: settings of the targets that are computed afterwards: z of sections (``dimensions``
            2) does not trade places, and no axis with one of another ``mask_erosion``. None: all
            axes are alike to them.

    Raises:
        InputError: unknown symmetry; when applied, axes along which the crop, the voxels, the
            tokens or the targets are unequal would trade places, or the sample has cached targets.
    """

    def __init__(
        self,
        keys: Sequence[str],
        symmetry: str = "auto",
        prob: float = 1.0,
        targets: TargetSettings | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if symmetry not in SYMMETRIES:
            raise InputError(f"symmetry must be one of {', '.join(SYMMETRIES)}, got {symmetry!r}.")
        self.symmetry = symmetry
        self.told_apart = targets.told_apart if targets else ((False, 0),) * 3
        self.axes: tuple[int, ...] = (0, 1, 2)
        self.flips: tuple[int, ...] = ()

    def randomize(self, data: Sequence[tuple[int, ...]]) -> None:
        """Draw an orientation whose order of axes is one of ``data``."""
        super().randomize(None)
        self.axes = data[self.R.randint(len(data))]
        self.flips = tuple(int(axis) for axis in range(3) if self.R.rand() < 0.5)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draw and apply an orientation."""
        if self.symmetry == "none":
            return dict(data)
        if "target" in data:
            raise InputError(
                f"cached_targets needs symmetry 'none', got {self.symmetry!r}: targets from a "
                "cache cannot be turned with their crop; change one of them."
            )
        keys = [str(key) for key in self.keys]
        shape = data[keys[0]].shape[1:]
        factor = data["context_placement"][1].tolist() if "context_placement" in data else [1] * 3
        size = data["voxel_size_nm"].tolist()
        self.randomize(self._orders(shape, size, factor, _steps(data)))
        return orient(data, keys, self.axes, self.flips) if self._do_transform else dict(data)

    def _orders(
        self,
        shape: Sequence[int],
        voxel_size_nm: Sequence[float],
        factor: Sequence[float],
        steps: Mapping[str, tuple[float, ...]],
    ) -> list[tuple[int, ...]]:
        """Orders of axes to choose from; without "auto" all of the symmetry's must fit."""
        places = list(zip(shape, voxel_size_nm, factor, self.told_apart, strict=True))
        orders = SYMMETRIES[self.symmetry]
        fitting = [
            axes
            for axes in orders
            if [places[a] for a in axes] == places and _are_kept(steps, axes)
        ]
        if self.symmetry != "auto" and len(fitting) < len(orders):
            raise InputError(
                f"symmetry {self.symmetry!r} swaps axes along which crop_size {list(shape)}, "
                f"the voxel size {list(voxel_size_nm)} nm, the targets (dimensions, mask_erosion), "
                f"the tokens (planes {', '.join(steps)}; pixels_per_voxel, slice_step) or "
                "context_factor differ; choose auto, or make them equal."
            )
        return fitting
