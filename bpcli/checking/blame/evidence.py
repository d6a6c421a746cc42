"""Evidence about a wrong gradient, and where it points: the node, step and sample at fault.

A method's gradient is compared with the right one by the reference interpreter, and with those that the interpreter
gives with some of its rules replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from bpcli.checking.blame.patterns import Numbers
from bpcli.checking.blame.signatures import LEFT, PLAIN, explained
from bpcli.checking.faults.fault import Fault, as_method, differentiate, on_edges, separate
from bpcli.checking.faults.local import of_parameters
from bpcli.checking.interpreter import RIGHT, Edge, ForwardPass, Hooks, run_forward
from bpcli.checking.sources.gradient_source import GradientSource, ask
from bpcli.checking.sources.validate_gradient import on_pattern
from bpcli.graph.nodes import Graph, Node
from bpcli.methods import MethodCall, parse
from bpcli.methods.base import Definition, Recursion, of_one_draw
from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.problem.draw import draw
from bpcli.references.base import FloatArray
from bpcli.references.numerics.rounding import rounding
from bpcli.references.perturbation.jumps import pinned, sides
from bpcli.references.perturbation.kinks import ALIKE, slopes_of

# Two gradients are compared, each with its rounding.
_BOTH = 2.0
_SINGLE = np.dtype(np.float32)
# Each step costs two gradients.
_MAX_STEPS = 200


@dataclass(frozen=True, eq=False)
class Evidence:
    """A method's gradients on a problem, the right gradient by its `definition`, and its rounding as `slack`.

    The method was called at least four times: `answers` are the first and the third, `unsteady` names the tensors that
    differed from call to call. `wrong` names those that are off by more than rounding, in the spec's order, without
    those of the wrong shape. If `outside`, the method is a user's gradient.
    """

    problem: Problem
    definition: Definition
    answers: tuple[Mapping[str, FloatArray], Mapping[str, FloatArray]]
    right: Mapping[str, FloatArray]
    slack: Mapping[str, FloatArray]
    unsteady: frozenset[str]
    wrong: tuple[str, ...] = ()
    outside: bool = False
    _planted: dict[tuple[object, ...], Mapping[str, FloatArray]] = field(default_factory=dict)

    def accumulates(self, name: str) -> bool:
        """Whether the right gradient was added twice between the first answer and the third."""
        first, third = self.answers
        left = LEFT * np.abs(third[name]).max(initial=0.0)
        return bool((np.abs(third[name] - first[name] - 2 * self.right[name]) <= left).all())

    def planted(self, key: tuple[object, ...], hooks: Hooks, calls: int = 1) -> Mapping[str, FloatArray]:
        """`planted` on this problem, kept under `key` and the number of calls."""
        if (*key, calls) not in self._planted:
            if calls == 1 and hooks.answer is None:
                found = differentiate(self.problem, self.forward, hooks, self.definition)
                self._planted[*key, calls] = {name: np.asarray(a, float) for name, a in found.items()}
            else:
                self._planted[*key, calls] = planted(self.problem, hooks, self.definition, calls)
        return self._planted[*key, calls]

    def planted_once(self, hooks: Hooks) -> Mapping[str, FloatArray]:
        """The interpreter's gradient on this problem with some rules replaced, which is not kept."""
        found = differentiate(self.problem, self.forward, hooks, self.definition)
        return {name: np.asarray(a, float) for name, a in found.items()}

    @cached_property
    def numbers(self) -> Numbers:
        """The first answer and the right gradient of all tensors, and the numbers that may be factors between them."""
        setup = self.problem.setup
        known = {**PLAIN, "batch": setup.batch, "1/batch": 1 / setup.batch}
        if setup.graph.recurrent:
            known |= {"T": setup.T, "1/T": 1 / setup.T}
        for constant, value in setup.spec.constants.items():
            known |= {constant: value, f"1 - {constant}": 1 - value} | ({f"1/{constant}": 1 / value} if value else {})
        sizes = {name: float(size) for name, size in setup.spec.dims.items()}
        if setup.graph.recurrent:
            sizes["batch * T"] = float(setup.batch * setup.T)
        sizes |= {f"1/{name}" if name.isidentifier() else f"1/({name})": 1 / size for name, size in sizes.items()}
        theta = {x.name: np.asarray(self.problem.array(x), float) for x in setup.wrt}
        given = {n: a for n, a in self.answers[0].items() if n in self.right and a.shape == self.right[n].shape}
        slack = {name: self.tolerance(name) for name in given}
        right = {name: self.right[name] for name in given}
        return Numbers(given, right, slack, theta, known, sizes, self._terms)

    @cached_property
    def _terms(self) -> Mapping[str, FloatArray]:
        """The gradient of the terms of parameters alone, such as weight decay; empty without any."""
        data = self.planted(("data alone",), on_edges(of_parameters, lambda e: 0.0 * e.vjp()))
        terms = {n: a - data[n] for n, a in self.right.items()}
        return terms if any(a.any() for a in terms.values()) else {}

    @cached_property
    def forward(self) -> ForwardPass:
        """The forward pass, at kinks with their usual slopes."""
        return run_forward(self.problem)

    def of_method(self, text: str) -> Mapping[str, FloatArray]:
        """The right gradient by the definition of another method, given as for `-m`."""
        if ("method", text) not in self._planted:
            call = parse(text)
            definition = of_one_draw(call.definition(self.problem.setup))
            if isinstance(definition, Recursion):  # which reverse mode does not compute
                found = call.gradient(separate(self.problem)).arrays
                self._planted["method", text] = {name: np.asarray(a, float) for name, a in found.items()}
            else:
                self._planted["method", text] = planted(self.problem, RIGHT, definition)
        return self._planted["method", text]

    def stored(self, name: str) -> NDArray[np.bool_]:
        """The entries of a tensor that a density does not leave out."""
        x = self.tensor(name)
        return on_pattern(np.ones(x.shape), x) > 0

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""
        return next(x for x in self.problem.setup.wrt if x.name == name)

    def error(self, name: str) -> FloatArray:
        """The first answer minus the right gradient."""
        return self.answers[0][name] - self.right[name]

    def explained(self, name: str, value: FloatArray, call: int = 0) -> bool:
        """Whether `value` is the answer, to within rounding or a negligible part of its error."""
        return explained(self.answers[call][name], self.right[name], self.tolerance(name), value)

    def left(self, name: str) -> float:
        """The part of a tensor's error that an explanation may leave."""
        error = np.abs(self.error(name))
        return LEFT * float(error[np.isfinite(error)].max(initial=0.0))

    def tolerance(self, name: str) -> FloatArray:
        """The rounding of two gradients."""
        return np.asarray(_BOTH * self.slack[name])

    def float32_rounding(self, name: str) -> FloatArray:
        """The rounding of a gradient in float32; zero if that is the spec's dtype."""
        if self.problem.setup.dtype == _SINGLE:
            return np.zeros_like(self.slack[name])
        held = pinned(self.problem)  # at a jump rounding has no bound
        return rounding(held, self.definition.over(held.setup), _SINGLE).gradient[name]


