"""A worker process: python -m custom.blockwise.worker <task.json>."""

import json
import sys
from pathlib import Path

from custom.arenas import share_arenas
from custom.blockwise.tracked import described


def main(task_file: str) -> None:
    """Process blocks until there are no more."""
    share_arenas()
    described(json.loads(Path(task_file).read_text())).process_blocks()


if __name__ == "__main__":
    main(*sys.argv[1:])
