"""The smallest case that still fails: fewer steps, samples and units, as long as the check says wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from bpcli.checking.answers import Foreign
from bpcli.checking.run import CheckOptions, check
from bpcli.methods import MethodCall
from bpcli.problem.model import Setup


@dataclass(frozen=True)
class Again:
    """How to run a spec again with other sizes.

    `open(settings)` gives its Setup, or raises `BpError`; `command(method, settings)` is the command line that judges
    a method with them.
    """

    open: Callable[[Mapping[str, object]], Setup]
    command: Callable[[str, Mapping[str, object]], str]


def smallest(setup: Setup, call: MethodCall | Foreign, again: Again, live: Callable[[], bool]) -> dict[str, object]:
    """The settings that make the case small while `call` is still wrong in any tensor; as far as there is time."""
    kept: dict[str, object] = {}
    sizes = {"T": setup.T} if setup.graph.recurrent else {}
    sizes |= {"batch": setup.batch, **setup.spec.dims}
    for key, size in sizes.items():
        for value in _smaller(size):
            if not live():
                return kept
            if _fails(call, again, {**kept, key: value}):
                kept[key] = value
                break
    return kept


def _smaller(size: int) -> Iterator[int]:
    """1, 2, 3, and then halfway to `size`."""
    yield from (v for v in (1, 2, 3) if v < size)
    if size > 7:
        yield size // 2


def _fails(call: MethodCall | Foreign, again: Again, settings: Mapping[str, object]) -> bool:
    """Whether the method is wrong with these settings; one that is refused or cannot run does not count."""
    try:
        setup = again.open(settings)
        if isinstance(call, MethodCall) and call.refusal(setup.graph) is not None:
            return False
        return any(f.verdict == "wrong" and f.tensor != "loss" for f in check(setup, [call], CheckOptions()))
    except Exception:  # refused sizes, or whatever the program under test raises where it never ran before
        return False
