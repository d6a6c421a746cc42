"""The tables that say what to do with the network: objective, weights, data, check and bench."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bpcli.errors import nearest, printable
from bpcli.spec import schema
from bpcli.spec.context import Context
from bpcli.spec.declarations import nested, number
from bpcli.spec.integers import MAX_SIZE
from bpcli.spec.language import canonical
from bpcli.spec.overrides import SETTINGS
from bpcli.spec.specification import ArrayDecl, Bench, Check, Data, Nested, Objective, Weights
from bpcli.spec.toml import KeyPath
from bpcli.spec.validation import describe

MAX_CELLS = 100_000
KINDS = ("params", "inputs", "state")
Scalar = int | float | str


@dataclass(frozen=True)
class Declared:
    """What the tables refer to. `refused` are names that were declared, but not well."""

    dims: Mapping[str, int]
    constants: Mapping[str, float]
    inputs: Mapping[str, ArrayDecl]
    params: Mapping[str, ArrayDecl]
    states: Mapping[str, ArrayDecl]
    refused: frozenset[str]
    recurrent: bool
    dtype: str


def objective(table: schema.Objective, declared: Declared, context: Context) -> Objective:
    """`[objective]`; without a loss in it, its place is the equation called loss, or the header of all."""
    if not declared.recurrent and "over_time" in table.model_fields_set:
        _recurrent_only("over_time", ("objective", "over_time"), context)
    given, source = ("objective", "loss"), context.source
    place = source.value(*given) if given in source.values else source.key("equations", table.loss)
    return Objective(canonical(table.loss), table.over_time, table.over_batch, place)


def weights(table: schema.Weights | None, declared: Declared, context: Context) -> Weights | None:
    """`[weights]`, its map by names in normal form."""
    if table is None:
        return None
    known = [*declared.params, *(state.name for state in declared.states.values() if state.trainable)]
    for name in table.map:
        if not context.full and canonical(name) not in known and canonical(name) not in declared.refused:
            what = f'"{printable(name)}" is no parameter'
            context.refuse_key("unknown-name", what, ("weights", "map", name), nearest(name, known))
    renamed = {canonical(name): held for name, held in table.map.items()}
    return Weights(table.file, renamed)


def data(table: schema.Data, declared: Declared, context: Context) -> Data:
    """`[data]`, with "random" for the task where nothing is given."""
    sources = [key for key in ("task", "file", "values") if getattr(table, key) is not None]
    for key in sources[1:]:
        what = f'"{key}" and "{sources[0]}" exclude each other'
        context.refuse_key("conflict", what, ("data", key), "[data] has one of task, file and values")
    if not declared.recurrent and table.T is not None:
        _recurrent_only("T", ("data", "T"), context)
    roles = {"input": table.input, "target": table.target}
    for role, name in roles.items():
        _check_role(role, name, sources, declared, context)
    values = None if table.values is None else _values(table.values, declared, context)
    return Data(
        task=table.task if sources else "random",
        file=table.file,
        values=values,
        input=None if table.input is None else canonical(table.input),
        target=None if table.target is None else canonical(table.target),
        T=table.T,
        batch=table.batch,
        seed=table.seed,
    )


def check(table: schema.Check, declared: Declared, context: Context) -> Check:
    """`[check]`; method names are looked up where methods are known."""
    arrays = {**declared.params, **declared.inputs, **declared.states}
    for index, word in enumerate(table.wrt):
        if context.full:
            break
        if word not in KINDS and canonical(word) not in arrays and canonical(word) not in declared.refused:
            what = f'cannot differentiate with respect to "{printable(word)}"'
            context.refuse("unknown-wrt", what, ("check", "wrt", str(index)), nearest(word, [*KINDS, *arrays]))
    return Check(tuple(table.methods), tuple(canonical(word) for word in table.wrt))


def bench(table: schema.Bench, declared: Declared, context: Context) -> Bench:
    """`[bench]`; a key of the grid that is no dim, constant or setting is a method's option, and looked up there."""
    grid: dict[str, tuple[Scalar, ...]] = {}
    for key, cells in table.grid.items():
        path = ("bench", "grid", key)
        name = canonical(key)
        if name == "T" and not declared.recurrent and "T" not in declared.dims and "T" not in declared.constants:
            _recurrent_only("T", path, context)
        for index, cell in enumerate(() if context.full else cells):
            _check_cell(name, cell, (*path, str(index)), declared, context)
        grid[name] = tuple(cells)
    count = math.prod(len(values) for values in grid.values())
    if count > MAX_CELLS:
        what = f"the sweep has {describe(count)} cells; the limit is {MAX_CELLS}"
        context.collector.add("sweep-too-large", what, context.source.key("bench", "grid"), help="sweep fewer values")
    return Bench(tuple(table.methods), grid)


def _recurrent_only(name: str, path: KeyPath, context: Context) -> None:
    what = f'"{name}" is for recurrent networks, and this one has no state'
    context.refuse_key("recurrent-only", what, path, "leave it out, or declare a [state]")


def _check_role(role: str, name: str | None, sources: list[str], declared: Declared, context: Context) -> None:
    if name is None:
        return
    path = ("data", role)
    if sources and sources[0] != "task":
        context.refuse_key("conflict", f'"{role}" goes with a task, not with "{sources[0]}"', path, "leave it out")
    elif canonical(name) not in declared.inputs and canonical(name) not in declared.refused:
        what = f'no input is called "{printable(name)}"'
        context.refuse("unknown-name", what, path, nearest(name, declared.inputs))


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
    """Refuse a value that what the key stands for can't have."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        what = f"a cell of a sweep is a number or a string, not {describe(cell)}"
        context.refuse("wrong-type", what, path, "give a list of numbers or strings")
    elif key == "dtype":
        if cell not in ("float64", "float32"):
            remedy = nearest(str(cell), ("float64", "float32")) if isinstance(cell, str) else "known: float32, float64"
            context.refuse("unknown-value", f"unknown dtype {describe(cell)}", path, remedy)
    elif key in SETTINGS or key in declared.dims:
        least, most = (0, (1 << 63) - 1) if key == "seed" else (1, MAX_SIZE)
        if not isinstance(cell, int):
            remedy = "write an integer, without quotes or a point"
            context.refuse("wrong-type", f'"{key}" must be an integer, not {describe(cell)}', path, remedy)
        elif not least <= cell <= most:
            what = f'"{key}" must be an integer from {least} to {most}, not {describe(cell)}'
            context.refuse("out-of-range", what, path, "leave it out, or give a value in this range")
    elif key in declared.constants or not isinstance(cell, str):
        number(cell, path, declared.dtype, context)
