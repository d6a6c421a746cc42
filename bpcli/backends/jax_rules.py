"""Methods as JAX users write them: BPTT from checkpoints, SnAp-1 and UORO, each one scan under `jit`.

- Checkpoints: `jax.checkpoint` around a scan of ⌈√T⌉ steps, in a scan over these segments (Chen et al. 2016).
- SnAp-1 (Menick et al., ICLR 2021), M ← diag(J) M + M̄ on one number per parameter. M̄ is one pullback of ones, as each
  parameter enters one unit. diag(J) is one tangent of ones in which a product passes on the diagonal of its matrix.
- UORO (Tallec & Ollivier, ICLR 2018): a JVP and a VJP of the step for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from bpcli.backends import Arrays, Library, Program
from bpcli.backends.array_graph import evaluation, leaves, masks, pack, rows_of, step_weights, unpack
from bpcli.graph.nodes import Graph, Phase
from bpcli.problem.definition import Setup
from bpcli.problem.draw import method_generator
from bpcli.runtime.local_derivatives import influence_layout
from bpcli.runtime.sparse_plan import Sparsity, sets_of
from bpcli.tape.row_sets import RowSets

SIGNS = "signs of uoro"
"""The key of the random signs (T, batch, N) among the arrays; no name of a spec has a space."""
_ENTRYWISE = frozenset(
    ("copy", "negate", "add", "subtract", "multiply", "divide", "power", "leaky_relu", "max", "min", "tanh", "sigmoid",
     "relu", "softplus", "exp", "log", "sqrt", "sin", "cos", "abs", "erf", "stop_gradient", "step")
)  # fmt: skip


def in_segments(step: Callable[..., Any], first: Any, fed: Any, length: int) -> Any:
    """`lax.scan` over segments of ⌈√length⌉ steps, whose inside is computed anew in the reverse pass."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    size = math.isqrt(length - 1) + 1
    whole = length // size * size
    segment = jax.checkpoint(lambda carry, part: lax.scan(step, carry, part))
    cut = jax.tree.map(lambda v: v[:whole].reshape(-1, size, *v.shape[1:]), fed)
    carry, kept = lax.scan(segment, first, cut, length=whole // size)
    kept = jax.tree.map(lambda v: v.reshape(whole, *v.shape[2:]), kept)
    if whole < length:
        carry, rest = segment(carry, jax.tree.map(lambda v: v[whole:], fed))
        kept = jax.tree.map(lambda v, more: jnp.concatenate([v, more]), kept, rest)
    return carry, kept


def refusal(setup: Setup, method: str) -> str | None:
    """Why there is no such rule in JAX for a setup; None where there is."""
    graph = setup.graph
    if any(t.kind != "param" for t in setup.wrt):
        return f"{method} of a peer differentiates parameters alone"
    if not graph.recurrent or len(set(graph.new.values())) < len(graph.new):
        return f"{method} of a peer takes states that are computed each on its own"
    if not set(influence_layout(setup).columns) <= set(graph.leaf):
        return f"{method} of a peer takes parameters that the step meets as they are"
    if method == "uoro" or (_is_elementwise(graph) and _most_rows(setup) <= 1):
        return None
    return "SnAp-1 of a peer takes one state whose units are elementwise but for products with it"


def _most_rows(setup: Setup) -> int:
    """The most units that a parameter enters in one step."""
    found = sets_of(influence_layout(setup), Sparsity(1, None))
    return int(found.sets[:, np.unique(found.of)].sum(axis=0).max(initial=0))


def _is_elementwise(graph: Graph) -> bool:
    """Whether there is one state, and the way from it to its new value is elementwise but for one product at most."""
    if len(graph.new) != 1:
        return False
    ((name, before),) = graph.previous.items()
    shape, products = graph.nodes[before].shape, {before: 0}
    for node in graph.nodes:
        reached = [products[a] for a in node.args if a in products]
        if node.index == before or not reached:
            continue
        products[node.index] = max(reached) + (node.op == "matmul")
        inside = node.phase is Phase.RECURRENT and _leads_to(graph, node.index, graph.new[name])
        fits = node.shape == shape and (node.op in _ENTRYWISE or node.op == "matmul")
        if inside and not (fits and products[node.index] <= 1):
            return False
    return True


def _leads_to(graph: Graph, index: int, end: int) -> bool:
    """Whether a node is an argument of another, directly or not, or that node itself."""
    found = {end}
    for node in reversed(graph.nodes[index : end + 1]):
        if node.index in found:
            found |= set(node.args)
    return index in found


def signs(setup: Setup) -> Any:
    """The signs that `uoro` of bp draws, (T, batch, N)."""
    rng, shape = method_generator(setup, "uoro"), (setup.batch, influence_layout(setup).N)
    return np.stack([2.0 * rng.integers(0, 2, shape) - 1.0 for _ in range(setup.T)]).astype(setup.dtype)


def uoro(library: Library, setup: Setup) -> Program:
    """Unbiased online recurrent optimisation; the signs come among the arrays."""
    import jax

    xp, kept = library.xp, masks(setup)

    def program(wrt: Arrays, rest: Arrays) -> tuple[Any, Arrays]:
        advance, cost = _one_step(library, setup, {**wrt, **rest})

        def sample(state: Any, a: Any, tilde: Arrays, now: Arrays, nu: Any) -> tuple[Any, ...]:
            new, carried = jax.jvp(lambda s: advance(s, wrt, now), (state,), (a,))
            (entered,) = jax.vjp(lambda w: advance(state, w, now), wrt)[1](nu)
            entered = {n: xp.where(kept[n], v, 0.0) if n in kept else v for n, v in entered.items()}
            rho0 = _balance(xp, _norm(xp, tilde), _norm(xp, {"": carried}))
            rho1 = _balance(xp, _norm(xp, entered), _norm(xp, {"": nu}))
            a1 = rho0 * carried + rho1 * nu
            tilde1 = {n: tilde[n] / rho0 + entered[n] / rho1 for n in tilde}
            loss, (q, before, direct) = jax.value_and_grad(cost, argnums=(0, 1, 2))(new, state, wrt, now)
            after, ago = xp.dot(q, a1), xp.dot(before, a)
            return new, a1, tilde1, loss, {n: after * tilde1[n] + ago * tilde[n] + direct[n] for n in tilde}

        def advance_all(carry: Any, now: Arrays) -> tuple[Any, Arrays]:
            state, a, tilde, total, gradient = carry
            nu, now = now[SIGNS], {k: v for k, v in now.items() if k != SIGNS}
            axes = (0, 0, 0, {k: None if k == _WEIGHT else 0 for k in now}, 0)
            state, a, tilde, loss, g = jax.vmap(sample, axes)(state, a, tilde, now, nu)
            return (state, a, tilde, total + loss.sum(), {n: gradient[n] + g[n].sum(0) for n in g}), {}

        first, fed = _start(library, setup, {**wrt, **rest})
        tilde = {n: xp.zeros((setup.batch, *v.shape), v.dtype) for n, v in wrt.items()}
        start = (first, xp.zeros_like(first), tilde, xp.zeros((), first.dtype), jax.tree.map(xp.zeros_like, wrt))
        (*_, total, gradient), _ = library.scan(advance_all, start, {**fed, SIGNS: rest[SIGNS]}, setup.T)
        return total, gradient

    return program


def snap1(library: Library, setup: Setup) -> Program:
    """The influence of every parameter on the unit that it enters."""
    import jax

    xp, own, units = library.xp, _diagonal_library(library), _units(setup)

    def program(wrt: Arrays, rest: Arrays) -> tuple[Any, Arrays]:
        advance, cost = _one_step(library, setup, {**wrt, **rest})
        diagonal, _ = _one_step(own, setup, {**wrt, **rest})

        def sample(state: Any, M: Arrays, now: Arrays) -> tuple[Any, ...]:
            ones = xp.ones_like(state)
            _, J = jax.jvp(lambda s: diagonal(s, wrt, now), (state,), (ones,))
            new, pullback = jax.vjp(lambda w: advance(state, w, now), wrt)
            (entered,) = pullback(ones)
            M1 = {n: units[n](J) * M[n] + entered[n] for n in M}
            loss, (q, before, direct) = jax.value_and_grad(cost, argnums=(0, 1, 2))(new, state, wrt, now)
            g = {n: units[n](q) * M1[n] + units[n](before) * M[n] + direct[n] for n in M}
            return new, M1, loss, g | {n: direct[n] for n in wrt if n not in M}

        def advance_all(carry: Any, now: Arrays) -> tuple[Any, Arrays]:
            state, M, total, gradient = carry
            axes = (0, 0, {k: None if k == _WEIGHT else 0 for k in now})
            state, M, loss, g = jax.vmap(sample, axes)(state, M, now)
            return (state, M, total + loss.sum(), {n: gradient[n] + g[n].sum(0) for n in g}), {}

        first, fed = _start(library, setup, {**wrt, **rest})
        M = {n: xp.zeros((setup.batch, *wrt[n].shape), wrt[n].dtype) for n in units}
        start = (first, M, xp.zeros((), first.dtype), jax.tree.map(xp.zeros_like, wrt))
        (*_, total, gradient), _ = library.scan(advance_all, start, fed, setup.T)
        return total, gradient

    return program


_WEIGHT = ""
"""The key of the weights of steps, as in `array_graph`."""


def _start(library: Library, setup: Setup, arrays: Arrays) -> tuple[Any, Arrays]:
    """The first state (batch, N), and what the scan is fed with."""
    xp, graph = library.xp, setup.graph
    first = {name: rows_of(xp, graph, name, arrays[name], setup.batch) for name in graph.previous}
    fed = {name: arrays[name] for name in setup.spec.inputs if name in graph.leaf}
    return pack(xp, first, 1), {**fed, _WEIGHT: library.constant(step_weights(setup))}


def _one_step(library: Library, setup: Setup, arrays: Arrays) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Of one sample the new state from state, parameters and inputs, and the weighted loss from the new state too."""
    graph, xp = setup.graph, library.xp
    states = set(graph.new.values())
    computed = [n.index for n in graph.nodes if n.args]
    to_state = evaluation(library, graph, computed, {graph.loss, *states})
    to_loss = evaluation(library, graph, [i for i in computed if i not in states], {graph.loss})

    def given(state: Any, theta: Arrays, now: Arrays) -> dict[int, Any]:
        values = leaves(library, setup, {**arrays, **theta, **now})
        return values | {graph.previous[n]: v for n, v in unpack(graph, state).items()}

    def advance(state: Any, theta: Arrays, now: Arrays) -> Any:
        values = to_state.run(given(state, theta, now))
        return pack(xp, {n: rows_of(xp, graph, n, values[i]) for n, i in graph.new.items()}, 0)

    def cost(new: Any, state: Any, theta: Arrays, now: Arrays) -> Any:
        values = given(state, theta, now) | {graph.new[n]: v for n, v in unpack(graph, new).items()}
        return to_loss.run(values)[graph.loss] * now[_WEIGHT]

    return advance, cost


def _diagonal_library(library: Library) -> Library:
    """The library with a product whose tangent is that of the diagonal of its matrix alone."""
    import jax

    def tangent(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
        M, v = primals
        found, moved = library.product(M, v), tangents[1]
        # Only of a square matrix is the argument the state; of others it does not move.
        square = M.shape[0] == M.shape[1]
        return found, library.xp.diagonal(M) * moved if square else library.xp.zeros_like(found)

    product: Any = jax.custom_jvp(library.product)
    product.defjvp(tangent)
    return replace(library, product=product, product_sum=lambda M, v, u: product(M, v) + u)


def _units(setup: Setup) -> dict[str, Callable[[Any], Any]]:
    """For each parameter that reaches the state, how numbers of the units (N,) are spread over its entries."""
    layout = influence_layout(setup)
    found: RowSets = sets_of(layout, Sparsity(1, None))
    rows = found.sets.argmax(axis=0)[found.of]
    tensors = {t.name: t for t in setup.wrt}
    units = {}
    for name, columns in layout.columns.items():
        tensor = tensors[name]
        of = np.full(math.prod(tensor.shape), -1, dtype=np.int32)
        of[slice(None) if tensor.pattern is None else tensor.pattern] = rows[columns]
        units[name] = _spread(of.reshape(tensor.shape), layout.N)
    return units


def _spread(of: Any, N: int) -> Callable[[Any], Any]:
    """Numbers of units as an array of the shape of `of`, whose entries name units, or are -1 where there is none."""
    unit, there = np.arange(N), of >= 0
    for axes in ((N,), (N, 1), (1, N)):
        if of.ndim == len(axes) and all(n in (1, m) for n, m in zip(axes, of.shape, strict=True)):
            wide = np.broadcast_to(unit.reshape(axes), of.shape)
            if (of == wide)[there].all():
                return lambda v, axes=axes: v.reshape(axes)  # type: ignore[misc]
    return lambda v: v[of]


def _norm(xp: Any, arrays: Arrays) -> Any:
    return xp.sqrt(sum((v * v).sum() for v in arrays.values()))


def _balance(xp: Any, one: Any, other: Any) -> Any:
    """(one / other)^½ of two norms; 1 where either is zero or the root is not finite."""
    root = xp.sqrt(one / xp.where(other > 0, other, 1))
    return xp.where((other > 0) & (root > 0) & xp.isfinite(root), root, 1)
