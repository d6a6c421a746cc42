"""Right gradients of black boxes: layers under losses in NumPy, PyTorch and JAX, and special points; and wrong ones.

`cases()` lists the corpus. `build(case)` gives the loss, its right gradient and the params of a case. Each is a pure
function of the case. `FAULTS` turn a right gradient of one tensor into a wrong one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy_autodiff import NUMPY, Functions, Var, gradient, jax_functions, torch_functions

Params = dict[str, np.ndarray]
BATCH, STEPS, CLASSES = 4, 3, 3


@dataclass(frozen=True)
class Case:
    """`layer` under `objective` at `size`; `kind` says what is special: plain, fit, rounded fit, noise, kink, …"""

    library: str
    dtype: str
    layer: str
    objective: str
    size: int
    kind: str = "plain"
    amount: float = 0.0

    def __str__(self) -> str:
        amount = f"={self.amount:g}" if self.amount else ""
        return f"{self.library}:{self.dtype}:{self.layer}:{self.objective}:{self.size}:{self.kind}{amount}"

    @property
    def seed(self) -> int:
        return zlib.crc32(f"{self.layer}{self.objective}{self.size}{self.kind}".encode())


@dataclass(frozen=True)
class Box:
    """A loss, its gradient and the point."""

    loss: Callable[[Params], Any]
    grad: Callable[[Params], Any]
    params: Params


Data = Mapping[str, Any]
Layer = Callable[[Functions, Mapping[str, Any], Data], Any]


def _dense(f: Functions, p: Mapping[str, Any], data: Data) -> Any:
    return f.tanh(data["x"] @ p["W"] + p["b"]) @ p["V"]


def _relu(f: Functions, p: Mapping[str, Any], data: Data) -> Any:
    return f.relu(data["x"] @ p["W"] + p["b"]) @ p["V"]


def _convolution(f: Functions, p: Mapping[str, Any], data: Data) -> Any:
    """Patches (BATCH * 5, 3) times kernels, tanh, and the mean over positions as a product."""
    return data["pool"] @ f.tanh(data["patches"] @ p["W"] + p["b"]) @ p["V"]


def _max_pool(f: Functions, p: Mapping[str, Any], data: Data) -> Any:
    a = (data["patches"] @ p["W"] + p["b"]).reshape(BATCH, 5, -1)
    return f.largest(a, 1).reshape(BATCH, -1) @ p["V"]


def _rnn(f: Functions, p: Mapping[str, Any], data: Data) -> Any:
    h = f.tanh(data["x"] @ p["U"] + p["b"])
    for x in data["xs"]:
        h = f.tanh(h @ p["W"] + x @ p["U"] + p["b"])
    return h @ p["V"]


def _sigmoid(f: Functions, x: Any) -> Any:
    return 0.5 * f.tanh(0.5 * x) + 0.5


def _gru(f: Functions, p: Mapping[str, Any], data: Data) -> Any:
    h = f.tanh(data["x"] @ p["U"])
    for x in data["xs"]:
        z = _sigmoid(f, x @ p["Uz"] + h @ p["Wz"] + p["bz"])
        r = _sigmoid(f, x @ p["Ur"] + h @ p["Wr"])
        h = (1 - z) * h + z * f.tanh(x @ p["U"] + (r * h) @ p["W"])
    return h @ p["V"]


def _normalised(f: Functions, a: Any, axis: int) -> Any:
    a = a - f.total(a, axis) / a.shape[axis]
    return a / f.sqrt(f.total(a * a, axis) / a.shape[axis] + 1e-3)


def _layer_norm(f: Functions, p: Mapping[str, Any], data: Data) -> Any:
    return f.tanh(_normalised(f, data["x"] @ p["W"] + p["b"], 1) * p["gamma"] + p["beta"]) @ p["V"]


def _batch_norm(f: Functions, p: Mapping[str, Any], data: Data) -> Any:
    """The bias `b` before it has no influence but by rounding."""
    return f.tanh(_normalised(f, data["x"] @ p["W"] + p["b"], 0) * p["gamma"] + p["beta"]) @ p["V"]


def _softmax(f: Functions, a: Any) -> Any:
    e = f.exp(a - f.largest(a, 1))
    return e / f.total(e, 1)


def _attention(f: Functions, p: Mapping[str, Any], data: Data) -> Any:
    q, k, v = (data["x"] @ p[name] for name in ("Q", "K", "W"))
    return _softmax(f, (q @ k.T) * 0.5) @ v @ p["V"]


def _embedding(f: Functions, p: Mapping[str, Any], data: Data) -> Any:
    """Half of the rows are used, one of them twice."""
    return f.tanh(p["E"][data["tokens"]] + p["b"]) @ p["V"]


LAYERS: Mapping[str, tuple[Layer, Mapping[str, tuple[str, str]]]] = {
    "dense": (_dense, {"W": ("i", "n"), "b": ("1", "n")}),
    "relu": (_relu, {"W": ("i", "n"), "b": ("1", "n")}),
    "convolution": (_convolution, {"W": ("3", "n"), "b": ("1", "n")}),
    "max-pool": (_max_pool, {"W": ("3", "n"), "b": ("1", "n")}),
    "rnn": (_rnn, {"U": ("i", "n"), "W": ("n", "n"), "b": ("1", "n")}),
    "gru": (
        _gru,
        {"U": ("i", "n"), "W": ("n", "n"), "Uz": ("i", "n"), "Wz": ("n", "n"), "bz": ("1", "n"), "Ur": ("i", "n"),
         "Wr": ("n", "n")},
    ),
    "layer-norm": (_layer_norm, {"W": ("i", "n"), "b": ("1", "n"), "gamma": ("1", "n"), "beta": ("1", "n")}),
    "batch-norm": (_batch_norm, {"W": ("i", "n"), "b": ("1", "n"), "gamma": ("1", "n"), "beta": ("1", "n")}),
    "attention": (_attention, {"Q": ("i", "n"), "K": ("i", "n"), "W": ("i", "n")}),
    "embedding": (_embedding, {"E": ("6", "n"), "b": ("1", "n")}),
}  # fmt: skip
"""Layers, and the shapes of their params: n is the size, i the number of inputs. All end with a product by V."""


def _mse(f: Functions, y: Any, data: Data) -> Any:
    return f.total((y - data["target"]) ** 2) / BATCH


def _huber(f: Functions, y: Any, data: Data) -> Any:
    """Quadratic up to 1, linear beyond, by relu alone: r²/2 - relu(|r| - 1)²/2."""
    r = f.abs(y - data["target"])
    return f.total(0.5 * r * r - 0.5 * f.relu(r - 1.0) ** 2)


def _cross_entropy(f: Functions, y: Any, data: Data) -> Any:
    top = f.largest(y, 1)
    return f.total(f.log(f.total(f.exp(y - top), 1)) + top - f.total(y * data["labels"], 1)) / BATCH


def _hinge(f: Functions, y: Any, data: Data) -> Any:
    return f.total(f.relu(1.0 - y * data["signs"]))


def _logistic(f: Functions, y: Any, data: Data) -> Any:
    return f.total(f.log(1.0 + f.exp(-(y * data["signs"]))))


OBJECTIVES = {"mse": _mse, "huber": _huber, "cross-entropy": _cross_entropy, "hinge": _hinge, "logistic": _logistic}


def _data(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Data in the dtype of the case."""
    inputs = max(1, min(case.size, 4))
    draws = {
        "x": rng.standard_normal((BATCH, inputs)),
        "xs": rng.standard_normal((STEPS, BATCH, inputs)),
        "patches": rng.standard_normal((BATCH * 5, 3)),
        "pool": np.kron(np.eye(BATCH), np.full((1, 5), 0.2)),
        "target": rng.standard_normal((BATCH, CLASSES)),
        "labels": np.eye(CLASSES)[rng.integers(0, CLASSES, BATCH)],
        "signs": rng.choice([-1.0, 1.0], (BATCH, CLASSES)),
    }
    return {name: a.astype(case.dtype) for name, a in draws.items()}


