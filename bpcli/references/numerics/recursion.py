"""The truth about a recursion: its rule, run in float64 on local derivatives that single complex steps have measured.

The rule's approximation is the definition and no error, so that the bound is rounding alone. As for other gradients
(see `rounding`) that is sampled: the rule on the kernels' local derivatives in float32 and in float64, at slightly
shifted arrays, and in float64 at arrays and on local derivatives that are off by a few units of roundoff of the dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from bpcli.methods._online import Steps, follow
from bpcli.methods.base import Exact, Gradient, Recursion
from bpcli.problem.definition import Array, FloatArray, Problem, Setup, cast
from bpcli.references.base import Estimate
from bpcli.references.numerics.rounding import FACTOR, Rounding, bound, rounding, unit_roundoff
from bpcli.references.perturbation.kinks import find_kinks
from bpcli.references.perturbation.measured_steps import MeasuredSteps, measured_flops
from bpcli.runtime.forward_mode import rtrl_plan
from bpcli.runtime.local_derivatives import LocalDerivatives, LocalSteps

_DOUBLE, _SINGLE = np.dtype(np.float64), np.dtype(np.float32)
# Relative shifts of the arrays; units of roundoff that local derivatives are off by, and how often.
_SHIFTS = (2.0**-20, 2.0**-14, 2.0**-8) * 3
_UNITS, _DISTURBED = 4.0, 6


@dataclass(frozen=True, eq=False)
class _Disturbed:
    """Steps whose local derivatives are off by up to `shift` of themselves."""

    steps: Steps
    shift: float
    generator: np.random.Generator

    @property
    def setup(self) -> Setup:
        return self.steps.setup

    def since(self, start: int) -> Iterator[LocalDerivatives]:
        for local in self.steps.since(start):
            factors = tuple(replace(f, delta=self._off(f.delta)) for f in local.factors)
            direct = {name: self._off(values) for name, values in local.direct.items()}
            J, q, q_before = (self._off(values) for values in (local.J, local.q, local.q_before))
            yield replace(local, J=J, q=q, q_before=q_before, factors=factors, direct=direct)

    def gradient(self, influence: Array, direct: Mapping[str, Array]) -> dict[str, Array]:
        return self.steps.gradient(influence, direct)

    def _off(self, values: Array) -> Array:
        return np.asarray(values * (1 + self.shift * (2 * self.generator.random(values.shape) - 1)))


def recursion_estimates(problem: Problem, recursion: Recursion) -> dict[str, Estimate]:
    """The rule's gradient by tensor, with the rounding that it shows in float64 as its bound.

    At a kink, where the complex step follows one branch alone, nothing is known.
    """
    double = _double(problem, recursion)
    found = {name: np.asarray(a, np.float64) for name, a in _followed(recursion, MeasuredSteps(double)).arrays.items()}
    bounds = recursion_rounding(double, recursion, _DOUBLE, found).gradient
    blind = find_kinks(problem).any
    estimates = {}
    for name, value in found.items():
        known = np.isfinite(value) & np.isfinite(bounds[name]) & (not blind)
        none = np.zeros(value.shape)
        estimates[name] = Estimate(np.where(known, value, 0.0), np.where(known, bounds[name], np.inf), none, none)
    return estimates


def recursion_rounding(
    problem: Problem, recursion: Recursion, dtype: np.dtype[np.floating], measured: Mapping[str, FloatArray]
) -> Rounding:
    """What the rule's gradient may be off by when it is computed in `dtype`; `measured` is the gradient by tensor."""
    double = _double(problem, recursion)
    sizes, spreads = _samples(double, recursion)
    disturbed, exact = _disturbed(double, recursion, unit_roundoff(dtype))
    sizes = {name: np.where(np.isfinite(size), size, np.abs(exact[name])) for name, size in sizes.items()}
    scale = max(float(np.max(size, initial=0.0, where=np.isfinite(size))) for size in sizes.values())
    each = {}
    for name, value in exact.items():
        # What is zero however the arrays are shifted has no contributions; of others these are of any size.
        nothing = (sizes[name] == 0) & (value == 0) & (measured[name] == 0)
        found = bound(sizes[name], spreads[name], np.where(nothing, 0.0, np.inf), dtype, scale)
        each[name] = np.where(np.isfinite(value), found + FACTOR * disturbed[name], np.inf)
    whole = rounding(problem, Exact().over(problem.setup), dtype)
    return Rounding(each, whole.loss, scale, {name: np.zeros(value.shape) for name, value in exact.items()})


def recursion_flops(recursion: Recursion) -> float:
    """Predicted floating-point operations of an estimate and of the bounds on rounding, but for the rule's own."""
    setup = recursion.setup
    plan = rtrl_plan(setup, False)
    once = 2.0 * plan.size * plan.size * plan.parameters * setup.T * setup.batch
    return measured_flops(setup) + (1 + 2 * (2 * len(_SHIFTS) + _DISTURBED + 1)) * once


def _double(problem: Problem, recursion: Recursion) -> Problem:
    """The problem with all that the recursion is about, of which a part may have been asked for, in float64."""
    return cast(replace(problem, setup=replace(recursion.setup, dtype=problem.setup.dtype)), _DOUBLE)


@np.errstate(all="ignore")
def _followed(recursion: Recursion, steps: Steps) -> Gradient:
    return follow(recursion.rule, steps, recursion.options, recursion.draws)


def _by_kernels(recursion: Recursion, problem: Problem) -> dict[str, FloatArray]:
    found = _followed(recursion, LocalSteps(problem)).arrays
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


def _samples(double: Problem, recursion: Recursion) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """By tensor, the mean absolute value of the gradient and the root mean square of its rounding in float32."""
    generator = np.random.default_rng(0)
    sizes = {x.name: np.zeros(x.shape) for x in double.setup.wrt}
    roots = {x.name: np.zeros(x.shape) for x in double.setup.wrt}
    with np.errstate(all="ignore"):
        for shift in _SHIFTS:
            single = cast(_shifted(double, shift, generator), _SINGLE)
            rounded, exact = _by_kernels(recursion, single), _by_kernels(recursion, cast(single, _DOUBLE))
            for name in sizes:
                sizes[name] += np.abs(exact[name]) / len(_SHIFTS)
                roots[name] = np.hypot(roots[name], (rounded[name] - exact[name]) / len(_SHIFTS) ** 0.5)
    return sizes, roots


def _disturbed(
    double: Problem, recursion: Recursion, roundoff: float
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """By tensor, the root mean square of what shifts of all numbers by one unit of `roundoff` do; and the gradient."""
    generator, base = np.random.default_rng(1), _by_kernels(recursion, double)
    roots = {name: np.zeros(values.shape) for name, values in base.items()}
    with np.errstate(all="ignore"):
        for _ in range(_DISTURBED):
            shift = _UNITS * roundoff
            steps = _Disturbed(LocalSteps(_shifted(double, shift, generator)), shift, generator)
            found = _followed(recursion, steps).arrays
            for name in base:
                roots[name] = np.hypot(roots[name], (found[name] - base[name]) / (_UNITS * _DISTURBED**0.5))
    return roots, base


def _shifted(problem: Problem, shift: float, generator: np.random.Generator) -> Problem:
    """Each number off by up to `shift` of itself, so that it rounds differently."""
    groups = (
        {name: np.asarray(a * (1 + generator.uniform(-shift, shift, a.shape))) for name, a in group.items()}
        for group in problem.arrays
    )
    return Problem(problem.setup, *groups)
