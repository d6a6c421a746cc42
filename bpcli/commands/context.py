"""What every result says about the machine and the call that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bpcli import __version__

if TYPE_CHECKING:
    from bpcli.commands.options import Common


def describe(command: str, common: Common, **more: Any) -> Mapping[str, Any]:
    """Version, machine and settings; the same call on the same machine gives the same mapping."""
    from bpcli.bench import machine

    return {
        "program": "bp",
        "version": __version__,
        "command": command,
        "machine": asdict(machine.describe()),
        "threads": common.threads,
        "strict": common.strict,
        "set": dict(common.overrides),
        "wrt": list(common.wrt),
        **more,
    }
