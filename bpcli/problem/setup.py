"""What is differentiated: kinds and names to tensors, in the spec's order.

From a spec and its graph to a Setup: sizes, limits, and what is differentiated. Reads headers of files alone.

The way in: a spec's path to a Setup, with all that is wrong reported at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bpcli.errors import Collector, Place, nearest, printable
from bpcli.graph.build import build
from bpcli.graph.nodes import Graph
from bpcli.problem.definition import Setup, Tensor
from bpcli.problem.draw import check_task, check_weights
from bpcli.problem.initial import pattern
from bpcli.problem.limits import Limits, check_arrays
from bpcli.problem.sizes import Sizes, find_sizes
from bpcli.spec.language import canonical
from bpcli.spec.load import load
from bpcli.spec.paths import resolve
from bpcli.spec.specification import WRT_KINDS, ArrayDecl, Spec


def choose(spec: Spec, wrt: Sequence[str], collector: Collector) -> tuple[ArrayDecl, ...]:
    """The arrays that `wrt` (kinds or single names; `[check] wrt` when empty) stands for: params, inputs, states.

    An initial state with `trainable = true` is one of `params` too.
    """
    words: list[tuple[str, Place | None]] = [(canonical(word), None) for word in wrt]
    if not words:
        words = [(word, spec.source.value("check", "wrt", str(i))) for i, word in enumerate(spec.check.wrt)]
    chosen: set[str] = set()
    for word, place in words:
        chosen |= _members(spec, word, place, collector)
    decls = tuple(d for d in _all(spec).values() if d.name in chosen)
    entries = sum(d.size if d.density is None else round(d.density * d.size) for d in decls)
    if entries == 0 and not collector.diagnostics:
        place = spec.source.key("check", "wrt") if not wrt else None
        asked = ", ".join(printable(word) for word, _ in words)
        options = [kind for kind in WRT_KINDS if _members(spec, kind, None, collector)]
        remedy = f"this spec has {', '.join(options)}: choose with --wrt or [check] wrt" if options else ""
        what = f"nothing to differentiate: {asked} has no entries in this spec"
        remedy = remedy or "declare an array in [params], [inputs] or [state]"
        collector.add("nothing-to-differentiate", what, place, help=remedy)
    return decls


def tensors(setup: Setup, decls: Sequence[ArrayDecl]) -> tuple[Tensor, ...]:
    """`decls` as tensors, density patterns drawn: to be called once the sizes are known to be allowed."""
    return tuple(_tensor(setup, decl) for decl in decls)


def _all(spec: Spec) -> dict[str, ArrayDecl]:
    return {**spec.params, **spec.inputs, **spec.states}


def _members(spec: Spec, word: str, place: Place | None, collector: Collector) -> set[str]:
    """The names that one word stands for."""
    if word == "params":
        return {d.name for d in (*spec.params.values(), *spec.states.values()) if d.trainable}
    if word == "inputs":
        return set(spec.inputs)
    if word == "state":
        return set(spec.states)
    decl = _all(spec).get(word)
    if decl is None and word in spec.refused:
        return set()
    if decl is None:
        known = (*WRT_KINDS, *_all(spec))
        what = f'cannot differentiate with respect to "{printable(word)}"'
        collector.add("unknown-wrt", what, place, help=nearest(word, known))
        return set()
    if decl.kind == "param" and not decl.trainable:
        what = f'"{word}" is declared with trainable = false'
        collector.add("not-trainable", what, place or decl.place, help="name another array, or leave trainable out")
        return set()
    return {word}


def _tensor(setup: Setup, decl: ArrayDecl) -> Tensor:
    lead: tuple[int, ...] = ()
    if decl.kind == "input":
        lead = (setup.T, setup.batch) if setup.graph.recurrent else (setup.batch,)
    elif decl.kind == "state" and decl.name not in setup.shared:
        lead = (setup.batch,)
    return Tensor(decl.name, decl.kind, (*lead, *decl.shape), pattern(decl, setup.spec.data.seed))


@dataclass(frozen=True)
class Plan:
    """What a Setup takes beside the graph."""

    spec: Spec
    sizes: Sizes
    chosen: tuple[ArrayDecl, ...]


def plan(spec: Spec, wrt: Sequence[str], collector: Collector) -> Plan:
    """Look at `[data]`, `[weights]` and `wrt`, also of a spec that is refused already, and note all that is wrong.

    The `file` names of the spec are resolved; `wrt` are kinds or names, `[check] wrt` when empty.
    """
    check_task(spec, collector)
    check_weights(spec, collector)
    # An equation of a refused name is that of a state whose declaration fell.
    recurrent = bool(spec.states or spec.refused & spec.equations.keys())
    sizes = find_sizes(spec, recurrent, collector)
    return Plan(spec, sizes, choose(spec, wrt, collector))


def assemble(parts: Plan, graph: Graph, limits: Limits) -> Setup:
    """The Setup of a plan without errors; `BpError` for arrays beyond the limit, before any of their size is made."""
    spec, sizes = parts.spec, parts.sizes
    dtype: np.dtype[np.floating] = np.dtype(spec.dtype)
    setup = Setup(spec, graph, sizes.T, sizes.batch, dtype, (), sizes.shared)
    check_arrays(setup, limits)
    return dataclasses.replace(setup, wrt=tensors(setup, parts.chosen))


def open_setup(path: str | Path, overrides: Mapping[str, object], wrt: Sequence[str], limits: Limits) -> Setup:
    """The Setup of the spec at `path`, `overrides` as for `load`, `wrt` kinds or names as for `plan`.

    Raises `BpError` with everything that is wrong with the spec, its equations, its files or its sizes.
    """
    collector = Collector()
    spec = load(path, overrides, collector)
    graph = build(spec, collector) if spec is not None else None
    parts = plan(_with_resolved_files(spec, path, limits, collector), wrt, collector) if spec is not None else None
    collector.finish()
    # A loader or builder that gives up says why, so nothing is None past this line.
    assert graph is not None and parts is not None
    return assemble(parts, graph, limits)


def _with_resolved_files(spec: Spec, path: str | Path, limits: Limits, collector: Collector) -> Spec:
    """`spec` with the absolute paths of the files that it names; refused ones are left out, for what follows."""
    source, outside = spec.source, limits.allow_outside
    weights, data = spec.weights, spec.data
    if weights is not None:
        file = resolve(path, weights.file, source.value("weights", "file"), outside, collector)
        weights = dataclasses.replace(weights, file=str(file)) if file else None
    if data.file is not None:
        file = resolve(path, data.file, source.value("data", "file"), outside, collector)
        data = dataclasses.replace(data, file=str(file) if file else None)
    return dataclasses.replace(spec, weights=weights, data=data)
