"""A worker process that is a job of a cluster: python -m custom.blockwise.job <task.json>."""

import sys
from pathlib import Path

from custom.blockwise import worker
from custom.blockwise.connection import refuse_unreachable
from custom.errors import InputError


def main(task_file: str) -> None:
    """Process blocks until there are no more, if this machine can."""
    try:
        refuse_unreachable(Path(task_file))
    except InputError as error:
        raise SystemExit(str(error)) from None
    worker.main(task_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
