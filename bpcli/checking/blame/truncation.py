"""The name of a gradient that equals a truncated method's, `tbptt:k1=…,k2=…` or `ebptt:…` with k1 and k2 up to T, or an
approximate online method's.

Give every step its own copy θ_s of the parameters: the gradient is the sum of ∂l(t)/∂θ_s over s <= t, and a truncation
the sum over some of these pairs. They are computed once, along a few random directions, and summed for every
truncation; one that agrees is then computed in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bpcli.checking.blame.evidence import Evidence
from bpcli.checking.interpreter import ReversePass, interpreter_cost
from bpcli.methods import parse
from bpcli.methods.ebptt import epochs
from bpcli.problem.definition import Setup
from bpcli.references.base import FloatArray
from bpcli.runtime.reverse_mode import Window, staircase

# Operations of the interpreter for reverse passes from all steps.
_WORK = 6e7
_DIRECTIONS = 3
# Approximations that others write under another name, and the operations that one may take.
_ONLINE = ("snap:k=1", "rflo", "eprop", "snap:k=2")
_FLOPS = 1e9
# Relative to the error along a direction; a sum that is closer is compared entry by entry.
_CLOSE = 1e-6


def affordable(setup: Setup) -> bool:
    """Whether there is something to truncate, and reverse passes from all steps are within the limit."""
    return setup.graph.recurrent and setup.T > 1 and interpreter_cost(setup) * setup.T / 2 <= _WORK


Matches = list[tuple[list[str], NDArray[np.bool_]]]
"""Methods that are equal for these sizes, and by tensor whether they agree with the answer along a few directions."""


def names(evidence: Evidence, matches: Matches) -> list[str]:
    """The methods, other than the one that is meant, that give all tensors of the answer to within rounding.

    Several are equal for these sizes.
    """
    whole = [same for same, agreeing in matches if agreeing.all() and agrees(evidence, same[0])]
    return [method for same in whole for method in same]


def near(evidence: Evidence, matches: Matches) -> list[str]:
    """The methods that give several wrong tensors, and more of them than others do; of equal ones the simplest."""
    wrong = np.array([n in evidence.wrong for n in evidence.right])
    counts = {same[0]: int((agreeing & wrong).sum()) for same, agreeing in matches}
    most = max(counts.values(), default=0)
    return [method for method, count in counts.items() if count == most > 1]


def compare(evidence: Evidence, in_time: Callable[[], bool]) -> Matches:
    """All truncations beside the answer; none where that is not affordable."""
    setup, answer = evidence.problem.setup, evidence.answers[0]
    whole = all(n in answer and answer[n].shape == a.shape for n, a in evidence.right.items())
    finite = whole and all(np.isfinite(answer[n]).all() for n in evidence.right)
    if not finite or not evidence.wrong or not affordable(setup):
        return []
    generator = np.random.default_rng(0)
    rows = {n: generator.normal(size=(_DIRECTIONS, *a.shape)) for n, a in evidence.right.items()}
    sums = _sums(evidence, rows, in_time)
    if sums is None:
        return []
    given, right, slack = (_along(rows, a) for a in (answer, evidence.right, _tolerances(evidence)))
    room = _CLOSE * np.abs(given - right) + np.abs(slack) + np.abs(_CLOSE**2 * right)
    found: Matches = []
    for windows, same in _truncations(setup.T).items():
        value = sum(sums[w.start, w.stop] - sums[w.start, w.loss_from] for w in windows)
        if windows != evidence.definition.over(setup):
            close = np.abs(value - given) <= room
            found.append((same, close.reshape(len(rows), _DIRECTIONS).all(axis=1)))
    return found


def approximations(evidence: Evidence) -> list[str]:
    """The approximate online methods, other than the one that is meant, that give all tensors of the answer."""
    setup = evidence.problem.setup
    calls = [parse(text) for text in _ONLINE if setup.graph.recurrent and evidence.wrong]
    fit = [c for c in calls if c.refusal(setup.graph) is None and c.cost(setup).flops <= _FLOPS]
    return [c.text for c in fit if c.definition(setup) != evidence.definition and agrees(evidence, c.text)]


def agrees(evidence: Evidence, method: str) -> bool:
    """Whether a method gives all tensors of the answer, to within rounding."""
    value, given = evidence.of_method(method), evidence.answers[0]
    return all(
        n in given and given[n].shape == a.shape and bool((np.abs(given[n] - value[n]) <= evidence.tolerance(n)).all())
        for n, a in evidence.right.items()
    )


def _tolerances(evidence: Evidence) -> dict[str, FloatArray]:
    return {n: evidence.tolerance(n) for n in evidence.right}


def _along(rows: Mapping[str, FloatArray], arrays: Mapping[str, FloatArray]) -> FloatArray:
    """The components of all tensors along all directions."""
    return np.concatenate([(r * arrays[n]).reshape(_DIRECTIONS, -1).sum(axis=1) for n, r in rows.items()])


def _sums(evidence: Evidence, rows: Mapping[str, FloatArray], in_time: Callable[[], bool]) -> FloatArray | None:
    """[s, t]: the losses of the first t steps differentiated through step s and later ones, along directions."""
    setup = evidence.problem.setup
    T, kinds = setup.T, {x.name: x.kind for x in setup.wrt}
    found = np.zeros((T, T + 1, _DIRECTIONS * len(rows)))
    for t in range(T):
        if not in_time():
            return None
        reverse = ReversePass(evidence.forward, window=Window(0, t, t + 1)).run()
        whole = {n: np.asarray(a, float) for n, a in reverse.gradient().items()}
        for s in range(t + 1):
            part: dict[str, FloatArray] = {}
            params = reverse.params(reverse.static[s])
            for n, a in whole.items():
                if kinds[n] == "state":
                    part[n] = a * float(s == 0)
                elif kinds[n] == "input":
                    part[n] = np.array([x if t == s else 0 * x for t, x in enumerate(a)])
                else:
                    part[n] = np.asarray(np.where(evidence.stored(n), params.get(n, 0.0), 0.0), float)
            found[s, t + 1] = _along(rows, part)
    return np.asarray(found[::-1].cumsum(axis=0)[::-1].cumsum(axis=1))


def _truncations(T: int) -> dict[tuple[Window, ...], list[str]]:
    """The methods by their windows, the simplest first; those that are equal for this T together."""
    found: dict[tuple[Window, ...], list[str]] = {}
    for windows, method in _methods(T):
        found.setdefault(tuple(windows), []).append(method)
    return found


def _methods(T: int) -> Iterator[tuple[Sequence[Window], str]]:
    yield (Window(0, 0, T),), "bptt"
    yield from ((staircase(T, 1, k), f"tbptt:k1=1,k2={k}") for k in range(1, T))
    yield from ((epochs(T, k), f"ebptt:{k}") for k in range(2, T))
    yield from ((staircase(T, k1, k2), f"tbptt:k1={k1},k2={k2}") for k1 in range(2, T) for k2 in range(k1, T))
