"""The Tape: a Graph as a few integer arrays that the kernels run.

An instruction is a row of integers. Nodes keep the graph's numbering; where a node's numbers are stored is not the
tape's business but that of a `Layout`, so one tape serves every method.

The numbers by which kernels know operations, instruction fields and address fields (compile-time constants).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.operations import OPERATIONS

LEAST_MATRIX = 1 << 15
"""Entries of a matrix from which threads share its products with one vector."""


VECTORS = 3
"""Vectors in a row of a tile of a product (see `bpcli.kernels.tiles`)."""


MOST_COLUMNS = 256
"""Columns of a factor that is multiplied as it stands: entries of a column that are pages apart are better packed."""


BASE, STEP, OUTER, INNER_ROW, LANE, EPOCH, PACKED, PACKED_T, APART = range(9)


PLACE_FIELDS = APART + 1


Integers = NDArray[np.int64]

ZERO = 1000
"""Opcode of the reverse program alone: set a node's cotangent to zero."""

OP, OUT, A, B, ADDEND, NUMBER, SIZE, SIZE_A, SIZE_B, TURNED, MODE_A, MODE_B, MODE_ADDEND, INNER = range(14)
FIELDS = INNER + 1
"""Fields of an instruction.

ADDEND is a node added to a product (-1: none). NUMBER is the index of the operation's fixed number. SIZE, SIZE_A and
SIZE_B are entries of the result and the arguments; INNER is the inner dimension of a product of two static matrices.
TURNED says that the matrix is used transposed. The modes say how the reverse rule leaves an argument's cotangent:
"""

NONE, STORE, ACCUMULATE = range(3)
"""Modes: the argument takes no cotangent; this is the first contribution; contributions are there already."""


@dataclass(frozen=True)
class Product:
    """`delta = matrix @ vector` whose matrix takes a gradient: Σ over rows of cotangent(delta) value(vector)ᵀ."""

    matrix: int
    delta: int
    vector: int
    turned: bool


@dataclass(frozen=True)
class Alias:
    """A node's numbers are those of `owner` from entry `shift` on."""

    owner: int
    shift: int


@dataclass(frozen=True, eq=False)
class Forward:
    """Instructions sorted by phase; those of phase p are rows `bounds[p]` to `bounds[p + 1]`.

    `alias` takes a node without storage of its own (a slice, an addend built up in place) to where its value is.
    """

    code: Integers
    bounds: Integers
    numbers: NDArray[np.float64]
    alias: Mapping[int, Alias]


@dataclass(frozen=True, eq=False)
class Reverse:
    """Instructions sorted by phase backwards (OUTPUT first); phase p is rows `bounds[3 - p]` to `bounds[4 - p]`.

    `touched` are the nodes that get a cotangent; `reads` the nodes whose value is read; `kept` the nodes whose
    cotangent outlives its step; `products` the matrix gradients, formed after the loop.
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
EXP, LOG, SQRT, SIN, COS, ABS = (OPERATIONS[name].opcode for name in ("exp", "log", "sqrt", "sin", "cos", "abs"))
MATMUL, MATMAT, TRANSPOSE = (OPERATIONS[name].opcode for name in ("matmul", "matmat", "transpose"))
SUM, DOT, LOGSUMEXP, SOFTMAX, LOG_SOFTMAX, CONCAT = (
    OPERATIONS[name].opcode for name in ("sum", "dot", "logsumexp", "softmax", "log_softmax", "concat")
)
