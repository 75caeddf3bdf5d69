"""``logging.conf``: Python evaluates the classes and arguments that it names."""

import ast
import configparser
from collections.abc import Iterator

from custom.inspection.findings import quoted

STREAMS = ("(sys.stdout,)", "(sys.stderr,)", "()", "")
HANDLERS = ("StreamHandler", "NullHandler", "logging.StreamHandler", "logging.NullHandler")
FORMATTERS = ("logging.Formatter",)


def logging_faults(text: str) -> Iterator[str]:
    """What a logging configuration would do beyond writing lines, as ends of sentences."""
    parser = configparser.RawConfigParser(strict=True)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        yield f"is no logging configuration that can be read ({type(error).__name__})"
        return
    for section in [parser.default_section, *parser.sections()]:
        values = parser.defaults() if section == parser.default_section else parser[section]
        allowed = FORMATTERS if section.startswith("formatter") else HANDLERS
        for key in ("class", "args", "kwargs", "defaults"):
            value = " ".join(str(values.get(key, "")).split())
            if key == "class" and value and value not in allowed:
                yield f"{section} has the class {quoted(value)}"
            elif key != "class" and not _plain(value):
                yield f"{section} has {key} {quoted(value)}, which Python would evaluate"


def _plain(value: str) -> bool:
    """Whether arguments are a standard stream or nothing at all."""
    if value.replace(" ", "") in {stream.replace(" ", "") for stream in STREAMS}:
        return True
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return literal in ((), {})
