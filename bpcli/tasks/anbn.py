"""aⁿbⁿ: the next symbol of strings of n letters a and as many letters b.

Strings follow each other, each with n uniform from 1 to `most`, and a sign # before every one. The target is the next
symbol. Within the letters b it is certain to whoever has counted the letters a; within those it is not. Wiles & Elman
(1995); Gers & Schmidhuber, IEEE Transactions on Neural Networks 12 (2001). A predictor that ignores x reaches the
entropy of the symbols at its step: with frequencies n̄, n̄ and 1 of 2 n̄ + 1, n̄ = (most + 1) / 2, once strings are
out of step. Who counts is left with the entropy of the lengths, ln(most) / (most + 2) a step.
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
class AnBnOptions:
    """The largest n, at least 2."""

    most: int = 5

    def __post_init__(self) -> None:
        at_least(2, most=self.most)


@dataclass(frozen=True)
class AnBn:
    """A language that takes a counter; one-hot vectors of a, b and #."""

    name: str = "anbn"
    summary: str = "the next symbol of strings aⁿbⁿ (Wiles & Elman 1995; Gers & Schmidhuber 2001); x [3], y* [3]"
    Options: type[AnBnOptions] = AnBnOptions

    def fill(self, setup: Setup, options: AnBnOptions, draws: Draws) -> Mapping[Role, NDArray[np.floating[Any]]]:
        """Streams of strings, and the same one step ahead."""
        T = steps_of(setup, 2)
        rng = draws("lengths")
        streams = np.stack([_stream(rng, T + 1, options.most) for _ in range(setup.batch)], axis=1)
        return {"input": np.eye(3)[streams[:-1]], "target": np.eye(3)[streams[1:]]}


def _stream(rng: np.random.Generator, length: int, most: int) -> NDArray[np.int64]:
    """Symbols 0 (a), 1 (b) and 2 (#)."""
    counts = rng.integers(1, most + 1, length)  # at least three symbols each: more than enough
    return np.concatenate([np.repeat([2, 0, 1], [1, n, n]) for n in counts])[:length].astype(np.int64)


TASK = AnBn()
