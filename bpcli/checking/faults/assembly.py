"""Faults in how local derivatives are put together: the weights of losses, J, M̄ and q over time, and the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from bpcli.checking.faults.fault import Advice, Fault, advise, on_edges
from bpcli.checking.interpreter import Edge, ForwardPass, Hooks, ReversePass, States
from bpcli.graph.nodes import Phase
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.references.base import FloatArray

Arrays = Mapping[str, Array]
_NO_LEAK = "no state has a direct path to its next value beside the matrix product; a leak would be one"
_NO_STATE = "the state enters no product with a parameter"


def _each(rule: Callable[[Array], Array]) -> Hooks:
    """Hooks that apply a rule to every tensor of the result."""
    return Hooks(answer=lambda problem, arrays, call: {name: rule(a) for name, a in arrays.items()})


def _weighted(change: Callable[[FloatArray, ForwardPass], FloatArray]) -> Hooks:
    """Hooks that change the weights (T, B) of the losses."""
    return Hooks(weights=lambda forward: change(forward.weights, forward))


def _times_batch(w: FloatArray, forward: ForwardPass) -> FloatArray:
    return w * forward.setup.batch if forward.setup.spec.objective.over_batch == "mean" else w


def _times_steps(w: FloatArray, forward: ForwardPass) -> FloatArray:
    return w * forward.setup.T if forward.setup.spec.objective.over_time == "mean" else w


def _without_losses(steps: slice) -> Hooks:
    """Hooks that leave out the losses of some of several steps."""

    def change(w: FloatArray, forward: ForwardPass) -> FloatArray:
        kept = w.copy()
        kept[steps] = w[steps] if forward.setup.T == 1 else 0.0
        return kept

    return _weighted(change)


def _without_step(omitted: Callable[[int, int], bool]) -> Hooks:
    """Hooks that leave out the contribution of one of several steps to the parameters."""

    def gather(e: Edge, given: FloatArray) -> FloatArray:
        total: FloatArray = given.sum(axis=0, keepdims=True)
        return 0.0 * total if e.forward.setup.T > 1 and omitted(e.t, e.forward.setup.T) else total

    return Hooks(gather=gather)


def _single(e: Edge, given: FloatArray) -> FloatArray:
    total = given.astype(np.float32).sum(axis=0, keepdims=True, dtype=np.float32)
    return np.asarray(total, dtype=np.float64)


def _largest_zeroed(a: Array) -> Array:
    out = a.copy()
    out.reshape(-1)[np.abs(a).argmax()] = 0.0
    return out


def _pairs(arrays: Arrays) -> dict[str, str]:
    """The tensors in pairs of the same shape, each name to the other."""
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


def _multiplied(factor: Callable[[int], int]) -> Hooks:
    """Hooks that multiply the result by a factor of the number of earlier calls."""
    return Hooks(answer=lambda problem, arrays, call: {name: a * factor(call) for name, a in arrays.items()})


def _written(problem: Problem, arrays: Arrays, call: int) -> dict[str, Array]:
    """The gradient's buffer is the array that it is the gradient of."""
    for x in problem.setup.wrt:
        problem.array(x)[...] = arrays[x.name]
    return dict(arrays)


def _written_to_copies(problem: Problem, arrays: Arrays, call: int) -> dict[str, Array]:
    for x in problem.setup.wrt:
        problem.array(x).copy()[...] = arrays[x.name]
    return dict(arrays)


def _averaged(setup: Setup) -> str:
    if setup.spec.objective.over_batch == "sum":
        return 'over_batch = "sum": there is no batch average; use "mean" to test it'
    return "batch = 1: the batch average is untested; use batch = 3"


def _over_time(setup: Setup) -> str:
    if not setup.graph.recurrent:
        return "the network has no state: there is no average over time"
    if setup.spec.objective.over_time != "mean":
        return f'over_time = "{setup.spec.objective.over_time}": there is no average over time; use "mean" to test it'
    return "T = 1: the average over time is untested; use T = 4"


def _losses(setup: Setup) -> str:
    if setup.graph.recurrent and setup.spec.objective.over_time == "last":
        return 'over_time = "last": there are no intermediate losses; use "sum" to test them'
    return advise("the intermediate losses are constant", steps="more than one loss")(setup)


