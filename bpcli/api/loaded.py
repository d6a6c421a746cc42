"""`load`: open a spec, to evaluate its equations, compute its gradients and check them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import InstanceOf, PositiveInt

from bpcli.api.arguments import Positive, Seconds, validated
from bpcli.api.check_report import Report, describe
from bpcli.api.check_runner import Call, Results, judge_spec
from bpcli.api.method_selection import applying, check_options
from bpcli.api.method_selection import read as read_methods
from bpcli.api.train_runner import TrainCall, Trained, open_training
from bpcli.api.user_gradients import opened_method, split_rules, unknown, user_process, with_function
from bpcli.api.user_gradients import read as read_gradients
from bpcli.errors import BpError, fail, nearest, printable
from bpcli.methods import MethodCall, stepwise_methods
from bpcli.methods.base import Gradient, StepGradients
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.problem.draw import draw
from bpcli.problem.limits import PASSES, Limits, check_cost
from bpcli.problem.setup import SpecFile
from bpcli.runtime.evaluation import node_values, whole_loss
from bpcli.runtime.local_derivatives import LocalDerivatives, local_derivatives_at
from bpcli.spec.language import canonical

Words = str | Sequence[str]
"""One name, or several."""


@dataclass(frozen=True, eq=False, repr=False)
class LoadedProblem:
    """A spec opened at given sizes, the result of `load`.

    `params[name] (*shape)`, `inputs[name] (T, batch, *shape)`, or `(batch, *shape)` when feed-forward, and the initial
    states `state[name] (*shape)` or `(batch, *shape)` are drawn on first use, and are read-only. `setup` has the sizes,
    `T`, `batch`, `dtype`, and the tensors to differentiate, `wrt`.

    >>> net = load("specs/vanilla_rnn.toml", n=16, T=5)
    >>> net
    <LoadedProblem vanilla_rnn: n=16, n_in=2, n_out=2, T=5, batch=3, float64>
    >>> net.params["W"].shape, net.forward("a")["a"].shape
    ((16, 16), (5, 3, 16))
    """

    file: SpecFile
    setup: Setup

    def __repr__(self) -> str:
        setup = self.setup
        sizes = {**setup.spec.dims, "T": setup.T, "batch": setup.batch}
        listed = ", ".join(f"{name}={size}" for name, size in sizes.items())
        return f"<LoadedProblem {setup.spec.name}: {listed}, {setup.dtype}>"

    @property
    def params(self) -> Mapping[str, Array]:
        """The parameters, by name."""
        return self._problem.params

    @property
    def inputs(self) -> Mapping[str, Array]:
        """The inputs, by name."""
        return self._problem.inputs

    @property
    def state(self) -> Mapping[str, Array]:
        """The initial states, by name."""
        return self._problem.state

    @cached_property
    def _problem(self) -> Problem:
        problem = draw(self.setup)
        for group in problem.arrays:
            for array in group.values():
                array.flags.writeable = False
        return problem

    def loss(self) -> float:
        """The total loss of all steps and samples, in float64."""
        return whole_loss(self._problem)

    @validated
    def forward(self, *names: str) -> dict[str, Array]:
        """The values of the equations `names`; by default, of all that the loss depends on.

        Each has shape `(T, batch, *shape)`, with T = 1 when feed-forward, or `(*shape)` if it depends on no input and
        no state, and the dtype of the problem. The equation `loss` is the loss of each step and sample. Raises BpError
        for any other name.
        """
        equations = self.setup.graph.equation
        for name in names:
            if canonical(name) not in equations:
                what = f'the loss does not depend on an equation called "{printable(name)}"'
                fail("unknown-name", what, help=nearest(name, equations))
        chosen = {name: equations[canonical(name)] for name in names or equations}
        values = node_values(self._problem, tuple(dict.fromkeys(chosen.values())))
        shapes = {node.index: node.shape for node in self.setup.graph.nodes}
        return {name: np.array(v := values[i]).reshape(v.shape[:-1] + shapes[i]) for name, i in chosen.items()}

    @validated
    def gradient(self, method: str | InstanceOf[MethodCall]) -> Gradient:
        """Compute the gradient by a method, written as for `bp grad`: `rtrl`, `tbptt:k1=1,k2=4`, `FILE.py:RULE`.

        `loss` is the total loss, for truncated methods too; `arrays[name]` has the shape of the array and the dtype of
        the problem, with zeros for entries that a sparse array does not store. Raises BpError for a method that is
        unknown, does not apply to the graph, or exceeds the limits.

        >>> gradient = load("specs/vanilla_rnn.toml", n=16).gradient("rtrl")
        >>> gradient.arrays["W"].shape
        (16, 16)
        """
        with self._chosen(method) as call:
            self._admit(call)
            return call.gradient(draw(self.setup))

    @validated
    def step_gradients(self, method: str | InstanceOf[MethodCall]) -> StepGradients:
        """Compute the gradient g(t) that an online method credits to the loss of each step.

        Raises BpError as `gradient` does, and for a method that takes the losses of several steps back together.

        >>> steps = load("specs/vanilla_rnn.toml", n=16, T=5).step_gradients("rtrl")
        >>> steps.losses.shape, steps.arrays["W"].shape
        ((5,), (5, 16, 16))
        """
        with self._chosen(method) as call:
            setup = self.setup
            shapes = {x.name: (setup.T, *x.shape) for x in setup.wrt}
            self._admit(call, sum(map(math.prod, shapes.values())) * setup.dtype.itemsize)
            each = call.step_gradients(draw(setup)) if setup.graph.recurrent else None
            if each is None:
                has = f"these have: {', '.join(stepwise_methods(setup.graph))}; tbptt with k1=1, ebptt with tau=1"
                remedy = has if setup.graph.recurrent else "a network without a state has no steps"
                fail("no-steps", f"{call.text} has no per-step gradient", help=remedy)
            losses, arrays = np.zeros(setup.T), {name: np.zeros(shape, setup.dtype) for name, shape in shapes.items()}
            for t, found in enumerate(each):
                losses[t] = found.loss
                for name, rows in arrays.items():
                    rows[t] = found.arrays[name]
            return StepGradients(losses, arrays)

    @contextmanager
    def _chosen(self, method: str | MethodCall) -> Iterator[MethodCall]:
        """The method, given as for `-m`; a user's rule runs in a process that ends with the block."""
        if isinstance(method, str):
            with opened_method(method, self.file.limits) as call:
                yield call
        else:
            yield method

    def _admit(self, call: MethodCall, more: int = 0) -> None:
        """Raise BpError for a method that does not apply, or exceeds the limits with `more` bytes."""
        applying(self.setup, (call,), alone=True)
        cost, limits = call.cost(self.setup), self.file.limits
        check_cost(self.setup, call.text, cost.bytes + more, cost.flops, limits, PASSES * cost.forward_steps)

    @validated
    def local_derivatives(self, t: int) -> LocalDerivatives:
        """Compute J, M̄ and q of step `t`, counted from 0, of which online rules are made.

        Raises BpError for a graph without a state, and for a step outside 0 to T - 1.

        >>> local = load("specs/vanilla_rnn.toml", n=16, T=5).local_derivatives(3)
        >>> local.J.shape, local.q.shape
        ((3, 16, 16), (3, 16))
        """
        if not self.setup.graph.recurrent:
            fail("no-state", "a feed-forward network has no local derivatives", help="load a spec with a [state]")
        if not 0 <= t < self.setup.T:
            fail("out-of-range", f"there is no step {t}", help=f"steps are 0 to {self.setup.T - 1}")
        return local_derivatives_at(self._problem, t)

    @validated
    def check(
        self,
        methods: Words | Callable[..., Any] = (),
        *,
        reference: str = "auto",
        mode: str = "auto",
        tolerance: float = 0.0,
        kernels: Words = (),
        gradients: Words = (),
        as_: str | None = None,
        user_time: Seconds | None = None,
    ) -> Report:
        """Check gradients against references with error bounds, as `bp check` does.

        Parameters
        ----------
        methods
            Methods such as `bptt` or `tbptt:k1=1,k2=4`, or your own online rules, `FILE.py:RULE`; by default those that
            the spec names, else the usual ones for its kind. Or a function `fn(params, inputs, state)` that returns the
            dict of gradients, and is called in this process.
        reference
            `auto`, a reference (see `bp list references`), or `jax` or `torch`, if installed.
        mode
            `full` checks every entry, `directional` eight directions per tensor; `auto` goes by the predicted cost.
        tolerance
            The error at which a gradient still passes, relative to the largest entry of its array.
        kernels
            Functions to check, as `FILE.py:FUNC` or names of `[kernel.NAME]` tables; they run in another process.
        gradients
            Saved gradients to check: `.npz` files with arrays `d_NAME`.
        as_
            The method that functions, kernels, rules and saved gradients are meant to compute, `tbptt:k1=1,k2=4` say;
            by default the exact gradient, or what the spec says of its kernel.
        user_time
            Time limit for each call of a kernel in seconds; 60 by default.

        Raises
        ------
        BpError
            If a method, reference, mode or file is invalid, the loss is not finite, or the check exceeds the limits.
            A wrong gradient is a finding, not an error.

        Examples
        --------
        >>> report = load("specs/vanilla_rnn.toml", T=5).check(["bptt", "rtrl"])
        >>> report.verdict
        'pass'
        """
        own = methods if callable(methods) else None
        named, rules = split_rules(() if callable(methods) else several(methods))
        calls, options = read_methods(named), check_options(reference, mode, tolerance)
        with closing(user_process(self.file.limits, user_time)) as process:
            given = kernels or gradients or rules
            meant = as_ if own is None or given else None
            asked = read_gradients(several(kernels), several(gradients), process, meant, rules)
            asked = asked if own is None else with_function(asked, own, as_)
            return report_on(self, Call(calls, asked, options))

    @validated
    def train(
        self,
        methods: Words = (),
        *,
        steps: PositiveInt = 1000,
        optimizer: str = "adam",
        lr: Positive | None = None,
        clip: Positive | None = None,
        until: float | None = None,
        online: bool = False,
        data: str | None = None,
        watch: Words = (),
        watch_every: PositiveInt | None = None,
    ) -> Trained:
        """Train the parameters by gradient descent with each method, from the same start, as `bp train` does.

        Parameters
        ----------
        methods
            Methods such as `bptt` or `tbptt:k1=1,k2=4`; by default the exact one, online `rtrl`.
        steps
            Sequences (batches, when feed-forward) to train on.
        optimizer, lr, clip
            `sgd`, `momentum` or `adam`, with a learning rate, and the norm to which gradients are clipped.
        until
            Stop a method when the mean loss of its last ten steps is below this.
        online
            Update parameters within a sequence: at every step, or after every window for windowed methods.
        data
            `fresh` for new data of the task at every step, or `fixed`; by default fresh where there is a task.
        watch, watch_every
            Methods to compare with the true gradient along every trajectory, at every so many steps.

        Raises
        ------
        BpError
            If a method or option is invalid, or the training exceeds the limits.

        Examples
        --------
        >>> trained = load("specs/vanilla_rnn.toml", task="add").train(["bptt", "uoro"], steps=3)
        >>> trained.to_frame().pivot(index="step", columns="method", values="loss").shape
        (3, 2)
        """
        own = {"clip": clip, "until": until, "online": online, "data": data, "watch_every": watch_every}
        call = TrainCall(several(methods), steps, optimizer, lr, watch=several(watch), **own)  # type: ignore[arg-type]
        training = open_training(self.file, call)
        for _ in training.run():
            pass
        return Trained(training)


