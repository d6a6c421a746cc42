"""Tables to a validated document; what is refused is cut out, so that the rest can still be looked at."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from bpcli.spec.complaints import DECLARING, complain, misspelt
from bpcli.spec.context import Context
from bpcli.spec.outline import Path
from bpcli.spec.schema import Document

_ROUNDS = 3


def validate(raw: dict[str, Any], context: Context) -> tuple[Document, list[Path]] | None:
    """The document and the paths of the declarations cut out of it; None where too little is left.

    `raw` is changed.
    """
    cut: list[Path] = []
    for _ in range(_ROUNDS):
        try:
            return Document.model_validate(raw), cut
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=True)
        lost = misspelt(raw)
        for path, kind in complain(errors, raw, context):
            if len(path) == 1 and (path[0] in DECLARING) and kind != "missing":
                return None
            if path == ("bp",) and kind != "missing":
                return None
            _cut(raw, path, kind, cut)
        if lost:  # every name that is declared there would seem unknown
            return None
    return None


def _cut(raw: dict[str, Any], path: Path, kind: str, cut: list[Path]) -> None:
    """Take what `path` names out of `raw`: a key where that leaves a declaration with a shape, else all of it."""
    if path in (("bp",), ("equations",)):
        raw[path[0]] = 1 if path == ("bp",) else {}
    elif len(path) == 1:
        raw.pop(path[0], None)
    elif path[0] in DECLARING:
        table = raw[path[0]]
        declaration = table.get(path[1])
        if len(path) > 2 and isinstance(declaration, dict) and path[2] != "shape":
            declaration.pop(path[2], None)
        else:
            table.pop(path[1], None)
            if path[:2] not in cut:
                cut.append(path[:2])
    elif kind == "missing" or path[0] == "kernel" or path == ("weights", "file"):
        raw.pop(path[0], None)
    elif path[0] in raw:  # an earlier error may have taken the table
        raw[path[0]].pop(path[1], None)
