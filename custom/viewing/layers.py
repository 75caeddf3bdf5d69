"""What the viewer shows of outputs: layers, their colours, and the view they are seen from."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from funlib.geometry import Roi

from custom.datalist import OpenEntry
from custom.error_map import BOTH, COLOURS, MERGE, MISSING, SPLIT
from custom.features.intensity import IntensityWindow
from custom.outputs.images import SEGMENTATION
from custom.pictures import label_colours
from custom.viewing.error_sites import ErrorMap, Site
from custom.viewing.finished_output import (
    AFFINITIES,
    LSDS,
    PROBABILITIES,
    FinishedOutput,
)
from custom.viewing.pyramid import (
    Pyramid,
    open_channels,
    open_pyramid,
    single,
)
from custom.viewing.stored_meshes import meshes_of

logger = logging.getLogger(__name__)

GREY, RGB, SEGMENTS, CODES, POINTS = "grey", "rgb", "segments", "codes", "points"
SAMPLE = 96  # edge of the box that grey values are measured in, without a window in the datalist
PERCENTILES = (0.5, 99.5)
MOST_COLOURED = 2000  # objects whose colours the state lists

GREY_SHADER = """#uicontrol invlerp normalized({limits})
void main() {{
  emitGrayscale(normalized());
}}
"""
RGB_SHADER = """void main() {{
  emitRGB(vec3({channels}));
}}
"""
FOREGROUND_SHADER = """#uicontrol invlerp normalized(range=[255, 0], window=[0, 255])
void main() {
  emitGrayscale(normalized());
}
"""
CODES_SHADER = """#uicontrol vec3 split color(default="{split}")
#uicontrol vec3 merge color(default="{merge}")
#uicontrol vec3 split_and_merge color(default="{both}")
#uicontrol vec3 missing color(default="{missing}")
void main() {{
  uint code = toRaw(getDataValue());
  if (code == {SPLIT}u) emitRGB(split);
  else if (code == {MERGE}u) emitRGB(merge);
  else if (code == {BOTH}u) emitRGB(split_and_merge);
  else if (code == {MISSING}u) emitRGB(missing);
  else emitTransparent();
}}
"""


@dataclass(frozen=True)
class ShownLayer:
    """One layer of the viewer, as far as it has nothing to do with Neuroglancer.

    Args:
        name: in the list of layers.
        kind: ``GREY``, ``RGB``, ``SEGMENTS``, ``CODES`` or ``POINTS``.
        pyramid: what is shown; of points what they lie in.
        visible: from the beginning.
        source: path or URL of the array, for links; None for what is computed.
        shader: of images.
        channels: of colours, the number of the channel that is red, green and blue, if any.
        sites: of points, in voxels of the pyramid.
        meshes: folder of meshes of segments, if there is one.
        colours: of segments by their ids, as "#rrggbb"; the viewer has its own for others.
    """

    name: str
    kind: str
    pyramid: Pyramid
    visible: bool = True
    source: str | None = None
    shader: str = ""
    channels: tuple[int | None, int | None, int | None] = (None, None, None)
    sites: Sequence[Site] = ()
    meshes: Path | None = None
    colours: Mapping[int, str] = field(default_factory=dict)


def layers_of(
    output: FinishedOutput,
    show: Sequence[str] | None = None,
    errors: bool = True,
    eval_dir: Path | None = None,
) -> list[ShownLayer]:
    """Raw, predictions, fragments, segments, truth and errors of an output, as far as there are.

    Args:
        output: finished.
        show: names of the layers that are visible from the beginning; None for raw and
            segmentation. LSDs are there only if named here.
        errors: compare with the truth.
        eval_dir: of an evaluation, whose lists spare the comparison; as of ``ErrorMap``.
    """
    visible = ("raw", "segmentation") if show is None else show
    found = [*_given(output, visible), *_predicted(output, visible)]
    opened = output.entry
    if opened is not None and opened.labels is not None:
        found.append(_truth(opened, "truth" in visible))
        compared = _error_map(output, opened, eval_dir) if errors else None
        if compared is not None:
            found = [_coloured_alike(layer, compared) for layer in found]
            found += _errors(compared, "errors" in visible)
    return found


def _given(output: FinishedOutput, visible: Sequence[str]) -> list[ShownLayer]:
    """Raw, if it is known."""
    opened = output.entry
    if opened is None or opened.entry.raw == str(output.path / SEGMENTATION):
        return []
    pyramid = open_pyramid(opened.entry.raw, opened.entry.raw_voxel_size_nm)
    window = opened.entry.intensity_window or grey_window(pyramid)
    shader = grey_shader(window, pyramid.metadata.dtype)
    return [ShownLayer("raw", GREY, pyramid, "raw" in visible, opened.entry.raw, shader)]


def _predicted(output: FinishedOutput, visible: Sequence[str]) -> list[ShownLayer]:
    """What inference wrote."""
    found = []
    if output.has(AFFINITIES):
        axes = axis_channels(output.attributes(AFFINITIES)["offsets"])
        red, green, blue = (axes.get(axis) for axis in range(3))
        found.append(_coloured(output, AFFINITIES, (red, green, blue), visible))
    if output.has(PROBABILITIES):
        found.append(_background(output, visible))
    if output.has(LSDS) and LSDS in visible:
        found.append(_coloured(output, LSDS, (0, 1, 2), visible))
    for name, image in (("fragments", output.fragments), ("segmentation", SEGMENTATION)):
        if image is not None:
            path = str(output.path / image)
            pyramid = open_pyramid(path, None, name)
            meshes = meshes_of(output.path) if image == SEGMENTATION else None
            found.append(ShownLayer(name, SEGMENTS, pyramid, name in visible, path, meshes=meshes))
    return found


def _coloured(
    output: FinishedOutput,
    name: str,
    channels: tuple[int | None, int | None, int | None],
    visible: Sequence[str],
) -> ShownLayer:
    """Up to three channels as red, green and blue."""
    path = str(output.path / name)
    present = [k for k in channels if k is not None]
    colours = [
        "0.0" if k is None else f"toNormalized(getDataValue({present.index(k)}))" for k in channels
    ]
    pyramid = open_channels(path, present, name)
    shader = RGB_SHADER.format(channels=", ".join(colours))
    return ShownLayer(name, RGB, pyramid, name in visible, path, shader, channels)


def _background(output: FinishedOutput, visible: Sequence[str]) -> ShownLayer:
    """Probability of any class."""
    path = str(output.path / PROBABILITIES)
    pyramid = open_channels(path, [0], PROBABILITIES)
    return ShownLayer(
        PROBABILITIES, RGB, pyramid, PROBABILITIES in visible, path, FOREGROUND_SHADER
    )


def axis_channels(offsets: Sequence[Sequence[int]]) -> dict[int, int]:
    """For every axis that offsets lead along, zyx, the number of the shortest that does."""
    vectors = np.asarray(offsets)
    length = (vectors**2).sum(axis=1)
    mainly = np.abs(vectors).argmax(axis=1)
    return {
        int(axis): int(np.flatnonzero(mainly == axis)[length[mainly == axis].argmin()])
        for axis in np.unique(mainly)
    }


def _truth(opened: OpenEntry, visible: bool) -> ShownLayer:
    """Labels, where raw's grid places them."""
    assert opened.labels is not None
    entry, place = opened.entry, opened.offset_nm(Roi(opened.labels_offset, (1, 1, 1)))
    if entry.labels is not None:
        pyramid = open_pyramid(entry.labels, entry.labels_voxel_size_nm, "truth")
    else:
        pyramid = single(opened.labels)
    placed = replace(pyramid, metadata=replace(pyramid.metadata, offset_nm=place))
    return ShownLayer("truth", SEGMENTS, placed, visible, entry.labels)


