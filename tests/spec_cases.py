"""Specs for the loader's tests. In their texts `▸` marks where a refusal points, and is taken out before loading."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bpcli.errors import Collector, Diagnostic
from bpcli.spec.load import load
from bpcli.spec.specification import Binary, Call, Expr, Item, Negate, Number, Ref, Slice, Spec, Transpose

MARK = "▸"

FEED_FORWARD = """bp = 1
[dims]
n = 3
[inputs]
x = ["n"]
[params]
W = ["n", "n"]
[equations]
y = "W @ x"
loss = "sum(y)"
"""

RECURRENT = """bp = 1
title = "A net"
dtype = "float64"
[dims]
n = 4
m = 2
[constants]
alpha = 0.5
[inputs]
x = ["m"]
y_star = []
[params]
W = ["n", "n"]
V = { shape = ["n", "m"], init = "normal" }
b = ["n"]
[state]
a = ["n"]
[equations]
h = "W @ a[t-1] + V @ x + b"
a = "(1 - alpha) * a[t-1] + alpha * tanh(h)"
loss = "(sum(a) - y_star)**2"
[objective]
loss = "loss"
[data]
T = 7
batch = 3
[check]
methods = ["bptt"]
[bench.grid]
n = [4, 8]
"""


def load_text(
    folder: Path, text: str | bytes, overrides: Mapping[str, object] | None = None
) -> tuple[Spec | None, list[Diagnostic]]:
    """The spec that `text` makes, written to a file, and what was refused in the order of the text."""
    path = folder / "spec.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    collector = Collector()
    spec = load(path, overrides or {}, collector)
    return spec, sorted(collector.diagnostics, key=_place)


def loaded(folder: Path, text: str | bytes, overrides: Mapping[str, object] | None = None) -> Spec:
    """The spec of a text that has nothing wrong."""
    spec, refused = load_text(folder, text, overrides)
    assert [] == refused
    assert spec is not None
    return spec


def unmarked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and the line and column that each stands before."""
    lines = [line.split(MARK) for line in text.split("\n")]
    places = []
    for number, parts in enumerate(lines, 1):
        column = 1
        for part in parts[:-1]:
            column += len(part)
            places.append((number, column))
    return text.replace(MARK, ""), places


def changed(text: str, old: str, new: str) -> str:
    """`text` with its one `old` replaced by `new`."""
    assert 1 == text.count(old), old
    return text.replace(old, new)


def written(expr: Expr) -> str:
    """An expression with every bracket, so that grouping can be compared."""
    match expr:
        case Number(value):
            return repr(value)
        case Ref(name, lag):
            return f"{name}[t-{lag}]" if lag else name
        case Negate(operand):
            return f"(-{written(operand)})"
        case Binary(op, left, right):
            return f"({written(left)} {op} {written(right)})"
        case Transpose(operand):
            return f"{written(operand)}.T"
        case Call(function, args):
            return f"{function}({', '.join(written(arg) for arg in args)})"
        case Item(vector, index):
            return f"{written(vector)}[{written(index)}]"
        case Slice(vector, start, stop):
            ends = ["" if end is None else written(end) for end in (start, stop)]
            return f"{written(vector)}[{':'.join(ends)}]"


def _place(diagnostic: Diagnostic) -> tuple[int, int]:
    place = diagnostic.place
    return (place.line, place.column) if place else (0, 0)