def _leak(e: Edge) -> bool:
    """Whether the edge reads a[t-1] in an elementwise operation: a leak, a forget gate, a skip through time."""
    elementwise = e.node.op in ("multiply", "add", "subtract", "copy", "divide")
    return e.factor == "J" and e.source.op == "previous" and elementwise


def _scale(e: Edge) -> bool:
    """Whether the edge multiplies a value that depends on a state by a constant."""
    graph = e.forward.graph
    constant = any(graph.nodes[a].op == "constant" for a in e.node.args)
    return e.node.op == "multiply" and constant and e.node.phase is Phase.RECURRENT and e.source.op != "previous"


def _with_states(e: Edge, states: Sequence[FloatArray]) -> FloatArray:
    """The contribution with other values for the states that the node reads."""
    nodes = [e.forward.graph.nodes[a] for a in e.node.args]
    order = list(e.forward.graph.previous)
    return e.vjp([states[order.index(n.name)] if n.op == "previous" else v for n, v in zip(nodes, e.args, strict=True)])


def _reads_state(e: Edge) -> bool:
    graph = e.forward.graph
    return any(graph.nodes[a].op == "previous" for i, a in enumerate(e.node.args) if i != e.slot)


def _now(e: Edge) -> FloatArray:
    batch = e.forward.setup.batch
    values = [e.forward.values[e.t][e.forward.graph.new[name]] for name in e.forward.graph.previous]
    return _with_states(e, [np.broadcast_to(v, (batch, *v.shape[1:])) for v in values])


def _before(e: Edge) -> FloatArray:
    return _with_states(e, [e.forward.values[e.t][n] + 0.0 for n in e.forward.graph.previous.values()])


def _without_start(e: Edge) -> FloatArray:
    if e.t > 0:
        return e.vjp()
    return _with_states(e, [0.0 * e.forward.values[0][n] for n in e.forward.graph.previous.values()])


def _earlier_input(e: Edge) -> FloatArray:
    args = [e.forward.values[max(e.t - 1, 0)][a] if _is_input(e, a) else e.args[i] for i, a in enumerate(e.node.args)]
    return e.vjp(args)


def _is_input(e: Edge, arg: int) -> bool:
    return e.forward.graph.nodes[arg].op == "input"


def _reads_input(e: Edge) -> bool:
    return any(_is_input(e, a) for i, a in enumerate(e.node.args) if i != e.slot)


def _zeros(states: States) -> States:
    return {n: 0.0 * c for n, c in states.items()}


