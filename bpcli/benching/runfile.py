"""Saved runs: the JSON of `bp bench` and `bp check` read back, refused where it is neither."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpcli.errors import BpError, Diagnostic, Place, fail, printable

Row = Mapping[str, Any]

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
