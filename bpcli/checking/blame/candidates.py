"""Single faults that may explain a gradient: those of the catalogue, everywhere or at one node, and of one path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from bpcli.checking.blame.evidence import Evidence, node_label
from bpcli.checking.faults import CATALOGUE
from bpcli.checking.faults.fault import Fault, on_edges
from bpcli.checking.faults.local import of_parameters
from bpcli.checking.interpreter import Edge, ForwardPass, Hooks
from bpcli.checking.rules import SLOPES
from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.problem.definition import Array, Problem
from bpcli.references.base import FloatArray

Key = tuple[object, ...]
# Faults that show by another answer at another call, or by arrays that change.
_BY_CALLS = frozenset({"race", "buffer-not-cleared", "writes-to-arguments"})
# Where a fault drops a term because of special numbers, such as a one-hot input, a missing path is the simpler cause.
_SHIFTS = frozenset({"input-one-step-off", "state-now-for-before", "J-of-wrong-step", "stale-q", "samples-mixed"})
# At a single value, a path that is left out is the more precise cause.
_ADDING = frozenset({"fan-out-overwritten", "tied-weight-once"})
_TERM, _EVERYWHERE, _PATH, _SHIFTED, _NODE, _ODD_PATH = range(6)


@dataclass(frozen=True)
class Cause:
    """A cause in words, the `fault` of the catalogue that it is, if any, and its `node` if it is in one place.

    `method` is the method whose gradient the answer is, if it is one. `hooks` plant the cause, kept under `key`; None
    where it was read off the numbers. If `local`, it is one of many faults that can be planted in single places.
    """

    what: str
    fault: Fault | None = None
    node: Node | None = None
    method: str = ""
    key: Key = ()
    hooks: Hooks | None = None
    local: bool = False

    @property
    def factor(self) -> str | None:
        """The factor of the gradient that is wrong, "J", "M̄" or "q", where a fault has one."""
        return (self.fault and self.fault.factor) or None


@dataclass(frozen=True, eq=False)
class Candidate:
    """A cause that can be planted; among those that fit, the one of the lowest `rank` is the likeliest."""

    cause: Cause
    hooks: Hooks
    rank: int

    @property
    def key(self) -> Key:
        """The key of its gradient among those that are kept."""
        return self.cause.key

    def gradient(self, evidence: Evidence) -> dict[str, FloatArray]:
        """The gradient with this fault."""
        return dict(evidence.planted(self.key, self.hooks))


def candidates(evidence: Evidence, in_time: Callable[[], bool]) -> Iterator[Candidate]:
    """All of them, those that are planted everywhere first, until `in_time()` is false."""
    graph, places = evidence.problem.setup.graph, dict[str, list[int]]()
    known = [*((f.name, f.what, f.wrong, f) for f in CATALOGUE if f.name not in _BY_CALLS)]
    more = [(name, what, hooks, None) for name, what, hooks in _MORE]
    for name, what, hooks, fault in (*known, *more):
        if not in_time():
            return
        places[name] = _touched(evidence, name, hooks)
        path = name in _ADDING and len(places[name]) == 1
        rank = _SHIFTED if path or name in _SHIFTS else _EVERYWHERE
        yield Candidate(Cause(what, fault, key=(name,), hooks=hooks, local=path), hooks, rank)
        if hooks.gather:
            through = _of_states(hooks.gather)
            yield Candidate(Cause(what, fault, key=(name, "M"), hooks=through), through, rank)
    for candidate in _paths(graph):
        if not in_time():
            return
        yield candidate
    for name, what, hooks, fault in (*known, *more):
        for index in places[name] if len(places[name]) > 1 else ():
            if not in_time():
                return
            node, here = graph.nodes[index], at_node(hooks, index)
            cause = Cause(what, fault, node, key=(name, index), hooks=here, local=True)
            yield Candidate(cause, here, _NODE)


def _touched(evidence: Evidence, name: str, hooks: Hooks) -> list[int]:
    """The nodes at which a fault changes a contribution, last first; its gradient is computed and kept by the way."""
    found: set[int] = set()
    edge, gather, add = hooks.edge, hooks.gather, hooks.add

    def noted(e: Edge, value: FloatArray, usual: FloatArray) -> FloatArray:
        if e.node.index not in found and not np.array_equal(value, usual):
            found.add(e.node.index)
        return value

    watched = replace(
        hooks,
        edge=edge and (lambda e: noted(e, edge(e), e.vjp())),
        gather=gather and (lambda e, g: noted(e, gather(e, g), g.sum(axis=0, keepdims=True))),
        add=add and (lambda e, b, g: noted(e, add(e, b, g), b + g)),
    )
    evidence.planted((name,), watched)
    return sorted(found, reverse=True)


def at_node(hooks: Hooks, *wanted: int) -> Hooks:
    """The same rules at some nodes alone."""
    edge, gather, add = hooks.edge, hooks.gather, hooks.add

    def here(e: Edge) -> bool:
        return e.node.index in wanted

    return replace(
        hooks,
        edge=edge and (lambda e: edge(e) if here(e) else e.vjp()),
        gather=gather and (lambda e, g: gather(e, g) if here(e) else g.sum(axis=0, keepdims=True)),
        add=add and (lambda e, b, g: add(e, b, g) if here(e) else b + g),
    )


def _of_states(gather: Callable[[Edge, FloatArray], FloatArray]) -> Hooks:
    """The same rule for what reaches the loss through states alone."""
    return Hooks(gather=lambda e, g: gather(e, g) if e.factor == "M" else np.asarray(g.sum(axis=0, keepdims=True)))


def _paths(graph: Graph) -> Iterator[Candidate]:
    """Faults of one use of a value: left out, of the wrong sign, doubled, or without the other factor of a product."""
    sums = _sums(graph)
    for node in reversed(graph.nodes):
        for slot, arg in enumerate(node.args):
            source = graph.nodes[arg]
            if source.op == "constant":
                continue
            path = f"the path {_source(source)} → {_target(graph, node)}"
            test = _at_slot(node.index, slot)
            term = node.index in sums and source.phase is not Phase.STATIC
            lost = f"the term {_source(source)} of the loss" if term else path
            rules: list[tuple[str, str, Callable[[Edge], FloatArray], int]] = [
                ("left out", f"{lost} is left out", lambda e: 0.0 * e.vjp(), _TERM if term else _PATH),
                ("sign", f"{path} has the wrong sign", lambda e: -e.vjp(), _ODD_PATH),
                ("twice", f"{path} counts twice", lambda e: 2.0 * e.vjp(), _ODD_PATH),
            ]
            if node.op == "multiply" or (node.op == "divide" and slot == 0):
                other = _source(graph.nodes[node.args[1 - slot]])
                what = f"the factor {other}" if node.op == "multiply" else f"the division by {other}"
                rules.append(("factor", f"{what} is missing on {path}", _without_factor, _ODD_PATH))
            for kind, what, rule, rank in rules:
                hooks = on_edges(test, rule)
                cause = Cause(what, None, node, key=(kind, node.index, slot), hooks=hooks, local=rank != _TERM)
                yield Candidate(cause, hooks, rank)


def _sums(graph: Graph) -> set[int]:
    """The additions that make the loss of its terms."""
    found, todo = set[int](), [graph.loss]
    while todo:
        node = graph.nodes[todo.pop()]
        if node.op in ("add", "subtract", "copy"):
            found.add(node.index)
            todo += node.args
    return found


def _at_slot(index: int, slot: int) -> Callable[[Edge], bool]:
    return lambda e: e.node.index == index and e.slot == slot


def _without_factor(e: Edge) -> FloatArray:
    target, c = e.args[e.slot], e.cotangent
    if target.ndim == 1 and c.ndim > 1:
        c = c.reshape(len(c), -1).sum(axis=1)
    return c.reshape(len(c), *target.shape[1:])


def _source(node: Node) -> str:
    """A value by the user's name for it: `h[t-1]` for a state, a number for a constant."""
    if node.op == "constant":
        return node.name or f"{node.numbers[0]:g}"
    return f"{node.name}[t-1]" if node.op == "previous" else node_label(node)


