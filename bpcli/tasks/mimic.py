"""Mimic: the outputs of another recurrent network, a teacher with fixed random weights.

    a(t) = tanh(W a(t-1) + W_in x(t)),        y*(t) = W_out a(t),        x(t) standard normal,

with W orthogonal times 0.9 and W_in and W_out normal, scaled by the square root of their columns; the teacher is the
same for all samples of one seed. Sizes are those of the spec's input and target. Marschall, Cho & Savin, JMLR 21
(2020). A predictor that ignores x says 0: its squared error ½ Σ (y - y*)² is half the variance of the teacher's
outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bpcli.tasks import at_least, role_shape, steps_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bpcli.problem.definition import Setup
    from bpcli.tasks import Draws, Role


@dataclass(frozen=True)
class MimicOptions:
    """Units of the teacher, at least 1."""

    units: int = 8

    def __post_init__(self) -> None:
        at_least(1, units=self.units)


@dataclass(frozen=True)
class Mimic:
    """A target that a network of the teacher's size can reach exactly."""

    name: str = "mimic"
    summary: str = "the outputs of a random recurrent network (Marschall et al. 2020); x and y* of any size"
    Options: type[MimicOptions] = MimicOptions

    def fill(self, setup: Setup, options: MimicOptions, draws: Draws) -> Mapping[Role, NDArray[np.floating[Any]]]:
        """Noise, and the teacher's answer."""
        T, n = steps_of(setup), options.units
        n_in, n_out = (int(np.prod(role_shape(setup, role), dtype=int)) for role in ("input", "target"))
        rng = draws.fixed("teacher")
        W = 0.9 * np.linalg.qr(rng.standard_normal((n, n)))[0]
        W_in = rng.standard_normal((n, n_in)) / np.sqrt(n_in)
        W_out = rng.standard_normal((n_out, n)) / np.sqrt(n)
        x, a, outputs = draws("noise").standard_normal((T, setup.batch, n_in)), np.zeros((setup.batch, n)), []
        for t in range(T):
            a = np.tanh(a @ W.T + x[t] @ W_in.T)
            outputs.append(a @ W_out.T)
        return {"input": x, "target": np.stack(outputs)}


TASK = Mimic()
