"""A bench run: cells measured a few at a time; what is in the way of one is noted and ends nothing but that one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from bpcli.bench.journal import Journal
from bpcli.bench.planning import Ask, Results
from bpcli.bench.rounds import Watch, measure
from bpcli.bench.sweep import Item
from bpcli.errors import BpError
from bpcli.problem.limits import Limits

MOST_PROCESSES = 8
"""Processes alive at a time: their cells are measured in turns."""
GROUP_SECONDS = 60.0
"""What cells measured in turns may take together: as much is lost at most when a run is stopped."""
PROCESS_BYTES = 200_000_000


def run(items: Sequence[Item], ask: Ask, results: Results, journal: Journal, say: Callable[[Item], None]) -> None:
    """Measure, adding to `results` and the journal as cells are finished; `say` is called after each."""
    with Watch() as watch:
        dtypes = sorted({r["dtype"] for r in results.rows} | {i.dtype for i in items})
        results.rates = machine_rates(watch, dtypes, ask.threads)
        for group in groups(items, ask.limits):
            for item, found in measure(group, ask.budget, watch):
                if isinstance(found, BpError):
                    results.refuse(told(found, item))
                else:
                    results.found[item.index] = found
                    journal.write(item.key, found)
                say(item)
            results.rates = machine_rates(watch, dtypes, ask.threads)


def machine_rates(watch: Watch, dtypes: Sequence[str], threads: int) -> dict[str, float]:
    """The machine's rates so far, as the JSON document names them."""
    found: dict[str, float] = {}
    for dtype in dtypes:
        rates = watch.usual_rates(dtype, threads)
        found |= {f"gemm_{dtype}_flops_per_s": rates.gemm, "copy_bytes_per_s": rates.copy}
    return found


def groups(items: Sequence[Item], limits: Limits) -> Iterator[list[Item]]:
    """Neighbours that are measured in turns: of one spec, few and quick enough, and with room for all in memory."""
    group: list[Item] = []
    for item in items:
        both = [*group, item]
        room = sum(i.bytes + PROCESS_BYTES * len(i.backends) for i in both) <= limits.max_memory
        quick = sum(i.seconds for i in both) <= GROUP_SECONDS
        few = sum(len(i.backends) for i in both) <= MOST_PROCESSES
        if group and not (room and quick and few and item.target is group[0].target):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def told(error: BpError, item: Item) -> BpError:
    """The error of a measuring process with its cell in its words."""
    named = [dataclasses.replace(d, what=f"{item.label}: {d.what}") for d in error.diagnostics]
    return BpError(named, error.exit_code)
