"""What a check is asked to do, and what it does about it: which references, every entry or directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bpcli.checking import outside
from bpcli.checking.answers import Foreign
from bpcli.checking.truth import AUTO, Windows, references_for, whole
from bpcli.methods import MethodCall
from bpcli.problem.definition import Setup
from bpcli.references.base import Reference, copies
from bpcli.references.central import Central
from bpcli.references.probe import COUNT
from bpcli.references.rounding import rounding_flops

Mode = Literal["auto", "full", "directional"]

AFFORDABLE = 2e11
"""Predicted flops up to which "auto" judges every entry: some ten seconds' worth."""
_ASKED = 2


@dataclass(frozen=True)
class CheckOptions:
    """`reference` judges, or the peer of that name: "auto" takes the sharpest that applies, and differences beside it.

    The mode "full" judges every entry and puts differences beside each, "directional" judges directions first, and
    "auto" judges every entry where that is affordable, with differences beside as many as are.
    """

    reference: str = AUTO
    mode: Mode = "auto"


@dataclass(frozen=True)
class Choice:
    """What "auto" comes down to. `flops` are predicted for the mode taken, `full_flops` for every entry."""

    mode: Literal["full", "directional"]
    references: tuple[Reference, ...]
    sampled: bool
    flops: float
    full_flops: float

    def __str__(self) -> str:
        """In words."""
        judge, *beside = (r.name for r in self.references)
        what = "in every entry" if self.mode == "full" else f"along {COUNT} directions a tensor"
        seen = " at a sample of the entries" if self.sampled else ""
        words = f"{what} by {judge}" + (f", with {beside[0]} beside it{seen}" if beside else "")
        if self.mode == "directional":
            words += f" (every entry, --mode full, would take {self.full_flops:.1g} operations)"
        return words


def choose(setup: Setup, calls: Sequence[MethodCall | Foreign], options: CheckOptions) -> Choice:
    """The references and the mode that `options` come to for these sizes, and what that costs."""
    used = references_for(setup, options.reference, options.mode)
    windows = {tuple(call.windows(setup)) for call in calls}
    asked = sum(_ASKED * call.cost(setup).flops for call in calls) + _rounding(setup, windows)
    full = asked + _cost(setup, windows, used)
    along = asked + sum(r.cost_along(setup, w, COUNT) for r in used for w in windows | {whole(setup)})
    dear = options.mode == AUTO and full > max(AFFORDABLE, along)
    if dear or options.mode == "directional":
        return Choice("directional", references_for(setup, options.reference, "directional"), False, along, full)
    sampled = any(isinstance(r, Central) and copies(setup, r.sample) < copies(setup) for r in used)
    return Choice("full", used, sampled, full, full)


def unjudged(setup: Setup, calls: Sequence[MethodCall | Foreign], options: CheckOptions) -> dict[str, str]:
    """The methods, by text, that the reference can't judge, and why."""
    if options.reference not in outside.known():
        return {}
    reasons = {call.text: outside.refusal(options.reference, setup, tuple(call.windows(setup))) for call in calls}
    return {text: reason for text, reason in reasons.items() if reason}


def check_cost(setup: Setup, calls: Sequence[MethodCall | Foreign], options: CheckOptions) -> float:
    """Predicted floating-point operations of a check, without what wrong gradients cause."""
    return choose(setup, calls, options).flops


def _cost(setup: Setup, windows: set[Windows], used: tuple[Reference, ...]) -> float:
    """Of all estimates: for every set of windows, and of the true gradient by the reference that judges."""
    each = sum(r.cost(setup, w) for r in used for w in windows)
    return each + (0.0 if whole(setup) in windows else used[0].cost(setup, whole(setup)))


def _rounding(setup: Setup, windows: set[Windows]) -> float:
    return sum(rounding_flops(setup, w) for w in windows)
