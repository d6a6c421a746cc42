"""Delayed non-match to sample: do two stimuli, with a delay between them, differ?

Each stimulus is one of two, an input of 1 on its channel for `shown` steps: the first from step 1 on, the second after
`delay` steps of silence. At the steps after it, the last T - 2 shown - delay ones, the target is +1 where they differ
and -1 where they are equal, an exclusive or; before them it is 0. As in Miconi, eLife 6:e20899 (2017). A predictor
that ignores x says 0: its squared error ½ (y - y*)² is ½ at every step of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bpcli.tasks import at_least, steps_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bpcli.problem.definition import Setup
    from bpcli.tasks import Draws, Role


@dataclass(frozen=True)
class NonmatchOptions:
    """Steps of each stimulus and of the delay, at least 1."""

    shown: int = 3
    delay: int = 5

    def __post_init__(self) -> None:
        at_least(1, shown=self.shown, delay=self.delay)


@dataclass(frozen=True)
class DelayNonmatch:
    """An exclusive or over time: no stimulus by itself says anything about the answer."""

    name: str = "delay-nonmatch"
    summary: str = "+1 where two stimuli differ, -1 where they are equal, after a delay (Miconi 2017); x [2], y* [1]"
    Options: type[NonmatchOptions] = NonmatchOptions

    def fill(self, setup: Setup, options: NonmatchOptions, draws: Draws) -> Mapping[Role, NDArray[np.floating[Any]]]:
        """Two stimuli, and whether they differ."""
        shown, second = options.shown, options.shown + options.delay
        T = steps_of(setup, second + shown + 1)
        stimuli = draws("stimuli").integers(0, 2, (2, setup.batch))
        x, target = np.zeros((T, setup.batch, 2)), np.zeros((T, setup.batch, 1))
        x[:shown], x[second : second + shown] = np.eye(2)[stimuli[0]], np.eye(2)[stimuli[1]]
        target[second + shown :, :, 0] = np.where(stimuli[0] != stimuli[1], 1.0, -1.0)
        return {"input": x, "target": target}


TASK = DelayNonmatch()