def gather(setup: Setup, call: MethodCall | GradientSource) -> Evidence:
    """Ask a method, on copies of the problem's arrays."""
    problem = draw(setup)
    definition = call.definition(setup)
    asked = [ask(call, separate(problem)) for _ in range(2)]
    answers: list[dict[str, FloatArray]] = []
    for answer in asked:
        given = [(x, answer.arrays[x.name]) for x in setup.wrt if x.name in answer.arrays]
        kept = {x.name: on_pattern(a, x) if a.shape == x.shape else a for x, a in given}
        answers.append({name: np.array(a, dtype=np.float64) for name, a in kept.items()})
    at_jump = sides(problem)
    tried = [_right(side, definition, answers[0]) for side in (at_jump.problems if at_jump else (problem,))]
    _, right, slack = max(tried, key=itemgetter(0))
    unsteady = asked[0].unsteady | asked[1].unsteady
    outside = isinstance(call, GradientSource)
    found = Evidence(problem, definition, (answers[0], answers[1]), right, slack, unsteady, outside=outside)

    def is_wrong(x: Tensor) -> bool:
        off = [np.abs(a.get(x.name, np.full(1, np.nan)) - right[x.name]) for a in answers]
        return not all(bool((error <= found.tolerance(x.name)).all()) for error in off)

    comparable = [x for x in setup.wrt if x.name in answers[0] and answers[0][x.name].shape == x.shape]
    return replace(found, wrong=tuple(x.name for x in comparable if is_wrong(x)))


Arrays = Mapping[str, FloatArray]


def _right(problem: Problem, definition: Definition, answer: Arrays) -> tuple[int, Arrays, Arrays]:
    """The right gradient and its rounding, and in how many entries `answer` agrees with it; at kinks, with the slopes,
    among those that programs take, that agree best."""
    slack = rounding(problem, definition.over(problem.setup), problem.setup.dtype).gradient
    slopes = slopes_of(problem)

    def agreeing(right: Arrays) -> int:
        pairs = [(right[n], value, _BOTH * slack[n]) for n, value in answer.items() if n in right]
        return sum(int((np.abs(a - b) <= room).sum()) for a, b, room in pairs if a.shape == b.shape)

    problems = [problem] if slopes is None else [slopes.chosen(share) for share in ALIKE]
    right = max((planted(each, RIGHT, definition) for each in problems), key=agreeing)
    return agreeing(right), right, slack


