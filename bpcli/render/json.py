"""JSON: one object; numbers that JSON lacks are the strings "nan", "inf" and "-inf"."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bpcli.errors import Diagnostic
from bpcli.render import Look
from bpcli.render.document import SCHEMA_VERSION, Document

SUMMARY = "one object with context, the rows (findings, cells, …), errors and summary"
MACHINE = True


def render(document: Document, look: Look) -> str:
    """The document as one JSON object, indented."""
    return json.dumps(plain(whole(document)), indent=2, allow_nan=False) + "\n"


def whole(document: Document) -> dict[str, Any]:
    """The document as one mapping."""
    return {
        "schema_version": SCHEMA_VERSION,
        "context": document.context,
        document.rows_key: document.rows,
        "errors": [refusal(d) for d in document.errors],
        "summary": document.summary,
    }


def refusal(diagnostic: Diagnostic) -> dict[str, Any]:
    """A refusal as a mapping; its place is null where it has none."""
    where = {key: getattr(diagnostic.place, key, None) for key in ("file", "line", "column")}
    return {"code": diagnostic.code, "message": diagnostic.what, **where, "help": diagnostic.help}


def plain(value: Any) -> Any:
    """`value` with mappings as dicts, sequences as lists, NumPy scalars as numbers, non-finite numbers as strings."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Sequence):
        return [plain(v) for v in value]
    return plain(value.tolist() if hasattr(value, "tolist") else str(value))
