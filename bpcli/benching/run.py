"""A bench run: each spec swept over its grid, point by point; a refusal is noted and ends nothing but its own point."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bpcli import methods
from bpcli.benching import sweep
from bpcli.benching.measure import Ask, measure_point
from bpcli.benching.store import Row
from bpcli.benching.sweep import Cell, Grid, Point, Sweep, Value
from bpcli.errors import BpError, Collector, Diagnostic, Place, fail
from bpcli.methods import MethodCall
from bpcli.problem.draw import draw
from bpcli.problem.finite import check_finite
from bpcli.problem.limits import PASSES, check_cost
from bpcli.problem.model import Setup

Opener = Callable[[Mapping[str, Value]], Setup]


@dataclass
class Results:
    """What has been measured so far, and what was left out and why."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[Diagnostic] = field(default_factory=list)

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
class Job:
    """One spec with its sweep; `open_at` gives its Setup at a point, `places` where the spec names a method."""

    open_at: Opener
    sweep: Sweep
    places: Mapping[str, Place]
    alone: bool


def prepare(open_at: Opener, wish: Wish, results: Results) -> Job:
    """The sweep of one spec. Raises BpError for a spec, a grid or a method that can't be used."""
    setup = open_at({})
    spec = setup.spec
    texts, places = _texts(setup, wish)
    if both := [k for k in wish.grid if k in wish.fixed]:
        fail(
            "usage",
            f"--grid {both[0]} contradicts the value that --set, --dtype or --seed gives",
            help="give one of them",
        )
    own = {k: v for k, v in spec.bench.grid.items() if k not in wish.fixed}
    grid = sweep.merge(own, wish.grid)
    settings = sweep.settings_of(spec)
    options = {name: _options(name) for name in _needed(texts, grid, settings)}
    stand = {k: spec.source.key("bench", "grid", k) for k in own if k not in wish.grid}
    plan = sweep.plan(grid, settings, texts, options, lambda text, base: methods.parse(text, places.get(base)), stand)
    for text in plan.notes:
        results.note(f"{spec.name}: {text}")
    return Job(open_at, plan, places, wish.alone)


def run(job: Job, ask: Ask, results: Results, say: Callable[[int], None]) -> None:
    """Measure a job's cells, adding to `results` as they come; `say(k)` is called after every k cells."""
    for point in job.sweep.points:
        done = 0
        try:
            setup = job.open_at(point.settings)
            cells = _cells(job, setup, point, ask, results)
            if cells:
                problem = draw(setup)
                check_finite(problem)
                for rows in measure_point(problem, cells, ask, point.settings):
                    results.rows += rows
                    done += 1
                    say(1)
        except BpError as error:
            results.refuse(error)
        say(len(point.cells) - done)


def _cells(job: Job, setup: Setup, point: Point, ask: Ask, results: Results) -> list[tuple[Cell, MethodCall]]:
    """The cells of a point whose method applies to its graph and stays within the limits."""
    cells = []
    collector = Collector()
    for cell in point.cells:
        place = job.places.get(cell.base)
        call = methods.parse(cell.method, place)
        if reason := call.refusal(setup.graph):
            if job.alone:
                collector.add("method-refused", f"{call.text}: {reason}", place)
            else:
                results.note(f"{setup.spec.name}: skipped {call.text}: {reason}")
            continue
        try:
            cost = call.cost(setup)
            check_cost(setup, call.text, cost.bytes, cost.flops, ask.limits, PASSES * cost.forward_steps)
        except BpError as error:
            results.refuse(_at(error, point))
            continue
        cells.append((cell, call))
    if collector.diagnostics:
        results.refuse(BpError(collector.diagnostics))
    return cells


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
    return (("bptt", "rtrl") if setup.graph.recurrent else ("backprop",)), {}


def _needed(texts: Sequence[str], grid: Grid, settings: Sequence[str]) -> tuple[str, ...]:
    """The methods whose options must be known: those that run; all, where a key of the grid is none of theirs."""
    known = methods.known_names()
    named = tuple(n for t in texts if (n := t.partition(":")[0].strip()) in known)
    theirs = {o for n in named for o in _options(n)}
    return named if all(k in settings or k in theirs for k in grid) else known


def _options(name: str) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(methods.load(name).Options))
