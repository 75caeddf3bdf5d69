"""Random changes of training samples, on raw, labels, mask and tokens together."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import permutations
from typing import Any

from monai.transforms import MapTransform, RandomizableTransform

from custom.errors import InputError
from custom.features import triplane
from custom.planes import PLANES

SYMMETRIES = {
    "cube": tuple(permutations(range(3))),
    "square": ((0, 1, 2), (0, 2, 1)),
    "box": ((0, 1, 2),),
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
            under ``tokens_<plane>`` with ``placement_<plane>``.
        keys: volumes to orient.
        axes: new order of the spatial axes, as in ``numpy.transpose``.
        flips: spatial axes to mirror after the transposition (0 is z).
    """
    result = dict(sample)
    for key in keys:
        moved = sample[key].permute(0, *(1 + a for a in axes))
        result[key] = moved.flip([1 + a for a in flips]).contiguous()
    shape = result[keys[0]].shape[1:]
    for plane, grid in triplane.permute(_grids(sample), axes).items():
        mirrored = triplane.flip(grid, flips, shape)
        result[f"tokens_{plane}"] = mirrored.values.contiguous()
        result[f"placement_{plane}"] = mirrored.placement
    return result


def _grids(sample: Mapping[Hashable, Any]) -> dict[str, triplane.PlaneGrid]:
    return {
        plane: triplane.PlaneGrid.placed(sample[f"tokens_{plane}"], sample[f"placement_{plane}"])
        for plane in PLANES
        if f"tokens_{plane}" in sample
    }


class RandOrientationd(RandomizableTransform, MapTransform):
    """One of the orientations of the cube, drawn uniformly, for volumes and token grids together.

    Reads ``voxel_size_nm`` (3,) of the sample too.

    Args:
        keys: volumes (C, D, H, W), the crop first.
        symmetry: "cube": all 48 orientations, for isotropic voxels and cubic crops; "square": the
            16 that keep z apart, for voxels and crops that are square in y and x; "box": the 8
            mirrorings, for any.
        prob: probability that an orientation is drawn at all.

    Raises:
        InputError: unknown symmetry; when applied, axes along which the crop or the voxels have
            unequal sizes would trade places.
    """

    def __init__(self, keys: Sequence[str], symmetry: str = "cube", prob: float = 1.0) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if symmetry not in SYMMETRIES:
            raise InputError(f"symmetry must be one of {', '.join(SYMMETRIES)}, got {symmetry!r}.")
        self.symmetry = symmetry
        self.axes: tuple[int, ...] = (0, 1, 2)
        self.flips: tuple[int, ...] = ()

    def randomize(self, data: Any = None) -> None:
        """Draw an orientation."""
        super().randomize(data)
        choices = SYMMETRIES[self.symmetry]
        self.axes = choices[self.R.randint(len(choices))]
        self.flips = tuple(int(axis) for axis in range(3) if self.R.rand() < 0.5)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draw and apply an orientation."""
        self.randomize()
        keys = [str(key) for key in self.keys]
        self._check_equal("crop_size", data[keys[0]].shape[1:])
        self._check_equal("the voxel size in nm", data["voxel_size_nm"].tolist())
        return orient(data, keys, self.axes, self.flips) if self._do_transform else dict(data)

    def _check_equal(self, what: str, sizes: Sequence[float]) -> None:
        """Sizes must be equal along all axes that any orientation swaps, drawn now or not."""
        if any([sizes[a] for a in axes] != list(sizes) for axes in SYMMETRIES[self.symmetry]):
            raise InputError(
                f"symmetry {self.symmetry!r} swaps axes along which {what} {list(sizes)} differs; "
                f"choose another symmetry (square keeps z apart, box only mirrors)."
            )
