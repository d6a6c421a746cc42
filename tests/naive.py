"""The loop-only twin of the kernels and methods, written from the equations and independent of the graph.

Arrays are `{"params": {name: (*shape)}, "inputs": {name: (T, B, *shape)}, "state": {name: (B, *shape) or (*shape)}}`,
inputs `(B, *shape)` and no state when feed-forward; `"mask"` may hold a boolean pattern for a parameter: entries
outside it are no parameters. A gradient is a dict by name of every trainable parameter, input and initial state, each
of the shape of its array. Steps and samples count from 0. Notation: J = ∂a(t)/∂a(t-1), M̄ = ∂a(t)/∂w at fixed a(t-1),
q = ∂l(t)/∂a(t), M = da(t)/dw; N states and P parameter entries, both in the order of the spec, C order within an array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from naive_dual import Dual, Scalar
from naive_step import Array, Arrays, Entry, sample_path
from naive_step import evaluate as evaluate

from bpcli.spec.specification import Spec

Gradient = dict[str, Array]
Column = tuple[str, str, int, int]  # what is differentiated by: kind, name, step (0 unless an input), flat index
Row = dict[Column, Scalar]


def run(spec: Spec, arrays: Arrays) -> tuple[list[list[Scalar]], dict[str, Array]]:
    """The losses [t][b] and the states after each step, by name (T, B, *shape)."""
    steps, batch = sizes(spec, arrays)
    samples = [sample_path(spec, arrays, b, partials=False) for b in range(batch)]
    losses = [[samples[b][t].loss.value for b in range(batch)] for t in range(steps)]
    states = {
        name: np.array([[samples[b][t].values[name] for b in range(batch)] for t in range(steps)])
        for name in spec.states
    }
    return losses, states


def loss(spec: Spec, arrays: Arrays) -> Scalar:
    """L = Σ_t Σ_b weight(t, b) l(t, b)."""
    losses, _ = run(spec, arrays)
    total: Scalar = 0.0
    for t, row in enumerate(losses):
        for value in row:
            total += weight(spec, arrays, t) * value
    return total


def sizes(spec: Spec, arrays: Arrays) -> tuple[int, int]:
    """(T, B), from the inputs, or from [data] where there are none; T = 1 when feed-forward."""
    for name in spec.inputs:
        shape = np.shape(arrays["inputs"][name])
        return (shape[0], shape[1]) if spec.states else (1, shape[0])
    return (spec.data.T or 20) if spec.states else 1, spec.data.batch or 4


def weight(spec: Spec, arrays: Arrays, t: int) -> float:
    """∂L/∂l(t, b): 1/B for a mean over the batch, and 1, 1/T or (t = T-1) over time."""
    steps, batch = sizes(spec, arrays)
    over_time = {"sum": 1.0, "mean": 1.0 / steps, "last": float(t == steps - 1)}[spec.objective.over_time]
    return over_time / (batch if spec.objective.over_batch == "mean" else 1)


def jacobian(spec: Spec, arrays: Arrays, t: int, b: int) -> Array:
    """J (N, N) = ∂a(t)/∂a(t-1), a(0-1) being the initial state."""
    local = sample_path(spec, arrays, b)[t]
    return np.array([[new.parts.get(("previous", *e), 0.0) for e in local.new] for new in local.new.values()])


def immediate(spec: Spec, arrays: Arrays, t: int, b: int) -> Array:
    """M̄ (N, P) = ∂a(t)/∂w at fixed a(t-1)."""
    entries = parameters(spec, arrays)
    local = sample_path(spec, arrays, b)[t]
    return np.array([[new.parts.get(("param", *e), 0.0) for e in entries] for new in local.new.values()])


def q(spec: Spec, arrays: Arrays, t: int, b: int) -> Array:
    """q (N,) = ∂l(t)/∂a(t) at fixed a(t-1) and w."""
    local = sample_path(spec, arrays, b)[t]
    return np.array([local.direct.parts.get(("now", *e), 0.0) for e in local.new])


def q_previous(spec: Spec, arrays: Arrays, t: int, b: int) -> Array:
    """(N,) = ∂l(t)/∂a(t-1) at fixed a(t) and w."""
    local = sample_path(spec, arrays, b)[t]
    return np.array([local.direct.parts.get(("previous", *e), 0.0) for e in local.new])


def q_params(spec: Spec, arrays: Arrays, t: int, b: int) -> Array:
    """(P,) = ∂l(t)/∂w at fixed a(t) and a(t-1)."""
    local = sample_path(spec, arrays, b)[t]
    return np.array([local.direct.parts.get(("param", *e), 0.0) for e in parameters(spec, arrays)])


def parameters(spec: Spec, arrays: Arrays) -> list[Entry]:
    """The P trainable entries as (name, flat index)."""
    masks = arrays.get("mask", {})
    return [
        (name, i)
        for name, p in spec.params.items()
        for i in range(p.size)
        if p.trainable and (name not in masks or np.asarray(masks[name]).flat[i])
    ]


def backprop(spec: Spec, arrays: Arrays) -> Gradient:
    """Feed-forward: the average of the partials of each sample's loss."""
    _, batch = sizes(spec, arrays)
    rows = []
    for b in range(batch):
        row: Row = {}
        _add(row, weight(spec, arrays, 0), _through(sample_path(spec, arrays, b)[0].loss, {}, {}, 0))
        rows.append(row)
    return _assemble(spec, arrays, rows)


