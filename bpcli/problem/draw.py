"""`[data]`: the arrays that fill the inputs, and the initial states that a data file holds.

`[weights]`: parameter values from a file.

From a Setup to a Problem: every array, from a file, from the spec's own numbers, or drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bpcli.errors import BpError, Collector, Place, fail, printable
from bpcli.problem.array_files import ArrayFile, open_arrays, read_as, where
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.problem.initial import GROUP, generator, initial, normal, outside, rounded
from bpcli.problem.sizes import data_place
from bpcli.spec.specification import ArrayDecl, Nested, Spec, Weights
from bpcli.tasks import find_task

ROLES = {"input": "x", "target": "y_star"}


def check_task(spec: Spec, collector: Collector) -> None:
    """Note a task that does not exist."""
    if spec.data.task is None:
        return
    try:
        find_task(spec.data.task, spec.source.value("data", "task"))
    except BpError as error:
        collector.diagnostics.extend(error.diagnostics)


def input_shape(setup: Setup, decl: ArrayDecl) -> tuple[int, ...]:
    """`(T, batch, *shape)`, or `(batch, *shape)` when feed-forward."""
    lead = (setup.T, setup.batch) if setup.graph.recurrent else (setup.batch,)
    return (*lead, *decl.shape)


def draw_inputs(setup: Setup) -> dict[str, Array]:
    """Every input, from the file, the inline values or the task; `BpError` for bad content."""
    spec, data = setup.spec, setup.spec.data
    shapes = {decl.name: input_shape(setup, decl) for decl in spec.inputs.values()}
    if data.file is not None:
        place = data_place(spec)
        file = open_arrays(Path(data.file), place)
        return {name: read_as(file, name, shape, setup.dtype, place) for name, shape in shapes.items()}
    if data.values is not None:
        return {name: _spread(setup, data.values[name], shape) for name, shape in shapes.items()}
    filled = _by_task(setup, data.task or "random", shapes)
    return {
        name: filled[name] if name in filled else normal(generator(data.seed, "inputs", name), shape, setup.dtype)
        for name, shape in shapes.items()
    }


def draw_states(setup: Setup) -> dict[str, Array]:
    """The initial states that the data file holds: `(*shape)` where shared, else `(batch, *shape)`."""
    spec = setup.spec
    if spec.data.file is None:
        return {}
    place = data_place(spec)
    file = open_arrays(Path(spec.data.file), place)
    held = set(file.names())
    states = {}
    for decl in spec.states.values():
        if decl.name in held:
            shape = decl.shape if decl.name in setup.shared else (setup.batch, *decl.shape)
            states[decl.name] = read_as(file, decl.name, shape, setup.dtype, place)
    return states


def _spread(setup: Setup, value: Nested, shape: tuple[int, ...]) -> Array:
    """One value for every step and sample."""
    array = rounded(np.array(value, dtype=np.float64), setup.dtype)
    return np.ascontiguousarray(np.broadcast_to(array, shape)).reshape(shape)


def _by_task(setup: Setup, name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """The inputs that the task's roles stand for."""
    data, place = setup.spec.data, setup.spec.source.value("data", "task")
    task = find_task(name, place)
    roles = {"input": data.input or ROLES["input"], "target": data.target or ROLES["target"]}
    filled = {}
    for role, array in task.fill(setup, lambda label: generator(data.seed, "task", label)).items():
        given = roles[role]
        if given not in shapes:
            advice = f'say which input it is: [data] {role} = "…"'
            fail("unknown-name", f'the task "{name}" fills "{given}", which is no input', place, help=advice)
        if array.shape != shapes[given]:
            what = f'the task "{name}" gives "{given}" the shape {array.shape}, not {shapes[given]}'
            fail(
                "shape-mismatch",
                what,
                place,
                help=f"give the input the shape that the task fills, or name another {role}",
            )
        filled[given] = rounded(array, setup.dtype)
    return filled


_FIT = "declare this shape, save the array with the declared one, or name another array with [weights] map"


