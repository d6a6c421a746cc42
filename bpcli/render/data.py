"""JSON, JSON lines and CSV. Numbers that JSON lacks are the strings "nan", "inf" and "-inf" there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bpcli.errors import Diagnostic
from bpcli.render import SCHEMA_VERSION, Document, Look

if TYPE_CHECKING:
    import pandas as pd


def render_json(document: Document, look: Look) -> str:
    """The document as one JSON object, indented."""
    return json.dumps(plain(whole(document)), indent=2, allow_nan=False) + "\n"


def render_jsonl(document: Document, look: Look) -> str:
    """The rows and refusals, one compact object a line."""
    objects = [*document.rows, *({"error": refusal(d)} for d in document.errors)]
    return "".join(json.dumps(plain(o), allow_nan=False) + "\n" for o in objects)


def render_csv(document: Document, look: Look) -> str:
    """A line of column keys, then one line a row; a missing value is an empty field, lists and mappings are JSON."""
    text: str = frame(document, _field, object).to_csv(index=False, lineterminator="\n")
    return text


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


def frame(document: Document, field: Callable[[Any], Any] = lambda value: value, dtype: Any = None) -> pd.DataFrame:
    """Every row and column of `document` as a DataFrame, by the keys of the columns, with `field` of each value.

    A missing figure is NaN; with the dtype object it stays None, and integers beside it stay integers.
    """
    import pandas as pd

    columns = {c.key: [field(c.get(row)) for row in document.rows] for c in document.columns}
    return pd.DataFrame(columns, dtype=dtype)


def _field(value: Any) -> Any:
    value = plain(value)
    return json.dumps(value) if isinstance(value, list | dict) else value