def _target(graph: Graph, node: Node) -> str:
    """The first named value that a node is used for, if it is used for one alone."""
    while not node.name:
        users = [n for n in graph.nodes if node.index in n.args]
        if len(users) != 1:
            return node_label(node)
        node = users[0]
    return node.name


def both(one: Hooks, other: Hooks) -> Hooks:
    """Two faults at once; where both replace the same rule, `one` works on what `other` gives."""
    edge, inner = one.edge, other.edge
    weights, weighed = one.weights, other.weights
    answer, answered = one.answer, other.answer

    def scaled(forward: ForwardPass) -> FloatArray:
        assert weights and weighed
        return weights(replace(forward, weights=weighed(forward)))

    def altered(problem: Problem, arrays: Mapping[str, Array], call: int) -> dict[str, Array]:
        assert answer and answered
        return answer(problem, answered(problem, arrays, call), call)

    return Hooks(
        edge=(lambda e: edge(replace(e, rule=inner))) if edge and inner else edge or inner,
        gather=one.gather or other.gather,
        add=one.add or other.add,
        weights=scaled if weights and weighed else weights or weighed,
        at=one.at or other.at,
        carry=one.carry or other.carry,
        end=one.end or other.end,
        answer=altered if answer and answered else answer or answered,
    )


def compatible(one: Hooks, other: Hooks) -> bool:
    """Whether `both` plants both."""
    return not any(getattr(one, rule) and getattr(other, rule) for rule in ("gather", "add", "at", "carry", "end"))


