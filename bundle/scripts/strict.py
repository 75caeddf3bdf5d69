"""Commands that end with one sentence: at what they do not know, where fire complains too late."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from fire.helptext import HelpText

from custom.errors import InputError
from custom.json_fields import hint


def strict(command: Callable[..., None]) -> Callable[..., None]:
    """The same command; a user's mistake ends it with its sentence and status 1.

    So does an unknown option, an argument too many, or Ctrl-C. A command that takes any option
    (``**``) says itself which it knows.
    """
    signature = inspect.signature(command)
    any_option = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    by_name_only = [p for p in named if p.kind is p.KEYWORD_ONLY]
    in_order = [p for p in named if p not in by_name_only]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in in_order)
    known = [p.name for p in (*in_order, *by_name_only) if p.kind is not p.VAR_POSITIONAL]

    @wraps(command)
    def refusing(*args: Any, **options: Any) -> None:
        if options.keys() & {"help", "h"}:
            print(HelpText(command))
            return
        for option in options:
            if option not in known and not any_option:
                raise SystemExit(f"there is no option --{option}{hint(option, known)}")
        if len(args) > len(in_order) and not any_number:
            raise SystemExit(f"there is an argument too many: {args[len(in_order)]!r}; see --help")
        try:
            command(*args, **options)
        except InputError as mistake:
            raise SystemExit(str(mistake)) from None
        except KeyboardInterrupt:
            raise SystemExit("interrupted") from None

    surplus = inspect.Parameter("surplus", inspect.Parameter.VAR_POSITIONAL)
    unknown = inspect.Parameter("unknown", inspect.Parameter.VAR_KEYWORD)
    rest = [] if any_number else [surplus]
    parameters = [*in_order, *rest, *by_name_only, unknown]
    refusing.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by inspect
    return refusing
