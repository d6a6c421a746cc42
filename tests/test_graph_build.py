"""Equations to nodes: folding, sharing, regrouping, and the same values as the equations as they are written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_cases import FUNCTIONS, Array, built, graph_of, show, values_of, with_arrays

from bpcli.graph.nodes import Phase

SHAPES: dict[str, tuple[int, ...]] = {
    "x": (3,),
    "z": (2,),
    "s": (),
    "W": (3, 3),
    "V": (2, 3),
    "U": (3, 2),
    "b": (3,),
    "c": (2,),
    "g": (),
    "a": (3,),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("W @ a[t-1] + W @ x + b", "add(matmul(W, a'), add(matmul(W, x), b))"),
        ("b + W @ x + W @ a[t-1]", "add(matmul(W, a'), add(matmul(W, x), b))"),
        ("b - (x - a[t-1])", "add(a', subtract(b, x))"),
        ("-a[t-1] - x - b", "negate(add(a', add(x, b)))"),
        ("b - a[t-1]", "subtract(b, a')"),
        ("a[t-1] - x + s - g", "add(a', subtract(subtract(s, x), g))"),
        ("x - b + 2 - x", "add(subtract(x, x), subtract(2, b))"),
        ("1 + x - 3", "subtract(x, 2)"),
        ("x + 0 * alpha", None),
        ("-(-x) * 2", "multiply(2, x)"),
        ("x * 2 * alpha * 4", "multiply(2, x)"),
        ("(x * 3) * (b * 2)", "multiply(multiply(3, x), multiply(2, b))"),
        ("1 * x", None),
        ("x / 1", None),
        ("x / 2", "divide(x, 2)"),
        ("2 / (x + 3)", "divide(2, add(x, 3))"),
        ("x**1", None),
        ("x**2", "power(x)"),
        ("x**-alpha", "power(x)"),
        ("x**(n - 1)", "power(x)"),
        ("-x**2", "negate(power(x))"),
        ("W.T.T @ x", "matmul(W, x)"),
        ("W.T @ x", "matmul(transpose(W), x)"),
        ("U @ V @ x", "matmul(matmat(U, V), x)"),
        ("(W - W.T) * g @ x", "matmul(multiply(subtract(W, transpose(W)), g), x)"),
        ("a[t-1][0:3]", None),
        ("x[:]", None),
        ("concat(x, z)[1:n+2][1:m+2]", "slice(concat(x, z))"),
        ("concat(x[m], z)", "concat(slice(x), z)"),
        ("x[0] * x", "multiply(slice(x), x)"),
        ("mean(x) * x", "multiply(multiply(0.333333, sum(x)), x)"),
        ("mean(W) * x", "multiply(multiply(0.111111, sum(W)), x)"),
        ("sum(s) * mean(s) * x", "multiply(multiply(s, s), x)"),
        ("cross_entropy(x, b) * x", "multiply(negate(dot(b, log_softmax(x))), x)"),
        ("leaky_relu(x, 2 * alpha)", "leaky_relu(x)"),
        ("sqrt(4 * n - n) * x", "multiply(3, x)"),
        ("(1 - alpha) * x", "multiply(0.75, x)"),
    ],
)
def test_nodes(tmp_path: Path, text: str, expected: str | None) -> None:
    """Each expression becomes these nodes; None stands for no node at all, the equation is another's alias."""
    graph = built(tmp_path, with_arrays(f'y = "{text}"\nloss = "sum(y) + sum(tanh(y))"'))
    root = graph.equation["y"]
    if expected is None:
        assert graph.nodes[root].op in {"input", "previous"}
    else:
        assert (expected, "y") == (show(graph, root), graph.nodes[root].name)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("x**-alpha", (-0.25,)),
        ("x**0", (0.0,)),
        ("leaky_relu(x, 2 * alpha)", (0.5,)),
        ("x[1:m+1]", (1.0, 3.0)),
        ("x[m]", (2.0, 3.0)),
        ("concat(x, z)[1:n+2][1:m+2]", (2.0, 5.0)),
        ("x[1:][0]", (1.0, 2.0)),
    ],
)
def test_numbers(tmp_path: Path, text: str, numbers: tuple[float, ...]) -> None:
    """Exponents, slopes and bounds are folded into the node."""
    graph = built(tmp_path, with_arrays(f'y = "{text}"\nloss = "sum(y)"'))
    assert numbers == graph.nodes[graph.equation["y"]].numbers


