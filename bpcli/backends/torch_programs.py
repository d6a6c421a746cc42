"""Gradients by PyTorch: eager reverse mode, real-time recurrent learning by `torch.func`, and gradcheck."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.autograd.gradcheck import GradcheckError
from torch.nn import functional

from bpcli.backends.array_graph import Values, loss, masks
from bpcli.backends.array_rtrl import rtrl
from bpcli.backends.base import Arrays, Library
from bpcli.errors import fail
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup

Program = Callable[[Arrays, Arrays], tuple[Any, Arrays]]


def _scan(step: Callable[..., Any], first: Any, fed: Values, length: int) -> tuple[Any, Values]:
    """A loop. What is fed is cut up once: the gradient of an index would be an array of all steps, at every step."""
    rows = {key: value.unbind(0) for key, value in fed.items()}
    carry, kept = first, []
    for t in range(length):
        carry, now = step(carry, {key: each[t] for key, each in rows.items()})
        kept.append(now)
    return carry, {key: torch.stack([now[key] for now in kept]) for key in kept[0]}


LIBRARY = Library(
    xp=torch,
    special={
        # PyTorch's own softplus is a straight line from 20 on, off by 2e-9.
        "softplus": lambda v: torch.logaddexp(v, torch.zeros_like(v)),
        "logsumexp": lambda v: torch.logsumexp(v, -1),
        "softmax": lambda v: torch.softmax(v, -1),
        "log_softmax": lambda v: torch.log_softmax(v, -1),
    },
    product=lambda M, v: functional.linear(v, M),
    product_sum=lambda M, v, u: torch.addmm(u, v, M.T) if v.ndim == 2 else functional.linear(v, M) + u,
    constant=lambda number: torch.as_tensor(np.asarray(number)),
    scan=_scan,
    vjp=torch.func.vjp,
    vmap=torch.func.vmap,
)


def gradient_function(problem: Problem, method: str) -> Callable[[], Gradient]:
    """A function that computes the gradient; nothing is compiled."""
    if method != "rtrl":
        return _running(problem, _reverse(problem.setup))
    with_influence = torch.no_grad()(rtrl(LIBRARY, problem.setup))  # its own derivatives are those of torch.func
    return _running(problem, with_influence)


def _running(problem: Problem, program: Program) -> Callable[[], Gradient]:
    """A function that runs `program`, with zeros where a density leaves entries out."""
    wrt, rest = _tensors(problem)
    kept = {name: torch.from_numpy(mask) for name, mask in masks(problem.setup).items()}

    def gradient() -> Gradient:
        total, gradients = program(wrt, rest)
        dense = {n: torch.where(kept[n], g, 0.0) if n in kept else g for n, g in gradients.items()}
        return Gradient(total.item(), {name: g.detach().numpy() for name, g in dense.items()})

    return gradient


def gradcheck_function(problem: Problem) -> Callable[[], Gradient]:
    """A function that runs `torch.autograd.gradcheck` with its defaults, and gives the gradient that it has checked.

    Raises BpError where gradcheck rejects it.
    """
    wrt, rest = _tensors(problem)
    checked = _running(problem, _reverse(problem.setup))()

    whole = loss(LIBRARY, problem.setup)

    def objective(*arrays: Any) -> Any:
        return whole({**rest, **dict(zip(wrt, arrays, strict=True))})

    def gradient() -> Gradient:
        try:
            torch.autograd.gradcheck(objective, tuple(wrt.values()))
        except GradcheckError as error:
            what = f"torch.autograd.gradcheck rejects the gradient: {str(error).splitlines()[0]}"
            fail(
                "gradcheck", what, help="its fixed step may straddle a kink or be too large; measure without that peer"
            )
        return checked

    return gradient


def _tensors(problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is differentiated, as leaves of autograd, and all other arrays."""
    groups = (problem.params, problem.inputs, problem.state)
    arrays = {name: torch.from_numpy(a.copy()) for group in groups for name, a in group.items()}
    wrt = {t.name: arrays.pop(t.name).requires_grad_() for t in problem.setup.wrt}
    return wrt, arrays


def _reverse(setup: Setup) -> Program:
    """Reverse mode through the whole loss: BPTT, or backprop when feed-forward."""

    objective = loss(LIBRARY, setup)

    def program(wrt: Arrays, rest: Arrays) -> tuple[Any, Arrays]:
        total = objective({**wrt, **rest})
        if not total.requires_grad:  # it depends on nothing that is differentiated
            return total, {name: torch.zeros_like(array) for name, array in wrt.items()}
        found = torch.autograd.grad(total, tuple(wrt.values()), materialize_grads=True)
        return total, dict(zip(wrt, found, strict=True))

    return program
