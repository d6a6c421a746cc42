"""A spec as any process can open it: its path with all that the command line says over it, as plain data."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpcli.errors import fail
from bpcli.problem.definition import Setup
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup


@dataclass(frozen=True)
class Target:
    """`overrides` and `wrt` as for `open_setup`; the spec goes by `name`."""

    path: str
    name: str
    overrides: Mapping[str, Any]
    wrt: tuple[str, ...]
    limits: Limits

    def open(self, settings: Mapping[str, Any]) -> Setup:
        """The Setup at a point of a sweep. Raises BpError with all that is wrong."""
        setup = open_setup(self.path, {**self.overrides, **settings}, self.wrt, self.limits)
        return dataclasses.replace(setup, spec=dataclasses.replace(setup.spec, name=self.name))

    def plain(self) -> dict[str, Any]:
        """What JSON can hold."""
        return dataclasses.asdict(self) | {"wrt": list(self.wrt)}


def target_from(plain: Mapping[str, Any]) -> Target:
    """The Target that `plain` was made of."""
    return Target(**{**plain, "wrt": tuple(plain["wrt"]), "limits": Limits(**plain["limits"])})


def digest(setup: Setup, path: str) -> str:
    """SHA-256 of what a spec says: the content of its file and of the files that it names, in hexadecimal."""
    spec = setup.spec
    files = (path, spec.weights and spec.weights.file, spec.data.file)
    total = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(_content(file)).digest() if file else bytes(32)
        total.update(content)
    return total.hexdigest()


def _content(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        fail("unreadable-file", f'cannot read "{file}": {error.strerror}', help="leave files in place while bp runs")
