"""Documents and files of a bench run: full and brief tables, CSV files and the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpcli.bench.analysis import BIAS, by, cheapest, frontier, laws, sentences
from bpcli.bench.measurement import (
    EXACT,
    HEAD,
    TAIL,
    Row,
    by_spec,
    column_name,
    csv_keys,
    grid_keys,
    held_bytes,
    one_error,
    over_seeds,
    without_seed,
)
from bpcli.commands.shared_options import Common
from bpcli.errors import Diagnostic, fail
from bpcli.problem.limits import format_bytes
from bpcli.render import Case, Column, Document, digits, seconds, words, write
from bpcli.render.columns import legend

if TYPE_CHECKING:
    from bpcli.bench.analysis import Cheapest
    from bpcli.bench.journal import Journal
    from bpcli.bench.measurement import BenchResults
    from bpcli.bench.sweep import BenchOptions


_REPORTS = Path("reports")
_NAMED = 12


def csv_files(specs: Iterable[str], options: BenchOptions, common: Common) -> dict[str, Path]:
    """The CSV file of each spec; none if --output names one. Raises BpError for a file that cannot be written.

    The name says what was asked for besides the spec by a digest, so that another call leaves it alone.
    """
    if any(name == "csv" for name, _ in common.outputs):
        return {}
    from bpcli.problem.array_files import check_writable

    files: dict[str, Path] = {}
    asked = _asked(options, common)
    for spec in specs:
        stem = spec.replace("/", "-") + asked
        while (file := _REPORTS / f"bench-{stem}.csv") in files.values():
            stem += "-"  # a/net and a-net are two specs
        files[spec] = file
    try:
        if files:
            _REPORTS.mkdir(exist_ok=True)
    except OSError as error:
        what = f'cannot create the folder "{_REPORTS}": {error.strerror}'
        fail("unwritable", what, help="name a file: --output csv=PATH")
    for file in files.values():
        check_writable(file)
    return files


def _asked(options: BenchOptions, common: Common) -> str:
    """A digest of the settings that are not the defaults, "" where there are none."""
    from bpcli.bench.journal import run_hash

    names = ("methods", "grid", "budget", "draws", "shard")
    plain = type(options)()
    given = {n: getattr(options, n) for n in names if getattr(options, n) != getattr(plain, n)}
    given |= {n: v for n in ("overrides", "wrt", "threads", "scheduler", "local_cluster") if (v := getattr(common, n))}
    given |= {"peers": [peer.name for peer in options.peers]} if options.peers else {}
    return f"-{run_hash(given)[:6]}" if given else ""


def write_csv(files: Mapping[str, Path], results: BenchResults, common: Common) -> None:
    """Write a CSV file for each spec that has rows."""
    for spec, rows in by_spec(results.rows).items():
        if spec in files:
            write(full_document(rows), "csv", files[spec])
            common.note(f"wrote {files[spec]}")


def open_journal(about: Mapping[str, Any], resume: bool, common: Common) -> Journal:
    """The journal of the run with the identity `about`, in reports/ or in the folder of the CSV file of --output.

    Its name contains the hash of the run, by which `resume` finds it.
    """
    from bpcli.bench.journal import Journal, run_hash

    run = run_hash(about)
    named = next((Path(path).parent for name, path in common.outputs if name == "csv"), None)
    journal = Journal((named or _REPORTS) / f"bench-{run[:_NAMED]}.journal.jsonl", run, resume)
    if resume and not journal.rows:
        common.note("nothing to resume: no cell of this run was finished before")
    if journal.kept:
        common.note(f"an unfinished run of the same cells is kept as {journal.kept}; --resume would have continued it")
    return journal


def close_journal(journal: Journal, keys: Sequence[str], interrupted: bool, common: Common) -> None:
    """Close the journal, and remove it if all cells are in it or none; otherwise note how to resume the run."""

    left = sum(key not in journal.rows for key in keys)
    journal.close(remove=not journal.rows or (not left and not interrupted))
    if left and journal.rows:
        common.note(f"{left} of {len(keys)} cells are left; run the same command with --resume ({journal.path})")


_STYLES = {"pass": "", "wrong": "bold red", "inconclusive": "yellow"}


def full_document(
    rows: Sequence[Row],
    errors: Sequence[Diagnostic] = (),
    context: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Document:
    """All rows, with the columns of the CSV files; the rows also have samples, check and ratio for JSON.

    `pareto` marks the rows on the Pareto frontier of bias, time and memory.
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
        sentences=_sentences(rows, float((context or {}).get("bias", BIAS))) or ["Nothing was measured."],
        notes=[*notes, *_faults(rows), *_rates(context or {})],
        errors=errors,
        style=lambda row: _STYLES[row["check"]["verdict"]],
        case=_case,
    )


