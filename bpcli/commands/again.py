"""How to run a spec again with other sizes: as a Setup, and as the command line that a user would type."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bpcli.checking.blame.explain import Again
    from bpcli.commands.options import Common


def again(path: Path, common: Common, name: str) -> Again:
    """`path` under the shared options, and settings on top of those."""
    from bpcli.checking.blame.explain import Again
    from bpcli.commands.specs import open_spec

    def merged(settings: Mapping[str, object]) -> dict[str, object]:
        return {**common.overrides, **settings}

    def command(method: str, settings: Mapping[str, object]) -> str:
        words = ["bp", "check", str(path), *_asked(method)]
        words += [w for key, value in merged(settings).items() for w in ("--set", f"{key}={value}")]
        return shlex.join([*words, *(w for x in common.wrt for w in ("--wrt", x))])

    return Again(lambda s: open_spec(path, dataclasses.replace(common, overrides=merged(s)), name), command)


def _asked(method: str) -> tuple[str, str]:
    """The option that asks for what reports call `method`."""
    params = click.get_current_context().params
    for text in params.get("kernel", ()):
        if method in (f"kernel:{text}", f"kernel:{text.rpartition(':')[2]}"):
            return "--kernel", text
    for text in params.get("gradient", ()):
        if method == f"gradient:{Path(text).name}":
            return "--gradient", text
    return "-m", method
