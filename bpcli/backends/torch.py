"""PyTorch as a peer: the Graph under eager autograd, in the precision of the spec, and gradcheck for differences."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from bpcli.backends import Arrays, Library, Program, peer_refusal
from bpcli.backends.array_graph import Values, loss, masks, rtrl
from bpcli.errors import fail
from bpcli.graph.operations import STOPPING
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup

GRADCHECK = ("central", "check")


class Torch:
    """Reverse mode by autograd, RTRL by `torch.func`, and `torch.autograd.gradcheck` for what checks by differences."""

    name: ClassVar[str] = "torch"
    summary: ClassVar[str] = "PyTorch: eager autograd, RTRL by torch.func, and gradcheck for differences"
    methods: ClassVar[tuple[str, ...]] = ("backprop", "bptt", "rtrl", *GRADCHECK)

    def available(self) -> str | None:
        """See `Peer`."""
        return None if importlib.util.find_spec("torch") else "PyTorch is not installed"

    def prepare(self, threads: int) -> int | None:
        """See `Peer`."""
        import torch

        torch.set_num_threads(threads)
        return threads

    def refusal(self, setup: Setup, method: str) -> str | None:
        """See `Peer`; gradcheck takes no single precision, and moves what stop_gradient holds."""
        reason = peer_refusal(self, setup, method)
        if reason or method not in GRADCHECK:
            return reason
        if any(node.op in STOPPING for node in setup.graph.nodes):
            return "gradcheck's differences perturb what stop_gradient holds constant"
        return "gradcheck needs double precision" if setup.dtype != np.float64 else None

    def gradient_function(self, problem: Problem, method: str) -> Callable[[], Gradient]:
        """See `Peer`; checks the gradient by differences where the method is to do that."""
        import torch

        library = torch_library()
        if method in GRADCHECK:
            return _gradcheck(library, problem)
        if method == "rtrl":  # its own derivatives are those of torch.func
            return _gradient(problem, torch.no_grad()(rtrl(library, problem.setup)))
        return _gradient(problem, _reverse(library, problem.setup))


def torch_library() -> Library:
    """PyTorch's functions."""
    import torch
    from torch.nn import functional

    def scan(step: Callable[..., Any], first: Any, fed: Values, length: int) -> tuple[Any, Values]:
        # All steps are cut apart at once: the gradient of an index would be an array of all steps, at every step.
        rows = {key: value.unbind(0) for key, value in fed.items()}
        carry, kept = first, []
        for t in range(length):
            carry, now = step(carry, {key: each[t] for key, each in rows.items()})
            kept.append(now)
        return carry, {key: torch.stack([now[key] for now in kept]) for key in kept[0]}

    return Library(
        xp=torch,
        special={
            # PyTorch's own softplus is a straight line from 20 on, off by 2e-9.
            "softplus": lambda v: torch.logaddexp(v, torch.zeros_like(v)),
            "stop_gradient": lambda v: v.detach(),
            "logsumexp": lambda v: torch.logsumexp(v, -1),
            "softmax": lambda v: torch.softmax(v, -1),
            "log_softmax": lambda v: torch.log_softmax(v, -1),
        },
        product=lambda M, v: functional.linear(v, M),
        product_sum=lambda M, v, u: torch.addmm(u, v, M.T) if v.ndim == 2 else functional.linear(v, M) + u,
        constant=lambda number: torch.as_tensor(np.asarray(number)),
        scan=scan,
        vjp=torch.func.vjp,
        vmap=torch.func.vmap,
    )


def _gradient(problem: Problem, program: Program) -> Callable[[], Gradient]:
    """A function that runs `program`, with zeros where a density leaves entries out."""
    import torch

    wrt, rest = _tensors(problem)
    kept = {name: torch.from_numpy(mask) for name, mask in masks(problem.setup).items()}

    def gradient() -> Gradient:
        total, gradients = program(wrt, rest)
        masked = {n: torch.where(kept[n], g, 0.0) if n in kept else g for n, g in gradients.items()}
        return Gradient(total.item(), {name: g.detach().numpy() for name, g in masked.items()})

    return gradient


def _gradcheck(library: Library, problem: Problem) -> Callable[[], Gradient]:
    """A function that runs `torch.autograd.gradcheck` with its defaults, and gives the gradient that it has checked.

    Raises BpError where gradcheck rejects it.
    """
    import torch
    from torch.autograd.gradcheck import GradcheckError

    wrt, rest = _tensors(problem)
    checked = _gradient(problem, _reverse(library, problem.setup))()
    objective = loss(library, problem.setup)

    def gradient() -> Gradient:
        try:
            torch.autograd.gradcheck(
                lambda *arrays: objective({**rest, **dict(zip(wrt, arrays, strict=True))}), tuple(wrt.values())
            )
        except GradcheckError as error:
            what = f"torch.autograd.gradcheck rejects the gradient: {str(error).splitlines()[0]}"
            advice = "its fixed step may straddle a kink or be too large; measure without that peer"
            fail("gradcheck", what, help=advice)
        return checked

    return gradient


def tensors_of(problem: Problem) -> dict[str, Any]:
    """Copies of a problem's arrays, by name."""
    import torch

    return {name: torch.from_numpy(a.copy()) for group in problem.arrays for name, a in group.items()}


def _tensors(problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays that are differentiated, as leaves of autograd, and all others."""
    arrays = tensors_of(problem)
    wrt = {t.name: arrays.pop(t.name).requires_grad_() for t in problem.setup.wrt}
    return wrt, arrays


def _reverse(library: Library, setup: Setup) -> Program:
    """Reverse mode through the whole loss: BPTT, or backprop when feed-forward."""
    import torch

    objective = loss(library, setup)

    def program(wrt: Arrays, rest: Arrays) -> tuple[Any, Arrays]:
        total = objective({**wrt, **rest})
        if not total.requires_grad:  # it depends on nothing that is differentiated
            return total, {name: torch.zeros_like(array) for name, array in wrt.items()}
        found = torch.autograd.grad(total, tuple(wrt.values()), materialize_grads=True)
        return total, dict(zip(wrt, found, strict=True))

    return program


PEER = Torch()
