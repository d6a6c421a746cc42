"""The table of operations: one row for each thing that a node can do, in the order of their opcodes.

The language's functions that are missing here (`mean`, `cross_entropy`) are put together from these rows by
`bpcli.graph.expressions`. A row's position is its opcode, so new rows go to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

Shape = tuple[int, ...]
Numbers = tuple[float, ...]


_TO_A_VECTOR = "make a vector of it with `W @ v`, or a scalar with `sum` or `mean`"
_NO_PARTS = "leave the brackets out, or take the part of a vector before it is multiplied or summed"
BRACKETS = "to multiply the result of `@` write brackets: `u * (W @ v)`"


@dataclass(frozen=True)
class Misfit:
    """Why an operation does not take these shapes: a code, a sentence without a full stop, and the remedy."""

    code: str
    what: str
    help: str


ShapeRule = Callable[[tuple[Shape, ...], Numbers], "Shape | Misfit"]
FlopsRule = Callable[[tuple[Shape, ...], Shape], float]


@dataclass(frozen=True)
class Operation:
    """One row.

    `arity` is the number of arguments, None for two or more. `shape(shapes, numbers)` gives the result's shape or a
    `Misfit`. `analytic` is False where the complex step does not apply. `saves` names what the reverse rule reads:
    "args" (the arguments' values), "out" (its own value), both or nothing. `flops(shapes, out)` counts floating-point
    operations of one evaluation: 1 an entry, 10 an entry for a transcendental function, 2mnk for a product.
    """

    name: str
    arity: int | None
    shape: ShapeRule
    flops: FlopsRule
    saves: frozenset[str]
    description: str
    analytic: bool = True
    opcode: int = -1


def describe(shape: Shape) -> str:
    """A shape in words: "a scalar", "a vector of 3", "a 3 by 4 matrix"."""
    if not shape:
        return "a scalar"
    if len(shape) == 1:
        return f"a vector of {shape[0]}"
    return f"a {shape[0]} by {shape[1]} matrix"


def _same(shapes: tuple[Shape, ...], numbers: Numbers) -> Shape | Misfit:
    return shapes[0]


def _elementwise(shapes: tuple[Shape, ...], numbers: Numbers) -> Shape | Misfit:
    left, right = shapes
    if left == right or right == ():
        return left
    if left == ():
        return right
    what = f"shapes do not match: {describe(left)} and {describe(right)}"
    if {len(left), len(right)} == {1, 2}:
        return Misfit("shape-mismatch", what, f"products read from the left; {BRACKETS}")
    return Misfit("shape-mismatch", what, "elementwise operators take equal shapes, or a scalar with anything")


def _matmul(shapes: tuple[Shape, ...], numbers: Numbers) -> Shape | Misfit:
    left, right = shapes
    if len(left) != 2:
        return _not_a_matrix(left, right)
    if right == ():
        return Misfit("bad-operand", f"`@` takes {describe(left)} and a scalar", "multiply by a scalar with `*`")
    if left[1] == right[0]:
        return (left[0], *right[1:])
    what = f"shapes do not match: {describe(left)} `@` {describe(right)}"
    help_ = f"the matrix has {left[1]} columns, the right-hand side has {right[0]} {'rows' if right[1:] else 'entries'}"
    if left[0] == right[0]:
        help_ += "; its transpose `.T` would fit"
    return Misfit("shape-mismatch", what, help_)


def _not_a_matrix(left: Shape, right: Shape) -> Misfit:
    what = f"`@` takes a matrix on its left, this is {describe(left)}"
    if left == () or right == ():
        return Misfit("bad-operand", what, "multiply by a scalar with `*`")
    if len(right) == 2:
        return Misfit("bad-operand", what, "for a vector times a matrix write `W.T @ v`")
    return Misfit("bad-operand", what, "the product of two vectors is `dot(u, v)`, or `*` entry by entry")


def _transpose(shapes: tuple[Shape, ...], numbers: Numbers) -> Shape | Misfit:
    shape = shapes[0]
    if len(shape) != 2:
        return Misfit("bad-operand", f"`.T` takes a matrix, this is {describe(shape)}", "leave `.T` out")
    return shape[::-1]


def _total(shapes: tuple[Shape, ...], numbers: Numbers) -> Shape | Misfit:
    return ()


def _reduction(shapes: tuple[Shape, ...], numbers: Numbers) -> Shape | Misfit:
    shape = _vector(shapes, numbers)
    return shape if isinstance(shape, Misfit) else ()


def _vector(shapes: tuple[Shape, ...], numbers: Numbers) -> Shape | Misfit:
    for shape in shapes:
        if len(shape) > 1:
            return Misfit("bad-operand", f"a vector is needed here, this is {describe(shape)}", _TO_A_VECTOR)
    return shapes[0]


def _dot(shapes: tuple[Shape, ...], numbers: Numbers) -> Shape | Misfit:
    misfit = _vector(shapes, numbers)
    if isinstance(misfit, Misfit):
        return misfit
    if prod(shapes[0]) == prod(shapes[1]):
        return ()
    what = f"shapes do not match: {describe(shapes[0])} and {describe(shapes[1])}"
    return Misfit("shape-mismatch", what, "the two vectors must be equally long")


def _concat(shapes: tuple[Shape, ...], numbers: Numbers) -> Shape | Misfit:
    misfit = _vector(shapes, numbers)
    return misfit if isinstance(misfit, Misfit) else (sum(prod(s) for s in shapes),)


def _slice(shapes: tuple[Shape, ...], numbers: Numbers) -> Shape | Misfit:
    (shape,) = shapes
    start, stop = int(numbers[0]), int(numbers[1])
    if len(shape) != 1:
        return Misfit("bad-operand", f"only vectors have slices and elements, this is {describe(shape)}", _NO_PARTS)
    if 0 <= start < stop <= shape[0]:
        return (stop - start,)
    what = f"{describe(shape)} has no entries {start}:{stop}"
    return Misfit("slice-bounds", what, "entries count from 0, and 0 <= start < stop <= length")


def _entries(cost: float) -> FlopsRule:
    """`cost` operations for each entry of the largest of the arguments and the result."""

    def flops(shapes: tuple[Shape, ...], out: Shape) -> float:
        return cost * max(prod(s) for s in (*shapes, out))

    return flops


def _product(shapes: tuple[Shape, ...], out: Shape) -> float:
    return 2.0 * prod(shapes[0]) * prod(shapes[1][1:])


NOTHING, ARGS, OUT = frozenset[str](), frozenset({"args"}), frozenset({"out"})
BOTH = ARGS | OUT
ONE, TWO, TEN = _entries(1.0), _entries(2.0), _entries(10.0)

_ROWS = (
    Operation("copy", 1, _same, ONE, NOTHING, "the same value under a name of its own"),
    Operation("negate", 1, _same, ONE, NOTHING, "-v"),
    Operation("add", 2, _elementwise, ONE, NOTHING, "u + v"),
    Operation("subtract", 2, _elementwise, ONE, NOTHING, "u - v"),
    Operation("multiply", 2, _elementwise, ONE, ARGS, "u * v"),
    Operation("divide", 2, _elementwise, ONE, ARGS, "u / v"),
    Operation("power", 1, _same, TEN, ARGS, "v ** p, p a constant"),
    Operation("tanh", 1, _same, TEN, OUT, "hyperbolic tangent"),
    Operation("sigmoid", 1, _same, TEN, OUT, "logistic function 1 / (1 + exp(-v))"),
    Operation("relu", 1, _same, ONE, ARGS, "max(v, 0); its derivative at 0 is 0", analytic=False),
    Operation(
        "leaky_relu",
        1,
        _same,
        ONE,
        ARGS,
        "leaky_relu(v, s) = v if v > 0 else s * v, s a constant; its derivative at 0 is s",
        analytic=False,
    ),
    Operation("softplus", 1, _same, TEN, ARGS, "log(1 + exp(v))"),
    Operation("exp", 1, _same, TEN, OUT, "exponential"),
    Operation("log", 1, _same, TEN, ARGS, "natural logarithm"),
    Operation("sqrt", 1, _same, TEN, OUT, "square root"),
    Operation("sin", 1, _same, TEN, ARGS, "sine, radians"),
    Operation("cos", 1, _same, TEN, ARGS, "cosine, radians"),
    Operation("abs", 1, _same, ONE, ARGS, "absolute value; its derivative at 0 is 0", analytic=False),
    Operation("matmul", 2, _matmul, _product, ARGS, "W @ v, a matrix of parameters and constants times a vector"),
    Operation("matmat", 2, _matmul, _product, ARGS, "U @ V, two matrices of parameters and constants"),
    Operation("transpose", 1, _transpose, ONE, NOTHING, "W.T"),
    Operation("sum", 1, _total, ONE, NOTHING, "sum of all entries"),
    Operation("dot", 2, _dot, TWO, ARGS, "sum of u * v"),
    Operation("logsumexp", 1, _reduction, _entries(12.0), BOTH, "log(sum(exp(v)))"),
    Operation("softmax", 1, _vector, _entries(13.0), OUT, "exp(v) / sum(exp(v))"),
    Operation("log_softmax", 1, _vector, _entries(13.0), OUT, "v - logsumexp(v)"),
    Operation("concat", None, _concat, ONE, NOTHING, "vectors and scalars joined into one vector"),
    Operation("slice", 1, _slice, ONE, NOTHING, "v[start:stop], or the element v[i]"),
)

OPERATIONS: dict[str, Operation] = {row.name: replace(row, opcode=opcode) for opcode, row in enumerate(_ROWS)}
