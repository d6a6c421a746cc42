"""From a spec's path to a Setup: sizes, limits, and the arrays to differentiate with respect to.

All that is wrong with a spec and its files is reported at once. Of array files only headers are read. A `SpecFile` is a
path with its options, as plain data that any process can open.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bpcli.errors import Collector, Place, fail, nearest, printable
from bpcli.graph.build import build
from bpcli.problem.array_files import ArrayFile, open_arrays
from bpcli.problem.definition import Setup, Tensor
from bpcli.problem.draw import check_task, check_weights, pattern, with_patterns
from bpcli.problem.limits import Limits, check_arrays
from bpcli.spec.language import canonical
from bpcli.spec.load import load
from bpcli.spec.paths import resolve
from bpcli.spec.specification import WRT_KINDS, ArrayDecl, Spec

DEFAULT_T = 20
DEFAULT_BATCH = 4


def open_setup(path: str | Path, overrides: Mapping[str, object], wrt: Sequence[str], limits: Limits) -> Setup:
    """The Setup of the spec at `path`.

    `overrides` are as for `load`; `wrt` holds kinds or names, `[check] wrt` when empty. Raises `BpError` with
    everything that is wrong with the spec, its equations, its files or its sizes, and for arrays beyond the memory
    limit, before any of their size is allocated.
    """
    collector = Collector()
    spec = load(path, overrides, collector)
    if spec is None:
        collector.finish()
    assert spec is not None, "a loader that gives up says why"
    graph = build(spec, collector)
    spec = _with_resolved_files(spec, path, limits, collector)
    check_task(spec, collector)
    check_weights(spec, collector)
    # An equation whose name is refused may be that of a state.
    sizes = _find_sizes(spec, bool(spec.states or spec.refused & spec.equations.keys()), collector)
    chosen = _choose(spec, wrt, collector)
    collector.finish()
    assert graph is not None, "a builder that gives up says why"
    dtype: np.dtype[np.floating] = np.dtype(spec.dtype)
    setup = Setup(spec, graph, sizes.T, sizes.batch, dtype, (), sizes.shared)
    check_arrays(setup, limits)
    # Density patterns are drawn, or read, once their sizes are known to be allowed.
    setup = with_patterns(setup)
    declared = _declarations(setup.spec)
    tensors = (Tensor(d.name, d.kind, setup.array_shape(d), pattern(declared[d.name], spec.data.seed)) for d in chosen)
    return dataclasses.replace(setup, wrt=tuple(tensors))


def _with_resolved_files(spec: Spec, path: str | Path, limits: Limits, collector: Collector) -> Spec:
    """`spec` with the absolute paths of the files that it names, without those that are refused."""
    weights, data = spec.weights, spec.data

    def resolved(file: str, table: str) -> str | None:
        found = resolve(path, file, spec.source.value(table, "file"), limits.allow_outside, collector)
        return str(found) if found else None

    if weights is not None:
        file = resolved(weights.file, "weights")
        weights = dataclasses.replace(weights, file=file) if file else None
    if data.file is not None:
        data = dataclasses.replace(data, file=resolved(data.file, "data"))
    return dataclasses.replace(spec, weights=weights, data=data)


def _choose(spec: Spec, wrt: Sequence[str], collector: Collector) -> tuple[ArrayDecl, ...]:
    """The arrays that `wrt`, or `[check] wrt` when empty, stands for.

    An initial state with `trainable = true` is one of `params` too.
    """
    words: list[tuple[str, Place | None]] = [(canonical(word), None) for word in wrt]
    if not words:
        words = [(word, spec.source.value("check", "wrt", str(i))) for i, word in enumerate(spec.check.wrt)]
    chosen: set[str] = set()
    for word, place in words:
        chosen |= _members(spec, word, place, collector)
    decls = tuple(d for d in _declarations(spec).values() if d.name in chosen)
    entries = sum(d.size if d.density is None else round(d.density * d.size) for d in decls)
    if entries == 0 and not collector.diagnostics:
        place = spec.source.key("check", "wrt") if not wrt else None
        asked = ", ".join(printable(word) for word, _ in words)
        what = f"nothing to differentiate: {asked} has no entries in this spec"
        kinds = ", ".join(kind for kind in WRT_KINDS if _members(spec, kind, None, collector))
        remedy = f"this spec has {kinds}: choose with --wrt or [check] wrt" if kinds else ""
        remedy = remedy or "declare an array in [params], [inputs] or [state]"
        collector.add("nothing-to-differentiate", what, place, help=remedy)
    return decls


def _declarations(spec: Spec) -> dict[str, ArrayDecl]:
    return {**spec.params, **spec.inputs, **spec.states}


def _members(spec: Spec, word: str, place: Place | None, collector: Collector) -> set[str]:
    """The names that one word stands for."""
    if word == "params":
        return {d.name for d in (*spec.params.values(), *spec.states.values()) if d.trainable}
    if word == "inputs":
        return set(spec.inputs)
    if word == "state":
        return set(spec.states)
    decl = _declarations(spec).get(word)
    if decl is None and word in spec.refused:
        return set()
    if decl is None:
        what = f'cannot differentiate with respect to "{printable(word)}"'
        known, several = (*WRT_KINDS, *_declarations(spec)), [part.strip() for part in word.split(",")]
        remedy = nearest(word, known)
        if len(several) > 1 and set(several) <= set(known):
            remedy = f"give each by itself: {' '.join(f'--wrt {part}' for part in several)}"
        collector.add("unknown-wrt", what, place, help=remedy)
        return set()
    if decl.kind == "param" and not decl.trainable:
        what = f'"{word}" is declared with trainable = false'
        collector.add("not-trainable", what, place or decl.place, help="name another array, or leave trainable out")
        return set()
    return {word}


@dataclass(frozen=True)
class _Sizes:
    """`T` is 1 when feed-forward; `shared` names the states whose initial value is `(*shape)`."""

    T: int
    batch: int
    shared: frozenset[str]


@dataclass(frozen=True)
class _Lead:
    """An array of the data file with the sizes of the axes, "T" and "batch", before the shape that it declares."""

    decl: ArrayDecl
    axes: dict[str, int]


def _find_sizes(spec: Spec, recurrent: bool, collector: Collector) -> _Sizes:
    """Sizes from the data file, else as given, else the defaults; contradictions and gaps are reported."""
    found: dict[str, tuple[int, str]] = {}
    shared = frozenset(decl.name for decl in spec.states.values() if not decl.per_sample)
    if spec.data.file is not None:
        with collector.gather():
            leads = _leads(spec, open_arrays(Path(spec.data.file), _data_place(spec)), recurrent, collector)
            found = _agreed(spec, leads, collector)
            states = [lead for lead in leads if lead.decl.kind == "state"]
            shared -= {lead.decl.name for lead in states if lead.axes}
            shared |= {lead.decl.name for lead in states if not lead.axes}
    T = _settled(spec, "T", spec.data.T, found, collector) or DEFAULT_T
    batch = _settled(spec, "batch", spec.data.batch, found, collector) or DEFAULT_BATCH
    return _Sizes(T if recurrent else 1, batch, shared)


def _data_place(spec: Spec) -> Place:
    return spec.source.value("data", "file")


def _leads(spec: Spec, file: ArrayFile, recurrent: bool, collector: Collector) -> list[_Lead]:
    """The leading axes of each array that is read; arrays that do not fit are reported."""
    held = set(file.names())
    leads = []
    for decl in (*spec.inputs.values(), *(d for d in spec.states.values() if d.name in held)):
        choices: Sequence[tuple[str, ...]] = [("T", "batch") if recurrent else ("batch",)]
        if decl.kind == "state":
            choices = [(), ("batch",)]
        with collector.gather():
            shape = file.shape(decl.name)
            axes = next((a for a in choices if len(a) <= len(shape) and shape[len(a) :] == decl.shape), None)
            if axes is None or 0 in shape:
                wanted = " or ".join(_lettered(axes, decl) for axes in choices)
                what = f'the data file holds "{decl.name}" with shape {shape}, expected {wanted}'
                collector.add("shape-mismatch", what, _data_place(spec), help=_layout(decl, recurrent))
            else:
                leads.append(_Lead(decl, dict(zip(axes, shape, strict=False))))
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


def _agreed(spec: Spec, leads: list[_Lead], collector: Collector) -> dict[str, tuple[int, str]]:
    """The size of each axis with the first array that gives it; other arrays must give the same."""
    found: dict[str, tuple[int, str]] = {}
    for lead in leads:
        for axis, size in lead.axes.items():
            first, other = found.setdefault(axis, (size, lead.decl.name))
            if first != size:
                what = f'in the data file "{other}" has {axis} = {first} and "{lead.decl.name}" has {axis} = {size}'
                remedy = f"write all arrays with the same {axis}"
                collector.add("shape-mismatch", what, _data_place(spec), help=remedy)
    return found


def _settled(
    spec: Spec, axis: str, given: int | None, found: dict[str, tuple[int, str]], collector: Collector
) -> int | None:
    """The size in the data file, with which a given one must agree; else the given one.

    A contradiction is refused where the spec has the number, or at the data file where an option gives it.
    """
    if axis not in found:
        return given
    size, name = found[axis]
    if given is not None and given != size:
        place = spec.source.written("data", axis)
        if place is None or place.quote[place.column - 1 :][: place.width] != str(given):
            place = _data_place(spec)
        what = f'{axis} = {given} contradicts the data file, where "{name}" has {axis} = {size}'
        collector.add("contradiction", what, place, help=f"leave {axis} out: it comes from the arrays")
    return size


@dataclass(frozen=True)
class SpecFile:
    """A spec's path with the settings of the command line.

    `overrides` and `wrt` are passed to `open_setup`; reports call the spec `name`.
    """

    path: str
    name: str
    overrides: Mapping[str, Any]
    wrt: tuple[str, ...]
    limits: Limits

    def open(self, settings: Mapping[str, Any]) -> Setup:
        """Open the spec with `settings` over the overrides. Raises BpError listing every fault."""
        setup = open_setup(self.path, {**self.overrides, **settings}, self.wrt, self.limits)
        return dataclasses.replace(setup, spec=dataclasses.replace(setup.spec, name=self.name))

    def absolute(self) -> SpecFile:
        """The same spec under its absolute path, for a process in another folder."""
        return dataclasses.replace(self, path=os.path.abspath(self.path))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self) | {"wrt": list(self.wrt)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> SpecFile:
        """The inverse of `to_json`; other keys are ignored."""
        own = {f.name: given[f.name] for f in dataclasses.fields(cls)}
        return cls(**{**own, "wrt": tuple(given["wrt"]), "limits": Limits(**given["limits"])})


def digest(setup: Setup, path: str) -> str:
    """SHA-256, in hexadecimal, of a spec file and of the weight and data files that it names."""
    spec = setup.spec
    total = hashlib.sha256()
    for file in (path, spec.weights and spec.weights.file, spec.data.file):
        total.update(hashlib.sha256(_content(file)).digest() if file else bytes(32))
    return total.hexdigest()


def _content(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        fail("unreadable-file", f'cannot read "{file}": {error.strerror}', help="leave files in place while bp runs")
