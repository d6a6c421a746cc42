"""Saved runs: JSON documents of `bp bench` and `bp check`, read for a comparison or merged into one.

Runs of a bench can be merged when the same version of bp measured them on the same machine with the same settings, and
specs of one name were the same files. A cell that is in two runs is refused, since only one row can stand for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bpcli.bench.measurement import Row
from bpcli.errors import BpError, Collector, Diagnostic, Place, fail, printable

SCHEMA_VERSION = 1
SAVE_A_RUN = "save a run by `bp bench --output json=RUN.json` or `bp check --output json=RUN.json`"
"""Help for files that are not saved runs of this version of bp."""
TRAINING = "steps"
"""The key of the rows of a training."""
_MAX_BYTES = 1 << 30
_TEXTS = ("spec", "method", "backend", "tensor", "dtype")
_VERDICTS = ("pass", "wrong", "inconclusive")
_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_FIGURES = ("bias", "cosine", "time_s", "flops", "gemm_fraction")
_SAME = ("version", "budget_s", "threads", "set", "wrt", "peers")
_SAME_MACHINE = ("cpu", "cores", "vectors", "system", "python", "versions")


@dataclass(frozen=True)
class Run:
    """A saved run; `kind` is the key of its rows, "cells" for a bench and "findings" for a check."""

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
        """The settings of the run; empty where it has none."""
        return _table(self.document.get("context"))

    @property
    def machine(self) -> Mapping[str, Any]:
        """The description of the machine; empty where there is none."""
        return _table(self.context.get("machine"))

    @property
    def digests(self) -> Mapping[str, Any]:
        """The digest of each spec; empty where there are none."""
        return _table(self.context.get("spec_sha256"))

    @property
    def errors(self) -> list[Mapping[str, Any]]:
        """The refusals of specs and cells."""
        errors = self.document.get("errors")
        return [_table(e) for e in errors] if isinstance(errors, list) else []


def read(path: str) -> Run:
    """The run of a bench or a check saved at `path`. Raises BpError for any other file."""
    kind, document = read_document(path)
    if kind == TRAINING:
        fail("not-a-run", f'"{printable(path)}" is a training, and holds no gradients to compare', help=SAVE_A_RUN)
    if faults := [f for i, row in enumerate(document[kind]) if (f := _fault(row, kind, f"{kind}[{i}]"))]:
        raise BpError([Diagnostic("not-a-run", f"{path}: {fault}", help=SAVE_A_RUN) for fault in faults[:10]])
    return Run(path, kind, document)


def read_document(path: str) -> tuple[str, Mapping[str, Any]]:
    """The JSON document of a saved run, and the key of its rows: "cells", "findings", or "steps" of a training.

    The rows are not validated.
    Raises BpError for any other file, with the place of an error in JSON.
    """
    document = _parse(path, _text(path))
    kind = next((k for k in ("cells", "findings", TRAINING) if isinstance(document.get(k), list)), None)
    if kind is None or "schema_version" not in document:
        fail("not-a-run", f'"{printable(path)}" is not a saved run of bp', help=SAVE_A_RUN)
    if document["schema_version"] != SCHEMA_VERSION:
        version = printable(repr(document["schema_version"]))
        what = f'"{printable(path)}" has schema version {version}; this version of bp reads {SCHEMA_VERSION}'
        fail("not-a-run", what, help=SAVE_A_RUN)
    return kind, document


def read_bench(path: str) -> Run:
    """The run of a bench saved at `path`, figures that JSON lacks as floats. Raises BpError for any other file."""
    run = read(path)
    if run.kind != "cells" or run.context.get("command") != "bench":
        fail("not-a-run", f'"{printable(path)}" is not a document of bp bench', help=SAVE_A_RUN)
    if any(not {"backend", "settings", "grid"} <= row.keys() for row in run.rows):
        fail("not-a-run", f'"{printable(path)}" has a cell without its name', help=SAVE_A_RUN)
    cells = [{**r, **{k: _NUMBERS.get(r[k], r[k]) for k in _FIGURES if isinstance(r.get(k), str)}} for r in run.rows]
    return Run(path, "cells", {**run.document, "cells": cells})


def number(value: Any) -> float | None:
    """A figure of a row as a float, "nan", "inf" and "-inf" included; None for any other value."""
    if isinstance(value, str) and value in _NUMBERS:
        return _NUMBERS[value]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def samples(row: Row) -> list[float]:
    """Seconds a call, block by block; empty where the row was not timed."""
    given = row.get("samples_s")
    figures = [number(v) for v in given] if isinstance(given, list) else []
    return [f for f in figures if f is not None and 0.0 < f < math.inf]


def verdict(row: Row) -> str:
    """The verdict on the row's gradient."""
    return str(row["verdict"] if "verdict" in row else row["check"]["verdict"])


def settings(row: Row) -> dict[str, Any]:
    """All settings of a row: the swept keys of its grid first."""
    return {**row.get("grid", {}), **row.get("settings", {})}


