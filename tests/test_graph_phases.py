"""The phases of values, dropped nodes and unused names."""

from __future__ import annotations

from pathlib import Path

import pytest
from graph_cases import built

from bpcli.graph.nodes import Graph, Phase

VANILLA = """bp = 1
[inputs]
x = [2]
y_star = [1]
[params]
W = [3, 3]
W_in = [3, 2]
b = [3]
W_out = [1, 3]
[state]
a = [3]
[equations]
h = "W @ a[t-1] + W_in @ x + b"
a = "tanh(h)"
y = "W_out @ a"
loss = "sum((y - y_star)**2)"
"""
LSTM = """bp = 1
[inputs]
x = [2]
[params]
W = [12, 2]
U = [12, 3]
f_bias = [3]
[state]
h = [3]
c = [3]
[equations]
drive = "W @ x"
gates = "U @ h[t-1] + drive"
forget = "sigmoid(gates[0:3] + exp(f_bias))"
c = "forget * c[t-1] + sigmoid(gates[3:6]) * tanh(gates[6:9])"
squashed = "tanh(c)"
h = "sigmoid(gates[9:12]) * squashed"
out = "h + c[t-1]"
loss = "sum(out)"
"""
FEED_FORWARD = """bp = 1
[inputs]
x = [2]
[params]
W = [3, 2]
v = [3]
[equations]
K = "2 * W"
h = "tanh(K @ x)"
decay = "sum(W * W)"
loss = "dot(v, h) + decay"
"""
ENDS = """bp = 1
[inputs]
x = []
seen = []
[params]
w = []
lone = []
[state]
p = []
q = []
dead = []
[equations]
p = "w * x"
q = "p[t-1]"
dead = "dead[t-1] + lone"
twice = "2 * x"
unread = "seen * 3"
alias = "x"
after = "p * 2"
loss = "q + after"
"""


def _phases(graph: Graph) -> dict[str, str]:
    named = {node.name: node.phase.name.lower() for node in graph.nodes if node.name and node.op != "previous"}
    return {name: named[name] for name in graph.equation if name in named}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (VANILLA, {"h": "recurrent", "a": "recurrent", "y": "output", "loss": "output"}),
        (
            LSTM,
            {"drive": "input", "gates": "recurrent", "forget": "recurrent", "c": "recurrent"}
            | {"squashed": "recurrent", "h": "recurrent", "out": "output", "loss": "output"},
        ),
        (FEED_FORWARD, {"K": "static", "h": "input", "decay": "static", "loss": "input"}),
        (ENDS, {"p": "recurrent", "q": "recurrent", "dead": "recurrent", "after": "output", "loss": "output"}),
    ],
)
def test_phases(tmp_path: Path, text: str, expected: dict[str, str]) -> None:
    """Equations are computed once, before the loop, in it or after it."""
    graph = built(tmp_path, text)
    assert expected == {name: phase for name, phase in _phases(graph).items() if name != "alias"}


@pytest.mark.parametrize(
    ("text", "before", "inside"), [(VANILLA, ["add", "matmul"], ["add", "matmul", "tanh"]), (LSTM, ["matmul"], None)]
)
def test_inputs_are_hoisted(tmp_path: Path, text: str, before: list[str], inside: list[str] | None) -> None:
    """The inputs' part of the new state is computed before the loop, which holds only the product with the state."""
    graph = built(tmp_path, text)
    operations = [node for node in graph.nodes if node.args]
    assert before == sorted(node.op for node in operations if node.phase is Phase.INPUT)
    looped = sorted(node.op for node in operations if node.phase is Phase.RECURRENT)
    assert 1 == looped.count("matmul")
    assert inside is None or inside == looped


@pytest.mark.parametrize("text", [VANILLA, LSTM, FEED_FORWARD, ENDS])
def test_phases_only_look_back(tmp_path: Path, text: str) -> None:
    """No node reads a node of a later phase, and a network without a state has no loop."""
    graph = built(tmp_path, text)
    assert all(graph.nodes[arg].phase <= node.phase for node in graph.nodes for arg in node.args)
    if not graph.recurrent:
        assert {Phase.STATIC, Phase.INPUT} == {node.phase for node in graph.nodes}


def test_unused(tmp_path: Path) -> None:
    """Names that the loss of no step depends on are unused; those that it depends on through other states are used."""
    graph = built(tmp_path, ENDS)
    assert ("lone", "seen", "dead", "twice", "unread", "alias") == graph.unused
    assert () == built(tmp_path, VANILLA).unused


def test_dropped(tmp_path: Path) -> None:
    """Unused values have no node, but every state keeps its two."""
    graph = built(tmp_path, ENDS)
    assert {"x", "w", "lone"} == set(graph.leaf)
    assert {"p", "q", "dead"} == set(graph.new) == set(graph.previous)
    assert not {"twice", "unread"} & set(graph.equation)
    assert not {"twice", "unread", "seen"} & {node.name for node in graph.nodes}


@pytest.mark.parametrize("equation", ["P @ q", "P @ (P @ q)", "q", "2 * q", "concat(q[0:1], q[1:3])"])
def test_states_of_parameters_alone(tmp_path: Path, equation: str) -> None:
    """A state whose new value depends on parameters alone: computed once, and copied at every step."""
    text = f"""bp = 1
[params]
P = [3, 3]
q = [3]
[state]
a = [3]
[equations]
a = "{equation}"
loss = "sum(P @ a + a[t-1])"
"""
    graph = built(tmp_path, text)
    node = graph.nodes[graph.new["a"]]
    assert (Phase.RECURRENT, "copy") == (node.phase, node.op)
    assert Phase.STATIC is graph.nodes[node.args[0]].phase