def check_weights(spec: Spec, collector: Collector) -> None:
    """Note every parameter that the file lacks or holds in another shape; reads headers alone."""
    if spec.weights is None:
        return
    place = _place(spec)
    try:
        file = open_arrays(Path(spec.weights.file), place)
    except BpError as error:
        collector.diagnostics.extend(error.diagnostics)
        return
    for decl, held in _wanted(spec, spec.weights, file):
        try:
            shape = file.shape(held)
        except BpError as error:
            collector.diagnostics.extend(error.diagnostics)
            continue
        if shape != decl.shape:
            alias = "" if held == decl.name else f' (as "{printable(held)}")'
            what = f'the weights file holds "{decl.name}"{alias} with shape {shape}, the spec declares {decl.shape}'
            collector.add("shape-mismatch", what, place, help=_FIT)


def read_weights(spec: Spec, dtype: np.dtype[np.floating]) -> dict[str, Array]:
    """The file's values by our names, `(*shape)` each; empty without `[weights]`. `BpError` for bad content."""
    if spec.weights is None:
        return {}
    place = _place(spec)
    file = open_arrays(Path(spec.weights.file), place)
    return {
        decl.name: read_as(file, held, decl.shape, dtype, place) for decl, held in _wanted(spec, spec.weights, file)
    }


def _wanted(spec: Spec, weights: Weights, file: ArrayFile) -> list[tuple[ArrayDecl, str]]:
    """What is read, with its name in the file: every parameter, and trainable states that the file or `map` names."""
    names = set(file.names())
    states = [d for d in spec.states.values() if d.trainable and (d.name in weights.map or d.name in names)]
    return [(decl, weights.map.get(decl.name, decl.name)) for decl in (*spec.params.values(), *states)]


def _place(spec: Spec) -> Place:
    return spec.source.value("weights", "file")


def draw(setup: Setup) -> Problem:
    """The arrays of `setup`; the same setup gives the same bits. `BpError` for content of files that cannot be used.

    A parameter comes from the weights file, else its `value`, else its `init`; an initial state from the data file,
    else as a parameter does.
    """
    stored = read_weights(setup.spec, setup.dtype)
    params = {decl.name: _sparse(setup, decl, stored) for decl in setup.spec.params.values()}
    starts = {**stored, **draw_states(setup)}
    state = {decl.name: _stored_or_drawn(setup, decl, starts) for decl in setup.spec.states.values()}
    return Problem(setup, params, draw_inputs(setup), state)


def _stored_or_drawn(setup: Setup, decl: ArrayDecl, stored: Mapping[str, Array]) -> Array:
    if decl.name in stored:
        return stored[decl.name]
    array = initial(decl, setup.spec.data.seed, setup.dtype)
    finite = np.isfinite(array)
    if not finite.all():
        what = f'"{decl.name}" is not finite{where(~finite)} in {setup.dtype}'
        fail("not-finite", what, _value_place(setup, decl), help="give a smaller scale or value, or another dtype")
    return array


def _sparse(setup: Setup, decl: ArrayDecl, stored: Mapping[str, Array]) -> Array:
    """A parameter, zero outside its density pattern; given numbers there are refused, drawn ones dropped."""
    array = _stored_or_drawn(setup, decl, stored)
    left_out = outside(decl, setup.spec.data.seed)
    if left_out is None:
        return array
    given = decl.name in stored or decl.init == "value"
    astray = left_out & (array != 0.0)
    if given and astray.any():
        what = f'"{decl.name}" is not zero{where(astray)}, an entry that density = {decl.density} leaves out'
        fail(
            "outside-pattern",
            what,
            _value_place(setup, decl, decl.name in stored),
            help="write zeros there, or leave out density; the pattern depends on the seed",
        )
    array[left_out] = 0.0
    return array


def _value_place(setup: Setup, decl: ArrayDecl, stored: bool = False) -> Place:
    source = setup.spec.source
    if stored:
        return source.value("weights", "file")
    return source.value("state" if decl.kind == "state" else GROUP[decl.kind], decl.name, "value")
