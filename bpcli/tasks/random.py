"""The default task: every input is drawn standard normal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bpcli.problem.definition import Setup
    from bpcli.tasks import Draw


@dataclass(frozen=True)
class Random:
    """Fills no role, so that every input is drawn normal."""

    name: str = "random"
    summary: str = "every input standard normal"

    def fill(self, setup: Setup, generator: Draw) -> Mapping[str, NDArray[np.floating[Any]]]:
        """Nothing: what no task fills is drawn normal."""
        return {}


TASK = Random()
