"""More handwritten slips, of kinds in and out of the catalogue of blame; see `slips`.

None was known to blame when it first judged them: reports/slips-unseen.csv keeps the causes that it gave then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Slips = frozenset[str]

RESET_BEFORE = """bp = 1
[dims]
n = 5
n_in = 3
n_out = 2
[inputs]
x = ["n_in"]
y_star = ["n_out"]
[params]
W_r = ["n", "n_in"]
U_r = ["n", "n"]
W_z = ["n", "n_in"]
U_z = ["n", "n"]
W_c = ["n", "n_in"]
U_c = ["n", "n"]
b_c = ["n"]
V = ["n_out", "n"]
[state]
h = { shape = ["n"], init = "normal" }
[equations]
r = "sigmoid(W_r @ x + U_r @ h[t-1])"
z = "sigmoid(W_z @ x + U_z @ h[t-1])"
c = "tanh(W_c @ x + U_c @ (r * h[t-1]) + b_c)"
h = "z * h[t-1] + (1 - z) * c"
loss = "0.5 * sum((V @ h - y_star)**2)"
[data]
T = 8
batch = 3
"""
COUPLED = """bp = 1
[dims]
n = 5
n_in = 3
n_classes = 4
[inputs]
x = ["n_in"]
y_star = ["n_classes"]
[params]
W_f = ["n", "n_in"]
U_f = ["n", "n"]
W_g = ["n", "n_in"]
U_g = ["n", "n"]
W_o = ["n", "n_in"]
U_o = ["n", "n"]
b_f = ["n"]
V = ["n_classes", "n"]
[state]
h = { shape = ["n"], init = "normal" }
c = { shape = ["n"], init = "normal" }
[equations]
f = "sigmoid(W_f @ x + U_f @ h[t-1] + b_f)"
g = "tanh(W_g @ x + U_g @ h[t-1])"
o = "sigmoid(W_o @ x + U_o @ h[t-1])"
c = "f * c[t-1] + (1 - f) * g"
h = "o * tanh(c)"
p = "softmax(y_star)"
loss = "cross_entropy(V @ h, p)"
[data]
T = 7
batch = 3
"""
RELU = """bp = 1
[dims]
n_in = 5
n = 8
n_classes = 4
[constants]
decay = 0.02
[inputs]
x = ["n_in"]
y_star = ["n_classes"]
[params]
W1 = ["n", "n_in"]
b1 = { shape = ["n"], init = "normal" }
W2 = ["n", "n"]
b2 = { shape = ["n"], init = "normal" }
W3 = ["n_classes", "n"]
b3 = ["n_classes"]
[equations]
a1 = "relu(W1 @ x + b1)"
a2 = "relu(W2 @ a1 + b2)"
z = "W3 @ a2 + b3"
p = "softmax(y_star)"
loss = "cross_entropy(z, p) + 0.5 * decay * (sum(W1**2) + sum(W2**2) + sum(W3**2))"
[data]
batch = 4
"""
ATTENTION = """bp = 1
[dims]
n_in = 5
n = 6
[inputs]
x = ["n_in"]
y_star = ["n"]
[params]
K = ["n", "n_in"]
Q = ["n", "n_in"]
V = ["n", "n_in"]
g = { shape = ["n"], init = "normal" }
[equations]
s = "(K @ x) * (Q @ x) / sqrt(n)"
a = "softmax(s)"
m = "a * (V @ x)"
q = "sum(m**2) / n"
y = "g * m / sqrt(q + 0.01)"
loss = "0.5 * sum((y - y_star)**2)"
[data]
batch = 3
"""


def sigmoid(v: NDArray[Any]) -> NDArray[Any]:
    """1 / (1 + e^-v)."""
    return 1 / (1 + np.exp(-v))


def softmax(v: NDArray[Any], axis: int = 1) -> NDArray[Any]:
    """Over the last axis, or over the batch by mistake."""
    e = np.exp(v - v.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def vanilla(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """specs/vanilla_rnn.toml."""
    x, target = i["x"], i["y_star"]
    T, B = x.shape[:2]
    a = [np.broadcast_to(s["a"], (B, len(p["W"])))]
    for t in range(T):
        a.append(np.tanh(a[t] @ p["W"].T + x[t] @ p["W_in"].T + p["b_rec"]))
    g = {key: np.zeros_like(value) for key, value in p.items()}
    later = np.zeros_like(a[0])
    feedback = np.sin(np.arange(p["W_out"].size)).reshape(p["W_out"].shape)
    for t in reversed(range(T)):
        off = (a[t if "stale y" in slip else t + 1] @ p["W_out"].T + p["b_out"] - target[t]) / B
        off = off * (2 if "no half" in slip or ("last loss twice" in slip and t == T - 1) else 1)
        off = off / (off.shape[1] if "mean over outputs" in slip else 1)
        g["W_out"] += off.T @ a[t + 1]
        g["b_out"] += off.sum(axis=0)
        slope = 1 - a[t + 1] ** 2
        if "slope of relu" in slip:
            slope = (a[t + 1] > 0) * 1.0
        direct = off @ (feedback if "feedback" in slip else p["W_out"])
        c = direct + later
        if "clip each step" in slip:
            c = np.clip(c, -0.2, 0.2)
        h = c * slope
        before = a[0] if "a(0) always" in slip else a[t]
        g["W"] += h.T @ before
        g["W_in"] += h.T @ (x[0] if "x(1) always" in slip else x[T - 1 - t] if "x reversed" in slip else x[t])
        g["b_rec"] += (off @ p["W_out"] * slope if "b_rec of this step" in slip else h).sum(axis=0)
        through = c * (1 if "no slope in J" in slip else (1 - a[t] ** 2) if "slope of a(t-1) in J" in slip else slope)
        later = through @ p["W"] * (0.9 if "discount" in slip else 1)
        if "reset every 3" in slip and t % 3 == 0:
            later = 0 * later
        if "sample 0 reset" in slip:
            later = later * (np.arange(B) > 0)[:, None]
    if "symmetric" in slip:
        g["W"] = (g["W"] + g["W"].T) / 2
    if "no diagonal" in slip:
        g["W"] = g["W"] - np.diag(np.diag(g["W"]))
    if "b_out times T" in slip:
        g["b_out"] = T * g["b_out"]
    if "W over T" in slip:
        g["W"] = g["W"] / T
    if "last row lost" in slip:
        g["W_in"][-1] = 0
    if "half precision" in slip:
        g = {key: value.astype(np.float16).astype(value.dtype) for key, value in g.items()}
    return g


def reset_before(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """`RESET_BEFORE`, a GRU whose reset gate acts before the matrix."""
    x, target = i["x"], i["y_star"]
    T, B, n = len(x), x.shape[1], len(p["U_r"])
    h, kept = [np.broadcast_to(s["h"], (B, n))], []
    for t in range(T):
        r = sigmoid(x[t] @ p["W_r"].T + h[t] @ p["U_r"].T)
        z = sigmoid(x[t] @ p["W_z"].T + h[t] @ p["U_z"].T)
        c = np.tanh(x[t] @ p["W_c"].T + (r * h[t]) @ p["U_c"].T + p["b_c"])
        kept.append((r, z, c))
        h.append(z * h[t] + (1 - z) * c)
    g = {key: np.zeros_like(value) for key, value in p.items()}
    dh = np.zeros((B, n))
    for t in reversed(range(T)):
        r, z, c = kept[t]
        off = (h[t + 1] @ p["V"].T - target[t]) / B
        g["V"] += off.T @ h[t + 1]
        dh = dh + off @ p["V"]
        dz = dh * (c - h[t] if "z the other way" in slip else h[t + 1] - c if "z sees h(t)" in slip else h[t] - c)
        dc = dh * (z if "c gets z" in slip else 1 - z)
        hc = dc * (1 - c**2)
        inner = hc @ p["U_c"]
        dr = inner * (h[t + 1] if "r sees h(t)" in slip else h[t])
        if "r without U_c" in slip:
            dr = hc * h[t]
        hz = dz * (r * (1 - r) if "z with r's slope" in slip else z * (1 - z))
        hr = dr * (z * (1 - z) if "r with z's slope" in slip else r * (1 - r))
        if "z slope unsquared" in slip:
            hz = dz * (1 - z)
        seen = h[t] if "U_c sees h" in slip else r * h[t]
        g["U_c"] += hc.T @ seen
        for name, d in (("r", hr), ("z", hz)):
            g[f"W_{name}"] += d.T @ x[t]
            g[f"U_{name}"] += d.T @ (c if "U sees c" in slip else h[t])
        g["W_c"] += hc.T @ x[t]
        g["b_c"] += (dc if "b_c before slope" in slip else hc).sum(axis=0)
        through = 0 if "no r·h path" in slip else inner * r
        leak = dh * (1 - z if "leak 1-z" in slip else z)
        gates = hr @ (p["U_z"] if "r through U_z" in slip else p["U_r"]) + hz @ p["U_z"]
        dh = leak + through + (0 if "gates constant" in slip else gates)
    if "W_r and W_z" in slip:
        g["W_r"], g["W_z"] = g["W_z"], g["W_r"]
    return g


def coupled(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """`COUPLED`, an LSTM whose input gate is 1 - f, with a softmax at every step."""
    x, target = i["x"], softmax(i["y_star"], 2)
    T, B, n = len(x), x.shape[1], len(p["U_f"])
    h, c, kept = [np.broadcast_to(s["h"], (B, n))], [np.broadcast_to(s["c"], (B, n))], []
    for t in range(T):
        f = sigmoid(x[t] @ p["W_f"].T + h[t] @ p["U_f"].T + p["b_f"])
        g_ = np.tanh(x[t] @ p["W_g"].T + h[t] @ p["U_g"].T)
        o = sigmoid(x[t] @ p["W_o"].T + h[t] @ p["U_o"].T)
        kept.append((f, g_, o))
        c.append(f * c[t] + (1 - f) * g_)
        h.append(o * np.tanh(c[t + 1]))
    g = {key: np.zeros_like(value) for key, value in p.items()}
    dh, dc = np.zeros((B, n)), np.zeros((B, n))
    for t in reversed(range(T)):
        f, g_, o = kept[t]
        y = softmax(h[t + 1] @ p["V"].T, 0 if "softmax over batch" in slip else 1)
        off = (y - target[t]) / B
        if "softmax twice" in slip:
            off = y * (off - (y * off).sum(axis=1, keepdims=True))
        g["V"] += off.T @ h[t + 1]
        dh = dh + off @ p["V"]
        squashed = np.tanh(c[t + 1])
        do = dh * (c[t + 1] if "o sees c" in slip else squashed)
        slope = 1 - (c[t + 1] if "slope at c" in slip else squashed) ** 2
        dc = dc * (0 if "no c to c" in slip else 1) + dh * slope * (1 if "no o in c" in slip else o)
        if "c from h alone" in slip:
            dc = dh * slope * o
        df = dc * (c[t] if "f without g" in slip else c[t] + g_ if "f plus g" in slip else c[t] - g_)
        dg = dc * (f if "g gets f" in slip else 1 - f)
        hf, hg, ho = df * f * (1 - f), dg * (1 - g_**2), do * o * (1 - o)
        if "g slope at output" in slip:
            hg = dg * (1 - np.tanh(g_) ** 2)
        if "o slope of f" in slip:
            ho = do * f * (1 - f)
        for name, d in (("f", hf), ("g", hg), ("o", ho)):
            g[f"W_{name}"] += d.T @ x[t]
            g[f"U_{name}"] += d.T @ (squashed if "U sees tanh c" in slip else h[t])
        g["b_f"] += 0 if "no b_f at t=1" in slip and t == 0 else hf.sum(axis=0)
        parts = {"f": hf, "g": hg, "o": ho}
        left_out = "o" if "h without o" in slip else "f" if "h without f" in slip else ""
        dh = sum((d @ p[f"U_{k}"] for k, d in parts.items() if k != left_out), np.zeros((B, n)))
        carried = kept[t - 1][0] if "f(t-1) carries" in slip and t else f
        dc = dc * (1 - f if "carry 1-f" in slip else carried)
    return g


def relu(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """`RELU`, with decay in the loss."""
    x, target = i["x"], softmax(i["y_star"])
    if "smoothed labels" in slip:
        target = 0.9 * target + 0.1 / target.shape[1]
    z1 = x @ p["W1"].T + p["b1"]
    a1 = np.maximum(z1, 0)
    z2 = a1 @ p["W2"].T + p["b2"]
    a2 = np.maximum(z2, 0)
    z = a2 @ p["W3"].T + p["b3"]
    y = np.exp(z) if "exp without sum" in slip else softmax(z / 2 if "temperature" in slip else z)
    off = (y - target) / len(x)
    if "mean over classes" in slip:
        off = off / off.shape[1]
    if "sigmoid's slope at z" in slip:
        off = off * y * (1 - y)
    on1, on2 = z1 > 0, z2 > 0
    if "mask of layer 2" in slip:
        on1 = on2
    if "mask the other way" in slip:
        on2 = ~on2
    if "mask from gradient" in slip:
        on2 = off @ p["W3"] > 0
    d2 = off @ p["W3"] * (on2 + 0.01 * ~on2 if "leaky" in slip else on2)
    d1 = d2 @ (p["W2"].T if "W2 for its transpose" in slip else p["W2"]) * (1 if "no mask below" in slip else on1)
    g = {
        "W3": off.T @ (z2 if "W3 sees z2" in slip else a2), "b3": off.sum(axis=0), "W2": d2.T @ a1,
        "b2": d2.sum(axis=0), "W1": d1.T @ x, "b1": d1.sum(axis=0),
    }  # fmt: skip
    if "b2 of off" in slip:
        g["b2"] = (off @ p["W3"]).sum(axis=0)
    if "b1 of d2" in slip:
        g["b1"] = d2.sum(axis=0)
    if "last sample" in slip:
        g = {**g, "W3": off[-1:].T @ a2[-1:], "W2": d2[-1:].T @ a1[-1:], "W1": d1[-1:].T @ x[-1:]}
    for k, name in enumerate(("W1", "W2", "W3")):
        lost = ("decay of W1 lost" in slip and k == 0) or "no decay" in slip
        times = 1 / len(x) if "decay over B" in slip else 2 if "decay twice" in slip else 1
        g[name] = g[name] + (0 if lost else times * q.decay) * (np.sign(p[name]) if "L1" in slip else p[name])
    if "decay of b" in slip:
        g = {k: v + (q.decay * p[k] if k[0] == "b" else 0) for k, v in g.items()}
    if "W2 dropout scale" in slip:
        g["W2"] = g["W2"] / 0.8
    return g


def attention(p: Arrays, i: Arrays, s: Arrays, q: SimpleNamespace, slip: Slips) -> Arrays:
    """`ATTENTION`: a softmax on the way, and a root mean square."""
    x, target = i["x"], i["y_star"]
    k, w, v = x @ p["K"].T, x @ p["Q"].T, x @ p["V"].T
    n = k.shape[1]
    a = softmax(k * w / np.sqrt(n))
    m = a * v
    root = np.sqrt((m**2).mean(axis=1, keepdims=True) + 0.01)
    off = (p["g"] * m / root - target) / len(x)
    g = {"g": (off * (m if "g before root" in slip else m / root)).sum(axis=0)}
    dy = off * (1 if "no g" in slip else p["g"])
    dm = dy / root
    if "root constant" not in slip:
        dm = dm - m * (dy * m).sum(axis=1, keepdims=True) / (1 if "sum for mean" in slip else n) / root**3
    da, dv = dm * v, dm * (1 if "v without a" in slip else a)
    ds = a * (da - (0 if "diagonal softmax" in slip else (a * da).sum(axis=1, keepdims=True)))
    if "sigmoid for softmax" in slip:
        ds = a * (1 - a) * da
    if "softmax without a" in slip:
        ds = da - (a * da).sum(axis=1, keepdims=True)
    ds = ds / (1 if "no root n" in slip else n if "n for root n" in slip else np.sqrt(n))
    dk, dw = ds * (k if "K and Q" in slip else w), ds * (w if "K and Q" in slip else k)
    g |= {"K": dk.T @ x, "Q": dw.T @ x, "V": dv.T @ x}
    if "K is Q" in slip:
        g["K"] = g["Q"].copy()
    if "V sees target" in slip:
        g["V"] = dv.T @ np.tanh(x)
    return g


SPECS: Mapping[str, tuple[str, Callable[..., Arrays]]] = {
    "vanilla": ("vanilla_rnn", vanilla),
    "reset before": (RESET_BEFORE, reset_before),
    "coupled": (COUPLED, coupled),
    "relu": (RELU, relu),
    "attention": (ATTENTION, attention),
}

_NONE: tuple[str, ...] = ()
_NOW = ("a(t) is used where a(t-1)",)
WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "vanilla": {
        "no half": ("is 2 ", "everything counts twice"),
        "mean over outputs": ("is 1/2", "a factor 2 is missing"),
        "last loss twice": _NONE,
        "stale y": _NONE,
        "slope of relu": _NONE,
        "feedback": _NONE,
        "clip each step": _NONE,
        "a(0) always": ("initial state", "is left out", "is zero"),
        "x(1) always": _NONE,
        "x reversed": _NONE,
        "b_rec of this step": _NONE,
        "no slope in J": _NONE,
        "slope of a(t-1) in J": ("J(t-1) is used",),
        "discount": _NONE,
        "reset every 3": ("this is ebptt:3",),
        "sample 0 reset": _NONE,
        "symmetric": _NONE,
        "no diagonal": _NONE,
        "b_out times T": ("is T",),
        "W over T": ("is 1/T",),
        "last row lost": ("row 7 alone",),
        "half precision": _NONE,
    },
    "reset before": {
        "z the other way": ("→ z has the wrong sign", "path z → h has the wrong sign"),
        "z sees h(t)": _NOW,
        "c gets z": _NONE,
        "r sees h(t)": _NOW,
        "r without U_c": _NONE,
        "z with r's slope": _NONE,
        "r with z's slope": _NONE,
        "z slope unsquared": _NONE,
        "U_c sees h": ("the factor r is missing",),
        "U sees c": _NONE,
        "b_c before slope": _NONE,
        "no r·h path": ("h[t-1] → ", "is left out"),
        "leak 1-z": _NONE,
        "r through U_z": _NONE,
        "gates constant": _NONE,
        "W_r and W_z": ("are exchanged",),
    },
    "coupled": {
        "softmax over batch": _NONE,
        "softmax twice": _NONE,
        "o sees c": _NONE,
        "slope at c": _NONE,
        "no c to c": ("path c[t-1] → c is left out", "leak is missing in J"),
        "no o in c": ("the factor o is missing",),
        "c from h alone": ("path c[t-1] → c is left out", "leak is missing in J"),
        "f without g": ("is left out",),
        "f plus g": ("the wrong sign", "the sign of an added one"),
        "g gets f": _NONE,
        "g slope at output": ("evaluated at the output",),
        "o slope of f": _NONE,
        "U sees tanh c": _NONE,
        "no b_f at t=1": ("the first step's contribution",),
        "h without o": ("path h[t-1] → o is left out",),
        "h without f": ("path h[t-1] → f is left out",),
        "f(t-1) carries": _NONE,
        "carry 1-f": _NONE,
    },
    "relu": {
        "smoothed labels": _NONE,
        "exp without sum": _NONE,
        "temperature": _NONE,
        "mean over classes": ("1/n_classes", "1/4", "1/batch"),
        "sigmoid's slope at z": _NONE,
        "mask of layer 2": _NONE,
        "mask the other way": _NONE,
        "mask from gradient": _NONE,
        "leaky": _NONE,
        "W2 for its transpose": ("W is used where Wᵀ",),
        "no mask below": ("derivative of relu is missing",),
        "W3 sees z2": _NONE,
        "b2 of off": ("derivative of relu is missing",),
        "b1 of d2": ("it is the gradient of b2",),
        "last sample": _NONE,
        "decay of W1 lost": ("times W1 itself", "is left out"),
        "no decay": ("parameters alone", "is left out"),
        "decay over B": ("times W2 itself", "times W3 itself", "times W1 itself"),
        "decay twice": ("counts twice", "2 times"),
        "L1": _NONE,
        "decay of b": ("times b",),
        "W2 dropout scale": ("1.25 times",),
    },
    "attention": {
        "g before root": ("division by",),
        "no g": ("the factor g is missing",),
        "root constant": ("is left out", "denominator of a quotient"),
        "sum for mean": ("division by 6 is missing",),
        "v without a": ("the factor a is missing",),
        "diagonal softmax": ("cross term",),
        "sigmoid for softmax": _NONE,
        "softmax without a": _NONE,
        "no root n": ("division by", "is 2.44949 times"),
        "n for root n": ("is 0.408248 times",),
        "K and Q": ("are exchanged",),
        "K is Q": ("it is the gradient of Q",),
        "V sees target": _NONE,
    },
}
"""Words of which the first cause of every wrong tensor must have one; () is a slip of no kind that blame knows."""
COUPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "vanilla": (
        ("no half", "a(0) always"), ("discount", "b_out times T"), ("slope of a(t-1) in J", "W over T"),
        ("stale y", "no diagonal"), ("mean over outputs", "x reversed"), ("reset every 3", "no half"),
    ),
    "reset before": (
        ("U_c sees h", "no r·h path"), ("z the other way", "c gets z"), ("W_r and W_z", "leak 1-z"),
        ("r through U_z", "b_c before slope"),
    ),
    "coupled": (
        ("h without o", "no o in c"), ("f plus g", "slope at c"), ("o sees c", "no b_f at t=1"),
        ("g slope at output", "carry 1-f"),
    ),
    "relu": (
        ("no decay", "mean over classes"), ("leaky", "b1 of d2"), ("no mask below", "smoothed labels"),
        ("W2 for its transpose", "decay over B"),
    ),
    "attention": (
        ("no g", "K is Q"), ("diagonal softmax", "no root n"), ("K and Q", "v without a"),
    ),
}  # fmt: skip
