"""Online training: the parameters move while a sequence runs, at every step or after every window.

`rtrl` and the rules of online methods keep the influence that they have built up with earlier parameters, which is then
stale: M(t) is no longer ∂a(t)/∂w at the parameters of step t. Windowed methods move after each of their windows, whose
states are those of the parameters at the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bpcli.kernels.influence import BIRTH
from bpcli.methods import MethodCall
from bpcli.methods._online import Online
from bpcli.methods._unrolling import Unrolling
from bpcli.methods.base import Exact, Windows
from bpcli.methods.rtrl import RTRL, collect_gradient
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.problem.draw import method_generator
from bpcli.runtime.forward_mode import RtrlRun, rtrl_plan
from bpcli.runtime.local_derivatives import LocalSteps
from bpcli.runtime.reverse_mode import Window, loss_weights, unrolled

Move = Callable[[int, Mapping[str, Array]], Mapping[str, Array]]
"""From the steps done and the gradient of their newest losses to the parameters of the next step."""


def online_refusal(call: MethodCall) -> str | None:
    """Why a method has no online form; None where it has one."""
    if isinstance(call.method, RTRL | Online | Unrolling):
        return None
    return f"{call.text} runs through a sequence more than once"


def is_stale(call: MethodCall) -> bool:
    """Whether the method carries an influence from step to step."""
    return not isinstance(call.method, Unrolling)


def last_losses(call: MethodCall, setup: Setup) -> Window:
    """The losses that the last gradient of a sequence is of, through all steps."""
    first = setup.T - 1
    if isinstance(call.method, Unrolling):
        first = _windows(call, setup)[-1].loss_from
    return Window(0, first, setup.T)


def run_online(call: MethodCall, problem: Problem, number: int, move: Move) -> float:
    """Run one sequence, moving on the way; the sum of its losses, each at the parameters of its step."""
    method = call.method
    if isinstance(method, RTRL):
        return _by_influence(problem, move)
    if isinstance(method, Online):
        return _by_rule(method, call, problem, number, move)
    return unrolled(problem.setup, _windows(call, problem.setup), singly=True).descend(problem, move)


def _windows(call: MethodCall, setup: Setup) -> tuple[Window, ...]:
    definition = call.definition(setup)
    assert isinstance(definition, Exact | Windows)
    return definition.over(setup)


@np.errstate(all="ignore")  # the caller looks for values that are not finite
def _by_influence(problem: Problem, move: Move) -> float:
    """Step by step with compiled kernels: g = q M(t-1) + direct, then M ← J M + M̄."""
    setup = problem.setup
    plan, weights = rtrl_plan(setup), loss_weights(setup)
    run = RtrlRun(plan, setup.dtype, problem.arrays)
    trace, loss = run.trace, 0.0
    # From this step on all columns are full, and all calls of the kernel the same.
    regular = int(run.schedule.panels[:, BIRTH].max(initial=0)) + 2
    trace.start()
    for t in range(setup.T):
        trace.set_inputs({name: x[t : t + 1] for name, x in problem.inputs.items()})
        trace.forward(0, 1)
        loss += float((trace.losses(0, 1)[0] * weights[t]).sum())
        trace.clear()
        trace.reverse(0, 1, weights[t : t + 1], later={})
        step = min(t, regular)
        run.advance(step, step + 1)
        found = collect_gradient(setup, run, {})
        trace.restore(trace.moved_on())
        trace.set_params(move(t + 1, found))
        run.G[:] = 0
    run.close()
    return loss


@np.errstate(all="ignore")  # the caller looks for values that are not finite
def _by_rule(method: Online, call: MethodCall, problem: Problem, number: int, move: Move) -> float:
    """Step by step with a rule in NumPy."""
    problem = method.network(problem)
    setup, steps = problem.setup, LocalSteps(problem)
    state = method.rule.start(setup, call.options, method_generator(setup, method.name, number))
    params, loss = problem.params, 0.0
    steps.start()
    for t in range(setup.T):
        local = steps.moved(t, params, problem.inputs)
        state = method.rule.step(state, local)
        credited = method.rule.credit(state, local)
        loss += float((local.losses * local.weights).sum())
        params = {**params, **move(t + 1, steps.gradient(credited.influence, credited.direct))}
    steps.close()
    return loss
