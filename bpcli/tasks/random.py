"""The default task: every input is drawn standard normal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpcli.tasks import NoTaskOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bpcli.problem.definition import Setup
    from bpcli.tasks import Draws, Role


@dataclass(frozen=True)
class Random:
    """A task without roles, which leaves every input to the standard normal."""

    name: str = "random"
    summary: str = "every input standard normal"
    Options: type[NoTaskOptions] = NoTaskOptions

    def fill(self, setup: Setup, options: NoTaskOptions, draws: Draws) -> Mapping[Role, NDArray[np.floating[Any]]]:
        """No arrays."""
        return {}


TASK = Random()
