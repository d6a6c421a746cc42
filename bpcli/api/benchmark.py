"""A sweep measured, as a DataFrame."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd

from bpcli import backends
from bpcli.api.loaded import Words, plain_setting, several, spec_file
from bpcli.bench.bench_run import Done, run_bench
from bpcli.bench.cell import Cell
from bpcli.bench.measurement import BenchResults, Row, table
from bpcli.bench.sweep import BenchOptions, plan_sweep
from bpcli.errors import BpError
from bpcli.problem.limits import Limits
from bpcli.runtime import kernel_loader
from bpcli.runtime.machine import cores
from bpcli.spec.language import canonical


def bench(
    spec: str | os.PathLike[str],
    methods: Words = (),
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    peers: Words = (),
    budget: float = 0.5,
    limits: Limits | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Measure time, memory and truth of gradient methods over a sweep, as `bp bench` does.

    Every cell is measured in a process of its own, on all cores unless the grid has `threads`. Its gradient is checked
    before it is timed.

    Parameters
    ----------
    spec
        The path of a TOML file.
    methods
        As `rtrl` or `tbptt:k1=1,k2=4`, a reference, or `check` for a whole one; those of the spec without any.
    grid
        Key to values: dims, constants, `T`, `batch`, `dtype`, `seed`, `threads` or an option of methods. It adds to the
        grid of the spec, or replaces keys of it.
    peers, budget, limits
        `jax` and `torch`, measured beside; seconds of timed blocks a cell; what a cell may cost, in bytes and seconds.
    **settings
        Settings of every cell: dims, constants, `T`, `batch`, `dtype`, `seed`.

    Returns
    -------
    pandas.DataFrame
        A row a cell and backend, with the columns of the CSV that `bp bench` writes: seconds, bytes, flops, bias,
        cosine, and one for each key of the grid. `time_s` is NaN where the gradient is wrong, which is a warning, and
        so is a cell that is refused. `attrs["notes"]` says what else was left out of the sweep.

    Raises
    ------
    BpError
        Where the spec, a method or the grid cannot be used, or nothing could be measured.

    Examples
    --------
    >>> frame = bench("specs/vanilla_rnn.toml", ["bptt", "rtrl"], grid={"n": [8, 16]}, T=5, budget=0.05)
    >>> frame[["method", "n", "time_s"]]  # doctest: +SKIP
    """
    swept = {canonical(key): tuple(map(plain_setting, values)) for key, values in (grid or {}).items()}
    file, others = spec_file(spec, settings, (), limits), tuple(map(backends.get, dict.fromkeys(several(peers))))
    fixed, chosen = frozenset(file.overrides), tuple(several(methods))
    options = BenchOptions(chosen, False, swept, fixed, budget, cores(), others, file.limits)
    results = BenchResults()
    run_bench([plan_sweep(file, options, results)], options, results, progress=_prepared)
    if not results.rows and results.errors:
        raise BpError(results.errors)
    for text in (*(d.what for d in results.errors), *_faults(results.rows)):
        warnings.warn(text, stacklevel=3)  # the caller of the package
    frame = table(results.rows)
    frame.attrs["notes"] = results.notes
    return frame


@contextmanager
def _prepared(cells: Sequence[Cell]) -> Iterator[Done]:
    """Compile what measuring takes, before the processes that would each do so."""
    if cells:
        kernel_loader.prepare(kernel_loader.CHECKING)
    yield lambda cell: None


def _faults(rows: Sequence[Row]) -> list[str]:
    """The gradients that do not pass."""
    checks = [(f"{row['spec']} {row['method']}", row["check"]) for row in rows]
    return [f"{name}: {check['verdict']}: {check['detail']}" for name, check in checks if check["detail"]]
