"""From a Setup to a Problem: every array, from a file, from the spec's own numbers, or drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bpcli.errors import Place, fail
from bpcli.problem.data import draw_inputs, draw_states
from bpcli.problem.files import where
from bpcli.problem.initial import GROUP, initial, outside
from bpcli.problem.model import Array, Problem, Setup
from bpcli.problem.weights import read_weights
from bpcli.spec.specification import ArrayDecl


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
