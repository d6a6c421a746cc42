"""Faults in the weights of the losses, in single steps, and in the answer as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bpcli.checking.faults.fault import Advice, Fault, advise
from bpcli.checking.interpreter import Edge, Hooks, Walk
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.references.base import FloatArray

Arrays = Mapping[str, Array]
Rule = Callable[[Array], Array]


def each(rule: Rule) -> Hooks:
    """Hooks that apply a rule to every tensor of the answer."""
    return Hooks(answer=lambda problem, arrays, call: {name: rule(a) for name, a in arrays.items()})


def _weighted(change: Callable[[FloatArray, Walk], FloatArray]) -> Hooks:
    return Hooks(weights=lambda walk: change(walk.weights, walk))


def _times_batch(w: FloatArray, walk: Walk) -> FloatArray:
    return w * walk.setup.batch if walk.setup.spec.objective.over_batch == "mean" else w


def _times_steps(w: FloatArray, walk: Walk) -> FloatArray:
    return w * walk.setup.T if walk.setup.spec.objective.over_time == "mean" else w


def _without(steps: slice) -> Hooks:
    """Some of several losses are left out; a single one is none of several."""

    def change(w: FloatArray, walk: Walk) -> FloatArray:
        kept = w.copy()
        kept[steps] = w[steps] if walk.setup.T == 1 else 0.0
        return kept

    return _weighted(change)


_SAME_WEIGHTS = _weighted(lambda w, walk: (w[::-1] + 0.0)[::-1])


def _step(wanted: Callable[[int, int], bool]) -> Hooks:
    """What one of several steps gives to parameters is left out."""

    def gather(e: Edge, given: FloatArray) -> FloatArray:
        total: FloatArray = given.sum(axis=0, keepdims=True)
        return 0.0 * total if e.walk.setup.T > 1 and wanted(e.t, e.walk.setup.T) else total

    return Hooks(gather=gather)


def _single(e: Edge, given: FloatArray) -> FloatArray:
    total = given.astype(np.float32).sum(axis=0, keepdims=True, dtype=np.float32)
    return np.asarray(total, dtype=np.float64)


def _pairwise(e: Edge, given: FloatArray) -> FloatArray:
    return np.asarray(given[::-1].sum(axis=0, keepdims=True))


def _largest_zeroed(a: Array) -> Array:
    out = a.copy()
    out.reshape(-1)[np.abs(a).argmax()] = 0.0
    return out


def _pairs(arrays: Arrays) -> dict[str, str]:
    """Every tensor that has a neighbour of the same shape, with that neighbour."""
    found: dict[str, str] = {}
    for name, a in arrays.items():
        other = next((n for n, b in arrays.items() if n != name and n not in found and a.shape == b.shape), None)
        if other and name not in found:
            found[name], found[other] = other, name
    return found


def _swapped(problem: Problem, arrays: Arrays, call: int) -> dict[str, Array]:
    pairs = _pairs(arrays)
    return {name: arrays[pairs.get(name, name)] for name in arrays}


def _shared_buffer(problem: Problem, arrays: Arrays, call: int) -> dict[str, Array]:
    pairs = _pairs(arrays)
    return {name: a + arrays[pairs[name]] if name in pairs else a for name, a in arrays.items()}


def _reversed_twice(problem: Problem, arrays: Arrays, call: int) -> dict[str, Array]:
    return dict(reversed(list(dict(reversed(list(arrays.items()))).items())))


def _not_cleared(problem: Problem, arrays: Arrays, call: int) -> dict[str, Array]:
    return {name: a * (call + 1) for name, a in arrays.items()}


def _cleared(problem: Problem, arrays: Arrays, call: int) -> dict[str, Array]:
    return {name: a * (call + 1 - call) for name, a in arrays.items()}


def _descends(problem: Problem, arrays: Arrays, call: int) -> dict[str, Array]:
    """The gradient's buffer is the array that it is the gradient of."""
    for x in problem.setup.wrt:
        problem.array(x)[...] = arrays[x.name]
    return dict(arrays)


def _copied(problem: Problem, arrays: Arrays, call: int) -> dict[str, Array]:
    for x in problem.setup.wrt:
        problem.array(x).copy()[...] = arrays[x.name]
    return dict(arrays)


