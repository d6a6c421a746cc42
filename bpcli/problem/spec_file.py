"""A spec file as plain data, which any process can open."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpcli.errors import fail
from bpcli.problem.definition import Setup
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup


@dataclass(frozen=True)
class SpecFile:
    """A spec's path with the settings of the command line.

    `overrides` and `wrt` are passed to `open_setup`; reports call the spec `name`.
    """

    path: str
    name: str
    overrides: Mapping[str, Any]
    wrt: tuple[str, ...]
    limits: Limits

    def open(self, settings: Mapping[str, Any]) -> Setup:
        """Open the spec with `settings` over the overrides. Raises BpError listing every fault."""
        setup = open_setup(self.path, {**self.overrides, **settings}, self.wrt, self.limits)
        return dataclasses.replace(setup, spec=dataclasses.replace(setup.spec, name=self.name))

    def absolute(self) -> SpecFile:
        """The same spec under its absolute path, for a process in another folder."""
        return dataclasses.replace(self, path=os.path.abspath(self.path))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self) | {"wrt": list(self.wrt)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> SpecFile:
        """The inverse of `to_json`; other keys are ignored."""
        own = {f.name: given[f.name] for f in dataclasses.fields(cls)}
        return cls(**{**own, "wrt": tuple(given["wrt"]), "limits": Limits(**given["limits"])})


def digest(setup: Setup, path: str) -> str:
    """SHA-256, in hexadecimal, of a spec file and of the weight and data files that it names."""
    spec = setup.spec
    total = hashlib.sha256()
    for file in (path, spec.weights and spec.weights.file, spec.data.file):
        total.update(hashlib.sha256(_content(file)).digest() if file else bytes(32))
    return total.hexdigest()


def _content(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        fail("unreadable-file", f'cannot read "{file}": {error.strerror}', help="leave files in place while bp runs")