def rtrl(spec: Spec, arrays: Arrays) -> Gradient:
    """M(t) = J M(t-1) + M̄, g += q M(t) + ∂l/∂a(t-1) M(t-1) + ∂l/∂w. Williams & Zipser 1989."""
    rows = []
    for b in range(sizes(spec, arrays)[1]):
        sample, g = sample_path(spec, arrays, b), Row()
        M: dict[Entry, Row] = {(name, i): {("state", name, 0, i): 1.0} for name, i in sample[0].new}
        for t, local in enumerate(sample):
            M_new = {entry: _through(dual, M, {}, t) for entry, dual in local.new.items()}
            _add(g, weight(spec, arrays, t), _through(local.direct, M, M_new, t))
            M = M_new
        rows.append(g)
    return _assemble(spec, arrays, rows)


def bptt(spec: Spec, arrays: Arrays) -> Gradient:
    """c(t) = q(t) + ∂l(t+1)/∂a(t) + c(t+1) J(t+1), g += c(t) M̄(t) + ∂l/∂w. Rumelhart et al. 1986."""
    rows = []
    for b in range(sizes(spec, arrays)[1]):
        sample, g = sample_path(spec, arrays, b), Row()
        c: dict[Entry, Scalar] = {}
        for t in reversed(range(len(sample))):
            local, c_prev = sample[t], dict[Entry, Scalar]()
            _back(local.direct, weight(spec, arrays, t), (c, c_prev, g), t)
            for entry, cotangent in c.items():
                _back(local.new[entry], cotangent, (c, c_prev, g), t)
            c = c_prev
        _add(g, 1.0, {("state", name, 0, i): cotangent for (name, i), cotangent in c.items()})
        rows.append(g)
    return _assemble(spec, arrays, rows)


