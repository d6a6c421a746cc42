"""The table of operations: shapes, costs, opcodes."""

from __future__ import annotations

import pytest

from bpcli.graph.operations import OPERATIONS, Misfit, describe, fold

SCALAR, V1, V3, V4, M34, M43 = (), (1,), (3,), (4,), (3, 4), (4, 3)
ELEMENTWISE_1 = ["copy", "negate", "power", "tanh", "sigmoid", "relu", "leaky_relu", "softplus"]
ELEMENTWISE_1 += ["exp", "log", "sqrt", "sin", "cos", "abs", "erf", "stop_gradient", "step"]
ELEMENTWISE_2 = ["add", "subtract", "multiply", "divide", "max", "min"]


@pytest.mark.parametrize("name", ELEMENTWISE_1)
@pytest.mark.parametrize("shape", [SCALAR, V3, M34])
def test_unary_keeps_its_shape(name: str, shape: tuple[int, ...]) -> None:
    """Functions of one argument that work entry by entry take any shape."""
    assert shape == OPERATIONS[name].shape((shape,), ())


@pytest.mark.parametrize("name", ELEMENTWISE_2)
@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (SCALAR, SCALAR, SCALAR),
        (SCALAR, V3, V3),
        (V3, SCALAR, V3),
        (V3, V3, V3),
        (M34, M34, M34),
        (M34, SCALAR, M34),
        (V3, V4, None),
        (V1, V3, None),
        (V3, V1, None),
        (M34, M43, None),
        (M34, V4, None),
    ],
)
def test_binary_shapes(
    name: str, left: tuple[int, ...], right: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    """Elementwise operators take equal shapes, or a scalar with anything."""
    _compare(expected, "shape-mismatch", OPERATIONS[name].shape((left, right), ()))


@pytest.mark.parametrize(
    ("name", "shapes", "numbers", "expected"),
    [
        ("matmul", (M34, V4), (), V3),
        ("matmul", (M34, V3), (), "shape-mismatch"),
        ("matmul", (V3, V3), (), "bad-operand"),
        ("matmul", (V3, M34), (), "bad-operand"),
        ("matmul", (M34, SCALAR), (), "bad-operand"),
        ("matmul", (SCALAR, V3), (), "bad-operand"),
        ("matmat", (M34, M43), (), (3, 3)),
        ("matmat", (M34, M34), (), "shape-mismatch"),
        ("transpose", (M34,), (), M43),
        ("transpose", (V3,), (), "bad-operand"),
        ("sum", (V3,), (), SCALAR),
        ("sum", (M34,), (), SCALAR),
        ("dot", (V3, V3), (), SCALAR),
        ("dot", (V1, SCALAR), (), SCALAR),
        ("dot", (V3, V4), (), "shape-mismatch"),
        ("dot", (M34, M34), (), "bad-operand"),
        ("logsumexp", (V3,), (), SCALAR),
        ("logsumexp", (M34,), (), "bad-operand"),
        ("softmax", (V3,), (), V3),
        ("softmax", (SCALAR,), (), SCALAR),
        ("softmax", (M34,), (), "bad-operand"),
        ("log_softmax", (V3,), (), V3),
        ("log_softmax", (M34,), (), "bad-operand"),
        ("concat", (V3, SCALAR, V4), (), (8,)),
        ("concat", (SCALAR, SCALAR), (), (2,)),
        ("concat", (V3, M34), (), "bad-operand"),
        ("slice", (V4,), (1.0, 3.0), (2,)),
        ("slice", (V4,), (0.0, 4.0), V4),
        ("slice", (V4,), (2.0, 5.0), "slice-bounds"),
        ("slice", (V4,), (2.0, 2.0), "slice-bounds"),
        ("slice", (V4,), (-1.0, 2.0), "slice-bounds"),
        ("slice", (SCALAR,), (0.0, 1.0), "bad-operand"),
        ("slice", (M34,), (0.0, 1.0), "bad-operand"),
    ],
)
def test_other_shapes(
    name: str, shapes: tuple[tuple[int, ...], ...], numbers: tuple[float, ...], expected: tuple[int, ...] | str
) -> None:
    """Products, reductions and the operations on vectors give their shape or a Misfit."""
    code = expected if isinstance(expected, str) else ""
    _compare(None if code else expected, code, OPERATIONS[name].shape(shapes, numbers))


def _compare(expected: object, code: str, actual: object) -> None:
    if expected is not None:
        assert expected == actual
        return
    assert isinstance(actual, Misfit)
    assert code == actual.code


@pytest.mark.parametrize(
    ("name", "shapes", "out", "expected"),
    [
        ("add", (V3, SCALAR), V3, 3.0),
        ("tanh", (M34,), M34, 120.0),
        ("matmul", (M34, V4), V3, 24.0),
        ("matmat", (M34, M43), (3, 3), 72.0),
        ("sum", (M34,), SCALAR, 12.0),
        ("dot", (V3, V3), SCALAR, 6.0),
        ("concat", (V3, V4), (7,), 7.0),
    ],
)
def test_flops(name: str, shapes: tuple[tuple[int, ...], ...], out: tuple[int, ...], expected: float) -> None:
    """An entry costs one, a transcendental function ten, a product 2mnk."""
    assert expected == OPERATIONS[name].flops(shapes, out)


def test_rows() -> None:
    """Opcodes are positions, every row is described, and only kinks are not analytic."""
    rows = list(OPERATIONS.values())
    assert list(range(len(rows))) == [row.opcode for row in rows]
    assert all(row.description and row.saves <= {"args", "out"} for row in rows)
    assert ["relu", "leaky_relu", "abs", "max", "min"] == [row.name for row in rows if not row.analytic]


@pytest.mark.parametrize(
    ("shape", "expected"), [((), "a scalar"), ((3,), "a vector of 3"), ((3, 4), "a 3 by 4 matrix")]
)
def test_describe(shape: tuple[int, ...], expected: str) -> None:
    """Shapes in words."""
    assert expected == describe(shape)


@pytest.mark.parametrize(
    ("op", "values", "expected"),
    [
        ("negate", [2.0], -2.0),
        ("divide", [1.0, 4.0], 0.25),
        ("divide", [1.0, 0.0], None),
        ("power", [10.0, 400.0], None),
        ("power", [-1.0, 0.5], None),
        ("power", [0.0, -1.0], None),
        ("power", [-2.0, 3.0], -8.0),
        ("multiply", [1e200, 1e200], None),
        ("exp", [1000.0], None),
        ("log", [-1.0], None),
        ("sqrt", [-1.0], None),
        ("sigmoid", [-1000.0], 0.0),
        ("sigmoid", [0.0], 0.5),
        ("softplus", [1000.0], 1000.0),
        ("softplus", [-1000.0], 0.0),
        ("relu", [-1.0], 0.0),
        ("leaky_relu", [-2.0, 0.5], -1.0),
        ("step", [2.0], 1.0),
        ("step", [0.0], 0.0),
        ("softmax", [3.0], 1.0),
        ("log_softmax", [3.0], 0.0),
        ("logsumexp", [3.0], 3.0),
        ("dot", [2.0, 3.0], 6.0),
    ],
)
def test_fold(op: str, values: list[float], expected: float | None) -> None:
    """Constants combine in float64; a result that is no finite real number is None."""
    assert expected == fold(op, values)


def test_foldable_operations_exist() -> None:
    """Every operation folds except copies, joins, slices, choices and those on matrices."""
    kept = ["copy", "matmul", "matmat", "transpose", "concat", "slice", "max", "min"]
    assert kept == [name for name, row in OPERATIONS.items() if row.fold is None]
