"""Numbers written in a spec: a scalar, a list, or a list of rows."""

from __future__ import annotations

import math

from bpcli.errors import printable
from bpcli.spec.complaints import describe
from bpcli.spec.context import Context
from bpcli.spec.model import Nested
from bpcli.spec.outline import Path

FLOAT32_MAX = 3.4028234663852886e38
_MAX_AXES = 2


def number(value: object, path: Path, dtype: str, context: Context) -> float | None:
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


def nested(value: object, path: Path, shape: tuple[int, ...], dtype: str, context: Context) -> Nested | None:
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


def _read(value: object, path: Path, dtype: str, context: Context, axes: int) -> Nested | None:
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


def _owner(path: Path) -> str:
    return path[-1] if path[0] == "data" else path[1]
