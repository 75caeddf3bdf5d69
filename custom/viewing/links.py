"""A link to a viewer on the web, for outputs that a web server hands out."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import neuroglancer
import numpy as np

from custom.errors import InputError
from custom.files import write_atomically
from custom.locations import Location, parse_location
from custom.precomputed_metadata import INFO_FILE
from custom.viewing.layers import GREY, RGB, SEGMENTS, ShownLayer
from custom.viewing.state import View, arranged, look_at, middle_of, reference, space
from custom.voxel_grid import Triple
from custom.zarr_metadata import find_array, parse_json, read_node

logger = logging.getLogger(__name__)

VIEWER = "https://neuroglancer-demo.appspot.com"
SAME_PLACE_NM = 1e-6
CHANNEL_SHADER = """#uicontrol invlerp normalized(range=[0, 255], window=[0, 255])
void main() {{
  emitRGB(vec3({colours}) * normalized());
}}
"""
PURE = ("1.0, 0.0, 0.0", "0.0, 1.0, 0.0", "0.0, 0.0, 1.0")


@dataclass(frozen=True)
class Source:
    """An array that the viewer reads itself.

    Args:
        url: as Neuroglancer wants it.
        corner_nm: where Neuroglancer places the corner of the array's first voxel, zyx.
        axes: of the array, in its order.
    """

    url: str
    corner_nm: Triple
    axes: tuple[str, ...] = ("z", "y", "x")


def link_state(
    outputs: Mapping[str, Sequence[ShownLayer]], view: View, root: Path, base: str
) -> tuple[neuroglancer.ViewerState, list[str]]:
    """The state of a link, and the names of the layers that it cannot show.

    Args:
        outputs: as of ``viewer_state``.
        view: of them.
        root: folder that the web server hands out.
        base: its URL.

    Raises:
        InputError: the first output cannot be shown.
    """
    first = reference(next(iter(outputs.values())))
    size = first.pyramid.metadata.voxel_size_nm
    state = neuroglancer.ViewerState()
    state.dimensions = space(size)
    names: dict[str, list[tuple[str, ShownLayer]]] = {}
    missing = []
    for output, layers in outputs.items():
        prefix = f"{output}: " if len(outputs) > 1 else ""
        names[output] = []
        for layer in layers:
            source = find_source(layer, root, base)
            if source is None:
                missing.append(f"{prefix}{layer.name}")
                continue
            for name, shown in _layers(layer, source):
                state.layers.append(name=f"{prefix}{name}", layer=shown, visible=layer.visible)
                names[output].append((f"{prefix}{name}", replace(layer, name=name)))
    if f"{first.name}" in [name.split(": ")[-1] for name in missing]:
        raise InputError(f"the segmentation does not lie in '{root}', which the link is for")
    state.layout, panels = arranged(names, view)
    look_at(state, first, middle_of(next(iter(outputs.values())), view), view, panels)
    # Neuroglancer places an OME-Zarr's first voxel around its position, not from it on.
    state.position = [float(v) - 0.5 for v in state.position]
    return state, missing


def find_source(layer: ShownLayer, root: Path, base: str) -> Source | None:
    """Where the viewer finds a layer's array; None for what it cannot read or reach."""
    if layer.source is None or layer.kind not in (GREY, RGB, SEGMENTS):
        return None
    prefix, location = parse_location(layer.source, layer.name)
    if prefix == "n5":
        return None
    url = location.url
    if not location.remote:
        resolved = location.path.resolve()
        if not resolved.is_relative_to(root.resolve()):
            return None
        url = f"{base.rstrip('/')}/{resolved.relative_to(root.resolve()).as_posix()}"
    return _zarr(location, url, layer) or _precomputed(location, url)


def _zarr(location: Location, url: str, layer: ShownLayer) -> Source | None:
    """A group with multiscales."""
    node = read_node(location)
    if node is None or not node.multiscales:
        return None
    _, grid = find_array(node, layer.name)
    size, centre, _ = grid.in_nanometers(None, layer.name)
    z, y, x = (float(v) for v in np.subtract(centre, np.divide(size, 2)))
    return Source(f"zarr://{url}", (z, y, x), grid.axes)


