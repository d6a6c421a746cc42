"""What a wrong answer is compared with: the right gradient, entry by entry, from the reference interpreter.

Where a wrong gradient comes from: the node whose cotangent is the first that can be wrong, the step, the sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from bpcli.checking.blame.signatures import LEFT, explained
from bpcli.checking.faults.fault import as_method, separate
from bpcli.checking.interpreter import RIGHT, Edge, Hooks, Walk
from bpcli.checking.sources.gradient_source import Foreign, ask
from bpcli.graph.nodes import Graph, Node
from bpcli.methods import MethodCall
from bpcli.methods.base import Definition
from bpcli.problem.definition import Array, Problem, Setup, Tensor
from bpcli.problem.draw import draw
from bpcli.references.base import FloatArray
from bpcli.references.numerics.rounding import rounding
from bpcli.references.perturbation.kink_slopes import ALIKE, slopes_of

# Two gradients, each with its rounding.
_BOTH = 2.0
_SINGLE = np.dtype(np.float32)


@dataclass(frozen=True, eq=False)
class Evidence:
    """A method's answers on a problem, the right gradient by its `definition`, and rounding as a slack.

    It was asked four times: `answers` are the first and the third, `unsteady` names what differed from call to call.

    `wrong` names the tensors that are off by more, in the spec's order; answers of the wrong shape are left out.
    """

    problem: Problem
    definition: Definition
    answers: tuple[Mapping[str, FloatArray], Mapping[str, FloatArray]]
    right: Mapping[str, FloatArray]
    slack: Mapping[str, FloatArray]
    unsteady: frozenset[str]
    wrong: tuple[str, ...]
    _made: dict[tuple[object, ...], Mapping[str, FloatArray]] = field(default_factory=dict)

    def accumulates(self, name: str) -> bool:
        """Whether the right gradient was added twice between the first answer and the third."""
        first, third = self.answers
        left = LEFT * np.abs(third[name]).max(initial=0.0)
        return bool((np.abs(third[name] - first[name] - 2 * self.right[name]) <= left).all())

    def planted(self, key: tuple[object, ...], hooks: Hooks, calls: int = 1) -> Mapping[str, FloatArray]:
        """As `planted` on this problem, kept under `key` and the number of calls."""
        if (*key, calls) not in self._made:
            self._made[*key, calls] = planted(self.problem, hooks, self.definition, calls)
        return self._made[*key, calls]

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""
        return next(x for x in self.problem.setup.wrt if x.name == name)

    def error(self, name: str) -> FloatArray:
        """What the first answer has too much."""
        return self.answers[0][name] - self.right[name]

    def explained(self, name: str, value: FloatArray, call: int = 0) -> bool:
        """Whether `value` is what the answer is, but for rounding or next to nothing of the error."""
        return explained(self.answers[call][name], self.right[name], self.both(name), value)

    def both(self, name: str) -> FloatArray:
        """What the rounding of two gradients comes to."""
        return np.asarray(_BOTH * self.slack[name])

    def single(self, name: str) -> FloatArray:
        """What the rounding of a gradient in float32 comes to; nothing where it is in float32 by rights."""
        if self.problem.setup.dtype == _SINGLE:
            return np.zeros_like(self.slack[name])
        return rounding(self.problem, self.definition.over(self.problem.setup), _SINGLE).gradient[name]


def gather(setup: Setup, call: MethodCall | Foreign) -> Evidence:
    """Ask a method, on copies of the problem's arrays."""
    problem = draw(setup)
    definition = call.definition(setup)
    asked = [ask(call, separate(problem)) for _ in range(2)]
    first, second = ({x.name: _dense(a.arrays[x.name], x) for x in setup.wrt if x.name in a.arrays} for a in asked)
    unsteady = asked[0].unsteady | asked[1].unsteady
    right = _right(problem, definition, first)
    slack = rounding(problem, definition.over(setup), setup.dtype).gradient
    comparable = {x.name: x for x in setup.wrt if x.name in first and first[x.name].shape == x.shape}
    found = Evidence(problem, definition, (first, second), right, slack, unsteady, ())
    return replace(found, wrong=tuple(n for n in comparable if not all(_near(found, n, i) for i in range(2))))


def _right(problem: Problem, definition: Definition, answer: Mapping[str, FloatArray]) -> Mapping[str, FloatArray]:
    """The right gradient: at kinks by slopes that programs take there, those with which most entries are `answer`'s."""
    slopes = slopes_of(problem)
    if slopes is None:
        return planted(problem, RIGHT, definition)
    slack = rounding(problem, definition.over(problem.setup), problem.setup.dtype).gradient

    def alike(right: Mapping[str, FloatArray]) -> int:
        pairs = [(right[n], value, _BOTH * slack[n]) for n, value in answer.items() if n in right]
        return sum(int((np.abs(a - b) <= room).sum()) for a, b, room in pairs if a.shape == b.shape)

    return max((planted(slopes.chosen(share), RIGHT, definition) for share in ALIKE), key=alike)