def _sentences(rows: Sequence[Row], bias: float) -> list[str]:
    """The cheapest methods within a bias, unless something is wrong, which then comes first, and all that is told."""
    told = sentences(rows)
    specs = by_spec(rows)
    best = {spec: found for spec, own in specs.items() if (found := cheapest(own, bias))}
    wrong = any(r["check"]["verdict"] == "wrong" for r in rows)
    first = [_within(found, bias, f"{spec}: " if len(specs) > 1 else "") for spec, found in best.items()]
    return [*told[:1], *first, *told[1:]] if wrong else [*first, *told]


def _within(found: Cheapest, bias: float, before: str) -> str:
    """The quickest method within a bias, and the one that holds the least."""
    at = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in found.settings.items())
    where = f"at {at}, " if found.several and at else ""
    quick, small = found.quickest, found.smallest

    def said(head: str) -> str:
        text = where + head
        return before + text if before else text[0].upper() + text[1:]

    if _error(quick)[0] > max(bias, EXACT[quick["dtype"]]):
        near = f"the nearest is {quick['method']} ({_error(quick)[1]})"
        return said(f"no method is within a bias of {bias:g} (--bias); {near}.")
    if quick is small:
        costs = f"{seconds(quick['time_s'])}, {_bytes(held_bytes(quick))}, {_error(quick)[1]}"
        best = f"{quick['method']} is the quickest and holds the least ({costs})"
    else:
        fast = f"{quick['method']} is the quickest ({seconds(quick['time_s'])}, {_error(quick)[1]})"
        best = f"{fast}, {small['method']} holds the least ({_bytes(held_bytes(small))}, {_error(small)[1]})"
    return said(f"within a bias of {bias:g} (--bias), {best}.")


def _error(row: Row) -> tuple[float, str]:
    """The error of one gradient, and in words."""
    error = one_error(row) or 0.0
    if error <= EXACT[row["dtype"]]:
        return 0.0, "exact"
    return error, f"{'error of a draw' if row.get('variance') else 'bias'} {error:.2g}"


def brief_document(full: Document, quiet: bool) -> Document:
    """The main figures, aggregated over seeds, without constant columns; if `quiet`, only rows that do not pass."""
    together = over_seeds(full.rows)
    rows = [r for r in together if r["check"]["verdict"] != "pass"] if quiet else together
    shown = [c for c in BRIEF if c.key in ("method", "time_s") or _varies(together, c)]
    # Method options are part of the method's name.
    keys = dict.fromkeys(k for r in together for k in r["grid"] if k in r["settings"] or k == "threads")
    swept = [c for c in (_column(k, k, True) for k in keys) if _varies(together, c)]
    explained = legend({c.key: c.heading for c in shown}, () if quiet else _EXPLAINED)
    at = 1 + max(i for i, c in enumerate(shown) if c.key in ("spec", "method", "backend"))
    return Document(
        title=full.title,
        rows_key=full.rows_key,
        columns=[*shown[:at], *swept, *shown[at:]],
        rows=rows,
        legend=explained if rows else "",
        sentences=full.sentences if rows or not quiet else (),
        notes=_faults(full.rows) if quiet else full.notes,
        errors=full.errors,
        style=full.style,
    )


