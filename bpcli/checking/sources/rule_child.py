"""A user's online rule in the process for user code: one run of it at a time, from the arrays that bp sends.

Imported there for the first message about a rule: it takes the modules of local derivatives, which other user code
does not need.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bpcli.checking.sources.user_protocol import Array, Message
from bpcli.errors import printable
from bpcli.methods.base import Exact, NoOptions, Windows
from bpcli.problem.definition import Setup
from bpcli.runtime.jacobian import DenseJacobian
from bpcli.runtime.local_derivatives import (
    Factor,
    InfluenceLayout,
    LocalDerivatives,
    influence_layout,
)
from bpcli.tape.probing import PATHS

FUNCTIONS = ("start", "step", "credit")
"""The functions of a rule."""
_Answer = tuple[Message, list[Array]]


class RuleRun:
    """A rule with the state that it has come to; `flaw` in an answer says what is wrong with a value it returned."""

    def __init__(self, rule: Any) -> None:
        self._rule = rule
        self._setup: Setup | None = None
        self._state: Any = None

    def describe(self) -> Message:
        """The functions that it has, and the kind of its `definition`: none, a text, or a function of the setup."""
        definition = getattr(self._rule, "definition", None)
        has = [name for name in FUNCTIONS if callable(getattr(self._rule, name, None))]
        text = definition if isinstance(definition, str) else None
        return {"has": has, "text": text, "function": callable(definition), "none": definition is None}

    def define(self, arrays: Sequence[Array]) -> Message:
        """The definition that its function gives for a setup: the windows, None for the total derivative, or a text."""
        (setup,) = _unpickled(arrays)
        found = self._rule.definition(setup, NoOptions())
        if isinstance(found, str):
            return {"text": found}
        if isinstance(found, Exact):
            return {"windows": None}
        if isinstance(found, Windows):
            return {"windows": [[w.start, w.loss_from, w.stop] for w in found.windows]}
        return {"flaw": f"definition returns {_kind(found)}, not Exact(), Windows(…) or the text of a method"}

    def start(self, arrays: Sequence[Array]) -> Message:
        """Begin a run, with the setup and the generator that were sent."""
        setup, rng = _unpickled(arrays)
        self._setup, self._state = setup, self._rule.start(setup, NoOptions(), rng)
        return {}

    def advance(self, message: Message, arrays: Sequence[Array]) -> _Answer:
        """One step, and the gradient that the rule credits to its losses."""
        assert self._setup is not None
        local = received(message, arrays, influence_layout(self._setup))
        self._state = self._rule.step(self._state, local)
        found = self._rule.credit(self._state, local)
        if isinstance(found, tuple) and len(found) == 2:
            influence, direct = found
        elif hasattr(found, "influence") and hasattr(found, "direct"):
            influence, direct = found.influence, found.direct
        else:
            return {"flaw": f"credit returns {_kind(found)}, not StepGradient(influence, direct) or such a pair"}, []
        shape = (self._setup.batch, local.layout.P)
        if flaw := _flaw("an influence", influence, shape, "(batch, P) = "):
            return {"flaw": flaw}, []
        if not isinstance(direct, Mapping) or (unknown := [n for n in direct if n not in local.direct]):
            named = (
                _kind(direct) if not isinstance(direct, Mapping) else f'an unknown name "{printable(str(unknown[0]))}"'
            )
            return {"flaw": f"credit returns {named} in its direct part, which is a dict like local.direct"}, []
        for name, values in direct.items():
            if flaw := _flaw(f'a direct part of "{name}"', values, local.direct[name].shape):
                return {"flaw": flaw}, []
        dtype = self._setup.dtype
        with np.errstate(all="ignore"):  # a number beyond the range of float32 shows in the gradient
            given: list[Array] = [np.ascontiguousarray(a, dtype) for a in (influence, *direct.values())]
        return {"names": list(direct)}, given


def sent(local: LocalDerivatives) -> _Answer:
    """Local derivatives as a message and its arrays."""
    paths = [local.jacobian.along(kind) for kind in PATHS]
    steps = (local.J, *paths, local.q, local.q_before, local.losses, local.weights, local.a)
    arrays: list[np.ndarray[Any, np.dtype[Any]]] = [*steps, *local.direct.values()]
    lines = []
    for factor in local.factors:
        parts = [factor.delta, factor.vector, factor.entries]
        arrays += [np.asarray(a) for a in parts if a is not None]
        lines.append([factor.columns.start, factor.columns.stop, factor.turned, *(a is not None for a in parts[1:])])
    return {"t": local.t, "direct": list(local.direct), "factors": lines}, arrays


def received(message: Message, arrays: Sequence[Array], layout: InfluenceLayout) -> LocalDerivatives:
    """The local derivatives that `sent` made a message of, in copies that the rule may keep."""
    rest: Iterator[Array] = (np.array(a) for a in arrays)
    jacobian = DenseJacobian(next(rest), {kind: next(rest) for kind in PATHS})
    q, q_before, losses, weights, a = (next(rest) for _ in range(5))
    direct = {name: next(rest) for name in message["direct"]}
    factors = []
    for start, stop, turned, has_vector, has_entries in message["factors"]:
        delta = next(rest)
        vector = next(rest) if has_vector else None
        factors.append(Factor(slice(start, stop), delta, vector, turned, next(rest) if has_entries else None))
    return LocalDerivatives(message["t"], layout, jacobian, q, q_before, tuple(factors), direct, losses, weights, a)


def pickled(*values: object) -> list[Array]:
    """Values as an array of bytes."""
    return [np.array(np.frombuffer(pickle.dumps(values), np.uint8))]


def _unpickled(arrays: Sequence[Array]) -> Any:
    return pickle.loads(arrays[0].tobytes())


def _flaw(what: str, value: Any, shape: tuple[int, ...], named: str = "") -> str:
    """Why a part of a step's gradient cannot be used; "" if it can."""
    try:
        found = np.asarray(value)
    except ValueError:
        return f"credit returns {what} that is no array"
    if found.dtype.kind not in "fiu":
        return f"credit returns {what} of type {found.dtype}, not of real numbers"
    if found.shape != shape:
        return f"credit returns {what} of shape {found.shape}, not {named}{shape}"
    return ""


def _kind(value: object) -> str:
    return printable(type(value).__name__, 60)
