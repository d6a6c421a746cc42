"""What is differentiated: kinds and names to tensors, in the spec's order."""

from __future__ import annotations

from collections.abc import Sequence

from bpcli.errors import Collector, Place, nearest, printable
from bpcli.problem.initial import pattern
from bpcli.problem.model import Setup, Tensor
from bpcli.spec.language import canonical
from bpcli.spec.sections import KINDS
from bpcli.spec.specification import ArrayDecl, Spec


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
        options = [kind for kind in KINDS if _members(spec, kind, None, collector)]
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
        known = (*KINDS, *_all(spec))
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
