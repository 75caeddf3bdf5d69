"""Run a command; write its seconds and peak memory as JSON.

From inside ``bundle/``: ``python -m scripts.timed <result.json> <command> ...``

It imports next to nothing, because Linux counts the memory of the process that starts another one
towards the peak of the one started.
"""

import json
import resource
import signal
import subprocess
import sys
import time


def main(result: str, *command: str) -> int:
    """Exit status of the command; ``result`` gets ``seconds`` and ``peak_mib`` if it was 0.

    Args:
        result: path of the JSON file.
        command: to run; an interrupt from the keyboard is left to it.
    """
    signal.signal(signal.SIGINT, lambda *_: None)
    start = time.monotonic()
    status = subprocess.call(command)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    if status == 0:
        peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
        with open(result, "w") as file:
            json.dump({"seconds": time.monotonic() - start, "peak_mib": peak_mib}, file)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
