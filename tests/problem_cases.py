"""Small specs for the tests of the problem room, and helpers to open variants of them and compare arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bpcli.errors import BpError
from bpcli.problem.definition import Setup
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup

RNN = """\
bp = 1
[dims]
n = 3
m = 2
[inputs]
x = ["m"]
y_star = []
[params]
W = ["n", "n"]
U = ["n", "m"]
w = ["n"]
[state]
a = ["n"]
[equations]
a = "tanh(W @ a[t-1] + U @ x)"
loss = "(dot(w, a) - y_star)**2"
"""
FEED_FORWARD = """\
bp = 1
[inputs]
x = [2]
[params]
w = [2]
[equations]
loss = "dot(w, x)**2"
"""
LIMITS = Limits(max_memory=1 << 30)


def open_text(folder: Path, text: str, wrt: tuple[str, ...] = (), **overrides: object) -> Setup:
    """The Setup of a spec's text, written to `folder/spec.toml`."""
    path = folder / "spec.toml"
    path.write_text(text, encoding="utf-8")
    return open_setup(path, overrides, wrt, LIMITS)


def refusals(error: BpError) -> list[tuple[str, int]]:
    """The code and line of each diagnostic; line 0 where there is no place."""
    return [(d.code, d.place.line if d.place else 0) for d in error.diagnostics]


def assert_same(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> None:
    """Equal bits, names, types and shapes."""
    assert list(expected) == list(actual)
    for name, array in expected.items():
        assert (array.dtype, array.shape) == (actual[name].dtype, actual[name].shape)
        assert array.tobytes() == actual[name].tobytes(), name
