"""PyTorch as a peer: the Graph under eager autograd, in the precision of the spec, and gradcheck for differences."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup

GRADCHECK = ("central", "check")


class Torch:
    """Reverse mode by autograd, RTRL by `torch.func`, and `torch.autograd.gradcheck` for what checks by differences."""

    name: ClassVar[str] = "torch"
    summary: ClassVar[str] = "PyTorch: eager autograd, RTRL by torch.func, and gradcheck for differences"
    methods: ClassVar[tuple[str, ...]] = ("backprop", "bptt", "rtrl", *GRADCHECK)

    def available(self) -> str | None:
        """Why PyTorch can't run here; None when it is installed."""
        return None if importlib.util.find_spec("torch") else "PyTorch is not installed"

    def prepare(self, threads: int) -> int | None:
        """Hold the operations of PyTorch to that many threads."""
        import torch

        torch.set_num_threads(threads)
        return threads

    def refusal(self, setup: Setup, method: str) -> str | None:
        """Why the method is not run: not a peer's, RTRL with respect to inputs, or gradcheck in single precision."""
        if method not in self.methods:
            return f"{self.name} runs {', '.join(self.methods)}"
        if method == "rtrl" and any(t.kind == "input" for t in setup.wrt):
            return "rtrl of a peer differentiates parameters and states, not inputs"
        if method in GRADCHECK and setup.dtype != np.float64:
            return "gradcheck wants double precision"
        return None

    def gradient_function(self, problem: Problem, method: str) -> Callable[[], Gradient]:
        """A function that computes the gradient, and checks it by differences where the method is to do that."""
        from bpcli.backends.torch_programs import gradcheck_function, gradient_function

        return gradcheck_function(problem) if method in GRADCHECK else gradient_function(problem, method)


PEER = Torch()
