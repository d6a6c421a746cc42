"""Where a wrong gradient comes from: the node whose cotangent is the first that can be wrong, the step, the sample."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bpcli.checking.blame.evidence import Evidence
from bpcli.checking.interpreter.hooks import Edge, Hooks
from bpcli.checking.interpreter.walk import Walk
from bpcli.graph.nodes import Graph, Node
from bpcli.references.base import FloatArray


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
