"""A bench run on a cluster: each cell is one piece of work, measured in a fresh process that the worker starts."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bpcli.bench.bench_run import Done, Monitor, keep, machine_rates, measure_group
from bpcli.bench.cell import Cell
from bpcli.bench.journal import Journal
from bpcli.bench.measurement import BenchResults, Row
from bpcli.bench.sweep import BenchOptions
from bpcli.cluster.connect import Cluster
from bpcli.cluster.dask_worker import Facts, answered, facts
from bpcli.errors import BpError, Diagnostic

_IDLE = 60.0


@dataclass(frozen=True)
class Order:
    """A cell to measure with `budget` seconds of blocks a row; the versions of `packages` are reported."""

    cell: Cell
    budget: float
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """The rows of a cell or its refusals, the process that measured it, and the rates of that machine."""

    rows: list[Row]
    refused: tuple[Diagnostic, ...]
    by: Facts
    rates: dict[str, float]


def measure_remotely(
    cells: Sequence[Cell],
    options: BenchOptions,
    results: BenchResults,
    journal: Journal | None,
    done: Done,
    *,
    cluster: Cluster,
) -> None:
    """`bench_run.measure_cells` on a cluster: rows name their `host`, and `results` every machine that measured."""
    for spec, sha256 in {cell.spec.path: (cell.spec, cell.sha256) for cell in cells}.values():
        cluster.require(spec.absolute(), sha256)
    packages = tuple(peer.name for peer in options.peers)
    # The longest first, so that at the end no worker has much left while the others have nothing.
    cells = sorted(cells, key=lambda cell: -cell.seconds)
    remote = [dataclasses.replace(cell, spec=cell.spec.absolute()) for cell in cells]
    orders = [Order(cell, options.budget, packages) for cell in remote]
    for number, found in cluster.results(measure_cell, orders):
        cell = cells[number]
        refused = found.refused if isinstance(found, Measured) else found
        if refused:
            keep(cell, BpError(refused), results, journal)
        else:
            about = results.machines.setdefault(found.by.host, dataclasses.asdict(found.by.machine))
            results.machines[found.by.host] = {**found.rates, **about}
            keep(cell, [{**row, "host": found.by.host} for row in found.rows], results, journal)
        done(cell)


def measure_cell(order: Order) -> Measured | tuple[Diagnostic, ...]:
    """Measure a cell; runs in a worker."""
    return answered(lambda: _measured(order))


def _measured(order: Order) -> Measured:
    cell = order.cell
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)  # set by Dask for itself; measured processes run without it
    with _KEPT.monitor() as monitor:
        ((_, found),) = measure_group([cell], order.budget, monitor)
        rates = machine_rates(monitor, [cell.dtype], cell.threads)
    by = facts(order.packages)
    return Measured([], found.diagnostics, by, rates) if isinstance(found, BpError) else Measured(found, (), by, rates)


class _Kept:
    """The worker's monitor process, kept from cell to cell and ended when it has been idle."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._monitor: Monitor | None = None
        self._end: threading.Timer | None = None

    @contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """The process, for one cell at a time."""
        with self._lock:
            if self._end is not None:
                self._end.cancel()
            self._monitor = self._monitor or Monitor()
            try:
                yield self._monitor
            except BaseException:  # it may be what was in the way: the next cell gets another
                self._close()
                raise
            self._end = threading.Timer(_IDLE, self._close_idle)
            self._end.daemon = True
            self._end.start()

    def _close_idle(self) -> None:
        with self._lock:
            if self._end is threading.current_thread():  # no other cell came meanwhile
                self._close()

    def _close(self) -> None:
        if self._monitor is not None:
            self._monitor.__exit__()
            self._monitor = None


_KEPT = _Kept()
