"""From a grid to cells: which points to set a spec to, and which methods to run at each.

A key of the grid is a *setting* of the spec (a dim, a constant, T, batch, dtype, seed) or of the run (threads), or an
*option* of a method (k1, k2, tau). A setting applies to every method. An option applies to the methods that have it and
overrides what their text says; the others run once, not once a value. A name that is both is the spec's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bpcli.bench.target import Target
from bpcli.errors import BpError, Place, fail, nearest
from bpcli.spec.language import canonical
from bpcli.spec.overrides import parse_value
from bpcli.spec.sections import MAX_CELLS
from bpcli.spec.specification import Spec


@dataclass(frozen=True)
class Item:
    """A cell that is to be measured, number `index` of its run; `seconds` and `bytes` are what it may take."""

    index: int
    key: str
    target: Target
    sha256: str
    settings: Mapping[str, Any]
    cell: Cell
    backends: tuple[str, ...]
    threads: int
    seconds: float
    bytes: int
    dtype: str

    @property
    def label(self) -> str:
        """The cell in a few words."""
        settings = "".join(f" {k}={v}" for k, v in self.settings.items())
        return f"{self.target.name} {self.cell.method}{settings}"


OURS = "bp"


Value = int | float | str
Grid = Mapping[str, Sequence[Value]]
Options = Mapping[str, tuple[str, ...]]

DATA_KEYS = ("T", "batch", "dtype", "seed")
THREADS = "threads"
"""A setting of the run, not of the spec."""


@dataclass(frozen=True)
class Cell:
    """One method at one point, called `base` before its options were swept; `grid` holds the keys that apply to it."""

    method: str
    base: str
    grid: Mapping[str, Value]


@dataclass(frozen=True)
class Point:
    """A setting of the spec, and the cells that run there."""

    settings: Mapping[str, Value]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Sweep:
    """All that is to be measured of one spec; `notes` say what was left out and why."""

    points: tuple[Point, ...]
    notes: tuple[str, ...]

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return sum(len(p.cells) for p in self.points)


def settings_of(spec: Spec) -> tuple[str, ...]:
    """What a grid can set in a spec."""
    keys = (*spec.dims, *spec.constants, *DATA_KEYS, THREADS)
    return keys if spec.states else tuple(k for k in keys if k != "T")


def merge(given: Grid, extra: Grid) -> dict[str, tuple[Value, ...]]:
    """The spec's grid with the command line's over it: keys replaced where they are in both, added where not."""
    return {k: tuple(dict.fromkeys(v)) for k, v in {**given, **extra}.items()}


def plan(
    grid: Grid,
    settings: Sequence[str],
    methods: Sequence[str],
    options: Options,
    check: Callable[[str, str], object],
    places: Mapping[str, Place] | None = None,
) -> Sweep:
    """The cells of a grid: for each point every method, and for each method every value of its options.

    `options` takes the name of every method to the names of its options. `check(text, method)` parses a method's
    text, which came from `method`, and raises BpError: a combination of values that a method does not take (k2
    smaller than k1) is left out with a note. `places` says where keys of the grid stand. Raises BpError for a key
    that is neither a setting nor an option, for a method that does not parse, and for more than `MAX_CELLS` cells.
    """
    known = {o for names in options.values() for o in names}
    for key in grid:
        if key not in settings and key not in known:
            fail(
                "unknown-key",
                f'unknown grid key "{key}"',
                (places or {}).get(key),
                help=nearest(key, {*settings, *known}),
            )
    axes = {k: v for k, v in grid.items() if k in settings}
    tuned = {m: {k: v for k, v in grid.items() if k not in axes and k in options.get(_name(m), ())} for m in methods}
    _refuse_crowd(_size(axes) * sum(_size(t) for t in tuned.values()))
    applied = {k for t in tuned.values() for k in t}
    notes = [
        f'"{k}" is no option of {" or ".join(methods)}: not swept' for k in grid if k not in axes and k not in applied
    ]
    texts: dict[str, tuple[str, dict[str, Value]]] = {}
    for method in methods:
        for values in _combinations(tuned[method]):
            text = with_options(method, values, options.get(_name(method), ()))
            if reason := _left_out(text, method, check, bool(values)):
                notes.append(reason)
            else:
                texts.setdefault(text, (method, values))
    points = tuple(_point(grid, setting, texts) for setting in _combinations(axes))
    return Sweep(points, tuple(notes))


def _point(grid: Grid, setting: Mapping[str, Value], texts: Mapping[str, tuple[str, Mapping[str, Value]]]) -> Point:
    def cell(text: str, base: str, values: Mapping[str, Value]) -> Cell:
        both = {**setting, **values}
        return Cell(text, base, {k: both[k] for k in grid if k in both})

    return Point(setting, tuple(cell(text, *rest) for text, rest in texts.items()))


def with_options(text: str, values: Mapping[str, Value], options: Sequence[str]) -> str:
    """A method's text with `values` over the options that it gives: `tbptt:k1=1,k2=8` and k2=4 make `tbptt:k1=1,k2=4`.

    `options` are the names of the method's options, in order; a value written without a name belongs to the only one.
    """
    text = text.strip()
    if not values:
        return text
    name, _, tail = text.partition(":")
    given: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in tail.split(","))):
        option, equals, value = (p.strip() for p in part.partition("="))
        given[option if equals or len(options) != 1 else options[0]] = value if equals else option
    given |= {k: str(v) for k, v in values.items()}
    ordered = sorted(given, key=lambda k: options.index(k) if k in options else len(options))
    return f"{name.strip()}:" + ",".join(f"{k}={given[k]}" for k in ordered)


def _left_out(text: str, method: str, check: Callable[[str, str], object], swept: bool) -> str:
    """Why a combination of values is left out, "" where it is not; raises BpError for anything but a range."""
    try:
        check(text, method)
    except BpError as error:
        if not swept or any(d.code != "out-of-range" for d in error.diagnostics):
            raise
        return f"{text}: left out, {error.diagnostics[0].what}"
    return ""


def _refuse_crowd(cells: int) -> None:
    if cells > MAX_CELLS:
        fail(
            "too-large",
            f"a sweep of {cells:,} cells",
            help=f"{MAX_CELLS:,} at most; give fewer values with -g KEY=V1,V2",
        )


def _combinations(axes: Mapping[str, Sequence[Value]]) -> Iterator[dict[str, Value]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _size(axes: Mapping[str, Sequence[Value]]) -> int:
    size = 1
    for values in axes.values():
        size *= len(values)
    return size


def _name(text: str) -> str:
    return text.partition(":")[0].strip()


def parse_axis(text: str) -> tuple[str, tuple[Value, ...]]:
    """`KEY=V1,V2,…` of the command line: integers, else numbers, else words. Raises BpError for anything else."""
    key, equals, tail = text.partition("=")
    words = [w.strip() for w in tail.split(",")]
    if not equals or not key.strip() or not all(words):
        fail("usage", f'expected KEY=V1,V2,… for --grid, got "{text}"', help="for example -g n=16,32,64")
    return canonical(key.strip()), tuple(parse_value(w) for w in words)
