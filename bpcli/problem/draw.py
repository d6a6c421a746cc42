"""From a Setup to a Problem: every array read from a file, given in the spec, or drawn.

Each array is drawn by a generator of its own, in float64, and rounded once: the numbers of a float32 spec are those of
the float64 one, rounded, and another array more or less changes none of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bpcli.errors import Collector, Place, fail, printable
from bpcli.problem.array_files import ArrayFile, first_index, open_arrays, read_as
from bpcli.problem.definition import Array, FloatArray, Problem, Setup
from bpcli.spec.specification import ArrayDecl, Spec, Weights
from bpcli.tasks import ROLES, parse_task

_SEED_BITS = 32
"""Seeds of further draws are so many bits longer, beyond those that are given."""

CHUNK = 1 << 16
Stream = Literal["inputs", "params", "states", "patterns", "task", "method"]
_STREAMS: dict[str, Stream] = {"param": "params", "state": "states"}
Float = np.dtype[np.floating]
Initialiser = Callable[[ArrayDecl, np.random.Generator, Float], Array]


def draw(setup: Setup) -> Problem:
    """The arrays of `setup`; the same setup gives the same bits. `BpError` for content of files that cannot be used.

    A parameter comes from the weights file, else its `value`, else its `init`; an initial state from the data file,
    else as a parameter does, `per_sample` for one sample after the other: more samples change none of the first ones.
    """
    stored = _read_weights(setup)
    params = {decl.name: _sparse(setup, decl, stored) for decl in setup.spec.params.values()}
    starts = {**stored, **_read_states(setup)}
    state = {decl.name: _stored_or_drawn(setup, decl, starts) for decl in setup.spec.states.values()}
    return Problem(setup, params, draw_inputs(setup), state)


def check_task(spec: Spec, collector: Collector) -> None:
    """Report a task that does not exist."""
    if spec.data.task is not None:
        with collector.gather():
            parse_task(spec.data.task, spec.source.value("data", "task"))


def check_weights(spec: Spec, collector: Collector) -> None:
    """Report every parameter that the weights file lacks or holds in another shape; reads headers alone."""
    if spec.weights is None:
        for decl in spec.params.values():
            if decl.sparse_in_file and not spec.source.written("weights", "file"):
                what = f'"{decl.name}" has density = "file", and there is no file'
                collector.add("bad-density", what, decl.place, help="give the file: [weights] file = …")
        return
    with collector.gather():
        place = _weights_place(spec)
        file = open_arrays(Path(spec.weights.file), place)
        for decl, held in _names_in_file(spec, spec.weights, file):
            with collector.gather():
                _check_held(decl, held, file, place)
                shape = file.shape(held)
                if shape != decl.shape:
                    alias = "" if held == decl.name else f' (as "{printable(held)}")'
                    name = f'"{decl.name}"{alias}'
                    what = f"the weights file holds {name} with shape {shape}, the spec declares {decl.shape}"
                    remedy = "declare this shape, save the array with the declared one"
                    remedy += ", or name another array with [weights] map"
                    collector.add("shape-mismatch", what, place, help=remedy)


def _check_held(decl: ArrayDecl, held: str, file: ArrayFile, place: Place) -> None:
    """Refuse a parameter that the file holds under a longer name alone."""
    longer = [name for name in file.names() if name.endswith(f".{held}")]
    if held not in file.names() and longer:
        what = f'the weights file holds no "{printable(held)}", but "{printable(longer[0])}"'
        prefix = printable(longer[0].removesuffix(held))
        advice = f'write prefix = "{prefix}" in [weights], or map = {{ {decl.name} = "{printable(longer[0])}" }}'
        fail("missing-array", what, place, help=advice)


def _weights_place(spec: Spec) -> Place:
    return spec.source.value("weights", "file")


def _names_in_file(spec: Spec, weights: Weights, file: ArrayFile) -> list[tuple[ArrayDecl, str]]:
    """The arrays to read, with their names in the file: parameters, and trainable states that the file or map names."""
    names = {*file.names(), *weights.map}
    states = [d for d in spec.states.values() if d.trainable and d.name in names]
    return [(decl, weights.name_in_file(decl.name)) for decl in (*spec.params.values(), *states)]


def with_patterns(setup: Setup) -> Setup:
    """`setup` with the patterns of matrices that are sparse in the weights file. `BpError` where one is all zeros."""
    spec = setup.spec
    sparse = [decl for decl in spec.params.values() if decl.sparse_in_file]
    if not sparse or spec.weights is None:
        return setup
    place, params = _weights_place(spec), dict(spec.params)
    file = open_arrays(Path(spec.weights.file), place)
    for decl in sparse:
        array = read_as(file, spec.weights.name_in_file(decl.name), decl.shape, setup.dtype, place)
        kept = np.flatnonzero(array).astype(np.int64)
        if not kept.size:
            what = f'"{decl.name}" is all zeros in the weights file, so that nothing of it is left'
            fail("bad-density", what, decl.place, help="leave out density")
        params[decl.name] = dataclasses.replace(decl, density=kept.size / decl.size, kept=kept.tobytes())
    return dataclasses.replace(setup, spec=dataclasses.replace(spec, params=params))


def _read_weights(setup: Setup) -> dict[str, Array]:
    """The arrays of the weights file by the spec's names, `(*shape)` each; empty without `[weights]`."""
    spec = setup.spec
    if spec.weights is None:
        return {}
    place = _weights_place(spec)
    file = open_arrays(Path(spec.weights.file), place)
    names = _names_in_file(spec, spec.weights, file)
    return {decl.name: read_as(file, held, decl.shape, setup.dtype, place) for decl, held in names}


