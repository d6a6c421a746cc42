"""The one name space of dims, constants, inputs, params, states and equations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bpcli.errors import Place, printable
from bpcli.spec.context import Context
from bpcli.spec.language import canonical, reserved
from bpcli.spec.outline import Path

_KINDS = {
    "dims": "a dim",
    "constants": "a constant",
    "inputs": "an input",
    "params": "a param",
    "state": "a state",
    "equations": "an equation",
}


@dataclass(frozen=True)
class Names:
    """`of` takes the path of a declaration to its name in normal form; refused ones are not in it."""

    of: dict[Path, str]
    refused: frozenset[str]


def check_names(paths: Iterable[Path], context: Context) -> Names:
    """Refuse what is no name, is reserved, or is declared twice; `paths` are (table, name) in any order."""
    ordered = sorted(paths, key=lambda path: _order(context.source.key(*path)))
    seen: dict[str, list[Path]] = {}
    refused: set[str] = set()
    for path in ordered:
        name = canonical(path[1])
        if context.full:
            refused.add(name)
            continue
        if not _is_name(name, path, context):
            refused.add(name)
            continue
        others = [other for other in seen.setdefault(name, []) if {other[0], path[0]} != {"state", "equations"}]
        if others:
            refused.add(name)
            _clash(name, path, others[0], context)
        seen[name].append(path)
    names = {path: name for name, paths in seen.items() for path in paths if name not in refused}
    return Names(names, frozenset(refused))


def _order(place: Place) -> tuple[int, int]:
    return place.line, place.column


def _is_name(name: str, path: Path, context: Context) -> bool:
    shown = printable(path[1], 60)
    if not name.isidentifier():
        remedy = "a name starts with a letter or _ and goes on with letters, digits and _"
        context.refuse_key("bad-name", f'"{shown}" is no name', path, remedy)
        return False
    if reason := reserved(name):
        remedy = f'use another name, such as "{name}_"'
        context.refuse_key("reserved-name", f'"{shown}" is reserved: {reason}', path, remedy)
        return False
    return True


def _clash(name: str, path: Path, other: Path, context: Context) -> None:
    line = context.source.key(*other).line
    what = f'"{printable(name)}" is {_KINDS[path[0]]} and also {_KINDS[other[0]]} (line {line})'
    if path[1] != other[1]:
        what += ": both are the same identifier in Unicode's normal form KC"
    remedy = "rename one of the two: dims, constants, inputs, params, states and equations share one name space"
    context.refuse_key("name-clash", what, path, remedy)
