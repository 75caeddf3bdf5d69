"""The command, and real pictures where there is a browser."""

import io
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import neuroglancer
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scripts.view import serve, view

from custom.errors import InputError
from custom.viewing.finished_output import find_outputs
from custom.viewing.layers import layers_of
from custom.viewing.screenshot import BROWSERS, browser, screenshot
from custom.viewing.state import View
from tests.viewing import planted_output

SIZE = (420, 300)
TIMEOUT_S = 300.0


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted output, with its object cut in two; not to be changed."""
    cut = np.zeros(planted_output.SHAPE, np.uint64)
    cut[planted_output.OBJECT] = 70
    cut[:, :, 17:][cut[:, :, 17:] != 0] = 71
    return planted_output.write(tmp_path_factory.mktemp("planted"), segments=cut)


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    """No server is left."""
    yield
    neuroglancer.stop()


def sentence(*given: Any, **options: Any) -> str:
    """What the command ends with."""
    with pytest.raises(SystemExit) as ended:
        view(*given, **options)
    text = str(ended.value)
    assert "\n" not in text
    return text


def test_mistakes_end_in_one_sentence(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = str(output)
    assert "takes z,y,x, got 3" in sentence(given, position=3)
    assert "must be from 64 to 8192" in sentence(given, size=(10, 100))
    assert "did you mean 'truth'" in sentence(given, show="raw,truht")
    assert "did you mean '4panel'" in sentence(given, layout="4panels")
    assert "must be a URL" in sentence(given, link="example.org")
    assert "no option --zooom" in sentence(given, zooom=2)
    assert "does not exist" in sentence(given, raw="/gone/raw.h5/raw")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "takes Chromium or Chrome, and there is none" in sentence(given, screenshot="x.png")


def test_a_port_in_use_ends_in_a_sentence(output: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        said = sentence(str(output), port=port)
    assert f"cannot serve on 127.0.0.1, port {port}" in said
    assert "--port" in said
    assert "--bind" in sentence(str(output), bind="192.0.2.1")


def test_too_many_outputs_are_refused_by_name(output: Path, tmp_path: Path) -> None:
    for number in range(7):
        shutil.copytree(output, tmp_path / f"cell{number}.zarr")
    assert "7 outputs, 6 fit side by side: name some of cell0, cell1" in sentence(str(tmp_path))


def test_it_serves_on_this_machine_alone_until_it_is_interrupted(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scripts.view.wait", interrupted)
    view(str(output))
    assert "http://127.0.0.1:" in capsys.readouterr().out
    assert not neuroglancer.server.is_server_running()


def test_a_link_is_printed_and_written(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(output, tmp_path / "output" / "planted.zarr")
    view(str(copy), raw=str(output.parents[1] / "data.zarr" / "raw"), link="https://example.org/x")
    said = capsys.readouterr().out
    assert said.startswith("https://neuroglancer-demo.appspot.com/#!")
    assert "Not in it, since they lie elsewhere or are computed here: raw" in said
    assert (copy.parent / "neuroglancer.html").exists()
    assert not neuroglancer.server.is_server_running()


def test_a_screenshot_that_takes_too_long_is_given_up(output: Path) -> None:
    (found,) = find_outputs([str(output)], "")
    shown = serve({"a": layers_of(found)}, View(), "127.0.0.1", 0)
    with pytest.raises(InputError, match=r"not finished within 0.1 s \(the browser did not answer"):
        screenshot(shown, SIZE, 0.1)  # there is no browser


@pytest.mark.slow
def test_a_real_browser_shows_the_layers_in_register_and_selects_a_segment(output: Path) -> None:
    if not any(shutil.which(name) for name in BROWSERS):
        pytest.skip("there is no Chromium or Chrome on the PATH")
    datalist = str(output.parents[1] / "datalist.json")
    (found,) = find_outputs([str(output)], "", datalist)
    layers = layers_of(found)
    middle = tuple((s.start + s.stop - 1) / 2 for s in planted_output.OBJECT)
    asked = View(layout="xy", position=middle, panels=SIZE)
    shown = serve({"a": layers}, asked, "127.0.0.1", 0)
    with browser(shown.get_viewer_url(), SIZE):
        pictures = {name: picture(shown, name) for name in ("raw", "segmentation", "truth")}
        with shown.txn() as state:
            state.layers["segmentation"].segments = {71}
        picture(shown, "segmentation")  # may be of the moment before
        chosen = picture(shown, "segmentation")
    grey = pictures["raw"]
    assert len(np.unique(grey.reshape(-1, 3), axis=0)) >= 2
    assert (grey[..., 0] == grey[..., 2]).all()
    bright, painted = (box(p.max(-1) > 60) for p in (grey, pictures["segmentation"]))
    np.testing.assert_allclose(painted, bright, atol=1.01)  # pixels
    np.testing.assert_allclose(box(pictures["truth"].max(-1) > 60), bright, atol=1.01)
    sides = [s.stop - s.start for s in planted_output.OBJECT[1:]]
    pixel_nm = shown.state.cross_section_scale * min(planted_output.SIZE)
    expected = np.multiply(sides, planted_output.SIZE[1:]) / pixel_nm
    np.testing.assert_allclose(bright[1] - bright[0], expected, atol=2)
    np.testing.assert_allclose(np.mean(bright, axis=0), np.divide(SIZE[::-1], 2), atol=2)
    before = in_halves(pictures["segmentation"])
    after = in_halves(chosen)
    assert (before[0] != before[1]).any()
    np.testing.assert_array_equal(after[1], before[1])  # the chosen one is as it was
    assert after[0].max() == 0 < before[0].max()  # the other is gone


def picture(shown: neuroglancer.Viewer, name: str) -> NDArray[np.uint8]:
    """The screenshot of one layer alone, without the bar of the scale."""
    with shown.txn() as state:
        state.show_scale_bar = False
        for layer in state.layers:
            layer.visible = layer.name == name
            if layer.type == "segmentation":
                layer.layer.selected_alpha = 1.0
                layer.layer.not_selected_alpha = 0.0
    image = Image.open(io.BytesIO(screenshot(shown, SIZE, TIMEOUT_S))).convert("RGB")
    return np.asarray(image)


def box(bright: NDArray[np.bool_]) -> NDArray[np.intp]:
    """First row and column, and those after the last."""
    found = np.argwhere(bright)
    assert found.size, "there is something to be seen"
    return np.stack([found.min(0), found.max(0) + 1])


def in_halves(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Colours left and right of the cut through the object, which is right of its middle."""
    height, width = image.shape[:2]
    return image[height // 2, width // 2], image[height // 2, width // 2 + 40]
