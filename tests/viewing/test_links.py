import json
from pathlib import Path

import neuroglancer
import numpy as np
import pytest

from custom.errors import InputError
from custom.viewing.finished_output import find_outputs
from custom.viewing.layers import ShownLayer, layers_of
from custom.viewing.links import find_source, link_state, write_link
from custom.viewing.state import View
from tests.viewing import planted_output

BASE = "https://example.org/data/"


def layers(output: Path) -> list[ShownLayer]:
    datalist = output.parents[1] / "datalist.json"
    (found,) = find_outputs([str(output)], "", str(datalist))
    return layers_of(found)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_link_names_what_lies_in_the_served_folder(tmp_path: Path, version: str) -> None:
    output = planted_output.write(tmp_path, version)
    state, missing = link_state({"a": layers(output)}, View(), output.parent, BASE)
    urls = {layer.name: layer.source[0].url for layer in state.layers}
    assert (
        urls["segmentation"] == "zarr://https://example.org/data/planted.zarr/labels/segmentation"
    )
    assert urls["affinities y"] == "zarr://https://example.org/data/planted.zarr/affinities"
    assert missing == ["raw", "truth", "errors", "error sites"]
    channels = [layer.layer.to_json()["localPosition"] for layer in state.layers[:3]]
    assert channels == [[1], [2], [0]]
    above, missing = link_state({"a": layers(output)}, View(), tmp_path, BASE)
    urls = {layer.name: layer.source[0].url for layer in above.layers}
    assert urls["raw"] == "zarr://https://example.org/data/data.zarr/raw"
    assert urls["truth"] == "zarr://https://example.org/data/data.zarr/labels/cells"
    assert missing == ["errors", "error sites"]


def test_a_link_leads_back_to_its_state_and_is_kept_beside_the_output(tmp_path: Path) -> None:
    output = planted_output.write(tmp_path)
    state, _ = link_state({"a": layers(output)}, View(segments=()), output.parent, BASE)
    link = write_link(output.parent, state, "https://example.org/viewer")
    assert link.startswith("https://example.org/viewer/#!")
    assert neuroglancer.parse_url(link).to_json() == state.to_json()
    stored = json.loads((output.parent / "neuroglancer.json").read_text())
    assert stored == json.loads(json.dumps(state.to_json(), default=str))
    page = (output.parent / "neuroglancer.html").read_text()
    assert page.count("https://example.org/viewer/#!") == 2


def test_neuroglancer_finds_all_where_they_are_without_being_told(tmp_path: Path) -> None:
    output = planted_output.write(tmp_path)
    state, _ = link_state({"a": layers(output)}, View(position=(0, 0, 0)), tmp_path, BASE)
    for layer in state.layers:
        assert layer.source[0].transform is None
    nm = np.multiply(state.position[::-1], planted_output.SIZE)
    np.testing.assert_allclose(nm, planted_output.centre())  # OME-Zarr's position of voxel 0


def test_truth_that_states_no_position_is_moved_to_where_it_belongs(tmp_path: Path) -> None:
    output = planted_output.write(tmp_path)
    labels = tmp_path / "data.zarr" / "labels" / "cells" / ".zattrs"
    found = json.loads(labels.read_text())
    moved = [v + 1 for v in planted_output.centre(planted_output.LABELS_AT)]
    (truth,) = [layer for layer in layers(output) if layer.name == "truth"]
    found["multiscales"][0]["datasets"][0]["coordinateTransformations"][1]["translation"] = moved
    labels.write_text(json.dumps(found))  # after the layer was placed: as if placed by corners
    state, _ = link_state({"a": [layers_of_segmentation(output), truth]}, View(), tmp_path, BASE)
    matrix = np.asarray(state.layers["truth"].source[0].transform.matrix)
    np.testing.assert_allclose(matrix[:, :3], np.eye(3))
    np.testing.assert_allclose(matrix[:, 3] * planted_output.SIZE, [-1, -1, -1])


def layers_of_segmentation(output: Path) -> ShownLayer:
    (found,) = find_outputs([str(output)], "")
    return next(layer for layer in layers_of(found) if layer.name == "segmentation")


def test_a_precomputed_volume_is_linked_where_it_counts_from_its_corner(tmp_path: Path) -> None:
    output = planted_output.write(tmp_path)
    scale = {"key": "s", "size": [4, 4, 4], "resolution": [4, 6, 8], "voxel_offset": [1, 2, 3]}
    (tmp_path / "pre").mkdir()
    (tmp_path / "pre" / "info").write_text(json.dumps({"scales": [scale]}))
    layer = layers_of_segmentation(output)
    source = find_source(
        ShownLayer("raw", "grey", layer.pyramid, source=str(tmp_path / "pre")), tmp_path, BASE
    )
    assert source is not None
    assert source.url == "precomputed://https://example.org/data/pre"
    assert source.corner_nm == (24, 12, 4)


def test_what_a_viewer_on_the_web_cannot_read_is_left_out(tmp_path: Path) -> None:
    output = planted_output.write(tmp_path)
    layer = layers_of_segmentation(output)
    for source in (None, str(tmp_path / "x.h5" / "raw"), "n5://s3://bucket/x"):
        unread = ShownLayer("raw", "grey", layer.pyramid, source=source)
        assert find_source(unread, tmp_path, BASE) is None
    with pytest.raises(InputError, match="the segmentation does not lie in"):
        link_state({"a": [layer]}, View(), tmp_path / "data.zarr", BASE)
