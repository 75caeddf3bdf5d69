"""See outputs of inference in Neuroglancer, or render a picture of them.

From inside ``bundle/``: ``python -m scripts.view output``
"""

import logging
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import neuroglancer

from custom.errors import InputError
from custom.json_fields import hint
from custom.viewing.finished_output import find_outputs
from custom.viewing.layers import ShownLayer, layers_of
from custom.viewing.links import VIEWER, link_state, write_link
from custom.viewing.screenshot import find_browser, write_screenshot
from custom.viewing.state import View, viewer_state
from scripts.strict import strict

MOST_OUTPUTS = 6  # side by side
LAYERS = (
    "raw",
    "affinities",
    "probabilities",
    "lsds",
    "fragments",
    "segmentation",
    "truth",
    "errors",
    "all",
)


@strict
def view(
    *outputs: str,
    output_dir: str = "output",
    datalist: str | None = None,
    raw: str | None = None,
    truth: str | None = None,
    show: str | Sequence[str] | None = None,
    errors: bool = True,
    eval_dir: str | None = None,
    layout: str | None = None,
    position: Sequence[float] | None = None,
    zoom: float = 1.0,
    segments: int | Sequence[int] = (),
    bind: str = "127.0.0.1",
    port: int = 0,
    screenshot: str | None = None,
    size: Sequence[int] = (1600, 1000),
    timeout_s: float = 120.0,
    link: str | None = None,
    viewer: str = VIEWER,
) -> None:
    """Show raw, affinities, fragments, segmentation, truth and errors until Ctrl-C.

    Only what is looked at is read. Red, green and blue are the affinities along z, y and x.

    Args:
        outputs: <id>.zarr, folders of such, or ids; several are shown side by side. Without any
            all of output_dir.
        output_dir: where ids are looked for, "output" by default.
        datalist: names raw and truth; without it the datalist that inference was run with.
        raw: path or URL of the raw volume, instead of the datalist's.
        truth: path or URL of labels, instead of the datalist's.
        show: layers that are visible at first: raw, affinities, lsds, fragments, segmentation,
            truth, errors, with commas, or all; "raw,segmentation" by default.
        errors: compare with the truth; False starts sooner where volumes are large.
        eval_dir: an evaluation of these outputs, whose lists spare comparing again; without it
            "eval" beside the outputs' folder.
        layout: 4panel, xy, xz, yz, 3d, xy-3d, or compare: a panel for every layer.
        position: voxel z,y,x of the segmentation that is in the middle.
        zoom: 1 shows all, 2 is twice as large.
        segments: ids to choose, with commas: the others fade, and 3d shows these.
        bind: address to serve on; 0.0.0.0 lets other machines look, too.
        port: to serve on; 0 is any that is free.
        screenshot: render a PNG to this path, without a window, and end.
        size: width,height of the screenshot in pixels.
        timeout_s: seconds until a screenshot is given up.
        link: URL that the folder of the outputs is served at; print a link to a public viewer,
            write it to neuroglancer.html and neuroglancer.json beside them, and end.
        viewer: URL of that viewer.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    asked = View(
        layout,
        None if position is None else _numbers(position, 3, "--position", "z,y,x"),
        float(zoom),
        [segments] if isinstance(segments, int) else list(segments),
        _pixels(size),
    )
    if screenshot is not None:
        find_browser()
    found = find_outputs([str(one) for one in outputs], output_dir, datalist, raw, truth)
    if len(found) > MOST_OUTPUTS:
        raise InputError(
            f"there are {len(found)} outputs, {MOST_OUTPUTS} fit side by side: name some of "
            f"{', '.join(output.id for output in found)}"
        )
    wanted = _shown(show)
    lists = None if eval_dir is None else Path(eval_dir).expanduser().absolute()
    layers = {
        name: layers_of(output, wanted, errors and link is None, lists)
        for name, output in zip(_names([o.path for o in found]), found, strict=True)
    }
    if link is not None:
        _link(layers, asked, found[0].path.parent, link, viewer)
        return
    shown = serve(layers, asked, bind, port)
    try:
        if screenshot is not None:
            path = Path(screenshot).expanduser().absolute()
            write_screenshot(shown, path, asked.panels, float(timeout_s))
            print(f"Screenshot: {path}")
        else:
            _stay(shown)
    finally:
        neuroglancer.stop()


def serve(
    layers: dict[str, list[ShownLayer]], asked: View, bind: str, port: int
) -> neuroglancer.Viewer:
    """A viewer whose server runs.

    Raises:
        InputError: nothing can be served at this address.
    """
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    try:
        socket.create_server((bind, port), family=family).close()
    except (OSError, OverflowError, TypeError) as error:
        raise InputError(
            f"cannot serve on {bind}, port {port}: {error}; choose another --port (0 takes any "
            f"that is free) or --bind"
        ) from error
    neuroglancer.set_server_bind_address(bind, port)
    shown = neuroglancer.Viewer()
    shown.set_state(viewer_state(layers, asked))
    return shown


def _stay(shown: neuroglancer.Viewer) -> None:
    """Print the link and wait for Ctrl-C."""
    print(f"\n{shown.get_viewer_url()}\n\nOpen it in a browser; Ctrl-C ends.", flush=True)
    try:
        wait()
    except KeyboardInterrupt:
        print()


def wait() -> None:
    """For ever."""
    threading.Event().wait()


def _link(
    layers: dict[str, list[ShownLayer]], asked: View, root: Path, link: str, viewer: str
) -> None:
    """Print the link, and write it."""
    for url, option in ((link, "--link"), (viewer, "--viewer")):
        if not str(url).startswith(("http://", "https://")):
            raise InputError(f"{option} must be a URL that begins with http:// or https://")
    state, missing = link_state(layers, asked, root, link)
    print(write_link(root, state, viewer))
    print(f"\nAlso in {root / 'neuroglancer.html'} and neuroglancer.json.")
    if missing:
        print(
            f"Not in it, since they lie elsewhere or are computed here: {', '.join(missing)}. "
            "--raw and --truth take URLs."
        )


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of outputs; those of equal ids with their folders."""
    ids = [path.name.removesuffix(".zarr") for path in paths]
    return [
        str(path.parent.name + "/" + id_) if ids.count(id_) > 1 else id_
        for path, id_ in zip(paths, ids, strict=True)
    ]


def _shown(show: str | Sequence[str] | None) -> Sequence[str] | None:
    """Names of layers."""
    if show is None:
        return None
    words = [str(word).strip() for word in (show.split(",") if isinstance(show, str) else show)]
    for word in words:
        if word not in LAYERS:
            raise InputError(f"--show knows no layer '{word}'{hint(word, LAYERS)}")
    return LAYERS if "all" in words else words


def _numbers(value: Any, count: int, option: str, example: str) -> Any:
    """So many numbers."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    if len(given) != count or not all(type(one) in (int, float) for one in given):
        raise InputError(f"{option} takes {example}, got {value!r}")
    return tuple(float(one) for one in given)


def _pixels(size: Any) -> tuple[int, int]:
    width, height = _numbers(size, 2, "--size", "width,height")
    if min(width, height) < 64 or max(width, height) > 8192:
        raise InputError(f"--size must be from 64 to 8192 pixels, got {size!r}")
    return int(width), int(height)


if __name__ == "__main__":
    fire.Fire(view)
