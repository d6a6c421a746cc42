"""The V-curve of a problem: the error of the central difference as a function of its step."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from bpcli.errors import fail
from bpcli.methods.base import Exact
from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.references.base import FloatArray, forward_flops
from bpcli.references.numerics.probe import Probe, Sampler, probe, scales
from bpcli.references.perturbation import STEP
from bpcli.references.perturbation.perturbed import Perturbed

STEPS: FloatArray = np.exp2(np.arange(-50, 1, dtype=np.float64))
"""Steps relative to the size of the entry; powers of two, so that shifts are exact."""
ENTRIES = 8
"""The number of entries sampled from a tensor, with a seed from its name."""
_NO_CURVE = "plot a spec whose loss depends on what is differentiated, or choose it with --wrt"
_COMPLEX_FLOPS = 4


@dataclass(frozen=True, eq=False)
class VCurve:
    """`steps (H,)` relative to the entry; relative `errors (H,)` of each tensor, the median over its entries.

    `overall (H,)` is the median over all entries; `judge` names the reference.
    """

    steps: FloatArray
    errors: Mapping[str, FloatArray]
    overall: FloatArray
    judge: str


def v_curve(problem: Problem) -> VCurve:
    """Central differences at `STEPS` against the complex step, which at a kink follows one branch.

    Raises BpError if every derivative is zero, so that no relative error exists.
    """
    setup = problem.setup
    windows = Exact().over(setup)
    real = Perturbed(problem, windows, np.dtype(np.float64))
    other = Perturbed(problem, windows, np.dtype(np.complex128))
    errors: dict[str, FloatArray] = {}
    for tensor in setup.wrt:
        around = probe(problem, tensor).sample(ENTRIES, zlib.crc32(tensor.name.encode()))
        if not len(around.entries):
            continue
        truth = _exact(other, tensor, around)
        apart = np.abs(_differences(real, tensor, around) - truth)
        size = np.abs(truth)
        known = size > 1e-6 * size.max()
        if known.any():
            errors[tensor.name] = apart[:, known] / size[known]
    if not errors:
        what = f"{setup.spec.name}: all derivatives are zero, so relative errors are undefined"
        fail("no-curve", what, help=_NO_CURVE)
    together = np.concatenate(list(errors.values()), axis=1)
    return VCurve(STEPS, {n: _median(e) for n, e in errors.items()}, _median(together), "the complex step")


def curve_flops(setup: Setup) -> float:
    """Predicted floating-point operations of `v_curve`."""
    copies = ENTRIES * len(setup.wrt) * (2 * len(STEPS) + _COMPLEX_FLOPS)
    return copies * forward_flops(setup, Exact().over(setup))


def _median(errors: FloatArray) -> FloatArray:
    return np.asarray(np.median(errors, axis=1), dtype=np.float64)


def _differences(perturbed: Perturbed, tensor: Tensor, around: Probe) -> FloatArray:
    """`(H, K, S)`: the central difference at each step."""
    sampler = Sampler.of(partial(perturbed.losses, tensor), around)
    rows = np.tile(np.arange(len(around.entries)), len(STEPS))
    steps = (STEPS[:, None] * 2.0 ** np.round(np.log2(scales(around)))).reshape(-1)
    change, shift = sampler.shift(np.tile(rows, 2), np.concatenate([steps, -steps]))
    count = len(rows)
    with np.errstate(all="ignore"):
        slope = (change[:count] - change[count:]) / (shift[:count] - shift[count:])
    # A step below the spacing of the entry is lost in the addition and gives a slope of 0 / 0.
    found = np.where(np.isfinite(slope), slope, 0.0)
    return np.asarray(found.reshape(len(STEPS), len(around.entries), -1), dtype=np.float64)


def _exact(perturbed: Perturbed, tensor: Tensor, around: Probe) -> FloatArray:
    """`(K, S)` by the complex step."""
    found = perturbed.losses(tensor, around.entries, np.full(len(around.entries), STEP * 1j)).imag
    found = found / STEP
    return np.asarray(found.sum(axis=1, keepdims=True) if around.summed else found, dtype=np.float64)
