"""Products, quotients, powers, transposes and slices, with the identities that cost nothing to see."""

from __future__ import annotations

import math

from bpcli.errors import Place
from bpcli.graph.drafts import Drafts


def multiply(drafts: Drafts, left: int | None, right: int | None, place: Place) -> int | None:
    """left * right: a constant goes first, 1 goes away, and constants of nested products become one."""
    if left is None or right is None:
        return None
    if drafts.value(left) is None and drafts.value(right) is not None:
        left, right = right, left
    value = drafts.value(left)
    if value is None or drafts.value(right) is not None:
        return drafts.apply("multiply", (left, right), place)
    inner = drafts.nodes[right]
    if inner.op == "multiply" and not drafts.names[right]:
        scale = drafts.value(inner.args[0])
        product = value * scale if scale is not None else 0.0
        # An underflow or overflow of the constants alone must not change the result.
        if product and math.isfinite(product):
            return multiply(drafts, drafts.constant(product, place), inner.args[1], place)
    return right if value == 1 else drafts.apply("multiply", (left, right), place)


def divide(drafts: Drafts, left: int | None, right: int | None, place: Place) -> int | None:
    """left / right; dividing by 1 goes away, by the constant 0 is refused."""
    if left is None or right is None:
        return None
    value = drafts.value(right)
    if value == 0:
        drafts.collector.add("not-finite", "division by zero", place, help="divide by a number that is not zero")
        return None
    return left if value == 1 else drafts.apply("divide", (left, right), place)


def power(drafts: Drafts, base: int | None, exponent: float, place: Place) -> int | None:
    """base ** exponent for a constant exponent; the exponent 1 goes away."""
    return base if exponent == 1 else drafts.apply("power", (base,), place, (exponent,))


def product(drafts: Drafts, left: int | None, right: int | None, place: Place) -> int | None:
    """left @ right: with a vector, or with another matrix of parameters and constants."""
    if left is None or right is None:
        return None
    op = "matmat" if len(drafts.nodes[right].shape) > 1 else "matmul"
    return drafts.apply(op, (left, right), place)


def transpose(drafts: Drafts, matrix: int | None, place: Place) -> int | None:
    """matrix.T; the transpose of a transpose is the matrix itself."""
    if matrix is not None and drafts.nodes[matrix].op == "transpose":
        return drafts.nodes[matrix].args[0]
    return drafts.apply("transpose", (matrix,), place)


def cut(drafts: Drafts, vector: int, bounds: tuple[int, int], place: Place, element: bool = False) -> int | None:
    """vector[start:stop], or the scalar vector[start]; a slice of a slice is one slice, all of a vector the vector."""
    start, stop = bounds
    draft = drafts.nodes[vector]
    if drafts.check("slice", [drafts.kind(vector)], place, (start, stop)) is None:
        return None
    if start == 0 and stop == draft.shape[0] and not element:
        return vector
    if draft.op == "slice" and not drafts.names[vector]:
        offset = int(draft.numbers[0])
        vector, start, stop = draft.args[0], start + offset, stop + offset
    return drafts.apply("slice", (vector,), place, (float(start), float(stop)), element)