def planted(problem: Problem, hooks: Hooks, definition: Definition, calls: int = 1) -> Mapping[str, FloatArray]:
    """The interpreter's gradient with some rules replaced; the last of `calls` calls."""
    method = as_method("planted", hooks, definition)
    own = separate(problem)
    found = [method.gradient(own).arrays for _ in range(calls)][-1]
    return {name: np.asarray(a, float) for name, a in found.items()}


def _near(evidence: Evidence, name: str, call: int) -> bool:
    off = np.abs(evidence.answers[call].get(name, np.full(1, np.nan)) - evidence.right[name])
    return bool((off <= evidence.both(name)).all())


def _dense(given: Array, x: Tensor) -> FloatArray:
    """In float64, nothing where a density leaves entries out: what stands there is ignored."""
    value = np.array(given, dtype=np.float64)
    if x.pattern is not None and value.shape == x.shape:
        value.reshape(-1)[np.setdiff1d(np.arange(value.size), x.pattern)] = 0.0
    return value


def node(evidence: Evidence) -> Node | None:
    """The node from which everything wrong, and as little else as can be, is reached backwards through all steps.

    Of several such nodes the first one backwards; None where there is none, as with a fault in several places. What
    alone is wrong, though others are reached from wherever it is, is wrong where it is used.
    """
    graph = evidence.problem.setup.graph
    wrong, best, fewest = set(evidence.wrong), None, 0
    for candidate in graph.nodes:
        if candidate.op in ("param", "constant", "input", "previous"):
            continue
        reached = _reached(graph, candidate.index)
        if wrong <= reached and (best is None or len(reached) <= fewest):
            best, fewest = candidate, len(reached)
    if len(wrong) == 1 and fewest > 1:
        leaves = {n.index for n in graph.nodes if n.op in ("param", "input") and n.name in wrong}
        users = [n for n in graph.nodes if leaves & set(n.args)]
        return users[0] if len(users) == 1 else best
    return best


def called(node: Node) -> str:
    """A node in words: its name, or its operation with its place in the spec."""
    return node.name or f"{node.op} at line {node.place.line}, column {node.place.column}"


def step_and_sample(evidence: Evidence, name: str, index: tuple[int, ...] | None) -> tuple[int | None, int | None]:
    """The one step and the one sample, counted from 1, whose contributions alone are wrong; None for several."""
    x, setup = evidence.tensor(name), evidence.problem.setup
    if x.kind == "input" and index is not None:
        return (index[0] + 1, index[1] + 1) if setup.graph.recurrent else (None, index[0] + 1)
    if x.kind == "state" and name not in setup.shared and index is not None:
        return None, index[0] + 1
    if not np.isfinite(evidence.answers[0][name]).all():
        return None, None
    step = _single(evidence, name, "step", [_at_step(t) for t in range(setup.T)]) if setup.T > 1 else None
    sample = _single(evidence, name, "sample", [_of_sample(b) for b in range(setup.batch)]) if setup.batch > 1 else None
    return step, sample


def _single(evidence: Evidence, name: str, kind: str, parts: list[Hooks]) -> int | None:
    """Which one of several contributions, taken more or less often than once, makes the right answer the given one."""
    for number, hooks in enumerate(parts, start=1):
        part: FloatArray = evidence.planted((kind, number), hooks)[name]
        size = float((part * part).sum())
        if size and evidence.explained(
            name, evidence.right[name] + part * float((evidence.error(name) * part).sum()) / size
        ):
            return number
    return None


def _at_step(wanted: int) -> Hooks:
    """What one step gives to the parameters."""

    def gather(e: Edge, given: FloatArray) -> FloatArray:
        total: FloatArray = given.sum(axis=0, keepdims=True)
        return total * float(e.t == wanted)

    return Hooks(gather=gather)


def _of_sample(wanted: int) -> Hooks:
    def weights(walk: Walk) -> FloatArray:
        kept = np.zeros_like(walk.weights)
        kept[:, wanted] = walk.weights[:, wanted]
        return kept

    return Hooks(weights=weights)


def _reached(graph: Graph, start: int) -> set[str]:
    """The names of parameters, inputs and states that a cotangent at `start` comes to, through all earlier steps."""
    seen, todo = {start}, [start]
    while todo:
        for other in _behind(graph, graph.nodes[todo.pop()]):
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return {graph.nodes[i].name for i in seen if graph.nodes[i].op in ("param", "input", "previous")}


def _behind(graph: Graph, node: Node) -> Iterator[int]:
    yield from node.args
    if node.op == "previous":
        yield graph.new[node.name]
