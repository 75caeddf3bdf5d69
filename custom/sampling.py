"""Training cubes from large labelled volumes: which boxes are worth learning from."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np
from funlib.geometry import Coordinate, Roi
from tqdm import tqdm

from custom.datalist import OpenEntry, overlap
from custom.errors import InputError
from custom.json_fields import whole_number

WEIGHTS = ("uniform", "size")
ATTEMPTS_PER_CUBE = 100


@dataclass(frozen=True)
class CubeRules:
    """What makes a cube worth keeping.

    Args:
        min_ground_truth_fraction: of its voxels where labels count.
        min_label_fraction: of those voxels with a label other than 0.
        min_unique_ids: different labels in them; 0 (background) does not count.

    Raises:
        InputError: a fraction is not from 0 to 1, or the number is negative.
    """

    min_ground_truth_fraction: float = 0.05
    min_label_fraction: float = 0.05
    min_unique_ids: int = 1

    def __post_init__(self) -> None:
        for name in ("min_ground_truth_fraction", "min_label_fraction"):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value <= 1
            ):
                raise InputError(f"{name} must be a number from 0 to 1, got {value!r}")
        whole_number(self.min_unique_ids, 0, "min_unique_ids")

    def fault(self, opened: OpenEntry, roi: Roi) -> str | None:
        """Name of the first rule that a box breaks; None if it keeps them all."""
        labels, annotated = opened.read_labels(roi)
        if annotated.mean() < self.min_ground_truth_fraction:
            return "min_ground_truth_fraction"
        objects = labels[annotated & (labels != 0)]
        if objects.size < self.min_label_fraction * annotated.sum():
            return "min_label_fraction"
        if len(np.unique(objects)) < self.min_unique_ids:
            return "min_unique_ids"
        return None


@dataclass(frozen=True)
class Cube:
    """A box of a source.

    Args:
        source: index of the source.
        roi: in voxels of raw.
    """

    source: int
    roi: Roi


@dataclass
class CubeSampler:
    """Draws cubes from sources: a source, then a place in its ROI, until enough are found.

    What is drawn follows from the arguments alone. Cubes lie inside the ROIs; where they may go
    beyond the labels, their centres do, and a cube sticks out only where labels end::

        raw       |------------------------------|
        labels         |--------------|
        roi            |----------|
        cubes      |......|    |......|

    Args:
        sources: opened entries; those without labels are taken as they are, no rule applies.
        size: (D, H, W) of a cube, voxels.
        rules: a cube must keep.
        weights: "uniform": every source is as likely; "size": in proportion to the number of places
            that a cube can take in it.
        seed: of all draws.
        beyond_labels: cubes may stick out of the labels, not of raw.
        apart_from: entries whose ROIs no cube may overlap, such as those of validation.

    Raises:
        InputError: unknown weights, or a cube is larger than every source's ROI.
    """

    sources: Sequence[OpenEntry]
    size: tuple[int, int, int]
    rules: CubeRules = field(default_factory=CubeRules)
    weights: str = "uniform"
    seed: int = 0
    beyond_labels: bool = False
    apart_from: Sequence[OpenEntry] = ()

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise InputError(f"weights must be {' or '.join(WEIGHTS)}, got {self.weights!r}")
        self.rejected: Counter[str] = Counter()
        self._corners = [self._corners_in(opened) for opened in self.sources]
        places = np.array([math.prod(r.shape) for r in self._corners], dtype=float)
        self.too_small = [o.entry.id for o, n in zip(self.sources, places, strict=True) if not n]
        if not places.any():
            shapes = ", ".join(str(list(opened.roi.shape)) for opened in self.sources)
            raise InputError(
                f"a cube of {list(self.size)} voxels is larger than every source's ROI ({shapes}); "
                f"make it smaller"
            )
        shares = places if self.weights == "size" else (places > 0).astype(float)
        self._shares = shares / shares.sum()

    def _corners_in(self, opened: OpenEntry) -> Roi:
        """First voxels that a cube can have in a source."""
        allowed = centres = opened.roi
        if self.beyond_labels and opened.labels is not None:
            whole = opened.raw.metadata.roi
            labels = opened.labels.metadata.roi + Coordinate(opened.labels_offset)
            labels, centres = labels.intersect(whole), opened.roi.intersect(labels)
            allowed = _widened(opened.roi, labels, whole)
            half = Coordinate(s // 2 for s in self.size)
            centres = centres - half
        ends = [e - s + 1 for e, s in zip(allowed.end, self.size, strict=True)]
        corners = Roi(
            allowed.begin, [max(0, e - b) for b, e in zip(allowed.begin, ends, strict=True)]
        )
        return corners.intersect(centres)

    def draw(self, count: int, progress: bool = False) -> list[Cube]:
        """So many different cubes.

        Raises:
            InputError: too few were found; says how many were rejected by which rule.
        """
        random = np.random.default_rng(self.seed)
        found: dict[tuple[int, ...], Cube] = {}
        with tqdm(total=count, unit="cube", disable=not progress) as bar:
            for _ in range(ATTEMPTS_PER_CUBE * count):
                if len(found) == count:
                    break
                cube = self._candidate(random)
                place = (cube.source, *cube.roi.offset)
                fault = self._fault(cube, place in found)
                if fault is None:
                    found[place] = cube
                    bar.update()
                else:
                    self.rejected[fault] += 1
        if len(found) < count:
            raise InputError(self._too_few(len(found), count))
        return list(found.values())

    def _candidate(self, random: np.random.Generator) -> Cube:
        """A random place in a random source."""
        index = int(random.choice(len(self.sources), p=self._shares))
        corners = self._corners[index]
        offset = [
            int(random.integers(b, e)) for b, e in zip(corners.begin, corners.end, strict=True)
        ]
        return Cube(index, Roi(offset, self.size))

    def _fault(self, cube: Cube, known: bool) -> str | None:
        if known:
            return "drawn before"
        opened = self.sources[cube.source]
        placed = replace(opened, roi=cube.roi)
        if any(overlap(placed, other) for other in self.apart_from):
            return "overlap with another section"
        return None if opened.labels is None else self.rules.fault(opened, cube.roi)

    def _too_few(self, found: int, count: int) -> str:
        reasons = ", ".join(f"{n} by {name}" for name, n in self.rejected.most_common())
        return (
            f"found only {found} of {count} cubes of {list(self.size)} voxels in "
            f"{ATTEMPTS_PER_CUBE * count} attempts; rejected: {reasons}. Lower these limits, make "
            f"the cubes smaller or ask for fewer"
        )


def _widened(roi: Roi, labels: Roi, whole: Roi) -> Roi:
    """The ROI, up to the borders of raw on those sides where it reaches the labels' border."""
    sides = zip(roi.begin, roi.end, labels.begin, labels.end, whole.begin, whole.end, strict=True)
    found = [(w0 if r0 <= l0 else r0, w1 if r1 >= l1 else r1) for r0, r1, l0, l1, w0, w1 in sides]
    return Roi([begin for begin, _ in found], [end - begin for begin, end in found])


def matching(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a name matches one of ``include`` and none of ``exclude`` (shell patterns)."""
    return any(fnmatchcase(name, p) for p in include) and not any(
        fnmatchcase(name, p) for p in exclude
    )


def stated(opened: OpenEntry, roi: Roi) -> dict[str, object]:
    """A box in voxels of raw as the datalist's ``roi`` has it: in voxels of the label grid."""
    if opened.labels is None:
        return {"offset": list(roi.offset), "shape": list(roi.shape)}
    roi = roi - Coordinate(opened.labels_offset)
    beyond = {} if opened.labels.metadata.roi.contains(roi) else {"beyond_labels": True}
    return {"offset": list(roi.offset), "shape": list(roi.shape), **beyond}
