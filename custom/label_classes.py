"""Labels that come class by class, each in a volume of its own, read as one volume."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray

from custom.errors import InputError
from custom.file_arrays import Box, FileArray
from custom.json_fields import mapping
from custom.volumes import Volume, VolumeMetadata, open_volume
from custom.voxel_grid import Triple
from custom.working_grid import ON_GRID, same_size, start_in

Classes = Mapping[str, str | None]  # a class and the path of its labels, in order

INSTANCES = "instances"


def parse_classes(value: object, path: Callable[[object, str], str], where: str) -> Classes:
    """The datalist's ``classes``.

    Args:
        value: what stands there.
        path: parses a path.
        where: names the field in messages, here and below.

    Raises:
        InputError: not an object of paths and nulls, or no class is annotated.
    """
    found = {
        name: None if given is None else path(given, f"{where}.{name}")
        for name, given in mapping(value, where).items()
    }
    if not any(found.values()):
        raise InputError(
            f"{where} gives no path for any class; give one, or leave 'classes' out where there "
            f"are no labels"
        )
    return found


def class_ids(classes: Classes) -> dict[str, int | str]:
    """What the labels of a class are: "instances" where it is the only one, else its id, from 1."""
    if len(classes) == 1:
        return dict.fromkeys(classes, INSTANCES)
    return {name: number for number, name in enumerate(classes, start=1)}


def class_names(ids: Mapping[str, int | str] | None, num_classes: int) -> list[str]:
    """Names of N classes in the order of their ids, the background's first.

    A class without a name is "class_<id>", or "foreground" if it is the only one.

    Args:
        ids: from ``class_ids``; None for labels that come without names.
        num_classes: N, background included.
    """
    names = ["background", *(f"class_{number}" for number in range(1, num_classes))]
    if num_classes == 2:
        names[1] = "foreground"
    for name, given in (ids or {}).items():
        number = 1 if isinstance(given, str) else given
        if number < num_classes:
            names[number] = name
    return names


def is_partial(classes: Classes | None) -> bool:
    """Whether a class is not annotated: then a voxel that no other class claims is unknown."""
    return classes is not None and None in classes.values()


def refuse_other_classes(of_entries: Mapping[str, Classes | None], where: str) -> None:
    """Ids must mean the same in all entries: the same classes in the same order.

    Args:
        of_entries: id of every entry that has labels, and its classes.
        where: names the datalist.

    Raises:
        InputError: two entries differ.
    """
    for id_, classes in of_entries.items():
        first_id, first = next(iter(of_entries.items()))
        if list(classes or ()) != list(first or ()):
            raise InputError(
                f"{where}: entry '{first_id}' has {_said(first)}, entry '{id_}' has "
                f"{_said(classes)}; name the same classes in the same order everywhere, null for "
                f"one that is not annotated"
            )


def open_labels(labels: str | Classes, voxel_size_nm: Triple | None, where: str) -> Volume:
    """Labels from one volume, or from one volume per class.

    One class: its instances, as they are. Several: class ids from 1 on in the stated order, a later
    class over an earlier one; the volume is the box that all annotated classes have in common.

    ::

        mito  |--------------|
        er         |---------------|
        both       |---------|             index 0 at its left end

    Args:
        labels: path of the one volume, or the classes.
        voxel_size_nm: zyx; wins over the files' own.
        where: names the field in messages.

    Raises:
        InputError: see ``open_volume``; or classes are not integers, or do not fit together.
    """
    if isinstance(labels, str):
        return open_volume(labels, voxel_size_nm, where)
    parts = {
        name: open_volume(path, voxel_size_nm, f"{where}.{name}")
        for name, path in labels.items()
        if path is not None
    }
    if len(labels) == 1:
        return next(iter(parts.values()))
    return _merged(parts, class_ids(labels), where)


def _merged(parts: Mapping[str, Volume], ids: Mapping[str, int | str], where: str) -> Volume:
    """Volume of class ids."""
    starts = {name: _start(parts, name, where) for name in parts}
    common = _common(parts, starts, where)
    first = next(iter(parts.values())).metadata
    shape = (common.shape[0], common.shape[1], common.shape[2])
    layers = [
        (int(ids[name]), volume, common.begin - starts[name]) for name, volume in parts.items()
    ]
    array = FileArray(shape, np.dtype(np.uint16), partial(list, layers), partial(_claims, where))
    metadata = replace(
        first,
        shape=shape,
        dtype="uint16",
        offset_nm=_moved(first.offset_nm, common, first),
        corner_nm=first.corner_nm and _moved(first.corner_nm, common, first),
    )
    return Volume(", ".join(volume.path for volume in parts.values()), metadata, array)


def _moved(place: Triple, box: Roi, grid: VolumeMetadata) -> Triple:
    """A place of a grid's first voxel, for the first voxel of a box."""
    steps = zip(place, box.begin, grid.voxel_size_nm, strict=True)
    z, y, x = (float(p + b * v) for p, b, v in steps)
    return z, y, x


def _claims(
    where: str, layers: Sequence[tuple[int, Volume, Coordinate]], box: Box
) -> NDArray[np.uint16]:
    """Class ids of a box."""
    spans = [span for span in box if isinstance(span, slice)]
    roi = Roi([span.start for span in spans], [span.stop - span.start for span in spans])
    claimed = np.zeros(tuple(roi.shape), np.uint16)
    for id_, volume, corner in layers:
        values: NDArray[Any] = volume.read(roi + corner)
        if values.dtype.kind == "i" and values.min(initial=0) < 0:
            raise InputError(
                f"{where}: '{volume.path}' holds the negative id {values.min()}; ids are 0 "
                f"(background) or positive"
            )
        claimed[values != 0] = id_
    return claimed


def _start(parts: Mapping[str, Volume], name: str, where: str) -> Coordinate:
    """First voxel of a class on the grid of the first one."""
    first_name, first = next(iter(parts.items()))
    here, there = parts[name].metadata, first.metadata
    if np.dtype(here.dtype).kind not in "biu":
        raise InputError(f"{where}.{name} has type {here.dtype}; convert it to integers")
    if not same_size(here.voxel_size_nm, there.voxel_size_nm):
        raise InputError(
            f"{where}.{name} has voxel size {here.voxel_size_nm} nm, {first_name} has "
            f"{there.voxel_size_nm} nm; they must be equal, resample one of them"
        )
    position = np.array(start_in(here, there))
    start = np.round(position)
    if np.abs(position - start).max() > ON_GRID:
        raise InputError(
            f"{where}.{name} starts at voxel {position.round(3).tolist()} of {first_name}, which "
            f"is not a whole number; correct its offset or resample it"
        )
    return Coordinate(int(s) for s in start)


def _common(parts: Mapping[str, Volume], starts: Mapping[str, Coordinate], where: str) -> Roi:
    """The box that all classes have voxels in, on the grid of the first one."""
    names = list(parts)
    common = parts[names[0]].metadata.roi
    for name in names[1:]:
        common = common.intersect(parts[name].metadata.roi + starts[name])
        if common.empty:
            before = ", ".join(names[: names.index(name)])
            raise InputError(
                f"{where}.{name} has no voxel in common with {before}; check the offsets, or give "
                f"null where a class is not annotated"
            )
    return common


def _said(classes: Classes | None) -> str:
    return f"the classes {', '.join(classes)}" if classes else "'labels'"
