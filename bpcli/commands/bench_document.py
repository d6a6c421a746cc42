"""The files of a bench run: a CSV file for each spec, and the journal while it runs.

The rows of a bench run: all of each for programs, what people compare for people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpcli.bench.rows import HEAD, TAIL, Row, column_name, csv_keys, grid_keys, over_seeds, without_seed
from bpcli.bench.scaling import laws
from bpcli.bench.sentences import frontier, sentences
from bpcli.bench.sweep import OURS
from bpcli.commands.common import Common
from bpcli.errors import Diagnostic
from bpcli.problem.limits import format_bytes
from bpcli.render.document import Case, Column, Document

if TYPE_CHECKING:
    from bpcli.bench.journal import Journal
    from bpcli.bench.planning import Results


_REPORTS = Path("reports")
_NAMED = 12


def csv_files(jobs: Iterable[str], common: Common) -> dict[str, Path]:
    """The CSV file of each spec by name, tested before anything is measured; none where --output names one."""
    if any(name == "csv" for name, _ in common.outputs):
        return {}
    from bpcli.commands.specs import test_writable

    files: dict[str, Path] = {}
    for spec in jobs:
        stem = spec.replace("/", "-")
        while (file := _REPORTS / f"bench-{stem}.csv") in files.values():
            stem += "-"  # a/net beside a-net
        files[spec] = file
    if files:
        _make_reports()
    for file in files.values():
        test_writable(str(file))
    return files


def _make_reports() -> None:
    from bpcli.errors import fail

    try:
        _REPORTS.mkdir(exist_ok=True)
    except OSError as error:
        fail(
            "unwritable",
            f'cannot make the folder "{_REPORTS}": {error.strerror}',
            help="name a file: --output csv=PATH",
        )


def write_csv(files: Mapping[str, Path], results: Results, common: Common) -> None:
    """A CSV file for each spec that has rows."""
    from bpcli.bench.rows import by_spec
    from bpcli.commands.output import note
    from bpcli.render import write

    for spec, rows in by_spec(results.rows).items():
        if spec in files:
            write(full_document(rows), "csv", files[spec])
            note(f"wrote {files[spec]}", common)


def open_journal(about: Mapping[str, Any], resume: bool, common: Common) -> Journal:
    """The journal of the run that `about` describes: in reports/, or beside the CSV file that --output names.

    Its name holds the run's hash, by which `resume` finds it again.
    """
    from bpcli.bench.journal import Journal, run_hash
    from bpcli.commands.output import note

    run = run_hash(about)
    named = next((Path(path).parent for name, path in common.outputs if name == "csv"), None)
    journal = Journal((named or _REPORTS) / f"bench-{run[:_NAMED]}.journal.jsonl", run, resume)
    if resume and not journal.rows:
        note("nothing to resume: no cell of this very run was finished before", common)
    if journal.kept:
        note(f"an unfinished run of the same cells is kept as {journal.kept}; --resume would have gone on", common)
    return journal


def close_journal(journal: Journal, keys: Sequence[str], interrupted: bool, common: Common) -> None:
    """Remove the journal where every cell is in it, or none, else say how to go on."""
    from bpcli.commands.output import note

    left = sum(key not in journal.rows for key in keys)
    journal.close(remove=not journal.rows or (not left and not interrupted))
    if left and journal.rows:
        note(f"{left} of {len(keys)} cells are left; the same call with --resume goes on ({journal.path})", common)


_STYLES = {"pass": "", "wrong": "bold red", "inconclusive": "yellow"}


def full_document(
    rows: Sequence[Row],
    errors: Sequence[Diagnostic] = (),
    context: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Document:
    """Every row with every column of the CSV format; the rows themselves hold more: samples, check, ratio to peers.

    Each is marked with `pareto`: whether it is on the frontier of error, time and memory at its point.
    """
    rows = _marked(rows)
    keys = grid_keys(rows)
    names = dict(zip(csv_keys(keys), (*HEAD, *keys, *TAIL), strict=True))
    grid = {column_name(k) for k in keys}
    return Document(
        title="Benchmark",
        rows_key="cells",
        columns=[_column(name, key, name in grid) for name, key in names.items()],
        rows=rows,
        context=context or {},
        summary=_summary(rows),
        sentences=sentences(rows) or ["Nothing was measured."],
        notes=[*notes, *_faults(rows), *_rates(context or {})],
        errors=errors,
        style=lambda row: _STYLES[row["check"]["verdict"]],
        case=_case,
    )


def brief_document(full: Document, quiet: bool) -> Document:
    """What people compare, seeds taken together; what is the same in all rows has no column.

    When `quiet`, only rows that do not pass.
    """
    together = over_seeds(full.rows)
    rows = [r for r in together if r["check"]["verdict"] != "pass"] if quiet else together
    shown = [c for c in _BRIEF if c.key in ("method", "time_s") or _varies(together, c)]
    # Not options of methods, which are in their names.
    keys = dict.fromkeys(k for r in together for k in r["grid"] if k in r["settings"] or k == "threads")
    swept = [c for c in (_column(k, k, True) for k in keys) if _varies(together, c)]
    at = 1 + max(i for i, c in enumerate(shown) if c.key in ("spec", "method", "backend"))
    return Document(
        title=full.title,
        rows_key=full.rows_key,
        columns=[*shown[:at], *swept, *shown[at:]],
        rows=rows,
        sentences=full.sentences if rows or not quiet else (),
        notes=_faults(full.rows) if quiet else full.notes,
        errors=full.errors,
        style=full.style,
    )


def _marked(rows: Sequence[Row]) -> list[Row]:
    """The rows with their marks; those that differ by their seed alone share one."""
    together = over_seeds(rows)
    marks = {without_seed(row): mark for row, mark in zip(together, frontier(together), strict=True)}
    return [{**row, "pareto": marks[without_seed(row)]} for row in rows]


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts; the growth laws; and figures over seeds, where a sweep has several."""
    verdicts = [r["check"]["verdict"] for r in rows]
    measured = sum(r["time_s"] is not None for r in rows)
    counts = {"measured": measured, "wrong": verdicts.count("wrong"), "inconclusive": verdicts.count("inconclusive")}
    seeds = [{k: row[k] for k in _OVER_SEEDS} for row in over_seeds(rows) if "seeds" in row]
    return {**counts, "laws": [law.plain() for law in laws(rows)], "over_seeds": seeds}


