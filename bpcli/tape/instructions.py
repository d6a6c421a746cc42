"""The tape: a graph as integer arrays that the kernels run.

An instruction is a row of integers, the fields of which are numbered here; so are the fields of the table of places,
which says where the numbers of each node stand. Nodes keep the numbering of their graph. As an instruction names nodes
and never storage, one tape serves every layout. Kernels read all of these numbers as compile-time constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.operations import OPERATIONS

Integers = NDArray[np.int64]

OP, OUT, A, B, ADDEND, NUMBER, SIZE, SIZE_A, SIZE_B, TURNED, MODE_A, MODE_B, MODE_ADDEND, INNER = range(14)
FIELDS = INNER + 1
"""Fields of an instruction. Nodes are indices into the graph, -1 where there is none; sizes are entries of one sample.

| field       | meaning                                                                    | written by             |
|-------------|----------------------------------------------------------------------------|------------------------|
| OP          | opcode of the operation, or ZERO                                           | both programs          |
| OUT         | node computed; in reverse, the node whose cotangent is propagated          | both programs          |
| A, B        | arguments; A is the matrix of a matmul, B its vector                       | both programs          |
| ADDEND      | node added to the product of a matmul                                      | both programs          |
| NUMBER      | index in `Forward.numbers` of the fixed number: exponent or slope          | both programs          |
| SIZE        | entries of OUT                                                             | both programs          |
| SIZE_A      | entries of A                                                               | both programs          |
| SIZE_B      | entries of B, 0 without B                                                  | both programs          |
| TURNED      | 1 where a matmul uses A transposed, else 0                                 | both programs          |
| MODE_A      | NONE, STORE or ACCUMULATE: how the cotangent of A takes its contribution   | reverse, else NONE     |
| MODE_B      | the same of B                                                              | reverse, else NONE     |
| MODE_ADDEND | the same of ADDEND                                                         | reverse, else NONE     |
| INNER       | matmat: columns of A; transpose: rows of OUT; concat: entry of OUT at      | both programs          |
|             | which the part A begins                                                    |                        |

Both programs are written by `bpcli.tape.lowering`; `bpcli.tape.dependency.Reach` adds the copies that advance states.
"""
NONE, STORE, ACCUMULATE = range(3)
"""Modes: no contribution; the first one, which overwrites; one that is added to what is there."""
ZERO = 1000
"""Opcode of the reverse program alone: set the cotangent of OUT to zero. Only OP, OUT and SIZE matter."""

BASE, STEP, OUTER, INNER_ROW, LANE, EPOCH, PACKED, PACKED_T, APART = range(9)
PLACE_FIELDS = APART + 1
"""Fields of a line of the table of places, one line a node. The unit is an entry of the array that is laid out.

The row of node n at step t of copy o, sample i and lane l begins at BASE + t STEP + o OUTER + i INNER_ROW + l LANE.

| field     | meaning                                                                      | written by             |
|-----------|------------------------------------------------------------------------------|------------------------|
| BASE      | offset of the first row, -1 without storage                                  | layout, `settle`       |
| STEP      | stride of steps, 0 where every step uses the same storage                    | layout                 |
| OUTER     | stride of copies or windows, 0 where they share storage                      | runtime, else 0        |
| INNER_ROW | stride of samples, 0 where they share storage                                | layout                 |
| LANE      | stride of the lanes' shares of a sum, 0 without lanes                        | layout                 |
| EPOCH     | step from which BASE counts: 0 none, 1 first of the chunk, 2 of the window   | layout                 |
| PACKED    | offset of the packed copy of a matrix, -1 without one                        | layout                 |
| PACKED_T  | offset of the packed copy of its transpose, -1 without one                   | layout                 |
| APART     | distance between rows of a matrix, 0 where they lie end to end               | layout                 |

Layout is `bpcli.tape.layout`; copies and windows get their strides from the module of `bpcli.runtime` that makes them.
"""

LEAST_MATRIX = 1 << 15
"""Entries of a matrix from which threads share its products with one vector."""
VECTORS = 3
"""SIMD vectors in a row of a tile of a product (see `bpcli.kernels.tiles`)."""
MOST_COLUMNS = 256
"""Columns up to which a factor is multiplied unpacked: in wider ones, entries of a column are pages apart."""


@dataclass(frozen=True)
class Product:
    """`delta = matrix @ vector` whose matrix takes a gradient: Σ over rows of cotangent(delta) value(vector)ᵀ."""

    matrix: int
    delta: int
    vector: int
    turned: bool


@dataclass(frozen=True)
class Alias:
    """A node without storage of its own: its entries are those of `owner` from entry `shift` on."""

    owner: int
    shift: int


@dataclass(frozen=True, eq=False)
class Forward:
    """The forward program, (instructions, FIELDS), sorted by phase: phase p is rows `bounds[p]` to `bounds[p + 1]`.

    `numbers` holds one fixed number for each node, 0.0 where it has none. `alias` has the nodes without storage of
    their own: slices, and addends that are accumulated in the storage of their sum.
    """

    code: Integers
    bounds: Integers
    numbers: NDArray[np.float64]
    alias: Mapping[int, Alias]


@dataclass(frozen=True, eq=False)
class Reverse:
    """The reverse program, last phase first: phase p is rows `bounds[3 - p]` to `bounds[4 - p]`.

    `touched` are the nodes that get a cotangent, `reads` those whose value is read, `kept` those whose cotangent
    outlives its step, and `products` the matrix gradients, which are formed after the time loop.
    """

    code: Integers
    bounds: Integers
    products: tuple[Product, ...]
    alias: Mapping[int, Alias]
    touched: frozenset[int]
    reads: frozenset[int]
    kept: frozenset[int]


COPY, NEGATE, ADD, SUBTRACT, MULTIPLY, DIVIDE, POWER = (
    OPERATIONS[name].opcode for name in ("copy", "negate", "add", "subtract", "multiply", "divide", "power")
)
TANH, SIGMOID, RELU, LEAKY_RELU, SOFTPLUS = (
    OPERATIONS[name].opcode for name in ("tanh", "sigmoid", "relu", "leaky_relu", "softplus")
)
EXP, LOG, SQRT, SIN, COS, ABS, ERF = (
    OPERATIONS[name].opcode for name in ("exp", "log", "sqrt", "sin", "cos", "abs", "erf")
)
MAX, MIN, STOP, UNIT_STEP = (OPERATIONS[name].opcode for name in ("max", "min", "stop_gradient", "step"))
MATMUL, MATMAT, TRANSPOSE = (OPERATIONS[name].opcode for name in ("matmul", "matmat", "transpose"))
SUM, DOT, LOGSUMEXP, SOFTMAX, LOG_SOFTMAX, CONCAT = (
    OPERATIONS[name].opcode for name in ("sum", "dot", "logsumexp", "softmax", "log_softmax", "concat")
)
