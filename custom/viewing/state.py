"""Layers as a state of Neuroglancer: where they lie, how they are arranged, what is in view."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import neuroglancer
import numpy as np

from custom.errors import InputError
from custom.json_fields import hint
from custom.viewing.layers import CODES, GREY, POINTS, RGB, ShownLayer
from custom.viewing.pyramid import LARGEST
from custom.viewing.served import IMAGE, SEGMENTATION, ServedVolume, corner_in_view
from custom.voxel_grid import Triple

PLAIN_LAYOUTS = ("4panel", "xy", "xz", "yz", "3d", "xy-3d", "xz-3d", "yz-3d")
COMPARE = "compare"
LAYOUTS = (*PLAIN_LAYOUTS, COMPARE)
COMPARED = ("raw", "affinities", "probabilities", "segmentation", "truth", "errors")
MARGIN = 1.06  # what fits into a panel leaves a little room
BACKGROUND = "#000000"
OPACITY = {GREY: 1.0, RGB: 1.0, CODES: 0.85}
POINT_SHADER = """void main() {
  setColor(prop_color());
}
"""
POINT_COLOURS = {"split": "#ffaa28", "merge": "#4682ff"}


@dataclass(frozen=True)
class View:
    """How layers are seen.

    Args:
        layout: one of ``LAYOUTS``; None for "4panel", of several outputs "xy" side by side.
        position: voxel of the first output in the middle, zyx; None for the middle.
        zoom: 1 shows all of it, 2 shows it twice as large.
        segments: ids that are chosen; none shows all.
        panels: pixels of the window, width and height.

    Raises:
        InputError: an unknown layout, or a zoom that is not positive.
    """

    layout: str | None = None
    position: Triple | None = None
    zoom: float = 1.0
    segments: Sequence[int] = ()
    panels: tuple[int, int] = (1600, 1000)

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in LAYOUTS:
            raise InputError(f"there is no layout '{self.layout}'{hint(str(self.layout), LAYOUTS)}")
        if not 0 < self.zoom < float("inf"):
            raise InputError(f"zoom must be above 0, got {self.zoom!r}; 1 shows all")


def viewer_state(
    outputs: Mapping[str, Sequence[ShownLayer]], view: View
) -> neuroglancer.ViewerState:
    """The state that shows outputs side by side.

    Args:
        outputs: layers of every output by its name, each with a segmentation; the first one's
            voxels are those that positions are counted in.
        view: of them.
    """
    first = reference(next(iter(outputs.values())))
    size = first.pyramid.metadata.voxel_size_nm
    state = neuroglancer.ViewerState()
    state.dimensions = space(size)
    names: dict[str, list[tuple[str, ShownLayer]]] = {}
    for output, layers in outputs.items():
        prefix = f"{output}: " if len(outputs) > 1 else ""
        names[output] = [(f"{prefix}{layer.name}", layer) for layer in layers]
        for name, layer in names[output]:
            shown = _compared(layer) if view.layout == COMPARE else layer.visible
            state.layers.append(name=name, layer=_layer(layer, size, view.segments), visible=shown)
    state.layout, panels = arranged(names, view)
    look_at(state, first, middle_of(next(iter(outputs.values())), view), view, panels)
    return state


def reference(layers: Sequence[ShownLayer]) -> ShownLayer:
    """The layer whose voxels count."""
    return next(layer for layer in layers if layer.name == "segmentation")


def space(size_nm: Triple) -> neuroglancer.CoordinateSpace:
    """The viewer's axes: x first, so that sections are xy."""
    return neuroglancer.CoordinateSpace(names=["x", "y", "z"], units="nm", scales=size_nm[::-1])


def _layer(layer: ShownLayer, reference_nm: Triple, segments: Sequence[int]) -> neuroglancer.Layer:
    """A layer of Neuroglancer."""
    if layer.kind == POINTS:
        return _points(layer, reference_nm)
    metadata = layer.pyramid.metadata
    corner = corner_in_view(metadata.offset_nm, metadata.voxel_size_nm, reference_nm)
    kind = IMAGE if layer.kind in OPACITY else SEGMENTATION
    codes = LARGEST if layer.kind == CODES else None
    source = ServedVolume(layer.pyramid, kind, corner, layer.meshes, codes)
    if kind == IMAGE:
        return neuroglancer.ImageLayer(
            source=source, shader=layer.shader, opacity=OPACITY[layer.kind]
        )
    return neuroglancer.SegmentationLayer(
        source=source,
        selected_alpha=0.45,
        not_selected_alpha=0.1,
        segments=set(segments),
        segment_colors=dict(layer.colours),
    )


