"""Gradient descent with several methods, each on parameters of its own, from one start and on the same data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.methods import MethodCall, exact_method, parse
from bpcli.methods._online import Online
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.problem.draw import draw, draw_inputs, redrawn
from bpcli.runtime.reverse_mode import unrolled
from bpcli.training.online import last_losses, run_online
from bpcli.training.optimizers import Optimizer, length
from bpcli.training.parameters import Parameters, packed, parameters_of
from bpcli.training.watching import Watch, compared

RECENT = 10
"""Steps whose mean loss is compared with the one to reach: with fresh data, a single step may be lucky."""
STALE = "step_cosine"
"""The column with the cosine of the last gradient of a sequence, online, and the true one of the same losses."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train: `steps` sequences, until the mean loss of ten steps is below `until`.

    `online` moves the parameters within a sequence, `fresh` draws new data for every step.
    """

    steps: int
    optimizer: str
    lr: float
    clip: float | None = None
    until: float | None = None
    online: bool = False
    fresh: bool = False
    watch: Watch = field(default_factory=Watch)

    def plain(self) -> dict[str, Any]:
        """All but what is watched, as JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "watch"}


@dataclass(eq=False)
class Learner:
    """One method with its parameters, its optimizer, and figures of the steps `done`.

    `curve[name] (steps,)` is NaN where there is no figure. `outcome` is "" while it may go on, then "reached" or "not
    finite": the loss, the gradient, or the parameters that it leads to; they are those before the step `done` then.
    """

    call: MethodCall
    parameters: Parameters
    optimizer: Optimizer
    curve: dict[str, NDArray[np.float64]]
    done: int = 0
    outcome: str = ""

    @property
    def losses(self) -> NDArray[np.float64]:
        """The losses of the steps done."""
        return self.curve["loss"][: self.done]

    def recent(self) -> float:
        """The mean loss of the last steps."""
        return float(self.losses[-RECENT:].mean())


@dataclass(frozen=True, eq=False)
class Training:
    """Several learners and the data that all of them see."""

    start: Problem
    options: TrainOptions
    learners: Sequence[Learner]
    true: MethodCall = field(repr=False)

    @property
    def setup(self) -> Setup:
        """Sizes and graph."""
        return self.start.setup

    def run(self) -> Iterator[int]:
        """Take the steps that are left; yields the number of steps done after each one."""
        begun = max(learner.done for learner in self.learners)
        for step in range(begun, self.options.steps):
            live = [x for x in self.learners if not x.outcome]
            if not live:
                return
            inputs = draw_inputs(self.setup, step) if self.options.fresh and step else self.start.inputs
            for learner in live:
                self._step(learner, inputs, step)
            yield step + 1

    @np.errstate(all="ignore")  # what is not finite ends a method
    def _step(self, learner: Learner, inputs: Mapping[str, Array], step: int) -> None:
        kept = learner.parameters.theta.copy()
        take = self._online if self.options.online else self._by_sequence
        figures = take(learner, learner.parameters.problem(inputs), step)
        learner.done = step + 1
        for name, value in figures.items():
            learner.curve[name][step] = value
        theta = learner.parameters.theta
        if not (np.isfinite([figures["loss"], figures["norm"]]).all() and np.isfinite(theta).all()):
            learner.outcome = "not finite"
            theta[:] = kept
        elif self.options.until is not None and learner.recent() < self.options.until:
            learner.outcome = "reached"

    def _by_sequence(self, learner: Learner, problem: Problem, step: int) -> dict[str, float]:
        """One gradient of all steps, and one move."""
        loss, g = self._gradient(learner.call, problem, step)
        figures = {"loss": loss, "norm": length(g)}
        if np.isfinite(loss) and np.isfinite(figures["norm"]):
            figures |= self._watched(problem, step, {learner.call.text: g})
            learner.optimizer.move(learner.parameters.theta, g)
        return figures

    def _online(self, learner: Learner, problem: Problem, step: int) -> dict[str, float]:
        """A sequence with a move at every step or window; the norm is that of the sum of all gradients."""
        figures, setup, parameters = self._watched(problem, step, {}), self.setup, learner.parameters
        total, last = np.zeros_like(parameters.theta), [parameters.theta, parameters.theta]

        def move(done: int, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
            g = packed(setup, arrays)
            if done == setup.T:
                last[:] = g, parameters.theta.copy()
            total[:] += g
            learner.optimizer.move(parameters.theta, g)
            return parameters.params

        loss = run_online(learner.call, problem, step, move)
        figures |= {"loss": loss, "norm": length(total)}
        if self.options.watch.due(step):
            window = last_losses(learner.call, setup)
            entered = parameters_of(problem)
            entered.theta[:] = last[1]
            _, arrays = unrolled(setup, (window,)).gradient(entered.problem(problem.inputs))
            if cosine := compared(last[0], packed(setup, arrays)):
                figures[STALE] = cosine["cosine"]
        return figures

    def _watched(self, problem: Problem, step: int, known: dict[str, Array]) -> dict[str, float]:
        """The comparisons of a step; gradients that are `known` by name are not taken again."""
        watch = self.options.watch
        if not watch.calls or not watch.due(step):
            return {}

        def gradient(call: MethodCall) -> Array:
            if call.text not in known:
                known[call.text] = self._gradient(call, problem, step)[1]
            return known[call.text]

        return watch.compare(gradient, gradient(self.true))

    def _gradient(self, call: MethodCall, problem: Problem, step: int) -> tuple[float, Array]:
        """The loss and the gradient as one vector; random methods draw anew at every step."""
        if isinstance(call.method, Online):
            found = call.method.drawn(problem, call.options, step)
        else:
            found = call.gradient(redrawn(problem, step) if "random" in call.method.tags else problem)
        return found.loss, packed(self.setup, found.arrays)


def begin(setup: Setup, calls: Sequence[MethodCall], options: TrainOptions) -> Training:
    """All methods at the spec's parameters."""
    start = draw(setup)
    columns = ["loss", "norm", *([STALE] if options.online else []), *options.watch.columns()]
    learners = []
    for call in calls:
        curve = {name: np.full(options.steps, np.nan) for name in columns}
        optimizer = Optimizer(options.optimizer, options.lr, options.clip)
        learners.append(Learner(call, parameters_of(start), optimizer, curve))
    return Training(start, options, learners, parse(exact_method(setup.graph)))