def _marked(rows: Sequence[Row]) -> list[Row]:
    """The rows with `pareto`, which is common to the seeds of a cell."""
    together = over_seeds(rows)
    marks = {without_seed(row): mark for row, mark in zip(together, frontier(together), strict=True)}
    return [{**row, "pareto": marks[without_seed(row)]} for row in rows]


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts, growth laws, and figures aggregated over seeds."""
    verdicts = [r["check"]["verdict"] for r in rows]
    measured = sum(r["time_s"] is not None for r in rows)
    counts = {"measured": measured, "wrong": verdicts.count("wrong"), "inconclusive": verdicts.count("inconclusive")}
    seeds = [{k: row[k] for k in _OVER_SEEDS} for row in over_seeds(rows) if "seeds" in row]
    return {**counts, "laws": [law.to_json() for law in laws(rows)], "over_seeds": seeds}


def _faults(rows: Sequence[Row]) -> list[str]:
    """A sentence for each check that did not pass."""
    return [
        f"{row['spec']} {_called(row)}: {check['verdict']}: {check['detail']} ({check['how']})"
        for row in rows
        if (check := row["check"])["detail"]
    ]


def _called(row: Row) -> str:
    return f"{row['method']}{by(row)}" + "".join(f" {k}={v}" for k, v in row["settings"].items())


def _case(row: Row) -> Case:
    """A row as a test: the verdict on its gradient, and its time."""
    check = row["check"]
    message = ": ".join(part for part in (check["verdict"], check["detail"]) if part)
    return Case(row["spec"], _called(row), check["verdict"], message, (check["how"],), seconds=row["time_s"])


def _rates(context: Mapping[str, Any]) -> list[str]:
    """The machine and its rates, as one line."""
    machine = context.get("machine", {})
    rates = [f"{v / 1e9:.3g} GFLOP/s in {k.split('_')[1]}" for k, v in machine.items() if k.startswith("gemm_")]
    if not rates:
        return []
    copy = f"copies at {machine['copy_bytes_per_s'] / 1e9:.3g} GB/s"
    return [f"{machine['cpu']}, {machine['cores']} cores: matrix products at {', '.join(rates)}, {copy}."]


def _varies(rows: Sequence[Row], column: Column) -> bool:
    """Whether a column is worth showing: its values differ or, in a column of measured figures, there is one."""
    values = [column.get(r) for r in rows]
    some = any(v is not None and v != "" for v in values)
    return some and (column.key in _MEASURED or len({repr(v) for v in values}) > 1)


def _column(name: str, key: str, grid: bool) -> Column:
    """A column of the full document."""
    if grid:
        return Column(name, key, lambda row: row["grid"].get(key), words, label=True)
    # Runs saved by earlier versions have no limit.
    return Column(name, name, lambda row: row.get(key), _SHOWN.get(key, _figure), right=key not in _LEFT)


def _figure(value: Any) -> str:
    return str(value) if isinstance(value, str | int) else digits(4)(value)


def _bytes(value: Any) -> str:
    return "" if value is None else format_bytes(value)


def _percent(value: Any) -> str:
    return "" if value is None else f"{100 * value:.2g}%" if value < 0.995 else f"{100 * value:.0f}%"


def _spread(row: Row) -> float | None:
    """Half the width of the interval, relative to the median."""
    return None if row["time_s"] is None else (row["time_high_s"] - row["time_low_s"]) / (2.0 * row["time_s"])


def _range(row: Row) -> str | None:
    """The range of the cosine over seeds."""
    return " to ".join(map(digits(6), row.get("spread", {}).get("cosine", ()))) or None


def _times(value: Any) -> str:
    return "" if value is None else f"{value['median']:.2g}x"


_SHOWN: Mapping[str, Callable[[Any], str]] = {
    **dict.fromkeys(("time_s", "time_low_s", "time_high_s", "compile_s"), seconds),
    **dict.fromkeys(("predicted_bytes", "allocated_bytes", "peak_bytes"), _bytes),
    "gemm_fraction": _percent,
    "cosine": digits(6),
    **dict.fromkeys(("kernel_error", "bias", "variance"), digits(2)),
}

_LEFT = frozenset({*HEAD, "dtype", "limit", "kind"})
_OVER_SEEDS = ("spec", "method", "backend", "threads", "settings", "seeds", "spread", "time_s", "bias", "cosine")
_MEASURED = frozenset(
    {"spread", "seeds", "range", "ratio"}
    | {"allocated_bytes", "peak_bytes", "predicted_bytes", "gemm_fraction", "limit", "cosine"}
    | {"kernel_error", "bias", "variance"}
)
_EXPLAINED = ("spread", "predicted_bytes", "allocated_bytes", "peak_bytes", "gemm_fraction", "pareto")
BRIEF = (
    Column("spec", "spec", itemgetter("spec"), words, right=False, label=True),
    Column("method", "method", itemgetter("method"), words, right=False, label=True),
    Column("backend", "by", itemgetter("backend"), words, right=False, label=True),
    Column("kind", "kind", lambda row: row.get("kind"), words, right=False),
    Column("kernel_error", "kernel error", lambda row: row.get("kernel_error"), digits(2)),
    Column("bias", "bias", itemgetter("bias"), digits(2)),
    Column("cosine", "cosine", itemgetter("cosine"), digits(6)),
    Column("variance", "variance", lambda row: row.get("variance"), digits(2)),
    Column("time_s", "time", itemgetter("time_s"), seconds),
    Column("spread", "±", _spread, _percent),
    Column("ratio", "vs bp", itemgetter("ratio"), _times),
    Column("allocated_bytes", "allocated", itemgetter("allocated_bytes"), _bytes),
    Column("pareto", "Pareto", lambda row: "*" if row["pareto"] else None, words, right=False),
    Column("predicted_bytes", "predicted", itemgetter("predicted_bytes"), _bytes),
    Column("peak_bytes", "process growth", itemgetter("peak_bytes"), _bytes),
    Column("gemm_fraction", "of GEMM rate", itemgetter("gemm_fraction"), _percent),
    Column("limit", "limit", lambda row: row.get("limit"), words, right=False),
    Column("seeds", "seeds", lambda row: len(row.get("seeds", [])) or None, words),
    Column("range", "cosine over seeds", _range, words),
    Column("check", "checked", lambda row: row["check"]["how"], words, right=False),
)
"""The columns of the table; those that say nothing about a run are left out of it."""
