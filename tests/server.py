"""A web server on 127.0.0.1 for files of a folder, which can be told to misbehave."""

import time
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
        gone: nothing is there any more.
        stalled: contents stand still in the middle, until this is false again.
    """

    url: str = ""
    asked: list[str] = field(default_factory=list)
    cut: str | None = None
    status: dict[str, int] = field(default_factory=dict)
    gone: bool = False
    stalled: bool = False


class Handler(SimpleHTTPRequestHandler):
    """Answers from a folder."""

    def __init__(self, *args: object, served: Served, directory: str) -> None:
        self.served = served
        super().__init__(*args, directory=directory)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        self.served.asked.append(path)
        if path in self.served.status or self.served.gone:
            self.send_error(self.served.status.get(path, 404))
        elif path == self.served.cut or self.served.stalled:
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            while self.served.stalled:
                time.sleep(0.05)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


class Server(ThreadingHTTPServer):
    """Takes as many connections at once as TensorStore opens; the rest would wait for seconds."""

    request_queue_size = 128


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """A server for as long as the block lasts."""
    served = Served()
    handler = partial(Handler, served=served, directory=str(folder))
    with Server(("127.0.0.1", 0), handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield served
        finally:
            served.stalled = False
            server.shutdown()
            thread.join()
