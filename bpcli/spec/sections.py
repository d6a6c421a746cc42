"""The tables about the use of a network: objective, weights, data, check and bench."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bpcli.errors import nearest, printable
from bpcli.spec import schema
from bpcli.spec.declarations import nested, number
from bpcli.spec.language import canonical
from bpcli.spec.schema import describe
from bpcli.spec.source import Context, KeyPath
from bpcli.spec.specification import (
    MAX_SIZE,
    SETTINGS,
    WRT_KINDS,
    ArrayDecl,
    Bench,
    Check,
    Data,
    Nested,
    Objective,
    Weights,
)

MAX_CELLS = 100_000


@dataclass(frozen=True)
class Declared:
    """The declarations that the tables refer to; `refused` holds the names of those in error."""

    dims: Mapping[str, int]
    constants: Mapping[str, float]
    inputs: Mapping[str, ArrayDecl]
    params: Mapping[str, ArrayDecl]
    states: Mapping[str, ArrayDecl]
    refused: frozenset[str]
    recurrent: bool
    dtype: str


def objective(table: schema.Objective, declared: Declared, context: Context) -> Objective:
    """`[objective]`, at the name of the loss; where it has none, at the equation called loss."""
    if not declared.recurrent and "over_time" in table.model_fields_set:
        _refuse_without_steps("over_time", ("objective", "over_time"), context)
    place = context.source.written("objective", "loss") or context.source.key("equations", table.loss)
    return Objective(canonical(table.loss), table.over_time, table.over_batch, place)


def weights(table: schema.Weights | None, declared: Declared, context: Context) -> Weights | None:
    """`[weights]`, its map keyed by names in normal form."""
    if table is None:
        return None
    known = [*declared.params, *(state.name for state in declared.states.values() if state.trainable)]
    for name in table.map:
        if not context.full and canonical(name) not in known and canonical(name) not in declared.refused:
            what = f'"{printable(name)}" is not a parameter'
            context.refuse_key("unknown-name", what, ("weights", "map", name), nearest(name, known))
    return Weights(table.file, {canonical(name): held for name, held in table.map.items()}, table.prefix)


def data(table: schema.Data, declared: Declared, context: Context) -> Data:
    """`[data]`; the task is "random" where no source is given."""
    sources = [key for key in ("task", "file", "values") if getattr(table, key) is not None]
    for key in sources[1:]:
        what = f'"{key}" and "{sources[0]}" cannot be used together'
        context.refuse_key("conflict", what, ("data", key), "[data] has one of task, file and values")
    if not declared.recurrent and table.T is not None:
        _refuse_without_steps("T", ("data", "T"), context)
    return Data(
        task=table.task if sources else "random",
        file=table.file,
        values=None if table.values is None else _values(table.values, declared, context),
        input=_role("input", table.input, sources, declared, context),
        target=_role("target", table.target, sources, declared, context),
        T=table.T,
        batch=table.batch,
        seed=table.seed,
    )


def check(table: schema.Check, declared: Declared, context: Context) -> Check:
    """`[check]`; `methods` looks method names up."""
    arrays = {**declared.params, **declared.inputs, **declared.states}
    for index, word in enumerate(table.wrt):
        if context.full:
            break
        if word not in WRT_KINDS and canonical(word) not in arrays and canonical(word) not in declared.refused:
            what = f'cannot differentiate with respect to "{printable(word)}"'
            context.refuse("unknown-wrt", what, ("check", "wrt", str(index)), nearest(word, [*WRT_KINDS, *arrays]))
    return Check(tuple(table.methods), tuple(canonical(word) for word in table.wrt))


def bench(table: schema.Bench, declared: Declared, context: Context) -> Bench:
    """`[bench]`; a key of the grid that is no dim, constant or setting is an option of methods, checked by them."""
    grid: dict[str, tuple[int | float | str, ...]] = {}
    for key, cells in table.grid.items():
        path = ("bench", "grid", key)
        name = canonical(key)
        if name == "T" and not declared.recurrent and "T" not in declared.dims and "T" not in declared.constants:
            _refuse_without_steps("T", path, context)
        for index, cell in enumerate(() if context.full else cells):
            _check_cell(name, cell, (*path, str(index)), declared, context)
        grid[name] = tuple(cells)
    count = math.prod(len(values) for values in grid.values())
    if count > MAX_CELLS:
        what = f"the sweep has {describe(count)} cells; the limit is {MAX_CELLS}"
        context.collector.add("sweep-too-large", what, context.source.key("bench", "grid"), help="sweep fewer values")
    return Bench(tuple(table.methods), grid)


def _refuse_without_steps(name: str, path: KeyPath, context: Context) -> None:
    what = f'"{name}" is for recurrent networks, and this one has no state'
    context.refuse_key("recurrent-only", what, path, "leave it out, or declare a [state]")


def _role(role: str, name: str | None, sources: list[str], declared: Declared, context: Context) -> str | None:
    """The input that a task fills as `role`."""
    if name is None:
        return None
    path = ("data", role)
    if sources and sources[0] != "task":
        context.refuse_key("conflict", f'"{role}" goes with a task, not with "{sources[0]}"', path, "leave it out")
    elif canonical(name) not in declared.inputs and canonical(name) not in declared.refused:
        what = f'no input is called "{printable(name)}"'
        context.refuse("unknown-name", what, path, nearest(name, declared.inputs))
    return canonical(name)


def _values(values: Mapping[str, object], declared: Declared, context: Context) -> dict[str, Nested]:
    read: dict[str, Nested] = {}
    for key, value in values.items():
        path, name = ("data", "values", key), canonical(key)
        if context.full:
            break
        if name in declared.inputs:
            numbers = nested(value, path, declared.inputs[name].shape, declared.dtype, context)
            if numbers is not None:
                read[name] = numbers
        elif name not in declared.refused:
            what = f'no input is called "{printable(key)}"'
            context.refuse_key("unknown-name", what, path, nearest(key, declared.inputs))
    given = {canonical(key) for key in values}
    for name in declared.inputs:
        if name not in given and not context.full:
            what = f'[data] values lacks the input "{name}"'
            context.refuse_key("missing-array", what, ("data", "values"), "give every input a value")
    return read


def _check_cell(key: str, cell: object, path: KeyPath, declared: Declared, context: Context) -> None:
    """Refuse a value of a sweep that its dim, constant or setting can't have."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        what = f"a cell of a sweep is a number or a string, not {describe(cell)}"
        context.refuse("wrong-type", what, path, "give a list of numbers or strings")
    elif key == "dtype":
        if cell not in ("float64", "float32"):
            remedy = nearest(str(cell), ("float64", "float32")) if isinstance(cell, str) else "known: float32, float64"
            context.refuse("unknown-value", f"unknown dtype {describe(cell)}", path, remedy)
    elif key in declared.dims or (key in SETTINGS and key != "task"):
        least, most = (0, (1 << 63) - 1) if key == "seed" else (1, MAX_SIZE)
        if not isinstance(cell, int):
            remedy = "write an integer, without quotes or a point"
            context.refuse("wrong-type", f'"{key}" must be an integer, not {describe(cell)}', path, remedy)
        elif not least <= cell <= most:
            what = f'"{key}" must be an integer from {least} to {most}, not {describe(cell)}'
            context.refuse("out-of-range", what, path, "leave it out, or give a value in this range")
    elif key in declared.constants or not isinstance(cell, str):
        number(cell, path, declared.dtype, context)