def _averaged(setup: Setup) -> str:
    if setup.spec.objective.over_batch == "sum":
        return 'over_batch = "sum": there is no batch average; take "mean" to test it'
    return "batch = 1: the batch average is untested; take batch = 3"


def _over_time(setup: Setup) -> str:
    if not setup.graph.recurrent:
        return "the network has no state: there is no average over time"
    if setup.spec.objective.over_time != "mean":
        return f'over_time = "{setup.spec.objective.over_time}": there is no average over time; take "mean" to test it'
    return "T = 1: the average over time is untested; take T = 4"


def _single_precision(setup: Setup) -> str:
    return 'dtype = "float32": a float32 accumulator is what is expected; take dtype = "float64"'


def _losses(setup: Setup) -> str:
    if setup.graph.recurrent and setup.spec.objective.over_time == "last":
        return 'over_time = "last": there are no intermediate losses; take "sum" to test them'
    return advise("the intermediate losses are constant", steps="more than one loss")(setup)


_ZERO = advise("the gradient is zero: take other values or data")
_TWINS = advise("no two tensors have the same shape and different gradients")

_ROWS: tuple[tuple[str, str, str, Advice, Hooks, Hooks], ...] = (
    ("batch-average-missing", "1/B is missing: the sum over the batch is taken for the average", "q",
     _averaged, _weighted(_times_batch), _SAME_WEIGHTS),
    ("batch-average-twice", "1/B is applied twice", "q",
     advise("the gradient is zero", batch="the batch average"),
     _weighted(lambda w, walk: w / walk.setup.batch), _SAME_WEIGHTS),
    ("time-average-missing", "1/T is missing: the sum over time is taken for the average", "q",
     _over_time, _weighted(_times_steps), _SAME_WEIGHTS),
    ("averaged-over-time", "the gradient is divided by T, which the objective does not say", "q",
     advise("the gradient is zero", steps="the sum over time"),
     _weighted(lambda w, walk: w / walk.setup.T), _SAME_WEIGHTS),
    ("final-loss-dropped", "the last step's loss is left out", "q",
     advise("the last loss is constant", steps="a last loss among others"), _without(slice(-1, None)), _SAME_WEIGHTS),
    ("intermediate-losses-dropped", "all losses but the last are left out", "q",
     _losses, _without(slice(0, -1)), _SAME_WEIGHTS),
    ("first-step-missing", "what the first step gives to the parameters is left out", "M̄",
     advise("the first step gives nothing", steps="a first step among others"),
     _step(lambda t, T: t == 0), Hooks(gather=_pairwise)),
    ("last-step-missing", "what the last step gives to the parameters is left out", "M̄",
     advise("the last step gives nothing", steps="a last step among others"),
     _step(lambda t, T: t == T - 1), Hooks(gather=_pairwise)),
    ("float32-accumulator", "the gradient is summed in float32", "",
     _single_precision, Hooks(gather=_single), Hooks(gather=_pairwise)),
    ("sign", "the sign is wrong", "", _ZERO, each(lambda a: -a), each(lambda a: 0.0 - (0.0 - a))),
    ("doubled", "everything counts twice", "", _ZERO, each(lambda a: 2 * a), each(lambda a: (a + a) / 2)),
    ("halved", "a factor 2 is missing", "", _ZERO, each(lambda a: a / 2), each(lambda a: a / 2 * 2)),
    ("zeroed", "the gradient is zero, as if it were never computed", "", _ZERO, each(lambda a: 0 * a), each(np.array)),
    ("one-entry-zeroed", "one entry is left at zero", "", _ZERO, each(_largest_zeroed), each(np.copy)),
    ("tensors-swapped", "the gradients of two tensors of one shape are exchanged", "",
     _TWINS, Hooks(answer=_swapped), Hooks(answer=_reversed_twice)),
    ("aliased-buffer", "two tensors of one shape share a buffer, and each gets the sum", "",
     _TWINS, Hooks(answer=_shared_buffer), Hooks(answer=_reversed_twice)),
    ("buffer-not-cleared", "the buffer is not cleared: a second call adds to the first", "",
     _ZERO, Hooks(answer=_not_cleared), Hooks(answer=_cleared)),
    ("writes-to-arguments", "the gradient is written into the arrays that it is of", "",
     _ZERO, Hooks(answer=_descends), Hooks(answer=_copied)),
)  # fmt: skip

FAULTS = tuple(Fault(*row) for row in _ROWS)