def _data_file(spec: Spec) -> tuple[ArrayFile, Place] | None:
    if spec.data.file is None:
        return None
    place = spec.source.value("data", "file")
    return open_arrays(Path(spec.data.file), place), place


def _read_states(setup: Setup) -> dict[str, Array]:
    """The initial states that the data file holds: `(*shape)` where shared, else `(batch, *shape)`."""
    found = _data_file(setup.spec)
    if found is None:
        return {}
    file, place = found
    states = [decl for decl in setup.spec.states.values() if decl.name in file.names()]
    return {d.name: read_as(file, d.name, setup.array_shape(d), setup.dtype, place) for d in states}


@dataclass(frozen=True)
class BatchDraws:
    """The generators of one batch of a task; that of number 0 is the one that a check or a gradient runs on."""

    seed: int
    number: int = 0

    def __call__(self, label: str) -> np.random.Generator:
        """A generator of this batch alone."""
        return generator(self.seed, "task", _numbered(label, self.number))

    def fixed(self, label: str) -> np.random.Generator:
        """The same for every batch."""
        return generator(self.seed, "task", label)


def _numbered(name: str, number: int) -> str:
    """A name of a generator; names are identifiers, so that no two of these are equal."""
    return f"{name} {number}" if number else name


def draw_inputs(setup: Setup, batch: int = 0) -> dict[str, Array]:
    """Every input, from the data file, the inline values or the task; another `batch` has other random numbers."""
    data = setup.spec.data
    shapes = {decl.name: setup.array_shape(decl) for decl in setup.spec.inputs.values()}
    if found := _data_file(setup.spec):
        file, place = found
        return {name: read_as(file, name, shape, setup.dtype, place) for name, shape in shapes.items()}
    if data.values is not None:
        values = {name: _rounded(np.array(v, dtype=np.float64), setup.dtype) for name, v in data.values.items()}
        # The same value for every step and sample.
        return {n: np.ascontiguousarray(np.broadcast_to(values[n], s)).reshape(s) for n, s in shapes.items()}
    filled = _by_task(setup, data.task or "random", shapes, batch)
    return {
        n: filled[n] if n in filled else _normal(generator(data.seed, "inputs", _numbered(n, batch)), s, setup.dtype)
        for n, s in shapes.items()
    }


