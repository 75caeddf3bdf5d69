"""The process of daisy's server: python -m custom.blockwise.master <state_dir>.

It is one of its own because daisy forks to start workers, and a process that has opened TensorStore
must not be forked.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from custom.blockwise.runs import RESULT_FILE, TASKS_FILE, serve
from custom.blockwise.tracked import described
from custom.files import write_atomically


def main(state_dir: str) -> None:
    """Run the tasks that ``in_processes`` described."""
    folder = Path(state_dir)
    tasks = [described(entry) for entry in json.loads((folder / TASKS_FILE).read_text())]
    outcomes = [asdict(outcome) for outcome in serve(tasks, folder)]
    write_atomically(folder / RESULT_FILE, json.dumps(outcomes, indent=1).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
