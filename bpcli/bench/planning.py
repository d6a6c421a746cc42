"""What a bench run measures: each spec's sweep, the cells of all numbered through, and an order for each of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpcli import methods
from bpcli.backends.base import Peer
from bpcli.bench import precheck as checks
from bpcli.bench import sweep
from bpcli.bench.rounds import ROUNDS
from bpcli.bench.rows import Row
from bpcli.bench.sweep import OURS, THREADS, Cell, Grid, Item, Point, Sweep
from bpcli.bench.target import Target, digest
from bpcli.errors import BpError, Diagnostic, Place, fail
from bpcli.problem.definition import Setup
from bpcli.problem.limits import FLOPS_PER_SECOND, PASSES, SECONDS_PER_STEP, Limits, array_bytes, check_cost

START_SECONDS = 1.5
CALLS = 8
"""Calls of a gradient beside those that are timed: first, memory, check, calibration."""
MOST_THREADS = 1024
_OF_A_CELL = ("too-large", "too-long", "method-refused")
"""Refusals that say nothing against the other cells of a sweep."""


@dataclass
class Results:
    """What has been measured so far, by number of cell, and what was left out and why.

    `rates` are those of the machine, in operations and bytes a second, as the JSON document names them; `machines` are
    those that measured for this one, by host, with their rates.
    """

    found: dict[int, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    errors: list[Diagnostic] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    machines: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """The rows in the order of the sweep, whatever the order in which cells were finished."""
        return [row for index in sorted(self.found) for row in self.found[index]]

    def refuse(self, error: BpError) -> None:
        """Note an error, once however many points it meets."""
        self.errors += [d for d in error.diagnostics if d not in self.errors]

    def note(self, text: str) -> None:
        """Note something left out, once."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True)
class Wish:
    """What the command line says: methods (`weak` ones give way to the spec's), grid, and settings that are `fixed`."""

    methods: tuple[str, ...]
    weak: bool
    grid: Grid
    fixed: frozenset[str]
    alone: bool


@dataclass(frozen=True)
class Ask:
    """How to measure: `budget` seconds for the blocks of a row, on `threads` threads, `peers` beside.

    `shard` (i, n) takes the i-th of n parts of the cells, i from 1.
    """

    budget: float
    threads: int
    peers: tuple[Peer, ...]
    limits: Limits
    shard: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Job:
    """One spec with its sweep; `sha256` is the spec's digest, `places` say where the spec names a method.

    `threads_swept`: a key `threads` of the grid is the run's, not a dim or constant of the spec.
    """

    target: Target
    sha256: str
    sweep: Sweep
    places: Mapping[str, Place]
    alone: bool
    threads_swept: bool


@dataclass(frozen=True)
class Entry:
    """A cell of a run: its number, and a key that no other cell of the run has."""

    index: int
    key: str
    job: Job
    point: Point
    cell: Cell


def prepare(target: Target, wish: Wish, results: Results) -> Job:
    """The sweep of one spec. Raises BpError for a spec, a grid or a method that can't be used."""
    setup = target.open({})
    spec = setup.spec
    texts, places = _texts(setup, wish)
    if both := [k for k in wish.grid if k in wish.fixed]:
        fail(
            "usage",
            f"--grid {both[0]} contradicts the value that --set, --dtype, --seed or --threads gives",
            help="give one of them",
        )
    own = {k: v for k, v in spec.bench.grid.items() if k not in wish.fixed}
    grid = sweep.merge(own, wish.grid)
    settings = sweep.settings_of(spec)
    threads_swept = THREADS in grid and THREADS not in (*spec.dims, *spec.constants)
    if threads_swept:
        _refuse_threads(grid[THREADS], None if THREADS in wish.grid else spec.source.key("bench", "grid", THREADS))
    options = {name: _options(name) for name in _needed(texts, grid, settings)}
    stand = {k: spec.source.key("bench", "grid", k) for k in own if k not in wish.grid}
    try:
        plan = sweep.plan(
            grid, settings, texts, options, lambda text, base: checks.parse_measurable(text, places.get(base)), stand
        )
    except BpError as error:
        named = error.diagnostics if wish.alone else [d.about(spec.name) for d in error.diagnostics]
        raise BpError(named, error.exit_code) from None
    for text in plan.notes:
        results.note(f"{spec.name}: {text}")
    return Job(target, digest(setup, target.path), plan, places, wish.alone, threads_swept)


def _refuse_threads(values: Sequence[sweep.Value], place: Place | None) -> None:
    for value in values:
        if not isinstance(value, int) or not 1 <= value <= MOST_THREADS:
            what = f"threads must be an integer from 1 to {MOST_THREADS}, not {value}"
            fail("out-of-range", what, place, help="for example -g threads=1,2")


