"""Commands that refuse what they do not know before they begin; fire alone complains afterwards."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from fire.helptext import HelpText

from custom.json_fields import hint


def strict(command: Callable[..., None]) -> Callable[..., None]:
    """The same command; an unknown option or an argument too many ends it with a sentence."""
    signature = inspect.signature(command)
    known = list(signature.parameters)
    by_name_only = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    in_order = [p for p in signature.parameters.values() if p not in by_name_only]

    @wraps(command)
    def refusing(*args: Any, **options: Any) -> None:
        if options.keys() & {"help", "h"}:
            print(HelpText(command))
            return
        for option in options:
            if option not in known:
                raise SystemExit(f"there is no option --{option}{hint(option, known)}")
        if len(args) > len(in_order):
            raise SystemExit(f"there is an argument too many: {args[len(in_order)]!r}; see --help")
        command(*args, **options)

    surplus = inspect.Parameter("surplus", inspect.Parameter.VAR_POSITIONAL)
    unknown = inspect.Parameter("unknown", inspect.Parameter.VAR_KEYWORD)
    parameters = [*in_order, surplus, *by_name_only, unknown]
    refusing.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by inspect
    return refusing
