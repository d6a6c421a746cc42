"""Jumps: arguments of `step` whose side rounding hides, and the networks on each side of them.

A correct program may be on either side, with another loss and another gradient there. On a given side the network is
like any other: `step(v)` becomes `step(v + push)` with an infinite push. Everything that is measured at shifted arrays
or under simulated rounding is measured on the side that the program takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np

from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.problem.definition import Problem, Setup, cast
from bpcli.references.perturbation.kinks import MOST_PATTERNS, FloatArray, Mask, base_of, near_zero
from bpcli.runtime.evaluation import node_values

_DOUBLE = np.dtype(np.float64)

Pushes = Mapping[int, FloatArray]
"""By node of an operation `step`, what is added to its argument, `(T, batch, size)`, or `(size,)` for static nodes."""


@dataclass(frozen=True, eq=False)
class Sides:
    """The problems on the sides that programs may be on, the one that float64 takes first; `complete` if these are all.

    Each has the tensors of the original problem.
    """

    problems: Sequence[Problem]
    complete: bool


@lru_cache(maxsize=2)
def jumps(problem: Problem) -> bool:
    """Whether rounding hides the side on which an argument of `step` is: a correct program may be on either.

    An argument that is zero however the program rounds, as a state before the first step may be, is on one side.
    """
    return any(bool(at.any()) for at, _ in _hidden(problem).values())


@lru_cache(maxsize=4)
def pinned(problem: Problem) -> Problem:
    """The problem in which every `step` stays on the side that float64 takes, for all arrays near by."""
    steps = _steps(problem.setup.graph)
    if not steps:
        return problem
    with np.errstate(all="ignore"):
        held = node_values(cast(problem, _DOUBLE), [n.args[-1] for n in steps])
    return _pushed(problem, {n.index: np.where(held[n.args[-1]] > 0, np.inf, -np.inf) for n in steps})


def sides(problem: Problem) -> Sides | None:
    """The problems on all sides of the jumps, or on those that simulated rounding takes where there are too many; None
    without a jump. On another side of one jump others may be met."""
    if not jumps(problem):
        return None
    found, complete = list[Problem](), True
    todo: list[Pushes] = [{n.index: np.zeros(_shape(problem.setup, n)) for n in _steps(problem.setup.graph)}]
    while todo:
        pushes = todo.pop(0)
        here = _pushed(problem, pushes) if any(p.any() for p in pushes.values()) else problem
        hidden = {n.index: _hidden(here)[after.index] for n, after in _pairs(problem, here)}
        if not any(at.any() for at, _ in hidden.values()):
            found.append(here)
        elif len(found) + len(todo) < MOST_PATTERNS:
            patterns, all_of_them = _patterns(hidden)
            todo += [_further(pushes, hidden, pattern) for pattern in patterns]
            complete &= all_of_them
        else:
            complete = False
    return Sides(found[:MOST_PATTERNS], complete and len(found) <= MOST_PATTERNS) if found else None


def _steps(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "step"]


def _pairs(old: Problem, new: Problem) -> Iterable[tuple[Node, Node]]:
    """The operations `step` of a problem, and those of the same problem with pushes."""
    return zip(_steps(old.setup.graph), _steps(new.setup.graph), strict=True)


def _shape(setup: Setup, node: Node) -> tuple[int, ...]:
    return (node.size,) if node.phase is Phase.STATIC else (setup.T, setup.batch, node.size)


def _hidden(problem: Problem) -> dict[int, tuple[Mask, Sequence[Mask]]]:
    """By `step`, the arguments whose side rounding hides, and which are above zero in each of several passes: that of
    float64, that of float32 in a problem of this dtype, and passes with simulated rounding."""
    graph = problem.setup.graph
    found = near_zero(problem, _steps(graph))
    hidden = dict[int, tuple[Mask, Sequence[Mask]]]()
    for node in _steps(graph):
        base, shift = base_of(graph, node.args[-1])
        exact, others, at = found[base]
        at = at & np.any([other != exact for other in others], axis=0)
        passes = [exact, *(others if problem.setup.dtype != _DOUBLE else others[1:])]
        part = slice(shift, shift + node.size)
        hidden[node.index] = at[..., part], [values[..., part] > 0 for values in passes]
    return hidden


Pattern = tuple[bool, ...]


def _patterns(hidden: Mapping[int, tuple[Mask, Sequence[Mask]]]) -> tuple[list[Pattern], bool]:
    """The sides of all hidden arguments in the passes and, where these are few, all others; and whether that is all."""
    passes = zip(*([above[at] for above in each] for at, each in hidden.values()), strict=True)
    seen = dict.fromkeys(tuple(np.concatenate(one).tolist()) for one in passes)
    count = sum(int(at.sum()) for at, _ in hidden.values())
    if 2**count > MOST_PATTERNS:
        return list(seen), False
    return list(seen | dict.fromkeys(product((False, True), repeat=count))), True


def _further(pushes: Pushes, hidden: Mapping[int, tuple[Mask, Sequence[Mask]]], pattern: Pattern) -> Pushes:
    """The pushes, and those that put the hidden arguments on the sides of a pattern."""
    left, found = iter(pattern), {}
    for n, (at, _) in hidden.items():
        found[n] = pushes[n].copy()
        found[n][at] = [np.inf if next(left) else -np.inf for _ in range(int(at.sum()))]
    return found


def _pushed(problem: Problem, pushes: Pushes) -> Problem:
    """The problem with pushes added to the arguments of `step`."""
    setup, names = _with_pushes(problem.setup)
    params, inputs = dict(problem.params), dict(problem.inputs)
    lead = (setup.T, setup.batch) if setup.graph.recurrent else (setup.batch,)
    for n, name in names.items():
        node = problem.setup.graph.nodes[n]
        static = node.phase is Phase.STATIC
        group, shape = (params, node.shape) if static else (inputs, (*lead, *node.shape))
        group[name] = np.ascontiguousarray(pushes[n].reshape(shape), dtype=setup.dtype)
    return Problem(setup, params, inputs, problem.state)


@lru_cache(maxsize=4)
def _with_pushes(setup: Setup) -> tuple[Setup, Mapping[int, str]]:
    """The setup with a leaf added to the argument of every `step`, and the names of the leaves.

    Cached, since plans are cached by setup.
    """
    old = setup.graph
    nodes, places, leaf, names = list[Node](), dict[int, int](), dict[str, int](), dict[int, str]()

    def add(node: Node) -> int:
        nodes.append(replace(node, index=len(nodes)))
        return len(nodes) - 1

    for node in old.nodes:
        args = tuple(places[a] for a in node.args)
        if node.op == "step":
            op, phase = ("param", Phase.STATIC) if node.phase is Phase.STATIC else ("input", Phase.INPUT)
            names[node.index] = name = f"push {len(nodes)} of {len(old.nodes)}"
            leaf[name] = add(replace(node, op=op, args=(), phase=phase, numbers=(), name=name))
            args = (add(replace(node, op="add", args=(*args, leaf[name]), numbers=(), name="")),)
        places[node.index] = add(replace(node, args=args))
    leaf |= {name: places[n] for name, n in old.leaf.items()}
    equation, before, after = (
        {name: places[n] for name, n in group.items()} for group in (old.equation, old.previous, old.new)
    )
    graph = Graph(tuple(nodes), leaf, equation, before, after, places[old.loss], old.unused)
    return replace(setup, graph=graph), names
