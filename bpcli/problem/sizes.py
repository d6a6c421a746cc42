"""How many steps and samples there are, and which states start from one value for all samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bpcli.errors import BpError, Collector, Place
from bpcli.problem.array_files import ArrayFile, open_arrays
from bpcli.spec.specification import ArrayDecl, Spec

DEFAULT_T = 20
DEFAULT_BATCH = 4


@dataclass(frozen=True)
class Sizes:
    """`T` is 1 when feed-forward; `shared` names the states whose initial value is `(*shape)`."""

    T: int
    batch: int
    shared: frozenset[str]


def find_sizes(spec: Spec, recurrent: bool, collector: Collector) -> Sizes:
    """Sizes from the data file, else as given, else the defaults; what contradicts or is missing is noted."""
    found: dict[str, tuple[int, str]] = {}
    shared = frozenset(spec.states)
    if spec.data.file is not None:
        try:
            file = open_arrays(Path(spec.data.file), data_place(spec))
        except BpError as error:
            collector.diagnostics.extend(error.diagnostics)
        else:
            leads = _leads(spec, file, recurrent, collector)
            found = _agreed(spec, leads, collector)
            shared -= {decl.name for decl, axes in leads if decl.kind == "state" and axes}
    T = _settled(spec, "T", spec.data.T, found, collector) or DEFAULT_T
    batch = _settled(spec, "batch", spec.data.batch, found, collector) or DEFAULT_BATCH
    return Sizes(T if recurrent else 1, batch, shared)


def data_place(spec: Spec) -> Place:
    """The line that names the data file."""
    return spec.source.value("data", "file")


def _leads(
    spec: Spec, file: ArrayFile, recurrent: bool, collector: Collector
) -> list[tuple[ArrayDecl, tuple[tuple[str, int], ...]]]:
    """For each array that is read, the axes before its own shape with their sizes; arrays that do not fit are noted."""
    held = set(file.names())
    states = [d for d in spec.states.values() if d.name in held]
    leads = []
    for decl in (*spec.inputs.values(), *states):
        try:
            shape = file.shape(decl.name)
        except BpError as error:
            collector.diagnostics.extend(error.diagnostics)
            continue
        choices: Sequence[tuple[str, ...]] = [("T", "batch") if recurrent else ("batch",)]
        if decl.kind == "state":
            choices = [(), ("batch",)]
        axes = next((axes for axes in choices if shape[len(axes) :] == decl.shape and len(axes) <= len(shape)), None)
        if axes is None or len(axes) + len(decl.shape) != len(shape) or 0 in shape:
            wanted = " or ".join(_lettered(axes, decl) for axes in choices)
            what = f'the data file holds "{decl.name}" with shape {shape}, expected {wanted}'
            collector.add("shape-mismatch", what, data_place(spec), help=_layout(decl, recurrent))
            continue
        leads.append((decl, tuple(zip(axes, shape, strict=False))))
    return leads


def _layout(decl: ArrayDecl, recurrent: bool) -> str:
    """The axes of an array in a data file, in words."""
    if decl.kind == "state":
        return "a state has its own shape, with an axis of samples before it where samples differ, and no axis is empty"
    before = "steps and samples" if recurrent else "samples"
    return f"axes of {before} come before the shape that the spec declares, and none of them is empty"


def _lettered(axes: tuple[str, ...], decl: ArrayDecl) -> str:
    parts = [*axes, *(str(d) for d in decl.shape)]
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


def _agreed(
    spec: Spec, leads: list[tuple[ArrayDecl, tuple[tuple[str, int], ...]]], collector: Collector
) -> dict[str, tuple[int, str]]:
    """The size of each axis with the first array that gives it; other arrays must give the same."""
    found: dict[str, tuple[int, str]] = {}
    for decl, axes in leads:
        for axis, size in axes:
            first, other = found.setdefault(axis, (size, decl.name))
            if first != size:
                what = f'in the data file "{other}" has {axis} = {first} and "{decl.name}" has {axis} = {size}'
                remedy = f"write all arrays with the same {axis}"
                collector.add("shape-mismatch", what, data_place(spec), help=remedy)
    return found


def _settled(
    spec: Spec, axis: str, given: int | None, found: dict[str, tuple[int, str]], collector: Collector
) -> int | None:
    """The arrays' size, with which a given one must agree; else the given one."""
    if axis not in found:
        return given
    size, name = found[axis]
    if given is not None and given != size:
        place = _written(spec, axis, given)
        what = f'{axis} = {given} contradicts the data file, where "{name}" has {axis} = {size}'
        collector.add("contradiction", what, place, help=f"leave {axis} out: it comes from the arrays")
    return size


def _written(spec: Spec, axis: str, given: int) -> Place:
    """Where the number stands; the data file's line when it comes from an option, whatever the spec says."""
    place = spec.source.written("data", axis)
    if place is not None and place.quote[place.column - 1 :][: place.width] == str(given):
        return place
    return data_place(spec)
