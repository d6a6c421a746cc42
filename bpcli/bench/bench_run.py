"""Run a benchmark: workers for a few cells at a time, their timed blocks interleaved round by round.

First calls, checks and memory are measured by one worker after another. Blocks are then taken in rounds whose order
alternates, so that slow drift of the machine affects all backends alike. Control kernels run before every round and
after the last, and the machine's rates are measured in every round. A failure ends its own cell alone.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from bpcli.bench import profiling, worker_process
from bpcli.bench.journal import Journal
from bpcli.bench.measurement import OURS, SLOW_SECONDS, BenchResults, Cell, Measurement, Row
from bpcli.bench.profiling import Rates, movement
from bpcli.bench.sweep import ROUNDS, BenchOptions, Sweep, admit, cells_of
from bpcli.errors import BpError
from bpcli.problem.limits import Limits

LONG_SECONDS = 5.0
"""Blocks that take as long are taken in three rounds only, and the interval is their range."""
MAX_WORKERS = 8
GROUP_SECONDS = 60.0
"""Time that interleaved cells may take together: the most that an interruption loses."""
WORKER_BYTES = 200_000_000

Done = Callable[[Cell], None]
Progress = Callable[[Sequence[Cell]], AbstractContextManager[Done]]
Measure = Callable[[Sequence[Cell], BenchOptions, BenchResults, Journal | None, Done], None]


def measure_cells(
    cells: Sequence[Cell], options: BenchOptions, results: BenchResults, journal: Journal | None, done: Done
) -> None:
    """Measure cells on this machine; `results` and the journal get each cell as it is finished."""
    with Monitor() as monitor:
        dtypes = sorted({r["dtype"] for r in results.rows} | {c.dtype for c in cells})
        results.rates = machine_rates(monitor, dtypes, options.threads, options.budget)
        for group in groups(cells, options.limits):
            for cell, found in measure_group(group, options.budget, monitor):
                keep(cell, found, results, journal)
                done(cell)
            results.rates = machine_rates(monitor, dtypes, options.threads, options.budget)


def run_bench(
    sweeps: Sequence[Sweep],
    options: BenchOptions,
    results: BenchResults,
    journal: Journal | None = None,
    measure: Measure = measure_cells,
    progress: Progress = lambda cells: nullcontext(lambda cell: None),
) -> BenchResults:
    """Measure the cells of planned sweeps (`sweep.plan_sweep`) into `results`, which it returns.

    Cells that the journal holds are not measured again, and new ones are added to it. `measure` does the work, here or
    on a cluster. `progress` is entered with the cells that are left and yields a function to call after each of them.
    Refusals of single cells go to `results.errors`. Raises KeyboardInterrupt, with `results` as far as they are.
    """
    cells = cells_of(sweeps, options.shard)
    results.planned = [cell.key for cell in cells]
    finished = journal.rows if journal else {}
    results.found |= {c.index: finished[c.key] for c in cells if c.key in finished}
    cells = admit(sweeps, [c for c in cells if c.index not in results.found], options, results)
    results.planned = [cell.key for cell in cells]
    with progress(cells) as done:
        measure(cells, options, results, journal, done)
    return results


def keep(cell: Cell, found: Sequence[Row] | BpError, results: BenchResults, journal: Journal | None) -> None:
    """Store the rows of a cell, or the error with the cell named in it."""
    if isinstance(found, BpError):
        named = [dataclasses.replace(d, what=f"{cell.label}: {d.what}") for d in found.diagnostics]
        results.refuse(BpError(named, found.exit_code))
        return
    results.found[cell.index] = list(found)
    if journal is not None:
        journal.write(cell.key, found)


def groups(cells: Sequence[Cell], limits: Limits) -> Iterator[list[Cell]]:
    """Split into runs of one spec's cells to be interleaved, as the limits on time, memory and workers allow."""
    group: list[Cell] = []
    for cell in cells:
        both = [*group, cell]
        fits = sum(c.bytes + WORKER_BYTES * len(c.backends) for c in both) <= limits.max_memory
        quick = sum(c.seconds for c in both) <= GROUP_SECONDS
        few = sum(len(c.backends) for c in both) <= MAX_WORKERS
        if group and not (fits and quick and few and cell.spec is group[0].spec):
            yield group
            group = []
        group.append(cell)
    if group:
        yield group


