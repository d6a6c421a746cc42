"""The likely causes of the wrong gradients of a black box, from their numbers alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bpcli.checking.blame.patterns import Numbers, of_one, patterns
from bpcli.checking.blame.signatures import PLAIN, extent, not_finite
from bpcli.checking.verdict import WRONG, Entries
from bpcli.problem.definition import Array
from bpcli.references.base import FloatArray

# The bound of an estimate over the largest error; an estimate that is less sharp would agree with any pattern.
_SHARP = 1e-3
_TWICE = 1e-12

Arrays = Mapping[str, Array]
NOT_CLEARED = "the buffer is not cleared: a second call adds to the first"


@np.errstate(all="ignore")  # of huge numbers norms and products overflow
def box_causes(given: Arrays, theta: Arrays, judged: Mapping[str, Entries]) -> dict[str, str]:
    """A cause for each wrong tensor, all of whose entries were `judged`; `theta` are the arrays differentiated."""
    wrong = {n: entries.verdict == WRONG for n, entries in judged.items()}
    names = [n for n in judged if not wrong[n].any() or _sharp(given[n], judged[n])]
    wide = {n: np.asarray(given[n], float) for n in judged}
    right, slack = ({n: np.asarray(a, float) for n, a in some} for some in _parts(judged, names))
    held = {n: np.asarray(a, float) for n, a in theta.items()}
    numbers = Numbers({n: wide[n] for n in names}, right, slack, held, PLAIN)
    found = patterns(numbers, right) if names and any(wrong[n].any() for n in names) else None
    whole = {n: "; and ".join(p.words for p in found or () if n in p.tensors) for n in names}
    return {
        n: not_finite(wide[n]) or whole.get(n, "") or (of_one(numbers, right, n) if n in names else "") or extent(off)
        for n, off in wrong.items()
        if off.any()
    }


def _parts(judged: Mapping[str, Entries], names: list[str]) -> tuple[list[tuple[str, FloatArray]], ...]:
    return [(n, judged[n].reference) for n in names], [(n, judged[n].bound) for n in names]


def _sharp(given: Array, entries: Entries) -> bool:
    error = np.abs(given - entries.reference)
    return bool(np.isfinite(error).all() and entries.bound.max(initial=0.0) <= _SHARP * error.max(initial=0.0))


def accumulates(first: Array, second: Array) -> bool:
    """Whether a second call gives twice the first one."""
    largest = float(np.abs(first).max(initial=0.0))
    return bool(0 < largest < np.inf and (np.abs(second - 2 * first) <= _TWICE * largest).all())