def _precomputed(location: Location, url: str) -> Source | None:
    """A precomputed volume."""
    files = location.read((INFO_FILE,))
    if not files:
        return None
    scale = parse_json(files[INFO_FILE], location / INFO_FILE)["scales"][0]
    offset = scale.get("voxel_offset", (0, 0, 0))
    x, y, z = (float(o) * float(s) for o, s in zip(offset, scale["resolution"], strict=True))
    return Source(f"precomputed://{url}", (z, y, x), ("x", "y", "z"))


def _layers(layer: ShownLayer, source: Source) -> Iterator[tuple[str, neuroglancer.Layer]]:
    """Layers of Neuroglancer; of colours one for each, whose light adds up."""
    placed = _placed(layer, source)
    if layer.kind == SEGMENTS:
        yield layer.name, neuroglancer.SegmentationLayer(source=placed, selected_alpha=0.45)
    elif layer.kind == GREY or not any(k is not None for k in layer.channels):
        yield layer.name, neuroglancer.ImageLayer(source=placed, shader=layer.shader, opacity=1.0)
    else:
        for axis, channel in enumerate(layer.channels):
            if channel is not None:
                yield (
                    f"{layer.name} {'zyx'[axis]}",
                    neuroglancer.ImageLayer(
                        source=placed,
                        shader=CHANNEL_SHADER.format(colours=PURE[axis]),
                        local_position=[channel],
                        local_dimensions=neuroglancer.CoordinateSpace(
                            names=["c'"], units=[""], scales=[1]
                        ),
                        blend="additive",
                        opacity=1.0,
                    ),
                )


def _placed(layer: ShownLayer, source: Source) -> neuroglancer.LayerDataSource:
    """The source, moved to where the layer is where Neuroglancer would have it elsewhere."""
    metadata = layer.pyramid.metadata
    size = metadata.voxel_size_nm
    wanted = np.subtract(metadata.offset_nm, np.divide(size, 2))
    moved = np.subtract(wanted, source.corner_nm)
    if np.abs(moved).max() <= SAME_PLACE_NM:
        return neuroglancer.LayerDataSource(url=source.url)
    shift = dict(zip("zyx", np.divide(moved, size).tolist(), strict=True))
    scale = dict(zip("zyx", size, strict=True))
    names = [axis if axis in "zyx" else f"{axis}'" for axis in source.axes]
    spatial = [axis in "zyx" for axis in source.axes]
    matrix = np.eye(len(names), len(names) + 1)
    matrix[:, -1] = [shift.get(axis, 0.0) for axis in source.axes]
    output = neuroglancer.CoordinateSpace(
        names=names,
        units=["nm" if one else "" for one in spatial],
        scales=[scale.get(axis, 1.0) for axis in source.axes],
    )
    transform = neuroglancer.CoordinateSpaceTransform(output_dimensions=output, matrix=matrix)
    return neuroglancer.LayerDataSource(url=source.url, transform=transform)


def write_link(folder: Path, state: neuroglancer.ViewerState, viewer: str) -> str:
    """Write ``neuroglancer.json`` (the state) and ``neuroglancer.html`` (the link) into a folder.

    Returns:
        The link.
    """
    link = str(neuroglancer.to_url(state, prefix=f"{viewer.rstrip('/')}/"))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Neuroglancer</title>'
        f'<meta http-equiv="refresh" content="0; url={escape(link)}"></head>'
        f'<body><p><a href="{escape(link)}">Open in Neuroglancer</a></p></body></html>\n'
    )
    text = json.dumps(state.to_json(), indent=2) + "\n"
    write_atomically(folder / "neuroglancer.json", text.encode())
    write_atomically(folder / "neuroglancer.html", page.encode())
    return link
