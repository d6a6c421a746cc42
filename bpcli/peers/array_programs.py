"""The loss of a Graph in a library of arrays, as reverse mode goes through it.

The phases of the graph are kept: what is static or depends on inputs alone is computed before the scan over all steps
at once, what no state depends on after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Phase
from bpcli.peers.array_graph import Program, Values, program
from bpcli.peers.array_library import Arrays, Library
from bpcli.problem.definition import Setup


def loss(library: Library, setup: Setup) -> Callable[[Arrays], Any]:
    """The objective as a function of all arrays: the loss of every step and sample, reduced over time and batch."""
    losses, objective = _losses(library, setup), setup.spec.objective
    over_time = {"sum": lambda x: x.sum(0), "mean": lambda x: x.mean(0), "last": lambda x: x[-1]}

    def total(arrays: Arrays) -> Any:
        each = losses(arrays)
        if setup.graph.recurrent:
            each = over_time[objective.over_time](each)
        return each.mean() if objective.over_batch == "mean" else each.sum()

    return total


def masks(setup: Setup) -> dict[str, NDArray[np.bool_]]:
    """For each tensor that a density thins out, which of its entries exist."""
    found = {}
    for tensor in setup.wrt:
        if tensor.pattern is not None:
            found[tensor.name] = mask = np.zeros(tensor.shape, dtype=np.bool_)
            mask.reshape(-1)[tensor.pattern] = True
    return found


def leaves(library: Library, setup: Setup, arrays: Arrays) -> Values:
    """The values of a step that are given: arrays and constants."""
    graph = setup.graph
    constants = {n.index: library.constant(setup.dtype.type(n.numbers[0])) for n in graph.nodes if n.op == "constant"}
    return constants | {i: arrays[name] for name, i in graph.leaf.items()}


def _losses(library: Library, setup: Setup) -> Callable[[Arrays], Any]:
    """The loss of every step and sample, `(T, batch)`, or `(batch,)` when feed-forward."""
    graph = setup.graph
    lines = {phase: program(library, graph, _phase(graph, phase), _wanted(graph, phase)) for phase in Phase}
    scan = _scan(library, setup, lines[Phase.RECURRENT])
    lead = (setup.T, setup.batch) if graph.recurrent else (setup.batch,)

    def losses(arrays: Arrays) -> Any:
        values = lines[Phase.STATIC].run(leaves(library, setup, arrays))
        values = lines[Phase.INPUT].run(values)
        if graph.recurrent:
            values = lines[Phase.OUTPUT].run(scan(arrays, values))
        return library.xp.broadcast_to(values[graph.loss], lead)

    return losses


def _scan(library: Library, setup: Setup, lines: Program) -> Callable[[Arrays, Values], Values]:
    """The recurrent phase: `values` and, for all steps, what the output phase reads of states and recurrent values."""
    graph, xp = setup.graph, library.xp
    inside, after = _phase(graph, Phase.RECURRENT), _phase(graph, Phase.OUTPUT)
    feeding = _read(graph, inside, Phase.INPUT) | {i for i in graph.new.values() if graph.nodes[i].phase is Phase.INPUT}
    wanted = _read(graph, after, Phase.RECURRENT) | ({graph.loss} & set(inside))
    # A state that no state is computed from is read after the scan alone.
    earlier = {name: i for name, i in graph.previous.items() if any(i in graph.nodes[n].args for n in after)}
    kept = sorted(wanted - set(earlier.values()))

    def rows(i: int, value: Any) -> Any:
        shape = (setup.batch, *graph.nodes[i].shape)
        return value if value.shape == shape else xp.broadcast_to(value, shape)

    def scan(arrays: Arrays, values: Values) -> Values:
        fixed = {i: v for i, v in values.items() if graph.nodes[i].phase is Phase.STATIC}
        fed = {i: xp.broadcast_to(values[i], (setup.T, setup.batch, *graph.nodes[i].shape)) for i in sorted(feeding)}

        def step(state: Arrays, inputs: Values) -> tuple[Arrays, Values]:
            before = {i: state[name] for name, i in graph.previous.items()}
            now = lines.run(fixed | inputs | before)
            new = {name: rows(i, now[i]) for name, i in graph.new.items()}
            return new, {i: rows(i, now[i]) for i in kept} | {i: new[name] for name, i in earlier.items()}

        first = {name: rows(i, arrays[name]) for name, i in graph.previous.items()}
        found: Values = library.scan(step, first, fed, setup.T)[1]
        before = {i: xp.concatenate([first[name][None], found[i][:-1]]) for name, i in earlier.items()}
        return values | found | before

    return scan


def _phase(graph: Graph, phase: Phase) -> list[int]:
    """The nodes of a phase that are computed, not given."""
    return [n.index for n in graph.nodes if n.phase is phase and n.args]


def _wanted(graph: Graph, phase: Phase) -> set[int]:
    """The nodes of `phase` that are the loss, a state's new value, or read in another phase."""
    others = [n.index for n in graph.nodes if n.phase is not phase]
    return _read(graph, others, phase) | {graph.loss, *graph.new.values()}


def _read(graph: Graph, readers: list[int], phase: Phase) -> set[int]:
    """The nodes of `phase` that `readers` take as arguments."""
    return {a for i in readers for a in graph.nodes[i].args if graph.nodes[a].phase is phase}
