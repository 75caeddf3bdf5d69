"""A picture of what the viewer shows, by a browser without a window."""

import logging
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import neuroglancer

from custom.errors import InputError
from custom.files import write_atomically

logger = logging.getLogger(__name__)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
    "--remote-debugging-port=0",
    "--hide-scrollbars",
)
GRACE_S = 10.0  # for the browser to end


def find_browser() -> str:
    """Chromium or Chrome on the PATH.

    Raises:
        InputError: there is none.
    """
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise InputError(
        f"a screenshot takes Chromium or Chrome, and there is none on the PATH "
        f"({BROWSERS[0]}, {BROWSERS[2]}); install it, or open the link that scripts.view prints "
        f"without --screenshot"
    )


def write_screenshot(
    viewer: neuroglancer.Viewer, path: Path, size: tuple[int, int], timeout_s: float
) -> None:
    """Write what a viewer shows as a PNG, when all that is in view is loaded.

    Args:
        viewer: whose server is running.
        path: of the PNG.
        size: width and height in pixels.
        timeout_s: until then.

    Raises:
        InputError: no browser, or it has not finished in time.
    """
    with browser(viewer.get_viewer_url(), size):
        write_atomically(path, screenshot(viewer, size, timeout_s))


def screenshot(viewer: neuroglancer.Viewer, size: tuple[int, int], timeout_s: float) -> bytes:
    """The PNG, from a browser that shows the viewer already."""
    with viewer.config_state.txn() as config:
        config.show_ui_controls = False
        config.show_panel_borders = False
        config.viewer_size = list(size)
    done = threading.Event()
    reply: list[Any] = []
    progress = ["the browser did not answer"]

    def finish(action: Any) -> None:
        reply.append(action.screenshot)
        done.set()

    def follow(statistics: Any) -> None:
        total = statistics.total
        progress[0] = (
            f"{total.visible_chunks_gpu_memory} of {total.visible_chunks_total} pieces loaded"
        )
        logger.debug("screenshot: %s", progress[0])

    viewer.async_screenshot(finish, statistics_callback=follow)
    if not done.wait(timeout_s):
        raise InputError(
            f"the screenshot was not finished within {timeout_s:g} s ({progress[0]}); give "
            f"--timeout_s more, or show less"
        )
    image: bytes = reply[0].image
    return image


@contextmanager
def browser(url: str, size: tuple[int, int]) -> Iterator[None]:
    """A browser without a window that shows a page, as long as the block lasts."""
    program = find_browser()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        process = subprocess.Popen(
            [program, *OPTIONS, *options, url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
