"""Evals of GradBench (https://github.com/gradbench/gradbench) that equations can express, as specs with their arrays.

Each eval has a function for the value and one for the gradient, of one input in JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from bpcli.errors import BpError, Diagnostic, Place, fail, nearest, printable
from bpcli.problem.array_files import write_npz
from bpcli.problem.definition import Array

Vector = Annotated[list[FiniteFloat], Field(min_length=1)]
Rows = Annotated[list[list[FiniteFloat]], Field(min_length=1)]
_HELP = "the README of the eval in GradBench describes its input"


@dataclass(frozen=True)
class Workload:
    """A spec with the arrays that it reads: parameters, and data with initial states, each by its name."""

    text: str
    params: Mapping[str, Array]
    data: Mapping[str, Array]

    def write(self, folder: Path) -> Path:
        """Write the spec and its arrays into `folder`; returns the path of the spec."""
        write_npz(folder / "weights.npz", self.params)
        source = "batch = 1"
        if self.data:
            write_npz(folder / "data.npz", self.data)
            source = 'file = "data.npz"'
        path = folder / "spec.toml"
        path.write_text(f'{self.text}\n[weights]\nfile = "weights.npz"\n[data]\n{source}\n', encoding="utf-8")
        return path


class Runs(BaseModel):
    """The runs that an eval asks for: at least so many, and until so many seconds have passed."""

    min_runs: int = Field(1, ge=1)
    min_seconds: FiniteFloat = Field(0.0, ge=0)


@dataclass(frozen=True)
class Eval:
    """An eval: its functions for the value and the gradient, its input, and the way between JSON and arrays.

    `state` is the equation whose last value is the function's, "" where that is the loss. `join` makes the output of
    gradients by name, and `split` gradients of an output; it raises `ValueError` where the output does not fit.
    """

    value: str
    gradient: str
    model: type[Runs]
    workload: Callable[[Any], Workload]
    join: Callable[[Any, Mapping[str, Array]], Any]
    split: Callable[[Any, Any], dict[str, Array]]
    state: str = ""


class Number(Runs):
    """The input of `hello`: a number by itself."""

    x: FiniteFloat


class Points(Runs):
    """The input of `lse`."""

    x: Vector


class LeastSquares(Points):
    """The input of `llsq`: coefficients, and the number of points."""

    n: int = Field(ge=2, le=1 << 24)


class Steps(Points):
    """The input of `ode`: rates, and the number of steps."""

    s: int = Field(ge=1, le=1 << 24)


class Sequence(Runs):
    """The input of `lstm`: rows of weights and biases in turn, of hidden and cell states in turn, and of characters."""

    main_params: Rows
    extra_params: Rows
    state: Rows
    sequence: Rows


class Mixture(Runs):
    """The input of `gmm`."""

    d: int = Field(ge=1)
    k: int = Field(ge=1)
    n: int = Field(ge=1)
    x: Rows
    m: int = Field(ge=0)
    gamma: FiniteFloat = Field(gt=0)
    alpha: Vector
    mu: Rows
    q: Rows
    l: list[list[FiniteFloat]]  # noqa: E741  the name in GradBench


def _array(rows: object, shape: tuple[int, ...], name: str) -> Array:
    """Rows as an array. Raises ValueError where they have another shape."""
    try:
        array: Array = np.array(rows, dtype=np.float64).reshape(-1, *shape[1:]) if shape[1:] else np.array(rows, float)
    except (ValueError, TypeError):
        array = np.zeros(0)
    if array.shape != shape:
        raise ValueError(f'"{name}" should be {" by ".join(map(str, shape))} numbers')
    return array


def _squared(given: Number) -> Workload:
    text = 'bp = 1\n[params]\nx = []\n[equations]\nloss = "x**2"'
    return Workload(text, {"x": np.array(given.x)}, {})


def _log_sum_exp(given: Points) -> Workload:
    text = f'bp = 1\n[params]\nx = [{len(given.x)}]\n[equations]\nloss = "logsumexp(x)"'
    return Workload(text, {"x": np.array(given.x, float)}, {})


def _least_squares(given: LeastSquares) -> Workload:
    """Every point is a sample, and the powers of t are data."""
    m = len(given.x)
    t = -1.0 + 2.0 * np.arange(given.n) / (given.n - 1)
    text = f"""bp = 1
inputs = {{ s = [], powers = [{m}] }}
params = {{ x = [{m}] }}
[equations]
loss = "0.5 * (s - dot(powers, x))**2"
[objective]
over_batch = "sum"
"""
    return Workload(text, {"x": np.array(given.x, float)}, {"s": np.sign(t), "powers": t[:, None] ** np.arange(m)})


def _runge_kutta(given: Steps) -> Workload:
    """y' = f(y) over 2 units of time, with f_0 = x_0 and f_i = x_i y_(i-1)."""
    n = len(given.x)
    f = f"x * concat(1, {{}}[0:{n - 1}])" if n > 1 else "x + 0 * {}"
    text = f"""bp = 1
constants = {{ h = {2.0 / given.s!r} }}
inputs = {{ unused = [] }}
params = {{ x = [{n}] }}
state = {{ y = [{n}] }}
[equations]
k1 = "{f.format("y[t-1]")}"
y1 = "y[t-1] + h / 2 * k1"
k2 = "{f.format("y1")}"
y2 = "y[t-1] + h / 2 * k2"
k3 = "{f.format("y2")}"
y3 = "y[t-1] + h * k3"
k4 = "{f.format("y3")}"
y = "y[t-1] + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)"
loss = "y[{n - 1}] + 0 * unused"
[objective]
over_time = "last"
"""
    return Workload(text, {"x": np.array(given.x, float)}, {"unused": np.zeros((given.s, 1))})


