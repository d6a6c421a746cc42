"""The node builder: shapes are checked as a node is made, equal nodes are shared, and constants are folded.

Its methods return None for an operation that is refused, and for one with an argument that is None, so that one mistake
is reported once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bpcli.errors import Collector, Place
from bpcli.graph.nodes import LEAF_PHASE, Phase
from bpcli.graph.operations import BRACKETS, OPERATIONS, Misfit, Shape, describe, fold
from bpcli.spec.specification import MAX_SIZE


@dataclass(frozen=True)
class AbstractValue:
    """The shape and phase of a value, known before it is computed."""

    shape: Shape
    phase: Phase


@dataclass(frozen=True)
class DraftNode:
    """A node before it has an index; RECURRENT stands for every dependence on a state, in the loop or after it."""

    op: str
    args: tuple[int, ...]
    shape: Shape
    numbers: tuple[float, ...]
    phase: Phase
    place: Place

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for nodes of equal value."""
        return (self.op, self.args, self.numbers, self.shape)


@dataclass
class NodeBuilder:
    """All nodes made so far, each after its arguments; `names[i]` is node i's name or ""."""

    collector: Collector
    nodes: list[DraftNode] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    _known: dict[tuple[object, ...], int] = field(default_factory=dict)

    def leaf(self, op: str, name: str, shape: Shape, place: Place) -> int:
        """A new param, input or previous node."""
        self.nodes.append(DraftNode(op, (), shape, (), LEAF_PHASE[op], place))
        self.names.append(name)
        return len(self.nodes) - 1

    def constant(self, value: float, place: Place) -> int | None:
        """The node of a number; refuses one that is not finite."""
        if not math.isfinite(value):
            self.collector.add("not-finite", "this number is not finite", place, help="write a finite number")
            return None
        return self._share(DraftNode("constant", (), (), (value + 0.0,), Phase.STATIC, place))  # -0.0 becomes 0.0

    def copy(self, index: int, place: Place) -> int:
        """A node of the same value."""
        return self._share(replace(self.nodes[index], op="copy", args=(index,), numbers=(), place=place))

    def apply(
        self, op: str, args: Sequence[int | None], place: Place, numbers: tuple[float, ...] = (), element: bool = False
    ) -> int | None:
        """The node of an operation on earlier nodes; `element` makes a slice of one entry a scalar."""
        present = tuple(arg for arg in args if arg is not None)
        if len(present) < len(args):
            return None
        result = self.check(op, [self.abstract(arg) for arg in present], place, numbers)
        if result is None:
            return None
        constants = [v for arg in present if (v := self.value(arg)) is not None]
        if len(constants) == len(present) and OPERATIONS[op].fold is not None:
            return self._fold(op, [*constants, *numbers], place)
        return self._share(DraftNode(op, present, () if element else result.shape, numbers, result.phase, place))

    def check(
        self, op: str, args: Sequence[AbstractValue], place: Place, numbers: tuple[float, ...] = ()
    ) -> AbstractValue | None:
        """The result of an operation on such arguments; None where they do not fit, which is reported."""
        shape = OPERATIONS[op].shape(tuple(arg.shape for arg in args), numbers)
        if isinstance(shape, Misfit):
            self.collector.add(shape.code, shape.what, place, help=shape.help)
            return None
        if math.prod(shape) > MAX_SIZE:
            what = f"{describe(shape)} is larger than any array can be"
            help_ = "arrays have at most 2**40 entries: join or multiply less"
            self.collector.add("out-of-range", what, place, help=help_)
            return None
        phase = max(arg.phase for arg in args)
        if len(shape) > 1 and phase is not Phase.STATIC:
            what = f"{describe(shape)} that varies with samples or time is a known limit of version 1"
            help_ = f"a matrix may depend only on parameters and constants; {BRACKETS}"
            self.collector.add("known-limit", what, place, help=help_)
            return None
        return AbstractValue(shape, phase)

    def abstract(self, index: int) -> AbstractValue:
        """The shape and phase of a node."""
        return AbstractValue(self.nodes[index].shape, self.nodes[index].phase)

    def value(self, index: int) -> float | None:
        """The value of a constant node, None for any other."""
        node = self.nodes[index]
        return node.numbers[0] if node.op == "constant" else None

    def is_leaf(self, index: int) -> bool:
        """Whether a node is a param, constant, input or previous node."""
        return self.nodes[index].op in LEAF_PHASE

    def claim(self, index: int) -> None:
        """Make a node the new value of a state: it is computed in the loop, and no later expression shares it."""
        node = self.nodes[index]
        del self._known[node.key]
        self.nodes[index] = replace(node, phase=Phase.RECURRENT)

    def _fold(self, op: str, values: Sequence[float], place: Place) -> int | None:
        value = fold(op, values)
        if value is None:
            what = f"{op}({', '.join(f'{v:g}' for v in values)}) is not a finite real number"
            self.collector.add("not-finite", what, place, help="keep its arguments where the result is one")
            return None
        return self.constant(value, place)

    def _share(self, node: DraftNode) -> int:
        index = self._known.setdefault(node.key, len(self.nodes))
        if index == len(self.nodes):
            self.nodes.append(node)
            self.names.append("")
        return index
