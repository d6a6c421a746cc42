"""JSON lines: one line a row, then a line `{"error": …}` for each refusal."""

from __future__ import annotations

import json

from bpcli.render import Look
from bpcli.render.document import Document
from bpcli.render.json import plain, refusal

SUMMARY = 'an object a line: the rows, then {"error": …} for each refusal'
MACHINE = True


def render(document: Document, look: Look) -> str:
    """The rows and refusals, one compact object a line."""
    objects = [*document.rows, *({"error": refusal(d)} for d in document.errors)]
    return "".join(json.dumps(plain(o), allow_nan=False) + "\n" for o in objects)
