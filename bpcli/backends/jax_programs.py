"""Gradients by JAX: one `jit` of reverse mode through `lax.scan`, or of real-time recurrent learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp

from bpcli.backends.array_graph import loss, masks
from bpcli.backends.array_rtrl import rtrl
from bpcli.backends.base import Arrays, Library
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup

Program = Callable[[Arrays, Arrays], tuple[Any, Arrays]]

LIBRARY = Library(
    xp=jnp,
    special={
        "relu": jax.nn.relu,
        "sigmoid": jax.nn.sigmoid,
        "softplus": jax.nn.softplus,
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


def gradient_function(problem: Problem, method: str) -> Callable[[], Gradient]:
    """A function that computes the gradient and waits for it; compiled at its first call."""
    jax.config.update("jax_enable_x64", True)
    setup = problem.setup
    arrays = {name: jnp.asarray(a) for group in problem.arrays for name, a in group.items()}
    wrt = {t.name: arrays.pop(t.name) for t in setup.wrt}
    program = jax.jit(_dense(setup, rtrl(LIBRARY, setup) if method == "rtrl" else _reverse(setup)))

    def gradient() -> Gradient:
        total, gradients = jax.block_until_ready(program(wrt, arrays))
        return Gradient(float(total), {name: np.asarray(g) for name, g in gradients.items()})

    return gradient


def _reverse(setup: Setup) -> Program:
    """Reverse mode through the whole loss: BPTT, or backprop when feed-forward."""
    objective = loss(LIBRARY, setup)
    program: Program = jax.value_and_grad(lambda wrt, rest: objective({**wrt, **rest}))
    return program


def _dense(setup: Setup, program: Program) -> Program:
    """`program` with zeros where a density leaves entries out."""
    kept = masks(setup)

    def masked(wrt: Arrays, rest: Arrays) -> tuple[Any, Arrays]:
        total, gradients = program(wrt, rest)
        return total, {n: jnp.where(kept[n], g, 0.0) if n in kept else g for n, g in gradients.items()}

    return masked
