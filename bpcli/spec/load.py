"""TOML file to `Spec`: read, located, validated, its names and equations looked at. All refusals are collected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpcli.errors import Collector
from bpcli.spec.context import Context, make_source
from bpcli.spec.equations import parse
from bpcli.spec.model import ArrayDecl, Equation, Kernel, Spec
from bpcli.spec.names import Names, check_names
from bpcli.spec.options import apply, parse_assignment
from bpcli.spec.outline import outline
from bpcli.spec.text import read
from bpcli.spec.toml import tables

if TYPE_CHECKING:
    from bpcli.spec.schema import Document

__all__ = ["load", "parse_assignment"]

_TABLES = ("dims", "constants", "inputs", "params", "state", "equations")


def load(path: str | Path, overrides: Mapping[str, object], collector: Collector) -> Spec | None:
    """The spec at `path`, with all that is wrong in it noted in `collector`.

    `overrides` takes a dim, constant, `T`, `batch`, `seed` or `dtype` to a value that replaces the file's. None where
    the file is no table of the format at all; else what is intact, with the names of the rest in `Spec.refused`, so
    that a graph can be tried and errors of shape are found as well. Files that the spec names are not looked at.
    """
    # pydantic takes longer to import than a spec to load, so that only who loads one pays for it.
    from bpcli.spec.validate import validate

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
    from bpcli.spec.arrays import Declarer

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