@pytest.mark.parametrize(
    "text",
    [
        "W @ a[t-1] + W @ x + b - 2 * x + s - 1",
        "-a[t-1] - (b - x) - (s - 3 - (x - g))",
        "2 * x * 3 / (alpha * b) * (x * 0.5) - -x",
        "x**2 + b**3 - (x * x)**0.5 + x**0",
        "U @ V @ x + (U @ V).T @ b + W.T.T @ x + (W * g + 1 - W.T) @ b",
        "concat(x, s, z)[1:4] + concat(z, g)[m] * x",
        "tanh(x) + sigmoid(b) + relu(x) + leaky_relu(b, alpha) + softplus(x) + exp(b)",
        "log(x * x) + sqrt(b * b) + sin(x) - cos(b) - abs(x) + erf(b)",
        "max(x, b) + min(0.5, x) + clip(b, -0.1, alpha) + max(2, alpha) + min(2, alpha) + max(b, b)",
        "step(x) * b + step(W, 2) @ x + step(alpha) + step(b - x, alpha) + step(2, 3)",
        "stop_gradient(x) * b + stop_gradient(stop_gradient(W)) @ x + stop_gradient(alpha)",
        "sum(x) + mean(z) + dot(x, b) + logsumexp(x) * x + softmax(x) - log_softmax(b)",
        "cross_entropy(x, softmax(b)) * x + mean(W) - sum(W - W.T) + mean(s) + sum(x)",
        "exp(-exp(W)) @ x / n",
        "mean(x) * mean(x) - mean(2 * alpha) * b",
    ],
)
def test_values(tmp_path: Path, text: str) -> None:
    """The nodes have the value of the equation, however they were regrouped."""
    graph = built(tmp_path, with_arrays(f'y = "{text}"\nloss = "sum(y)"'))
    rng = np.random.default_rng(3)
    arrays = {name: np.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    actual = values_of(graph, arrays)[graph.equation["y"]]
    np.testing.assert_allclose(actual, _read(text, arrays), rtol=1e-12, atol=1e-12)


def _read(text: str, arrays: dict[str, Array]) -> Any:
    """An equation read by Python itself on NumPy arrays."""
    scope: dict[str, Any] = {**FUNCTIONS, **arrays, "n": 3, "m": 2, "alpha": 0.25, "t": 0}
    return eval(text, {"__builtins__": {}}, scope | {"a": {-1: arrays["a"]}})


def _vector(rng: np.random.Generator, depth: int) -> str:
    """A random expression of 3 entries, smooth and of moderate size."""
    if depth == 0:
        return str(rng.choice(["x", "b", "a[t-1]", "concat(z, s)", "(U @ z)", "2 * x", "(W @ b)"]))
    u, v, k = _vector(rng, depth - 1), _vector(rng, depth - 1), _scalar(rng, depth - 1)
    forms = [f"({u} + {v})", f"({u} - {v})", f"-{u}", f"({k} + {u})", f"({u} - ({k} - {v}))", f"tanh({u}) * {v}"]
    forms += [f"{k} * sin({u})", f"(W @ ({u}))", f"(W.T @ ({u}))", f"({u}) / (2 + cos({v}))", f"concat({k}, ({u})[1:])"]
    return str(rng.choice(forms))


def _scalar(rng: np.random.Generator, depth: int) -> str:
    """A random scalar expression."""
    if depth == 0:
        return str(rng.choice(["s", "g", "alpha", "(1 - alpha)", "n", "0.5", "x[0]", "1", "0", "-3"]))
    u, k, q = _vector(rng, depth - 1), _scalar(rng, depth - 1), _scalar(rng, depth - 1)
    forms = [f"sum({u})", f"mean({u})", f"({k} - {q})", f"({k} + {q})", f"tanh({k}) * sin({q})", f"-{k}", f"({k})**2"]
    return str(rng.choice(forms))


def test_random_expressions(tmp_path: Path) -> None:
    """The nodes of 200 random expressions in one spec have their values."""
    rng = np.random.default_rng(11)
    texts = [_vector(rng, depth) for depth in range(1, 6) for _ in range(40)]
    equations = "\n".join(f'y{i} = "{text}"' for i, text in enumerate(texts))
    total = " + ".join(f"sum(y{i})" for i in range(len(texts)))
    graph = built(tmp_path, with_arrays(f'{equations}\nloss = "{total}"'))
    arrays = {name: np.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    values = values_of(graph, arrays)
    for i, text in enumerate(texts):
        expected = _read(text, arrays)
        np.testing.assert_allclose(values[graph.equation[f"y{i}"]], expected, rtol=1e-9, atol=1e-9, err_msg=text)


def test_random_mistakes(tmp_path: Path) -> None:
    """Expressions put together without regard to shapes are refused at a place, never with an exception."""
    rng = np.random.default_rng(12)
    parts: list[str] = ["x", "z", "s", "W", "V", "b", "g", "a[t-1]", "alpha", "n", "0", "nope", "x[t-1]", "a"]
    for _ in range(300):
        u, v = (str(part) for part in rng.choice(parts, 2))
        forms = [f"({u} + {v})", f"({u} - {v})", f"-{u}", f"({u} * {v})", f"({u} / {v})", f"({u}) @ ({v})", f"({u}).T"]
        forms += [f"({u})**({v})", f"({u})[1:m]", f"({u})[n-1]", f"({u})[m:]", f"sum({u})", f"softmax({u})"]
        forms += [
            f"dot({u}, {v})",
            f"concat({u}, {v})",
            f"leaky_relu({u}, {v})",
            f"cross_entropy({u}, {v})",
            f"log({u})",
        ]
        text = str(rng.choice(forms))
        if len(text) < 200:
            parts.append(text)
    equations = "\n".join(f'y{i} = "{text}"' for i, text in enumerate(parts))
    graph, refused = graph_of(tmp_path, with_arrays(equations))
    assert graph is None
    assert 100 < len(refused)
    assert all(d.place is not None and d.what for d in refused)


def test_identical_expressions_are_one_node(tmp_path: Path) -> None:
    """The same operation on the same nodes is computed once, within an equation and across them."""
    graph = built(tmp_path, with_arrays('y = "tanh(W @ x)"\nq = "tanh(W @ x)"\nloss = "dot(y, q) + sum(W @ x)"'))
    assert graph.equation["y"] == graph.equation["q"]
    assert 1 == sum(node.op == "matmul" for node in graph.nodes)


@pytest.mark.parametrize(
    ("a", "others", "op"),
    [
        ("x", "", "copy"),
        ("a[t-1]", "", "copy"),
        ("h", 'h = "tanh(x)"', "copy"),
        ("concat(z, x)[1:4]", "", "slice"),
        ("tanh(x)", 'h = "tanh(x)"', "copy"),
        ("tanh(x)", "", "tanh"),
    ],
)
def test_state_has_a_node_of_its_own(tmp_path: Path, a: str, others: str, op: str) -> None:
    """A state's new value is no leaf, no slice and no other equation's node: a copy is made where it would be."""
    graph = built(tmp_path, with_arrays(f'{others}\na = "{a}"\nloss = "sum(a * a[t-1])"'))
    root = graph.nodes[graph.new["a"]]
    assert ("copy" if op == "slice" else op, "a", Phase.RECURRENT) == (root.op, root.name, root.phase)
    assert graph.new["a"] == graph.equation["a"]
    if "h" in graph.equation:
        assert graph.nodes[graph.equation["h"]].phase is Phase.INPUT


def test_states_share_no_root(tmp_path: Path) -> None:
    """Two states with one expression, and a state that is another's alias, have three nodes."""
    text = """bp = 1
[params]
w = [2]
[state]
p = [2]
q = [2]
r = [2]
[equations]
p = "tanh(w * p[t-1])"
q = "tanh(w * p[t-1])"
r = "p"
loss = "sum(p + q + r)"
"""
    graph = built(tmp_path, text)
    assert 3 == len(set(graph.new.values()))
    assert ["p", "q", "r"] == [graph.nodes[i].name for i in graph.new.values()]


@pytest.mark.parametrize(
    ("equations", "op", "phase"),
    [
        ('loss = "s"', "copy", Phase.INPUT),
        ('loss = "3"', "copy", Phase.STATIC),
        ('loss = "g**2"', "power", Phase.STATIC),
        ('loss = "sum(a)"', "sum", Phase.OUTPUT),
        ('a = "x * loss"\nloss = "sum(a[t-1])"', "copy", Phase.OUTPUT),
        ('a = "x * loss"\nloss = "sum(x)"', "sum", Phase.INPUT),
        ('loss = "l"\nl = "sum(x)"', "sum", Phase.INPUT),
    ],
)
def test_loss_is_a_node_outside_the_loop(tmp_path: Path, equations: str, op: str, phase: Phase) -> None:
    """The loss is an operation and not in the recurrent phase; it is a copy where it would be."""
    graph = built(tmp_path, with_arrays(equations))
    assert (op, phase) == (graph.nodes[graph.loss].op, graph.nodes[graph.loss].phase)


def test_arguments_come_first(tmp_path: Path) -> None:
    """Nodes are numbered by their position, arguments before their uses, phases in order."""
    graph = built(tmp_path, with_arrays('y = "W @ a + b"\na = "tanh(W @ a[t-1] + U @ z)"\nloss = "sum(y**2) + g"'))
    assert list(range(len(graph.nodes))) == [node.index for node in graph.nodes]
    assert all(arg < node.index for node in graph.nodes for arg in node.args)
    assert sorted(node.phase for node in graph.nodes) == [node.phase for node in graph.nodes]


def test_many_equations(tmp_path: Path) -> None:
    """A chain of 2,000 equations, written backwards, neither recurses nor takes long."""
    chain = "\n".join(f'y{i} = "tanh(y{i + 1}) + x"' for i in range(2000))
    text = with_arrays(f'{chain}\ny2000 = "x"\nloss = "sum(y0)"')
    start = time.perf_counter()
    graph, refused = graph_of(tmp_path, text)
    assert [] == refused
    assert graph is not None
    assert 4000 < len(graph.nodes)
    assert 5 > time.perf_counter() - start
