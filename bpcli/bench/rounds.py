"""Some cells measured side by side: a process for each backend of each, and blocks taken of all in turn.

Everything that is done once (first call, check, memory) is done by one process after the other; then each times a few
blocks, round after round, in an order that turns round, so that a slow drift of the machine meets all alike. Control
kernels run before every round and after the last, and the machine's rates are measured anew for every round.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpcli.bench import clock
from bpcli.bench import machine as control
from bpcli.bench import worker as pool
from bpcli.bench.cells import Order
from bpcli.bench.machine import Rates
from bpcli.bench.rows import Row, Timed, rows_of
from bpcli.bench.sweep import OURS, Item
from bpcli.errors import BpError

ROUNDS = 7
"""A cell has a block in each round at least: the fewest that give its median an interval of 95%."""
LONG_SECONDS = 5.0
"""A block that takes as long is taken three times alone, and the interval is the range."""


class Watch:
    """A process that measures none of our code: the machine's rates, and whether it is quiet."""

    def __init__(self) -> None:
        self._process: pool.Process | None = None
        self._taken: dict[tuple[str, int], list[Rates]] = {}

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self._process.close()

    def sample(self) -> dict[str, float]:
        """Seconds of the control kernels."""
        return self._asked({"do": "control"})

    def rates(self, dtype: str, threads: int) -> Rates:
        """What the machine does in a second now."""
        rates = Rates(**self._asked({"do": "rates", "dtype": dtype, "threads": threads}))
        self._taken.setdefault((dtype, threads), []).append(rates)
        return rates

    def usual_rates(self, dtype: str, threads: int) -> Rates:
        """The medians of all that was measured so far; measured now where nothing was."""
        taken = self._taken.get((dtype, threads)) or [self.rates(dtype, threads)]
        return Rates(statistics.median(r.gemm for r in taken), statistics.median(r.copy for r in taken))

    def _asked(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._process = pool.start(1)
        return self._process.ask(request)


@dataclass
class _Runner:
    """A backend of an item, what its process has told so far, and the machine's rates in each round (bp's own)."""

    item: Item
    backend: str
    process: pool.Process
    floor: int = 0
    report: dict[str, Any] = field(default_factory=dict)
    samples: list[list[float]] = field(default_factory=list)
    rates: list[Rates] = field(default_factory=list)
    error: BpError | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of the process; {} where it refuses, or has refused before."""
        if self.error is None:
            try:
                return self.process.ask(request)
            except BpError as error:
                self.error = error
        return {}

    @property
    def pace(self) -> int:
        """It is timed every so many rounds: with a block of many seconds, in the first, the middle and the last."""
        return ROUNDS // 2 if self.report["block_s"] > LONG_SECONDS else 1

    @property
    def timed(self) -> bool:
        """Whether there is something to time."""
        return self.error is None and "block_s" in self.report


def measure(items: Sequence[Item], budget: float, watch: Watch) -> Iterator[tuple[Item, list[Row] | BpError]]:
    """The rows of each item, bp's own first, or what was in its way; `budget` seconds of blocks for each row."""
    runners = [_Runner(item, backend, pool.start(item.threads)) for item in items for backend in item.backends]
    try:
        for runner in runners:
            runner.floor = runner.ask({"do": "floor"}).get("bytes") or 0
        for runner in runners:
            _prepare(runner, runners)
        movement = _time([r for r in runners if r.timed], budget, watch)
        for item in items:
            own = [r for r in runners if r.item is item]
            failed = next((r.error for r in own if r.error), None)
            told = [Timed(r.backend, r.report, r.samples, r.floor, r.rates) for r in own]
            yield item, failed or rows_of(item, told, movement)
    finally:
        for runner in runners:
            runner.process.close()


def _prepare(runner: _Runner, runners: Sequence[_Runner]) -> None:
    """First call, memory and check of a runner; a peer is told of the verdict on bp's own gradient."""
    item, ours = runner.item, ""
    if runner.backend != OURS:
        own = next(r for r in runners if r.item is item and r.backend == OURS)
        ours = own.report["check"]["verdict"] if own.report else "inconclusive"
    order = Order(item.target, item.sha256, item.settings, item.cell.method, runner.backend, item.threads, ours)
    runner.report = runner.ask({"do": "prepare", "order": order.plain()})


def _time(runners: Sequence[_Runner], budget: float, watch: Watch) -> dict[str, float]:
    """Take the blocks of all runners; by how much the control kernels moved meanwhile."""
    if not runners:
        return {}
    controls = []
    for turn in range(ROUNDS):
        controls.append(watch.sample())
        own = [r for r in runners if r.backend == OURS]
        rates = {kind: watch.rates(*kind) for kind in dict.fromkeys((r.item.dtype, r.item.threads) for r in own)}
        for runner in own:
            runner.rates.append(rates[runner.item.dtype, runner.item.threads])
        for runner in runners if turn % 2 == 0 else reversed(runners):
            if turn % runner.pace:
                runner.samples.append([])
                continue
            blocks = clock.blocks_in(budget / ROUNDS, runner.report["block_s"], ROUNDS)
            runner.samples.append(runner.ask({"do": "time", "blocks": blocks}).get("samples", []))
    controls.append(watch.sample())
    return control.moved(controls)