def _by_task(setup: Setup, name: str, shapes: Mapping[str, tuple[int, ...]], batch: int) -> dict[str, Array]:
    """The inputs that a task fills."""
    data, place = setup.spec.data, setup.spec.source.value("data", "task")
    task = parse_task(name, place)
    roles = {"input": data.input or ROLES["input"], "target": data.target or ROLES["target"]}
    filled = {}
    for role, array in task.fill(setup, BatchDraws(data.seed, batch)).items():
        given = roles[role]
        if given not in shapes:
            advice = f'say which input it is: [data] {role} = "…"'
            fail("unknown-name", f'the task "{name}" fills "{given}", which is not an input', place, help=advice)
        if array.shape == (*shapes[given], 1):
            array = array[..., 0]
        if array.shape != shapes[given]:
            what = f'the task "{name}" gives "{given}" the shape {array.shape}, not {shapes[given]}'
            steps = len(shapes[given]) - len(setup.spec.inputs[given].shape)
            advice = f"declare {given} with the shape {[*array.shape[steps:]]}, or name another {role}"
            fail("shape-mismatch", what, place, help=advice)
        filled[given] = _rounded(array, setup.dtype)
    return filled


def _stored_or_drawn(setup: Setup, decl: ArrayDecl, stored: Mapping[str, Array]) -> Array:
    if decl.name in stored:
        return stored[decl.name]
    whole = dataclasses.replace(decl, shape=setup.array_shape(decl)) if decl.per_sample else decl
    array = initial(whole, setup.spec.data.seed, setup.dtype)
    finite = np.isfinite(array)
    if not finite.all():
        what = f'"{decl.name}" is not finite{first_index(~finite)} in {setup.dtype}'
        fail("not-finite", what, _value_place(setup, decl), help="give a smaller scale or value, or another dtype")
    return array


def _sparse(setup: Setup, decl: ArrayDecl, stored: Mapping[str, Array]) -> Array:
    """A parameter, zero outside its density pattern; given numbers there are refused, drawn ones dropped."""
    array = _stored_or_drawn(setup, decl, stored)
    left_out = outside(decl, setup.spec.data.seed)
    if left_out is None:
        return array
    astray = left_out & (array != 0.0)
    if (decl.name in stored or decl.init == "value") and astray.any():
        place = _weights_place(setup.spec) if decl.name in stored else _value_place(setup, decl)
        what = f'"{decl.name}" is not zero{first_index(astray)}, an entry that density = {decl.density} leaves out'
        advice = "the pattern depends on the seed: write zeros there, or leave out density"
        advice += ', or write density = "file", which keeps what is not zero' * (decl.name in stored)
        fail("outside-pattern", what, place, help=advice)
    array[left_out] = 0.0
    return array


def _value_place(setup: Setup, decl: ArrayDecl) -> Place:
    return setup.spec.source.value("state" if decl.kind == "state" else "params", decl.name, "value")


def generator(seed: int, stream: Stream, name: str) -> np.random.Generator:
    """The generator of one array; a function of its arguments alone."""
    digest = hashlib.sha256(f"{seed}\0{stream}\0{name}".encode()).digest()
    words = np.frombuffer(digest, dtype="<u4")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(word) for word in words])))


def method_generator(setup: Setup, name: str, number: int = 0) -> np.random.Generator:
    """The generator of a method by its name; another `number` gives independent numbers."""
    return generator(setup.spec.data.seed, "method", _numbered(name, number))


def redrawn(problem: Problem, number: int) -> Problem:
    """The same arrays with a seed of their own, for methods that draw random numbers; number 0 is the problem."""
    setup = problem.setup
    data = dataclasses.replace(setup.spec.data, seed=setup.spec.data.seed + (number << _SEED_BITS))
    own = dataclasses.replace(setup, spec=dataclasses.replace(setup.spec, data=data))
    return dataclasses.replace(problem, setup=own) if number else problem


def pattern(decl: ArrayDecl, seed: int) -> NDArray[np.int64] | None:
    """Sorted flat indices of the round(density * size) entries that exist; None where the array is dense."""
    if decl.kept is not None:
        return None if decl.density == 1.0 else np.frombuffer(decl.kept, np.int64)
    if decl.density is None or decl.density == 1.0:
        return None
    count = round(decl.density * decl.size)
    rng = generator(seed, "patterns", decl.name)
    kept = rng.choice(decl.size, size=count, replace=False, shuffle=False)
    return np.sort(kept.astype(np.int64, copy=False))


