"""Lorenz: the next point of a chaotic orbit.

    ẋ = σ (y - x),        ẏ = x (ρ - z) - y,        ż = x y - β z,        σ = 10, ρ = 28, β = 8/3,

by Runge-Kutta of fourth order, from random points within 0.1 of the attractor. The three coordinates
are shifted and scaled to mean 0 and variance about 1; the input is the point at t, the target that at t + dt. Lorenz,
Journal of the Atmospheric Sciences 20 (1963). A predictor that ignores x says the mean, 0: its squared error ½ Σ (y -
y*)² is half the variances, about 3/2. Saying x(t) again is much better, as the orbit is smooth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from bpcli.tasks import steps_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bpcli.problem.definition import Setup
    from bpcli.tasks import Draws, Role


SIGMA, RHO, BETA = 10.0, 28.0, 8.0 / 3.0
MEAN, SPREAD = np.array([0.0, 0.0, 23.55]), np.array([7.92, 9.01, 8.62])
"""Of the coordinates on the attractor."""
LONGEST = 0.025
"""The longest step of Runge-Kutta."""
SIDE, SETTLED = 8, 1000
"""Points on each side of the cube that orbits begin at, and steps of 0.01 from there to the attractor."""


@dataclass(frozen=True)
class LorenzOptions:
    """The time between two points, above 0 and at most 0.2."""

    dt: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.dt <= 0.2:
            raise ValueError(f"dt must be above 0 and at most 0.2, not {self.dt:g}")


@dataclass(frozen=True)
class Lorenz:
    """A chaotic system in three variables, one step ahead."""

    name: str = "lorenz"
    summary: str = "the next point of the Lorenz attractor (Lorenz 1963); x [3], y* [3]"
    Options: type[LorenzOptions] = LorenzOptions

    def fill(self, setup: Setup, options: LorenzOptions, draws: Draws) -> Mapping[Role, NDArray[np.floating[Any]]]:
        """Points, and the points after them."""
        T = steps_of(setup)
        parts = math.ceil(options.dt / LONGEST)
        points = _attractor()[draws("points").integers(0, SIDE**3, setup.batch)]
        points = points + 0.1 * draws("noise").standard_normal(points.shape)
        orbit = [points]
        for _ in range(T):
            for _ in range(parts):
                points = _moved(points, options.dt / parts)
            orbit.append(points)
        found = (np.stack(orbit) - MEAN) / SPREAD
        return {"input": found[:-1], "target": found[1:]}


@lru_cache(maxsize=1)
def _attractor() -> NDArray[np.float64]:
    """Points on the attractor, (SIDE³, 3)."""
    side = np.linspace(-1.0, 1.0, SIDE)
    points: NDArray[np.float64] = MEAN + SPREAD * np.stack(np.meshgrid(side, side, side), axis=-1).reshape(-1, 3)
    for _ in range(SETTLED):
        points = _moved(points, 0.01)
    return points


def _velocity(points: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = points.T
    return np.stack([SIGMA * (y - x), x * (RHO - z) - y, x * y - BETA * z], axis=1)


def _moved(points: NDArray[np.float64], h: float) -> NDArray[np.float64]:
    """One step of Runge-Kutta."""
    k1 = _velocity(points)
    k2 = _velocity(points + h / 2 * k1)
    k3 = _velocity(points + h / 2 * k2)
    k4 = _velocity(points + h * k3)
    return points + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


TASK = Lorenz()