def _params(case: Case, rng: np.random.Generator) -> Params:
    sizes = {"n": case.size, "i": max(1, min(case.size, 4)), "1": 1, "3": 3, "6": 6}
    shapes = {name: tuple(sizes[s] for s in shape) for name, shape in LAYERS[case.layer][1].items()}
    shapes["V"] = (case.size, CLASSES)
    scale = {name: 1 / np.sqrt(max(1, shape[0])) if shape[0] > 1 else 0.5 for name, shape in shapes.items()}
    return {name: (scale[name] * rng.standard_normal(s)).astype(case.dtype) for name, s in shapes.items()}


def build(case: Case) -> Box:
    """The loss, its right gradient, and the point."""
    if case.kind in POINTS:
        return POINTS[case.kind](case)
    rng = np.random.default_rng(case.seed)
    params, data = _params(case, rng), _data(case, rng)
    tokens = np.array([0, 2, 2, 5])
    if case.kind == "kink":
        # A unit and an input at exactly nothing: its relu, or the margin of a hinge, is at the kink.
        params["b"][:, 0] = 0
        params["W"][:, 0] = 0
    if case.kind == "tie":
        data["patches"][1] = data["patches"][0]
    layer, objective = LAYERS[case.layer][0], OBJECTIVES[case.objective]
    if "fit" in case.kind:
        fitted = layer(NUMPY, params, {**data, "tokens": tokens})
        data["target"] = np.round(fitted, 12).astype(case.dtype) if case.kind == "rounded fit" else fitted

    def formula(f: Functions, p: Mapping[str, Any], known: Data) -> Any:
        return objective(f, layer(f, p, {**known, "tokens": tokens}), known)

    if case.kind == "fit":  # in the library's own arithmetic
        own = library(case, lambda f, p, known: layer(f, p, {**known, "tokens": tokens}), data)
        data["target"] = own.value(params)
    made = library(case, formula, data)
    loss, grad = made.loss, made.grad
    if case.kind in NOISES:
        loss = NOISES[case.kind](loss, case.amount)
    return Box(loss, grad, params)


