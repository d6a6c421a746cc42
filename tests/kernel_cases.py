"""What the tests of kernels and methods share: specs made small, their gradients by loops, a measure of distance."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import naive
import numpy as np

from bpcli.methods import parse
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Tensor
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup
from bpcli.references.perturbation.perturbed import Perturbed

Array = np.ndarray[Any, Any]
Words = tuple[str, ...]
NO_OVERRIDES: Mapping[str, object] = {}

SPECS = Path(__file__).parents[1] / "specs"
LIMITS = Limits(max_memory=1 << 30)
EVERYTHING = ("params", "inputs", "state")
SMALL = {"n": 3, "n1": 2, "n2": 3, "n_in": 2, "n_hidden": 3, "n_mid": 3, "m": 2, "T": 4, "batch": 3}
FEED_FORWARD = (
    "classifier", "elementwise", "exercise", "linear", "many_to_many", "residual_mlp", "square", "tied_autoencoder",
)  # fmt: skip
RECURRENT = ("gru", "indrnn", "leaky_rnn", "lru", "lstm", "masked_rnn", "stacked_rnn", "vanilla_rnn")
EXACT = ("bptt", "rtrl", "rtrl-block:h=3", "rtrl-dense", "rtrl-sparse", "sqrt", "revolve:s=2")
TRUNCATED = (
    "tbptt:k1=1,k2=1", "tbptt:k1=1,k2=3", "tbptt:k1=2,k2=3", "tbptt:k1=3,k2=3", "tbptt:k1=5,k2=9",
    "ebptt:2", "ebptt:3", "fbptt:2",
)  # fmt: skip


def problem_of(path: Path, overrides: Mapping[str, object] = NO_OVERRIDES, wrt: Words = EVERYTHING) -> Problem:
    """The problem of a spec with those overrides that it knows; `wrt` less the kinds that it lacks."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))  # reading them takes a fifth of loading the spec
    known = {"batch", "dtype", "seed", *tables.get("dims", ()), *tables.get("constants", ())}
    known |= {"T"} if tables.get("state") else set()
    chosen = tuple(word for word in wrt if word not in EVERYTHING or tables.get(word))
    return draw(open_setup(path, {k: v for k, v in overrides.items() if k in known}, chosen, LIMITS))


def written(folder: Path, text: str, overrides: Mapping[str, object] = NO_OVERRIDES) -> Problem:
    """The problem of a spec's text."""
    path = folder / "spec.toml"
    path.write_text(text, encoding="utf-8")
    return problem_of(path, overrides)


@cache
def small(name: str, dtype: str = "float64") -> Problem:
    """A shipped spec at a size that loops can do."""
    return problem_of(SPECS / f"{name}.toml", {**SMALL, "dtype": dtype})


def loops(problem: Problem) -> dict[str, Any]:
    """The arrays as the loop-only twin takes them."""
    masks = {}
    for tensor in problem.setup.wrt:
        if tensor.pattern is not None:
            masks[tensor.name] = np.zeros(tensor.shape, bool)
            masks[tensor.name].ravel()[tensor.pattern] = True
    arrays = {"params": dict(problem.params), "inputs": dict(problem.inputs), "state": dict(problem.state)}
    return {**arrays, "mask": masks} if masks else arrays


def expected(problem: Problem, method: str) -> dict[str, Array]:
    """What the method is meant to compute, by loops."""
    spec, arrays = problem.setup.spec, loops(problem)
    if method in ("backprop", *EXACT):
        return naive.bptt(spec, arrays) if problem.setup.graph.recurrent else naive.backprop(spec, arrays)
    name, numbers = method.split(":")[0], [int(number) for number in re.findall(r"\d+$|(?<==)\d+", method)]
    if name == "ebptt":
        return naive.ebptt(spec, arrays, *numbers)
    k1, k2 = {"tbptt": numbers, "fbptt": [1, *numbers]}[name]
    return naive.tbptt(spec, arrays, k1, k2)


def gradient(problem: Problem, method: str) -> Gradient:
    """The gradient by a method as written in a spec."""
    return parse(method).gradient(problem)


def by_copies(problem: Problem, method: str, step: complex) -> dict[str, Array]:
    """What the method is meant to compute, from perturbed copies: by a complex step, or by a central difference."""
    perturbed = Perturbed(problem, parse(method).definition(problem.setup).over(problem.setup), np.dtype(type(step)))
    return {x.name: _by_copies(problem, perturbed, x, step) for x in problem.setup.wrt}


def _by_copies(problem: Problem, perturbed: Perturbed, x: Tensor, step: complex) -> Array:
    """One tensor's; where every sample has entries of its own, all samples are changed at once."""
    setup = problem.setup
    own = x.kind == "input" or (x.kind == "state" and x.name not in setup.shared)
    steps = setup.T if x.kind == "input" else 1
    count = int(np.prod(x.shape)) // (setup.batch if own else 1)
    entries = np.arange(count) if x.pattern is None else x.pattern
    changed = np.full(len(entries), step)
    losses = perturbed.losses(x, entries, changed)
    if isinstance(step, float):
        slopes = (losses - perturbed.losses(x, entries, -changed)) / (2 * step)
    else:
        slopes = losses.imag / step.imag
    if own:
        return slopes.reshape(steps, -1, setup.batch).swapaxes(1, 2).reshape(x.shape)
    result = np.zeros(count)
    result[entries] = slopes.sum(axis=1)
    return result.reshape(x.shape)


def distance(first: Mapping[str, Array], second: Mapping[str, Array]) -> float:
    """The largest difference of any tensor, relative to the largest entry of the second's; NaN where there is one."""
    ratios = []
    for name, values in first.items():
        other = np.asarray(second[name], np.float64)
        assert values.shape == other.shape
        ratios.append(np.abs(values - other).max() / (np.abs(other).max() or 1.0))
    return float(np.max(ratios))