def _cut(reverse: ReversePass, t: int, credit: States) -> States:
    """No credit passes the middle of the sequence."""
    found = reverse.jacobian(t, credit)
    return _zeros(found) if t == max(1, reverse.forward.setup.T // 2) else found


def _in_two(reverse: ReversePass, t: int, credit: States) -> States:
    """J is linear: half of the cotangent, twice."""
    found = reverse.jacobian(t, {n: 0.5 * c for n, c in credit.items()})
    return {n: c + c for n, c in found.items()}


def _start_dropped(reverse: ReversePass, t: int, credit: States) -> States:
    found = reverse.jacobian(t, credit)
    return _zeros(found) if t == 0 else found


def _by_rows(reverse: ReversePass, t: int, credit: States, diagonal: bool) -> States:
    """J(t)ᵀ c(t) by rows of J, of all entries or of the diagonal alone."""
    found = {name: np.zeros(c.shape) for name, c in credit.items()}
    for name, i in [(name, i) for name, c in credit.items() for i in range(c[0].size)]:
        one = np.zeros((len(credit[name]), credit[name][0].size))
        one[:, i] = 1.0
        row = reverse.jacobian(t, {name: one.reshape(credit[name].shape)})
        for other, values in row.items():
            flat = values.reshape(len(values), -1)
            kept = np.where(np.arange(flat.shape[1]) == i, flat, 0.0) * (other == name) if diagonal else flat
            weighted = kept * credit[name].reshape(len(one), -1)[:, i : i + 1]
            found[other] = found.get(other, 0.0) + weighted.reshape(values.shape)
    return found


def _not_reset(reverse: ReversePass) -> States:
    """Samples in sequence with one influence matrix, which starts as the previous sample left it."""
    end: States = {}
    for _ in range(reverse.forward.setup.batch - 1):
        start = ReversePass(reverse.forward, Hooks(end=lambda s, end=end: end)).run().start  # type: ignore[misc]
        end = {n: np.concatenate([c[1:], np.zeros_like(c[:1])]) for n, c in start.items()}
    return end


_ZERO = advise("the gradient is zero: use other values or data")
_TWINS = advise("no two tensors have the same shape and different gradients")

_SAME_WEIGHTS = _weighted(lambda w, forward: (w[::-1] + 0.0)[::-1])
_PAIRWISE = Hooks(gather=lambda e, given: np.asarray(given[::-1].sum(axis=0, keepdims=True)))

_ROWS: tuple[tuple[str, str, str, Advice, Hooks, Hooks], ...] = (
    ("batch-average-missing", "1/B is missing: the batch is summed instead of averaged", "q",
     _averaged, _weighted(_times_batch), _SAME_WEIGHTS),
    ("batch-average-twice", "1/B is applied twice", "q",
     advise("the gradient is zero", batch="the batch average"),
     _weighted(lambda w, forward: w / forward.setup.batch), _SAME_WEIGHTS),
    ("time-average-missing", "1/T is missing: the steps are summed instead of averaged", "q",
     _over_time, _weighted(_times_steps), _SAME_WEIGHTS),
    ("averaged-over-time", "the gradient is divided by T, although the objective sums over time", "q",
     advise("the gradient is zero", steps="the sum over time"),
     _weighted(lambda w, forward: w / forward.setup.T), _SAME_WEIGHTS),
    ("final-loss-dropped", "the last step's loss is left out", "q",
     advise("the last loss is constant", steps="a last loss among others"),
     _without_losses(slice(-1, None)), _SAME_WEIGHTS),
    ("intermediate-losses-dropped", "all losses but the last are left out", "q",
     _losses, _without_losses(slice(0, -1)), _SAME_WEIGHTS),
    ("first-step-missing", "the first step's contribution to the parameters is left out", "M̄",
     advise("the first step contributes nothing", steps="a first step among others"),
     _without_step(lambda t, T: t == 0), _PAIRWISE),
    ("last-step-missing", "the last step's contribution to the parameters is left out", "M̄",
     advise("the last step contributes nothing", steps="a last step among others"),
     _without_step(lambda t, T: t == T - 1), _PAIRWISE),
    ("float32-accumulator", "the gradient is summed in float32", "",
     lambda setup: 'dtype = "float32": a float32 accumulator is expected; use dtype = "float64"',
     Hooks(gather=_single), _PAIRWISE),
    ("sign", "the sign is wrong", "", _ZERO, _each(lambda a: -a), _each(lambda a: 0.0 - (0.0 - a))),
    ("doubled", "everything counts twice", "", _ZERO, _each(lambda a: 2 * a), _each(lambda a: (a + a) / 2)),
    ("halved", "a factor 2 is missing", "", _ZERO, _each(lambda a: a / 2), _each(lambda a: a / 2 * 2)),
    ("zeroed", "the gradient is zero, as if it were never computed", "",
     _ZERO, _each(lambda a: 0 * a), _each(np.array)),
    ("one-entry-zeroed", "one entry is left at zero", "", _ZERO, _each(_largest_zeroed), _each(np.copy)),
    ("tensors-swapped", "the gradients of two tensors of one shape are exchanged", "",
     _TWINS, Hooks(answer=_swapped), Hooks(answer=_reversed_twice)),
    ("aliased-buffer", "two tensors of one shape share a buffer, and each gets the sum", "",
     _TWINS, Hooks(answer=_shared_buffer), Hooks(answer=_reversed_twice)),
    ("buffer-not-cleared", "the buffer is not cleared: a second call adds to the first", "",
     _ZERO, _multiplied(lambda call: call + 1), _multiplied(lambda call: call + 1 - call)),
    ("writes-to-arguments", "the gradient is written over the arrays it is computed for", "",
     _ZERO, Hooks(answer=_written), Hooks(answer=_written_to_copies)),
)  # fmt: skip

_EARLIER_J = Hooks(at=lambda factor, t: max(t - 1, 0) if factor == "J" else t)
_STALE_Q = Hooks(at=lambda factor, t: max(t - 1, 0) if factor == "q" else t)
_SAME_STEP = Hooks(at=lambda factor, t: t)

FAULTS = (
    *(Fault(*row) for row in _ROWS),
    Fault("state-now-for-before", "a(t) is used where a(t-1) is needed", "M̄",
          advise(_NO_STATE, steps="a(t-1)"),
          on_edges(_reads_state, _now), on_edges(_reads_state, _before)),
    Fault("initial-state-dropped", "the gradient treats the initial state as zero", "M̄",
          advise('the initial state is zero; give it init = "normal"', steps="the initial state"),
          on_edges(_reads_state, _without_start), on_edges(_reads_state, _before)),
    Fault("initial-state-path", "the path to the initial state is dropped", "J",
          advise("the initial state is not differentiated; use wrt = [\"params\", \"state\"]", steps="a(0)"),
          Hooks(carry=_start_dropped), Hooks(carry=_in_two)),
    Fault("leak-missing-in-J", "the leak is missing in J", "J",
          advise(_NO_LEAK, steps="the leak", constant="the leak term"),
          on_edges(_leak, lambda e: 0.0 * e.vjp()), on_edges(_leak, lambda e: 1.0 * e.vjp())),
    Fault("alpha-missing-in-M", "the constant factor of the state's update (α) is missing in M̄", "M̄",
          advise("no constant factor in the state's update; a leak would bring one", steps="M̄", constant="α in M̄"),
          on_edges(lambda e: e.factor == "M" and _scale(e), lambda e: e.cotangent),
          on_edges(lambda e: e.factor == "M" and _scale(e), lambda e: 0.5 * e.vjp() + 0.5 * e.vjp())),
    Fault("alpha-missing-in-J", "the constant factor of the state's update (α) is missing in J", "J",
          advise("no constant factor in the state's update; a leak would bring one", steps="J", constant="α in J"),
          on_edges(lambda e: e.factor == "J" and _scale(e), lambda e: e.cotangent),
          on_edges(lambda e: e.factor == "J" and _scale(e), lambda e: 0.5 * e.vjp() + 0.5 * e.vjp())),
    Fault("off-diagonal-J", "J is replaced by its diagonal", "J",
          advise("J is diagonal, or acts too seldom: units do not reach each other", steps="J"),
          Hooks(carry=partial(_by_rows, diagonal=True)), Hooks(carry=partial(_by_rows, diagonal=False))),
    Fault("J-of-wrong-step", "J(t-1) is used where J(t) is needed", "J",
          advise("the state's update is linear, so J is the same at every step", steps="which step J belongs to"),
          _EARLIER_J, _SAME_STEP),
    Fault("stale-q", "q(t-1) is used where q(t) is needed", "q",
          advise("∂l(t)/∂a(t) is the same at every step, as with a linear loss", steps="which step q belongs to"),
          _STALE_Q, _SAME_STEP),
    Fault("input-one-step-off", "x(t-1) is used where x(t) is needed", "M̄",
          advise("the inputs are the same at every step, or enter no product", steps="which step an input belongs to"),
          on_edges(_reads_input, _earlier_input),
          on_edges(_reads_input, lambda e: e.vjp([np.array(a) for a in e.args]))),
    Fault("hidden-truncation", "nothing is propagated back beyond the middle of the sequence", "J",
          advise("early steps have no influence on later losses", steps="the path back through time"),
          Hooks(carry=_cut), Hooks(carry=_in_two)),
    Fault("no-path-through-time", "nothing is propagated back through time", "J",
          advise("earlier steps have no influence on later losses", steps="the path back through time"),
          Hooks(carry=lambda reverse, t, credit: _zeros(reverse.jacobian(t, credit))), Hooks(carry=_in_two)),
    Fault("influence-not-reset", "the influence is not reset between sequences: each one starts with the last's", "M̄",
          advise("the start of a sequence has no influence on its end", batch="more than one sequence",
                 steps="the influence"),
          Hooks(end=_not_reset), Hooks(end=lambda reverse: _zeros(_not_reset(reverse)))),
)  # fmt: skip
