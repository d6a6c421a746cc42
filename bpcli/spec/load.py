"""TOML file to `Spec`, with the values that options override; all refusals are collected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpcli.errors import Collector, fail, nearest, printable
from bpcli.spec.equations import parse
from bpcli.spec.language import canonical
from bpcli.spec.source import Context, KeyPath, Source, read_text
from bpcli.spec.specification import SETTINGS, Equation, Kernel, Spec
from bpcli.spec.toml import outline, tables

if TYPE_CHECKING:
    from bpcli.spec.declarations import Names
    from bpcli.spec.schema import Document


def load(path: str | Path, overrides: Mapping[str, object], collector: Collector) -> Spec | None:
    """The spec at `path`; all that is wrong in it is noted in `collector`.

    `overrides` takes a dim, constant, `T`, `batch`, `seed` or `dtype` to a value that replaces the file's. The result
    is None where the file is no table of the format. Else it holds what is intact, with the names of the rest in
    `Spec.refused`, so that a graph can be tried and errors of shape are found as well. Files that the spec names are
    not looked at.
    """
    # pydantic takes longer to import than a spec to load, so that only a process that loads one imports it.
    from bpcli.spec.declarations import check_names
    from bpcli.spec.schema import DECLARING, validate

    text = read_text(path, collector)
    if text is None:
        return None
    source = Source(text, outline(text.content))
    raw = tables(text, source.outline, collector)
    if raw is None:
        return None
    context = Context(source, collector, _override(raw, overrides, collector))
    valid = validate(raw, context)
    if valid is None:
        return None
    document, refused = valid
    declared = [(table, name) for table in DECLARING for name in getattr(document, table)]
    return _spec(Path(path).stem, document, check_names([*declared, *refused], context), context)


def _spec(name: str, document: Document, names: Names, context: Context) -> Spec:
    from bpcli.spec import sections
    from bpcli.spec.declarations import Declarer

    dims, constants = ({n: v for _, n, v in _entries(document, t, names)} for t in ("dims", "constants"))
    refused_dims = {n for (table, _), n in names.of.items() if table == "dims" and n not in dims}
    declarer = Declarer(context, dims, names.refused | refused_dims, document.dtype)
    arrays = {
        table: {
            name: array
            for key, name, content in _entries(document, table, names)
            if (array := declarer.declare((table, key), name, content)) is not None
        }
        for table in ("inputs", "params", "state")
    }
    equations = _equations(document, names, context)
    _check_states(document, names, context)
    intact = {*dims, *constants, *equations, *(n for table in arrays.values() for n in table)}
    # A state shares its name with its equation, which may be intact where the declaration is refused.
    states = {n for (table, _), n in names.of.items() if table == "state"}
    refused = names.refused | (set(names.of.values()) - intact) | (states - arrays["state"].keys())
    inputs, params, declared_states = arrays.values()
    recurrent = bool(document.state or states)
    known = sections.Declared(dims, constants, inputs, params, declared_states, refused, recurrent, document.dtype)
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
        refused=refused,
        kernels={
            n: Kernel(k.file, n if k.function is None else k.function, k.meant) for n, k in document.kernel.items()
        },
    )


def _entries(document: Document, table: str, names: Names) -> list[tuple[str, str, Any]]:
    """The key, name and content of every declaration of a table whose name is not refused."""
    entries = getattr(document, table).items()
    return [(key, names.of[table, key], content) for key, content in entries if (table, key) in names.of]


def _equations(document: Document, names: Names, context: Context) -> dict[str, Equation]:
    """The equations that can be read."""
    equations = {}
    for key, content in document.equations.items():
        path = ("equations", key)
        expression = None if context.full else parse(content, context.token_places(path, content), context.collector)
        if expression is not None and path in names.of:
            equations[names.of[path]] = Equation(names.of[path], expression, context.source.key(*path))
    return equations


def _check_states(document: Document, names: Names, context: Context) -> None:
    """Refuse states without an equation."""
    equations = {name for (table, _), name in names.of.items() if table == "equations"}
    for key, name, _ in _entries(document, "state", names):
        if name not in equations:
            what = f'the state "{name}" has no equation'
            context.refuse_key("missing-equation", what, ("state", key), f'write {name} = "…" in [equations]')


def parse_assignment(text: str) -> tuple[str, int | float | str]:
    """The key and value of `KEY=VALUE`, the value as for `parse_value`.

    Raises `BpError` where there is no key, value or equals sign.
    """
    key, sign, value = (part.strip() for part in text.partition("="))
    if not (key and sign and value):
        fail("usage", f'"{printable(text)}" is not KEY=VALUE', help="write --set n=64")
    return canonical(key), parse_value(value)


def parse_value(text: str) -> int | float | str:
    """`text` as an integer, else a number, else as it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _override(raw: dict[str, Any], overrides: Mapping[str, object], collector: Collector) -> dict[KeyPath, str]:
    """Put `overrides` into the tables `raw`; returns the paths that they change, each with its option."""
    changed: dict[KeyPath, str] = {}
    declared = [(table, n) for table in ("dims", "constants") if isinstance(raw.get(table), dict) for n in raw[table]]
    for key, value in overrides.items():
        path = _overridden_path(raw, declared, canonical(key))
        if path is None:
            known = [*SETTINGS, *(name for _, name in declared)]
            what = f'"{printable(key)}" is not a dim, constant or setting of this spec'
            collector.add("unknown-name", what, None, help=nearest(key, known))
            continue
        table = raw
        for part in path[:-1]:
            table = table.setdefault(part, {})
        if isinstance(table, dict):
            table[path[-1]] = value
            flag = f"--{key}, --set" if key in ("dtype", "seed") else f"--set {printable(key)}"
            changed[path] = f"{flag} or a sweep"
    return changed


def _overridden_path(raw: Mapping[str, Any], declared: list[tuple[str, str]], key: str) -> KeyPath | None:
    """The path that `key` overrides. A setting precedes a dim of that name, but for T without steps, and task."""
    path = next((path for path in declared if canonical(path[1]) == key), None)
    if key in SETTINGS and not (path and (key == "task" or (key == "T" and not raw.get("state")))):
        return SETTINGS[key]
    return path
