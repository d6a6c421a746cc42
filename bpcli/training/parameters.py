"""All trained parameters as one vector, with a view of it for each array."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bpcli.problem.definition import Array, Problem, Setup


@dataclass(frozen=True, eq=False)
class Parameters:
    """The trained arrays of a problem: `theta (P,)`, and the problem's arrays with views of it in their places."""

    setup: Setup
    theta: Array
    params: Mapping[str, Array]
    state: Mapping[str, Array]

    def problem(self, inputs: Mapping[str, Array]) -> Problem:
        """The problem of these parameters and of some inputs."""
        return Problem(self.setup, self.params, inputs, self.state)

    def saved(self) -> dict[str, Array]:
        """All parameters and the trained initial states, the arrays of a `[weights] file`."""
        trained = {x.name: self.state[x.name] for x in self.setup.wrt if x.kind == "state"}
        return {**self.params, **trained}


def parameters_of(problem: Problem) -> Parameters:
    """A copy of a problem's parameters and trained states, to be moved."""
    setup = problem.setup
    theta = np.concatenate([problem.array(x).ravel() for x in setup.wrt])
    groups: dict[str, dict[str, Array]] = {"param": dict(problem.params), "state": dict(problem.state)}
    start = 0
    for x in setup.wrt:
        size = problem.array(x).size
        groups[x.kind][x.name] = theta[start : start + size].reshape(x.shape)
        start += size
    return Parameters(setup, theta, groups["param"], groups["state"])


def packed(setup: Setup, arrays: Mapping[str, Array]) -> Array:
    """The gradient as one vector, in the order of theta."""
    return np.concatenate([arrays[x.name].ravel() for x in setup.wrt])
