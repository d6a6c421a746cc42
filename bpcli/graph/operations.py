"""The table of operations: a row holds the shape rule, cost and value on constants of one, and its position the opcode.

Functions of the language without a row (`mean`, `cross_entropy`) are composed of these in `bpcli.graph.expressions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

Shape = tuple[int, ...]
Numbers = tuple[float, ...]
_TO_A_VECTOR = "turn it into a vector with `W @ v`, or a scalar with `sum` or `mean`"
_NO_PARTS = "leave the brackets out, or take the part of a vector before it is multiplied or summed"
_OF_A_MATRIX = (
    "cut the product, `(W @ v)[0:2]`, or declare the parts as parameters of their own; "
    "for a row chosen by data, write `E.T @ onehot` with the one-hot vector as an input"
)
BRACKETS = "to multiply the result of `@` write brackets: `u * (W @ v)`"


@dataclass(frozen=True)
class Misfit:
    """The refusal of an operation whose arguments have the wrong shapes; fields as in `Diagnostic`."""

    code: str
    what: str
    help: str


ShapeRule = Callable[[tuple[Shape, ...], Numbers], "Shape | Misfit"]
FlopsRule = Callable[[tuple[Shape, ...], Shape], float]
FoldRule = Callable[..., "float | complex"]


@dataclass(frozen=True)
class Operation:
    """One row.

    `shape(shapes, numbers)` gives the result's shape or a `Misfit`. `flops(shapes, out)` counts the floating-point
    operations of one evaluation: 1 an entry, 10 an entry for a transcendental function, 2mnk for a product. `saves`
    names what the reverse rule reads: "args" (the arguments' values), "out" (its own value), both or nothing.
    `fold(*values, *numbers)` is the value on scalar constants; None keeps the node. `analytic` is False where the
    complex step does not apply.
    """

    name: str
    shape: ShapeRule
    flops: FlopsRule
    saves: frozenset[str]
    description: str
    fold: FoldRule | None = None
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
    left, right = shapes[:2]
    if left == right or right == ():
        return left
    if left == ():
        return right
    what = f"shapes do not match: {describe(left)} and {describe(right)}"
    if {len(left), len(right)} == {1, 2}:
        vector, matrix = sorted((left, right), key=len)
        if 1 in matrix and prod(matrix) == prod(vector):
            remedy = (
                f"a {'column' if matrix[1] == 1 else 'row'} is a vector here: declare it with the shape [{vector[0]}]"
            )
            return Misfit("shape-mismatch", what, remedy)
        return Misfit("shape-mismatch", what, f"products read from the left; {BRACKETS}")
    return Misfit("shape-mismatch", what, "elementwise operators take equal shapes, or a scalar with anything")


def _multiply(shapes: tuple[Shape, ...], numbers: Numbers) -> Shape | Misfit:
    found = _elementwise(shapes, numbers)
    if isinstance(found, Misfit) and len(shapes[0]) == 2 and shapes[0][1:] == shapes[1]:
        return replace(found, help="for the product of a matrix and a vector write `W @ v`; `*` is entry by entry")
    return found


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


def _scalar(shapes: tuple[Shape, ...], numbers: Numbers) -> Shape | Misfit:
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
    if len(shape) == 2:
        what = f"only vectors have slices and elements, this is {describe(shape)}"
        return Misfit("bad-operand", what, _OF_A_MATRIX)
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


def _sigmoid(v: float) -> float:
    return 1.0 / (1.0 + math.exp(-v)) if v >= 0 else math.exp(v) / (1.0 + math.exp(v))


def _softplus(v: float) -> float:
    return max(v, 0.0) + math.log1p(math.exp(-abs(v)))


def _leaky_relu(v: float, slope: float) -> float:
    return v if v > 0 else slope * v


def _step(v: float) -> float:
    return 1.0 if v > 0 else 0.0


def _identity(v: float) -> float:
    return v


NOTHING, ARGS, OUT = frozenset[str](), frozenset({"args"}), frozenset({"out"})
BOTH = ARGS | OUT
ONE, TWO, TEN = _entries(1.0), _entries(2.0), _entries(10.0)
_MAX, _MIN = (
    f"the {most} of u and v, entry by entry; where equal, the derivative is that of v" for most in ("larger", "smaller")
)
_STEP = "1 where v > 0, else 0; its derivative is 0, or the surrogate k * max(0, 1 - |v|) of step(v, k)"
_LEAKY = "leaky_relu(v, s) = v if v > 0 else s * v, s a constant; its derivative at 0 is s"

_ROWS = (
    Operation("copy", _same, ONE, NOTHING, "the same value under a new name"),
    Operation("negate", _same, ONE, NOTHING, "-v", lambda v: -v),
    Operation("add", _elementwise, ONE, NOTHING, "u + v", lambda u, v: u + v),
    Operation("subtract", _elementwise, ONE, NOTHING, "u - v", lambda u, v: u - v),
    Operation("multiply", _multiply, ONE, ARGS, "u * v", lambda u, v: u * v),
    Operation("divide", _elementwise, ONE, ARGS, "u / v", lambda u, v: u / v),
    Operation("power", _same, TEN, ARGS, "v ** p, p a constant", lambda v, p: v**p),
    Operation("tanh", _same, TEN, OUT, "hyperbolic tangent", math.tanh),
    Operation("sigmoid", _same, TEN, OUT, "logistic function 1 / (1 + exp(-v))", _sigmoid),
    Operation("relu", _same, ONE, ARGS, "max(v, 0); its derivative at 0 is 0", lambda v: max(v, 0.0), analytic=False),
    Operation("leaky_relu", _same, ONE, ARGS, _LEAKY, _leaky_relu, analytic=False),
    Operation("softplus", _same, TEN, ARGS, "log(1 + exp(v))", _softplus),
    Operation("exp", _same, TEN, OUT, "exponential", math.exp),
    Operation("log", _same, TEN, ARGS, "natural logarithm", math.log),
    Operation("sqrt", _same, TEN, OUT, "square root", math.sqrt),
    Operation("sin", _same, TEN, ARGS, "sine, radians", math.sin),
    Operation("cos", _same, TEN, ARGS, "cosine, radians", math.cos),
    Operation("abs", _same, ONE, ARGS, "absolute value; its derivative at 0 is 0", abs, analytic=False),
    Operation("matmul", _matmul, _product, ARGS, "W @ v, a matrix of parameters and constants times a vector"),
    Operation("matmat", _matmul, _product, ARGS, "U @ V, two matrices of parameters and constants"),
    Operation("transpose", _transpose, ONE, NOTHING, "W.T"),
    Operation("sum", _scalar, ONE, NOTHING, "sum of all entries", _identity),
    Operation("dot", _dot, TWO, ARGS, "sum of u * v", lambda u, v: u * v),
    Operation("logsumexp", _reduction, _entries(12.0), BOTH, "log(sum(exp(v)))", _identity),
    Operation("softmax", _vector, _entries(13.0), OUT, "exp(v) / sum(exp(v))", lambda v: 1.0),
    Operation("log_softmax", _vector, _entries(13.0), OUT, "v - logsumexp(v)", lambda v: 0.0),
    Operation("concat", _concat, ONE, NOTHING, "vectors and scalars joined into one vector"),
    Operation("slice", _slice, ONE, NOTHING, "v[start:stop], or the element v[i]"),
    Operation("erf", _same, TEN, ARGS, "error function, 2/sqrt(pi) times the integral of exp(-s**2) to v", math.erf),
    Operation("max", _elementwise, ONE, ARGS, _MAX, analytic=False),
    Operation("min", _elementwise, ONE, ARGS, _MIN, analytic=False),
    Operation("stop_gradient", _same, ONE, NOTHING, "v, treated as a constant in every derivative", _identity),
    Operation("step", _same, ONE, NOTHING, _STEP, _step),
)
"""In the order of opcodes, which compiled kernels know: new rows go to the end."""

STOPPING = frozenset({"stop_gradient", "step"})
"""Operations without a derivative: what is computed from them is a constant to all references."""
SWITCHED = frozenset({"max", "min"})
"""Operations whose last argument is the difference that is positive where they take the first one; it has no other use,
and no derivative."""

OPERATIONS: dict[str, Operation] = {row.name: replace(row, opcode=opcode) for opcode, row in enumerate(_ROWS)}


def fold(op: str, values: Sequence[float]) -> float | None:
    """The value of `op` on scalar constants, fixed numbers last, in float64; None where it is no finite real number."""
    rule = OPERATIONS[op].fold
    assert rule is not None, f"{op} is not folded"
    try:
        value = rule(*values)
    except (ArithmeticError, ValueError):
        return None
    return value if isinstance(value, float) and math.isfinite(value) else None
