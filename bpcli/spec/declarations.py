"""Declarations in a spec: names, and the shapes and initial values of inputs, parameters and states.

Dims, constants, arrays and equations share one name space.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bpcli.errors import printable
from bpcli.spec import schema
from bpcli.spec.equations import evaluate, parse
from bpcli.spec.language import canonical, reserved
from bpcli.spec.schema import describe
from bpcli.spec.source import Context, KeyPath
from bpcli.spec.specification import FLOAT32_MAX, MAX_SIZE, ArrayDecl, Kind, Nested

_TIMED = re.compile(r"(\w+)\s*[(\[]\s*t\s*[)\]]")
_NOUNS = {
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
    places = {path: context.source.key(*path) for path in paths}
    seen: dict[str, list[KeyPath]] = {}
    refused: set[str] = set()
    for path in sorted(places, key=lambda path: (places[path].line, places[path].column)):
        name = canonical(path[1])
        if context.full or not _is_name(name, path, context):
            refused.add(name)
            continue
        others = [other for other in seen.setdefault(name, []) if {other[0], path[0]} != {"state", "equations"}]
        if others:
            refused.add(name)
            _refuse_clash(name, path, others[0], context)
        seen[name].append(path)
    return Names({path: n for n, paths in seen.items() for path in paths if n not in refused}, frozenset(refused))


def _is_name(name: str, path: KeyPath, context: Context) -> bool:
    shown = printable(path[1], 60)
    if not name.isidentifier():
        remedy = "a name starts with a letter or _ and goes on with letters, digits and _"
        if timed := _TIMED.fullmatch(name):
            remedy = f"an equation gives the value of this step: write {timed[1]} = …"
        context.refuse_key("bad-name", f'"{shown}" is not a valid name', path, remedy)
        return False
    if reason := reserved(name):
        remedy = f'use another name, such as "{name}_"'
        context.refuse_key("reserved-name", f'"{shown}" is reserved: {reason}', path, remedy)
        return False
    return True


def _refuse_clash(name: str, path: KeyPath, other: KeyPath, context: Context) -> None:
    line = context.source.key(*other).line
    what = f'"{printable(name)}" is {_NOUNS[path[0]]} and also {_NOUNS[other[0]]} (line {line})'
    if path[1] != other[1]:
        what += ": both are the same identifier in Unicode's normal form KC"
    remedy = "rename one of the two: dims, constants, inputs, params, states and equations share one name space"
    context.refuse_key("name-clash", what, path, remedy)


_MAX_AXES = 2


def number(value: object, path: KeyPath, dtype: str, context: Context) -> float | None:
    """`value` as a float that is finite in `dtype`; None where it is refused."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        what = f"expected a number, not {describe(value)}"
        context.refuse("wrong-type", what, path, "write a number, without quotes")
        return None
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if math.isfinite(result) and (dtype == "float64" or abs(result) <= FLOAT32_MAX):
        return result
    context.refuse("not-finite", f"this number is not finite in {dtype}", path, "write a finite number")
    return None


def nested(value: object, path: KeyPath, shape: tuple[int, ...], dtype: str, context: Context) -> Nested | None:
    """The numbers of an array of `shape`, rows as tuples; None where something is refused, at its own place."""
    read = _read(value, path, dtype, context, 0)
    if read is None:
        return None
    found = _shape(read)
    if found == shape:
        return read
    has = "has rows of different lengths" if found is None else f"has the shape {list(found)}"
    owner = path[-1] if path[0] == "data" else path[1]
    what = f'the value of "{printable(owner)}" {has}, declared is {list(shape)}'
    wanted = f"a list of {shape[0]} numbers" if shape else "one number"
    if len(shape) == _MAX_AXES:
        wanted = f"a list of {shape[0]} rows of {shape[1]} numbers each"
    alike = '; init = "ones" with a scale is one number in all entries' if found == () and path[0] != "data" else ""
    context.refuse("shape-mismatch", what, path, f"write {wanted}{alike}")
    return None


def _read(value: object, path: KeyPath, dtype: str, context: Context, axes: int) -> Nested | None:
    if not isinstance(value, list):
        return number(value, path, dtype, context)
    if context.full:
        return None
    if axes == _MAX_AXES:
        context.refuse("wrong-type", "expected a number, not an array", path, "a matrix is a list of rows")
        return None
    items = [_read(item, (*path, str(i)), dtype, context, axes + 1) for i, item in enumerate(value)]
    read = tuple(item for item in items if item is not None)
    return read if len(read) == len(items) else None


def _shape(value: Nested) -> tuple[int, ...] | None:
    """The shape of nested tuples; None where they are ragged."""
    if not isinstance(value, tuple):
        return ()
    inner = {_shape(item) for item in value}
    if len(inner) > 1 or None in inner:
        return None
    return (len(value), *(inner.pop() or ())) if inner else (0,)


_KINDS: Mapping[str, Kind] = {"inputs": "input", "params": "param", "state": "state"}
_MATRIX_INITS = ("identity", "orthogonal", "glorot")
_DRAWN_INITS = ("normal", "uniform")
_DEFAULT_SPREAD = 0.1
_EXTENTS: Mapping[Kind, str] = {
    "input": "an input is a scalar or a vector",
    "param": "a parameter is a scalar, a vector or a matrix",
    "state": "a state is a scalar or a vector",
}
_RANKS = ("a scalar", "a vector", "a matrix")


