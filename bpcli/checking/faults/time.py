"""Faults in what connects steps: J, M̄, q, the initial state, truncation, and one sequence after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bpcli.checking.faults.fault import Fault, advise
from bpcli.checking.faults.local import where
from bpcli.checking.interpreter import Edge, Hooks, States, Sweep
from bpcli.graph.nodes import Phase
from bpcli.references.base import FloatArray

_NO_LEAK = "no state has a direct path to its next value beside the matrix product; a leak would be one"
_NO_STATE = "the state enters no product with a parameter"


def _leak(e: Edge) -> bool:
    """Whether the edge leads from a[t-1] on without a matrix: a leak, a forget gate, a skip through time."""
    elementwise = e.node.op in ("multiply", "add", "subtract", "copy", "divide")
    return e.factor == "J" and e.source.op == "previous" and elementwise


def _scale(e: Edge) -> bool:
    """Whether the edge multiplies what varies with a state by a constant."""
    graph = e.walk.graph
    constant = any(graph.nodes[a].op == "constant" for a in e.node.args)
    return e.node.op == "multiply" and constant and e.node.phase is Phase.RECURRENT and e.source.op != "previous"


def _bare(e: Edge) -> FloatArray:
    return e.cotangent


def _with_states(e: Edge, states: Sequence[FloatArray]) -> FloatArray:
    """The contribution with other values for the states that the node reads."""
    names = [e.walk.graph.nodes[a] for a in e.node.args]
    order = list(e.walk.graph.previous)
    args = [states[order.index(n.name)] if n.op == "previous" else v for n, v in zip(names, e.args, strict=True)]
    return e.pull(args)


def _reads_state(e: Edge) -> bool:
    graph = e.walk.graph
    return any(graph.nodes[a].op == "previous" for i, a in enumerate(e.node.args) if i != e.slot)


def _now(e: Edge) -> FloatArray:
    batch = e.walk.setup.batch
    values = [e.walk.values[e.t][e.walk.graph.new[name]] for name in e.walk.graph.previous]
    return _with_states(e, [np.broadcast_to(v, (batch, *v.shape[1:])) for v in values])


def _before(e: Edge) -> FloatArray:
    return _with_states(e, [e.walk.values[e.t][n] + 0.0 for n in e.walk.graph.previous.values()])


def _without_start(e: Edge) -> FloatArray:
    if e.t > 0:
        return e.pull()
    return _with_states(e, [0.0 * e.walk.values[0][n] for n in e.walk.graph.previous.values()])


def _earlier_input(e: Edge) -> FloatArray:
    args = [e.walk.values[max(e.t - 1, 0)][a] if _is_input(e, a) else e.args[i] for i, a in enumerate(e.node.args)]
    return e.pull(args)


def _is_input(e: Edge, arg: int) -> bool:
    return e.walk.graph.nodes[arg].op == "input"


def _own_input(e: Edge) -> FloatArray:
    return e.pull([np.array(a) for a in e.args])


def _reads_input(e: Edge) -> bool:
    return any(_is_input(e, a) for i, a in enumerate(e.node.args) if i != e.slot)


def _cut(sweep: Sweep, t: int, credit: States) -> States:
    """Nothing goes back beyond the middle of the sequence."""
    found = sweep.jacobian(t, credit)
    return {n: 0.0 * c for n, c in found.items()} if t == max(1, sweep.walk.setup.T // 2) else found


def _in_two(sweep: Sweep, t: int, credit: States) -> States:
    """J is linear: half of the cotangent, twice."""
    found = sweep.jacobian(t, {n: 0.5 * c for n, c in credit.items()})
    return {n: c + c for n, c in found.items()}


def _no_carry(sweep: Sweep, t: int, credit: States) -> States:
    return {n: 0.0 * c for n, c in sweep.jacobian(t, credit).items()}


def _start_dropped(sweep: Sweep, t: int, credit: States) -> States:
    found = sweep.jacobian(t, credit)
    return {n: 0.0 * c for n, c in found.items()} if t == 0 else found


def _units(credit: States) -> list[tuple[str, int]]:
    return [(name, i) for name, c in credit.items() for i in range(c[0].size)]


def _by_rows(sweep: Sweep, t: int, credit: States, diagonal: bool) -> States:
    """J row by row: the whole of it, or its diagonal alone."""
    found = {name: np.zeros(c.shape) for name, c in credit.items()}
    for name, i in _units(credit):
        one = np.zeros((len(credit[name]), credit[name][0].size))
        one[:, i] = 1.0
        row = sweep.jacobian(t, {name: one.reshape(credit[name].shape)})
        for other, values in row.items():
            flat = values.reshape(len(values), -1)
            kept = np.where(np.arange(flat.shape[1]) == i, flat, 0.0) * (other == name) if diagonal else flat
            weighted = kept * credit[name].reshape(len(one), -1)[:, i : i + 1]
            found[other] = found.get(other, 0.0) + weighted.reshape(values.shape)
    return found


def _diagonal(sweep: Sweep, t: int, credit: States) -> States:
    return _by_rows(sweep, t, credit, diagonal=True)


def _whole(sweep: Sweep, t: int, credit: States) -> States:
    return _by_rows(sweep, t, credit, diagonal=False)


def _not_reset(sweep: Sweep) -> States:
    """One sample after the other with one influence matrix: each starts with that of the one before."""
    end: States = {}
    for _ in range(sweep.walk.setup.batch - 1):
        start = Sweep(sweep.walk, Hooks(end=lambda s, end=end: end)).run().start  # type: ignore[misc]
        end = {n: np.concatenate([c[1:], np.zeros_like(c[:1])]) for n, c in start.items()}
    return end


def _reset(sweep: Sweep) -> States:
    return {n: 0.0 * v for n, v in _not_reset(sweep).items()}


_LATER_J = Hooks(at=lambda factor, t: max(t - 1, 0) if factor == "J" else t)
_STALE_Q = Hooks(at=lambda factor, t: max(t - 1, 0) if factor == "q" else t)
_SAME_STEP = Hooks(at=lambda factor, t: t)

FAULTS = (
    Fault("state-now-for-before", "a(t) is used where a(t-1) is due", "M̄",
          advise(_NO_STATE, steps="a(t-1)"),
          where(_reads_state, _now), where(_reads_state, _before)),
    Fault("initial-state-dropped", "the initial state is taken for zero in the gradient", "M̄",
          advise('the initial state is zero; give it init = "normal"', steps="the initial state"),
          where(_reads_state, _without_start), where(_reads_state, _before)),
    Fault("initial-state-path", "the path to the initial state is dropped", "J",
          advise("the initial state is not differentiated; take wrt = [\"params\", \"state\"]", steps="a(0)"),
          Hooks(carry=_start_dropped), Hooks(carry=_in_two)),
    Fault("leak-missing-in-J", "the leak is missing in J", "J",
          advise(_NO_LEAK, steps="the leak", constant="the leak term"),
          where(_leak, lambda e: 0.0 * e.pull()), where(_leak, lambda e: 1.0 * e.pull())),
    Fault("alpha-missing-in-M", "the constant factor of the state's update (α) is missing in M̄", "M̄",
          advise("no constant factor in the state's update; a leak would bring one", steps="M̄", constant="α in M̄"),
          where(lambda e: e.factor == "M" and _scale(e), _bare),
          where(lambda e: e.factor == "M" and _scale(e), lambda e: 0.5 * e.pull() + 0.5 * e.pull())),
    Fault("alpha-missing-in-J", "the constant factor of the state's update (α) is missing in J", "J",
          advise("no constant factor in the state's update; a leak would bring one", steps="J", constant="α in J"),
          where(lambda e: e.factor == "J" and _scale(e), _bare),
          where(lambda e: e.factor == "J" and _scale(e), lambda e: 0.5 * e.pull() + 0.5 * e.pull())),
    Fault("off-diagonal-J", "J is replaced by its diagonal", "J",
          advise("J is diagonal, or acts too seldom: units do not reach each other", steps="J"),
          Hooks(carry=_diagonal), Hooks(carry=_whole)),
    Fault("J-of-wrong-step", "J(t-1) is used where J(t) is due", "J",
          advise("the state's update is linear, so J is the same at every step", steps="which step J is of"),
          _LATER_J, _SAME_STEP),
    Fault("stale-q", "q(t-1) is used where q(t) is due", "q",
          advise("∂l(t)/∂a(t) is the same at every step, as with a linear loss", steps="which step q is of"),
          _STALE_Q, _SAME_STEP),
    Fault("input-one-step-off", "x(t-1) is used where x(t) is due", "M̄",
          advise("the inputs are the same at every step, or enter no product", steps="which step an input is of"),
          where(_reads_input, _earlier_input), where(_reads_input, _own_input)),
    Fault("hidden-truncation", "nothing goes back beyond the middle of the sequence", "J",
          advise("early steps have no influence on later losses", steps="the path back through time"),
          Hooks(carry=_cut), Hooks(carry=_in_two)),
    Fault("no-path-through-time", "nothing goes back through time at all", "J",
          advise("earlier steps have no influence on later losses", steps="the path back through time"),
          Hooks(carry=_no_carry), Hooks(carry=_in_two)),
    Fault("influence-not-reset", "the influence is not reset between sequences: one starts with that of another", "M̄",
          advise("the influence of a whole sequence back on its start is nothing", batch="more than one sequence",
                 steps="the influence"),
          Hooks(end=_not_reset), Hooks(end=_reset)),
)  # fmt: skip
