"""What every result says about the machine and the call that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bpcli import __version__
from bpcli.runtime.machine import describe as describe_machine


def describe(command: str, **more: Any) -> Mapping[str, Any]:
    """Version and machine, and `more` about the call; the same call on the same machine gives the same mapping."""
    machine = asdict(describe_machine())
    return {"program": "bp", "version": __version__, "command": command, "machine": machine, **more}
