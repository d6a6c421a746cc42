"""Saved runs: the JSON of `bp bench` and `bp check` read back, refused where it is neither.

Saved bench documents put together: the parts of a sweep that was cut up, or runs of different cells.

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

from bpcli.bench.rows import Row
from bpcli.errors import BpError, Collector, Diagnostic, Place, fail, printable

SCHEMA_VERSION = 1
_AGAIN = "write it again: bp bench --output json=RUN.json, or bp check --output json=RUN.json"
_MAX_BYTES = 1 << 30
_NAMES = ("spec", "method", "backend", "tensor", "dtype")
_VERDICTS = ("pass", "wrong", "inconclusive")


@dataclass(frozen=True)
class Run:
    """A saved run: `kind` is "cells" (of a benchmark) or "findings" (of a check); `document` is the whole of it."""

    path: str
    kind: str
    document: Mapping[str, Any]

    @property
    def rows(self) -> Sequence[Row]:
        """The cells or findings."""
        rows: Sequence[Row] = self.document[self.kind]
        return rows

    @property
    def context(self) -> Mapping[str, Any]:
        """How the run was made; empty where it does not say."""
        return _table(self.document.get("context"))

    @property
    def machine(self) -> Mapping[str, Any]:
        """What the run says about the machine that it was made on; empty where it says nothing."""
        return _table(self.context.get("machine"))

    @property
    def versions(self) -> Mapping[str, Any]:
        """The versions of packages there."""
        return _table(self.machine.get("versions"))

    @property
    def digests(self) -> Mapping[str, Any]:
        """The digest of each spec's text; empty where the run has none."""
        return _table(self.context.get("spec_sha256"))

    @property
    def refusals(self) -> int:
        """How many specs or cells the run could not measure."""
        errors = self.document.get("errors")
        return len(errors) if isinstance(errors, list) else 0


def read(path: str) -> Run:
    """The run saved at `path`. Raises BpError for a file that can't be read or holds something else."""
    document = _parse(path, _text(path))
    kind = next((k for k in ("cells", "findings") if isinstance(document.get(k), list)), None)
    if kind is None or "schema_version" not in document:
        fail("not-a-run", f"{path} is no run of bp", help="bp bench --output json=RUN.json writes one, bp check too")
    if document["schema_version"] != SCHEMA_VERSION:
        version = printable(repr(document["schema_version"]))
        fail("not-a-run", f"{path} has schema version {version}", help=f"{_AGAIN}; version {SCHEMA_VERSION} is read")
    if faults := [f for i, row in enumerate(document[kind]) if (f := _fault(row, kind, f"{kind}[{i}]"))]:
        raise BpError([Diagnostic("not-a-run", f"{path}: {fault}", help=_AGAIN) for fault in faults[:10]])
    return Run(path, kind, document)


def number(value: Any) -> float | None:
    """A figure of a row: a number, or one that JSON lacks ("nan", "inf", "-inf"); None for anything else."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def samples(row: Row) -> list[float]:
    """The seconds a call took, block by block; empty where the row has none."""
    given = row.get("samples_s")
    figures = [number(v) for v in given] if isinstance(given, list) else []
    return [f for f in figures if f is not None and 0.0 < f < math.inf]


def verdict(row: Row) -> str:
    """What the check said about the row's gradient."""
    return str(row["verdict"] if "verdict" in row else row["check"]["verdict"])


def _text(path: str) -> str:
    try:
        if Path(path).stat().st_size > _MAX_BYTES:
            fail("too-large", f"{path} is larger than 1 GiB", help="compare fewer rows at a time")
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        fail("not-utf-8", f"{path} is not UTF-8", help="name a run that bp wrote as JSON")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        fail("unreadable-file", f"cannot read {printable(path)}: {why}", help="name a run that bp wrote as JSON")


def _parse(path: str, text: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        quote = text.splitlines()[error.lineno - 1] if error.lineno <= len(text.splitlines()) else ""
        place = Place(path, error.lineno, error.colno, quote)
        what = error.msg[:1].lower() + error.msg[1:]
        fail("not-json", f"{path} is not JSON: {what}", place, help="bp bench --output json=RUN.json writes a run")
    except (ValueError, RecursionError):
        fail("not-json", f"{path} is no JSON that can be read", help="bp bench --output json=RUN.json writes a run")
    return _table(document)


def _fault(row: Any, kind: str, where: str) -> str:
    """What is wrong with a row, "" where nothing is."""
    if not isinstance(row, dict):
        return f"{where} is no object"
    for key in ("spec", "method"):
        if not isinstance(row.get(key), str):
            return f'{where} has no "{key}"'
    for key in _NAMES:
        if not isinstance(row.get(key, ""), str):
            return f"{where}.{key} is no text"
    for key in ("grid", "settings"):
        if not isinstance(row.get(key, {}), dict):
            return f"{where}.{key} is no object"
    judged = row if kind == "findings" else row.get("check")
    if not isinstance(judged, dict) or judged.get("verdict") not in _VERDICTS:
        return f"{where} has no verdict on its gradient"
    return ""


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_SAME = ("version", "budget_s", "threads", "set", "wrt", "peers")  # rows do not say what --set set
_SAME_MACHINE = ("cpu", "cores", "system", "python", "versions")
_ADVICE = "name what bp bench --output json=RUN.json wrote"
_PARTS = "measure both again in the same way, or keep them apart"
_FIGURES = ("bias", "cosine", "time_s", "flops", "gemm_fraction")


@dataclass(frozen=True)
class Saved:
    """A saved document: its file, what it says of the run, and its rows."""

    path: str
    context: Mapping[str, Any]
    rows: Sequence[Row]
    errors: Sequence[Mapping[str, Any]]


def read_run(path: str) -> Saved:
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
    return Saved(path, context, rows, [e for e in document.get("errors", []) if isinstance(e, dict)])


def merge(runs: Sequence[Saved]) -> tuple[list[Row], dict[str, Any], list[str]]:
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


def _together(runs: Sequence[Saved]) -> dict[str, Any]:
    """What the runs say apart."""
    specs = dict.fromkeys(s for run in runs for s in run.context.get("specs", []))
    notes = dict.fromkeys(n for run in runs for n in run.context.get("skipped", []))
    digests = {k: v for run in runs for k, v in run.context.get("spec_sha256", {}).items()}
    parts = [{"file": r.path, "shard": r.context.get("shard"), "run_sha256": r.context.get("run_sha256")} for r in runs]
    return {"specs": list(specs), "skipped": list(notes), "spec_sha256": digests, "shard": None, "merged": parts}


def _missing(runs: Sequence[Saved]) -> list[str]:
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
