"""The journal of a script over many cases, a line of JSON for each, so that an interrupted run is continued."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read(journal: Path) -> dict[str, dict[str, Any]]:
    """The lines by case."""
    if not journal.exists():
        return {}
    lines = (json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines())
    return {line["case"]: line for line in lines}


def add(journal: Path, line: dict[str, Any]) -> None:
    """Write a line at the end."""
    with journal.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def lines_of(journal: Path, wanted: Sequence[object]) -> list[dict[str, Any]]:
    """The lines of the cases that are wanted; prints how many there are."""
    names = {str(case) for case in wanted}
    lines = [line for name, line in read(journal).items() if name in names]
    print(f"{len(lines)} of {len(wanted)} cases")
    return lines
