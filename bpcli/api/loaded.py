"""A spec opened at given sizes: its arrays, its values forwards, its gradients, and a check of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bpcli.api.check_report import Report
from bpcli.api.check_runner import Call, Results, judge_spec
from bpcli.api.method_selection import applying, check_options
from bpcli.api.method_selection import read as read_methods
from bpcli.api.provenance import describe
from bpcli.api.user_gradients import read as read_gradients
from bpcli.api.user_gradients import unknown, user_process
from bpcli.errors import BpError, fail, nearest, printable
from bpcli.methods import MethodCall, parse
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.problem.draw import draw
from bpcli.problem.limits import PASSES, Limits, check_cost
from bpcli.problem.spec_file import SpecFile
from bpcli.runtime.evaluation import node_values, whole_loss
from bpcli.spec.language import canonical

Words = str | Sequence[str]
"""One, or several."""


@dataclass(frozen=True, eq=False, repr=False)
class LoadedProblem:
    """A spec at given sizes; `load` makes one.

    `params[name] (*shape)`, `inputs[name] (T, batch, *shape)`, or `(batch, *shape)` when feed-forward, and
    `state[name] (*shape)` or `(batch, *shape)`, the initial states, are drawn when first asked for, and cannot be
    written to. `setup` has the sizes, `T`, `batch`, `dtype`, and the tensors that are differentiated, `wrt`.

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
        """Every declared parameter, by name."""
        return self._problem.params

    @property
    def inputs(self) -> Mapping[str, Array]:
        """The data, by name."""
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
        """The loss of all steps and samples, in float64."""
        return whole_loss(self._problem)

    def forward(self, *names: str) -> dict[str, Array]:
        """The values of the equations `names`, of all where none is named, as far as the loss depends on them.

        Each is `(T, batch, *shape)`, T being 1 when feed-forward, or `(*shape)` where it depends on no input and no
        state, in the problem's dtype. The equation `loss` is the loss of each step and sample. Raises BpError for any
        other name.
        """
        equations = self.setup.graph.equation
        for name in names:
            if canonical(name) not in equations:
                what = f'no equation that the loss depends on is called "{printable(name)}"'
                fail("unknown-name", what, help=nearest(name, equations))
        chosen = {name: equations[canonical(name)] for name in names or equations}
        values = node_values(self._problem, tuple(dict.fromkeys(chosen.values())))
        shapes = {node.index: node.shape for node in self.setup.graph.nodes}
        return {name: np.array(v := values[i]).reshape(v.shape[:-1] + shapes[i]) for name, i in chosen.items()}

    def gradient(self, method: str | MethodCall) -> Gradient:
        """The gradient by a method as `bp grad` takes it, such as `rtrl` or `tbptt:k1=1,k2=4`.

        `loss` is the whole loss, for truncated methods too; `arrays[name]` has the shape of the array differentiated
        and the problem's dtype, and is zero where a density leaves entries out. Raises BpError for a method that is
        none, does not apply to the graph, or costs more than the limits allow.

        >>> gradient = load("specs/vanilla_rnn.toml", n=16).gradient("rtrl")
        >>> gradient.arrays["W"].shape
        (16, 16)
        """
        call = parse(method) if isinstance(method, str) else method
        applying(self.setup, (call,), alone=True)
        cost, limits = call.cost(self.setup), self.file.limits
        check_cost(self.setup, call.text, cost.bytes, cost.flops, limits, PASSES * cost.forward_steps)
        return call.gradient(draw(self.setup))

    def check(
        self,
        methods: Words = (),
        *,
        reference: str = "auto",
        mode: str = "auto",
        kernels: Words = (),
        gradients: Words = (),
        user_time: float | None = None,
    ) -> Report:
        """Judge gradients as `bp check` does, against references that bound their own error.

        Parameters
        ----------
        methods
            Methods such as `bptt` or `tbptt:k1=1,k2=4`; without any, those that the spec names, else what suits it.
        reference
            What judges: `auto`, a reference (`bp list references`), or `jax` or `torch`, where installed.
        mode
            `full` judges every entry, `directional` eight directions a tensor, `auto` goes by the predicted cost.
        kernels
            Functions to judge, as `FILE.py:FUNC` or names of `[kernel.NAME]` tables; each runs in another process.
        gradients
            Files of saved gradients, `.npz` with `d_NAME` arrays.
        user_time
            Seconds that a call of a kernel may take; 60 where it is None.

        Raises
        ------
        BpError
            Where a method, a reference, a mode or a file is none that can be used, the loss is not finite, or the check
            would cost more than the limits allow. A gradient that is wrong is a finding, not an error.

        Examples
        --------
        >>> report = load("specs/vanilla_rnn.toml", T=5).check(["bptt", "rtrl"])
        >>> report.verdict
        'pass'
        """
        calls, options = read_methods(several(methods)), check_options(reference, mode)
        with closing(user_process(self.file.limits, user_time)) as process:
            asked = read_gradients(several(kernels), several(gradients), process)
            return report_on(self, Call(calls, asked, options))


