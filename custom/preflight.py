"""What every run does first: from then on a user's mistake ends in one sentence."""

import logging
import re
import sys
from functools import partial
from types import TracebackType

from ignite.engine import Engine, Events

from custom.arenas import share_arenas
from custom.array_check import check_arrays
from custom.array_report import ArrayReport
from custom.augmentation_lists import check_augmentation
from custom.config_check.running import check_running_config
from custom.distributed import is_writer
from custom.errors import InputError
from custom.files import disk_fault, file_of
from custom.processes import check_processes, first_to_say, left_alone
from custom.run_record import RunRecord, begin_record
from custom.running import BundleRun, running, running_config

# MONAI's words for an @ that leads nowhere; inside, it writes :: for #.
_NO_TARGET = re.compile(r"the referring item `(@[^`]+)` is not defined in the config content")


class Preflight:
    """The checks of a run, and its record.

    A handler of MONAI's engines, and what runs without one call when all is checked and they begin.

    Args:
        run: as it was started; None outside of a bundle run, where there is nothing to check.
    """

    def __init__(self, run: BundleRun | None) -> None:
        self.run = run
        self.found = ArrayReport({})
        self.record: RunRecord | None = None

    def check(self) -> None:
        """Look at the arrays: the first step of every run.

        Not of ``initialize``, which MONAI's ``load`` goes through, too, to have the network alone.

        Raises:
            InputError: as ``check_arrays``.
        """
        if self.run is not None:
            self.found = check_arrays(self.run.config, self.run.run_id)

    def attach(self, engine: Engine) -> None:
        """Write the record when the engine's first epoch starts: what may refuse it has run."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine | None = None) -> None:
        """Write the record: nothing refuses the run any more."""
        if self.run is not None and self.record is None and is_writer():
            self.record = begin_record(self.run, self.found)

    def end(self, outcome: str = "completed") -> None:
        """Complete the record: ``finalize`` of every run.

        Args:
            outcome: as in ``RunRecord.end``.
        """
        if self.record is not None:
            self.record.end(outcome)


def begin() -> Preflight:
    """Let a user's mistake end the process with its sentence and status 1, without a traceback.

    So does Ctrl-C, whose status stays that of the signal. Called by every config's ``initialize``.
    Other exceptions keep their traceback: they are bugs. Memory is bounded from here on, too
    (``share_arenas``).

    Raises:
        InputError: the configuration is wrong (``check_running_config``), or its augmentation is
            impossible (``check_augmentation``); this is one of several processes that do not know
            of each other (``check_processes``).
    """
    preflight = Preflight(running())
    sys.excepthook = partial(_explain, preflight)
    share_arenas()
    check_running_config()
    config = running_config()
    check_processes(config)
    check_augmentation(config)
    return preflight


def user_mistake(error: BaseException | None) -> InputError | None:
    """The user's mistake behind an exception, which MONAI and ignite wrap in others.

    A disk that is full or may not be written is one, too, and a reference to what the
    configuration does not have.
    """
    chain: list[BaseException] = []
    while error is not None:
        if isinstance(error, InputError):
            return error
        chain.append(error)
        error = error.__cause__ or error.__context__
    for found in chain:
        if missing := _NO_TARGET.match(str(found)):
            name = missing[1].replace("::", "#")
            return InputError(f"the configuration refers to {name}, which it does not have")
        if fault := disk_fault(found):
            return InputError(
                f"{file_of(found)} {fault} or choose another folder; the same command goes on from "
                f"what is there"
            )
    return None


def _explain(
    preflight: Preflight,
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
) -> None:
    mistake = user_mistake(error)
    if isinstance(error, KeyboardInterrupt):
        preflight.end("stopped")
        if is_writer():
            sys.stderr.write("\ninterrupted; the same command takes the run up again\n")
    elif mistake is None and left_alone(error):
        preflight.end("failed: another process has ended")
    elif mistake is None:
        preflight.end(f"failed: {kind.__name__}: {error}")
        sys.__excepthook__(kind, error, traceback)
    else:
        preflight.end(f"failed: {mistake}")
        logging.shutdown()
        if first_to_say(str(mistake)):
            sys.stderr.write(f"\nerror: {mistake}\n")
