"""The value of a term, and the cost of evaluating it once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np

from bpcli.checking.rules import apply
from bpcli.lecture.terms import Term, diagonal
from bpcli.problem.definition import FloatArray


def flops(term: Term) -> float:
    """Floating-point operations of one evaluation at one step of one sample."""
    own = float(math.prod(term.shape))
    match term.kind:
        case "sum" | "product":
            entries = term.shape[0] if diagonal(term) is not None else own
            signs = sum(arg.kind == "number" and arg.numbers[0] == -1.0 for arg in term.args)
            work = entries * (len(term.args) - 1 - signs)
        case "quotient":
            work = own
        case "apply":
            work = 2.0 * math.prod(term.args[0].shape)
        case "matmat":
            work = 2.0 * math.prod(term.args[0].shape) * term.args[1].shape[1]
        case "chain":
            return _chain_flops(term)
        case "outer":
            work = own
        case "dot" | "total":
            work = 2.0 * math.prod(term.args[0].shape)
        case "power":
            work = own if term.numbers[0] == 2.0 else 10.0 * own
        case "call":
            work = (1.0 if term.function in CHEAP else 10.0) * own
        case "third":
            work = own
        case _:
            work = 0.0
    return work + sum(flops(arg) for arg in term.args)


CHEAP = frozenset({"positive", "relu", "leaky_relu", "abs", "sign", "max", "min", "concat", "step", "stop_gradient"})


def _chain_flops(term: Term) -> float:
    """Products from the left; one with a diagonal rescales rows or columns."""
    done = term.args[0]
    work, rows, diagonal = 0.0, done.shape[0], done.kind == "diag"
    for part in term.args[1:]:
        entries = math.prod(part.shape)
        work += rows * part.shape[0] if part.kind == "diag" else entries if diagonal else 2.0 * rows * entries
        diagonal = diagonal and part.kind == "diag"
    return work + sum(flops(arg) for arg in term.args)


Look = Callable[[Term], FloatArray]
"""The value (B or 1, *shape) of a name, and of a term that looks at several steps."""


def evaluate(term: Term, look: Look) -> FloatArray:
    """The value (B or 1, *shape)."""
    if term.kind in ("name", "timesum", "first", "paths", "next"):
        return look(term)
    args = [evaluate(arg, look) for arg in term.args]
    found = np.asarray(VALUES[term.kind](args, term))
    if found[0].size == math.prod(term.shape):
        return found.reshape(len(found), *term.shape)
    if found.shape[1:] != term.shape:
        found = np.broadcast_to(found.reshape(len(found), *(found.shape[1:] or (1,) * len(term.shape))),
                                (len(found), *term.shape))  # fmt: skip
    return found


def _raised(args: Sequence[FloatArray]) -> list[FloatArray]:
    rank = max(arg.ndim for arg in args)
    return [arg.reshape(arg.shape + (1,) * (rank - arg.ndim)) for arg in args]


def _call(args: Sequence[FloatArray], term: Term) -> FloatArray:
    if term.function in FUNCTIONS:
        return FUNCTIONS[term.function](args[0])
    return apply(term.function, args, term.numbers, term.shape)


FUNCTIONS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "positive": lambda v: np.where(v > 0, 1.0, 0.0),
    "sign": np.sign,
}
"""Functions of derivatives that no network has: [v > 0] and the sign."""


def _sliced(args: Sequence[FloatArray], term: Term) -> FloatArray:
    return args[0][:, int(term.numbers[0]) : int(term.numbers[1])]


def _padded(args: Sequence[FloatArray], term: Term) -> FloatArray:
    start, stop = (int(n) for n in term.numbers)
    out = np.zeros((len(args[0]), *term.shape))
    out[:, start:stop] = args[0].reshape(len(args[0]), stop - start)
    return out


def _third(args: Sequence[FloatArray], term: Term) -> FloatArray:
    """D_ij v_k, flattened over (j, k), or over (k, j) where the term has a number."""
    samples = max(map(len, args))
    D, v = (np.broadcast_to(arg, (samples, *arg.shape[1:])) for arg in args)
    return np.asarray(np.einsum("bin,bm->bimn" if term.numbers else "bim,bn->bimn", D, v).reshape(samples, *term.shape))


def _diagonal_matrix(args: Sequence[FloatArray], term: Term) -> FloatArray:
    out = np.zeros((len(args[0]), *term.shape))
    own = np.arange(term.shape[0])
    out[:, own, own] = args[0]
    return out


def _selection(args: Sequence[FloatArray], term: Term) -> FloatArray:
    start, stop = (int(n) for n in term.numbers)
    return np.eye(term.shape[1])[None, start:stop]


def _matmul(left: FloatArray, right: FloatArray) -> FloatArray:
    return np.asarray(left @ right)


VALUES: Mapping[str, Callable[[Sequence[FloatArray], Term], FloatArray]] = {
    "number": lambda a, term: np.full(1, term.numbers[0]),
    "full": lambda a, term: np.broadcast_to(a[0].reshape(-1, *(1,) * len(term.shape)), (len(a[0]), *term.shape)),
    "sum": lambda a, term: reduce(np.add, _raised(a)),
    "product": lambda a, term: reduce(np.multiply, _raised(a)),
    "quotient": lambda a, term: np.divide(*_raised(a)),
    "power": lambda a, term: a[0] ** term.numbers[0],
    "call": _call,
    "total": lambda a, term: a[0].reshape(len(a[0]), -1).sum(axis=1),
    "dot": lambda a, term: (a[0] * a[1]).reshape(max(map(len, a)), -1).sum(axis=1),
    "transpose": lambda a, term: a[0].swapaxes(1, 2),
    "apply": lambda a, term: (a[0] @ a[1][:, :, None])[:, :, 0],
    "matmat": lambda a, term: a[0] @ a[1],
    "chain": lambda a, term: reduce(_matmul, a),
    "outer": lambda a, term: a[0][:, :, None] * a[1][:, None, :],
    "eye": lambda a, term: np.eye(term.shape[0])[None],
    "diag": _diagonal_matrix,
    "column": lambda a, term: a[0][:, :, None],
    "row": lambda a, term: a[0][:, None, :],
    "shaped": lambda a, term: a[0].reshape(len(a[0]), *term.shape),
    "slice": _sliced,
    "pad": _padded,
    "select": _selection,
    "third": _third,
}
"""The value of every kind of term but those that `look` knows, from the values of its arguments."""
