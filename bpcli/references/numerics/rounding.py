"""Bounds on the rounding error of a correct gradient, by sampling, and on its losses to underflow and overflow.

Worst-case bounds (products of absolute Jacobians) grow exponentially with the number of steps and soon excuse any
gradient. Rounding is sampled instead, in two ways, and the bound is the sum of both. First, both passes are run in
float32 and in float64 on the same slightly shifted arrays: the difference is the error of float32, which is linear in
unit roundoff and is scaled to the dtype in question. It is not linear where a unit saturates (1 - a² is off by a unit
of roundoff however small it is), and not known where float32 loses all digits of a difference. Second, therefore, every
array entry, every intermediate result and every cotangent is disturbed by a few units of roundoff of the very dtype
(Parker, "Monte Carlo arithmetic", 1997).

Underflow is measured by scaling. A reverse pass is linear in the loss adjoints it starts from, and exactly so for
powers of two unless a number leaves the range of floats: a difference is the loss of cotangents to underflow. Forward
mode is linear in the influence, whose loss is measured in the same way. Forward values cannot be scaled; those below
the normal numbers are shifted by the smallest number instead, and the change of the gradient is their loss. Where a
value overflows, a correct gradient may be anything.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bpcli.problem.definition import Array, Problem, Setup, Tensor, cast
from bpcli.references.numerics.derivatives import Mask
from bpcli.references.numerics.probe import FloatArray
from bpcli.references.perturbation.jumps import jumps, pinned
from bpcli.references.perturbation.kinks import ALIKE, slopes_of
from bpcli.runtime.evaluation import node_values
from bpcli.runtime.local_derivatives import LocalSteps, influence_layout
from bpcli.runtime.reverse_mode import Unrolled, Window, staircase, unrolled
from bpcli.runtime.trace import Disturbance
from bpcli.tape.lowering import LEAVES

# Multiples of the sampled standard deviation, and of one rounding of the result, that a correct gradient may be off by;
# with a dozen samples a Gaussian error exceeds the first in fewer than one of 10⁹ entries.
FACTOR = 32.0
# Relative shifts of the arrays. A saturated unit hardly moves under a small one, and would always round the same way.
_SHIFTS = (2.0**-20, 2.0**-14, 2.0**-8) * 4
# Units of roundoff of a disturbance, enough to stand out from the rounding of the passes themselves; and samples.
UNITS, _DISTURBED = 4.0, 8
# Where float32 loses this much of an entry it is no longer linear in unit roundoff.
_LINEAR = 1e-2
# Roundings of the tensor's largest entry that any entry with as large contributions may show, over FACTOR.
_SATURATED = 1 / 8
_UNDERFLOWS = 1e3
# Roundings of the loss that a gradient which is zero by cancellation may show, at a minimum for instance.
_CANCELLED = 1e5
# A bound of so many roundings, or such a part, of the largest gradients near by leaves no doubt that they are like it.
_SURE, _AT_MOST = 1e6, 1e-2
_LOSS = ""  # beside the names of tensors
# Below it float32 is not what numbers are rounded to.
_SMALLEST = float(np.finfo(np.float32).tiny)
_SINGLE = np.dtype(np.float32)
_DOUBLE = np.dtype(np.float64)


def unit_roundoff(dtype: np.dtype[np.floating]) -> float:
    """Unit roundoff, half the distance from 1 to the next larger number."""
    return float(np.finfo(dtype).eps) / 2


@dataclass(frozen=True, eq=False)
class Rounding:
    """Rounding bounds of each entry of the gradient, by tensor, and of the loss.

    `scale` is the largest entry of the gradient, averaged over the samples, or at the point itself if rounding makes
    samples unreliable, and at least the rounding of a loss that cancels. A bound beyond `scale` is uninformative.
    `lost` is the part of the bounds due to underflow, `terms` one rounding of the terms that each entry is a sum of.
    """

    gradient: Mapping[str, FloatArray]
    loss: float
    scale: float
    lost: Mapping[str, FloatArray]
    terms: Mapping[str, FloatArray]


@functools.lru_cache(maxsize=2)
def rounding(problem: Problem, windows: tuple[Window, ...], dtype: np.dtype[np.floating]) -> Rounding:
    """Rounding bounds for the gradient defined by `windows` when it is computed in `dtype`.

    The bound of an entry without contributions is exactly zero. It is infinite where an intermediate value leaves the
    range of `dtype`. At a kink a shift would select a slope, which is no rounding: the bound is then the maximum over
    the slopes that programs choose. Where an argument of `step` is zero within rounding it is infinite; elsewhere all
    samples are on the side that the program takes.
    """
    if jumps(problem):
        known = _rounding(problem, windows, dtype)
        return replace(known, gradient={n: np.full_like(b, np.inf) for n, b in known.gradient.items()}, loss=np.inf)
    problem = pinned(problem)
    slopes = slopes_of(problem)
    if slopes is None:
        return _rounding(problem, windows, dtype)
    each = [_rounding(slopes.chosen(share), windows, dtype) for share in ALIKE]
    gradient, lost, terms = (
        {name: functools.reduce(extreme, [part[name] for part in parts]) for name in parts[0]}
        for extreme, parts in (
            (np.maximum, [r.gradient for r in each]),
            (np.maximum, [r.lost for r in each]),
            (np.fmin, [r.terms for r in each]),
        )
    )
    return Rounding(
        gradient, float(np.max([r.loss for r in each])), float(np.max([r.scale for r in each])), lost, terms
    )


def _rounding(problem: Problem, windows: tuple[Window, ...], dtype: np.dtype[np.floating]) -> Rounding:
    with np.errstate(all="ignore"):
        sizes, spreads = _samples(problem, windows)
        disturbed, exact = _disturbed(problem, windows, unit_roundoff(dtype))
        known = float_range(problem, windows, exact, dtype)
        lost = {name: FACTOR * part for name, part in known.lost.items()}
        if dtype == _DOUBLE:  # whose numbers may be beyond the range of float32, in which the others were sampled
            sizes = {
                name: np.where(np.isfinite(size) & (size > _SMALLEST), size, np.abs(exact[name]))
                for name, size in sizes.items()
            }
        each = {
            name: bound(sizes[name], spreads[name], m, dtype, _natural(problem, name, sizes[_LOSS]))
            + FACTOR * disturbed[name]
            + lost[name]
            for name, m in known.magnitudes.items()
        }
        each = {name: np.where(known.left[name], np.inf, size) for name, size in each.items()}
        loss = bound(sizes[_LOSS], spreads[_LOSS], sizes[_LOSS], dtype) + FACTOR * disturbed[_LOSS]
        largest, unsure, here = (_largest(problem.setup, arrays) for arrays in (sizes, each, exact))
        if not unsure <= min(_SURE * unit_roundoff(dtype), _AT_MOST) * largest:
            # In a chaotic network samples are of any size, and no measure of the gradient at the point.
            largest = min(largest, here)
        # Gradients are losses per unit of what they are taken by, which may be huge.
        natural = [float(np.max(_natural(problem, n, sizes[_LOSS]), initial=0.0)) for n in known.magnitudes]
        of_loss = min(float(sizes[_LOSS]), max(natural, default=0.0))
        scale = max(largest, _CANCELLED * unit_roundoff(dtype) * of_loss)
        terms = {name: unit_roundoff(dtype) * m for name, m in known.magnitudes.items()}
        return Rounding(each, float(loss), scale, lost, terms)


def _natural(problem: Problem, name: str, loss: FloatArray) -> FloatArray:
    """Natural size of derivatives: the loss over the entry, or the loss for entries that are zero."""
    tensor = next(t for t in problem.setup.wrt if t.name == name)
    size = np.abs(np.asarray(problem.array(tensor), np.float64))
    return np.asarray(loss / np.where(size > 0, size, 1.0))


def _largest(setup: Setup, arrays: Mapping[str, FloatArray]) -> float:
    """The largest absolute value among the arrays of all tensors; NaN where none is a number."""
    sizes = np.concatenate([np.zeros(0), *(np.abs(arrays[t.name]).ravel() for t in setup.wrt if t.entries)])
    known = sizes[~np.isnan(sizes)]
    return float(known.max()) if known.size else float("nan") if sizes.size else 0.0


def rounding_flops(setup: Setup, windows: tuple[Window, ...]) -> float:
    """Predicted floating-point operations of `rounding`: its samples, and `float_range`."""
    return (2 * len(_SHIFTS) + _DISTURBED + 1 + PASSES) * unrolled(setup, windows).flops


def bound(
    size: FloatArray,
    spread: FloatArray,
    magnitude: FloatArray,
    dtype: np.dtype[np.floating],
    natural: FloatArray | float = 0.0,
) -> FloatArray:
    """The bound for entries of absolute value `size` whose float32 rounding has root mean square `spread`.

    Where float32 has lost an entry, the size of its tensor stands in, or the sum of absolute contributions `magnitude`
    where that is less: it grows with products of |J|, without end. Where all of a tensor cancels exactly, its
    `natural` size stands in. Below the normal range rounding is absolute.
    """
    roundoff = unit_roundoff(dtype)
    # A float64 spec may leave the range of float32.
    known = spread if dtype == _SINGLE else np.where(np.isfinite(spread), spread, 0.0)
    scaled = known * (roundoff / unit_roundoff(_SINGLE)) + roundoff * size
    lost = ~(spread <= _LINEAR * size)
    if dtype == _SINGLE:
        lost = ~np.isfinite(spread)
    largest = np.nanmax(size, initial=0.0) or natural
    # A unit that saturates to exactly 1 in float32 has no rounding there, and has some in float64.
    saturated = roundoff * np.fmin(magnitude, largest)
    scaled = np.fmax(scaled, np.where(lost, saturated, _SATURATED * saturated))
    underflow = _UNDERFLOWS * float(np.finfo(dtype).smallest_subnormal)
    return np.where(magnitude == 0, 0.0, FACTOR * scaled + underflow)


Gradients = Mapping[str, FloatArray]
"""Gradients by tensor, of which one may be the loss."""


def mean_and_rounding(pairs: Iterable[tuple[Gradients, Gradients]], count: int) -> tuple[Gradients, Gradients]:
    """Mean absolute value, and root mean square rounding, of `count` pairs: rounded and exact gradients by tensor."""
    sizes, roots = dict[str, FloatArray](), dict[str, FloatArray]()
    for rounded, exact in pairs:
        for name, values in exact.items():
            sizes[name] = np.asarray(sizes.get(name, 0.0) + np.abs(values) / count)
            # hypot, since squares of huge or tiny numbers leave the range.
            roots[name] = np.asarray(np.hypot(roots.get(name, 0.0), (rounded[name] - values) / count**0.5))
    return sizes, roots


def mean_effect(base: Gradients, samples: Iterable[Gradients], count: int) -> Gradients:
    """Root mean square change from `base` in `count` samples that are disturbed by `UNITS`, per unit."""
    roots = {name: np.zeros(array.shape) for name, array in base.items()}
    for found in samples:
        for name in base:
            roots[name] = np.asarray(np.hypot(roots[name], (found[name] - base[name]) / (UNITS * count**0.5)))
    return roots


def _samples(problem: Problem, windows: tuple[Window, ...]) -> tuple[Gradients, Gradients]:
    """By tensor, the mean absolute value of the gradient and the root mean square of its rounding in float32."""
    single, double = cast(problem, _SINGLE), cast(problem, _DOUBLE).setup
    generator = np.random.default_rng(0)

    def pair(shift: float) -> tuple[Gradients, Gradients]:
        moved = shifted(single, shift, generator)
        exact = _answers(unrolled(double, windows), cast(moved, _DOUBLE))
        return _answers(unrolled(single.setup, windows), moved), exact

    return mean_and_rounding(map(pair, _SHIFTS), len(_SHIFTS))


def _disturbed(problem: Problem, windows: tuple[Window, ...], roundoff: float) -> tuple[Gradients, Gradients]:
    """By tensor, the root mean square effect of disturbing every number by one unit of `roundoff`; and the gradient."""
    double, generator = cast(problem, _DOUBLE), np.random.default_rng(1)
    method, shift = unrolled(double.setup, windows), UNITS * roundoff
    base = _answers(method, double)

    def disturbed(sample: int) -> Gradients:
        moved = shifted(double, shift, generator)
        found = _answers(method, moved, Disturbance(shift, sample))
        for instead in (moved, double):
            left = {name: np.isfinite(array) & ~np.isfinite(found[name]) for name, array in base.items()}
            if not any(at.any() for at in left.values()):
                break
            # Out of a domain on whose edge a program is to the last bit: sqrt(1 - λ²) where λ rounds to 1. Or a slope
            # of tanh that is exactly zero is zero no longer, and huge factors follow.
            others = _answers(method, instead, Disturbance(shift, sample, cotangents=True))
            found = {name: np.where(at, others[name], found[name]) for name, at in left.items()}
        return found

    samples = map(disturbed, range(_DISTURBED))
    return {name: _rough(each, base[name]) for name, each in mean_effect(base, samples, _DISTURBED).items()}, base


def _rough(disturbed: FloatArray, exact: FloatArray) -> FloatArray:
    """The effect, or its maximum for all entries where that is large: a few samples of chaos may agree by chance."""
    largest = np.max(disturbed, initial=0.0)
    return disturbed if largest <= _LINEAR * np.max(np.abs(exact), initial=0.0) else np.full_like(disturbed, largest)


def _answers(method: Unrolled, problem: Problem, disturbance: Disturbance | None = None) -> dict[str, FloatArray]:
    loss, arrays = method.gradient(problem, disturbance=disturbance)
    return {name: np.asarray(a, dtype=np.float64) for name, a in {_LOSS: loss, **arrays}.items()}


def shifted(problem: Problem, shift: float, generator: np.random.Generator) -> Problem:
    """A problem whose arrays have random relative changes up to `shift`, so that they round differently."""
    groups = (
        {n: np.asarray(a * (1 + generator.uniform(-shift, shift, a.shape)), dtype=a.dtype) for n, a in group.items()}
        for group in problem.arrays
    )
    return Problem(problem.setup, *groups)


def magnitude(
    problem: Problem, windows: Sequence[Window], dtype: np.dtype[np.floating] = _DOUBLE, seed: float = 1.0
) -> dict[str, Array]:
    """By tensor, the sum over all paths of |contribution| to each entry of the gradient, in `dtype`.

    Rounding of kernels is about unit roundoff times this. Slopes include the rounding of their own evaluation, so that
    saturated units are not exact; paths that are exactly zero count as zero. Losses are multiplied by `seed`. Infinity
    times zero is NaN here, while gradients take it as zero.
    """
    own = cast(problem, dtype)
    return unrolled(own.setup, tuple(windows)).gradient(own, rounding=True, seed=seed)[1]


PASSES = 4
"""Passes over the network in `float_range` where nothing leaves the range."""
# Powers of two that scale the losses; the largest without overflow counts.
_SEEDS = (2.0**1000, 2.0**700, 2.0**400, 2.0**100)
# Seed as a power of the smallest normal number: from there only infinite factors overflow.
_LOW = 0.9
# Sums of finite factors over twice so many steps are in range from there.
_FEW = 8
_NORMAL, _SUBNORMAL = (float(x) for x in (np.finfo(np.float64).tiny, np.finfo(np.float64).smallest_subnormal))
# A size below which, and above whose inverse, forward values are extreme; how many of them, and how many operations on
# the influence, are looked at.
_LITTLE, _LOOKED_AT, _DENSE = 1e-150, 1e6, 1e8
# Factor of the second shift, to test proportionality; and changes that count as zero.
_MORE, _NOTHING = 2.0**40, 1e3 * _SUBNORMAL


@dataclass(frozen=True, eq=False)
class FloatRange:
    """By tensor: `magnitudes`, zero only where no contribution underflows; the loss of each entry to underflow in
    float64, `lost`; and the entries that overflow makes meaningless, `left`."""

    magnitudes: Mapping[str, FloatArray]
    lost: Mapping[str, FloatArray]
    left: Mapping[str, Mask]


def float_range(
    problem: Problem, windows: tuple[Window, ...], exact: Mapping[str, FloatArray], dtype: np.dtype[np.floating]
) -> FloatRange:
    """Effects of the range of float64 on the gradient `exact`, and the entries that leave the range of `dtype`.

    The caller silences warnings of NumPy.
    """
    double = cast(problem, _DOUBLE)
    sizes = magnitude(problem, windows)
    if any((m == 0).any() for m in sizes.values()):
        # A path that underflows is not exactly zero.
        raised = magnitude(problem, windows, seed=_SEEDS[0])
        sizes = {name: np.where((m == 0) & (raised[name] != 0), _NORMAL, m) for name, m in sizes.items()}
    parts = [_of_cotangents(double, windows, exact), _of_values(double, windows, exact)]
    if problem.setup.graph.recurrent and _extreme(double):
        parts.append(_of_influences(double))
    lost = {name: functools.reduce(np.fmax, [part[name] for part in parts]) for name in sizes}
    lost = {name: np.where((sizes[name] == 0) & (part <= _NOTHING), 0.0, part) for name, part in lost.items()}
    own: Mapping[str, Array] = sizes
    here: Mapping[str, Array] = exact
    if dtype != _DOUBLE:
        single = cast(problem, dtype)
        own, here = magnitude(problem, windows, dtype), unrolled(single.setup, windows).gradient(single)[1]
    left = {name: ~np.isfinite(here[name]) for name in sizes}
    if not _finite(own):
        # In the range of float32 sums of |J| overflow even from a tiny seed where saturated units leave exactly zero.
        little, zero = from_little(problem, windows, dtype), dtype != _DOUBLE
        left = {n: left[n] | (~np.isfinite(m) & ~(zero & (here[n] == 0))) for n, m in little.items()}
    return FloatRange({name: m.astype(np.float64) for name, m in sizes.items()}, lost, left)


def from_little(problem: Problem, windows: tuple[Window, ...], dtype: np.dtype[np.floating]) -> dict[str, Array]:
    """Magnitudes from a tiny seed: sums of |J| may overflow where gradients do not, but from there only if a factor is
    infinite.

    Over many steps sums of finite factors may overflow from there too. Where those over a few steps do not, from any
    leaf, no factor is infinite, and the magnitudes are limited to the largest number.
    """
    seed, setup = float(np.finfo(dtype).tiny) ** _LOW, problem.setup
    found = magnitude(problem, windows, dtype, seed)
    if setup.graph.recurrent and setup.T > 2 * _FEW and not _finite(found):
        inputs = {x.name for x in setup.wrt if x.kind == "input"}
        if _finite(magnitude(of_leaves(problem, inputs), staircase(setup.T, _FEW, 2 * _FEW), dtype, seed)):
            return {name: np.nan_to_num(m) for name, m in found.items()}
    return found


def _finite(arrays: Mapping[str, Array]) -> bool:
    return all(np.isfinite(a).all() for a in arrays.values())


def of_leaves(problem: Problem, inputs: Collection[str]) -> Problem:
    """The problem, with all parameters and states, and some of the `inputs`, to differentiate."""
    leaves = (
        *(Tensor(name, "param", a.shape) for name, a in problem.params.items()),
        *(Tensor(name, "input", a.shape) for name, a in problem.inputs.items() if name in inputs),
        *(Tensor(name, "state", a.shape) for name, a in problem.state.items()),
    )
    return replace(problem, setup=replace(problem.setup, wrt=leaves))


def _of_cotangents(
    double: Problem, windows: tuple[Window, ...], exact: Mapping[str, FloatArray]
) -> dict[str, FloatArray]:
    """By tensor, the loss of cotangents to underflow; 0 where every larger seed overflows."""
    lost = {name: np.full(a.shape, np.nan) for name, a in exact.items()}
    for seed in _SEEDS:
        raised = unrolled(double.setup, windows).gradient(double, seed=seed)[1]
        for name, found in raised.items():
            lost[name] = np.where(np.isfinite(lost[name]), lost[name], np.abs(found / seed - exact[name]))
        if all(np.isfinite(lost[name]).all() for name in raised):
            break
    return {name: np.where(np.isfinite(part), part, 0.0) for name, part in lost.items()}


def _extreme(double: Problem) -> bool:
    """Whether the square of a forward value may leave the range of float64; not looked at in large networks."""
    setup = double.setup
    nodes = [n for n in setup.graph.nodes if n.op not in LEAVES]
    if setup.T * setup.batch * sum(n.size for n in nodes) > _LOOKED_AT:
        return False
    held = [*node_values(double, [n.index for n in nodes]).values()]
    held += [array for group in double.arrays for array in group.values()]
    sizes = np.abs(np.concatenate([values.ravel() for values in held]))
    return bool((((sizes < _LITTLE) & (sizes > 0)) | (sizes > 1 / _LITTLE)).any())


def _of_influences(double: Problem) -> dict[str, FloatArray]:
    """By tensor, the loss of influences to underflow in forward mode, through all steps, whatever the windows; 0 where
    larger influences overflow, or there are many of them."""
    setup, layout = double.setup, influence_layout(double.setup)
    if setup.T * setup.batch * layout.N * layout.N * layout.P > _DENSE:
        return {x.name: np.zeros(x.shape) for x in setup.wrt}

    def through(unit: float) -> dict[str, Array]:
        steps, total = LocalSteps(double, unit), np.zeros((setup.batch, layout.P))
        M = unit * layout.initial(setup.batch, setup.dtype)
        for local in steps.since(0):
            for q, influence in ((local.q_before, M), (local.q, M := local.J / unit @ M + local.Mbar)):
                q = q[:, :, None]
                large = np.abs(q) > 1
                total += (np.where(large, q / unit, q) * np.where(large, influence, influence / unit)).sum(axis=1)
        found = steps.gradient(total, {})
        steps.close()
        return found

    plain, raised = through(1.0), through(_SEEDS[2])
    each = {n: np.abs(raised[n] - array) for n, array in plain.items()}
    return {n: np.where(np.isfinite(part), part, 0.0) for n, part in each.items()}


def _of_values(double: Problem, windows: tuple[Window, ...], exact: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """By tensor, the loss of forward values to underflow: the change of the gradient when values below the normal
    numbers are reduced by the smallest number. Changes out of proportion stem from another branch, and are ignored."""

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