def _other_form(op: str, slope: Callable[[FloatArray], FloatArray]) -> Hooks:
    return on_edges(lambda e: e.node.op == op, lambda e: e.cotangent * slope(e.value))


def _kept(wanted: Callable[[int, int], bool]) -> Hooks:
    """Only one step's contribution to what all steps share, as if each were assigned rather than added."""

    def gather(e: Edge, given: FloatArray) -> FloatArray:
        return np.asarray(given.sum(axis=0, keepdims=True) * float(wanted(e.t, e.forward.setup.T)))

    return Hooks(gather=gather)


def _from_the_end(e: Edge) -> FloatArray:
    """At the first step, values of the last state in place of the initial one."""
    if e.t > 0:
        return e.vjp()
    graph, batch = e.forward.graph, e.forward.setup.batch
    nodes = [graph.nodes[a] for a in e.node.args]
    last = e.forward.values[-1]
    args = [
        np.broadcast_to(last[graph.new[n.name]], (batch, *n.shape)) if n.op == "previous" else v
        for n, v in zip(nodes, e.args, strict=True)
    ]
    return e.vjp(args)


def _normalised(e: Edge) -> FloatArray:
    """softmax − p, which is right where p adds up to 1."""
    y = np.exp(e.value)
    weights = e.forward.weights[e.t].reshape(-1, *(1,) * (y.ndim - 1))
    return np.asarray(e.cotangent + y * weights)


def _data_times_batch(forward: ForwardPass) -> FloatArray:
    mean = forward.setup.spec.objective.over_batch == "mean"
    return forward.weights * (forward.setup.batch if mean else 1)


def _averaged(e: Edge) -> FloatArray:
    mean = e.forward.setup.spec.objective.over_batch == "mean"
    return e.vjp() / (e.forward.setup.batch if mean else 1)


_MORE: tuple[tuple[str, str, Hooks], ...] = (
    ("tanh-as-sigmoid", "the derivative of tanh has the form of sigmoid's, y (1 − y)",
     _other_form("tanh", lambda y: y * (1.0 - y))),
    ("sigmoid-as-tanh", "the derivative of sigmoid has the form of tanh's, 1 − y²",
     _other_form("sigmoid", lambda y: 1.0 - y * y)),
    ("tanh-unsquared", "the derivative of tanh is 1 − y instead of 1 − y²", _other_form("tanh", lambda y: 1.0 - y)),
    ("sigmoid-half", "the derivative of sigmoid is y instead of y (1 − y)", _other_form("sigmoid", lambda y: y)),
    *((f"{op}-slope-missing", f"the derivative of {op} is missing: the cotangent passes through unchanged",
       on_edges(lambda e, op=op: e.node.op == op, lambda e: e.cotangent))  # type: ignore[misc]
      for op in sorted(set(SLOPES) - {"tanh", "sigmoid", "power"})),
    ("batch-average-of-data", "1/B is missing, except in the term of parameters only",
     Hooks(weights=_data_times_batch, edge=lambda e: _averaged(e) if of_parameters(e) else e.vjp())),
    ("first-step-alone", "only the first step's contribution is kept: = instead of += over the steps",
     _kept(lambda t, T: t == 0)),
    ("last-step-alone", "only the last step's contribution is kept: = instead of += over the steps",
     _kept(lambda t, T: t == T - 1)),
    ("last-state-for-initial", "at the first step, the last state is used instead of the initial one, as with index −1",
     on_edges(lambda e: e.t == 0, _from_the_end)),
    ("softmax-minus-p", "the gradient of the cross-entropy is softmax − p, but p does not add up to 1",
     on_edges(lambda e: e.node.op == "log_softmax", _normalised)),
)  # fmt: skip