def _points(layer: ShownLayer, reference_nm: Triple) -> neuroglancer.Layer:
    """Sites as points that one can click on in a list."""
    points = [
        neuroglancer.PointAnnotation(
            id=f"{number}",
            point=list(in_view(layer, site.voxel, reference_nm)[::-1]),
            description=site.text,
            props=[POINT_COLOURS[site.kind]],
        )
        for number, site in enumerate(layer.sites)
    ]
    return neuroglancer.LocalAnnotationLayer(
        dimensions=space(reference_nm),
        annotations=points,
        annotation_properties=[
            neuroglancer.AnnotationPropertySpec(id="color", type="rgb", default="#ffffff")
        ],
        shader=POINT_SHADER,
    )


def in_view(layer: ShownLayer, voxel: Sequence[float], reference_nm: Triple) -> Triple:
    """Where the viewer shows the middle of a layer's voxel, zyx, in voxels of the reference."""
    metadata = layer.pyramid.metadata
    size = metadata.voxel_size_nm
    corner = corner_in_view(metadata.offset_nm, size, reference_nm)
    place = np.add(corner, np.multiply(np.add(voxel, 0.5), size)) / reference_nm
    z, y, x = (float(v) for v in place)
    return z, y, x


def _compared(layer: ShownLayer) -> bool:
    return layer.name in COMPARED


def arranged(
    names: Mapping[str, Sequence[tuple[str, ShownLayer]]], view: View
) -> tuple[object, tuple[float, float]]:
    """The arrangement, and width and height of a panel of it."""
    width, height = view.panels
    plain = view.layout or ("4panel" if len(names) == 1 else "xy")
    if plain == COMPARE:
        rows = [_row(named) for named in names.values()]
        panels = max(len(row.children) for row in rows)
        return neuroglancer.column_layout(rows), (width / panels, height / len(rows))
    halves = 2 if plain == "4panel" else 1
    panel = (width / (2 if plain == "4panel" or "-" in plain else 1), height / halves)
    if len(names) == 1:
        return plain, panel
    groups = [
        neuroglancer.LayerGroupViewer(layers=[name for name, _ in named], layout=plain)
        for named in names.values()
    ]
    return neuroglancer.row_layout(groups), (panel[0] / len(names), panel[1])


def _row(named: Sequence[tuple[str, ShownLayer]]) -> neuroglancer.StackLayout:
    """A panel for every layer that is compared, each over raw."""
    raw = [name for name, layer in named if layer.name == "raw"]
    return neuroglancer.row_layout(
        [
            neuroglancer.LayerGroupViewer(
                layers=[*(raw if layer.name != "raw" else ()), name], layout="xy"
            )
            for name, layer in named
            if _compared(layer)
        ]
    )


def middle_of(layers: Sequence[ShownLayer], view: View) -> Triple:
    """What is in the middle, in the viewer's voxels, zyx: without a choice where truth is."""
    first = reference(layers)
    size = first.pyramid.metadata.voxel_size_nm
    if view.position is not None:
        return in_view(first, view.position, size)
    named = {layer.name: layer for layer in layers}
    shown = named.get("errors", named.get("truth", first))
    return in_view(shown, [(n - 1) / 2 for n in shown.pyramid.metadata.shape], size)


def look_at(
    state: neuroglancer.ViewerState,
    first: ShownLayer,
    middle: Triple,
    view: View,
    panel: tuple[float, float],
) -> None:
    """Position and scale, so that all of the first output fits into a panel."""
    metadata = first.pyramid.metadata
    size = metadata.voxel_size_nm
    state.position = list(middle[::-1])
    depth, height, width = np.multiply(metadata.shape, size)
    across = {"xy": (width, height), "xz": (width, depth), "yz": (depth, height)}
    plane = "xy" if view.layout == COMPARE else (view.layout or "xy")[:2]
    pairs = [across[plane]] if plane in across and view.layout else list(across.values())
    nm_per_pixel = max(max(w / panel[0], h / panel[1]) for w, h in pairs) * MARGIN / view.zoom
    state.cross_section_scale = float(nm_per_pixel / min(size))
    longest = float(np.linalg.norm([depth, height, width]))
    state.projection_scale = longest * MARGIN / view.zoom / min(size)
    state.show_axis_lines = False
    state.show_default_annotations = False
    state.cross_section_background_color = BACKGROUND