def _faults(rows: Sequence[Row]) -> list[str]:
    """What is wrong with the gradients that are, and where."""
    said = []
    for row in rows:
        check = row["check"]
        if check["detail"]:
            where = "".join(f" {k}={v}" for k, v in row["settings"].items())
            by = "" if row["backend"] == OURS else f" by {row['backend']}"
            said.append(
                f"{row['spec']} {row['method']}{by}{where}: {check['verdict']}: {check['detail']} ({check['how']})"
            )
    return said


def _case(row: Row) -> Case:
    """A cell as a test: whether its gradient was right, and how long it took."""
    check = row["check"]
    backend = [] if row["backend"] == OURS else [f"by {row['backend']}"]
    name = " ".join([row["method"], *backend, *(f"{k}={v}" for k, v in row["settings"].items())])
    message = ": ".join(part for part in (check["verdict"], check["detail"]) if part)
    return Case(row["spec"], name, check["verdict"], message, (check["how"],), seconds=row["time_s"])


def _rates(context: Mapping[str, Any]) -> list[str]:
    """The machine in a line."""
    machine = context.get("machine", {})
    rates = [f"GEMM {v / 1e9:.3g} GFLOP/s in {k.split('_')[1]}" for k, v in machine.items() if k.startswith("gemm_")]
    if not rates:
        return []
    copy = f"copy {machine['copy_bytes_per_s'] / 1e9:.3g} GB/s"
    return [f"{machine['cpu']}, {machine['cores']} cores: {', '.join([*rates, copy])}."]


