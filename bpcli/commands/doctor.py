"""`bp doctor`: the health of the installation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import click

from bpcli.commands.options import Common, shared

Probe = Callable[[], Iterator[tuple[str, str, str]]]
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@click.command()
@shared("format", "output")
def doctor(common: Common) -> int:
    """Examine the installation: packages, processor, BLAS, kernel cache, memory, and a small gradient check.

    Exits with 1 when a line says fail.
    """
    from bpcli.commands.output import emit
    from bpcli.commands.probes import PROBES
    from bpcli.render.document import Column, Document

    rows: list[Mapping[str, Any]] = []
    for name, probe in PROBES.items():
        rows += _examine(name, probe)
    columns = [Column(key, key, itemgetter(key), str, right=False) for key in ("check", "status", "detail")]
    failed = any(row["status"] == "fail" for row in rows)
    summary = {status: sum(row["status"] == status for row in rows) for status in _STYLES}
    sentence = "Something is wrong with this installation." if failed else "bp is ready."
    document = Document(
        "Installation",
        "checks",
        columns,
        rows,
        context={"command": "doctor"},
        summary=summary,
        sentences=(sentence,),
        style=lambda row: _STYLES[row["status"]],
    )
    return emit(document, common) or int(failed)


def _examine(name: str, probe: Probe) -> list[Mapping[str, Any]]:
    """The lines of one probe; one that stops is a finding like any other."""
    try:
        lines = [*probe()]
    except Exception as error:
        from bpcli.commands.failures import translate

        lines = [(name, "fail", "; ".join(d.what for d in translate(error).diagnostics))]
    return [{"check": check, "status": status, "detail": detail} for check, status, detail in lines]
