"""CSV: a line of keys, then a row a line; an empty field where there is no value."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from bpcli.render import Look
from bpcli.render.document import Document
from bpcli.render.json import plain

SUMMARY = "a line of column names, then a row a line"
MACHINE = True


def render(document: Document, look: Look) -> str:
    """Every column of the document; lists and mappings are JSON inside a field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([c.key for c in document.columns])
    for row in document.rows:
        writer.writerow([_field(c.get(row)) for c in document.columns])
    return out.getvalue()


def _field(value: Any) -> Any:
    value = plain(value)
    return json.dumps(value) if isinstance(value, list | Mapping) else value
