"""`[data]`: the arrays that fill the inputs, and the initial states that a data file holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bpcli.errors import BpError, Collector, fail
from bpcli.problem.files import open_arrays, read_as
from bpcli.problem.initial import generator, normal, rounded
from bpcli.problem.model import Array, Setup
from bpcli.problem.sizes import data_place
from bpcli.spec.specification import ArrayDecl, Nested, Spec
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
