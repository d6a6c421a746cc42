"""`[weights]`: parameter values from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bpcli.errors import BpError, Collector, Place, printable
from bpcli.problem.files import ArrayFile, open_arrays, read_as
from bpcli.problem.model import Array
from bpcli.spec.specification import ArrayDecl, Spec, Weights

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
