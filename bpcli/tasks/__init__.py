"""Tasks, the sources of data: every module of this package but this one holds a task, as `TASK`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from bpcli.errors import Place, fail, nearest, printable
from bpcli.spec.options import read

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bpcli.problem.definition import Setup

Role = Literal["input", "target"]
ROLES: Mapping[Role, str] = {"input": "x", "target": "y_star"}
"""The inputs that a task fills where `[data]` names no others."""


class Draws(Protocol):
    """Independent random generators by label."""

    def __call__(self, label: str) -> np.random.Generator:
        """A generator of this batch of samples alone."""

    def fixed(self, label: str) -> np.random.Generator:
        """A generator that is the same for every batch of one seed: of a teacher's weights, say."""


class Task(Protocol):
    """A source of the arrays that a network learns from."""

    @property
    def name(self) -> str:
        """The name in `[data] task`; the module's, with `-` for `_`."""

    @property
    def summary(self) -> str:
        """One line for the catalogue."""

    @property
    def Options(self) -> type[Any]:
        """A dataclass; its fields are the options after the name, `copy:length=5`."""

    def fill(self, setup: Setup, options: Any, draws: Draws) -> Mapping[Role, NDArray[np.floating[Any]]]:
        """Arrays by role: each `(T, batch, *shape)`, or `(batch, *shape)` when feed-forward.

        A trailing axis of length one is dropped where the spec declares a scalar. Inputs without a role are drawn
        standard normal.
        """


@dataclass(frozen=True)
class NoTaskOptions:
    """Options of a task that takes none."""


@dataclass(frozen=True)
class TaskCall:
    """A task with its options; `text` as the user wrote it."""

    text: str
    task: Task
    options: Any

    def fill(self, setup: Setup, draws: Draws) -> Mapping[Role, NDArray[np.floating[Any]]]:
        """See `Task.fill`."""
        return self.task.fill(setup, self.options, draws)


def known_tasks() -> tuple[str, ...]:
    """The names of all tasks; imports none of them."""
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


def find_task(name: str, place: Place | None) -> Task:
    """The task of that name; `BpError` at `place` when there is none."""
    if name not in known_tasks():
        fail("unknown-task", f'unknown task "{printable(name)}"', place, help=nearest(name, known_tasks()))
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return cast(Task, module.TASK)


def parse_task(text: str, place: Place | None) -> TaskCall:
    """The task of `name` or `name:option=value,…`; `BpError` at `place` for an unknown name or a bad option."""
    name, colon, tail = text.strip().partition(":")
    task = find_task(name.strip().replace("_", "-"), place)
    return TaskCall(text, task, read(task.name, task.Options, tail if colon else None, place, "tasks"))


def role_shape(setup: Setup, role: Role) -> tuple[int, ...]:
    """The shape that the spec declares for the input of a role; `BpError` where there is none."""
    data = setup.spec.data
    name = (data.input if role == "input" else data.target) or ROLES[role]
    if name not in setup.spec.inputs:
        what = f'the task "{data.task}" fills "{name}", which is not an input'
        fail("unknown-name", what, task_place(setup), help=f'say which input it is: [data] {role} = "…"')
    return setup.spec.inputs[name].shape


def steps_of(setup: Setup, least: int = 1) -> int:
    """T, of a task of sequences that takes at least so many steps; `BpError` where there are fewer, or no state."""
    task = setup.spec.data.task
    if not setup.graph.recurrent:
        what = f'the task "{task}" is of sequences, and this network has no state'
        fail("no-state", what, task_place(setup), help='declare a [state], or write task = "random"')
    if least > setup.T:
        what = f'the task "{task}" takes at least {least} steps, and T = {setup.T}'
        fail("too-short", what, task_place(setup), help=f"write T = {least} or more in [data], or change its options")
    return setup.T


def task_place(setup: Setup) -> Place:
    """The place of `task` in the spec."""
    return setup.spec.source.value("data", "task")


def at_least(least: int, **given: int) -> None:
    """Raise ValueError for the first option that is below `least`."""
    for name, value in given.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
