"""Sums of many terms, regrouped so that what does not change from step to step is added before the time loop.

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
from bpcli.graph.model import Phase


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
