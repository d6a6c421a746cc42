"""Adding: of many numbers the two that are marked are to be added up.

The input is a number uniform in [0, 1] and a mark, 1 at one step of the first half and at one of the second, else 0.
The target at the last step is the sum of the two marked numbers; before it, where `over_time = "last"` counts no loss,
it is 0. Hochreiter & Schmidhuber, Neural Computation 9 (1997), as in Le, Jaitly & Hinton, arXiv:1504.00941. A
predictor that ignores x says 1, and its squared error is the variance of the sum, 1/6: ½ (y - y*)² is 1/12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bpcli.tasks import NoTaskOptions, steps_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bpcli.problem.definition import Setup
    from bpcli.tasks import Draws, Role


@dataclass(frozen=True)
class Adding:
    """Two real numbers, to be held over many steps of distraction."""

    name: str = "adding"
    summary: str = "the sum of two marked numbers at the last step (Hochreiter & Schmidhuber 1997); x [2], y* [1]"
    Options: type[NoTaskOptions] = NoTaskOptions

    def fill(self, setup: Setup, options: NoTaskOptions, draws: Draws) -> Mapping[Role, NDArray[np.floating[Any]]]:
        """Numbers and marks, and the sum."""
        T, batch = steps_of(setup, 2), setup.batch
        numbers, marks, samples = draws("numbers").random((T, batch)), np.zeros((T, batch)), np.arange(batch)
        for label, first, last in (("first", 0, T // 2), ("second", T // 2, T)):
            marks[draws(label).integers(first, last, batch), samples] = 1
        target = np.zeros((T, batch, 1))
        target[-1, :, 0] = (numbers * marks).sum(axis=0)
        return {"input": np.stack([numbers, marks], axis=-1), "target": target}


TASK = Adding()
