"""Tasks, the sources of data: every module of this package but this one holds a task, as `TASK`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from bpcli.errors import Place, fail, nearest, printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bpcli.problem.definition import Setup

Draw = Callable[[str], "np.random.Generator"]


class Task(Protocol):
    """A source of the arrays that a network learns from."""

    @property
    def name(self) -> str:
        """The name in `[data] task`; the module's, with `-` for `_`."""

    @property
    def summary(self) -> str:
        """One line for the catalogue."""

    def fill(self, setup: Setup, generator: Draw) -> Mapping[str, NDArray[np.floating[Any]]]:
        """Arrays by role: "input" and "target", each `(T, batch, *shape)`, or `(batch, *shape)` when feed-forward.

        `generator(label)` is an independent generator for each label. Inputs without a role are drawn standard normal.
        """


def known_tasks() -> tuple[str, ...]:
    """The names of all tasks; imports none of them."""
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


def find_task(name: str, place: Place | None) -> Task:
    """The task of that name; `BpError` at `place` when there is none."""
    if name not in known_tasks():
        fail("unknown-task", f'unknown task "{printable(name)}"', place, help=nearest(name, known_tasks()))
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return cast(Task, module.TASK)
