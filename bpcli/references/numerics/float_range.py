"""How much rounding a correct gradient may show: sums of absolute contributions, entry by entry.

What the range of floats takes from a gradient: digits that underflow, and all of it where a value overflows.

A pass backwards is linear in what it starts from, to the last bit where that is a power of two and no number leaves the
range: what differs then is what the range took from cotangents. Of values on the way forwards there is no such scale:
those below the normal numbers are off by the smallest of all, and what that makes of the gradient is what they lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bpcli.problem.definition import Array, Problem, Tensor, cast
from bpcli.references.numerics.derivatives import Mask
from bpcli.references.numerics.probe import FloatArray
from bpcli.references.perturbation.tangent import ALONG
from bpcli.runtime.evaluation import node_values
from bpcli.runtime.reverse_mode import Window, unrolled

_DOUBLE = np.dtype(np.float64)


def magnitude(
    problem: Problem, windows: Sequence[Window], dtype: np.dtype[np.floating] = _DOUBLE, seed: float = 1.0
) -> dict[str, Array]:
    """For every tensor of the setup, in `dtype`, sums over all paths of |contribution| to each entry of the gradient.

    What a kernel's rounding may change is about unit roundoff times this. Slopes count with the rounding of their own
    evaluation, so saturated units are not taken for exact; a path that is exactly nothing counts as nothing. Losses
    count `seed` times. Infinity times nothing is NaN here, while gradients take it for nothing.
    """
    own = cast(problem, dtype)
    return unrolled(own.setup, tuple(windows)).gradient(own, rounding=True, seed=seed)[1]


PASSES = 4
"""Passes over the network that `float_range` takes where nothing leaves the range."""
# Powers of two by which losses are multiplied: the largest counts that does not overflow.
_SEEDS = (2.0**1000, 2.0**700, 2.0**400, 2.0**100)
# The power of the smallest normal number with which nothing overflows that has no infinite factor.
_LOW = 0.9
_DOUBLE = np.dtype(np.float64)
_NORMAL, _SUBNORMAL = (float(x) for x in (np.finfo(np.float64).tiny, np.finfo(np.float64).smallest_subnormal))
# What the sum of all influences may be less than one of them, by cancelling.
_MANY = 1e6
# How many times as much shows whether a change is in proportion to what was lost; changes that are nothing.
_MORE, _NOTHING = 2.0**40, 1e3 * _SUBNORMAL


@dataclass(frozen=True, eq=False)
class FloatRange:
    """By tensor: `magnitudes` as of `magnitude`, zero where there is no contribution that underflows either; what
    underflow takes from each entry in float64, `lost`; and the entries of which overflow leaves nothing, `left`."""

    magnitudes: Mapping[str, FloatArray]
    lost: Mapping[str, FloatArray]
    left: Mapping[str, Mask]


def float_range(
    problem: Problem, windows: tuple[Window, ...], exact: Mapping[str, FloatArray], dtype: np.dtype[np.floating]
) -> FloatRange:
    """What the range takes from the gradient `exact` in float64, and where that of `dtype` does not hold it.

    Warnings of NumPy are for the caller to keep silent.
    """
    double = cast(problem, _DOUBLE)
    sizes = magnitude(problem, windows)
    if any((m == 0).any() for m in sizes.values()):
        # A path that underflows is not nothing.
        raised = magnitude(problem, windows, seed=_SEEDS[0])
        sizes = {name: np.where((m == 0) & (raised[name] != 0), _NORMAL, m) for name, m in sizes.items()}
    parts = (_of_cotangents(double, windows, exact), _of_values(double, windows, exact))
    lost = {name: np.fmax(*(part[name] for part in parts)) for name in sizes}
    lost = {name: np.where((sizes[name] == 0) & (part <= _NOTHING), 0.0, part) for name, part in lost.items()}
    own: Mapping[str, Array] = sizes
    here: Mapping[str, Array] = exact
    if dtype != _DOUBLE:
        single = cast(problem, dtype)
        own, here = magnitude(problem, windows, dtype), unrolled(single.setup, windows).gradient(single)[1]
    left = {name: ~np.isfinite(here[name]) for name in sizes}
    if not all(np.isfinite(m).all() for m in own.values()):
        # In the short range of float32 sums of |J| overflow from little, too, where saturated units leave exactly zero.
        little, zero = _from_little(problem, windows, dtype), dtype != _DOUBLE
        left = {n: left[n] | (~np.isfinite(m) & ~(zero & (here[n] == 0))) for n, m in little.items()}
    return FloatRange({name: m.astype(np.float64) for name, m in sizes.items()}, lost, left)


def overflows(problem: Problem, windows: tuple[Window, ...]) -> bool:
    """Whether some value of a pass forwards or backwards, towards any leaf, or an influence on a state leaves the range
    of the problem's dtype.

    What is not finite then may come of right rules, which multiply it with nothing in this order or another.
    """
    leaves = (
        *(Tensor(name, "param", a.shape) for name, a in problem.params.items()),
        *(Tensor(name, "input", a.shape) for name, a in problem.inputs.items()),
        *(Tensor(name, "state", a.shape) for name, a in problem.state.items()),
    )
    every = replace(problem, setup=replace(problem.setup, wrt=leaves))
    with np.errstate(all="ignore"):
        low = _from_little(every, windows, every.setup.dtype)
        here = unrolled(every.setup, windows).gradient(every)[1]
        return not all(bool(np.isfinite(a).all()) for a in (*low.values(), *here.values(), *_influences(problem)))


def _influences(problem: Problem) -> list[FloatArray]:
    """What all leaves together make of the states at every step, infinite where the dtype can't hold it."""
    generator, setup = np.random.default_rng(0), problem.setup
    wide = cast(problem, np.dtype(np.complex128))
    moved = (
        {n: a + ALONG * 1j * generator.uniform(0.5, 1.5, a.shape) for n, a in group.items()} for group in wide.arrays
    )
    states = sorted(setup.graph.new.values())
    found = node_values(Problem(wide.setup, *moved), states) if states else {}
    most = float(np.finfo(setup.dtype).max) / _MANY
    return [np.where(np.abs(a.imag) / ALONG <= most, 0.0, np.inf) for a in found.values()]


