"""A bench cell, as plain data that travels between processes and versions of bp."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bpcli.problem.setup import SpecFile

OURS = "bp"
"""The name of bp itself among the backends of a cell."""
PROTOCOL = 1
"""The version of the requests and answers of workers, and of the cells in them."""
THREADS = "threads"
"""A grid key that is a setting of the run rather than of the spec."""
Value = int | float | str


@dataclass(frozen=True)
class Cell:
    """The subject of a measurement: one method at one point of a sweep, on given threads and backends.

    `base` is the method before grid options replaced its own. `settings` are values of the spec's keys; `grid` holds
    the swept keys that apply, options and threads included, in the grid's order. `sha256` is the spec's digest when
    the run was planned. `index` numbers the cells of a run. `backends`, `dtype` and the predictions `seconds` and
    `bytes`, for all backends together, are set when the cell is admitted to a run (`sweep.admit`).
    """

    spec: SpecFile
    sha256: str
    threads: int
    method: str
    base: str = ""
    settings: Mapping[str, Value] = field(default_factory=dict)
    grid: Mapping[str, Value] = field(default_factory=dict)
    index: int = 0
    backends: tuple[str, ...] = (OURS,)
    dtype: str = ""
    seconds: float = 0.0
    bytes: int = 0

    @property
    def key(self) -> str:
        """A text that no other cell of the run has; the journal finds finished cells by it."""
        threads = {k: v for k, v in self.grid.items() if k == THREADS}
        return json.dumps([self.spec.name, self.method, {**threads, **self.settings}], sort_keys=True)

    @property
    def label(self) -> str:
        """A short description: spec, method and settings."""
        return f"{self.spec.name} {self.method}" + "".join(f" {k}={v}" for k, v in self.settings.items())

    def to_json(self) -> dict[str, Any]:
        """The cell as workers of all versions of bp read it: the fields of its spec beside its own."""
        own = {k: getattr(self, k) for k in ("sha256", "threads", "method")}
        return {**self.spec.to_json(), **own, "settings": dict(self.settings), "grid": dict(self.grid)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Cell:
        """A cell that another process sent; an older bp sends no digest."""
        sha256, threads = given.get("sha256", ""), int(given["threads"])
        names = {k: given[k] for k in ("method", "settings", "grid")}
        return cls(SpecFile.from_json(given), sha256, threads, **names)
