"""What every run does first: from then on a user's mistake ends in one sentence."""

import inspect
import logging
import re
import sys
from types import TracebackType
from typing import Any

from monai.bundle import ConfigWorkflow

from custom.arenas import share_arenas
from custom.augmentation_lists import check_augmentation
from custom.errors import InputError
from custom.files import disk_fault, file_of
from custom.processes import check_processes

# MONAI's words for an @ that leads nowhere; inside, it writes :: for #.
_NO_TARGET = re.compile(r"the referring item `(@[^`]+)` is not defined in the config content")


def begin() -> None:
    """Let a user's mistake end the process with its sentence and status 1, without a traceback.

    So does Ctrl-C, whose status stays that of the signal. Called by every config's ``initialize``.
    Other exceptions keep their traceback: they are bugs. Memory is bounded from here on, too
    (``share_arenas``).

    Raises:
        InputError: the augmentation is impossible (``check_augmentation``); this is one of several
            processes that do not know of each other (``check_processes``).
    """
    sys.excepthook = _explain
    share_arenas()
    config = running_config()
    check_processes(config)
    check_augmentation(config)


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
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    mistake = user_mistake(error)
    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write("\ninterrupted; the same command takes the run up again\n")
    elif mistake is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        logging.shutdown()
        sys.stderr.write(f"\nerror: {mistake}\n")


def running_config() -> dict[str, Any]:
    """The merged configuration of the bundle run that is calling, overrides included.

    MONAI hands it to nobody, so it is found on the call stack; empty outside a bundle run.
    """
    for frame in inspect.stack():
        workflow = frame.frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            return dict(workflow.parser.get(""))
    return {}