def _varies(rows: Sequence[Row], column: Column) -> bool:
    """Whether a column tells rows apart, or tells something at all where only some columns could."""
    values = [column.get(r) for r in rows]
    told = any(v is not None and v != "" for v in values)
    return told and (column.key in _MEASURED or len({repr(v) for v in values}) > 1)


def _column(name: str, key: str, grid: bool) -> Column:
    """A column of the full document."""
    if grid:
        return Column(name, key, lambda row: row["grid"].get(key), _words, label=True)
    # A run that was saved by an earlier version has no limit.
    return Column(name, name, lambda row: row.get(key), _SHOWN.get(key, _figure), right=key not in _LEFT)


def _of(key: str) -> Callable[[Row], Any]:
    return lambda row: row[key]


def _words(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _figure(value: Any) -> str:
    return "" if value is None else str(value) if isinstance(value, str | int) else f"{value:.4g}"


def _bytes(value: Any) -> str:
    return "" if value is None else format_bytes(value)


def _seconds(value: Any) -> str:
    """Three digits in a unit that suits."""
    if value is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= 0.9995 * size:  # three digits of the smaller unit would be 1e+03
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def _percent(value: Any) -> str:
    return "" if value is None else f"{100 * value:.2g}%" if value < 0.995 else f"{100 * value:.0f}%"


def _cosine(value: Any) -> str:
    return "" if value is None else f"{value:.6g}"


def _spread(row: Row) -> float | None:
    """Half the interval as a part of the median."""
    return None if row["time_s"] is None else (row["time_high_s"] - row["time_low_s"]) / (2.0 * row["time_s"])


def _range(row: Row) -> str | None:
    """The range of a gradient's cosine over the seeds."""
    if "cosine" not in row.get("spread", {}):
        return None
    return " to ".join(_cosine(v) for v in row["spread"]["cosine"])


def _mark(row: Row) -> str | None:
    return "*" if row["pareto"] else None


def _times(value: Any) -> str:
    return "" if value is None else f"{value['median']:.2g}x"


_SHOWN: Mapping[str, Callable[[Any], str]] = {
    **dict.fromkeys(("time_s", "time_low_s", "time_high_s", "compile_s"), _seconds),
    **dict.fromkeys(("predicted_bytes", "allocated_bytes", "peak_bytes"), _bytes),
    "gemm_fraction": _percent,
    "cosine": _cosine,
}

_LEFT = frozenset({*HEAD, "dtype", "limit"})
_OVER_SEEDS = ("spec", "method", "backend", "threads", "settings", "seeds", "spread", "time_s", "bias", "cosine")
_MEASURED = frozenset(
    {"spread", "seeds", "range", "ratio", "check"}
    | {"allocated_bytes", "peak_bytes", "predicted_bytes", "gemm_fraction", "limit", "cosine"}
)
_BRIEF = (
    Column("spec", "spec", _of("spec"), _words, right=False, label=True),
    Column("method", "method", _of("method"), _words, right=False, label=True),
    Column("backend", "by", _of("backend"), _words, right=False, label=True),
    Column("time_s", "time", _of("time_s"), _seconds),
    Column("spread", "+-", _spread, _percent),
    Column("ratio", "of bp's", _of("ratio"), _times),
    Column("predicted_bytes", "holds", _of("predicted_bytes"), _bytes),
    Column("allocated_bytes", "allocates", _of("allocated_bytes"), _bytes),
    Column("peak_bytes", "grows by", _of("peak_bytes"), _bytes),
    Column("gemm_fraction", "of GEMM rate", _of("gemm_fraction"), _percent),
    Column("limit", "limit", lambda row: row.get("limit"), _words, right=False),
    Column("cosine", "cosine", _of("cosine"), _cosine),
    Column("seeds", "seeds", lambda row: len(row.get("seeds", [])) or None, _words),
    Column("range", "over seeds", _range, _words),
    Column("pareto", "unbeaten", _mark, _words, right=False),
    Column("check", "checked", lambda row: row["check"]["how"], _words, right=False),
)
