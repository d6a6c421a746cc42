"""The cost of a run before it is paid: told on stderr where it is long, and shown as a table by --dry-run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from bpcli.api.check_runner import Forecast
from bpcli.bench.measurement import BenchResults, Cell, grid_keys
from bpcli.checking.findings import Finding
from bpcli.commands.output import Say, describe, duration, emit
from bpcli.commands.shared_options import Common
from bpcli.errors import Diagnostic
from bpcli.problem.limits import PASSES, array_bytes, format_bytes, predicted_seconds
from bpcli.render import Column, Document, seconds, words
from bpcli.render.columns import legend

if TYPE_CHECKING:
    from bpcli.bench.sweep import BenchOptions, Sweep
    from bpcli.checking.sources.gradient_source import GradientSource
    from bpcli.methods import MethodCall
    from bpcli.problem.definition import Setup

LONG = 10.0
"""Predicted seconds from which a run says what it will take."""
PREDICTED = ("predicted_bytes", "total_bytes", "flops", "predicted_s")
_CHECK = "the check"
_SETTINGS = ("T", "batch", "dtype", "threads")


class LongCheck:
    """Notes on a long check while it runs: its forecast, the time that is left, and findings as they come.

    `begin` and `told` are hooks of `api.check_runner.Call`; `where` says which of the specs it is.
    """

    def __init__(self, common: Common, say: Say, where: str) -> None:
        self._common, self._say, self._where = common, say, where
        self._start, self._long = time.monotonic(), False

    def begin(self, forecast: Forecast) -> bool:
        """Announce the check of a spec."""
        self._long = forecast.seconds >= LONG
        if self._long:
            about = f"about {duration(forecast.seconds)} and {format_bytes(forecast.bytes)}"
            self._common.note(f"{forecast.setup.spec.name}: {about}")
            self._say(lambda: f"{self._where}, {left(self._start + forecast.seconds)}")
        return True

    def told(self, found: Sequence[Finding]) -> None:
        """Show the findings on a method, of a check that is long or has become so."""
        if found and (self._long or time.monotonic() - self._start >= LONG):
            counts = [(v, sum(f.verdict == v for f in found)) for v in ("wrong", "inconclusive", "pass")]
            verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts if count)
            self._common.note(f"{found[0].spec} {found[0].method}: {verdicts}")


def left(end: float) -> str:
    """The time to `end`, of the monotonic clock, in words."""
    rest = end - time.monotonic()
    return f"about {duration(rest)} left" if rest > 0 else "longer than predicted"


def bench_notes(cells: Sequence[Cell], results: BenchResults, common: Common) -> Callable[[Cell], None]:
    """Announce a long run; returns a function that shows the rows of a finished cell of such a run."""
    total = sum(cell.seconds for cell in cells)
    if total < LONG:
        return lambda cell: None
    most = max(cell.bytes for cell in cells)
    common.note(f"{_counted(cells)}, about {duration(total)}; the largest takes {format_bytes(most)}")

    def show(cell: Cell) -> None:
        for row in results.found.get(cell.index, ()):
            who = "" if row["backend"] == "bp" else f" by {row['backend']}"
            took = "not timed" if row["time_s"] is None else seconds(row["time_s"])
            held = "" if row["predicted_bytes"] is None else f"{format_bytes(row['predicted_bytes'])}, "
            common.note(f"{cell.label}{who}: {took}, {held}{row['check']['verdict']}")

    return show


def show_bench_plan(
    sweeps: Sequence[Sweep], options: BenchOptions, results: BenchResults, common: Common, paths: Sequence[object]
) -> int:
    """Print the plan of a bench; returns the exit code."""
    from bpcli.bench.sweep import admit, cells_of
    from bpcli.checking.check_as_method import parse_measurable

    cells = admit(sweeps, cells_of(sweeps, options.shard), options, results)
    rows = []
    for cell in cells:
        setup = cell.spec.open(cell.settings)
        row = _predicted(setup, parse_measurable(cell.method, None))
        rows.append({**row, "grid": dict(cell.grid), "threads": cell.threads})
    whole = sum(cell.seconds for cell in cells)
    sentence = f"{_counted(cells)}, about {duration(whole)} in all."
    keys = grid_keys(rows)
    columns = [_text("spec"), _text("method"), *(_swept(key) for key in keys), *map(_text, _SETTINGS), *_figures()]
    return _show(rows, columns, (sentence,), results.errors, results.notes, (common, paths))


def show_check_plan(
    forecasts: Sequence[Forecast], errors: Sequence[Diagnostic], notes: Sequence[str], common: Common
) -> int:
    """Print the plan of a check: a row for each method, and one for the check with its references."""
    rows, sentences = [], []
    for forecast in forecasts:
        setup = forecast.setup
        own = [_predicted(setup, method) for method in forecast.methods]
        arrays = sum(array_bytes(setup).values())
        figures = (forecast.bytes - arrays, forecast.bytes, forecast.taken.flops, forecast.seconds)
        rows += [*own, {**own[0], "method": _CHECK, **dict(zip(PREDICTED, figures, strict=True))}]
        sentences.append(f"{setup.spec.name}: {forecast.taken}.")
    total = sum(forecast.seconds for forecast in forecasts)
    sentences.append(f"About {duration(total)} in all; a row called {_CHECK} is for all methods and the references.")
    columns = [_text("spec"), _text("method"), *map(_text, _SETTINGS[:-1]), *_figures()]
    paths = [forecast.setup.spec.name for forecast in forecasts]
    return _show(rows, columns, sentences if forecasts else (), errors, notes, (common, paths))


def _counted(cells: Sequence[Cell]) -> str:
    return "1 cell" if len(cells) == 1 else f"{len(cells)} cells"


def _predicted(setup: Setup, call: MethodCall | GradientSource) -> dict[str, Any]:
    """The row of one gradient."""
    cost, arrays = call.cost(setup), sum(array_bytes(setup).values())
    return {
        "spec": setup.spec.name,
        "method": call.text,
        "T": setup.T if setup.graph.recurrent else None,
        "batch": setup.batch,
        "dtype": setup.dtype.name,
        "predicted_bytes": int(cost.bytes),
        "total_bytes": int(cost.bytes) + arrays,
        "flops": cost.flops,
        "predicted_s": predicted_seconds(cost.flops, PASSES * cost.forward_steps),
    }


def _text(key: str) -> Column:
    return Column(key, key, lambda row: row[key], words, right=key in ("T", "batch"), label=key in ("spec", "method"))


def _swept(key: str) -> Column:
    return Column(f"grid_{key}" if key in _SETTINGS else key, key, lambda row: row["grid"].get(key), words)


def _figures() -> list[Column]:
    """The columns of what is predicted."""
    shown: Mapping[str, tuple[str, Callable[[Any], str]]] = {
        "predicted_bytes": ("predicted", format_bytes),
        "total_bytes": ("with arrays", format_bytes),
        "flops": ("operations", lambda count: f"{count:.3g}"),
        "predicted_s": ("time", seconds),
    }
    return [Column(key, heading, itemgetter(key), show) for key, (heading, show) in shown.items()]


def _show(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    sentences: Sequence[str],
    errors: Sequence[Diagnostic],
    notes: Sequence[str],
    about: tuple[Common, Sequence[object]],
) -> int:
    """Print the document; the exit code is 2 where something was refused, 5 where there is nothing to do, else 0."""
    common, paths = about
    context = describe("plan", common, specs=[str(path) for path in paths])
    explained = legend({c.key: c.heading for c in columns}, PREDICTED)
    told = () if common.quiet else notes
    document = Document("Plan", "plan", columns, rows, context, {}, sentences, explained, told, errors)
    return emit(document, common) or (2 if errors else 0 if rows else 5)
