"""Numbers written in a spec: a scalar, a list, or a list of rows.

Declarations of inputs, params and states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bpcli.errors import printable
from bpcli.spec import schema
from bpcli.spec.context import Context
from bpcli.spec.equations import parse
from bpcli.spec.integers import MAX_SIZE, evaluate
from bpcli.spec.specification import ArrayDecl, Kind, Nested
from bpcli.spec.toml import KeyPath
from bpcli.spec.validation import describe

FLOAT32_MAX = 3.4028234663852886e38
_MAX_AXES = 2


def number(value: object, path: KeyPath, dtype: str, context: Context) -> float | None:
    """`value` as a float that is finite in `dtype`; None where it is refused."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        context.refuse(
            "wrong-type", f"a number is wanted here, not {describe(value)}", path, "write a number, without quotes"
        )
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
    what = f'the value of "{printable(_owner(path))}" {has}, declared is {list(shape)}'
    alike = '; init = "ones" with a scale is one number in all entries' if found == () and path[0] != "data" else ""
    context.refuse("shape-mismatch", what, path, f"write {_wanted(shape)}{alike}")
    return None


def _read(value: object, path: KeyPath, dtype: str, context: Context, axes: int) -> Nested | None:
    if not isinstance(value, list):
        return number(value, path, dtype, context)
    if context.full:
        return None
    if axes == _MAX_AXES:
        context.refuse("wrong-type", "a number is wanted here, not an array", path, "a matrix is a list of rows")
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


def _wanted(shape: tuple[int, ...]) -> str:
    """Numbers of a shape, in words."""
    if len(shape) < _MAX_AXES:
        return f"a list of {shape[0]} numbers" if shape else "one number"
    return f"a list of {shape[0]} rows of {shape[1]} numbers each"


def _owner(path: KeyPath) -> str:
    return path[-1] if path[0] == "data" else path[1]


KINDS: Mapping[str, Kind] = {"inputs": "input", "params": "param", "state": "state"}
_MATRICES = ("identity", "orthogonal", "glorot")
_DRAWN = ("normal", "uniform")
_FLAT_SCALE = 0.1


@dataclass(frozen=True)
class Declarer:
    """What declarations refer to: the dims, the names refused so far, the dtype."""

    context: Context
    dims: Mapping[str, int]
    refused: frozenset[str]
    dtype: str

    def declare(self, path: KeyPath, name: str, table: schema.Input | schema.Param | schema.State) -> ArrayDecl | None:
        """The array at `path`; None where its shape is refused, since nothing can be said of one without."""
        if self.context.full:
            return None
        kind = KINDS[path[0]]
        shape = self.shape(path, table.shape, kind)
        if shape is None:
            return None
        place = self.context.source.key(*path)
        if isinstance(table, schema.Input):
            return ArrayDecl(name, kind, shape, place)
        density = self.density(path, table, shape)
        init, scale = self.init(path, table, shape), self.scale(path, table, shape)
        value: Nested | None = None
        if table.value is not None:
            value = nested(table.value, (*path, "value"), shape, self.dtype, self.context)
        return ArrayDecl(name, kind, shape, place, init, scale, value, table.trainable, density)

    def shape(self, path: KeyPath, entries: list[int | str], kind: Kind) -> tuple[int, ...] | None:
        """The sizes that a shape's entries stand for."""
        inside = (*path, "shape") if (*path, "shape") in self.context.source.values else path
        most = 2 if kind == "param" else 1
        sizes = [self.entry((*inside, str(i)), entry) for i, entry in enumerate(entries[: most + 1])]
        if len(entries) > most:
            noun = "a parameter" if kind == "param" else f"an {kind}" if kind == "input" else f"a {kind}"
            extent = "a scalar, a vector or a matrix" if kind == "param" else "a scalar or a vector"
            what = f"{noun} is {extent}; more axes are a known limit of version 1"
            remedy = (
                "declare several matrices"
                if kind == "param"
                else "declare a vector and cut it with slices, or several vectors"
            )
            self.context.refuse("known-limit", what, inside, remedy)
            return None
        known = tuple(size for size in sizes if size is not None)
        return known if len(known) == len(sizes) else None

    def entry(self, path: KeyPath, entry: int | str) -> int | None:
        """One size, evaluated where it is an expression; None where it has been refused."""
        if isinstance(entry, int):
            return entry
        context = self.context
        expression = parse(entry, context.where(path, entry), context.collector, "whole")
        size = None if expression is None else evaluate(expression, self.dims, context.collector, self.refused)
        if size is None or 1 <= size <= MAX_SIZE:
            return size
        what = f'"{printable(entry, 60)}" is {size}; a size is an integer from 1 to 2**40'
        context.refuse("out-of-range", what, path, "change the dims in it")
        return None

    def init(self, path: KeyPath, table: schema.Param | schema.State, shape: tuple[int, ...]) -> str:
        """The name of the init, "value" included, with the default of the kind."""
        if table.value is not None:
            for key in ("init", "scale"):
                if key in table.model_fields_set:
                    what = f'"value" and "{key}" exclude each other'
                    self.context.refuse_key("conflict", what, (*path, key), "keep one of the two")
            return "value"
        default = "zeros" if isinstance(table, schema.State) else "normal"
        init = table.init or default
        if init in _MATRICES and len(shape) != 2:
            what = f'init "{init}" is for matrices, "{printable(path[1])}" is {_noun(shape)}'
            self.context.refuse("bad-init", what, (*path, "init"), "use zeros, ones, normal or uniform")
            return default
        return init

    def scale(self, path: KeyPath, table: schema.Param | schema.State, shape: tuple[int, ...]) -> float:
        """The scale as given, or the default of the init: 1/sqrt(columns) or 0.1 where numbers are drawn, else 1."""
        init = table.init or ("zeros" if isinstance(table, schema.State) else "normal")
        if table.scale is None:
            drawn = 1 / math.sqrt(shape[1]) if len(shape) == 2 else _FLAT_SCALE
            return drawn if init in _DRAWN else 1.0
        if init in _DRAWN and table.scale < 0:
            what = f'the scale of init "{init}" is {table.scale}; a spread is at least 0'
            self.context.refuse("out-of-range", what, (*path, "scale"), "leave out the minus")
        elif self.dtype == "float32" and abs(table.scale) > FLOAT32_MAX:
            what = "this number is not finite in float32"
            self.context.refuse("not-finite", what, (*path, "scale"), "write a finite number")
        return float(table.scale)

    def density(self, path: KeyPath, table: schema.Param | schema.State, shape: tuple[int, ...]) -> float | None:
        """The density as given; None where there is none, or where it has been refused."""
        density = table.density if isinstance(table, schema.Param) else None
        if density is None or len(shape) == 2:
            return density
        what = f'"density" is for matrices, "{printable(path[1])}" is {_noun(shape)}'
        self.context.refuse_key("bad-density", what, (*path, "density"), "leave it out")
        return None


def _noun(shape: tuple[int, ...]) -> str:
    return ("a scalar", "a vector", "a matrix")[len(shape)]