def report_on(problem: LoadedProblem, call: Call) -> Report:
    """The report on all that is asked of one problem; raises BpError where any of it is refused."""
    file, asked = problem.file, call.foreign
    results = Results(errors=list(asked.refused))
    judge_spec(file, problem.setup, call, results)
    results.errors += unknown(asked, results.declared)
    if results.errors:
        raise BpError(results.errors)
    said = {"set": dict(file.overrides), "wrt": list(file.wrt), "specs": [file.path], "objects": []}
    return results.report(call.options, describe("check", threads=None, strict=False, **said), asked.texts)


def load(
    spec: str | os.PathLike[str],
    *,
    dtype: Any = None,
    seed: int | None = None,
    wrt: Words = (),
    limits: Limits | None = None,
    **sizes: float,
) -> LoadedProblem:
    """Open a spec, with other sizes and numbers than it says.

    Parameters
    ----------
    spec
        The path of a TOML file.
    dtype
        `float64` or `float32`, by name or as a NumPy type; the spec's own where it is None.
    seed
        Seed of parameters, states and data.
    wrt
        What is differentiated: `params`, `inputs`, `state` or names of arrays; as the spec says where it is empty.
    limits
        What a run may cost: bytes, seconds; and whether the spec may read files outside its own folder.
    **sizes
        Dims and constants of the spec, `T` and `batch`.

    Raises
    ------
    BpError
        With all that is wrong with the spec, its equations, its files or its sizes, each with its line and a remedy.

    Examples
    --------
    >>> net = load("specs/vanilla_rnn.toml", n=32, T=20, dtype="float32", seed=1)
    >>> net.setup.T, net.setup.dtype, net.gradient("bptt").arrays["W"].shape
    (20, dtype('float32'), (32, 32))
    """
    return open_file(spec_file(spec, {**sizes, "seed": seed, "dtype": dtype}, wrt, limits))


def spec_file(spec: str | os.PathLike[str], settings: Mapping[str, Any], wrt: Words, limits: Limits | None) -> SpecFile:
    """A spec by its path, under the settings that are not None."""
    path = Path(spec)
    overrides = {canonical(name): plain_setting(value) for name, value in settings.items() if value is not None}
    return SpecFile(str(path), path.stem, overrides, tuple(several(wrt)), limits or Limits())


def open_file(file: SpecFile) -> LoadedProblem:
    """The problem of a spec file; raises BpError with all that is wrong with it."""
    return LoadedProblem(file, file.open({}))


def several(words: Words) -> Sequence[str]:
    """One word as a sequence of it."""
    return (words,) if isinstance(words, str) else tuple(words)


def plain_setting(value: Any) -> Any:
    """A number of NumPy as Python's, and a dtype by its name: a text that is none is refused by the spec's reader."""
    if isinstance(value, str | int | float):
        return value
    return value.item() if isinstance(value, np.generic) else np.dtype(value).name
