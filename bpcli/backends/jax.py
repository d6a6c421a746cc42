"""JAX as a peer: the Graph as pure functions under one `jit`, in the precision of the spec."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from bpcli.backends import Arrays, Library, Program, jax_rules, peer_refusal
from bpcli.backends.array_graph import loss, masks, rtrl
from bpcli.methods import parse
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup


class Jax:
    """Reverse mode through `lax.scan`, from checkpoints too, and online rules whose influence the scan carries."""

    name: ClassVar[str] = "jax"
    summary: ClassVar[str] = (
        "JAX: jit of value_and_grad over lax.scan, jax.checkpoint for sqrt, and RTRL, SnAp-1 and UORO by vmapped "
        "derivatives of the step"
    )
    methods: ClassVar[tuple[str, ...]] = ("backprop", "bptt", "sqrt", "rtrl", "snap:k=1", "uoro")

    def available(self) -> str | None:
        """See `Peer`."""
        return None if importlib.util.find_spec("jax") else "JAX is not installed"

    def prepare(self, threads: int) -> int | None:
        """See `Peer`; XLA can be limited to one thread alone, by flags that it reads once, when it starts."""
        if threads != 1:
            return None
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1".strip()
        return 1

    def refusal(self, setup: Setup, method: str) -> str | None:
        """See `Peer`."""
        method = _plain(method)
        reason = peer_refusal(self, setup, method)
        return jax_rules.refusal(setup, method) if reason is None and method in _RULES else reason

    def gradient_function(self, problem: Problem, method: str) -> Callable[[], Gradient]:
        """See `Peer`."""
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", True)
        setup, library = problem.setup, _library()
        arrays = {name: jnp.asarray(a) for group in problem.arrays for name, a in group.items()}
        wrt = {t.name: arrays.pop(t.name) for t in setup.wrt}
        method = _plain(method)
        if method == "sqrt":
            library = replace(library, scan=jax_rules.in_segments)
        if method == "uoro":
            arrays[jax_rules.SIGNS] = jnp.asarray(jax_rules.signs(setup))
        program = {"rtrl": rtrl, **_RULES}.get(method, _reverse)(library, setup)
        compiled = jax.jit(_masked(library, setup, program))

        def gradient() -> Gradient:
            total, gradients = jax.block_until_ready(compiled(wrt, arrays))
            return Gradient(float(total), {name: np.asarray(g) for name, g in gradients.items()})

        return gradient


_RULES = {"snap:k=1": jax_rules.snap1, "uoro": jax_rules.uoro}


def _plain(method: str) -> str:
    """A method as `methods` spells it: `snap:1` is `snap:k=1`."""
    name = method.partition(":")[0].strip()
    return f"snap:k={parse(method).options.k}" if name == "snap" else method


def _library() -> Library:
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.scipy.special import erf, logsumexp

    return Library(
        xp=jnp,
        special={
            "relu": jax.nn.relu,
            "sigmoid": jax.nn.sigmoid,
            "softplus": jax.nn.softplus,
            "erf": erf,
            "stop_gradient": lax.stop_gradient,
            "logsumexp": lambda v: logsumexp(v, axis=-1),
            "softmax": jax.nn.softmax,
            "log_softmax": jax.nn.log_softmax,
        },
        product=lambda M, v: v @ M.T,
        product_sum=lambda M, v, u: v @ M.T + u,
        constant=lambda number: number,
        scan=lambda step, first, fed, length: lax.scan(step, first, fed, length=length),
        vjp=jax.vjp,
        vmap=jax.vmap,
    )


def _reverse(library: Library, setup: Setup) -> Program:
    """Reverse mode through the whole loss: BPTT, or backprop when feed-forward."""
    import jax

    objective = loss(library, setup)
    program: Program = jax.value_and_grad(lambda wrt, rest: objective({**wrt, **rest}))
    return program


def _masked(library: Library, setup: Setup, program: Program) -> Program:
    """`program` with zeros in its gradients where a density leaves entries out."""
    kept = masks(setup)

    def masked(wrt: Arrays, rest: Arrays) -> tuple[Any, Arrays]:
        total, gradients = program(wrt, rest)
        return total, {n: library.xp.where(kept[n], g, 0.0) if n in kept else g for n, g in gradients.items()}

    return masked


PEER = Jax()
