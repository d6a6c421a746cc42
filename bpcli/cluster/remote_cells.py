"""A bench run on a cluster: each cell is one piece of work, measured in a fresh process that the worker starts."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bpcli.bench.journal import Journal
from bpcli.bench.planning import Ask, Results
from bpcli.bench.rounds import Watch, measure
from bpcli.bench.rows import Row
from bpcli.bench.run import machine_rates, told
from bpcli.bench.sweep import Item
from bpcli.bench.target import Target
from bpcli.cluster.connect import Cluster
from bpcli.cluster.dask_worker import Facts, answered, facts
from bpcli.errors import BpError, Diagnostic

_IDLE = 60.0


@dataclass(frozen=True)
class Order:
    """A cell to measure, with `budget` seconds of blocks for each row; `packages` are those whose versions count."""

    item: Item
    budget: float
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """The rows of a cell, or what was in the way; who measured them, and the rates of that machine."""

    rows: list[Row]
    refused: tuple[Diagnostic, ...]
    by: Facts
    rates: dict[str, float]


def run(
    items: Sequence[Item], ask: Ask, results: Results, journal: Journal, say: Callable[[Item], None], cluster: Cluster
) -> None:
    """`bpcli.bench.run.run` on a cluster. Rows have their `host`, and `results` all machines that measured."""
    for target, sha256 in {item.target.path: (item.target, item.sha256) for item in items}.values():
        cluster.require(absolute(target), sha256)
    packages = tuple(peer.name for peer in ask.peers)
    # The longest first, so that at the end no worker has much left while the others have nothing.
    items = sorted(items, key=lambda item: -item.seconds)
    sent = [Order(dataclasses.replace(i, target=absolute(i.target)), ask.budget, packages) for i in items]
    for number, found in cluster.results(measure_cell, sent):
        item = items[number]
        refused = found.refused if isinstance(found, Measured) else found
        if refused:
            results.refuse(told(BpError(refused), item))
        else:
            rows: list[Row] = [{**row, "host": found.by.host} for row in found.rows]
            about = results.machines.setdefault(found.by.host, dataclasses.asdict(found.by.machine))
            results.machines[found.by.host] = {**found.rates, **about}
            results.found[item.index] = rows
            journal.write(item.key, rows)
        say(item)


def absolute(target: Target) -> Target:
    """`target` as a process in another folder can open it."""
    return dataclasses.replace(target, path=os.path.abspath(target.path))


def measure_cell(order: Order) -> Measured | tuple[Diagnostic, ...]:
    """Measure a cell; runs in a worker."""
    return answered(lambda: _measured(order))


def _measured(order: Order) -> Measured:
    item = order.item
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)  # Dask's, for itself: what is measured is to run as it does at home
    with _KEPT.watch() as watch:
        ((_, found),) = measure([item], order.budget, watch)
        rates = machine_rates(watch, [item.dtype], item.threads)
    by = facts(order.packages)
    return Measured([], found.diagnostics, by, rates) if isinstance(found, BpError) else Measured(found, (), by, rates)


class _Kept:
    """The worker's process that measures none of our code: kept from cell to cell, ended when there are no more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._end: threading.Timer | None = None

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """The process, for one cell at a time."""
        with self._lock:
            if self._end is not None:
                self._end.cancel()
            self._watch = self._watch or Watch()
            try:
                yield self._watch
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
        if self._watch is not None:
            self._watch.__exit__()
            self._watch = None


_KEPT = _Kept()
