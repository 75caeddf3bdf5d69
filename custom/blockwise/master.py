"""The process of daisy's server: python -m custom.blockwise.master <state_dir> <parent>.

It is one of its own because daisy forks to start workers, and a process that has opened TensorStore
must not be forked. It ends, with its workers, at SIGTERM and when its parent has ended.
"""

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from custom.blockwise.lifelines import when_parent_ends

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
TASKS_FILE = "tasks.json"  # what it is to run


def main(state_dir: str, parent: str) -> None:
    """Run the tasks that ``in_processes`` described; say the outcome on the standard output."""
    stop = threading.Event()
    _stop_at_sigterm(stop)
    when_parent_ends(int(parent), stop.set)
    logging.basicConfig(level=logging.WARNING, format=LINE)  # before volara, which says INFO
    logging.getLogger("custom").setLevel(logging.INFO)
    logging.getLogger("daisy").setLevel(logging.CRITICAL)  # we say what is worth saying
    multiprocessing.set_start_method("fork")
    from custom.blockwise.presence import present
    from custom.blockwise.serving import serve
    from custom.blockwise.tracked import described
    from custom.errors import InputError

    folder = Path(state_dir)
    tasks = [described(entry) for entry in json.loads((folder / TASKS_FILE).read_text())]
    answer: dict[str, Any]
    try:
        with present(folder):
            answer = {"outcomes": [asdict(outcome) for outcome in serve(tasks, stop)]}
    except InputError as mistake:
        answer = {"mistake": str(mistake)}
    sys.stdout.write(json.dumps(answer) + "\n")


def _stop_at_sigterm(stop: threading.Event) -> None:
    server = os.getpid()

    def notice(number: int, frame: FrameType | None) -> None:
        if os.getpid() != server:  # a process that has just been forked, and has no handler yet
            os._exit(1)
        stop.set()

    signal.signal(signal.SIGTERM, notice)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main(*sys.argv[1:])
