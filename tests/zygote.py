"""A process that has imported everything and forks runs of the tiny training: none costs imports.

Nothing that would not survive a fork (TensorStore, threads) is touched before.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.bundle import tiny

# MLflow, which MONAI imports where it is installed, imports polars, which starts threads
SERVE = "import sys; sys.modules['polars'] = None; from tests.zygote import serve; serve()"


class Zygote:
    """Forks a run of the tiny training whenever it is asked to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            cwd=tiny.ROOT,
            env=tiny.environment() | {"PYTHONPATH": f"{tiny.ROOT}:{tiny.BUNDLE}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, folder: Path, **changes: Any) -> int:
        """Begin a training; returns the process's id."""
        self._say(json.dumps([str(folder), changes]))
        return int(self._answer())

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait(self) -> int:
        """Exit status of the run that was started; -9 for a killed one."""
        self._say("wait")
        return int(self._answer())

    def run(self, folder: Path, **changes: Any) -> float:
        """A training to its end; returns how many seconds it took."""
        begun = time.perf_counter()
        self.start(folder, **changes)
        assert self.wait() == 0
        return time.perf_counter() - begun

    def stopped(self, folder: Path, after_s: float, number: int, **changes: Any) -> int:
        """Begin a training and send it a signal after so many seconds; its exit status."""
        pid = self.start(folder, **changes)
        time.sleep(after_s)
        os.kill(pid, number)  # until it is waited for, a process that has ended keeps its id
        return self.wait()

    def close(self) -> None:
        """End."""
        self.process.communicate()


@contextlib.contextmanager
def zygote() -> Iterator[Zygote]:
    """A zygote that ends with its use."""
    made = Zygote()
    try:
        yield made
    finally:
        made.close()


def _child(folder: str, changes: dict[str, Any]) -> int:
    with open(f"{folder}/log.txt", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        tiny.run("training", Path(folder), **changes)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def serve() -> None:
    """In a process of its own: fork as asked for on standard input."""
    import_all()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    # jemalloc, which pandas' Arrow brings, knows how to be forked
    assert len(threads) - threads.count("jemalloc_bg_thd") == 1, f"a fork would lose {threads}"
    pid = 0
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "wait":
            _, status = os.waitpid(pid, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os._exit(_child(*json.loads(line)))
        print(pid, flush=True)


def import_all() -> None:
    """Every module that the training's configuration names."""
    text = (tiny.CONFIGS / "train.json").read_text()
    for module in sorted(set(re.findall(r'"_target_": "(custom\.[\w.]+)\.\w+"', text))):
        import_module(module)
