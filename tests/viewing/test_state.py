import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from funlib.geometry import Roi
from neuroglancer.local_volume import MeshesNotSupportedForVolume
from numpy.typing import NDArray

from custom.errors import InputError
from custom.viewing.finished_output import find_outputs
from custom.viewing.layers import ShownLayer, axis_channels, grey_window, layers_of
from custom.viewing.pyramid import Level, Pyramid
from custom.viewing.served import IMAGE, SEGMENTATION, ServedVolume, shown_type
from custom.viewing.state import LAYOUTS, View, viewer_state
from custom.volumes import VolumeMetadata
from tests.viewing import planted_output


@pytest.fixture(scope="module", params=["0.4", "0.5"])
def layers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All layers of the planted output, whose object was cut in two."""
    folder = tmp_path_factory.mktemp("planted")
    cut = np.zeros(planted_output.SHAPE, np.uint64)
    cut[planted_output.OBJECT] = 70
    cut[:, :, 17:][cut[:, :, 17:] != 0] = 71
    output = planted_output.write(folder, request.param, cut)
    (found,) = find_outputs([str(output)], "output", str(folder / "datalist.json"))
    return layers_of(found, ("raw", "affinities", "segmentation", "truth", "errors"))


def volumes(layers: list[ShownLayer], view: View | None = None) -> dict[str, ServedVolume]:
    """What is served for every layer."""
    state = viewer_state({"planted": layers}, view or View())
    return {layer.name: layer.source[0].url for layer in state.layers if layer.type != "annotation"}


def chunk(volume: ServedVolume, factor: int = 1) -> NDArray[Any]:
    """All of a volume at one resolution, as a browser gets it."""
    factors = [1] * (volume.rank - 3) + [factor] * 3
    end = [-(-n // f) for n, f in zip(volume.shape, factors, strict=True)]
    start = np.zeros(volume.rank, np.int64)
    content, _ = volume.get_encoded_subvolume(
        "npz", start, np.array(end), ",".join(map(str, factors))
    )
    values: NDArray[Any] = np.load(io.BytesIO(zlib.decompress(content)))
    return values


def extent(volume: ServedVolume, least: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Corners of what is brighter, zyx, in nm as the viewer places it."""
    values = chunk(volume)
    bright = np.argwhere((values if values.ndim == 3 else values[0]) > least)
    size = np.array(volume.dimensions.scales)[-3:] * 1e9
    place = volume.voxel_offset[-3:]
    return (bright.min(0) + place) * size, (bright.max(0) + 1 + place) * size


