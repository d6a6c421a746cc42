"""The Spec: one TOML file as frozen data, before any graph is built and before any array exists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bpcli.errors import Place


@dataclass(frozen=True)
class Number:
    """A literal, or a dim or constant once it is folded."""

    value: float | int
    place: Place


@dataclass(frozen=True)
class Ref:
    """A name; `lag` is 1 for `name[t-1]`."""

    name: str
    lag: int
    place: Place


@dataclass(frozen=True)
class Negate:
    """Unary minus."""

    operand: Expr
    place: Place


@dataclass(frozen=True)
class Binary:
    """`op` is one of + - * / // ** @; the place is the operator's."""

    op: str
    left: Expr
    right: Expr
    place: Place


@dataclass(frozen=True)
class Transpose:
    """`operand.T`."""

    operand: Expr
    place: Place


@dataclass(frozen=True)
class Call:
    """`function(args)`; the place is the function name's."""

    function: str
    args: tuple[Expr, ...]
    place: Place


@dataclass(frozen=True)
class Item:
    """`vector[index]`."""

    vector: Expr
    index: Expr
    place: Place


@dataclass(frozen=True)
class Slice:
    """`vector[start:stop]`."""

    vector: Expr
    start: Expr | None
    stop: Expr | None
    place: Place


Expr = Number | Ref | Negate | Binary | Transpose | Call | Item | Slice
Kind = Literal["input", "param", "state"]
Nested = float | tuple["Nested", ...]


@dataclass(frozen=True)
class ArrayDecl:
    """An input, parameter or state as declared.

    `init` is None for inputs, else one of zeros ones identity orthogonal glorot normal uniform value; `scale` is the
    resolved scale (defaults filled in); `value` holds the numbers when init is "value". `trainable` is False for
    constant arrays, and True on a state whose initial value is a parameter. `place` is the key's.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    place: Place
    init: str | None = None
    scale: float = 1.0
    value: Nested | None = None
    trainable: bool = False
    density: float | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        size = 1
        for d in self.shape:
            size *= d
        return size


@dataclass(frozen=True)
class Equation:
    """`name = expr`; `place` is the key's."""

    name: str
    expr: Expr
    place: Place


@dataclass(frozen=True)
class Objective:
    """Which scalar equation is the loss, and how it is reduced; `place` is the loss's name (or the table's header)."""

    loss: str
    over_time: Literal["sum", "mean", "last"]
    over_batch: Literal["mean", "sum"]
    place: Place


@dataclass(frozen=True)
class Weights:
    """A file of parameter values; `map` takes our name to the name in the file."""

    file: str
    map: Mapping[str, str]


@dataclass(frozen=True)
class Data:
    """Where inputs come from: exactly one of `task`, `file`, `values` is set. T and batch are None where not given."""

    task: str | None
    file: str | None
    values: Mapping[str, Nested] | None
    input: str | None
    target: str | None
    T: int | None
    batch: int | None
    seed: int


@dataclass(frozen=True)
class Check:
    """Defaults of `bp check`; methods is empty when the spec gives none."""

    methods: tuple[str, ...]
    wrt: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """Defaults of `bp bench`."""

    methods: tuple[str, ...]
    grid: Mapping[str, tuple[int | float | str, ...]]


@dataclass(frozen=True)
class Kernel:
    """A user's gradient: `function` of a Python file, relative to the spec. Loading a spec does not look at it."""

    file: str
    function: str


@dataclass(frozen=True)
class Source:
    """The spec's text and where each key and value stands in it."""

    path: str
    lines: tuple[str, ...]
    keys: Mapping[tuple[str, ...], Place]
    values: Mapping[tuple[str, ...], Place]

    def key(self, *path: str) -> Place:
        """The place of a key.

        Of the nearest table that exists when the key is missing; line 1 where that is missing too.
        """
        while path:
            if path in self.keys:
                return self.keys[path]
            path = path[:-1]
        return Place(self.path, 1, 1, self.lines[0] if self.lines else "")

    def value(self, *path: str) -> Place:
        """The place of a value, or as `key` where it is missing. A list element's path ends in its index as text."""
        return self.values.get(path) or self.key(*path)


@dataclass(frozen=True)
class Spec:
    """A whole spec with overrides applied and dims resolved; mappings keep the file's order.

    `refused` are the names whose declaration or equation was refused, and which are in no mapping: what uses them is
    of unknown shape, without a further refusal. It is empty in a spec without errors.
    """

    name: str
    title: str
    description: str
    dtype: Literal["float64", "float32"]
    dims: Mapping[str, int]
    constants: Mapping[str, float]
    inputs: Mapping[str, ArrayDecl]
    params: Mapping[str, ArrayDecl]
    states: Mapping[str, ArrayDecl]
    equations: Mapping[str, Equation]
    objective: Objective
    weights: Weights | None
    data: Data
    check: Check
    bench: Bench
    source: Source
    refused: frozenset[str] = frozenset()
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
