"""The Graph: every value of one step as a node with a shape and a phase, in an order of evaluation.

A node's phase is the time of its computation: once, for all steps before the time loop, inside the loop, or after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from bpcli.errors import Place


class Phase(IntEnum):
    """STATIC once; INPUT for all steps before the loop; RECURRENT in the loop; OUTPUT for all steps after it."""

    STATIC = 0
    INPUT = 1
    RECURRENT = 2
    OUTPUT = 3


@dataclass(frozen=True)
class Node:
    """One operation (or leaf) of the one-step graph.

    `op` is a leaf ("param", "constant", "input", "previous") or a name in `bpcli.graph.operations.OPERATIONS`; `args`
    are indices of earlier nodes, the last one of an operation with a kink being what is zero there. `numbers` are the
    operation's fixed numbers: (value,) of a constant, (exponent,) of power, (slope,) of leaky_relu, (start, stop) of
    slice. `name` is that of the array, or of the equation whose root the node is, else "". `place` is the token in the
    spec.
    """

    index: int
    op: str
    args: tuple[int, ...]
    shape: tuple[int, ...]
    phase: Phase
    numbers: tuple[float, ...]
    name: str
    place: Place

    @cached_property
    def size(self) -> int:
        """Number of entries of one value (per step and sample where it varies)."""
        return math.prod(self.shape)


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


def ancestors(roots: Iterable[int], args: Sequence[tuple[int, ...]]) -> set[int]:
    """The nodes that `roots` are computed from within one step, themselves included; `args[i]` are node i's."""
    found = set(roots)
    todo = list(found)
    while todo:
        new = set(args[todo.pop()]) - found
        found |= new
        todo += new
    return found
