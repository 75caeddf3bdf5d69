"""A worker as its server's client: the blocks that it is given."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import daisy
from daisy.messages import ClientException
from daisy.tcp.exceptions import NotConnected, StreamClosedError

from custom.blockwise.records import EndOfRunError, ProcessBlock, told

POLL_S = 0.5


class WorkerError(RuntimeError):
    """What a worker says to its server when it cannot work."""


def process_served_blocks(process: ProcessBlock) -> None:
    """Process the blocks that the server gives, until there are no more.

    When the server ends amid a block, so does this process, at once: another server may be giving
    the block to another worker.

    Args:
        process: processes a block, and marks it as done.
    """
    client, busy = daisy.Client(), threading.Event()
    with ending_with_server(client, busy):
        while True:
            try:
                with client.acquire_block() as block:
                    if block is None:
                        return
                    busy.set()
                    try:
                        process(block)
                    finally:
                        busy.clear()
            except (NotConnected, StreamClosedError):  # the server has ended between two blocks
                return


def tell_failure(error: Exception) -> None:
    """Tell the server why this worker cannot work; where it cannot be reached, nobody.

    Args:
        error: what has happened; an ``EndOfRunError`` ends the run.
    """
    said = error if isinstance(error, EndOfRunError) else WorkerError(told(error))
    try:
        client = daisy.Client()
        client.tcp_client.send_message(ClientException(said, client.context))
        client.tcp_client.disconnect()
    except (KeyError, OSError, NotConnected, StreamClosedError):
        return


@contextmanager
def ending_with_server(client: daisy.Client, busy: threading.Event) -> Iterator[None]:
    """End the process when the connection breaks while there is a block.

    Args:
        client: has the connection.
        busy: set while there is one.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            if busy.is_set() and not client.tcp_client.connected():
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
