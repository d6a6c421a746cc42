"""Copy: symbols are shown, and after a delay and a sign to go they are to be said again.

At the first `length` steps the input is one of `symbols` symbols, then it is blank, with the sign to go at the last
step before the final `length` ones, at which the target are the symbols in their order; before them it is blank. The
delay is T - 2 length steps. Hochreiter & Schmidhuber, Neural Computation 9 (1997), as in Arjovsky, Shah & Bengio, ICML
2016 (length 10, symbols 8). A predictor that ignores x knows when to speak but not what to say: its cross-entropy is
length ln(symbols) in all, divided by T a step in the mean.
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
class CopyOptions:
    """`length` of what is shown, at least 1, in an alphabet of at least 2 `symbols`."""

    length: int = 3
    symbols: int = 4

    def __post_init__(self) -> None:
        at_least(1, length=self.length)
        at_least(2, symbols=self.symbols)


@dataclass(frozen=True)
class Copy:
    """Memory of exact symbols over a delay; one-hot vectors, the blank and the sign to go last."""

    name: str = "copy"
    summary: str = "repeat symbols after a delay (Hochreiter & Schmidhuber 1997); x [symbols + 2], y* [symbols + 1]"
    Options: type[CopyOptions] = CopyOptions

    def fill(self, setup: Setup, options: CopyOptions, draws: Draws) -> Mapping[Role, NDArray[np.floating[Any]]]:
        """Symbols, blanks and the sign to go."""
        length, blank = options.length, options.symbols
        T = steps_of(setup, 2 * length)
        shown = draws("symbols").integers(0, options.symbols, (length, setup.batch))
        seen, said = np.full((T, setup.batch), blank), np.full((T, setup.batch), blank)
        seen[T - length - 1] = blank + 1
        seen[:length], said[T - length :] = shown, shown
        return {"input": np.eye(blank + 2)[seen], "target": np.eye(blank + 1)[said]}


TASK = Copy()