@dataclass(frozen=True)
class Declarer:
    """Reads declarations of arrays; `dims` and the names refused so far give their shapes a meaning."""

    context: Context
    dims: Mapping[str, int]
    refused: frozenset[str]
    dtype: str

    def declare(self, path: KeyPath, name: str, table: schema.Input | schema.Param | schema.State) -> ArrayDecl | None:
        """The array at `path`; None where its shape is refused."""
        if self.context.full:
            return None
        kind = _KINDS[path[0]]
        shape = self.shape(path, table.shape, kind)
        if shape is None:
            return None
        place = self.context.source.key(*path)
        if isinstance(table, schema.Input):
            return ArrayDecl(name, kind, shape, place)
        density = self.density(path, table, shape)
        init = table.init or ("zeros" if kind == "state" else "normal")
        scale = self.scale(path, init, table.scale, shape)
        value = None if table.value is None else nested(table.value, (*path, "value"), shape, self.dtype, self.context)
        return ArrayDecl(
            name,
            kind,
            shape,
            place,
            self.init(path, init, table, shape),
            scale,
            value,
            table.trainable,
            density,
            self.per_sample(path, init, table),
            isinstance(table, schema.Param) and table.density == "file",
        )

    def shape(self, path: KeyPath, entries: list[int | str], kind: Kind) -> tuple[int, ...] | None:
        """The sizes that a shape's entries stand for."""
        inside = (*path, "shape") if self.context.source.written(*path, "shape") else path
        most = 2 if kind == "param" else 1
        sizes = [self.size((*inside, str(i)), entry) for i, entry in enumerate(entries[: most + 1])]
        if len(entries) > most:
            vectors = "declare a vector and cut it with slices, or several vectors"
            remedy = "declare several matrices" if kind == "param" else vectors
            what = f"{_EXTENTS[kind]}; more axes are a known limit of version 1"
            self.context.refuse("known-limit", what, inside, remedy)
            return None
        known = tuple(size for size in sizes if size is not None)
        return known if len(known) == len(sizes) else None

    def size(self, path: KeyPath, entry: int | str) -> int | None:
        """One size, evaluated where it is an expression; None where it is refused."""
        if isinstance(entry, int):
            return entry
        context = self.context
        expression = parse(entry, context.token_places(path, entry), context.collector, "integer")
        size = None if expression is None else evaluate(expression, self.dims, context.collector, self.refused)
        if size is None or 1 <= size <= MAX_SIZE:
            return size
        what = f'"{printable(entry, 60)}" is {size}; a size is an integer from 1 to 2**40'
        context.refuse("out-of-range", what, path, "change the dims in it")
        return None

    def init(self, path: KeyPath, init: str, table: schema.Param | schema.State, shape: tuple[int, ...]) -> str:
        """The name of the init, or "value" where the declaration has one."""
        if table.value is not None:
            for key in ("init", "scale"):
                if key in table.model_fields_set:
                    what = f'"value" and "{key}" cannot be used together'
                    self.context.refuse_key("conflict", what, (*path, key), "keep one of the two")
            return "value"
        if init in _MATRIX_INITS and len(shape) != 2:
            what = f'init "{init}" is for matrices, "{printable(path[1])}" is {_RANKS[len(shape)]}'
            self.context.refuse("bad-init", what, (*path, "init"), "use zeros, ones, normal or uniform")
        return init

    def per_sample(self, path: KeyPath, init: str, table: schema.Param | schema.State) -> bool:
        """Whether a state is drawn for every sample; refused where nothing is drawn, and of a trainable state."""
        if not isinstance(table, schema.State) or not table.per_sample:
            return False
        where, name = (*path, "per_sample"), printable(path[1])
        if table.value is not None:
            what = f'"{name}" has a value, which is the same for every sample'
            self.context.refuse_key("conflict", what, where, 'leave out "value" or "per_sample"')
        elif table.trainable:
            what = f'"{name}" is trainable: one initial value, which serves every sample'
            remedy = 'leave out one of the two; wrt = ["state"] differentiates an initial state that is no parameter'
            self.context.refuse_key("conflict", what, where, remedy)
        elif init not in _DRAWN_INITS:
            what = f'the init "{init}" of "{name}" draws nothing: every sample would have the same state'
            self.context.refuse_key("bad-init", what, where, 'write init = "normal" or "uniform"')
        return True

    def scale(self, path: KeyPath, init: str, given: float | None, shape: tuple[int, ...]) -> float:
        """The scale as given, or the default of the init: 1/sqrt(columns) or 0.1 where numbers are drawn, else 1."""
        if given is None:
            spread = 1 / math.sqrt(shape[1]) if len(shape) == 2 else _DEFAULT_SPREAD
            return spread if init in _DRAWN_INITS else 1.0
        if init in _DRAWN_INITS and given < 0:
            what = f'the scale of init "{init}" is {given}; a spread is at least 0'
            self.context.refuse("out-of-range", what, (*path, "scale"), "leave out the minus")
        else:
            number(given, (*path, "scale"), self.dtype, self.context)
        return float(given)

    def density(self, path: KeyPath, table: schema.Param | schema.State, shape: tuple[int, ...]) -> float | None:
        """The density as given, 1 where the weights file decides; None where there is none or it is refused."""
        given = table.density if isinstance(table, schema.Param) else None
        density = 1.0 if given == "file" else given
        if density is None or len(shape) == 2:
            return density
        what = f'"density" is for matrices, "{printable(path[1])}" is {_RANKS[len(shape)]}'
        self.context.refuse_key("bad-density", what, (*path, "density"), "leave it out")
        return None