def _layers(given: Sequence) -> tuple[int, int]:
    """The number of layers, and that of units."""
    return len(given.main_params) // 2, len(given.extra_params[0])


def _lstm(given: Sequence) -> Workload:
    """An LSTM of ADBench, with diagonal weights, that predicts the next character."""
    layers, b = _layers(given)
    main = _array(given.main_params, (2 * layers, 4 * b), "main_params")
    extra = _array(given.extra_params, (3, b), "extra_params")
    state = _array(given.state, (2 * layers, b), "state")
    characters = _array(given.sequence, (len(given.sequence), b), "sequence")
    if not layers or len(given.main_params) % 2 or len(characters) < 2:
        raise ValueError("a layer has two rows of main_params, and a sequence two characters or more")
    params: dict[str, Array] = {}
    equations, below = [], "E0 * x"
    for i in range(layers):
        params |= {f"W{i}": main[2 * i], f"B{i}": main[2 * i + 1]}
        weighted = [f"W{i}[{s}] * {{}} + B{i}[{s}]" for s in ("0:b", "b:2*b", "2*b:3*b", "3*b:4*b")]
        hidden = f"h{i}[t-1]"
        equations += [
            f'u{i} = "{below}"',
            f'f{i} = "sigmoid({weighted[0].format(f"u{i}")})"',
            f'i{i} = "sigmoid({weighted[1].format(hidden)})"',
            f'o{i} = "sigmoid({weighted[2].format(f"u{i}")})"',
            f'g{i} = "tanh({weighted[3].format(hidden)})"',
            f'c{i} = "f{i} * c{i}[t-1] + i{i} * g{i}"',
            f'h{i} = "o{i} * tanh(c{i})"',
        ]
        below = f"h{i}"
    params |= {f"E{j}": extra[j] for j in range(3)}
    shapes = {name: "[4*b]" if name[0] in "WB" else "[b]" for name in params}
    text = f"""bp = 1
dims = {{ b = {b} }}
inputs = {{ x = ["b"], next = ["b"] }}
params = {{ {", ".join(f'{n} = ["{s[1:-1]}"]' for n, s in shapes.items())} }}
state = {{ {", ".join(f'h{i} = ["b"], c{i} = ["b"]' for i in range(layers))} }}
[equations]
{chr(10).join(equations)}
y = "E1 * {below} + E2"
loss = "-dot(next, y - log(sum(exp(y)) + 2)) / b"
[objective]
over_time = "mean"
"""
    starts = {f"{'hc'[j % 2]}{j // 2}": state[j] for j in range(2 * layers)}
    return Workload(text, params, {"x": characters[:-1, None], "next": characters[1:, None], **starts})


def _lstm_names(given: Sequence) -> list[str]:
    return [*(f"{kind}{i}" for i in range(_layers(given)[0]) for kind in "WB"), "E0", "E1", "E2"]


def _lstm_rows(given: Sequence, output: Any) -> dict[str, Array]:
    layers, b = _layers(given)
    flat = _array(output, (8 * layers * b + 3 * b,), "jacobian")
    ends = np.cumsum([4 * b] * (2 * layers) + [b] * 3)
    return dict(zip(_lstm_names(given), np.split(flat, ends[:-1]), strict=True))