class Monitor:
    """A worker that runs none of bp's code: it measures the machine's rates and runs the control kernels."""

    def __init__(self) -> None:
        self._worker: worker_process.Worker | None = None
        self._taken: dict[tuple[str, int], list[Rates]] = {}

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._worker is not None:
            self._worker.close()

    def controls(self) -> dict[str, float]:
        """Seconds of the control kernels."""
        return self._ask("control")

    def rates(self, dtype: str, threads: int, seconds: float) -> Rates:
        """The machine's rates now, measured in about twice `seconds` at most."""
        rates = Rates(**self._ask("rates", dtype=dtype, threads=threads, seconds=seconds))
        self._taken.setdefault((dtype, threads), []).append(rates)
        return rates

    def usual_rates(self, dtype: str, threads: int, seconds: float) -> Rates:
        """The medians of all rates so far, measured now where there are none."""
        taken = self._taken.get((dtype, threads)) or [self.rates(dtype, threads, seconds)]
        return Rates(statistics.median(r.gemm for r in taken), statistics.median(r.copy for r in taken))

    def _ask(self, do: str, **fields: Any) -> dict[str, Any]:
        if self._worker is None:
            self._worker = worker_process.Worker(1)
        return self._worker.ask(do, **fields)


def machine_rates(monitor: Monitor, dtypes: Sequence[str], threads: int, seconds: float) -> dict[str, float]:
    """The machine's rates so far, under their names in the JSON document."""
    found: dict[str, float] = {}
    for dtype in dtypes:
        rates = monitor.usual_rates(dtype, threads, seconds)
        found |= {f"gemm_{dtype}_flops_per_s": rates.gemm, "copy_bytes_per_s": rates.copy}
    return found


@dataclass
class _Lane:
    """A backend of a cell with its worker, and what that has measured so far."""

    cell: Cell
    backend: str
    worker: worker_process.Worker
    floor: int = 0
    report: dict[str, Any] = field(default_factory=dict)
    samples: list[list[float]] = field(default_factory=list)
    rates: list[Rates] = field(default_factory=list)
    error: BpError | None = None

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """The worker's answer; {} once it has refused a request."""
        if self.error is None:
            try:
                return self.worker.ask(do, **fields)
            except BpError as error:
                self.error = error
        return {}

    @property
    def stride(self) -> int:
        """It is timed in every `stride`-th round: with long blocks in the first, middle and last only."""
        return ROUNDS // 2 if self.report["block_s"] > LONG_SECONDS else 1

    @property
    def timed(self) -> bool:
        """Whether its gradient can be timed."""
        return self.error is None and "block_s" in self.report

    def measurement(self, moved: Mapping[str, float]) -> Measurement:
        """The outcome; the control kernels have `moved`."""
        return Measurement(self.cell, self.backend, self.report, self.samples, self.floor, self.rates, moved)

    def take(self, budget: float) -> None:
        """Time the blocks of one round, `budget` seconds of them, after a call that wakes threads and fills caches.

        A call that takes seconds is long enough without.
        """
        calls, each = self.report["calls_per_block"], self.report["block_s"]
        asked = {"calls": calls, "blocks": profiling.blocks_in(budget, each, ROUNDS), "warm": each < SLOW_SECONDS}
        self.samples.append(self.ask("run", **asked).get("samples", []))


def measure_group(cells: Sequence[Cell], budget: float, monitor: Monitor) -> Iterator[tuple[Cell, list[Row] | BpError]]:
    """The rows of each cell, bp's own first, or its error; `budget` is the seconds of blocks a row."""
    lanes = [_Lane(cell, backend, worker_process.Worker(cell.threads)) for cell in cells for backend in cell.backends]
    try:
        for lane in lanes:
            lane.floor = lane.ask("floor").get("bytes") or 0
        verdicts: dict[int, str] = {}
        for lane in lanes:
            ours = "" if lane.backend == OURS else verdicts[lane.cell.index]
            answer = lane.ask("describe", cell=lane.cell.to_json(), backend=lane.backend, ours=ours)
            lane.report = answer.get("row", {})
            if lane.backend == OURS:
                verdicts[lane.cell.index] = lane.report["check"]["verdict"] if lane.report else "inconclusive"
        moved = _time([lane for lane in lanes if lane.timed], budget, monitor)
        for cell in cells:
            own = [lane for lane in lanes if lane.cell is cell]
            error = next((lane.error for lane in own if lane.error), None)
            measured = [] if error else [lane.measurement(moved) for lane in own]
            yield cell, error or [m.row(measured[0]) for m in measured]
    finally:
        for lane in lanes:
            lane.worker.close()


def _time(lanes: Sequence[_Lane], budget: float, monitor: Monitor) -> dict[str, float]:
    """Take the blocks of all lanes; return by how much the control kernels moved meanwhile."""
    if not lanes:
        return {}
    controls = []
    for turn in range(ROUNDS):
        controls.append(monitor.controls())
        own = [lane for lane in lanes if lane.backend == OURS]
        kinds = dict.fromkeys((x.cell.dtype, x.cell.threads) for x in own)
        rates = {kind: monitor.rates(*kind, budget / ROUNDS) for kind in kinds}
        for lane in own:
            lane.rates.append(rates[lane.cell.dtype, lane.cell.threads])
        for lane in lanes if turn % 2 == 0 else reversed(lanes):
            if turn % lane.stride:
                lane.samples.append([])
            else:
                lane.take(budget / ROUNDS)
    controls.append(monitor.controls())
    return movement(controls)
