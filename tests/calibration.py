"""What the constants of the verdict leave to spare: errors of right gradients and right references, in units of them.

`python tests/calibration.py` runs a part of the corpus and writes `reports/calibration.csv`: for each constant, how far
errors went in the unit that the constant multiplies. A constant is right when the largest error stays well below it;
what lies between is what a fault may hide in.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from corpus import DTYPES, ROOT, Case, cases, exact_methods, problem
from numpy.typing import NDArray

from bpcli import __version__
from bpcli.errors import BpError
from bpcli.problem.definition import Problem
from bpcli.references import get
from bpcli.references.base import Estimate
from bpcli.references.numerics import derivatives, rounding
from bpcli.runtime.reverse_mode import Window

GROUPS = ("ordinary", "saturated", "scaled inputs", "offset", "huge loss", "tiny loss", "sizes")
LARGEST_SIZE = 16
COLUMNS = (
    "constant", "value", "dtype", "measured", "entries", "median", "p99", "p99.99", "largest", "to_spare",
    "version", "numpy", "machine",
)  # fmt: skip
Array = NDArray[np.float64]


@dataclass
class Sample:
    """Errors in units of what `constant` multiplies."""

    constant: str
    value: float
    dtype: str
    measured: str
    ratios: list[Array] = field(default_factory=list)

    def row(self) -> tuple[object, ...]:
        """A line of the table."""
        ratios = np.concatenate([*self.ratios, np.zeros(1)])
        figures = [float(f"{x:.3g}") for x in (*np.quantile(ratios, (0.5, 0.99, 0.9999)), ratios.max())]
        spare = float(f"{self.value / max(ratios.max(), 1e-300):.3g}")
        about = (self.constant, self.value, self.dtype, self.measured, ratios.size - 1)
        return (*about, *figures, spare, __version__, np.__version__, platform.machine())


def chosen() -> Iterator[Case]:
    """The part of the corpus that constants are fitted to."""
    for case in cases():
        if case.group in GROUPS and all(size <= LARGEST_SIZE for _, size in case.sizes):
            yield case


def measure(given: Problem, samples: dict[str, Sample]) -> None:
    """Add what one problem says."""
    setup = given.setup
    windows = (Window(0, 0, setup.T),)
    exact = get("complex-step").estimate(given, windows, setup.wrt)
    bounds = rounding.rounding(given, windows, setup.dtype).gradient
    for call in exact_methods(setup.graph):
        found = call.gradient(given).arrays
        for tensor in setup.wrt:
            off = np.abs(found[tensor.name].astype(np.float64) - exact[tensor.name].value)
            unit = (bounds[tensor.name] + exact[tensor.name].bound) / rounding.FACTOR
            _add(samples["gradient"], off, unit, np.isfinite(exact[tensor.name].bound))
    for name in ("central", "ladder"):
        for key, estimate in get(name).estimate(given, windows, setup.wrt).items():
            _difference(estimate, exact[key], samples[name], samples[f"{name} noise"])


def _difference(estimate: Estimate, exact: Estimate, whole: Sample, noise: Sample) -> None:
    known = np.isfinite(exact.bound) & np.isfinite(estimate.bound) & (estimate.kink == 0)
    off = np.abs(estimate.value - exact.value)
    _add(whole, off, estimate.bound + exact.bound, known)
    noisy = known & (estimate.noise > 0.9 * estimate.bound)
    _add(noise, off, estimate.noise / derivatives.NOISE_FACTOR, noisy)


def _add(sample: Sample, off: Array, unit: Array, known: NDArray[np.bool_]) -> None:
    there = known & (unit > 0) & np.isfinite(off)
    sample.ratios.append((off[there] / unit[there]).reshape(-1))


def samples_of(dtype: str) -> dict[str, Sample]:
    """Nothing measured yet."""
    factor, noise = rounding.FACTOR, derivatives.NOISE_FACTOR
    return {
        "gradient": Sample("rounding.FACTOR", factor, dtype, "error of a right gradient"),
        "central": Sample("1", 1.0, dtype, "error of central over its bound"),
        "central noise": Sample("derivatives.NOISE_FACTOR", noise, dtype, "error of central where noise prevails"),
        "ladder": Sample("1", 1.0, dtype, "error of ladder over its bound"),
        "ladder noise": Sample("derivatives.NOISE_FACTOR", noise, dtype, "error of ladder where noise prevails"),
    }


def main() -> int:
    """Measure, write, print."""
    samples = {dtype: samples_of(dtype) for dtype in DTYPES}
    for case in chosen():
        try:
            given = problem(case)
            with np.errstate(all="ignore"):
                measure(given, samples[case.dtype])
        except BpError:
            continue
    rows = [sample.row() for dtype in DTYPES for sample in samples[dtype].values()]
    text = "\n".join(",".join(map(str, row)) for row in [COLUMNS, *rows]) + "\n"
    target = ROOT / "reports" / "calibration.csv"
    temporary = target.with_suffix(".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, target)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
