"""Specs written in a line or two, their graphs, and a plain NumPy reading of a graph's nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bpcli.errors import Collector, Diagnostic
from bpcli.graph.build import build
from bpcli.graph.nodes import Graph, Node
from bpcli.spec.load import load

Array = np.ndarray[Any, np.dtype[Any]]
ARRAYS = """bp = 1
dtype = "{dtype}"
[dims]
n = 3
m = 2
[constants]
alpha = 0.25
[inputs]
x = [3]
z = [2]
s = []
[params]
W = [3, 3]
V = [2, 3]
U = [3, 2]
b = [3]
c = [2]
g = []
[state]
a = [3]
[equations]
"""


def graph_of(folder: Path, text: str) -> tuple[Graph | None, list[Diagnostic]]:
    """The graph of a whole spec, and what was refused."""
    path = folder / "spec.toml"
    path.write_text(text, encoding="utf-8")
    collector = Collector()
    spec = load(path, {}, collector)
    graph = None if spec is None else build(spec, collector)
    return graph, collector.diagnostics


def with_arrays(equations: str, dtype: str = "float64") -> str:
    """A spec with the arrays above, `a = "x"` for its state and `loss = "s"` unless the equations say otherwise."""
    text = ARRAYS.format(dtype=dtype) + equations + "\n"
    for name, default in (("a", "x"), ("loss", "s")):
        if not any(line.split("=")[0].strip("¦ ") == name for line in equations.splitlines()):
            text += f'{name} = "{default}"\n'
    return text


def built(folder: Path, text: str) -> Graph:
    """The graph of a spec that has nothing wrong."""
    graph, refused = graph_of(folder, text)
    assert [] == refused
    assert graph is not None
    return graph


def show(graph: Graph, index: int) -> str:
    """A node as text, leaves and equations further down by name."""
    node = graph.nodes[index]
    return f"{node.op}({', '.join([_end(graph.nodes[arg]) or show(graph, arg) for arg in node.args])})"


def _end(node: Node) -> str:
    if node.op == "constant":
        return f"{node.numbers[0]:g}"
    return f"{node.name}'" if node.op == "previous" else node.name


def _sigmoid(v: Array) -> Array:
    return 1 / (1 + np.exp(-v))


def _softmax(v: Array) -> Array:
    return np.asarray(np.exp(v) / np.sum(np.exp(v)))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "relu": lambda v: np.maximum(v, 0),
    "leaky_relu": lambda v, slope: np.where(v > 0, v, slope * v),
    "softplus": lambda v: np.log1p(np.exp(v)),
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "abs": np.abs,
    "stop_gradient": lambda v: v,
    "step": lambda v, *slope: np.where(np.asarray(v) > 0, 1.0, 0.0),
    "erf": np.vectorize(math.erf, otypes=[float]),
    "max": lambda u, v, *difference: np.maximum(u, v),
    "min": lambda u, v, *difference: np.minimum(u, v),
    "clip": np.clip,
    "sum": np.sum,
    "mean": np.mean,
    "dot": lambda u, v: np.sum(u * v),
    "logsumexp": lambda v: np.log(np.sum(np.exp(v))),
    "softmax": _softmax,
    "log_softmax": lambda v: np.log(_softmax(v)),
    "cross_entropy": lambda z, p: -np.sum(p * np.log(_softmax(z))),
    "concat": lambda *parts: np.concatenate([np.atleast_1d(part) for part in parts]),
}
_OPERATORS: dict[str, Callable[..., Any]] = {
    "copy": lambda v: v,
    "negate": lambda v: -v,
    "add": lambda u, v: u + v,
    "subtract": lambda u, v: u - v,
    "multiply": lambda u, v: u * v,
    "divide": lambda u, v: u / v,
    "power": lambda v, p: v**p,
    "matmul": lambda u, v: u @ v,
    "matmat": lambda u, v: u @ v,
    "transpose": np.transpose,
    "slice": lambda v, start, stop: v[int(start) : int(stop)],
}


def values_of(graph: Graph, arrays: Mapping[str, Array]) -> list[Array]:
    """Every node's value for one step of one sample; `arrays` holds a state's earlier value under its name."""
    values: list[Array] = []
    for node in graph.nodes:
        if node.op == "constant":
            value = np.asarray(node.numbers[0])
        elif not node.args:
            value = arrays[node.name]
        else:
            rule = (FUNCTIONS | _OPERATORS)[node.op]
            value = np.asarray(rule(*[values[arg] for arg in node.args], *node.numbers))
        if node.op == "slice":
            value = value.reshape(node.shape)
        assert node.shape == np.shape(value), node
        values.append(value)
    return values
