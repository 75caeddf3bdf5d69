"""A web server on 127.0.0.1 for files of a folder, which can be told to misbehave."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


@dataclass
class Served:
    """What a server was asked, and how it answers.

    Args:
        url: its address.
        asked: every path, in order.
        cut: path whose content breaks off in the middle.
        status: answers other than 200, by path.
    """

    url: str = ""
    asked: list[str] = field(default_factory=list)
    cut: str | None = None
    status: dict[str, int] = field(default_factory=dict)


class Handler(SimpleHTTPRequestHandler):
    """Answers from a folder."""

    def __init__(self, *args: object, served: Served, directory: str) -> None:
        self.served = served
        super().__init__(*args, directory=directory)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        self.served.asked.append(path)
        if path in self.served.status:
            self.send_error(self.served.status[path])
        elif path == self.served.cut:
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """A server for as long as the block lasts."""
    served = Served()
    handler = partial(Handler, served=served, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