def test_a_planted_object_is_at_the_same_place_in_every_layer(layers: list[ShownLayer]) -> None:
    begin, end = planted_output.object_nm()
    shift = np.divide(planted_output.SIZE, 2)  # the viewer's 0 is the corner of a voxel around 0
    found = volumes(layers)
    for name, least in [("raw", 100), ("affinities", 0), ("segmentation", 0), ("truth", 0)]:
        low, high = extent(found[name], least)
        np.testing.assert_allclose(low, begin + shift, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(high, end + shift, atol=1e-6, err_msg=name)
    cut = extent(found["errors"], 0)
    x = np.multiply(17 - planted_output.OBJECT[2].start, planted_output.SIZE[2])
    np.testing.assert_allclose(cut[0], begin + shift + [0, 0, x], atol=1e-6)
    np.testing.assert_allclose(cut[1], end + shift, atol=1e-6)


def test_errors_are_not_lost_from_afar(layers: list[ShownLayer]) -> None:
    errors = volumes(layers)["errors"]
    assert set(np.unique(chunk(errors))) == set(np.unique(chunk(errors, 4))) == {0, 1}


def test_voxels_of_an_output_at_the_origin_have_whole_numbers_in_the_viewer() -> None:
    level = Level((1, 1, 1), (4, 5, 6), lambda roi: np.zeros(tuple(roi.shape), np.uint64))
    pyramid = Pyramid(VolumeMetadata((4, 5, 6), "uint64", (40.0, 8.0, 7.5)), (level,))
    layer = ShownLayer("segmentation", "segments", pyramid)
    state = viewer_state({"a": [layer]}, View(position=(1, 2, 3)))
    assert list(state.position) == [3.5, 2.5, 1.5]
    assert state.layers[0].source[0].url.voxel_offset.tolist() == [0, 0, 0]
    assert state.dimensions.names == ("x", "y", "z")
    assert [round(s * 1e9, 6) for s in state.dimensions.scales] == [7.5, 8.0, 40.0]


def test_colours_are_the_shortest_affinities_along_z_y_and_x(layers: list[ShownLayer]) -> None:
    assert axis_channels(planted_output.OFFSETS) == {0: 1, 1: 2, 2: 0}
    values = chunk(volumes(layers)["affinities"])
    inside = tuple(s.start for s in planted_output.OBJECT)
    assert values[(slice(None), *inside)].tolist() == [120, 180, 60]


def test_affinities_in_2d_have_no_red(tmp_path: Path) -> None:
    output = planted_output.write(tmp_path)
    for group in (output / "affinities", output / "affinities" / "s0"):
        attributes = json.loads((group / ".zattrs").read_text())
        attributes["offsets"] = [[0, 1, 0], [0, 0, 1], [0, 5, 0], [0, 0, 5]]
        (group / ".zattrs").write_text(json.dumps(attributes))
    (found,) = find_outputs([str(output)], "", str(tmp_path / "datalist.json"))
    (layer,) = [one for one in layers_of(found) if one.name == "affinities"]
    assert layer.channels == (None, 0, 1)
    assert "vec3(0.0, toNormalized(getDataValue(0)), toNormalized(getDataValue(1)))" in layer.shader


def test_only_what_is_looked_at_is_read() -> None:
    asked: list[Roi] = []

    def read(roi: Roi) -> NDArray[np.uint8]:
        asked.append(roi)
        return np.zeros(tuple(roi.shape), np.uint8)

    shape = (100_000, 200_000, 300_000)  # more than there is memory for
    levels = (Level((1, 1, 1), shape, read), Level((64, 64, 64), (1563, 3125, 4688), read))
    pyramid = Pyramid(VolumeMetadata(shape, "uint8", (8.0, 8.0, 8.0)), levels)
    volume = ServedVolume(pyramid, IMAGE, (0, 0, 0))
    start = np.array([5, 6, 7])
    volume.get_encoded_subvolume("npz", start, np.add(start, (1, 64, 64)), "1,1,1")
    volume.get_encoded_subvolume("npz", start, np.add(start, (1, 64, 64)), "128,128,128")
    assert [tuple(roi.shape) for roi in asked] == [(1, 64, 64), (2, 128, 128)]
    assert volume.info()["maxDownsampling"] is None  # zoomed out, too
    with pytest.raises(ValueError, match="Out of bounds"):
        volume.get_encoded_subvolume("npz", start, np.add(start, (1, 64, 300_000)), "1,1,1")


def test_meshes_come_from_a_level_that_is_small_enough_and_lie_where_the_object_is() -> None:
    labels = np.zeros((16, 24, 32), np.uint64)
    labels[4:12, 6:18, 10:20] = 5

    def level(step: int) -> Level:
        held = labels[::step, ::step, ::step]
        return Level((step,) * 3, held.shape, lambda roi: held[roi.to_slices()])

    metadata = VolumeMetadata(labels.shape, "uint64", (40.0, 8.0, 4.0))
    both = Pyramid(metadata, (level(1), level(2)))
    for pyramid in (both, replace(both, levels=(level(2),))):
        content = ServedVolume(pyramid, SEGMENTATION, (0, 0, 0)).get_object_mesh(5)
        count = int(np.frombuffer(content[:4], np.uint32)[0])
        vertices = np.frombuffer(content[4 : 4 + 12 * count], np.float32).reshape(-1, 3) * 1e9
        np.testing.assert_allclose(vertices.min(0), np.multiply((4, 6, 10), (40, 8, 4)), atol=1e-3)
        np.testing.assert_allclose(
            vertices.max(0), np.multiply((12, 18, 20), (40, 8, 4)), atol=1e-3
        )
    with pytest.raises(MeshesNotSupportedForVolume):
        ServedVolume(both, IMAGE, (0, 0, 0)).get_object_mesh(5)
    huge = replace(both, levels=(replace(level(1), shape=(1000, 1000, 1000)),))
    with pytest.raises(MeshesNotSupportedForVolume):
        ServedVolume(huge, SEGMENTATION, (0, 0, 0)).get_object_mesh(5)


@pytest.mark.parametrize(
    ("dtype", "image", "labels"),
    [
        ("uint8", "uint8", "uint8"),
        ("bool", "uint8", "uint64"),
        ("int64", "float32", "uint64"),
        ("float64", "float32", "uint64"),
        ("int16", "int16", "uint64"),
        ("uint64", "float32", "uint64"),
    ],
)
def test_the_viewer_gets_types_that_it_knows(dtype: str, image: str, labels: str) -> None:
    assert shown_type(dtype, IMAGE) == image
    assert shown_type(dtype, SEGMENTATION) == labels


def test_contrast_is_the_datalists_window_or_measured(
    layers: list[ShownLayer], tmp_path: Path
) -> None:
    (raw,) = [layer for layer in layers if layer.name == "raw"]
    assert "range=[50, 200]" in raw.shader
    output = planted_output.write(tmp_path)
    datalist = planted_output.write_datalist(tmp_path, intensity_window=[20, 90])
    (found,) = find_outputs([str(output)], "", str(datalist))
    assert "range=[20, 90]" in layers_of(found)[0].shader
    constant = Level((1, 1, 1), (2, 2, 2), lambda roi: np.full((2, 2, 2), np.nan, np.float32))
    metadata = VolumeMetadata((2, 2, 2), "float32", (1.0, 1.0, 1.0))
    assert grey_window(Pyramid(metadata, (constant,))) == (0, 1)


def names(state: Any) -> Mapping[str, bool]:
    """Layers and whether they are visible at first."""
    return {layer.name: layer.visible for layer in state.layers}


def test_outputs_are_side_by_side_under_their_own_names(layers: list[ShownLayer]) -> None:
    state = viewer_state({"a": layers, "b": layers}, View())
    assert {"a: raw", "b: raw", "a: segmentation", "b: errors"} <= set(names(state))
    groups = state.layout.to_json()["children"]
    assert [group["layout"] for group in groups] == ["xy", "xy"]
    assert all(name.startswith("b: ") for name in groups[1]["layers"])


def test_compare_has_a_panel_over_raw_for_every_layer(layers: list[ShownLayer]) -> None:
    hidden = [replace(layer, visible=False) for layer in layers]
    state = viewer_state({"a": hidden}, View(layout="compare"))
    (row,) = state.layout.to_json()["children"]
    assert [group["layers"][-1] for group in row["children"]] == [
        "raw", "affinities", "segmentation", "truth", "errors",
    ]  # fmt: skip
    assert all(group["layers"][0] == "raw" for group in row["children"])
    assert all(names(state)[group["layers"][-1]] for group in row["children"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_shows_all_of_the_volume_and_zoom_enlarges_it(
    layers: list[ShownLayer], layout: str
) -> None:
    once = viewer_state({"a": layers}, View(layout=layout, panels=(800, 600)))
    twice = viewer_state({"a": layers}, View(layout=layout, panels=(800, 600), zoom=2))
    assert once.cross_section_scale == pytest.approx(2 * twice.cross_section_scale)
    pixel_nm = once.cross_section_scale * min(planted_output.SIZE)
    width, height = 800, 600
    size = np.multiply(planted_output.SHAPE, planted_output.SIZE)
    if layout in ("xy", "compare"):
        assert size[1] <= pixel_nm * height
        assert size[2] <= pixel_nm * width
    else:
        assert size.min() <= pixel_nm * height
    assert once.to_json()["position"] == twice.to_json()["position"]


def test_chosen_segments_are_in_the_state(layers: list[ShownLayer]) -> None:
    state = viewer_state({"a": layers}, View(segments=(70, 71)))
    assert set(state.layers["segmentation"].segments) == {70, 71}


def test_error_sites_lie_in_the_cut_off_piece(layers: list[ShownLayer]) -> None:
    state = viewer_state({"a": layers}, View())
    (point,) = state.layers["error sites"].annotations
    x, y, z = point.point
    begin, _ = planted_output.object_nm()
    voxel = np.multiply((z, y, x), planted_output.SIZE) - np.divide(planted_output.SIZE, 2) - begin
    voxel = voxel / planted_output.SIZE + [s.start for s in planted_output.OBJECT]
    assert 17 <= voxel[2] < planted_output.OBJECT[2].stop
    assert "split" in point.description


def test_an_object_and_its_main_segment_have_one_colour(layers: list[ShownLayer]) -> None:
    colours = {layer.name: dict(layer.colours) for layer in layers}
    assert set(colours["truth"]) == {7}
    assert colours["segmentation"] == {70: colours["truth"][7]}  # 71 is a piece split off
    state = viewer_state({"a": layers}, View())
    assert state.layers["truth"].segment_colors[7] == colours["truth"][7]


def test_what_is_compared_is_in_the_middle_unless_a_voxel_is_chosen(
    layers: list[ShownLayer],
) -> None:
    offset = np.divide(planted_output.centre(), planted_output.SIZE)
    state = viewer_state({"a": layers}, View())
    first, size = planted_output.LABELS_AT, planted_output.LABELS_SHAPE
    expected = np.add(first, np.subtract(size, 1) / 2) + 0.5 + offset
    np.testing.assert_allclose(state.position[::-1], expected)
    (errors,) = [layer for layer in layers if layer.name == "errors"]
    moved = replace(errors.pyramid.metadata, offset_nm=(0, 0, 0))
    others = [layer for layer in layers if layer is not errors]
    of_a_part = replace(errors, pyramid=replace(errors.pyramid, metadata=moved))
    state = viewer_state({"a": [*others, of_a_part]}, View())
    np.testing.assert_allclose(state.position[::-1], np.subtract(size, 1) / 2 + 0.5)
    state = viewer_state({"a": layers}, View(position=(1, 2, 3)))
    np.testing.assert_allclose(state.position[::-1], np.array([1.5, 2.5, 3.5]) + offset)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layout": "4panels"}, "did you mean '4panel'"),
        ({"zoom": 0}, "zoom must be above 0"),
        ({"zoom": float("nan")}, "zoom must be above 0"),
    ],
)
def test_a_view_that_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        View(**changes)
