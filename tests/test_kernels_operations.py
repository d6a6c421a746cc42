"""Every operation with every pattern of operands, in every phase, against the loop-only twin."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import EXACT, distance, expected, gradient, written

from bpcli.errors import Collector
from bpcli.graph.build import build
from bpcli.graph.operations import OPERATIONS
from bpcli.spec.load import load

METHODS = ("bptt", "rtrl", "tbptt:k1=1,k2=2")
HEAD = """bp = 1
[dims]
n = 3
[inputs]
x = [3]
z = [2]
s = []
[params]
W = [3, 3]
V = { shape = [3, 3], density = 0.7 }
U = [2, 3]
b = { shape = [3], scale = 0.5 }
d = [2]
g = { shape = [], value = 0.7 }
k = { shape = [3], trainable = false }
"""
STATE = """[state]
a = { shape = [3], init = "normal", scale = 0.5 }
c = { shape = [], init = "normal", scale = 0.5, trainable = true }
"""
TAIL = """[objective]
over_time = "{over_time}"
over_batch = "{over_batch}"
[data]
batch = 3
seed = 5
"""
CELL = {"a": "tanh(W @ a[t-1] + x + b)", "c": "0.5 * c[t-1] + sin(s + dot(a[t-1], b))"}
LOSS = "0.5 * dot(a - x, a) + c * g + c**2"

# phase: a vector and a scalar of that phase (leaves, but for the last), and where the result goes
OPERANDS = {
    "static": ("b", "g"),
    "input": ("x", "s"),
    "recurrent": ("a[t-1]", "c[t-1]"),
    "output": ("a", "c"),
}
SMOOTH = ("negate", "tanh", "sigmoid", "softplus", "exp", "sin", "cos", "erf", "relu", "leaky_relu", "abs")
UNARY = {
    **{name: f"{name}({{}})" for name in SMOOTH if name not in ("negate", "leaky_relu")},
    "negate": "-{}",
    "leaky_relu": "leaky_relu({}, 0.1)",
    "leaky_relu backwards": "leaky_relu({}, -0.3)",
    "clip": "clip({}, -0.3, 0.4)",
    "step": "{0} * step({0}) + step(0.2 - {0}, 0.8)",
    "stop_gradient": "0.7 * {0} * stop_gradient({0}) + stop_gradient(tanh({0}))",
    "log": "log(1.5 + tanh({}))",
    "sqrt": "sqrt(1.5 + tanh({}))",
    "copy": "{}",
    **{f"power {p}": f"0.3 * (1 + 0.4 * tanh({{}}))**({p})" for p in (-2, -1, 0, 0.5, 1.5, 3, 7)},
    **{f"power {p} of any base": f"({{}})**{p}" for p in (2, 3, 0, 1, 4)},
    "power -1 of a negative base": "(tanh({}) - 1.5)**(-1)",
    "power -3 of a negative base": "(tanh({}) - 1.5)**(-3)",
    "power 66 of a negative base": "(0.1 * tanh({}) - 0.9)**66",
}
REDUCTIONS = {
    **{name: f"{name}({{}})" for name in ("sum", "mean", "logsumexp", "softmax", "log_softmax")},
    "dot with itself": "dot({0}, {0})",
    "dot": "dot({}, cos(x))",
    "dot with a parameter": "dot(b, {})",
    "cross_entropy": "cross_entropy({}, k)",
    "cross_entropy of a softmax": "cross_entropy(b, softmax({}))",
    "concat": "concat({}, 2.0, g)[1:4]",
    "slice": "2 * {}[0:2]",
    "item": "exp({}[2])",
}
BINARY = {
    "add": "{} + {}",
    "subtract": "{} - {}",
    "multiply": "{} * {}",
    "divide": "{} / (1.5 + tanh({}))",
    "max": "max({}, 0.4 * {})",
    "min": "min({}, 0.6 * {} + 0.1)",
}


def spec(equations: dict[str, str], steps: int = 3, over: tuple[str, str] = ("sum", "mean"), head: str = HEAD) -> str:
    """A recurrent spec of the arrays above; `equations` may replace the cell and the loss."""
    everything = {**CELL, "loss": LOSS, **equations}
    lines = "".join(f'{name} = "{text}"\n' for name, text in everything.items())
    return (
        head + STATE + "[equations]\n" + lines + TAIL.format(over_time=over[0], over_batch=over[1]) + f"T = {steps}\n"
    )


def feeding(phase: str, vector: str, scalar: str, result_is_vector: bool = True) -> dict[str, str]:
    """Equations in which `p`, of a vector, and `q`, of a scalar, reach the loss, and the state unless in the output."""
    of = "sum(p) * 0.3 + dot(p, p)" if result_is_vector else "0.3 * p + p**2"
    result = {"p": vector, "q": scalar, "loss": f"{LOSS} + ({of}) * cos(q) + q"}
    if phase != "output":
        inside = "p * q" if result_is_vector else "x * p * q"
        result["a"] = f"tanh(W @ a[t-1] + {inside})"
        result["c"] = "sin(0.5 * c[t-1] + q) + 0.1 * sum(p)"
    return result


def check(folder: Path, text: str, methods: tuple[str, ...] = METHODS) -> None:
    """Each method's gradient of everything is the loops' to rounding."""
    problem = written(folder, text)
    exact = expected(problem, methods[0])
    for method in methods:
        wanted = exact if method in (methods[0], *EXACT) else expected(problem, method)
        assert distance(gradient(problem, method).arrays, wanted) < 1e-12, method


@pytest.mark.parametrize("phase", OPERANDS)
@pytest.mark.parametrize("operation", UNARY)
def test_a_function_of_one_argument(tmp_path: Path, operation: str, phase: str) -> None:
    """An elementwise function of a vector and of a scalar is differentiated in its phase."""
    rule, (vector, scalar) = UNARY[operation], OPERANDS[phase]
    check(tmp_path, spec(feeding(phase, rule.format(vector), rule.format(scalar))))


@pytest.mark.parametrize("phase", OPERANDS)
@pytest.mark.parametrize("operation", REDUCTIONS)
def test_a_reduction(tmp_path: Path, operation: str, phase: str) -> None:
    """A function of a whole vector is differentiated in its phase, for a leaf and for what is computed."""
    rule, (vector, scalar) = REDUCTIONS[operation], OPERANDS[phase]
    inner = rule.format(f"({vector} * {scalar})") if operation not in ("slice", "item") else rule.format(vector)
    is_vector = operation in ("softmax", "log_softmax", "concat", "slice")
    of = "0.7 * sum(p * p) + sum(p * q)" if is_vector else "p * q"
    equations = {"p": rule.format(vector), "q": inner, "loss": f"{LOSS} + {of}"}
    if phase != "output":
        equations["a"] = "tanh(W @ a[t-1] + x * sum(p) + b * sum(q * q))"
    check(tmp_path, spec(equations))


@pytest.mark.parametrize(("left", "right"), list(product(OPERANDS, OPERANDS)))
@pytest.mark.parametrize("operation", BINARY)
def test_an_operator(tmp_path: Path, operation: str, left: str, right: str) -> None:
    """Vectors and scalars of any two phases, in both orders."""
    rule, (u, s), (v, r) = BINARY[operation], OPERANDS[left], OPERANDS[right]
    names = {"p": (u, v), "q": (u, r), "h": (s, v), "m": (s, r)}
    equations = {name: rule.format(*pair) for name, pair in names.items()}
    equations["loss"] = f"{LOSS} + dot(p, q) * m + dot(sin(h), p) + m**2"
    if "output" not in (left, right):
        equations["a"] = "tanh(W @ a[t-1] + p * 0.3 + 0.2 * q * h + m)"
    check(tmp_path, spec(equations))


def test_a_state_drawn_for_every_sample(tmp_path: Path) -> None:
    """Its gradient has a row for each sample, no two alike; of a state for all samples it is their sum."""
    declared = 'a = { shape = [3], init = "normal", scale = 0.5, per_sample = true }'
    text = spec({}).replace(next(line for line in STATE.splitlines() if line.startswith("a = ")), declared)
    check(tmp_path, text)
    found = gradient(written(tmp_path, text), "bptt").arrays["a"]
    assert (3, 3) == found.shape and 9 == len(set(found.ravel().tolist()))
    assert (3,) == gradient(written(tmp_path, spec({})), "bptt").arrays["a"].shape


STATIC = {
    "transpose": "M @ (W.T @ b)",
    "sum of matrices": "(W + M - M.T) @ b",
    "product of matrices": "W @ M @ a[t-1]",
    "three products of matrices": "(W.T @ M @ V.T) @ a[t-1]",
    "matrix times itself": "(W @ W) @ a[t-1]",
    "elementwise on matrices": "tanh(W * M / (2 + V**2)) @ a[t-1]",
    "matrix times scalar": "(g * W) @ a[t-1] + (W / g) @ x + (g - M) @ b",
    "scalar over matrix": "(g / (2 + W**2)) @ a[t-1]",
    "functions of matrices": "exp(-exp(W)) @ x + abs(M) @ a[t-1] + leaky_relu(W, 0.2) @ a[t-1]",
    "max and min of matrices": "max(W, 0.1 * M.T) @ a[t-1] + min(0.2, W) @ x + clip(M, g, 0.3) @ b",
    "stopped matrices": "(stop_gradient(W) * M) @ a[t-1] + stop_gradient(M.T) @ x",
    "sum and mean of matrices": "sum(W) * x + mean(M * W) * a[t-1] + sum(W @ M) * b",
    "vector made once": "(W @ b) * a[t-1] + sin(M.T @ b)",
    "matrix on both sides": "W @ (W @ (W @ a[t-1]))",
    "tied": "W.T @ tanh(W @ a[t-1]) + W @ x",
    "tied transposes": "(W.T @ W) @ a[t-1] + W.T @ x",
    "sparse": "V @ a[t-1] + V.T @ x",
    "sparse in static products": "(V @ W) @ a[t-1] + (V * V) @ x",
    "transpose twice": "(W.T + M).T @ a[t-1]",
    "rectangular": "U.T @ (U @ a[t-1]) + U.T @ d",
    "rectangular statics": "(U.T @ U) @ a[t-1] + (W @ U.T) @ z",
    "softmax of parameters": "softmax(b) * a[t-1] + log_softmax(b * g) * x + logsumexp(b)",
    "concat of parameters": "concat(d, g) * a[t-1] + concat(g, d)",
    "slice of parameters": "concat(b[1:3], b[0]) * a[t-1] + b[2] * x",
    "constant arrays": "k * a[t-1] + (W * sum(k)) @ x",
}


@pytest.mark.parametrize("name", STATIC)
def test_what_is_computed_once(tmp_path: Path, name: str) -> None:
    """Expressions of parameters alone, matrices among them, and what they multiply."""
    head = HEAD.replace("U = [2, 3]", "U = [2, 3]\nM = [3, 3]")
    check(tmp_path, spec({"a": f"tanh({STATIC[name]} + x)", "loss": f"{LOSS} + sum(M) * 0.1 + sum(W * W)"}, head=head))


PRODUCTS = {
    "every phase": {"h": "W @ x", "a": "tanh(W @ a[t-1] + h)", "y": "W @ a", "loss": "sum(y**2) + c"},
    "every phase, transposed": {"h": "W.T @ x", "a": "tanh(W.T @ a[t-1] + h)", "y": "W.T @ a", "loss": "dot(y, y)"},
    "both ways at once": {"a": "tanh(W @ a[t-1] + W.T @ x)", "y": "W.T @ a + W @ x", "loss": "dot(y, y)"},
    "addend read twice": {"h": "sin(x)", "m": "W @ a[t-1] + h", "a": "tanh(m) * h", "loss": "dot(m, a)"},
    "product read twice": {"h": "W @ a[t-1]", "a": "tanh(h + x) + 0.1 * h", "loss": "dot(h, a)"},
    "a chain of addends": {"a": "tanh(x + U.T @ z + W @ a[t-1] + W @ x + b)"},
    "the sum is the state": {"a": "0.3 * W @ a[t-1] + 0.1 * x"},
    "product is the state": {"a": "W @ a[t-1]"},
    "state added to product": {"a": "a[t-1] + 0.1 * W @ a[t-1]"},
    "product plus itself": {"h": "W @ a[t-1]", "a": "tanh(h + h + x)"},
    "product minus product": {"a": "tanh(W @ a[t-1] - W.T @ x - (b - W @ b))"},
    "of an output": {"y": "U @ a", "loss": "dot(y - z, y) + sum(U.T @ y)"},
    "through two": {"y": "U.T @ tanh(U @ a)", "loss": "dot(y, a)"},
    "scalar vector": {"y": "concat(c, s)", "loss": "sum(U.T @ y) + dot(U.T @ z, a)"},
}
SLICES = {
    "tiling": {"h": "concat(a[t-1], x)", "a": "tanh(h[0:3] * h[3:6] + x)", "loss": "dot(h, h)"},
    "tiling a product": {"h": "W @ a[t-1] + x", "a": "concat(sin(h[0:1]), h[1:3]) * 0.5", "loss": "dot(a, a)"},
    "in order unlike the whole": {"h": "W @ a[t-1] + x", "a": "concat(h[1:3], tanh(h[0])) * 0.5", "loss": "dot(a, a)"},
    "overlapping": {
        "h": "sin(W @ a[t-1] + x)",
        "a": "0.3 * concat(h[0:2] * h[1:3], h[2])",
        "loss": "sum(a) + sum(h[0:2])",
    },
    "partial": {"h": "sin(W @ a[t-1] + x)", "a": "0.3 * h[0:1][0] * x + h[1]", "loss": "dot(a, a)"},
    "nested": {
        "h": "sin(concat(W @ a[t-1], x))",
        "m": "h[1:5]",
        "a": "tanh(m[1:4] + m[0:3][1] * x)",
        "loss": "sum(m[2:4])",
    },
    "whole beside parts": {
        "h": "sin(W @ a[t-1] + x)",
        "a": "h * 0.3 + concat(h[2], h[0:2])",
        "loss": "dot(h[1:3], h[0:2])",
    },
    "of a state": {"a": "tanh(concat(a[t-1][1:3], a[t-1][0]) + x)", "loss": "dot(a[1:3], a[0:2]) + a[t-1][2] * c"},
    "of an input": {"a": "tanh(x[2] * a[t-1] + concat(x[0:2], s))", "loss": "dot(a, x) + x[1]"},
    "of an output": {"y": "U.T @ concat(c, s)", "loss": "y[1] * y[2] + sum(y[0:2]) + dot(a[0:2], y[1:3])"},
    "of a new state": {"h": "a[0:2]", "loss": "dot(h, h) + h[0] * a[2]", "c": "0.5 * c[t-1] + sum(a[1:3])"},
    "of a slice that is the loss": {"y": "sin(a)", "loss": "y[1]"},
    "the state is a slice": {"h": "tanh(concat(W @ a[t-1], x))", "a": "h[2:5]", "loss": "sum(h) + dot(a, a)"},
    "the state is a whole": {
        "h": "tanh(concat(a[t-1][0:2], x))",
        "a": "h[0:3]",
        "c": "h[4] * c[t-1]",
        "loss": "c + sum(a)",
    },
    "a product's addend": {
        "h": "concat(x, sin(a[t-1]))",
        "a": "tanh(W @ a[t-1] + h[2:5])",
        "loss": "sum(h[1:6]) + sum(a)",
    },
    "a product's vector": {
        "h": "concat(x, sin(a[t-1]))",
        "a": "tanh(W @ h[2:5] + b)",
        "loss": "sum(W @ h[0:3]) + dot(a, a)",
    },
    "of a product's sum": {"h": "W @ a[t-1] + sin(x)", "a": "tanh(h[0] * h)", "loss": "h[1] + sum(a)"},
    "statics": {"h": "W @ b", "a": "tanh(h[0] * a[t-1] + concat(h[1:3], h[1]) + x)", "loss": "h[2] + sum(a * h)"},
}
JOINTS = {
    "with scalars": {"h": "concat(s, a[t-1], c[t-1])", "a": "tanh(h[1:4] * h[0] + h[2:5])", "loss": "dot(h, h) + c"},
    "of one thing twice": {"h": "concat(a[t-1], a[t-1], c)", "a": "tanh(h[2:5] + x)", "loss": "sum(h * h)"},
    "nested": {"h": "concat(concat(s, a[t-1]), concat(g, x))", "a": "tanh(h[1:4] + h[3:6])", "loss": "dot(h, h)"},
    "of all phases": {"h": "concat(b, s, c[t-1], tanh(a[t-1]))", "a": "tanh(h[2:5] * h[4:7])", "y": "concat(h, a, g)",
                      "loss": "dot(y, y)"},
    "of a state and a scalar loss": {"y": "concat(c, a, c[t-1])", "loss": "logsumexp(y)"},
}  # fmt: skip
LOSSES = {
    "the earlier state": {"loss": "dot(a[t-1], a) + c[t-1] * a[t-1][0]"},
    "the earlier state alone": {"loss": "dot(a[t-1], a[t-1]) + c[t-1]"},
    "a recurrent intermediate": {"h": "W @ a[t-1] + x", "a": "tanh(h)", "loss": "dot(h, h) + c"},
    "of a state that reads the loss": {"loss": "dot(a[t-1], x) + g", "c": "0.5 * c[t-1] + 0.1 * sin(loss)"},
    "feeding the state": {"h": "dot(a[t-1], x)", "loss": "0.5 * h", "a": "tanh(W @ a[t-1] + 0.5 * h)"},
    "feeding the state itself": {"loss": "dot(a[t-1], x) * 0.5", "a": "tanh(W @ a[t-1] + loss)"},
    "a scalar state": {"loss": "c"},
    "a scalar state's earlier value": {"loss": "c[t-1]"},
    "named like a state": {"c": "0.5 * c[t-1] + sin(s + dot(a[t-1], b))", "loss": "1.0 * c"},
    "an input": {"loss": "s"},
    "of inputs alone": {"loss": "dot(x, x) + s"},
    "of parameters alone": {"loss": "dot(b, b) + sum(W * W) * g"},
    "a parameter": {"loss": "g"},
    "with weight decay": {"loss": "dot(a, x) + 0.1 * sum(W * W) + 0.3 * dot(b, b)"},
    "with a shared scalar": {"loss": "dot(a, x) * g + g"},
    "constant": {"loss": "dot(a, x) * 0"},
}  # fmt: skip
SHARED = {
    "scalar over rows": {"a": "tanh(g * a[t-1] + x / (2 + g**2))", "loss": "sum(a) / (3 + sin(g)) + g * c"},
    "vector over rows": {"a": "tanh(b * a[t-1] - x / (2 + b**2))", "loss": "dot(a / (3 + b), b) + dot(b - a, a)"},
    "static vector below": {"h": "exp(-exp(b))", "a": "tanh(h * a[t-1] + x / h)", "loss": "dot(h, a)"},
    "state over shared": {
        "a": "tanh(a[t-1] / exp(b) + b / (2 + a[t-1]**2))",
        "loss": "sum(a / g) + sum(g / (2 + a**2))",
    },
    "scalar minus row": {"a": "(1 - g) * a[t-1] + g * tanh(x - g)", "loss": "sum((g - a)**2)"},
    "dot with shared": {"c": "0.5 * c[t-1] + dot(b, a[t-1])", "loss": "dot(b, a) + dot(b, b) + c"},
    "powers of a zero": {"h": "x - x", "a": "tanh(W @ a[t-1] + h**2 + h**1 + h**0)", "loss": "sum(a)"},
    "negative bases": {"a": "tanh(x**3 - x**2 + (-2 - a[t-1]**2)**(-3))", "loss": "dot(a**3, a)"},
    "unused arrays": {"a": "tanh(a[t-1] + 0.3)", "loss": "dot(a, a)", "c": "0.5 * c[t-1]"},
    "unused equation": {"y": "U @ a", "h": "W @ a[t-1] + x", "loss": "dot(a, a)"},
}
TABLES = {
    **{f"product: {k}": v for k, v in PRODUCTS.items()},
    **{f"slice: {k}": v for k, v in SLICES.items()},
    **{f"concat: {k}": v for k, v in JOINTS.items()},
    **{f"loss: {k}": v for k, v in LOSSES.items()},
    **{f"shared: {k}": v for k, v in SHARED.items()},
}


@pytest.mark.parametrize("name", TABLES)
def test_a_pattern(tmp_path: Path, name: str) -> None:
    """Products, slices, joints, losses and shared values in the forms that lowering treats differently."""
    check(tmp_path, spec(TABLES[name], steps=4))


@pytest.mark.parametrize("over_batch", ["mean", "sum"])
@pytest.mark.parametrize("over_time", ["sum", "mean", "last"])
@pytest.mark.parametrize("loss", [LOSS, f"{LOSS} + sum(W * W)", "dot(b, b)", "c[t-1] * s"])
def test_an_objective(tmp_path: Path, loss: str, over_time: str, over_batch: str) -> None:
    """Every reduction over time and batch, with losses of all phases."""
    check(tmp_path, spec({"loss": loss}, over=(over_time, over_batch)), (*METHODS, "tbptt:k1=2,k2=3"))


FEED_FORWARD = {
    "mlp": {"h": "tanh(W @ x + b)", "loss": "sum((U @ h - z)**2)"},
    "input alone": {"loss": "dot(x, x) * s"},
    "weights alone": {"loss": "sum(W * W) + dot(b, b) * g"},
    "a parameter": {"loss": "g"},
    "an input": {"loss": "s"},
    "shared and sliced": {"h": "concat(V @ x, b, s)", "loss": "dot(h[1:5], h[2:6]) / (2 + g**2) + cross_entropy(h, h)"},
    "static chain": {"S": "W @ V.T * g", "y": "S.T @ (S @ x) - softmax(b)", "loss": "logsumexp(y) + sum(S)"},
    "transposes": {"y": "U.T @ (U @ x) + W.T @ b", "loss": "dot(y, y)"},
}


@pytest.mark.parametrize("over_batch", ["mean", "sum"])
@pytest.mark.parametrize("name", FEED_FORWARD)
def test_a_network_without_a_state(tmp_path: Path, name: str, over_batch: str) -> None:
    """Backprop through a feed-forward graph."""
    lines = "".join(f'{key} = "{text}"\n' for key, text in FEED_FORWARD[name].items())
    text = (
        HEAD + "[equations]\n" + lines + TAIL.replace('over_time = "{over_time}"\n', "").format(over_batch=over_batch)
    )
    check(tmp_path, text, ("backprop",))


def operations(path: Path, text: str) -> set[str]:
    """What the graph of a spec is made of."""
    path.write_text(text, encoding="utf-8")
    collector = Collector()
    spec = load(path, {}, collector)
    graph = build(spec, collector) if spec is not None else None
    assert graph is not None, collector.diagnostics
    return {node.op for node in graph.nodes}


def test_the_tables_name_every_operation(tmp_path: Path) -> None:
    """Each row of the table of operations occurs in some graph of this file, in each phase that it can have."""
    texts = [spec(equations) for equations in TABLES.values()]
    for phase, (vector, scalar) in OPERANDS.items():
        texts += [spec(feeding(phase, rule.format(vector), rule.format(scalar))) for rule in UNARY.values()]
        texts += [spec({"q": rule.format(vector), "loss": f"{LOSS} + sum(q)"}) for rule in REDUCTIONS.values()]
    texts += [spec({"a": f"tanh({rule} + x)"}, head=HEAD + "M = [3, 3]\n") for rule in STATIC.values()]
    found = {op for text in texts for op in operations(tmp_path / "spec.toml", text)}
    assert set(OPERATIONS) <= found | {"matmul", "copy"} and {"matmul", "copy"} <= found


# Losses of w = (w[0], w[1]), the numbers, and what the gradient is to the last digits, where a value on the way, a
# slope or a cotangent leaves the range of floats, or nearly.
EXTREMES = [
    ("0.0 * sqrt(w[0]) + w[1]", (0.0, 1.0), (0.0, 1.0)),
    ("w[1] * tanh(exp(w[0]))", (1000.0, 1.0), (0.0, 1.0)),
    ("w[1] / (1 + exp(w[0]))", (1000.0, 1.0), (0.0, 0.0)),
    ("w[1] * sigmoid(w[0]**4)", (1e150, 1.0), (0.0, 1.0)),
    ("w[1] + relu(-exp(w[0]))", (1000.0, 1.0), (0.0, 1.0)),
    ("w[1] * exp(-exp(w[0]))", (710.0, 1.0), (0.0, 0.0)),
    ("1e-150 * w[0] / w[1]", (1e300, 1e200), (0.0, -1e-250)),
    ("1e-150 * w[0] / w[1]", (-1e300, 1e200), (0.0, 1e-250)),
    ("w[0] / w[1]", (1e-200, 1e-200), (1e200, -1e200)),
    ("w[0]**2 + w[1]**3", (1e-160, 1e-100), (2e-160, 3e-200)),
    ("sum(leaky_relu(w, 0.2)**2)", (-1e-160, 1e-150), (-8e-162, 2e-150)),
    ("sum(softplus(w))", (1e300, -1e300), (1.0, 0.0)),
    ("w[1] * min(exp(w[0]), 1)", (1000.0, 1.0), (0.0, 1.0)),
    ("w[1] * max(-exp(w[0]), 1)", (1000.0, 1.0), (0.0, 1.0)),
    ("max(w[0], w[1]) + min(2e16, w[0])", (1e16, 1.0), (2.0, 0.0)),
    ("sum(softmax(w) * w)", (1e300, 1.0), (1.0, 0.0)),
    ("sum(log_softmax(w))", (1e300, -1e300), (-1.0, 1.0)),
]


@pytest.mark.parametrize(("loss", "value", "slopes"), EXTREMES)
def test_rules_at_the_edge_of_the_range(
    tmp_path: Path, loss: str, value: tuple[float, float], slopes: tuple[float, float]
) -> None:
    """What is multiplied with nothing is nothing, however large; and quotients stay within the range if they can."""
    text = f'bp = 1\nparams.w = {{ shape = [2], value = {list(value)} }}\n[equations]\nloss = "{loss}"\n'
    found = gradient(written(tmp_path, text), "backprop").arrays["w"]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, slopes, rtol=1e-14)
    twin = np.array(slopes) * 1.0005 + np.where(np.array(slopes) == 0, 1e-290, 0.0)
    assert (np.abs(found - twin) > 1e-4 * np.abs(twin)).all()


@pytest.mark.parametrize(
    ("loss", "w", "expected"),
    [
        ("max(w[0], w[1])", (1e16, 1.0), 1e16),
        ("max(w[0], w[1])", (1e-300, -1e300), 1e-300),
        ("min(w[0], w[1])", (0.1, 1e16), 0.1),
        ("clip(w[0], w[1], 3e20)", (0.1, -1e18), 0.1),
        ("max(log(w[0]), w[1])", (-1.0, 1.0), np.nan),
        ("max(w[1], log(w[0]))", (-1.0, 1.0), np.nan),
        ("min(log(w[0]), w[1])", (-1.0, 1.0), np.nan),
        ("min(w[1], log(w[0]))", (-1.0, 1.0), np.nan),
        ("max(exp(w[0]), exp(2 * w[0]))", (1000.0, 1.0), np.inf),
        ("clip(log(w[0]), 0, 1)", (-1.0, 1.0), np.nan),
    ],
)
def test_max_and_min_lose_no_digit_and_hide_no_nan(
    tmp_path: Path, loss: str, w: tuple[float, float], expected: float
) -> None:
    """The value is that of one of the arguments, to the last bit; NaN where one of them is."""
    text = f'bp = 1\nparams.w = {{ shape = [2], value = {list(w)} }}\n[equations]\nloss = "{loss}"\n'
    found = gradient(written(tmp_path, text), "backprop").loss
    assert np.array_equal(expected, found, equal_nan=True)
    assert not np.array_equal(np.nextafter(expected, 0.0), found)


@pytest.mark.parametrize(("dtype", "large"), [("float64", 1e20), ("float64", 2.9e128), ("float32", 1e10)])
@pytest.mark.parametrize("n", [3, 300])
def test_logsumexp_of_large_equal_entries_shares_its_gradient(tmp_path, n, dtype, large):
    """The logarithm of their number is less than the rounding of their size."""
    text = f"""bp = 1
dtype = "{dtype}"
params = {{ p = {{ shape = [{n}], value = {[large] * n} }} }}
equations = {{ loss = "logsumexp(p)" }}
"""
    found = gradient(written(tmp_path, text), "backprop").arrays["p"]
    np.testing.assert_allclose(found, np.full(n, 1 / n), rtol=1e-6 if dtype == "float32" else 1e-14)
