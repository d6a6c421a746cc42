"""Options after a name, `tbptt:k1=4,k2=8`: text read into a dataclass."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Mapping
from typing import Any

from bpcli.errors import Place, fail, nearest

_NUMERAL = re.compile(r"[+-]?[0-9]{1,300}")


def listed(options: type[Any]) -> tuple[str, ...]:
    """The fields of a dataclass in order, as `name=default`, or `name=…` where there is no default."""
    return tuple(f"{f.name}={_default(f)}" for f in dataclasses.fields(options))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return str(field.default)
    return "…" if field.default_factory is dataclasses.MISSING else str(field.default_factory())


def read(name: str, options: type[Any], text: str | None, place: Place | None, catalogue: str) -> Any:
    """The dataclass `options` of `name` from `option=value,…`, or from `value` where there is one option.

    Raises BpError at `place` (None: the command line) for an unknown or repeated option, a value of the wrong type or
    out of range, a missing option; `catalogue` is the one of `bp list` that names the options.
    """
    fields = {f.name: f for f in dataclasses.fields(options)}
    types = typing.get_type_hints(options)
    given: dict[str, Any] = {}
    for option, value in _pairs(name, text, fields, place):
        if option in given:
            fail("repeated-option", f'option "{option}" of {name} is given twice', place, help="keep one of the two")
        given[option] = _value(f"{name}:{option}", value, types[option], place)
    missing = [n for n, f in fields.items() if n not in given and _default(f) == "…"]
    if missing:
        example = ",".join(
            f"{n}={given.get(n, 4 if types[n] is int else 0.5)}" for n in fields if n in (*given, *missing)
        )
        named = " and ".join(missing)
        fail("missing-option", f"{name} needs {named}", place, help=f"write {name}:{example}, for example")
    try:
        return options(**given)
    except ValueError as error:
        fail("out-of-range", f"{name}: {error}", place, help=f"`bp list {catalogue}` says what {name} takes")


def _pairs(owner: str, text: str | None, fields: Mapping[str, object], place: Place | None) -> list[tuple[str, str]]:
    """Names and values of the options in `text`; names are checked against `fields`."""
    if text is None:
        return []
    pairs = []
    for part in text.split(","):
        name, equals, value = (p.strip() for p in part.partition("="))
        if not equals and len(fields) == 1 and name:
            name, value = next(iter(fields)), name
        elif not equals:
            fail(
                "bad-option",
                f'expected option=value after "{owner}:", got "{part.strip()}"',
                place,
                help=_usage(owner, fields),
            )
        elif name not in fields:
            fail("unknown-option", f'{owner} has no option "{name}"', place, help=_usage(owner, fields, name))
        pairs.append((name, value))
    return pairs


def _usage(owner: str, fields: Mapping[str, object], name: str = "") -> str:
    if not fields:
        return f"{owner} takes no options"
    return nearest(name, fields) if name else f"options of {owner}: {', '.join(fields)}"


def _value(what: str, text: str, kind: Any, place: Place | None) -> Any:
    """Convert `text` to the option's type: int, float, bool, str, a word of a Literal, or None where allowed."""
    allowed = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        if text not in allowed:
            fail("bad-option", f'{what}: unknown value "{text}"', place, help=nearest(text, map(str, allowed)))
        return text
    if type(None) in allowed:
        return None if text == "none" else _value(what, text, next(a for a in allowed if a is not type(None)), place)
    value = _READERS[kind](text)
    if value is None:
        example = f"write {what}={_EXAMPLES[kind]}, for example"
        fail("wrong-type", f'{what} must be {_WORDS[kind]}, got "{text}"', place, help=example)
    return value


def _integer(text: str) -> int | None:
    return int(text) if _NUMERAL.fullmatch(text) else None


def _real(text: str) -> float | None:
    try:
        value = float(text.replace("_", "x"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _truth(text: str) -> bool | None:
    return {"true": True, "false": False}.get(text)


_READERS: Mapping[Any, Any] = {int: _integer, float: _real, bool: _truth, str: lambda text: text or None}
_EXAMPLES: Mapping[Any, str] = {int: "4", float: "0.5", bool: "true", str: "word"}
_WORDS: Mapping[Any, str] = {int: "an integer", float: "a finite number", bool: "true or false", str: "a word"}