def _error_map(output: FinishedOutput, opened: OpenEntry, eval_dir: Path | None) -> ErrorMap | None:
    """What truth and segmentation say of each other, where that is affordable."""
    if output.classes or output.per_section:
        logger.info("%s: errors are shown of objects in 3D alone", output.id)
        return None
    errors = ErrorMap(opened, output.path.parent, eval_dir)
    if not errors.affordable:
        logger.warning(
            "%s: errors are left out: %s voxels would be compared; run evaluating "
            "first, its lists of errors are enough",
            output.id,
            f"{errors.voxels:,}",
        )
        return None
    return errors


def _errors(errors: ErrorMap, visible: bool) -> list[ShownLayer]:
    """Errors voxel by voxel, and the list of sites."""
    pyramid = errors.pyramid()
    here = [replace(s, voxel=_minus(s.voxel, errors.roi.begin)) for s in errors.sites()]
    return [
        ShownLayer("errors", CODES, pyramid, visible, shader=codes_shader()),
        ShownLayer("error sites", POINTS, pyramid, visible, sites=here),
    ]


def _coloured_alike(layer: ShownLayer, errors: ErrorMap) -> ShownLayer:
    """Truth and segmentation with one colour for an object and its main segment.

    Other segments keep the viewer's colours, so that a piece that was split off stands out.
    """
    pairs = sorted(errors.overlaps.main_segments().items())[:MOST_COLOURED]
    objects = np.array([own for own, _ in pairs], np.uint64)
    colours = ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in label_colours(objects).tolist()]
    if layer.name == "truth":
        return replace(layer, colours=dict(zip((own for own, _ in pairs), colours, strict=True)))
    if layer.name != "segmentation":
        return layer
    mains = errors.overlaps.main_objects()
    chosen = {
        segment: colour
        for (own, segment), colour in zip(pairs, colours, strict=True)
        if mains[segment] == own
    }
    return replace(layer, colours=chosen)


def _minus(voxel: Sequence[int], origin: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = (int(v) - int(o) for v, o in zip(voxel, origin, strict=True))
    return z, y, x


def grey_window(pyramid: Pyramid) -> IntensityWindow:
    """Grey values from dark to bright, in a box in the middle of a volume's coarsest level."""
    level = pyramid.levels[-1]
    size = [min(SAMPLE, n) for n in level.shape]
    begin = [(n - s) // 2 for n, s in zip(level.shape, size, strict=True)]
    values = level.read(Roi(begin, size))
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    return (low, high) if high > low else (low, low + 1)


def grey_shader(window: IntensityWindow, dtype: str) -> str:
    """Contrast that is the window at first; the slider reaches a little further."""
    low, high = window
    margin = (high - low) / 2
    least, most = low - margin, high + margin
    if np.dtype(dtype).kind in "ui":
        limits = np.iinfo(dtype)
        least, most = max(least, limits.min), min(most, limits.max)
        low, high, least, most = (round(v) for v in (low, high, least, most))
    shown = f"range=[{low:.9g}, {high:.9g}], window=[{least:.9g}, {most:.9g}]"
    return GREY_SHADER.format(limits=shown)


def codes_shader() -> str:
    """Errors in the colours of ``error_map``, which may be changed in the viewer."""
    colours = {code: "#{:02x}{:02x}{:02x}".format(*rgb) for code, rgb in COLOURS.values()}
    names = {"split": SPLIT, "merge": MERGE, "both": BOTH, "missing": MISSING}
    return CODES_SHADER.format(
        **{name: colours[code] for name, code in names.items()},
        SPLIT=SPLIT, MERGE=MERGE, BOTH=BOTH, MISSING=MISSING,
    )  # fmt: skip
