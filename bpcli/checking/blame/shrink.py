"""The smallest case that still fails: fewer steps, samples and units, as long as the check says wrong for the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bpcli.checking.answers import Foreign
from bpcli.checking.findings import Finding
from bpcli.checking.options import CheckOptions
from bpcli.checking.run import check
from bpcli.methods import MethodCall
from bpcli.problem.definition import Setup


@dataclass(frozen=True)
class Again:
    """How to run a spec again with other sizes.

    `open(settings)` gives its Setup, or raises `BpError`; `command(method, settings)` is the command line that judges
    a method with them.
    """

    open: Callable[[Mapping[str, object]], Setup]
    command: Callable[[str, Mapping[str, object]], str]


def smallest(
    wrong: Sequence[Finding], setup: Setup, call: MethodCall | Foreign, again: Again, live: Callable[[], bool]
) -> dict[str, object]:
    """The settings that make the case small while `call` is still wrong in one of the ways of `wrong`, in any tensor.

    As far as there is time, and not at all where there is one answer alone. A loss that is wrong too does not count
    beside a gradient.
    """
    if not anywhere(call):
        return {}
    gradients = [f for f in wrong if f.tensor != "loss"]
    ways = {_way(f) for f in gradients or wrong}
    kept: dict[str, object] = {}
    sizes = {"T": setup.T} if setup.graph.recurrent else {}
    sizes |= {"batch": setup.batch, **setup.spec.dims}
    for key, size in sizes.items():
        for value in _smaller(size):
            if not live():
                return kept
            if ways & _ways(call, again, {**kept, key: value}):
                kept[key] = value
                break
    return kept


def anywhere(call: MethodCall | Foreign) -> bool:
    """Whether there is an answer for other sizes and seeds."""
    return isinstance(call, MethodCall) or call.anywhere


def _smaller(size: int) -> Iterator[int]:
    """1, 2, 3, and then halfway to `size`."""
    yield from (v for v in (1, 2, 3) if v < size)
    if size > 7:
        yield size // 2


def _ways(call: MethodCall | Foreign, again: Again, settings: Mapping[str, object]) -> set[tuple[str, bool]]:
    """How the method is wrong with these settings; one that is refused or cannot run does not count."""
    try:
        setup = again.open(settings)
        if isinstance(call, MethodCall) and call.refusal(setup.graph) is not None:
            return set()
        return {_way(f) for f in check(setup, [call], CheckOptions()) if f.verdict == "wrong"}
    except Exception:  # refused sizes, or whatever the program under test raises where it never ran before
        return set()


def _way(finding: Finding) -> tuple[str, bool]:
    """What is wrong, but for the details: a kernel that has a size written into it raises at any other."""
    kind = finding.cause.partition(": ")[0].partition(" (")[0]
    return kind, finding.tensor == "loss"