def tbptt(spec: Spec, arrays: Arrays, k1: int, k2: int) -> Gradient:
    """Sum of G[s, t], s ≤ t, s > min(T, k1 ⌈t/k1⌉) - k2 (s, t from 1). The initial state counts where s = 1 does."""
    steps, _ = sizes(spec, arrays)
    return _truncated(spec, arrays, lambda s, t: s > min(steps, k1 * ((t + k1 - 1) // k1)) - k2)


def ebptt(spec: Spec, arrays: Arrays, tau: int) -> Gradient:
    """Sum of G[s, t], s ≤ t, with s and t in one epoch: ⌈s/tau⌉ = ⌈t/tau⌉ (s, t from 1)."""
    return _truncated(spec, arrays, lambda s, t: (s + tau - 1) // tau == (t + tau - 1) // tau)


def _truncated(spec: Spec, arrays: Arrays, counts: Callable[[int, int], bool]) -> Gradient:
    """Sum of G[s, t], s ≤ t, over the pairs that count (s, t from 1)."""
    steps, batch = sizes(spec, arrays)
    rows = []
    for b in range(batch):
        G, g = _triangle(spec, arrays, b), Row()
        for t in range(1, steps + 1):
            for s in range(1, t + 1):
                if counts(s, t):
                    _add(g, 1.0, G[s - 1][t - 1])
        rows.append(g)
    return _assemble(spec, arrays, rows)


def triangle(spec: Spec, arrays: Arrays) -> Gradient:
    """G[s, t] (T, T, *shape) of each parameter: ∂/∂θ_s of step t's share of L; the gradient is its sum over s and t."""
    steps, batch = sizes(spec, arrays)
    samples = [_triangle(spec, arrays, b) for b in range(batch)]
    G = {name: np.zeros((steps, steps, *p.shape)) for name, p in spec.params.items() if p.trainable}
    for s in range(steps):
        for t in range(steps):
            cell = _assemble(spec, arrays, [sample[s][t] for sample in samples])
            for name in G:
                G[name][s, t] = cell[name]
    return G


def _triangle(spec: Spec, arrays: Arrays, b: int) -> list[list[Row]]:
    """[s][t]: what step s gives to the loss of step t: ∂l(t)/∂a(t-1) J(t-1) … J(s+1) M̄(s); s = t: ∂l(t)/∂w."""
    sample = sample_path(spec, arrays, b)
    G: list[list[Row]] = [[{} for _ in sample] for _ in sample]
    for t, local in enumerate(sample):
        c = dict[Entry, Scalar]()
        _back(local.loss, weight(spec, arrays, t), ({}, c, G[t][t]), t)
        for s in reversed(range(t)):
            c_prev = dict[Entry, Scalar]()
            for entry, cotangent in c.items():
                _back(sample[s].new[entry], cotangent, ({}, c_prev, G[s][t]), s)
            c = c_prev
        _add(G[0][t], 1.0, {("state", name, 0, i): cotangent for (name, i), cotangent in c.items()})
    return G


def _through(dual: Dual, previous: Mapping[Entry, Row], now: Mapping[Entry, Row], t: int) -> Row:
    """d(dual)/d(columns), with the total derivatives of a(t-1) and a(t) put in."""
    row: Row = {}
    for (kind, name, i), slope in dual.parts.items():
        if kind == "previous":
            _add(row, slope, previous[name, i])
        elif kind == "now":
            _add(row, slope, now[name, i])
        else:
            _add(row, slope, {(kind, name, t if kind == "input" else 0, i): 1.0})
    return row


def _back(dual: Dual, cotangent: Scalar, into: tuple[dict[Entry, Scalar], dict[Entry, Scalar], Row], t: int) -> None:
    """Add cotangent · ∂(dual) to (cotangents of a(t), of a(t-1), gradient)."""
    now, previous, g = into
    for (kind, name, i), slope in dual.parts.items():
        if kind in ("now", "previous"):
            target = now if kind == "now" else previous
            target[name, i] = target.get((name, i), 0.0) + cotangent * slope
        else:
            _add(g, cotangent * slope, {(kind, name, t if kind == "input" else 0, i): 1.0})


def _add(row: Row, factor: Scalar, other: Mapping[Column, Scalar]) -> None:
    for column, value in other.items():
        row[column] = row.get(column, 0.0) + factor * value


def _assemble(spec: Spec, arrays: Arrays, rows: list[Row]) -> Gradient:
    """The gradient by name from one row a sample: parameters and shared initial states add up over the batch."""
    result: Gradient = {name: np.zeros(p.shape) for name, p in spec.params.items() if p.trainable}
    result |= {name: np.zeros(np.shape(arrays["inputs"][name])) for name in spec.inputs}
    result |= {name: np.zeros(np.shape(arrays["state"][name])) for name in spec.states}
    declared = {**spec.params, **spec.inputs, **spec.states}
    copies = {name: gradient.reshape(-1, declared[name].size) for name, gradient in result.items()}
    for b, row in enumerate(rows):
        for (kind, name, t, i), value in row.items():
            own = kind == "input" or len(copies[name]) > 1
            copies[name][t * len(rows) + b if own else 0, i] += value
    return result
