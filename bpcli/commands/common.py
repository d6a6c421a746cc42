"""The options that commands share, as the one value that a command gets for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bpcli.problem.limits import Limits


@dataclass(frozen=True)
class Common:
    """The shared options, read and checked.

    `overrides` beat the spec (`n`, `T`, `dtype`, … from flags and `BP_*`); the spec beats `fallbacks`, which come from
    `[tool.bp]`. `wrt` is empty where the spec decides. `outputs` pairs a format with a path. `max_memory` in bytes,
    `max_time` and `user_time` in seconds, None for the default. `scheduler` and `local_cluster` send work to a cluster.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    fallbacks: Mapping[str, Any] = field(default_factory=dict)
    wrt: tuple[str, ...] = ()
    threads: int | None = None
    format: str = "table"
    outputs: tuple[tuple[str, str], ...] = ()
    quiet: bool = False
    verbose: bool = False
    strict: bool = False
    max_memory: int | None = None
    max_time: float | None = None
    user_time: float | None = None
    allow_outside: bool = False
    scheduler: str | None = None
    local_cluster: int | None = None

    def limits(self) -> Limits:
        """What a run may cost."""
        from bpcli.problem.limits import Limits

        given = {"max_memory": self.max_memory, "max_time": self.max_time}
        return Limits(allow_outside=self.allow_outside, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