@dataclass(frozen=True)
class Library:
    """A formula in a library: its `value` as an array, and as a `loss` with its `grad`."""

    value: Callable[[Params], np.ndarray]
    loss: Callable[[Params], Any]
    grad: Callable[[Params], Any]


def library(case: Case, formula: Callable[[Functions, Mapping[str, Any], Data], Any], data: Data) -> Library:
    """The formula in the library of the case, which follows the types of params and data."""
    return {"numpy": _in_numpy, "torch": _in_torch, "jax": _in_jax}[case.library](formula, data)


def _in_numpy(formula: Callable[..., Any], data: Data) -> Library:
    def grad(p: Params) -> Params:
        leaves = {name: Var(array) for name, array in p.items()}
        return dict(zip(p, gradient(formula(NUMPY, leaves, data), list(leaves.values())), strict=True))

    def loss(p: Params) -> Any:
        return formula(NUMPY, p, data)

    return Library(loss, loss, grad)


def _in_torch(formula: Callable[..., Any], data: Data) -> Library:
    import torch

    torch.set_num_threads(1)
    f = torch_functions()
    known = {name: torch.tensor(array) for name, array in data.items()}

    def value(p: Params) -> Any:
        with torch.no_grad():
            return formula(f, {name: torch.tensor(array) for name, array in p.items()}, known).numpy()

    def grad(p: Params) -> Params:
        leaves = {name: torch.tensor(array, requires_grad=True) for name, array in p.items()}
        formula(f, leaves, known).backward()
        return {n: np.zeros_like(p[n]) if t.grad is None else t.grad.numpy() for n, t in leaves.items()}

    return Library(value, value, grad)


def _in_jax(formula: Callable[..., Any], data: Data) -> Library:
    import jax
    import jax.numpy as jnp

    f = jax_functions()
    known = {name: jnp.asarray(array) for name, array in data.items()}
    value = jax.jit(lambda p: formula(f, p, known))
    slope = jax.jit(jax.grad(lambda p: formula(f, p, known)))
    return Library(lambda p: np.asarray(value(p)), value, lambda p: {n: np.asarray(a) for n, a in slope(p).items()})


