"""The work that is sent to a cluster: cells of a bench run, and losses of a full check.

A cell is measured in a fresh process that its worker starts. Losses are computed in blocks of perturbed copies, from
the same arrays and in the same way as without a cluster, so that a check gives the same bits.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from bpcli.bench.bench_run import Done, Monitor, keep, machine_rates, measure_group
from bpcli.bench.journal import Journal
from bpcli.bench.measurement import BenchResults, Cell, Row
from bpcli.bench.sweep import BenchOptions
from bpcli.cluster.connect import Cluster, Facts, answered, facts, require_same
from bpcli.errors import BpError, Diagnostic
from bpcli.problem.definition import Setup
from bpcli.problem.draw import draw
from bpcli.problem.setup import SpecFile, digest
from bpcli.references.perturbation.perturbed import BlockLosses, CopyBlock, LossRequest, Perturbed, perturbed_for
from bpcli.runtime import kernel_loader as library
from bpcli.runtime.machine import cores

_IDLE = 60.0
"""Seconds without a cell after which a worker ends its monitor process."""
LEAST_FLOPS, MOST_FLOPS = 2e8, 2e9
"""Operations of a batch of pieces, about: below the least, sending it takes longer than the work."""
_TURNS = 4
"""Batches for each worker, so that none waits long for another."""
_EACH = 2
"""Batches at a worker at a time: they are short, and the next one is there when one is done."""


@dataclass(frozen=True)
class CellOrder:
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
    # Longest first, so that at the end no worker has much left while others are idle.
    cells = sorted(cells, key=lambda cell: -cell.seconds)
    remote = (dataclasses.replace(cell, spec=cell.spec.absolute()) for cell in cells)
    orders = [CellOrder(cell, options.budget, packages) for cell in remote]
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


def measure_cell(order: CellOrder) -> Measured | tuple[Diagnostic, ...]:
    """Measure a cell; runs in a worker."""
    return answered(lambda: _measured(order))


def _measured(order: CellOrder) -> Measured:
    cell = order.cell
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)  # set by Dask for itself; measured processes run without it
    with _KEPT.monitor() as monitor:
        ((_, found),) = measure_group([cell], order.budget, monitor)
        rates = machine_rates(monitor, [cell.dtype], cell.threads, order.budget)
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
            except BaseException:  # the process may be the cause: the next cell gets another one
                self._close()
                raise
            self._end = threading.Timer(_IDLE, self._close_idle)
            self._end.daemon = True
            self._end.start()

    def _close_idle(self) -> None:
        with self._lock:
            if self._end is threading.current_thread():  # no cell has come meanwhile
                self._close()

    def _close(self) -> None:
        if self._monitor is not None:
            self._monitor.__exit__()
            self._monitor = None


_KEPT = _Kept()


@dataclass(frozen=True, eq=False)
class LossOrder:
    """Pieces of the losses asked for, of `spec` (a SpecFile in JSON), on `threads` threads."""

    spec: str
    sha256: str
    asked: LossRequest
    pieces: Sequence[CopyBlock]
    threads: int


class Farm:
    """`Executor` on a cluster, for one spec."""

    def __init__(self, cluster: Cluster, spec: SpecFile, setup: Setup, threads: int) -> None:
        """Raises BpError where a worker does not find the same spec."""
        self.cluster, self.sha256, self.threads = cluster, digest(setup, spec.path), threads
        self.spec = spec.absolute()
        cluster.require(self.spec, self.sha256)

    def losses(self, asked: LossRequest, pieces: Sequence[CopyBlock]) -> Iterable[BlockLosses]:
        """See `Executor`."""
        spec = json.dumps(self.spec.to_json(), sort_keys=True)
        together = batches(pieces, _TURNS * len(self.cluster.workers))
        orders = [LossOrder(spec, self.sha256, asked, some, self.threads) for some in together]
        found: dict[int, list[BlockLosses]] = {}
        for number, answer in self.cluster.results(compute, orders, _EACH):
            if isinstance(answer, tuple):
                raise BpError(answer)
            found[number] = answer
        return [values for number in range(len(orders)) for values in found[number]]


def batches(pieces: Sequence[CopyBlock], count: int) -> Iterator[list[CopyBlock]]:
    """Neighbouring pieces in about `count` batches, as far as their size allows."""
    size = min(max(sum(p.flops for p in pieces) / count, LEAST_FLOPS), MOST_FLOPS)
    batch, flops = list[CopyBlock](), 0.0
    for piece in pieces:
        if batch and flops + piece.flops > size:
            yield batch
            batch, flops = [], 0.0
        batch.append(piece)
        flops += piece.flops
    if batch:
        yield batch


def compute(order: LossOrder) -> list[BlockLosses] | tuple[Diagnostic, ...]:
    """The losses of each piece; runs in a worker."""
    return answered(lambda: _computed(order))


def _computed(order: LossOrder) -> list[BlockLosses]:
    library.set_threads(min(order.threads, cores()))
    perturbed = _perturbed(order.spec, order.sha256, order.asked)
    return [perturbed.block_losses(piece) for piece in order.pieces]


@lru_cache(maxsize=2)
def _perturbed(spec: str, sha256: str, asked: LossRequest) -> Perturbed:
    """The problem with its states at every step, kept from piece to piece."""
    file = SpecFile.from_json(json.loads(spec))
    require_same(file, sha256)
    return perturbed_for(draw(file.open({})), asked)
