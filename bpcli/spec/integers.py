"""Integer expressions over dims: shapes and the bounds of slices."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from bpcli.errors import Collector, Place, nearest
from bpcli.spec.specification import Binary, Expr, Number, Ref

MAX_SIZE = 1 << 40
_MAX_STEP = 1 << 62


def evaluate(
    expression: Expr, dims: Mapping[str, int], collector: Collector, refused: Collection[str] = ()
) -> int | None:
    """The integer that `expression` (of the grammar "whole") stands for, or None where something was refused.

    A name in `refused` gives None without a further refusal. A negative result is the caller's to judge.
    """
    match expression:
        case Number(value=int() as value):
            return _bounded(value, expression.place, collector)
        case Ref(name=name, place=place):
            if name in dims:
                return dims[name]
            if name not in refused:
                remedy = nearest(name, dims, "name it in [dims]")
                collector.add("unknown-name", f'unknown dim "{name}"', place, help=remedy)
            return None
        case Binary(op=op, left=left, right=right, place=place):
            operands = evaluate(left, dims, collector, refused), evaluate(right, dims, collector, refused)
            if operands[0] is None or operands[1] is None:
                return None
            return _combined(op, (operands[0], operands[1]), place, collector)
    collector.add(
        "not-whole", "an integer expression is wanted here", expression.place, help="use + - * //, numbers, dims"
    )
    return None


def _combined(op: str, operands: tuple[int, int], place: Place, collector: Collector) -> int | None:
    left, right = operands
    if op == "//" and right == 0:
        collector.add("out-of-range", "a division by zero", place, help="divide by a dim or a number of at least 1")
        return None
    results = {"+": left + right, "-": left - right, "*": left * right, "//": left // right if right else 0}
    return _bounded(results[op], place, collector)


def _bounded(value: int, place: Place, collector: Collector) -> int | None:
    if abs(value) <= _MAX_STEP:
        return value
    collector.add("out-of-range", "an integer larger than any size can be", place, help="sizes are at most 2**40")
    return None
