"""TOML text to plain tables; what is wrong with the text becomes a diagnostic with its place."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from bpcli.errors import Collector, Place
from bpcli.spec.outline import Outline
from bpcli.spec.text import Text

_POSITION = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)\s*$")
_KEY = re.compile(r"[\w-]+\s*=")
_DIGITS = 4300
_NESTING = 100
_MAX_REPEATS = 100


def tables(text: Text, found: Outline, collector: Collector) -> dict[str, Any] | None:
    """The tables of `text`, or None where it is no TOML or nested deeper than any spec is."""
    if found.deep:
        _too_deep(text.place(*found.deep), collector)
        return None
    repeats = sorted(found.repeated)
    for span in repeats[:_MAX_REPEATS]:
        first = text.place(*found.repeated[span])
        name = text.content[slice(*span)]
        what = f"{name} is defined twice, first in line {first.line}"
        collector.add("duplicate-key", what, text.place(*span), help="keep one of the two")
    try:
        return tomllib.loads(text.content)
    except RecursionError:
        _too_deep(_deepest(text), collector)
    except tomllib.TOMLDecodeError as error:
        _syntax(str(error), text, repeats, collector)
    except ValueError:
        _long_integer(text, found, collector)
    return None


def _too_deep(place: Place, collector: Collector) -> None:
    collector.add("too-deep", "arrays and tables are nested too deep", place, help="write it in three levels at most")


def _deepest(text: Text) -> Place:
    """Where more than `_NESTING` brackets are open, counted without regard to strings."""
    depth = 0
    for at, character in enumerate(text.content):
        depth += (character in "[{") - (character in "]}")
        if depth > _NESTING:
            return text.place(at, at + 1)
    return text.at(1, 1)


def _syntax(message: str, text: Text, repeats: list[tuple[int, int]], collector: Collector) -> None:
    match = _POSITION.search(message)
    what = message[: match.start()] if match else message
    if repeats and what.startswith("Cannot"):
        return
    place = text.at(int(match[1]), int(match[2])) if match and match[1] else text.end()
    if what.startswith("Unescaped") and place.quote[place.column - 3 : place.column - 2] == "\\":
        # The parser stands behind the escape by then.
        place = text.at(place.line, place.column - 2)
    what = what[:1].lower() + what[1:]
    collector.add("toml-syntax", f"not TOML: {what}", place, help=_syntax_help(what, place))


def _syntax_help(what: str, place: Place) -> str:
    token = re.match(r"[^\s=]*", place.quote[place.column - 1 :])
    if what.startswith("invalid statement") and token and not token[0].isascii():
        return f'TOML wants quotes around such a key: "{token[0]}"'
    if what.startswith(("unescaped", "illegal character")):
        return "write a text with backslashes or line breaks as a TOML literal or multi-line string"
    if what.startswith("cannot"):
        return "define each table and key once"
    before, after = place.quote[: place.column - 1], place.quote[place.column - 1 :]
    if what.startswith("invalid value") and before.count("[") > before.count("]") and _KEY.match(after):
        return "close the bracket of the list before this key"
    if what.startswith("invalid value"):
        return "text goes in quotes; numbers need a digit before and after the point"
    return "one key = value a line; tables start with [name]"


def _long_integer(text: Text, found: Outline, collector: Collector) -> None:
    for start, end in found.values.values():
        if end - start > _DIGITS and text.content[start] in "+-0123456789":
            place = text.place(start, end)
            break
    else:
        place = text.at(1, 1)
    collector.add("not-finite", "an integer of thousands of digits", place, help="write a number that float64 holds")
