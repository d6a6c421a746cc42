"""Arithmetic on constants at build time, in float64.

Nodes in the making: each is checked as it is made, identical ones are shared, constants are folded.

Everything here answers None for what is in error and was reported, and takes None for such an argument in silence,
so that one mistake is reported once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from bpcli.errors import Collector, Place
from bpcli.graph.nodes import LEAF_PHASE, Phase, dependence
from bpcli.graph.operations import BRACKETS, OPERATIONS, Misfit, Shape, describe
from bpcli.spec.specification import MAX_SIZE


def _sigmoid(v: float) -> float:
    return 1.0 / (1.0 + math.exp(-v)) if v >= 0 else math.exp(v) / (1.0 + math.exp(v))


_RULES: dict[str, Callable[..., float | complex]] = {
    "negate": lambda v: -v,
    "add": lambda u, v: u + v,
    "subtract": lambda u, v: u - v,
    "multiply": lambda u, v: u * v,
    "divide": lambda u, v: u / v,
    "power": lambda v, p: v**p,
    "tanh": math.tanh,
    "sigmoid": _sigmoid,
    "relu": lambda v: max(v, 0.0),
    "leaky_relu": lambda v, slope: v if v > 0 else slope * v,
    "softplus": lambda v: max(v, 0.0) + math.log1p(math.exp(-abs(v))),
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "sin": math.sin,
    "cos": math.cos,
    "abs": abs,
    "sum": lambda v: v,
    "dot": lambda u, v: u * v,
    "logsumexp": lambda v: v,
    "softmax": lambda v: 1.0,
    "log_softmax": lambda v: 0.0,
}


def foldable(op: str) -> bool:
    """Whether `op` on constants is a constant: true of all but copies, joins and slices."""
    return op in _RULES


def fold(op: str, values: Sequence[float]) -> float | None:
    """The value of `op` on constants (its fixed numbers last), or None where it is not a finite real number."""
    try:
        value = _RULES[op](*values)
    except (ArithmeticError, ValueError):
        return None
    return value if isinstance(value, float) and math.isfinite(value) else None


@dataclass(frozen=True)
class Kind:
    """What is known of a value before it is computed: its shape, and whether it varies with samples or with time."""

    shape: Shape
    phase: Phase


@dataclass(frozen=True)
class Draft:
    """A node whose phase and index are not final; `phase` tells what it depends on (see `phases.dependence`)."""

    op: str
    args: tuple[int, ...]
    shape: Shape
    numbers: tuple[float, ...]
    phase: Phase
    place: Place


@dataclass
class Drafts:
    """All nodes made so far, arguments before what uses them; `names[i]` is node i's name or ""."""

    collector: Collector
    nodes: list[Draft] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    _known: dict[tuple[object, ...], int] = field(default_factory=dict)

    def leaf(self, op: str, name: str, shape: Shape, place: Place) -> int:
        """A new param, input or previous node."""
        self.nodes.append(Draft(op, (), shape, (), LEAF_PHASE[op], place))
        self.names.append(name)
        return len(self.nodes) - 1

    def constant(self, value: float, place: Place) -> int | None:
        """The node of a number; refuses one that is not finite."""
        if not math.isfinite(value):
            self.collector.add("not-finite", "this number is not finite", place, help="write a finite number")
            return None
        return self._share(Draft("constant", (), (), (value + 0.0,), Phase.STATIC, place))  # + 0.0 makes -0.0 into 0.0

    def apply(
        self, op: str, args: Sequence[int | None], place: Place, numbers: tuple[float, ...] = (), element: bool = False
    ) -> int | None:
        """The node of an operation on earlier nodes; `element` makes a slice of one entry a scalar."""
        present = tuple(arg for arg in args if arg is not None)
        if len(present) < len(args):
            return None
        kind = self.check(op, [self.kind(arg) for arg in present], place, numbers)
        if kind is None:
            return None
        values = [self.value(arg) for arg in present]
        constants = [v for v in values if v is not None]
        if len(constants) == len(values) and foldable(op):
            return self._fold(op, [*constants, *numbers], place)
        return self._share(Draft(op, present, () if element else kind.shape, numbers, kind.phase, place))

    def check(self, op: str, kinds: Sequence[Kind], place: Place, numbers: tuple[float, ...] = ()) -> Kind | None:
        """The kind of an operation's result, or None where the arguments do not fit, which is reported."""
        shape = OPERATIONS[op].shape(tuple(kind.shape for kind in kinds), numbers)
        if isinstance(shape, Misfit):
            self.collector.add(shape.code, shape.what, place, help=shape.help)
            return None
        if math.prod(shape) > MAX_SIZE:
            what = f"{describe(shape)} is larger than any array can be"
            self.collector.add(
                "out-of-range", what, place, help="arrays have at most 2**40 entries: join or multiply less"
            )
            return None
        phase = dependence(kind.phase for kind in kinds)
        if len(shape) > 1 and phase is not Phase.STATIC:
            what = f"{describe(shape)} that varies with samples or time is a known limit of version 1"
            help_ = f"a matrix may depend on parameters and constants alone; {BRACKETS}"
            self.collector.add("known-limit", what, place, help=help_)
            return None
        return Kind(shape, phase)

    def kind(self, index: int) -> Kind:
        """The shape and dependence of a node."""
        return Kind(self.nodes[index].shape, self.nodes[index].phase)

    def value(self, index: int) -> float | None:
        """The value of a constant node, None for any other."""
        draft = self.nodes[index]
        return draft.numbers[0] if draft.op == "constant" else None

    def is_leaf(self, index: int) -> bool:
        """Whether a node is a param, constant, input or previous node."""
        return self.nodes[index].op in LEAF_PHASE

    def claim(self, index: int) -> None:
        """Make a node the new value of a state: it is the loop's, and no later expression shares it."""
        draft = self.nodes[index]
        del self._known[_key(draft)]
        self.nodes[index] = replace(draft, phase=Phase.RECURRENT)

    def _fold(self, op: str, values: Sequence[float], place: Place) -> int | None:
        value = fold(op, values)
        if value is None:
            shown = ", ".join(f"{v:g}" for v in values)
            what = f"{op}({shown}) is not a finite real number"
            self.collector.add("not-finite", what, place, help="keep its arguments where the result is one")
            return None
        return self.constant(value, place)

    def _share(self, draft: Draft) -> int:
        index = self._known.setdefault(_key(draft), len(self.nodes))
        if index == len(self.nodes):
            self.nodes.append(draft)
            self.names.append("")
        return index


def _key(draft: Draft) -> tuple[object, ...]:
    return (draft.op, draft.args, draft.numbers, draft.shape)
