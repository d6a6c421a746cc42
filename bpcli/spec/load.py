"""The one name space of dims, constants, inputs, params, states and equations.

TOML file to `Spec`: read, located, validated, its names and equations looked at. All refusals are collected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpcli.errors import Collector, Place, printable
from bpcli.spec.context import Context, make_source
from bpcli.spec.equations import parse
from bpcli.spec.language import canonical, reserved
from bpcli.spec.overrides import apply, parse_assignment
from bpcli.spec.specification import ArrayDecl, Equation, Kernel, Spec
from bpcli.spec.text import read
from bpcli.spec.toml import KeyPath, outline, tables

if TYPE_CHECKING:
    from bpcli.spec.schema import Document


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

    of: dict[KeyPath, str]
    refused: frozenset[str]


def check_names(paths: Iterable[KeyPath], context: Context) -> Names:
    """Refuse what is no name, is reserved, or is declared twice; `paths` are (table, name) in any order."""
    ordered = sorted(paths, key=lambda path: _order(context.source.key(*path)))
    seen: dict[str, list[KeyPath]] = {}
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


def _is_name(name: str, path: KeyPath, context: Context) -> bool:
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


def _clash(name: str, path: KeyPath, other: KeyPath, context: Context) -> None:
    line = context.source.key(*other).line
    what = f'"{printable(name)}" is {_KINDS[path[0]]} and also {_KINDS[other[0]]} (line {line})'
    if path[1] != other[1]:
        what += ": both are the same identifier in Unicode's normal form KC"
    remedy = "rename one of the two: dims, constants, inputs, params, states and equations share one name space"
    context.refuse_key("name-clash", what, path, remedy)


__all__ = ["load", "parse_assignment"]

_TABLES = ("dims", "constants", "inputs", "params", "state", "equations")


def load(path: str | Path, overrides: Mapping[str, object], collector: Collector) -> Spec | None:
    """The spec at `path`, with all that is wrong in it noted in `collector`.

    `overrides` takes a dim, constant, `T`, `batch`, `seed` or `dtype` to a value that replaces the file's. None where
    the file is no table of the format at all; else what is intact, with the names of the rest in `Spec.refused`, so
    that a graph can be tried and errors of shape are found as well. Files that the spec names are not looked at.
    """
    # pydantic takes longer to import than a spec to load, so that only who loads one pays for it.
    from bpcli.spec.validation import validate

    text = read(path, collector)
    if text is None:
        return None
    found = outline(text.content)
    raw = tables(text, found, collector)
    if raw is None:
        return None
    overridden = apply(raw, overrides, collector)
    context = Context(text, found, make_source(text, found), collector, overridden)
    valid = validate(raw, context)
    if valid is None:
        return None
    document, refused = valid
    paths = [(table, name) for table in _TABLES for name in getattr(document, table)]
    names = check_names([*paths, *refused], context)
    return _spec(Path(path).stem, document, names, context)


def _spec(name: str, document: Document, names: Names, context: Context) -> Spec:
    from bpcli.spec import sections
    from bpcli.spec.declarations import Declarer

    dims = _named(document, "dims", names)
    constants = _named(document, "constants", names)
    cut_dims = {n for (table, _), n in names.of.items() if table == "dims" and n not in dims}
    declarer = Declarer(context, dims, names.refused | cut_dims, document.dtype)
    arrays: dict[str, dict[str, ArrayDecl]] = {}
    for table in ("inputs", "params", "state"):
        declared = {n: declarer.declare((table, raw), n, a) for raw, n, a in _entries(document, table, names)}
        arrays[table] = {n: a for n, a in declared.items() if a is not None}
    equations = _equations(document, names, context)
    _check_states(document, names, context)
    intact = {*dims, *constants, *equations, *(n for table in arrays.values() for n in table)}
    # A state goes by the name of its equation too, which may stand where the declaration fell.
    fallen = {n for (table, _), n in names.of.items() if table == "state" and n not in arrays["state"]}
    lost = names.refused | (set(names.of.values()) - intact) | fallen
    groups = arrays["inputs"], arrays["params"], arrays["state"]
    recurrent = bool(document.state) or any(table == "state" for table, _ in names.of)
    known = sections.Declared(dims, constants, *groups, lost, recurrent, document.dtype)
    return Spec(
        name=name,
        title=document.title,
        description=document.description,
        dtype=document.dtype,
        dims=dims,
        constants={n: float(value) for n, value in constants.items()},
        inputs=known.inputs,
        params=known.params,
        states=known.states,
        equations=equations,
        objective=sections.objective(document.objective, known, context),
        weights=sections.weights(document.weights, known, context),
        data=sections.data(document.data, known, context),
        check=sections.check(document.check, known, context),
        bench=sections.bench(document.bench, known, context),
        source=context.source,
        refused=lost,
        kernels={n: Kernel(k.file, n if k.function is None else k.function) for n, k in document.kernel.items()},
    )


def _entries(document: Document, table: str, names: Names) -> list[tuple[str, str, Any]]:
    """The key, name and content of every declaration of a table whose name stands."""
    entries = getattr(document, table).items()
    return [(key, names.of[table, key], content) for key, content in entries if (table, key) in names.of]


def _named(document: Document, table: str, names: Names) -> dict[str, Any]:
    return {name: content for _, name, content in _entries(document, table, names)}


def _equations(document: Document, names: Names, context: Context) -> dict[str, Equation]:
    """The equations that can be read."""
    equations = {}
    for key, content in document.equations.items():
        path = ("equations", key)
        expression = None if context.full else parse(content, context.where(path, content), context.collector)
        if expression is not None and path in names.of:
            equations[names.of[path]] = Equation(names.of[path], expression, context.source.key(*path))
    return equations


def _check_states(document: Document, names: Names, context: Context) -> None:
    """Refuse states without an equation."""
    for key, name, _ in _entries(document, "state", names):
        if ("equations", name) not in {(table, n) for (table, _), n in names.of.items()}:
            what = f'the state "{name}" has no equation'
            context.refuse_key("missing-equation", what, ("state", key), f'write {name} = "…" in [equations]')
