"""Handwritten gradients with slips: recurrent and feed-forward networks as kernels for specs, and black boxes.

None is made by the interpreter. Each network is one function of a problem's arrays and a set of slips; `SLIPS` has the
words of right causes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from slips_more import COUPLES, SPECS, WORDS

Arrays = dict[str, NDArray[Any]]
Slips = frozenset[str]

ONE_HOT = """bp = 1
[dims]
n = 4
n_in = 3
[inputs]
x = ["n_in"]
last = []
[params]
W = ["n", "n"]
V = ["n", "n_in"]
w = ["n"]
[state]
c = { shape = ["n"], init = "normal" }
[equations]
c = "tanh(W @ c[t-1] + V @ x)"
loss = "0.5 * sum(c**2) + last * dot(w, c)"
[data]
file = "data.npz"
"""
PROBABILITIES = """bp = 1
[dims]
n_in = 5
n = 6
n_classes = 4
[inputs]
x = ["n_in"]
p = ["n_classes"]
[params]
W1 = ["n", "n_in"]
b1 = ["n"]
W2 = ["n_classes", "n"]
b2 = ["n_classes"]
[equations]
a = "tanh(W1 @ x + b1)"
z = "W2 @ a + b2"
loss = "cross_entropy(z, p)"
[data]
batch = 3
"""
NORMED = """bp = 1
[dims]
n_in = 5
n = 6
[inputs]
x = ["n_in"]
y_star = ["n"]
[params]
W = ["n", "n_in"]
gain = { shape = ["n"], init = "normal" }
bias = ["n"]
[equations]
h = "W @ x"
m = "sum(h) / n"
d = "h - m"
v = "sum(d**2) / n"
y = "gain * d / sqrt(v + 0.1) + bias"
loss = "0.5 * sum((y - y_star)**2)"
[data]
batch = 3
"""


def leaky(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """specs/leaky_rnn.toml, (1 - α) a + α tanh(W a + W_in x + b)."""
    x, target, alpha = i["x"], i["y_star"], q.alpha
    T, B = x.shape[:2]
    a, f = [np.broadcast_to(s["a"], (B, len(p["W"])))], []
    for t in range(T):
        f.append(np.tanh(a[t] @ p["W"].T + x[t] @ p["W_in"].T + p["b_rec"]))
        a.append((1 - alpha) * a[t] + alpha * f[t])
    g = {key: np.zeros_like(value) for key, value in p.items()}
    carried = np.zeros_like(a[0])
    for t in reversed(range(T)):
        delta = (a[t + 1] @ p["W_out"].T + p["b_out"] - target[t]) / (1 if "no 1/B" in slip else B)
        delta = delta * (0 if "no last loss" in slip and t == T - 1 else 1) / (T if "1/T" in slip else 1)
        g["W_out"] += delta.T @ a[t + 1]
        g["b_out"] += delta[0] if "bias of one sample" in slip else delta.sum(axis=0)
        c = delta @ p["W_out"] + (0 if "no time" in slip else carried)
        slope = 1 - f[t] ** 2
        if "slope at output" in slip:
            slope = 1 - np.tanh(f[t]) ** 2
        if "no slope" in slip:
            slope = np.ones_like(slope)
        if "slope of sigmoid" in slip:
            slope = f[t] * (1 - f[t])
        if "slope of 0.9 a" in slip:
            slope = 1 - 0.9 * f[t] ** 2
        h = alpha * c * slope
        into = h / alpha if "no α in M" in slip else h
        kept = 0.0 if "no first step" in slip and t == 0 else 1.0
        before = a[-1] if "h[-1]" in slip and t == 0 else a[t + 1] if "a(t)" in slip else a[t]
        seen = np.roll(before, 1, axis=0) if "mixed" in slip else before
        share = kept * into.T @ seen
        g["W"] = share if "= for +=" in slip else g["W"] + share
        kept = kept * (t % 2 if "even steps left out" in slip else 1)
        seen = x[t] ** 2 if "x squared" in slip else x[t]
        g["W_in"] += kept * into.T @ (x[max(t - 1, 0)] if "x(t-1)" in slip else seen)
        g["b_rec"] += kept * (into[0] if "bias of one sample" in slip else into.sum(axis=0))
        leak = 0.0 if "no leak" in slip else 1 - alpha
        back = h / alpha if "no α in J" in slip else h
        carried = leak * c + back @ (p["W"].T if "W for Wᵀ" in slip else p["W"])
        if "middle" in slip and t == T // 2:
            carried = 0 * carried
    if "a wave" in slip:
        g = {key: value * (1 + 0.01 * np.sin(np.arange(value.size)).reshape(value.shape)) for key, value in g.items()}
    return _of_answer(g, p, slip, "W", "W_out")


def _of_answer(g: Arrays, p: Arrays, slip: Slips, square: str, out: str) -> Arrays:
    """Slips in what is returned."""
    if "transposed" in slip:
        g[square] = g[square].T.copy()
    if "sign" in slip:
        g = {key: -value for key, value in g.items()}
    if "out twice" in slip:
        g[out] = 2 * g[out]
    if "out zero" in slip:
        g[out] = 0 * g[out]
    if "decay" in slip:
        g[square] = g[square] + 0.01 * p[square]
    if "clipped values" in slip:
        g = {key: np.clip(value, -0.1, 0.1) for key, value in g.items()}
    if "clipped norm" in slip:
        norm = np.sqrt(sum((value**2).sum() for value in g.values()))
        g = {key: value * min(1.0, 0.25 / norm) for key, value in g.items()}
    return g


def truncated(k1: int, k2: int, aligned: bool) -> Callable[..., Arrays]:
    """The leaky network, truncated: the losses of k1 steps go back through k2, or to the start of their block."""

    def gradient(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
        T, total = len(i["x"]), {key: np.zeros_like(value) for key, value in p.items()}
        for start in range(0, T, k1):
            stop = min(T, start + k1)
            first = start if aligned else max(0, stop - k2)
            a = np.broadcast_to(s["a"], (i["x"].shape[1], len(p["W"])))
            for t in range(first):
                a = (1 - q.alpha) * a + q.alpha * np.tanh(a @ p["W"].T + i["x"][t] @ p["W_in"].T + p["b_rec"])
            inside = {name: array[first:stop] for name, array in i.items()}
            for losses, sign in ((stop, 1), (start, -1)):
                part = {name: array[: losses - first] for name, array in inside.items()}
                if losses > first:
                    found = leaky(p, part, {"a": a}, q, slip)
                    total = {key: total[key] + sign * found[key] for key in total}
        return total

    return gradient


def lstm(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """specs/lstm.toml."""
    x, target = i["x"], i["y_star"]
    T, B, n = len(x), x.shape[1], p["U"].shape[1]
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    h, c, gates = [np.broadcast_to(s["h"], (B, n))], [np.broadcast_to(s["c"], (B, n))], []
    for t in range(T):
        z = x[t] @ p["W"].T + h[t] @ p["U"].T + p["b"]
        a = [sigmoid(z[:, :n]), sigmoid(z[:, n : 2 * n]), np.tanh(z[:, 2 * n : 3 * n]), sigmoid(z[:, 3 * n :])]
        gates.append(a)
        c.append(a[1] * c[t] + a[0] * a[2])
        h.append(a[3] * np.tanh(c[t + 1]))
    g = {key: np.zeros_like(value) for key, value in p.items()}
    dh, dc = np.zeros((B, n)), np.zeros((B, n))
    for t in reversed(range(T)):
        i_, f_, g_, o_ = gates[t]
        delta = (h[t + 1] @ p["V"].T + p["d"] - target[t]) / (1 if "no 1/B" in slip else B)
        g["V"] += delta.T @ h[t + 1]
        g["d"] += delta.sum(axis=0)
        dh = dh + delta @ p["V"]
        squashed = np.tanh(c[t + 1])
        dO = 0 * dh if "no o" in slip else dh * squashed
        dc = dc + dh * o_ * (1 if "no slope of c" in slip else 1 - squashed**2)
        dI = dc * g_
        dF = dc * (c[t + 1] if "c(t)" in slip else c[t]) * (-1 if "sign of f" in slip else 1)
        dG = dc * (1 if "no i" in slip else i_)
        so = sigmoid(o_) * (1 - sigmoid(o_)) if "slope at o" in slip else o_ * (1 - o_)
        sf = 1 - f_**2 if "slope of tanh at f" in slip else f_ * (1 - f_)
        si = 1.0 if "no slope of i" in slip else i_ * (1 - i_)
        f_ = np.maximum(f_, 0.5) if "f at least 0.5" in slip else f_
        sg = g_ * (1 - g_) if "slope of sigmoid at g" in slip else 1 - g_**2
        order = [dF * sf, dI * si] if "i and f" in slip else [dI * si, dF * sf]
        dz = np.concatenate([*order, dG * sg, dO * so], axis=1)
        g["W"] += dz.T @ (x[max(t - 1, 0)] if "x(t-1)" in slip else x[t])
        g["U"] += dz.T @ (h[t + 1] if "h(t)" in slip else h[t])
        g["b"] = dz.sum(axis=0) + (0 if "b = for +=" in slip else g["b"])
        true = np.concatenate([dI * si, dF * sf, dG * sg, dO * so], axis=1)
        dh = 0 * dh if "no h[t-1]" in slip else true @ p["U"]
        dc = 0 * dc if "no c[t-1]" in slip else dc if "no f" in slip else dc * f_
    return _of_answer(g, p, slip, "U", "V")


def gru(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """specs/gru.toml."""
    x, target = i["x"], i["y_star"]
    T, B, n = len(x), x.shape[1], len(p["U_r"])
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    h, kept = [np.broadcast_to(s["h"], (B, n))], []
    for t in range(T):
        r = sigmoid(x[t] @ p["W_r"].T + h[t] @ p["U_r"].T + p["b_r"])
        z = sigmoid(x[t] @ p["W_z"].T + h[t] @ p["U_z"].T + p["b_z"])
        u = h[t] @ p["U_c"].T + p["d_c"]
        c = np.tanh(x[t] @ p["W_c"].T + p["b_c"] + r * u)
        kept.append((r, z, u, c))
        h.append((1 - z) * c + z * h[t])
    g = {key: np.zeros_like(value) for key, value in p.items()}
    dh = np.zeros((B, n))
    for t in reversed(range(T)):
        r, z, u, c = kept[t]
        delta = (h[t + 1] @ p["V"].T - target[t]) / (1 if "no 1/B" in slip else B)
        g["V"] += delta.T @ h[t + 1]
        dh = dh + delta @ p["V"]
        dz = dh * (h[t] if "no -c" in slip else h[t] - c)
        dc = dh * (1 if "no 1-z" in slip else 1 - z)
        back = dc * (c * (1 - c) if "slope of sigmoid at c" in slip else 1 - c**2)
        dr = back * u
        inner = back * (1 if "no r" in slip else r)
        sr = r * (1 - r)
        sz = z * (1 - z)
        if "slope at gates" in slip:
            sr, sz = sigmoid(r) * (1 - sigmoid(r)), sigmoid(z) * (1 - sigmoid(z))
        if "no slope of r" in slip:
            sr = np.ones_like(sr)
        dr, dz = dr * sr, dz * sz
        seen = x[max(t - 1, 0)] if "x(t-1)" in slip else x[t]
        for name, d, weighted in (("r", dr, dr), ("z", dz, dz), ("c", back, inner)):
            g[f"W_{name}"] += d.T @ seen
            g[f"b_{name}"] += d.sum(axis=0)
            g[f"U_{name}"] += weighted.T @ (h[t + 1] if "h(t)" in slip else h[t])
        g["d_c"] += back.sum(axis=0) if "d_c without r" in slip else inner.sum(axis=0)
        through = dr @ (0 * p["U_r"] if "no r path" in slip else p["U_r"]) + dz @ p["U_z"]
        through = through + inner @ (p["U_c"].T if "U_c for its transpose" in slip else p["U_c"])
        dh = through + (0 if "no z path" in slip else dh if "no z" in slip else dh * z)
    if "b_r is b_z" in slip:
        g["b_r"] = g["b_z"].copy()
    if "b_r and b_z" in slip:
        g["b_r"], g["b_z"] = g["b_z"], g["b_r"]
    return _of_answer(g, p, slip, "U_z", "V")


def classifier(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """`PROBABILITIES`, whose targets do not add up to 1."""
    x, target = i["x"], i["p"]
    a = np.tanh(x @ p["W1"].T + p["b1"])
    z = a @ p["W2"].T + p["b2"]
    y = np.exp(z - z.max(axis=1, keepdims=True))
    y /= y.sum(axis=1, keepdims=True)
    total = 1.0 if "softmax - p" in slip else target.sum(axis=1, keepdims=True)
    delta = (y * total - target) / (1 if "no 1/B" in slip else len(x))
    back = delta @ p["W2"] * (1 if "no slope" in slip else 1 - a**2)
    g = {"W2": delta.T @ a, "b2": delta.sum(axis=0), "W1": back.T @ x, "b1": back.sum(axis=0)}
    if "W1 times B" in slip:
        g["W1"] = len(x) * g["W1"]
    if "b2 is mean" in slip:
        g["b2"] = delta.mean(axis=0)
    if "W2 norm" in slip:
        g["W2"] = g["W2"] * min(1.0, 0.5 / max(1e-300, float(np.linalg.norm(g["W2"]))))
    if "b2 zero" in slip:
        g["b2"] = 0 * g["b2"]
    if "x rolled" in slip:
        g["W1"] = back.T @ np.roll(x, 1, axis=0)
    return _of_answer(g, p, slip, "W1", "W2")


def one_hot(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """`ONE_HOT`, with a term of the last step alone."""
    x, last = i["x"], i["last"]
    T, B = x.shape[:2]
    c = [np.broadcast_to(s["c"], (B, len(p["W"])))]
    for t in range(T):
        c.append(np.tanh(c[t] @ p["W"].T + x[t] @ p["V"].T))
    g = {key: np.zeros_like(value) for key, value in p.items()}
    carried = np.zeros_like(c[0])
    for t in reversed(range(T)):
        term = 0.0 if "no term" in slip else 1.0
        g["w"] += term * (last[t][:, None] * c[t + 1]).sum(axis=0) / B
        back = 0.0 if "term in w alone" in slip else term
        d = (c[t + 1] + back * last[t][:, None] * p["w"]) / B + carried
        h = d * (1 - c[t + 1] ** 2)
        g["W"] += h.T @ c[t]
        g["V"] += h.T @ (x[max(t - 1, 0)] if "x(t-1)" in slip else x[t])
        carried = h @ p["W"]
    return g


def normed(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """`NORMED`, a layer norm."""
    x, target = i["x"], i["y_star"]
    h = x @ p["W"].T
    n = h.shape[1]
    d = h - h.mean(axis=1, keepdims=True)
    root = np.sqrt((d**2).mean(axis=1, keepdims=True) + 0.1)
    delta = (p["gain"] * d / root + p["bias"] - target) / len(x)
    dd = delta * p["gain"] / (1 if "no root" in slip else root)
    if "no variance" not in slip:
        dd = dd - d * (delta * p["gain"] * d).sum(axis=1, keepdims=True) / n / root**3
    dh = dd if "no mean" in slip else dd - dd.mean(axis=1, keepdims=True)
    g = {"W": dh.T @ x, "gain": (delta * d / root).sum(axis=0), "bias": delta.sum(axis=0)}
    if "no root" in slip:
        g["gain"] = (delta * d).sum(axis=0)
    return g


def stacked(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """specs/stacked_rnn.toml."""
    x, target = i["x"], i["y_star"]
    T, B = x.shape[:2]
    one, two = [np.broadcast_to(s["a1"], (B, len(p["W1"])))], [np.broadcast_to(s["a2"], (B, len(p["W2"])))]
    for t in range(T):
        one.append(np.tanh(one[t] @ p["W1"].T + x[t] @ p["V1"].T + p["b1"]))
        two.append(np.tanh(two[t] @ p["W2"].T + one[t + 1] @ p["V2"].T + p["b2"]))
    g = {key: np.zeros_like(value) for key, value in p.items()}
    d1, d2 = np.zeros_like(one[0]), np.zeros_like(two[0])
    for t in reversed(range(T)):
        delta = (two[t + 1] @ p["W_out"].T - target[t]) / B
        delta = delta * (2 if "loss twice" in slip else 1)
        if "last loss alone" in slip and t < T - 1:
            delta = 0 * delta
        g["W_out"] += delta.T @ two[t + 1]
        d2 = d2 + delta @ p["W_out"]
        h2 = d2 * (1 - two[t + 1] ** 2)
        g["W2"] += h2.T @ (two[t + 1] if "W2 sees a2(t)" in slip else two[t])
        g["V2"] += h2.T @ (one[t] if "V2 sees a1(t-1)" in slip else one[t + 1])
        g["b2"] += h2.sum(axis=0)
        down = 0 if "layers apart" in slip else h2 @ p["V2"]
        d1 = d1 + down
        h1 = d1 * (1.0 if "no slope below" in slip else 1 - one[t + 1] ** 2)
        g["W1"] += h1.T @ one[t]
        g["V1"] += h1.T @ x[t]
        g["b1"] += h1[-1] if "b1 of the last sample" in slip else h1.sum(axis=0)
        d1 = 0 * d1 if "no time below" in slip else h1 @ p["W1"]
        d2 = h2 @ (p["W2"].T if "W2 for its transpose" in slip else p["W2"])
        if "clip on the way" in slip:
            d2 = np.clip(d2, -0.05, 0.05)
    if "b1 zero" in slip:
        g["b1"] = 0 * g["b1"]
    return g


def residual(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """specs/residual_mlp.toml."""
    x, target, decay = i["x"], i["y_star"], q.decay
    h1 = x @ p["W_in"].T
    t1 = np.tanh(h1 @ p["W1"].T + p["b1"])
    h2 = h1 + t1 @ p["W2"].T
    t2 = np.tanh(h2 @ p["W3"].T + p["b3"])
    h3 = h2 + t2 @ p["W4"].T
    delta = (h3 @ p["W_out"].T - target) / (1 if "no 1/B" in slip else len(x))
    g = {"W_out": delta.T @ h3}
    d3 = delta @ p["W_out"]
    g["W4"] = d3.T @ t2
    c2 = (d3 @ p["W4"]) * (1 - (np.tanh(t2) if "slope at output above" in slip else t2) ** 2)
    g["W3"], g["b3"] = c2.T @ h2, c2.sum(axis=0)
    d2 = (0 if "no skip above" in slip else d3) + (0 if "no branch above" in slip else c2 @ p["W3"])
    g["W2"] = d2.T @ t1
    c1 = (d2 @ p["W2"]) * (1 - t1**2)
    g["W1"], g["b1"] = c1.T @ (h2 if "W1 sees h2" in slip else h1), c1.sum(axis=0)
    d1 = (0 if "no skip below" in slip else d2) + c1 @ p["W1"]
    g["W_in"] = d1.T @ x
    for name in ("W1", "W2", "W3", "W4"):
        if not ("no decay of W3" in slip and name == "W3") and "no decay" not in slip:
            g[name] = g[name] + (2 if "decay without 1/2" in slip else 1) * decay * p[name]
    if "W_out of the first sample" in slip:
        g["W_out"] = delta[:1].T @ h3[:1]
    return g


def diagonal(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """specs/indrnn.toml."""
    x, target = i["x"], i["y_star"]
    T, B = x.shape[:2]
    a, h = [np.broadcast_to(s["a"], (B, len(p["u"])))], []
    for t in range(T):
        h.append(p["u"] * a[t] + x[t] @ p["W"].T + p["b"])
        a.append(np.logaddexp(0, h[t]))
    g = {key: np.zeros_like(value) for key, value in p.items()}
    d = np.zeros_like(a[0])
    for t in reversed(range(T)):
        delta = (a[t + 1] @ p["V"].T - target[t]) / B
        g["V"] += delta.T @ (a[t] if "V sees a(t-1)" in slip else a[t + 1])
        d = d + delta @ p["V"]
        slope = 1 / (1 + np.exp(-(a[t + 1] if "slope at output" in slip else h[t])))
        c = d * (1.0 if "no slope" in slip else (h[t] > 0) * 1.0 if "slope of relu" in slip else slope)
        share = (c * (a[t + 1] if "u sees a(t)" in slip else a[t])).sum(axis=0)
        g["u"] = share if "u = for +=" in slip else g["u"] + share
        g["W"] += c.T @ x[t]
        g["b"] += c.mean(axis=0) if "b is mean" in slip else c.sum(axis=0)
        d = c * (1.0 if "no u" in slip else p["u"])
    return g


def tied(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """specs/tied_autoencoder.toml."""
    x = i["x"]
    z = np.tanh(x @ p["W"].T + p["b"])
    delta = (z @ p["W"] + p["c"] - x) / (len(x) ** 2 if "1/B twice" in slip else len(x))
    back = delta @ p["W"].T
    h = back * (z * (1 - z) if "slope of sigmoid" in slip else 1 - z**2)
    if "slope 1 - z" in slip:
        h = back * (1 - z)
    encoder, decoder = h.T @ x, (h if "decoder sees h" in slip else z).T @ delta
    if "mixed" in slip:
        encoder = h.T @ np.roll(x, 1, axis=0)
    W = encoder * (0 if "decoder alone" in slip else 1) + decoder * (0 if "encoder alone" in slip else 1)
    W = W - 2 * decoder if "decoder's sign" in slip else W
    c = delta.sum(axis=0) * (0.5 if "c halved" in slip else 1)
    g = {"W": W, "b": h.sum(axis=0), "c": c}
    if "rms" in slip:
        g = {key: value / np.sqrt((value**2).mean()) for key, value in g.items()}
    return g


@dataclass(frozen=True)
class Network:
    """A handwritten gradient of a spec: a file of `specs`, or a text."""

    spec: str
    gradient: Callable[..., Arrays]


NETWORKS: Mapping[str, Network] = {
    "leaky": Network("leaky_rnn", leaky),
    "fbptt3": Network("leaky_rnn", truncated(1, 3, False)),
    "tbptt24": Network("leaky_rnn", truncated(2, 4, False)),
    "ebptt4": Network("leaky_rnn", truncated(4, 4, True)),
    "lstm": Network("lstm", lstm),
    "gru": Network("gru", gru),
    "classifier": Network(PROBABILITIES, classifier),
    "one hot": Network(ONE_HOT, one_hot),
    "normed": Network(NORMED, normed),
    "stacked": Network("stacked_rnn", stacked),
    "residual": Network("residual_mlp", residual),
    "diagonal": Network("indrnn", diagonal),
    "tied": Network("tied_autoencoder", tied),
    **{name: Network(*spec) for name, spec in SPECS.items()},
}
NO_CAUSE = ("entries are wrong", "alone are wrong", "alone is wrong", "a single entry is wrong", "did not recur")
"""Words that claim no cause: right where the slip is none that could be known."""
_B = ("1/B is missing", "is batch", "= batch")
_ONE = ("that of the first sample",)
_SHIFT, _NOW = ("x(t-1) is used",), ("a(t) is used where a(t-1)",)
_ANSWER = {
    "transposed": ("transposed",),
    "sign": ("the sign is wrong",),
    "out twice": ("is 2 ", "counts twice"),
    "out zero": ("gradient is zero", "is left out"),
    "decay": ("times U_z itself", "times U itself", "times W itself"),
    "clipped values": ("clipped at ±0.1",),
    "clipped norm": ("norm of all tensors is 0.25",),
}
SLIPS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "leaky": {
        "no 1/B": _B,
        "no last loss": ("the last step's loss is left out",),
        "1/T": ("divided by T", "1/T"),
        "bias of one sample": _ONE,
        "no time": ("nothing is propagated back through time", "tbptt:k1=1,k2=1"),
        "slope at output": ("evaluated at the output",),
        "no slope": ("derivative of tanh is missing",),
        "slope of sigmoid": ("form of sigmoid's",),
        "no α in M": ("missing in M̄", "= 1/alpha"),
        "no first step": ("the first step's contribution",),
        "h[-1]": ("the last state is used",),
        "a(t)": _NOW,
        "mixed": ("samples of the batch are mixed",),
        "= for +=": ("= instead of +=",),
        "x(t-1)": _SHIFT,
        "no leak": ("leak is missing in J", "path a[t-1] → a is left out"),
        "no α in J": ("missing in J",),
        "W for Wᵀ": ("W is used where Wᵀ",),
        "middle": ("beyond the middle",),
        "slope of 0.9 a": NO_CAUSE,
        "x squared": NO_CAUSE,
        "even steps left out": NO_CAUSE,
        "a wave": NO_CAUSE,
        **_ANSWER,
    },
    "fbptt3": {"exactly": ("this is tbptt:k1=1,k2=3",)},
    "tbptt24": {"exactly": ("this is tbptt:k1=2,k2=4",)},
    "ebptt4": {"exactly": ("this is ebptt:4",)},
    "lstm": {
        "no 1/B": _B,
        "no o": ("path o → h is left out",),
        "no slope of c": ("derivative of tanh is missing",),
        "c(t)": _NOW,
        "sign of f": ("path f → c has the wrong sign", "a block, are -1"),
        "no i": ("the factor i is missing",),
        "slope at o": ("evaluated at the output",),
        "slope of tanh at f": ("form of tanh's",),
        "no slope of i": ("derivative of sigmoid is missing",),
        "slope of sigmoid at g": ("form of sigmoid's",),
        "i and f": ("are exchanged",),
        "x(t-1)": _SHIFT,
        "h(t)": _NOW,
        "b = for +=": ("= instead of +=",),
        "no h[t-1]": ("path h[t-1] → gates is left out",),
        "no c[t-1]": ("path c[t-1] → c is left out", "leak is missing in J"),
        "no f": ("the factor f is missing",),
        "f at least 0.5": NO_CAUSE,
        "out twice": _ANSWER["out twice"],
        "clipped norm": _ANSWER["clipped norm"],
    },
    "gru": {
        "no -c": ("is left out",),
        "no 1-z": ("is missing on the path c → h",),
        "slope of sigmoid at c": ("form of sigmoid's",),
        "no r": ("the factor r is missing",),
        "slope at gates": ("evaluated at the output",),
        "no slope of r": ("derivative of sigmoid is missing",),
        "h(t)": _NOW,
        "d_c without r": ("it is the gradient of b_c", "the factor r is missing"),
        "no r path": ("path h[t-1] → r is left out",),
        "no z path": ("path h[t-1] → h is left out", "leak is missing"),
        "no z": ("the factor z is missing",),
        "U_c for its transpose": ("W is used where Wᵀ",),
        "b_r is b_z": ("it is the gradient of b_z",),
        "b_r and b_z": ("are exchanged",),
        "decay": _ANSWER["decay"],
        "x(t-1)": _SHIFT,
    },
    "classifier": {
        "softmax - p": ("softmax − p",),
        "no 1/B": _B,
        "no slope": ("derivative of tanh is missing",),
        "W1 times B": ("is batch", "= batch"),
        "b2 is mean": ("is 1/batch",),
        "W2 norm": ("norm 0.5",),
        "b2 zero": ("gradient is zero", "is left out", "of a bias is missing"),
        "x rolled": ("samples of the batch are mixed",),
    },
    "one hot": {
        "no term": ("the term",),
        "term in w alone": ("path c →", "overwritten rather than added"),
        "x(t-1)": _SHIFT,
    },
    "normed": {
        "no mean": ("path h → m is left out", "path m → d is left out"),
        "no variance": ("→ v is left out", "path v →", "denominator of a quotient is treated as a constant"),
        "no root": ("the division by sqrt",),
    },
    "stacked": {
        "loss twice": ("counts twice", "is 2 "),
        "last loss alone": ("all losses but the last",),
        "W2 sees a2(t)": _NOW,
        "V2 sees a1(t-1)": NO_CAUSE,
        "layers apart": ("path a1 →", "gradient is zero"),
        "no slope below": ("derivative of tanh is missing",),
        "b1 of the last sample": ("first sample", "one sample", *NO_CAUSE),
        "no time below": ("path a1[t-1] → a1 is left out",),
        "W2 for its transpose": ("W is used where Wᵀ",),
        "clip on the way": NO_CAUSE,
        "b1 zero": ("gradient is zero", "is left out"),
    },
    "residual": {
        "no 1/B": _B,
        "slope at output above": ("evaluated at the output",),
        "no skip above": ("path h2 → h3 is left out", "overwritten rather than added"),
        "no branch above": ("path h2 → h3 is left out", "is left out"),
        "W1 sees h2": NO_CAUSE,
        "no skip below": ("path h1 → h2 is left out", "overwritten rather than added"),
        "no decay of W3": ("times W3 itself", "is left out"),
        "no decay": ("term of parameters alone", "is left out"),
        "decay without 1/2": ("counts twice", "is missing"),
        "W_out of the first sample": ("first sample", *NO_CAUSE),
    },
    "diagonal": {
        "V sees a(t-1)": NO_CAUSE,
        "slope at output": ("evaluated at the output",),
        "no slope": ("derivative of softplus is missing",),
        "slope of relu": NO_CAUSE,
        "u sees a(t)": _NOW,
        "u = for +=": ("= instead of +=", "gradient is zero"),  # the initial state is zero
        "b is mean": ("is 1/batch", "= 1/batch"),
        "no u": ("the factor u is missing",),
    },
    "tied": {
        "1/B twice": ("applied twice", "1/batch"),
        "slope of sigmoid": ("form of sigmoid's",),
        "slope 1 - z": ("1 − y in place of",),
        "decoder sees h": NO_CAUSE,
        "mixed": ("samples of the batch are mixed", *NO_CAUSE),
        "decoder alone": ("one use alone", "is left out"),
        "encoder alone": ("one use alone", "is left out"),
        "decoder's sign": ("has the wrong sign",),
        "c halved": ("1/2 times",),
        "rms": ("times the right one", *NO_CAUSE),
    },
    **{name: {slip: words or NO_CAUSE for slip, words in some.items()} for name, some in WORDS.items()},
}
"""By network and slip, words of which the first cause of every wrong tensor must have one."""
PAIRS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "leaky": (
        ("no 1/B", "no slope"), ("no 1/B", "no leak"), ("slope at output", "no leak"), ("sign", "no α in M"),
        ("transposed", "x(t-1)"), ("a(t)", "= for +="), ("no last loss", "no leak"), ("W for Wᵀ", "no 1/B"),
        ("W for Wᵀ", "no leak"), ("bias of one sample", "no slope"), ("out twice", "no leak"), ("out zero", "a(t)"),
        ("decay", "x(t-1)"), ("h[-1]", "x(t-1)"), ("clipped norm", "no slope"), ("no α in J", "a(t)"),
        ("slope of sigmoid", "mixed"),
    ),
    "fbptt3": (("exactly", "out twice"),),
    "lstm": (
        ("no 1/B", "no o"), ("c(t)", "no slope of c"), ("no i", "out twice"), ("x(t-1)", "h(t)"),
        ("b = for +=", "no f"), ("no h[t-1]", "slope at o"), ("no c[t-1]", "x(t-1)"), ("sign of f", "no 1/B"),
    ),
    "gru": (
        ("no r", "no z path"), ("b_r is b_z", "h(t)"), ("decay", "no -c"), ("no 1-z", "x(t-1)"),
        ("no slope of r", "U_c for its transpose"), ("d_c without r", "no r path"),
    ),
    "classifier": (
        ("softmax - p", "no slope"), ("no 1/B", "b2 zero"), ("W1 times B", "b2 is mean"), ("no slope", "W2 norm"),
        ("x rolled", "softmax - p"),
    ),
    "normed": (("no mean", "no variance"), ("no mean", "no root")),
    "stacked": (
        ("loss twice", "layers apart"), ("W2 sees a2(t)", "b1 zero"), ("no slope below", "W2 for its transpose"),
        ("no time below", "W2 sees a2(t)"), ("last loss alone", "no slope below"),
    ),
    "residual": (
        ("no 1/B", "no skip above"), ("no skip above", "no skip below"), ("no decay", "slope at output above"),
        ("no decay of W3", "no branch above"),
    ),
    "diagonal": (
        ("slope at output", "u = for +="), ("no u", "b is mean"), ("u sees a(t)", "no slope"),
    ),
    "tied": (
        ("1/B twice", "decoder alone"), ("slope of sigmoid", "c halved"), ("decoder's sign", "slope 1 - z"),
    ),
    **COUPLES,
}  # fmt: skip
"""Slips that are made together."""


class Regression:
    """Σ (tanh(x Wᵀ + b) v - y)² over samples, and a scalar offset s."""

    def __init__(self) -> None:
        draw = np.random.default_rng(7)
        self.x, self.y = draw.normal(size=(12, 4)), draw.normal(size=12)
        self.params = {
            "W": draw.normal(size=(4, 4)), "b": draw.normal(size=4), "v": draw.normal(size=4), "s": np.array([[0.7]]),
        }  # fmt: skip
        self.held: Arrays = {}

    def loss(self, p: Arrays) -> float:
        """The sum of squares."""
        return float(np.sum((np.tanh(self.x @ p["W"].T + p["b"]) @ p["v"] + p["s"][0, 0] - self.y) ** 2))

    def right(self, p: Arrays) -> Arrays:
        """By hand."""
        a = np.tanh(self.x @ p["W"].T + p["b"])
        off = 2 * (a @ p["v"] + p["s"][0, 0] - self.y)
        h = off[:, None] * p["v"] * (1 - a**2)
        return {"W": h.T @ self.x, "b": h.sum(axis=0), "v": a.T @ off, "s": np.array([[off.sum()]])}

    def accumulated(self, p: Arrays) -> Arrays:
        """Into a buffer that nobody clears."""
        for name, g in self.right(p).items():
            self.held[name] = self.held.get(name, 0.0) + g
        return {name: np.array(g) for name, g in self.held.items()}

    def clipped(self, g: Arrays, to: float) -> Arrays:
        """By the norm of all."""
        norm = np.sqrt(sum((a**2).sum() for a in g.values()))
        return {name: a * min(1.0, to / norm) for name, a in g.items()}

    def rows(self, a: NDArray[Any]) -> NDArray[Any]:
        """Three of four rows off, each otherwise."""
        return a * np.array([[1.0], [1.1], [0.9], [1.3]])


BOXES: Mapping[str, tuple[Callable[[Regression, Arrays], Arrays], tuple[str, ...]]] = {
    "sign": (lambda r, g: {n: -a for n, a in g.items()}, ("-1 times",)),
    "half": (lambda r, g: {n: a / 2 for n, a in g.items()}, ("1/2 times",)),
    "v twice": (lambda r, g: {**g, "v": 2 * g["v"]}, ("2 times",)),
    "transposed": (lambda r, g: {**g, "W": g["W"].T.copy()}, ("is transposed",)),
    "decay": (lambda r, g: {**g, "W": g["W"] + 0.1 * r.params["W"]}, ("0.1 times W itself",)),
    "decay of all": (
        lambda r, g: {n: a + 0.1 * r.params[n] for n, a in g.items()},
        ("0.1 times", *NO_CAUSE),  # of a scalar it cannot be said
    ),
    "clipped values": (lambda r, g: {n: np.clip(a, -5, 5) for n, a in g.items()}, ("clipped at ±5",)),
    "clipped norm": (lambda r, g: r.clipped(g, 1.0), ("norm of all tensors is 1,",)),
    "W clipped": (lambda r, g: {**g, "W": g["W"] / np.linalg.norm(g["W"])}, ("clipped to the norm 1",)),
    "copied": (lambda r, g: {**g, "v": g["b"].copy()}, ("it is the gradient of b",)),
    "exchanged": (lambda r, g: {**g, "v": g["b"], "b": g["v"]}, ("gradients of b and v are exchanged",)),
    "zero": (lambda r, g: {**g, "b": 0 * g["b"]}, ("gradient is zero",)),
    "scalar off": (lambda r, g: {**g, "s": 1.3 * g["s"]}, ("a single entry is wrong",)),
    "scalar decayed": (lambda r, g: {**g, "s": g["s"] + 0.1 * r.params["s"]}, ("a single entry is wrong",)),
    "three rows": (lambda r, g: {**g, "W": r.rows(g["W"])}, ("rows 1 to 3 alone are wrong",)),
    "half of the rows": (
        lambda r, g: {**g, "W": np.concatenate([g["W"][:2], -g["W"][2:]])}, ("rows 2 to 3, a block, are -1",),
    ),
    "accumulated": (lambda r, g: r.accumulated(r.params), ("not cleared",)),
    "sign and transposed": (
        lambda r, g: {**{n: -a for n, a in g.items()}, "W": -g["W"].T}, ("-1 times", "is transposed"),
    ),
    "v twice and b zero": (lambda r, g: {**g, "v": 2 * g["v"], "b": 0 * g["b"]}, ("2 times", "gradient is zero")),
    "copied and decayed": (
        lambda r, g: {**g, "v": g["b"].copy(), "W": g["W"] + 0.1 * r.params["W"]}, ("gradient of b", "0.1 times W"),
    ),
}  # fmt: skip
"""Black boxes: the answer made from the right one, and words of right causes; a name with " and " is two slips."""