def _hashed(loss: Callable[[Params], Any], amount: float) -> Callable[[Params], Any]:
    """Relative noise that is the same for the same arguments, as of rounding."""

    def noisy(p: Params) -> float:
        key = zlib.crc32(b"".join(array.tobytes() for array in p.values()))
        return float(loss(p)) * (1 + amount * (2 * key / 2**32 - 1))

    return noisy


def _flickering(loss: Callable[[Params], Any], amount: float) -> Callable[[Params], Any]:
    """Relative noise that differs from call to call, as of threads that add in any order."""
    rng = np.random.default_rng(0)
    return lambda p: float(loss(p)) * (1 + amount * rng.uniform(-1, 1))


NOISES = {"noise": _hashed, "flicker": _flickering}


def _pointwise(case: Case, params: Params, formula: Callable[[Functions, Mapping[str, Any], Data], Any]) -> Box:
    made = library(case, formula, {})
    return Box(made.loss, made.grad, {name: a.astype(case.dtype) for name, a in params.items()})


def _ties(case: Case) -> Box:
    """The maximum of entries of which `amount` are equal."""
    x = np.linspace(-1.0, 1.5, case.size)
    x[: int(case.amount)] = 2.0
    return _pointwise(case, {"x": x.reshape(1, -1)}, lambda f, p, _: f.total(f.largest(p["x"], 1)))


def _corners(case: Case) -> Box:
    """|x| and relu at exactly 0, of one entry each and of sums of entries."""
    x = np.linspace(-1.0, 1.0, case.size) + 0.01
    x[0] = 0.0
    return _pointwise(case, {"x": x}, lambda f, p, _: f.total(f.abs(p["x"])) + 2 * f.total(f.relu(p["x"])))