def report_on(problem: LoadedProblem, call: Call) -> Report:
    """The report of a check of one problem; raises BpError if any method, kernel or gradient is refused."""
    file, asked = problem.file, call.foreign
    results = Results(errors=list(asked.refused))
    judge_spec(file, problem.setup, call, results)
    results.errors += unknown(asked, results.declared)
    if results.errors:
        raise BpError(results.errors)
    said = {"set": dict(file.overrides), "wrt": list(file.wrt), "specs": [file.path], "objects": []}
    return results.report(call.options, describe("check", threads=None, strict=False, **said), asked.texts)


@validated
def load(
    spec: str | os.PathLike[str],
    *,
    dtype: Any = None,
    seed: Any = None,
    wrt: Words = (),
    limits: InstanceOf[Limits] | None = None,
    **sizes: Any,
) -> LoadedProblem:
    """Open a spec, optionally with other sizes and settings.

    Parameters
    ----------
    spec
        The path of a TOML file.
    dtype
        `float64` or `float32`, as a name or a NumPy type; by default that of the spec.
    seed
        Seed of parameters, initial states and data.
    wrt
        `params`, `inputs`, `state` or names of arrays to differentiate with respect to; by default those of the spec.
    limits
        Limits on bytes and seconds, and whether the spec may read files outside its own folder.
    **sizes
        Dims and constants of the spec, `T`, `batch` and `task`.

    Raises
    ------
    BpError
        With every error in the spec, its files and its sizes, each with its line and a remedy.

    Examples
    --------
    >>> net = load("specs/vanilla_rnn.toml", n=32, T=20, dtype="float32", seed=1)
    >>> net.setup.T, net.setup.dtype, net.gradient("bptt").arrays["W"].shape
    (20, dtype('float32'), (32, 32))
    """
    return open_file(spec_file(spec, {**sizes, "seed": seed, "dtype": dtype}, wrt, limits))


def spec_file(spec: str | os.PathLike[str], settings: Mapping[str, Any], wrt: Words, limits: Limits | None) -> SpecFile:
    """The spec at a path, under the settings that are not None."""
    path = Path(spec)
    overrides = {canonical(name): plain_setting(value) for name, value in settings.items() if value is not None}
    return SpecFile(str(path), path.stem, overrides, tuple(several(wrt)), limits or Limits())


def open_file(file: SpecFile) -> LoadedProblem:
    """The problem of a spec file; raises BpError with every error in it."""
    return LoadedProblem(file, file.open({}))


def several(words: Words) -> Sequence[str]:
    """`words` as a sequence."""
    return (words,) if isinstance(words, str) else tuple(words)


def plain_setting(value: Any) -> Any:
    """A NumPy number as a Python number and a dtype as its name; strings are validated with the spec."""
    if isinstance(value, str | int | float):
        return value
    try:
        return value.item() if isinstance(value, np.generic) else np.dtype(value).name
    except TypeError:
        fail("usage", f"{printable(repr(value))} is not a setting", help="give a number, or the name of a dtype")
