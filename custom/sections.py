"""Random changes of single sections of a crop."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from custom.draws import AXES, RandomChanged, Shape, axis_word, whole_range
from custom.errors import InputError

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Sections:
    """Neighbouring sections of a crop.

    Args:
        axis: their normal, 0 is z.
        start: the first.
        stop: the first that is not one of them.
    """

    axis: int
    start: int
    stop: int

    def box(self, shape: Shape) -> Box:
        """Their voxels in a crop of ``shape``."""
        z, y, x = (
            slice(self.start, self.stop) if axis == self.axis else slice(0, size)
            for axis, size in enumerate(shape)
        )
        return z, y, x


class RandSectionsd(RandomChanged):
    """A change of some neighbouring sections; each place for them is as likely as any other.

    Reads ``voxel_size_nm`` (3,) of the sample. A crop of a single section stays as it is.

    Args:
        keys: volumes that are changed, as in ``RandomChanged``.
        prob: probability of the change.
        sections: [fewest, most] sections, drawn uniformly; never all of a crop's.
        axis: their normal: "z", "y", "x", or "auto": one of the three for isotropic voxels,
            drawn uniformly, z for others.

    Raises:
        InputError: an argument is out of range; when applied, whatever is drawn: the crop has no
            more sections than the fewest to change, or is a single one along an axis that was
            named.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        prob: float,
        sections: Sequence[int] | int = (1, 1),
        axis: str = "auto",
    ) -> None:
        super().__init__(keys, prob)
        self.count = whole_range(sections, self.named("sections"), 1)
        self.axis = axis_word(axis, ("auto", *AXES), self.named("axis"))
        self.sections = Sections(0, 0, 0)

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw whether, and which sections."""
        super().randomize(None)
        shape = self.shape_in(data)
        axes = self._fitting(section_axes(self.axis, data["voxel_size_nm"].tolist(), shape), shape)
        self._do_transform = self._do_transform and bool(axes)
        if not self._do_transform:
            return
        axis = axes[self.R.randint(len(axes))]
        count = min(self.whole(self.count), shape[axis] - 1)
        start = self.whole((0, shape[axis] - count))
        self.sections = Sections(axis, start, start + count)

    def _fitting(self, axes: Sequence[int], shape: Shape) -> list[int]:
        """Those along which sections can be changed; without any, the first one's misfit is told.

        Whatever is drawn: else a run would end at the sample that is the first to be changed.
        """
        found = [axis for axis in axes if not self.misfit(axis, shape)]
        if axes and not found:
            raise InputError(self.misfit(axes[0], shape))
        return found

    def misfit(self, axis: int, shape: Shape) -> str:
        """Why sections along an axis of a crop cannot be changed; empty where they can."""
        if self.count[0] < shape[axis]:
            return ""
        return (
            f"{self.named('sections')} is at least {self.count[0]}, but a crop has only "
            f"{shape[axis]} along {'zyx'[axis]}; lower it, or enlarge crop_size"
        )


def section_axes(axis: str, voxel_size_nm: Sequence[float], shape: Shape) -> list[int]:
    """Those ``normals`` along which a crop has more than one section."""
    found = [a for a in normals(axis, voxel_size_nm, shape) if shape[a] > 1]
    if axis != "auto" and not found:
        raise InputError(
            f"a crop of {list(shape)} voxels has a single section along {axis}: take another axis, "
            "or leave changes of sections out of the augmentation"
        )
    return found


def normals(axis: str, voxel_size_nm: Sequence[float], shape: Shape) -> list[int]:
    """Axes that may be the sections' normal; "auto": any of isotropic voxels, z of others.

    Of a crop that is a single section thick it is z, too: networks see it in its plane.
    """
    if axis != "auto":
        return [AXES[axis]]
    return [0, 1, 2] if len(set(voxel_size_nm)) == 1 and min(shape) > 1 else [0]
