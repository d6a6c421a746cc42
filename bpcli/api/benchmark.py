"""`bench`: measure a sweep into a DataFrame."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
from pydantic import InstanceOf

from bpcli import backends
from bpcli.api.arguments import Count, Seconds, validated
from bpcli.api.loaded import Words, plain_setting, several, spec_file
from bpcli.bench.bench_run import Done, run_bench
from bpcli.bench.measurement import BenchResults, Cell, Row, table
from bpcli.bench.sweep import DRAWS, BenchOptions, plan_sweep
from bpcli.errors import BpError, fail
from bpcli.problem.limits import Limits
from bpcli.runtime import kernel_loader
from bpcli.runtime.machine import cores
from bpcli.spec.language import canonical


@validated
def bench(
    spec: str | os.PathLike[str],
    methods: Words = (),
    *,
    grid: Mapping[str, Any] | None = None,
    peers: Words = (),
    budget: Seconds = 0.5,
    draws: Count = DRAWS,
    limits: InstanceOf[Limits] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Measure the time, memory and accuracy of gradient methods over a sweep, as `bp bench` does.

    Every cell is measured in its own process, with one thread per core unless the grid has `threads`. Its gradient is
    checked first; a wrong gradient is not timed.

    Parameters
    ----------
    spec
        The path of a TOML file.
    methods
        Methods such as `rtrl` or `tbptt:k1=1,k2=4`, references, or `check`; by default those of the spec.
    grid
        Maps keys to a value or several: dims, constants, `T`, `batch`, `dtype`, `seed`, `threads` or method options.
        Keys are added to the grid of the spec, or replace those in it.
    peers, budget, draws, limits
        `jax` and `torch`, to measure as well; seconds for each cell; draws of a random method; limits of a cell.
    **settings
        Settings of all cells: dims, constants, `T`, `batch`, `dtype`, `seed`.

    Returns
    -------
    pandas.DataFrame
        A row for each cell and backend, with the columns of the CSV files of `bp bench`: seconds, bytes, flops, kind,
        kernel error, bias, cosine, variance, and one for each key of the grid. `time_s` is NaN for wrong gradients.
        Wrong gradients and refused cells are also warnings; `attrs["notes"]` lists other cells that were left out.

    Raises
    ------
    BpError
        If the spec, a method or the grid is invalid, or nothing could be measured.

    Examples
    --------
    >>> frame = bench("specs/vanilla_rnn.toml", ["bptt", "rtrl"], grid={"n": [8, 16]}, T=5, budget=0.05)
    >>> frame[["method", "n", "time_s"]]  # doctest: +SKIP
    """
    swept = {canonical(key): tuple(map(plain_setting, _listed(key, values))) for key, values in (grid or {}).items()}
    file, others = spec_file(spec, settings, (), limits), tuple(map(backends.get, dict.fromkeys(several(peers))))
    fixed, chosen = frozenset(file.overrides), tuple(several(methods))
    options = BenchOptions(chosen, False, swept, fixed, budget, cores(), others, file.limits, draws=draws)
    results = BenchResults()
    run_bench([plan_sweep(file, options, results)], options, results, progress=_prepared)
    if not results.rows and results.errors:
        raise BpError(results.errors)
    for text in (*(d.what for d in results.errors), *_faults(results.rows)):
        warnings.warn(text, stacklevel=3)  # the caller of `bpcli.bench`
    frame = table(results.rows)
    frame.attrs["notes"] = results.notes
    return frame


def _listed(key: str, values: Any) -> Sequence[Any]:
    """The values of a key as a sequence; one value stands for itself."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        return (values,)
    if not (found := tuple(values)):
        fail("usage", f'bench: grid: no values for "{key}"', help="give at least one value, or leave the key out")
    return found


@contextmanager
def _prepared(cells: Sequence[Cell]) -> Iterator[Done]:
    """Compile the kernels once, before the measuring processes would each do so."""
    if cells:
        kernel_loader.prepare(kernel_loader.CHECKING)
    yield lambda cell: None


def _faults(rows: Sequence[Row]) -> list[str]:
    """A text for each gradient that does not pass."""
    checks = [(f"{row['spec']} {row['method']}", row["check"]) for row in rows]
    return [f"{name}: {check['verdict']}: {check['detail']}" for name, check in checks if check["detail"]]
