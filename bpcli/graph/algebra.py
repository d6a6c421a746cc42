"""Products, quotients, powers, transposes and slices, with the identities that cost nothing to see.

Sums of many terms, regrouped so that what does not change from step to step is added before the time loop.

`W @ a[t-1] + W_in @ x + b` becomes `W @ a[t-1] + (W_in @ x + b)`: the bracket is computed for all steps at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from bpcli.errors import Place
from bpcli.graph.drafts import Drafts
from bpcli.graph.nodes import Phase


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


@dataclass(frozen=True)
class Term:
    """A node that is added, or subtracted where `negative`; the place is that of the operator in front of it."""

    node: int
    negative: bool
    place: Place


def add_terms(drafts: Drafts, terms: Sequence[Term]) -> int | None:
    """The node of a sum whose terms are known to fit each other.

    Constants first become one; then static terms, input terms and the rest are added, each group on top of the last,
    within a group scalars before vectors and positive terms before negative ones.
    """
    constants, others = _split(drafts, terms)
    total = reduce(add, constants, 0.0)
    if not others or not math.isfinite(total):
        return drafts.constant(total, terms[-1].place)
    if total:
        node = drafts.constant(abs(total), terms[0].place)
        if node is not None:
            others.append(Term(node, total < 0, terms[-1].place))
    sums = [_join_all(drafts, group) for group in _groups(drafts, others)]
    result = reduce(lambda earlier, later: _join(drafts, later, earlier), sums)
    return drafts.apply("negate", (result.node,), result.place) if result.negative else result.node


def _split(drafts: Drafts, terms: Iterable[Term]) -> tuple[list[float], list[Term]]:
    constants: list[float] = []
    others: list[Term] = []
    for term in terms:
        value = drafts.value(term.node)
        if value is None:
            others.append(term)
        else:
            constants.append(-value if term.negative else value)
    return constants, others


def _groups(drafts: Drafts, terms: Sequence[Term]) -> list[list[Term]]:
    """The terms by phase, the earliest phase first; no group is empty."""
    groups: dict[Phase, list[Term]] = {}
    for term in terms:
        groups.setdefault(drafts.nodes[term.node].phase, []).append(term)
    return [groups[phase] for phase in sorted(groups)]


def _join_all(drafts: Drafts, terms: Sequence[Term]) -> Term:
    ordered = sorted(terms, key=lambda term: (drafts.nodes[term.node].shape != (), term.negative))
    return reduce(lambda left, right: _join(drafts, left, right), ordered)


def _join(drafts: Drafts, left: Term, right: Term) -> Term:
    """left + right with their signs; the sign of the result is kept apart, so that -u - v is one addition."""
    place = max(left.place, right.place, key=lambda place: (place.line, place.column))
    if left.negative == right.negative:
        node = drafts.apply("add", (left.node, right.node), place)
        return Term(_made(node), left.negative, place)
    first, second = (right, left) if left.negative else (left, right)
    return Term(_made(drafts.apply("subtract", (first.node, second.node), place)), False, place)


def _made(node: int | None) -> int:
    assert node is not None, "terms of a sum fit each other"
    return node
