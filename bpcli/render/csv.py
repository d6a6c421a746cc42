"""CSV: a line of column keys, then one line a row; a missing value is an empty field."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd

from bpcli.render import Look
from bpcli.render.document import Document
from bpcli.render.json import plain

SUMMARY = "a line of column names, then a row a line"
MACHINE = True


def render(document: Document, look: Look) -> str:
    """Every column of the document; lists and mappings are JSON inside a field."""
    text: str = frame(document, _field, object).to_csv(index=False, lineterminator="\n")
    return text


def frame(document: Document, field: Callable[[Any], Any] = lambda value: value, dtype: Any = None) -> pd.DataFrame:
    """Every row and column of `document` as a DataFrame, by the keys of the columns, with `field` of each value.

    A missing figure is NaN; with the dtype object it stays None, and integers beside it stay integers.
    """
    columns = {c.key: [field(c.get(row)) for row in document.rows] for c in document.columns}
    return pd.DataFrame(columns, dtype=dtype)


def _field(value: Any) -> Any:
    value = plain(value)
    return json.dumps(value) if isinstance(value, list | dict) else value
