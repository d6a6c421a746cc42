"""The way in: a spec's path to a Setup, with all that is wrong reported at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from bpcli.errors import Collector
from bpcli.graph.build import build
from bpcli.problem.limits import Limits
from bpcli.problem.model import Setup
from bpcli.problem.setup import assemble, plan
from bpcli.spec.load import load
from bpcli.spec.paths import resolve
from bpcli.spec.specification import Spec


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
