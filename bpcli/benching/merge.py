"""Saved bench documents put together: the parts of a sweep that was cut up, or runs of different cells.

Runs go together when the same version of bp measured them on the same machine in the same way, and specs of one name
were the same files. A cell that two of them measured is refused: which of its figures would count?
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpcli.benching.store import Row
from bpcli.errors import Collector, fail, printable

SCHEMA_VERSION = 1
_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_SAME = ("version", "budget_s", "threads", "set", "wrt", "peers")  # rows do not say what --set set
_SAME_MACHINE = ("cpu", "cores", "system", "python", "versions")
_ADVICE = "name what bp bench --output json=RUN.json wrote"
_PARTS = "measure both again in the same way, or keep them apart"
_FIGURES = ("bias", "cosine", "time_s", "flops", "gemm_fraction")


@dataclass(frozen=True)
class Run:
    """A saved document: its file, what it says of the run, and its rows."""

    path: str
    context: Mapping[str, Any]
    rows: Sequence[Row]
    errors: Sequence[Mapping[str, Any]]


def read_run(path: str) -> Run:
    """A document that `bp bench --format json` wrote. Raises BpError where it is none."""
    try:
        document = json.loads(Path(path).read_bytes())
    except OSError as error:
        fail("unreadable-file", f'cannot read "{printable(path)}": {error.strerror}', help=_ADVICE)
    except (ValueError, RecursionError) as error:
        fail("not-a-run", f'"{printable(path)}" is not JSON: {printable(str(error))}', help=_ADVICE)
    good = isinstance(document, dict) and document.get("schema_version") == SCHEMA_VERSION
    cells, context = (document.get("cells"), document.get("context")) if good else (None, None)
    if not isinstance(cells, list) or not isinstance(context, dict) or context.get("command") != "bench":
        advice = f"bp bench --output json=RUN.json writes one, of schema version {SCHEMA_VERSION}"
        fail("not-a-run", f'"{printable(path)}" is no document of bp bench', help=advice)
    rows = [_row(cell, path) for cell in cells]
    return Run(path, context, rows, [e for e in document.get("errors", []) if isinstance(e, dict)])


def merge(runs: Sequence[Run]) -> tuple[list[Row], dict[str, Any], list[str]]:
    """All rows, the context of them together, and notes. Raises BpError for runs that do not go together."""
    collector = Collector()
    first = runs[0]
    for run in runs[1:]:
        for what in _differences(first.context, run.context):
            collector.add("incompatible", f"{first.path} and {run.path} differ in {what}", help=_PARTS)
    seen: dict[str, str] = {}
    for run in runs:
        for row in run.rows:
            if (other := seen.setdefault(_key(row), run.path)) != run.path:
                collector.add("doubled", f"{_words(row)} is in {other} and in {run.path}", help="leave one of them out")
    collector.finish()
    rows = [row for run in runs for row in run.rows]
    sweeps = {run.context.get("sweep_sha256") for run in runs}
    if len(sweeps) == 1 and None not in sweeps:
        rows.sort(key=lambda row: row.get("cell", 0))  # parts of one sweep number their cells alike
    return rows, {**first.context, **_together(runs)}, _missing(runs)


def _row(cell: Any, path: str) -> Row:
    """A row with its figures as numbers: those that JSON lacks are words there."""
    if not isinstance(cell, dict) or not {"spec", "method", "backend", "settings", "grid", "check"} <= cell.keys():
        fail("not-a-run", f'"{printable(path)}" has a cell without its name', help=_ADVICE)
    return {**cell, **{k: _NUMBERS.get(cell[k], cell[k]) for k in _FIGURES if isinstance(cell.get(k), str)}}


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    found = [f"{k} ({a.get(k)} and {b.get(k)})" for k in _SAME if a.get(k) != b.get(k)]
    mine, theirs = a.get("machine", {}), b.get("machine", {})
    found += [f"machine.{k} ({mine.get(k)} and {theirs.get(k)})" for k in _SAME_MACHINE if mine.get(k) != theirs.get(k)]
    specs, others = a.get("spec_sha256", {}), b.get("spec_sha256", {})
    return found + [f"the content of the spec {k}" for k in specs.keys() & others.keys() if specs[k] != others[k]]


def _together(runs: Sequence[Run]) -> dict[str, Any]:
    """What the runs say apart."""
    specs = dict.fromkeys(s for run in runs for s in run.context.get("specs", []))
    notes = dict.fromkeys(n for run in runs for n in run.context.get("skipped", []))
    digests = {k: v for run in runs for k, v in run.context.get("spec_sha256", {}).items()}
    parts = [{"file": r.path, "shard": r.context.get("shard"), "run_sha256": r.context.get("run_sha256")} for r in runs]
    return {"specs": list(specs), "skipped": list(notes), "spec_sha256": digests, "shard": None, "merged": parts}


def _missing(runs: Sequence[Run]) -> list[str]:
    """The parts of a sweep that are not among the runs."""
    shards = [str(run.context.get("shard") or "1/1") for run in runs]
    parts = {shard.partition("/")[2] for shard in shards}
    if parts == {"1"} or len(parts) != 1:
        return []
    (count,) = parts
    left = [f"{i}/{count}" for i in range(1, int(count) + 1) if f"{i}/{count}" not in shards] if count.isdigit() else []
    return [f"not there: part {', '.join(left)} of the sweep"] if left else []


def _key(row: Row) -> str:
    return json.dumps([row[k] for k in ("spec", "method", "backend", "settings", "grid")], sort_keys=True)


def _words(row: Row) -> str:
    settings = "".join(f" {k}={v}" for k, v in row["settings"].items())
    return f"{row['spec']} {row['method']} by {row['backend']}{settings}"
