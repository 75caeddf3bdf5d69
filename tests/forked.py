"""Processes that end in some way, forked from one that has imported everything: that takes 8 s."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PROCESSES = """
import json, os, signal, sys
from pathlib import Path
sys.modules["polars"] = None  # its threads would not survive a fork
{imports}
for number, ending in enumerate(json.loads(sys.argv[2])):
    folder = Path(sys.argv[1]) / str(number)
    if os.fork() == 0:
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
else:
    sys.exit()
folder.mkdir()
os.dup2(os.open(folder / "stderr", os.O_CREAT | os.O_WRONLY), 2)
exec(ending)
"""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, what it said on stderr, and the folder it was given."""

    status: int
    said: str
    folder: Path


def ended(imports: str, endings: Sequence[str], folder: Path) -> list[Ended]:
    """Run each ending in a process of its own, with ``folder`` (a Path) among its names.

    Args:
        imports: code that comes before all of them.
        endings: code, whose process ends when it does.
        folder: gets a folder for each.
    """
    code = PROCESSES.format(imports=imports)
    command = [sys.executable, "-c", code, str(folder), json.dumps(endings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [
        Ended(int(status), (folder / str(n) / "stderr").read_text().strip(), folder / str(n))
        for n, status in enumerate(done.stdout.split())
    ]