def entries(jobs: Sequence[Job], shard: tuple[int, int] = (1, 1)) -> list[Entry]:
    """The cells of all jobs, numbered through; of a shard its own alone.

    Shards take turns that shift by one after each turn, so that none gets one method alone.
    """
    cells = [(job, point, cell) for job in jobs for point in job.sweep.points for cell in point.cells]
    part, parts = shard
    return [
        Entry(i, _key(job, point, cell), job, point, cell)
        for i, (job, point, cell) in enumerate(cells)
        if (i + i // parts) % parts == part - 1
    ]


def _key(job: Job, point: Point, cell: Cell) -> str:
    return json.dumps([job.target.name, cell.method, dict(point.settings)], sort_keys=True)


def orders(listed: Sequence[Entry], ask: Ask, results: Results) -> list[Item]:
    """What is to be measured of the cells listed; what is refused is noted in `results`. Opens every point once.

    A point beyond the limits leaves out itself alone. One that the spec can't be set to is a mistake in the grid, and
    leaves out all of the spec: it should be mended before time is spent on the rest.
    """
    items, mistaken = list[Item](), list[Target]()
    at: tuple[Point | None, Setup | None] = (None, None)
    for entry in listed:
        try:
            if at[0] is not entry.point:
                at = (entry.point, None)
                at = (entry.point, entry.job.target.open(_spec_settings(entry)))
            if at[1] is not None:
                items += _item(entry, at[1], ask, results)
        except BpError as error:
            results.refuse(error)
            if any(d.code not in _OF_A_CELL for d in error.diagnostics):
                mistaken.append(entry.job.target)
    return [item for item in items if all(item.target is not target for target in mistaken)]


def _item(entry: Entry, setup: Setup, ask: Ask, results: Results) -> list[Item]:
    """The order for a cell, or nothing where its method does not apply or goes beyond the limits."""
    job, cell = entry.job, entry.cell
    place = job.places.get(cell.base)
    call = checks.parse_measurable(cell.method, place)
    if reason := call.refusal(setup.graph):
        if job.alone:
            fail("method-refused", f"{call.text}: {reason}", place, help=methods.advice(setup.graph))
        results.note(f"{setup.spec.name}: skipped {call.text}: {reason}")
        return []
    cost = call.cost(setup)
    try:
        check_cost(setup, call.text, cost.bytes, cost.flops, ask.limits, PASSES * cost.forward_steps)
    except BpError as error:
        raise _at(error, entry.point) from None
    backends = (OURS, *(p.name for p in ask.peers if p.refusal(setup, call.text) is None))
    once = cost.flops / FLOPS_PER_SECOND + PASSES * cost.forward_steps * SECONDS_PER_STEP
    seconds = len(backends) * (START_SECONDS + CALLS * once + max(ask.budget, ROUNDS * once))
    threads = int(entry.point.settings[THREADS]) if job.threads_swept else ask.threads
    held = int(cost.bytes) + sum(array_bytes(setup).values())
    return [
        Item(
            entry.index, entry.key, job.target, job.sha256, _spec_settings(entry), cell, backends,
            threads, seconds, held, setup.dtype.name,
        )
    ]  # fmt: skip


def _spec_settings(entry: Entry) -> dict[str, Any]:
    """The settings of an entry's point that are the spec's."""
    return {k: v for k, v in entry.point.settings.items() if k != THREADS or not entry.job.threads_swept}


def _at(error: BpError, point: Point) -> BpError:
    """The error with the point of the sweep in its words."""
    where = ", ".join(f"{k}={v}" for k, v in point.settings.items())
    if not where:
        return error
    return BpError([dataclasses.replace(d, what=f"{d.what}, at {where}") for d in error.diagnostics], error.exit_code)


def _texts(setup: Setup, wish: Wish) -> tuple[tuple[str, ...], dict[str, Place]]:
    """The methods to run, and where the spec names them."""
    own = tuple(m.strip() for m in setup.spec.bench.methods)
    if wish.methods and not (wish.weak and own):
        return tuple(dict.fromkeys(wish.methods)), {}
    if own:
        source = setup.spec.source
        return tuple(dict.fromkeys(own)), {m: source.value("bench", "methods", str(i)) for i, m in enumerate(own)}
    return methods.defaults(setup.graph), {}


def _needed(texts: Sequence[str], grid: Grid, settings: Sequence[str]) -> tuple[str, ...]:
    """The methods whose options must be known: those that run; all, where a key of the grid is none of theirs."""
    known = methods.known_names()
    named = tuple(n for t in texts if (n := t.partition(":")[0].strip()) in known)
    theirs = {o for n in named for o in _options(n)}
    return named if all(k in settings or k in theirs for k in grid) else known


def _options(name: str) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(methods.load(name).Options))
