"""JAX as a peer: the Graph as pure functions under one `jit`, in the precision of the spec."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import ClassVar

from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup


class Jax:
    """Reverse mode through `lax.scan`, and real-time recurrent learning with the influence as the scan's carry."""

    name: ClassVar[str] = "jax"
    summary: ClassVar[str] = "JAX: jit of value_and_grad over lax.scan, and RTRL by a vmapped vjp of the step"
    methods: ClassVar[tuple[str, ...]] = ("backprop", "bptt", "rtrl")

    def available(self) -> str | None:
        """Why JAX can't run here; None when it is installed."""
        return None if importlib.util.find_spec("jax") else "JAX is not installed"

    def prepare(self, threads: int) -> int | None:
        """One thread, or None: as many as XLA takes by itself; it reads its flags once, at its start."""
        if threads != 1:
            return None
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1".strip()
        return 1

    def refusal(self, setup: Setup, method: str) -> str | None:
        """Why the method is not run: it is no peer's method, or RTRL with respect to inputs."""
        if method not in self.methods:
            return f"{self.name} runs {', '.join(self.methods)}"
        if method == "rtrl" and any(t.kind == "input" for t in setup.wrt):
            return "rtrl of a peer differentiates parameters and states, not inputs"
        return None

    def gradient_function(self, problem: Problem, method: str) -> Callable[[], Gradient]:
        """A function that computes the gradient and waits for it; its first call compiles."""
        from bpcli.backends.jax_programs import gradient_function

        return gradient_function(problem, method)


PEER = Jax()
