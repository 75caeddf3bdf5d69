"""Commands that refuse what they do not know before they begin; fire alone complains afterwards."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from fire.helptext import HelpText

from custom.json_fields import hint

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def strict(command: Callable[..., None]) -> Callable[..., None]:
    """The same command; an unknown option or an argument too many ends it with a sentence."""
    signature = inspect.signature(command)
    known = [name for name, found in signature.parameters.items() if found.kind in NAMED]

    @wraps(command)
    def refusing(*args: Any, **options: Any) -> None:
        if options.keys() & {"help", "h"}:
            print(HelpText(command))
            return
        for option in options:
            if option not in known:
                raise SystemExit(f"there is no option --{option}{hint(option, known)}")
        if len(args) > len(known):
            raise SystemExit(f"there is an argument too many: {args[len(known)]!r}; see --help")
        command(*args, **options)

    more = [
        inspect.Parameter("surplus", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("unknown", inspect.Parameter.VAR_KEYWORD),
    ]
    parameters = [*signature.parameters.values(), *more]
    refusing.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by inspect
    return refusing
