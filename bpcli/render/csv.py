"""CSV: a line of keys, then a row a line; an empty field where there is no value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bpcli.render import Look
from bpcli.render.document import Document
from bpcli.render.frame import frame
from bpcli.render.json import plain

SUMMARY = "a line of column names, then a row a line"
MACHINE = True


def render(document: Document, look: Look) -> str:
    """Every column of the document; lists and mappings are JSON inside a field."""
    text: str = frame(document, _field, object).to_csv(index=False, lineterminator="\n")
    return text


def _field(value: Any) -> Any:
    value = plain(value)
    return json.dumps(value) if isinstance(value, list | Mapping) else value
