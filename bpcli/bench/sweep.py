"""Plan a bench run: expand the grid of each spec into cells, and admit those that apply and stay within the limits.

A key of the grid is a *setting* of the spec (a dim, a constant, T, batch, dtype, seed) or of the run (threads), or an
*option* of a method (k1, k2, tau). Settings apply to every method. An option applies to the methods that have it, over
the value in their text; other methods run once rather than once a value. Options in the text of -m win over the
grid of the spec. A name that is both is the setting.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bpcli import methods
from bpcli.backends import Peer
from bpcli.bench.measurement import OURS, SLOW_SECONDS, THREADS, BenchResults, Cell, Value
from bpcli.checking.check_as_method import parse_measurable
from bpcli.errors import BpError, Place, fail, nearest
from bpcli.methods.base import Expectation
from bpcli.problem.definition import Setup
from bpcli.problem.limits import PASSES, Limits, array_bytes, check_cost, predicted_seconds
from bpcli.problem.setup import SpecFile, digest
from bpcli.spec.language import canonical
from bpcli.spec.load import parse_value
from bpcli.spec.sections import MAX_CELLS
from bpcli.spec.specification import Spec

Grid = Mapping[str, Sequence[Value]]
MethodOptions = Mapping[str, tuple[str, ...]]

ROUNDS = 7
"""Rounds of timed blocks a cell: the fewest samples whose median has a 95% interval."""
DRAWS = 16
"""Draws of a random method."""
ALL = "all"
"""The name among methods that stands for all that apply to the spec, with usual options that its grid may sweep."""
MAX_THREADS = 1024
_DATA_KEYS = ("T", "batch", "dtype", "seed")
_START_SECONDS = 1.5
_UNTIMED_CALLS = 8  # first call, memory, check and calibration
_CONCERNS_ONE_CELL = ("too-large", "too-long", "method-refused")


@dataclass(frozen=True)
class BenchOptions:
    """Methods, grid, budget, limits and draws of a bench run.

    `methods` replace those of the spec, or give way to them where `spec_first`. `fixed` names the settings that the
    command line sets, which a grid must not sweep. `budget` is the seconds of timed blocks a row, `peers` are measured
    beside bp, and `shard` (i, n) takes part i of n of the cells, counted from 1. `alone`: there is one spec, so that
    messages need not name it and a method that does not apply is an error. `draws` of a random method have its bias and
    variance.
    """

    methods: tuple[str, ...] = ()
    spec_first: bool = False
    grid: Grid = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    budget: float = 0.5
    threads: int = 1
    peers: tuple[Peer, ...] = ()
    limits: Limits = field(default_factory=Limits)
    shard: tuple[int, int] = (1, 1)
    alone: bool = True
    draws: int = DRAWS


@dataclass(frozen=True)
class Sweep:
    """The cells of one spec, its digest, and where the spec names each method."""

    spec: SpecFile
    sha256: str
    cells: tuple[Cell, ...]
    places: Mapping[str, Place]


@dataclass(frozen=True)
class Variant:
    """A method with values of the grid over its options; `base` is its text without them."""

    method: str
    base: str
    values: Mapping[str, Value]


def plan_sweep(spec: SpecFile, options: BenchOptions, results: BenchResults) -> Sweep:
    """The cells of one spec; `results` notes what was left out.

    Raises BpError for a spec, a grid key or a method that cannot be used.
    """
    setup = spec.open({})
    texts, places = _methods(setup, options)
    if both := [k for k in options.grid if k in options.fixed]:
        what = f"--grid {both[0]} contradicts the value that --set, --dtype, --seed or --threads gives"
        fail("usage", what, help="give one of them")
    own = {k: v for k, v in setup.spec.bench.grid.items() if k not in options.fixed}
    grid = merge(own, options.grid)
    settings = _settings(setup.spec)
    key_place = {k: setup.spec.source.key("bench", "grid", k) for k in own if k not in options.grid}
    threads_swept = THREADS in grid and THREADS not in (*setup.spec.dims, *setup.spec.constants)
    for value in grid[THREADS] if threads_swept else ():
        if not isinstance(value, int) or not 1 <= value <= MAX_THREADS:
            what = f"threads must be an integer from 1 to {MAX_THREADS}, not {value}"
            fail("out-of-range", what, key_place.get(THREADS), help="for example -g threads=1,2")
    names = {name: _option_names(name) for name in _relevant_methods(texts, grid, settings)}
    asked = () if places else options.methods
    settled = {
        t: {*given_options(t, names.get(_name(t), ()))} - {*options.grid, *(() if t in asked else own)} for t in texts
    }
    try:
        points, variants, notes = expand(
            grid, settings, settled, names, lambda text, base: parse_measurable(text, places.get(base)), key_place
        )
    except BpError as error:
        named = error.diagnostics if options.alone else [d.about(spec.name) for d in error.diagnostics]
        raise BpError(named, error.exit_code) from None
    for text in notes:
        results.note(f"{spec.name}: {text}")
    sha256, cells = digest(setup, spec.path), []
    for point in points:
        threads = int(point[THREADS]) if threads_swept else options.threads
        of_spec = {k: v for k, v in point.items() if k != THREADS or not threads_swept}
        for variant in variants:
            both_values = {**point, **variant.values}
            swept = {k: both_values[k] for k in grid if k in both_values}
            cells.append(Cell(spec, sha256, threads, variant.method, variant.base, of_spec, swept, draws=options.draws))
    return Sweep(spec, sha256, tuple(cells), places)


def cells_of(sweeps: Sequence[Sweep], shard: tuple[int, int] = (1, 1)) -> list[Cell]:
    """The cells of all sweeps, numbered, or those of one shard.

    Shards take turns in an order that shifts by one each turn, so that no shard gets a single method.
    """
    part, parts = shard
    cells = enumerate(cell for sweep in sweeps for cell in sweep.cells)
    return [dataclasses.replace(c, index=i) for i, c in cells if (i + i // parts) % parts == part - 1]


def admit(sweeps: Sequence[Sweep], cells: Sequence[Cell], options: BenchOptions, results: BenchResults) -> list[Cell]:
    """The cells that can be measured, with backends and predicted cost; refusals go to `results`.

    The spec is opened once for the cells of each point. A cell beyond the limits is left out alone. Any other refusal
    is a mistake in the grid and leaves out the whole spec, so that it is corrected before time is spent.
    """
    places = {(sweep.spec.name, method): place for sweep in sweeps for method, place in sweep.places.items()}
    admitted, mistaken = list[Cell](), list[SpecFile]()

    def reject(error: BpError, cell: Cell) -> None:
        results.refuse(error)
        if any(d.code not in _CONCERNS_ONE_CELL for d in error.diagnostics):
            mistaken.append(cell.spec)

    for _, group in itertools.groupby(cells, key=lambda c: (id(c.spec), c.settings)):
        members = list(group)
        try:
            setup = members[0].spec.open(members[0].settings)
        except BpError as error:
            reject(error, members[0])
            continue
        for cell in members:
            try:
                admitted += _admitted(cell, setup, options, (places.get((cell.spec.name, cell.base)), results))
            except BpError as error:
                reject(error, cell)
    return [cell for cell in admitted if all(cell.spec is not spec for spec in mistaken)]


def _admitted(cell: Cell, setup: Setup, options: BenchOptions, told: tuple[Place | None, BenchResults]) -> list[Cell]:
    """The cell with its predictions, or nothing where its method does not apply. Raises BpError beyond the limits."""
    place, results = told
    call = parse_measurable(cell.method, place)
    if reason := call.refusal(setup.graph):
        if options.alone:
            fail("method-refused", f"{call.text}: {reason}", place, help=methods.advice(setup.graph))
        results.note(f"{setup.spec.name}: skipped {call.text}: {reason}")
        return []
    cost = call.cost(setup)
    try:
        check_cost(setup, call.text, cost.bytes, cost.flops, options.limits, PASSES * cost.forward_steps)
    except BpError as error:
        point = {**cell.settings, **{k: v for k, v in cell.grid.items() if k == THREADS}}
        where = ", at " * bool(point) + ", ".join(f"{k}={v}" for k, v in point.items())
        located = [dataclasses.replace(d, what=f"{d.what}{where}") for d in error.diagnostics]
        raise BpError(located, error.exit_code) from None
    backends = (OURS, *(p.name for p in options.peers if p.refusal(setup, call.text) is None))
    once = predicted_seconds(cost.flops, PASSES * cost.forward_steps)
    drawn = cell.draws if isinstance(call.definition(setup), Expectation) else 1
    warming = ROUNDS * once if once < SLOW_SECONDS else 0.0
    seconds = len(backends) * (_START_SECONDS + _UNTIMED_CALLS * once + warming + max(options.budget, ROUNDS * once))
    seconds += (drawn - 1) * once
    held = int(cost.bytes) + sum(array_bytes(setup).values())
    return [dataclasses.replace(cell, backends=backends, dtype=setup.dtype.name, seconds=seconds, bytes=held)]


def _methods(setup: Setup, options: BenchOptions) -> tuple[tuple[str, ...], dict[str, Place]]:
    """The methods to run, and where the spec names them."""
    own = tuple(m.strip() for m in setup.spec.bench.methods)
    if options.methods and not (options.spec_first and own):
        return tuple(dict.fromkeys(t for m in options.methods for t in _those(m, setup))), {}
    if own:
        source = setup.spec.source
        places = {m: source.value("bench", "methods", str(i)) for i, m in enumerate(own)}
        found = {text: place for m, place in places.items() for text in _those(m, setup)}
        return tuple(found), found
    return methods.default_methods(setup.graph), {}


def _those(method: str, setup: Setup) -> tuple[str, ...]:
    """The method itself, or the methods that `all` stands for."""
    return methods.all_methods(setup) if method.strip() == ALL else (method,)


def _settings(spec: Spec) -> tuple[str, ...]:
    """The keys that a grid can set in a spec; T only in a recurrent one."""
    keys = (*spec.dims, *spec.constants, *_DATA_KEYS, THREADS)
    return keys if spec.states else tuple(k for k in keys if k != "T")


def _relevant_methods(texts: Sequence[str], grid: Grid, settings: Sequence[str]) -> tuple[str, ...]:
    """The methods that run, or all methods where a grid key is unknown to those, so that its spelling can be mended."""
    known = methods.known_names()
    named = tuple(n for t in texts if (n := _name(t)) in known)
    theirs = {o for n in named for o in _option_names(n)}
    return named if all(k in settings or k in theirs for k in grid) else known


def _option_names(method: str) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(methods.load(method).Options))


def merge(of_spec: Grid, given: Grid) -> dict[str, tuple[Value, ...]]:
    """The spec's grid updated by the command line's; repeated values count once."""
    return {k: tuple(dict.fromkeys(v)) for k, v in {**of_spec, **given}.items()}


def expand(
    grid: Grid,
    settings: Sequence[str],
    texts: Mapping[str, Collection[str]],
    options: MethodOptions,
    check: Callable[[str, str], object],
    places: Mapping[str, Place] | None = None,
) -> tuple[list[dict[str, Value]], list[Variant], list[str]]:
    """The points of a grid, the method variants that run at each of them, and notes on what was left out.

    `texts` are the methods, each with those of its options that stay as they are. `options` maps method names to the
    names of their options. `check(text, base)` parses a method text and raises
    BpError; swept values out of the method's range (k2 below k1) are left out with a note. `places` locates grid
    keys. Raises BpError for an unknown key, a method that does not parse, and more than `MAX_CELLS` cells.
    """
    known = {o for names in options.values() for o in names}
    for key in grid:
        if key not in settings and key not in known:
            near = nearest(key, {*settings, *known})
            fail("unknown-key", f'unknown grid key "{key}"', (places or {}).get(key), help=near)
    axes = {k: v for k, v in grid.items() if k in settings}
    free = {m: {*options.get(_name(m), ())} - {*stays} for m, stays in texts.items()}
    tuned = {m: {k: v for k, v in grid.items() if k not in axes and k in free[m]} for m in texts}
    cells = _size(axes) * sum(map(_size, tuned.values()))
    if cells > MAX_CELLS:
        advice = f"{MAX_CELLS:,} at most; give fewer values with -g KEY=V1,V2"
        fail("too-large", f"a sweep of {cells:,} cells", help=advice)
    applied = {k for t in tuned.values() for k in t}
    unused = [k for k in grid if k not in axes and k not in applied]
    fixed = {k for stays in texts.values() for k in stays}
    reasons = {k: "given by -m" if k in fixed else f"no option of {' or '.join(texts)}" for k in unused}
    notes = [f'"{k}" is {reason}: not swept' for k, reason in reasons.items()]
    variants: dict[str, Variant] = {}
    for base in texts:
        for values in _combinations(tuned[base]):
            text = with_options(base, values, options.get(_name(base), ()))
            if reason := _out_of_range(text, base, check, bool(values)):
                notes.append(f"{text}: left out, {reason}")
            else:
                variants.setdefault(text, Variant(text, base, values))
    return list(_combinations(axes)), list(variants.values()), notes


def with_options(text: str, values: Mapping[str, Value], options: Sequence[str]) -> str:
    """A method text with `values` in place of its own: `tbptt:k1=1,k2=8` with k2=4 gives `tbptt:k1=1,k2=4`.

    `options` names the method's options in order.
    """
    if not values:
        return text.strip()
    given = given_options(text, options) | {k: str(v) for k, v in values.items()}
    ordered = sorted(given, key=lambda k: options.index(k) if k in options else len(options))
    return f"{_name(text)}:" + ",".join(f"{k}={given[k]}" for k in ordered)


def given_options(text: str, options: Sequence[str]) -> dict[str, str]:
    """The options in a method text and their values; a value without a name belongs to the only option."""
    given: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.partition(":")[2].split(","))):
        option, equals, value = (p.strip() for p in part.partition("="))
        given[option if equals or len(options) != 1 else options[0]] = value if equals else option
    return given


def _out_of_range(text: str, base: str, check: Callable[[str, str], object], swept: bool) -> str:
    """Why swept values are out of a method's range, "" where they are not. Raises BpError for any other fault."""
    try:
        check(text, base)
    except BpError as error:
        if not swept or any(d.code != "out-of-range" for d in error.diagnostics):
            raise
        return error.diagnostics[0].what
    return ""


def _combinations(axes: Mapping[str, Sequence[Value]]) -> Iterator[dict[str, Value]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _size(axes: Mapping[str, Sequence[Value]]) -> int:
    return math.prod(map(len, axes.values()))


def _name(text: str) -> str:
    return text.partition(":")[0].strip()


def parse_axis(text: str) -> tuple[str, tuple[Value, ...]]:
    """Parse `KEY=V1,V2,…` of --grid into integers, numbers or words. Raises BpError for any other form."""
    key, equals, tail = text.partition("=")
    words = [w.strip() for w in tail.split(",")]
    if not equals or not key.strip() or not all(words):
        fail("usage", f'expected KEY=V1,V2,… for --grid, got "{text}"', help="for example -g n=16,32,64")
    return canonical(key.strip()), tuple(parse_value(w) for w in words)