def outside(decl: ArrayDecl, seed: int) -> NDArray[np.bool_] | None:
    """A mask `(*shape)` of the entries that a density leaves out; None where the array is dense."""
    kept = pattern(decl, seed)
    if kept is None:
        return None
    mask = np.ones(decl.size, dtype=np.bool_)
    mask[kept] = False
    return mask.reshape(decl.shape)


def initial(decl: ArrayDecl, seed: int, dtype: Float) -> Array:
    """The array that `init`, `scale` and `value` describe, before any density: `(*shape)`, of `dtype`."""
    if decl.init == "value":
        return _rounded(np.array(decl.value, dtype=np.float64).reshape(decl.shape), dtype)
    rng = generator(seed, _STREAMS[decl.kind], decl.name)
    return INITIALISERS[decl.init or "normal"](decl, rng, dtype)


def _rounded(values: Array, dtype: Float) -> Array:
    """`values` in `dtype`, C-contiguous; an overflow gives infinity, which the caller refuses."""
    with np.errstate(over="ignore"):
        return np.array(values, dtype=dtype, order="C")


def _in_chunks(shape: tuple[int, ...], dtype: Float, draw_entries: Callable[[int], FloatArray]) -> Array:
    """`shape` filled in chunks, so that float32 needs no copy in float64."""
    flat = np.empty(math.prod(shape), dtype=dtype)
    with np.errstate(over="ignore"):
        for start in range(0, flat.size, CHUNK):
            stop = min(start + CHUNK, flat.size)
            flat[start:stop] = draw_entries(stop - start)
    return flat.reshape(shape)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Float, scale: float = 1.0) -> Array:
    return _in_chunks(shape, dtype, lambda count: scale * rng.standard_normal(count))


def _uniform(decl: ArrayDecl, rng: np.random.Generator, dtype: Float, bound: float) -> Array:
    return _in_chunks(decl.shape, dtype, lambda count: bound * (2.0 * rng.random(count) - 1.0))


def _ones(decl: ArrayDecl, rng: np.random.Generator, dtype: Float) -> Array:
    return _in_chunks(decl.shape, dtype, lambda count: np.full(count, decl.scale))


def _identity(decl: ArrayDecl, rng: np.random.Generator, dtype: Float) -> Array:
    matrix = np.zeros(decl.shape, dtype=dtype)
    with np.errstate(over="ignore"):
        np.fill_diagonal(matrix, decl.scale)
    return matrix


def _orthogonal(decl: ArrayDecl, rng: np.random.Generator, dtype: Float) -> Array:
    """Orthonormal columns, or rows of a wide matrix; Haar measure (Mezzadri 2007, arXiv:math-ph/0609050)."""
    rows, columns = decl.shape
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    # The signs of R's diagonal make the factorisation unique; without them the draw is not uniform.
    q *= np.where(np.diagonal(r) < 0.0, -decl.scale, decl.scale)
    return _rounded(q if rows >= columns else q.T, dtype)


def _glorot_bound(decl: ArrayDecl) -> float:
    """Glorot and Bengio 2010, equation (16): uniform in ± sqrt(6 / (fan in + fan out))."""
    return decl.scale * math.sqrt(6.0 / sum(decl.shape))


INITIALISERS: dict[str, Initialiser] = {
    "zeros": lambda decl, rng, dtype: np.zeros(decl.shape, dtype=dtype),
    "ones": _ones,
    "identity": _identity,
    "orthogonal": _orthogonal,
    "glorot": lambda decl, rng, dtype: _uniform(decl, rng, dtype, _glorot_bound(decl)),
    "normal": lambda decl, rng, dtype: _normal(rng, decl.shape, dtype, decl.scale),
    "uniform": lambda decl, rng, dtype: _uniform(decl, rng, dtype, decl.scale),
}