def planted(problem: Problem, hooks: Hooks, definition: Definition, calls: int = 1) -> Mapping[str, FloatArray]:
    """The interpreter's gradient with some rules replaced, that of the last of `calls` calls."""
    method = as_method("planted", hooks, definition)
    own = separate(problem)
    found = [method.gradient(own).arrays for _ in range(calls)][-1]
    return {name: np.asarray(a, float) for name, a in found.items()}


def faulty_node(evidence: Evidence) -> Node | None:
    """The node from which a cotangent reaches everything wrong, and as little else as possible, through all steps.

    Of several such nodes the first one backwards; None where there is none, as with faults in several places. If a
    single tensor is wrong that every such node shares with others, the fault is where that tensor is used.
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


def _reached(graph: Graph, start: int) -> set[str]:
    """The names of parameters, inputs and states that a cotangent at `start` reaches, through all earlier steps."""
    seen, todo = {start}, [start]
    while todo:
        for other in _sources(graph, graph.nodes[todo.pop()]):
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return {graph.nodes[i].name for i in seen if graph.nodes[i].op in ("param", "input", "previous")}


def _sources(graph: Graph, node: Node) -> Iterator[int]:
    yield from node.args
    if node.op == "previous":
        yield graph.new[node.name]


def node_label(node: Node) -> str:
    """The name of a node, or its operation with its place in the spec."""
    return node.name or f"{node.op} at line {node.place.line}, column {node.place.column}"


def step_and_sample(
    evidence: Evidence, name: str, index: tuple[int, ...] | None, in_time: Callable[[], bool]
) -> tuple[int | None, int | None]:
    """The one step and the one sample, from 1, whose contributions alone are wrong; None where several are.

    None also where the search takes until `in_time()` is false.
    """
    x, setup = evidence.tensor(name), evidence.problem.setup
    if x.kind == "input" and index is not None:
        return (index[0] + 1, index[1] + 1) if setup.graph.recurrent else (None, index[0] + 1)
    if x.kind == "state" and name not in setup.shared and index is not None:
        return None, index[0] + 1
    if not np.isfinite(evidence.answers[0][name]).all():
        return None, None
    steps = [at_step(RIGHT, t) for t in range(setup.T)] if setup.T > 1 else []
    samples = [_of_sample(b) for b in range(setup.batch)] if setup.batch > 1 else []
    return _only_part(evidence, name, "step", steps, in_time), _only_part(evidence, name, "sample", samples, in_time)


def _only_part(evidence: Evidence, name: str, kind: str, parts: list[Hooks], in_time: Callable[[], bool]) -> int | None:
    """The number, from 1, of the one part of the gradient whose rescaling turns the right one into the answer."""
    for number, hooks in enumerate(parts, start=1):
        if not in_time():
            return None
        part: FloatArray = evidence.planted((kind, number), hooks)[name]
        size = float((part * part).sum())
        if size and evidence.explained(
            name, evidence.right[name] + part * float((evidence.error(name) * part).sum()) / size
        ):
            return number
    return None


def at_step(hooks: Hooks, wanted: int) -> Hooks:
    """The same rules for the contribution of step `wanted` alone to what all steps share."""
    gather = hooks.gather

    def gather_at_step(e: Edge, given: FloatArray) -> FloatArray:
        total: FloatArray = gather(e, given) if gather else given.sum(axis=0, keepdims=True)
        return total * float(e.t == wanted)

    return replace(hooks, gather=gather_at_step)


def _of_sample(wanted: int) -> Hooks:
    """The right rules for the loss of one sample alone."""

    def weights(forward: ForwardPass) -> FloatArray:
        kept = np.zeros_like(forward.weights)
        kept[:, wanted] = forward.weights[:, wanted]
        return kept

    return Hooks(weights=weights)


def errors_by_step(
    evidence: Evidence, name: str, fault: Fault | None, in_time: Callable[[], bool]
) -> list[float] | None:
    """The error of each step's share of tensor `name`'s gradient, relative to the whole.

    An input has a gradient of its own at each step. The shares of a parameter are those of the `fault` that explains
    the answer, if they add up to it; None where they do not, without a fault, or when time is up.
    """
    setup, size = evidence.problem.setup, float(np.linalg.norm(evidence.right[name]))
    if not setup.graph.recurrent or size == 0 or not 1 < setup.T <= _MAX_STEPS:
        return None
    if evidence.tensor(name).kind == "input":
        return [float(np.linalg.norm(error)) / size for error in evidence.error(name)]
    if fault is None or evidence.tensor(name).kind != "param":
        return None
    errors, total = [], np.zeros_like(evidence.right[name])
    for t in range(setup.T):
        if not in_time():
            return None
        wrong = evidence.planted((f"step of {fault.name}", t + 1), at_step(fault.wrong, t))[name]
        right = evidence.planted(("step", t + 1), at_step(RIGHT, t))[name]
        errors.append(float(np.linalg.norm(wrong - right)) / size)
        total += wrong
    return errors if evidence.explained(name, total) else None