def _from_little(problem: Problem, windows: tuple[Window, ...], dtype: np.dtype[np.floating]) -> dict[str, Array]:
    """Magnitudes from a tiny start: sums of |J| may overflow where gradients do not, but from so little only where a
    factor is infinite."""
    return magnitude(problem, windows, dtype, seed=float(np.finfo(dtype).tiny) ** _LOW)


def _of_cotangents(
    double: Problem, windows: tuple[Window, ...], exact: Mapping[str, FloatArray]
) -> dict[str, FloatArray]:
    """By tensor, what underflow takes on the way back; nothing where no larger start is without overflow."""
    lost = {name: np.full(a.shape, np.nan) for name, a in exact.items()}
    for seed in _SEEDS:
        raised = unrolled(double.setup, windows).gradient(double, seed=seed)[1]
        for name, found in raised.items():
            lost[name] = np.where(np.isfinite(lost[name]), lost[name], np.abs(found / seed - exact[name]))
        if all(np.isfinite(lost[name]).all() for name in raised):
            break
    return {name: np.where(np.isfinite(part), part, 0.0) for name, part in lost.items()}


def _of_values(double: Problem, windows: tuple[Window, ...], exact: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """By tensor, what underflow takes on the way forwards: what the gradient changes by where values below the normal
    numbers are less by the smallest one. A change that is not in proportion is that of a branch."""

    def changes(off: float) -> dict[str, FloatArray]:
        def fade(values: Array) -> None:
            values[np.abs(values) < _NORMAL] -= off

        found = unrolled(double.setup, windows).gradient(double, disturb=fade)[1]
        return {name: np.nan_to_num(np.abs(a - exact[name]), nan=0.0, posinf=0.0) for name, a in found.items()}

    more = changes(_MORE * _SUBNORMAL)
    if all((part <= _MORE * _NOTHING).all() for part in more.values()):
        return {name: part / _MORE for name, part in more.items()}
    once = changes(_SUBNORMAL)
    return {n: np.where(part <= more[n] / _MORE**0.5, more[n] / _MORE, 0.0) for n, part in once.items()}