def _text(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)  # not by its size: a device has none
        if len(raw) > _MAX_BYTES:
            fail("too-large", f'"{printable(path)}" is larger than 1 GiB', help="use runs with fewer rows")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        fail("not-utf-8", f'"{printable(path)}" is not UTF-8', help="name a run that bp saved as JSON")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        fail("unreadable-file", f'cannot read "{printable(path)}": {why}', help="name a run that bp saved as JSON")


def _parse(path: str, text: str) -> Mapping[str, Any]:
    try:
        return _table(json.loads(text))
    except json.JSONDecodeError as error:
        lines = text.splitlines()
        quote = lines[error.lineno - 1] if error.lineno <= len(lines) else ""
        place = Place(path, error.lineno, error.colno, quote)
        what = f'"{printable(path)}" is not JSON: {error.msg[:1].lower()}{error.msg[1:]}'
        fail("not-json", what, place, help=SAVE_A_RUN)
    except (ValueError, RecursionError):
        fail("not-json", f'"{printable(path)}" cannot be read as JSON', help=SAVE_A_RUN)


def _fault(row: Any, kind: str, where: str) -> str:
    """The first fault of a row, "" where it has none."""
    if not isinstance(row, dict):
        return f"{where} is not an object"
    for key in ("spec", "method"):
        if not isinstance(row.get(key), str):
            return f'{where} has no "{key}"'
    for key in _TEXTS:
        if not isinstance(row.get(key, ""), str):
            return f"{where}.{key} is not text"
    for key in ("grid", "settings"):
        if not isinstance(row.get(key, {}), dict):
            return f"{where}.{key} is not an object"
    judged = row if kind == "findings" else row.get("check")
    if not isinstance(judged, dict) or judged.get("verdict") not in _VERDICTS:
        return f"{where} has no verdict on its gradient"
    return ""


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def merge(runs: Sequence[Run]) -> tuple[list[Row], dict[str, Any], list[str]]:
    """The rows of all runs, their common context, and notes. Raises BpError for runs that cannot be merged."""
    collector = Collector()
    first = runs[0]
    for run in runs[1:]:
        for what in _conflicts(first.context, run.context):
            advice = "measure both again in the same way, or keep the runs separate"
            collector.add("incompatible", f"{first.path} and {run.path} differ in {what}", help=advice)
    seen: dict[str, str] = {}
    for run in runs:
        for row in run.rows:
            if (other := seen.setdefault(_key(row), run.path)) != run.path:
                cell = f"{row['spec']} {row['method']} by {row['backend']}"
                cell += "".join(f" {k}={v}" for k, v in row["settings"].items())
                collector.add("doubled", f"{cell} is in {other} and in {run.path}", help="leave one of them out")
    collector.finish()
    rows = [row for run in runs for row in run.rows]
    sweeps = {run.context.get("sweep_sha256") for run in runs}
    if len(sweeps) == 1 and None not in sweeps:
        rows.sort(key=lambda row: row.get("cell", 0))  # parts of one sweep number its cells alike
    return rows, {**first.context, **_merged_context(runs)}, _missing_parts(runs)


def _key(row: Row) -> str:
    return json.dumps([row[k] for k in ("spec", "method", "backend", "settings", "grid")], sort_keys=True)


def _conflicts(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    found = [f"{k} ({a.get(k)} and {b.get(k)})" for k in _SAME if a.get(k) != b.get(k)]
    mine, theirs = a.get("machine", {}), b.get("machine", {})
    found += [f"machine.{k} ({mine.get(k)} and {theirs.get(k)})" for k in _SAME_MACHINE if mine.get(k) != theirs.get(k)]
    specs, others = a.get("spec_sha256", {}), b.get("spec_sha256", {})
    return found + [f"the content of the spec {k}" for k in specs.keys() & others.keys() if specs[k] != others[k]]


def _merged_context(runs: Sequence[Run]) -> dict[str, Any]:
    """The parts of the context in which runs may differ."""
    specs = dict.fromkeys(s for run in runs for s in run.context.get("specs", []))
    notes = dict.fromkeys(n for run in runs for n in run.context.get("skipped", []))
    digests = {k: v for run in runs for k, v in run.digests.items()}
    parts = [{"file": r.path, "shard": r.context.get("shard"), "run_sha256": r.context.get("run_sha256")} for r in runs]
    return {"specs": list(specs), "skipped": list(notes), "spec_sha256": digests, "shard": None, "merged": parts}


def _missing_parts(runs: Sequence[Run]) -> list[str]:
    """A note on the parts of a sweep that are not among the runs."""
    shards = [str(run.context.get("shard") or "1/1") for run in runs]
    parts = {shard.partition("/")[2] for shard in shards}
    if parts == {"1"} or len(parts) != 1:
        return []
    (count,) = parts
    left = [f"{i}/{count}" for i in range(1, int(count) + 1) if f"{i}/{count}" not in shards] if count.isdigit() else []
    return [f"missing: part {', '.join(left)} of the sweep"] if left else []
