"""The Spec: one TOML file as frozen data, before any graph is built or any array allocated.

Every `place` is that of the token in the file, for refusals that later layers make.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bpcli.errors import Place
from bpcli.spec.source import Source

MAX_SIZE = 1 << 40
"""The largest dim, and the most entries of an array."""
FLOAT32_MAX = 3.4028234663852886e38
WRT_KINDS = ("params", "inputs", "state")
"""The kinds of arrays that `wrt` names, beside single arrays."""
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "T": ("data", "T"),
    "batch": ("data", "batch"),
    "seed": ("data", "seed"),
    "dtype": ("dtype",),
    "task": ("data", "task"),
}
"""The settings that `--set` and sweeps replace beside dims and constants, with their key paths."""


@dataclass(frozen=True)
class Number:
    """A literal."""

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
    """An input, parameter or state as declared, defaults filled in; `place` is the key's.

    `init` is None for inputs, else one of zeros ones identity orthogonal glorot normal uniform value; `value` holds the
    numbers where it is "value". `trainable` is False for constant arrays, and True for a state whose initial value is
    a parameter. `density` is the fraction of a matrix's entries that exist. With `per_sample` every sample has an
    initial state of its own. With `sparse_in_file` the entries that exist are those that are not zero in the weights
    file; `kept` has their flat indices, as bytes of int64, once it is read.
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
    per_sample: bool = False
    sparse_in_file: bool = False
    kept: bytes | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Equation:
    """`name = expr`; `place` is the key's."""

    name: str
    expr: Expr
    place: Place


@dataclass(frozen=True)
class Objective:
    """The scalar equation that is the loss, and its reductions; `place` is that of the name, else of the equation."""

    loss: str
    over_time: Literal["sum", "mean", "last"]
    over_batch: Literal["mean", "sum"]
    place: Place


@dataclass(frozen=True)
class Weights:
    """A file of parameter values; `map` takes a parameter's name to that of its array in the file.

    `prefix` comes before all names in the file.
    """

    file: str
    map: Mapping[str, str]
    prefix: str = ""

    def name_in_file(self, name: str) -> str:
        """The name of a parameter's array in the file."""
        return self.prefix + self.map.get(name, name)


@dataclass(frozen=True)
class Data:
    """The source of the inputs, one of `task`, `file` and `values`. T and batch are None where the spec has none.

    `input` and `target` name the inputs that a task fills.
    """

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
    """Defaults of `bp check`; `methods` is empty where the spec gives none."""

    methods: tuple[str, ...]
    wrt: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """Defaults of `bp bench`."""

    methods: tuple[str, ...]
    grid: Mapping[str, tuple[int | float | str, ...]]


@dataclass(frozen=True)
class Kernel:
    """A user's gradient: `function` of a Python file, whose path is relative to the spec. A load leaves it alone.

    `meant` is the method that it is to agree with, None for the exact gradient.
    """

    file: str
    function: str
    meant: str | None = None


@dataclass(frozen=True)
class Spec:
    """A spec with overrides applied and dims resolved; mappings keep the file's order.

    `refused` holds the names whose declaration or equation was refused. They are in no mapping, and an expression that
    uses one has an unknown shape, which is no further refusal. It is empty in a spec without errors.
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
