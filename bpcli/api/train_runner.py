"""A training as it is asked for, its refusals, and its result: `bp train` and `LoadedProblem.train`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bpcli.api.method_selection import applying, read
from bpcli.errors import fail, nearest
from bpcli.methods import MethodCall, exact_method, parse
from bpcli.problem.definition import Array, Setup
from bpcli.problem.limits import PASSES, Limits, check_cost
from bpcli.problem.setup import SpecFile
from bpcli.training.descent import Learner, Training, TrainOptions, begin
from bpcli.training.online import online_refusal
from bpcli.training.optimizers import OPTIMIZERS, RATES
from bpcli.training.trivial import trivial_loss
from bpcli.training.watching import Watch, watch_interval

if TYPE_CHECKING:
    import pandas as pd

SOURCES = ("fresh", "fixed")


@dataclass(frozen=True)
class TrainCall:
    """The arguments of a training, of the types that they should have; see `LoadedProblem.train`."""

    methods: Sequence[str] = ()
    steps: int = 1000
    optimizer: str = "adam"
    lr: float | None = None
    clip: float | None = None
    until: float | None = None
    online: bool = False
    data: str | None = None
    watch: Sequence[str] = ()
    watch_every: int | None = None


def open_training(file: SpecFile, call: TrainCall) -> Training:
    """All methods at the parameters of a spec; `BpError` for what does not fit it, or each other."""
    for what, word, known in (("optimizer", call.optimizer, OPTIMIZERS), ("data", call.data, SOURCES)):
        if word is not None and word not in known:
            fail("usage", f'{what}: unknown value "{word}"', help=nearest(word, known))
    watched = read(call.watch)
    setup = replace(file, wrt=("params",)).open({})
    exact = "rtrl" if call.online and setup.graph.recurrent else exact_method(setup.graph)
    methods = read(call.methods or (exact,))
    for calls in (methods, watched):
        applying(setup, calls, alone=True)
    if watched and setup.T == 1:
        what = "watch: over a single step, all methods compute the same gradient"
        fail("usage", what, help="use a recurrent spec and more steps, such as T=20")
    fresh, lr = _is_fresh(setup, call.data), call.lr or RATES[call.optimizer]
    own = call.steps, call.optimizer, lr, call.clip, call.until, call.online, fresh
    options = TrainOptions(*own, Watch(watched, call.watch_every or watch_interval(methods, watched)))
    _check_calls(setup, methods, options, file.limits)
    return begin(setup, methods, options)


def _is_fresh(setup: Setup, data: str | None) -> bool:
    """Whether every step has data of its own; by default where a task other than `random` makes it."""
    task = setup.spec.data.task
    if data == "fresh" and task is None:
        what = "data: this spec gives its data as numbers, so they cannot be fresh"
        fail("usage", what, setup.spec.source.key("data"), help='leave it out, or write a task in [data]: task = "add"')
    return task not in (None, "random") if data is None else data == "fresh"


def _check_calls(setup: Setup, calls: Sequence[MethodCall], options: TrainOptions, limits: Limits) -> None:
    """Raise BpError for methods without an online form, and for what takes more memory or time than is allowed."""
    if options.online and not setup.graph.recurrent:
        fail("usage", "online: a feed-forward network has no time steps", help="train it without online")
    for call in calls:
        if options.online and (why := online_refusal(call)):
            fail("usage", f"online: {why}", help="rtrl, tbptt:k1=1,k2=8, snap and uoro have an online form")
    compared = options.online or options.watch.calls
    watched = (*options.watch.calls, parse(exact_method(setup.graph))) if compared else ()
    for call in (*calls, *watched):
        cost, steps = call.cost(setup), options.steps
        if call not in calls:
            steps = -(-steps // options.watch.every)
        forward = PASSES * cost.forward_steps * steps
        check_cost(setup, call.text, cost.bytes, cost.flops * steps, limits, forward)


@dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """The result of a training.

    `runs` has a mapping for each method, with `first` and `last`, the losses of the first step and of the last ten in
    the mean, `share`, the last over `trivial_loss` where that is known, and `outcome`.
    """

    training: Training

    def __repr__(self) -> str:
        losses = ", ".join(f"{run['method']} {run['last']:.4g}" for run in self.runs)
        return f"<Trained {self.training.setup.spec.name}: {losses}>"

    @cached_property
    def trivial_loss(self) -> float | None:
        """The loss of a predictor that ignores the input; None where there is no task, or no one prediction."""
        return trivial_loss(self.training.setup)

    @cached_property
    def runs(self) -> list[dict[str, Any]]:
        """A summary of each method."""
        return [_summary(learner, self.trivial_loss) for learner in self.training.learners]

    @property
    def params(self) -> Mapping[str, Mapping[str, Array]]:
        """By method, all parameters by name, and the initial states that are trained."""
        return {x.call.text: x.parameters.saved() for x in self.training.learners}

    @property
    def columns(self) -> list[str]:
        """The columns of the curves."""
        return ["step", "method", *self.training.learners[0].curve]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each step and method; missing figures are None."""
        learners, rows = self.training.learners, []
        for step in range(max(x.done for x in learners)):
            for x in (x for x in learners if step < x.done):
                figures = {name: float(values[step]) for name, values in x.curve.items()}
                told = {n: None if math.isnan(v) and n not in ("loss", "norm") else v for n, v in figures.items()}
                rows.append({"step": step + 1, "method": x.call.text, **told})
        return rows

    def to_frame(self) -> pd.DataFrame:
        """The rows as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows(), columns=self.columns)


def _summary(learner: Learner, trivial: float | None) -> dict[str, Any]:
    last = learner.recent()
    share = last / trivial if trivial and math.isfinite(last) else None
    outcome = f"{learner.outcome} at step {learner.done}" if learner.outcome else "all steps"
    steps = {"method": learner.call.text, "steps": learner.done, "first": float(learner.losses[0]), "last": last}
    return {**steps, "share": share, "outcome": outcome}
