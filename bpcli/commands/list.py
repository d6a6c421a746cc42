"""`bp list`: the catalogue."""

from __future__ import annotations

import click

from bpcli.commands.common import Common
from bpcli.commands.shared_options import one_of, shared

CATALOGUES = ("methods", "tasks", "operations", "references", "formats")


@click.command("list")
@click.argument("what", required=False, metavar=f"[{'|'.join(CATALOGUES)}]", callback=one_of(lambda: CATALOGUES))
@shared("format", "output")
def list(what: str | None, common: Common) -> int:
    """List what bp knows: methods, tasks, operations, references and output formats, or one of these."""
    from bpcli.commands.inventory import catalogue
    from bpcli.commands.output import emit

    return emit(catalogue(what), common)
