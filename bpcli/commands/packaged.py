"""The specs that ship with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bpcli
from bpcli.commands.options import Common
from bpcli.commands.specs import find
from bpcli.errors import Diagnostic, fail, nearest


def find_or_packaged(targets: Sequence[str], common: Common) -> tuple[list[Path], list[Diagnostic]]:
    """As `specs.find`; without a target, the vanilla RNN that ships with the package."""
    return find(targets, common) if targets else ([packaged_spec("vanilla_rnn")], [])


def packaged_spec(name: str) -> Path:
    """The path of the spec called `name` (`vanilla_rnn`), inside an installed package or beside it in a source tree."""
    package = Path(bpcli.__file__).resolve().parent
    folders = [f for f in (package / "specs", package.parent / "specs") if f.is_dir()]
    paths = {p.stem: p for f in reversed(folders) for p in f.glob("*.toml")}
    if name not in paths:
        fail("no-such-file", f'the package holds no spec "{name}"', help=nearest(name, paths))
    return paths[name]