def _shared_corner(case: Case) -> Box:
    """|sum x| at 0 and relu of a product at 0, in which all entries share a kink."""
    x = np.tile([0.5, -0.5], (case.size + 1) // 2)
    return _pointwise(case, {"x": x}, lambda f, p, _: f.abs(f.total(p["x"])) + f.total(p["x"] ** 2))


def _oscillation(case: Case) -> Box:
    x = np.linspace(0.3, 1.1, case.size)
    return _pointwise(case, {"x": x}, lambda f, p, _: f.total(f.sin(case.amount * p["x"])))


def _power_edge(case: Case) -> Box:
    """x^1.5 where some entries are 0: NaN on one side, a slope of 0 that is reached as the root of the step."""
    x = np.linspace(0.0, 2.0, case.size)
    return _pointwise(case, {"x": x}, lambda f, p, _: f.total(p["x"] ** 1.5) + f.total(p["x"]))


def _log_edge(case: Case) -> Box:
    """log and sqrt close to 0."""
    x = np.geomspace(case.amount, 1.0, case.size)
    return _pointwise(case, {"x": x}, lambda f, p, _: f.total(f.log(p["x"])) + f.total(f.sqrt(p["x"])))


def _flat(case: Case) -> Box:
    """Saturated units, and a loss that is dwarfed by a constant."""
    x = np.linspace(0.5, 20.0, case.size)
    return _pointwise(case, {"x": x}, lambda f, p, _: f.total(f.tanh(p["x"])) + case.amount)


def _scales(case: Case) -> Box:
    """Entries over many orders of magnitude, each with a slope of the inverse size."""
    x = np.geomspace(1 / case.amount, case.amount, case.size)
    return _pointwise(case, {"x": x}, lambda f, p, _: f.total(f.log(p["x"]) ** 2) + f.total(f.sin(f.log(p["x"]))))


POINTS: Mapping[str, Callable[[Case], Box]] = {
    "ties": _ties,
    "corners": _corners,
    "shared corner": _shared_corner,
    "oscillation": _oscillation,
    "power edge": _power_edge,
    "log edge": _log_edge,
    "flat": _flat,
    "scales": _scales,
}
SIZES = (1, 4, 16, 40)
LIBRARIES = (("numpy", "float64"), ("numpy", "float32"), ("torch", "float64"), ("torch", "float32"),
             ("jax", "float64"), ("jax", "float32"))  # fmt: skip


_FITS = (
    ("mse", 4, "fit"), ("mse", 3, "other fit"), ("mse", 8, "rounded fit"), ("huber", 1, "fit"),
    ("huber", 3, "rounded fit"), ("huber", 8, "other fit"),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """The whole corpus, by library and dtype."""
    for name, dtype in LIBRARIES:
        for layer in LAYERS:
            yield from _of_layer(Case(name, dtype, layer, "mse", 1))
        yield from _at_points(Case(name, dtype, "point", "", 1))


def _of_layer(case: Case) -> Iterator[Case]:
    for number, objective in enumerate(OBJECTIVES):
        # Half of the sizes, in turn; large ones take NumPy's time, not that of calls into a library.
        for size in SIZES[number % 2 :: 2]:
            if size < SIZES[-1] or case.library == "numpy":
                yield replace(case, objective=objective, size=size)
    if case.layer in ("rnn", "dense", "attention") and case.library == "numpy":
        for objective in ("mse", "cross-entropy"):
            yield replace(case, objective=objective, size=64)
    if case.layer == "rnn" and case.library == "numpy":
        for size in (96, 128):
            yield replace(case, size=size)
    for objective, size, kind in _FITS:
        yield replace(case, objective=objective, size=size, kind=kind)
    if case.layer in ("relu", "dense"):
        for objective in OBJECTIVES:
            yield replace(case, objective=objective, size=4, kind="kink")
    if case.layer == "max-pool":
        for objective in OBJECTIVES:
            yield replace(case, objective=objective, size=4, kind="tie")
    if case.dtype == "float64" and case.library == "numpy":
        for kind in NOISES:
            for amount in (1e-15, 1e-13, 1e-11, 1e-9):
                yield replace(case, objective="cross-entropy", size=5, kind=kind, amount=amount)


def _at_points(case: Case) -> Iterator[Case]:
    for size in (2, 5, 16):
        for amount in (2, 3, 5):
            if amount <= size:
                yield replace(case, size=size, kind="ties", amount=amount)
        for kind in ("corners", "shared corner", "power edge"):
            yield replace(case, size=size, kind=kind)
        for amount in (1e1, 1e3, 1e5, 1e7, 1e10):
            yield replace(case, size=size, kind="oscillation", amount=amount)
        for amount in (1e-2, 1e-5, 1e-8):
            yield replace(case, size=size, kind="log edge", amount=amount)
        for amount in (0.0, 1.0, 1e6):
            yield replace(case, size=size, kind="flat", amount=amount)
        for amount in (1e2, 1e4, 1e8):
            yield replace(case, size=size, kind="scales", amount=amount)


Fault = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def _one(share: float) -> Fault:
    """One of the larger entries times a factor."""

    def fault(g: np.ndarray, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        found = g.copy().reshape(-1)
        large = np.flatnonzero(np.abs(found) >= 0.5 * np.abs(found).max())
        found[rng.choice(large)] *= share
        return found.reshape(g.shape)

    return fault


def _copied(g: np.ndarray, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The first row in place of the last."""
    found = g.copy()
    if len(g) > 1:
        found[-1] = g[0]
    return found


FAULTS: Mapping[str, Fault] = {
    "twice": lambda g, theta, rng: g * 2,
    "1% more": lambda g, theta, rng: g * g.dtype.type(1.01),
    "sign": lambda g, theta, rng: -g,
    "zero": lambda g, theta, rng: np.zeros_like(g),
    "transposed": lambda g, theta, rng: g.T.copy() if g.ndim == 2 and g.shape == g.T.shape else g,
    "copied": _copied,
    "rolled": lambda g, theta, rng: np.roll(g, 1),
    "decay": lambda g, theta, rng: g + g.dtype.type(0.05) * theta,
    "missing row": lambda g, theta, rng: np.where(np.arange(len(g)).reshape(-1, *[1] * (g.ndim - 1)) == 0, 0, g),
    "one entry 1% off": _one(1.01),
    "one entry twice": _one(2.0),
    "noisy": lambda g, theta, rng: (g * (1 + 0.03 * rng.standard_normal(g.shape))).astype(g.dtype),
    "constant added": lambda g, theta, rng: g + g.dtype.type(1e-3),
}
"""Errors that a handwritten gradient of one array may have."""