def _mixture(given: Mixture) -> Workload:
    """A mixture of normal distributions with a Wishart prior, by the README's simplified formulas."""
    from scipy.special import multigammaln

    d, k, count = given.d, given.k, given.n
    wishart = d + given.m + 1
    constant = wishart * d * (math.log(given.gamma) - 0.5 * math.log(2)) - float(multigammaln(0.5 * wishart, d))
    offset = k * constant / count - 0.5 * d * math.log(2 * math.pi)
    rows = {name: _array(getattr(given, name), (k, d), name) for name in ("mu", "q")}
    lower = _array(given.l, (k, d * (d - 1) // 2), "l") if d > 1 else np.zeros((k, 0))
    params = {"alpha": _array(given.alpha, (k,), "alpha"), "M": np.tri(d, k=-1)}
    equations = []
    for j in range(k):
        params |= {f"mu{j}": rows["mu"][j], f"q{j}": rows["q"][j], f"L{j}": _lower(lower[j], d)}
        equations += [
            f'M{j} = "M * L{j}"',
            f'v{j} = "x - mu{j}"',
            f'z{j} = "exp(q{j}) * v{j} + M{j} @ v{j}"',
            f'b{j} = "alpha[{j}] + sum(q{j}) - 0.5 * dot(z{j}, z{j})"',
            f'p{j} = "m * sum(q{j}) - 0.5 * gamma**2 * (sum(exp(q{j})**2) + sum(M{j}**2))"',
        ]
    declared = ", ".join(f'mu{j} = ["d"], q{j} = ["d"], L{j} = ["d", "d"]' for j in range(k))
    beta, prior = (", ".join(f"{letter}{j}" for j in range(k)) for letter in "bp")
    text = f"""bp = 1
dims = {{ d = {d}, k = {k} }}
constants = {{ m = {given.m}, gamma = {given.gamma!r}, count = {count}, offset = {offset!r} }}
inputs = {{ x = ["d"] }}
params = {{ alpha = ["k"], M = {{ shape = ["d", "d"], trainable = false }}, {declared} }}
[equations]
{chr(10).join(equations)}
betas = "concat({beta})"
priors = "concat({prior})"
loss = "logsumexp(betas) - logsumexp(alpha) + offset + sum(priors) / count"
[objective]
over_batch = "sum"
"""
    if k == 1:
        text = text.replace("concat(b0)", "b0").replace("concat(p0)", "p0")
    return Workload(text, params, {"x": _array(given.x, (count, d), "x")})


def _lower(column: Array, d: int) -> Array:
    """The strictly lower triangle that `column` fills column by column."""
    matrix = np.zeros((d, d))
    matrix.T[np.triu_indices(d, 1)] = column
    return matrix


def _mixture_rows(given: Mixture, arrays: Mapping[str, Array]) -> dict[str, Any]:
    inside = np.triu_indices(given.d, 1)
    rows = {name: [arrays[f"{name}{j}"].tolist() for j in range(given.k)] for name in ("mu", "q")}
    return {
        "alpha": arrays["alpha"].tolist(), **rows, "l": [arrays[f"L{j}"].T[inside].tolist() for j in range(given.k)]
    }  # fmt: skip


def _mixture_split(given: Mixture, output: Any) -> dict[str, Array]:
    if not isinstance(output, dict) or not {"alpha", "mu", "q", "l"} <= output.keys():
        raise ValueError("a gradient of gmm has alpha, mu, q and l")
    d, k = given.d, given.k
    found = {"alpha": _array(output["alpha"], (k,), "alpha")}
    lower = _array(output["l"], (k, d * (d - 1) // 2), "l") if d > 1 else np.zeros((k, 0))
    for name in ("mu", "q"):
        found |= {f"{name}{j}": row for j, row in enumerate(_array(output[name], (k, d), name))}
    return found | {f"L{j}": _lower(lower[j], d) for j in range(k)}


def _one(given: Any, arrays: Mapping[str, Array]) -> Any:
    return arrays["x"].tolist()


def _x(given: Any, output: Any) -> dict[str, Array]:
    shape = np.shape(given.x)
    return {"x": _array(output, shape, "gradient")}


EVALS: Mapping[str, Eval] = {
    "gmm": Eval("objective", "jacobian", Mixture, _mixture, _mixture_rows, _mixture_split),
    "hello": Eval("square", "double", Number, _squared, _one, _x),
    "llsq": Eval("primal", "gradient", LeastSquares, _least_squares, _one, _x),
    "lse": Eval("primal", "gradient", Points, _log_sum_exp, _one, _x),
    "lstm": Eval(
        "objective", "jacobian", Sequence, _lstm,
        lambda given, arrays: np.concatenate([arrays[n] for n in _lstm_names(given)]).tolist(), _lstm_rows,
    ),
    "ode": Eval("primal", "gradient", Steps, _runge_kutta, _one, _x, state="y"),
}  # fmt: skip
"""The evals by their names, which are those of their modules too."""


def eval_of(module: str) -> Eval:
    """The eval that defines a module. Raises BpError where equations do not express it."""
    if module not in EVALS:
        what = f'the module "{printable(module)}" is not one that bp has equations for'
        fail("unknown-module", what, help=nearest(module, EVALS))
    return EVALS[module]


def parse_input(found: Eval, given: Any) -> Any:
    """The input of an eval, validated; a number by itself is that of `hello`. Raises BpError where it does not fit."""
    wrapped = {"x": given} if found.model is Number else given
    try:
        return found.model.model_validate(wrapped, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"][:3])) or "input"
        fail("bad-input", f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}", help=_HELP)


def workload_of(found: Eval, given: Any) -> Workload:
    """The spec of an eval's input with its arrays. Raises BpError where their shapes do not fit."""
    try:
        return found.workload(given)
    except (ValueError, IndexError) as error:
        fail("bad-input", printable(str(error)), help=_HELP)


def at(error: BpError, place: Place) -> BpError:
    """The same refusals at a line of a log or of stdin."""
    return BpError([Diagnostic(d.code, d.what, place, help=d.help) for d in error.diagnostics], error.exit_code)
