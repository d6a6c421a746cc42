"""The Graph: every value of one step as a node with a shape and a phase, in an order that can be evaluated.

When each node is computed: once, before the time loop, inside it, or after it.

What a node depends on is known as it is made (`dependence`); whether the loop needs it only once the whole graph
stands (`assign_phases`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from bpcli.errors import Place


class Phase(IntEnum):
    """When a node is computed (see `bpcli.graph.nodes`)."""

    STATIC = 0
    INPUT = 1
    RECURRENT = 2
    OUTPUT = 3


@dataclass(frozen=True)
class Node:
    """One operation (or leaf) of the one-step graph.

    `op` is a leaf ("param", "constant", "input", "previous") or a name in `bpcli.graph.operations.OPERATIONS`; `args`
    are indices of earlier nodes. `numbers` are the operation's fixed numbers: (value,) of a constant, (exponent,) of
    power, (slope,) of leaky_relu, (start, stop) of slice. `name` is the array's or equation's name where it has one
    (the root of an equation carries the equation's name), else "". `place` is the token in the spec.
    """

    index: int
    op: str
    args: tuple[int, ...]
    shape: tuple[int, ...]
    phase: Phase
    numbers: tuple[float, ...]
    name: str
    place: Place

    @property
    def size(self) -> int:
        """Number of entries of one value (per step and sample where it varies)."""
        size = 1
        for d in self.shape:
            size *= d
        return size


@dataclass(frozen=True, eq=False)
class Graph:
    """`nodes` in topological order; `leaf` takes an input's or parameter's name to its node, `equation` an equation's.

    `previous` and `new` take a state's name to the node of its value at t-1 and at t. `loss` is the scalar loss node.
    `unused` names the parameters, inputs and equations that the loss does not depend on (over all steps).
    """

    nodes: tuple[Node, ...]
    leaf: Mapping[str, int]
    equation: Mapping[str, int]
    previous: Mapping[str, int]
    new: Mapping[str, int]
    loss: int
    unused: tuple[str, ...]

    @property
    def recurrent(self) -> bool:
        """Whether the network has a state."""
        return bool(self.previous)


LEAF_PHASE = {"param": Phase.STATIC, "constant": Phase.STATIC, "input": Phase.INPUT, "previous": Phase.RECURRENT}


def dependence(args: Iterable[Phase]) -> Phase:
    """STATIC, INPUT or RECURRENT for a node whose arguments are that: RECURRENT means that it depends on a state."""
    return max(args, default=Phase.STATIC)


def ancestors(roots: Iterable[int], args: Sequence[tuple[int, ...]]) -> set[int]:
    """The nodes that `roots` are computed from within one step, themselves included; `args[i]` are node i's."""
    found = set(roots)
    todo = list(found)
    while todo:
        for arg in args[todo.pop()]:
            if arg not in found:
                found.add(arg)
                todo.append(arg)
    return found


def assign_phases(dependences: Sequence[Phase], feeding: set[int]) -> list[Phase]:
    """The phase of every node.

    `feeding` are the nodes that some state's new value is computed from: what depends on a state and is none of them
    waits until after the loop.
    """
    return [
        Phase.OUTPUT if phase is Phase.RECURRENT and index not in feeding else phase
        for index, phase in enumerate(dependences)
    ]
