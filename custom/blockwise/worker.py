"""A worker process: python -m custom.blockwise.worker <task.json>."""

import json
import logging
import sys
import traceback
from pathlib import Path

from custom.arenas import share_arenas
from custom.blockwise.lifelines import end_with_starter
from custom.errors import InputError


def main(task_file: str) -> None:
    """Process blocks until there are no more."""
    end_with_starter()
    share_arenas()
    logging.basicConfig(level=logging.WARNING)  # before volara, which would set it to INFO
    from custom.blockwise.clients import tell_failure
    from custom.blockwise.presence import present
    from custom.blockwise.tracked import described

    try:
        task = described(json.loads(Path(task_file).read_text()))
        with present(task.state_dir):
            task.process_blocks()
    except Exception as error:  # of any kind: the server counts, and says it
        tell_failure(error)
        said = str(error) if isinstance(error, InputError) else traceback.format_exc()
        raise SystemExit(said) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
