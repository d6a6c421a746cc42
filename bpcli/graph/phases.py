"""When each node is computed: once, before the time loop, inside it, or after it.

What a node depends on is known as it is made (`dependence`); whether the loop needs it only once the whole graph
stands (`assign_phases`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bpcli.graph.model import Phase

LEAF_PHASE = {"param": Phase.STATIC, "constant": Phase.STATIC, "input": Phase.INPUT, "previous": Phase.RECURRENT}


def dependence(args: Iterable[Phase]) -> Phase:
    """STATIC, INPUT or RECURRENT for a node whose arguments are that: RECURRENT means that it depends on a state."""
    return max(args, default=Phase.STATIC)


def ancestors(roots: Iterable[int], args: Sequence[tuple[int, ...]]) -> set[int]:
    """The nodes that `roots` are computed from within one step, themselves included; `args[i]` are node i's."""
    found = set(roots)
    todo = list(found)
    while todo:
        for arg in args[todo.pop()]:
            if arg not in found:
                found.add(arg)
                todo.append(arg)
    return found


def assign_phases(dependences: Sequence[Phase], feeding: set[int]) -> list[Phase]:
    """The phase of every node.

    `feeding` are the nodes that some state's new value is computed from: what depends on a state and is none of them
    waits until after the loop.
    """
    return [
        Phase.OUTPUT if phase is Phase.RECURRENT and index not in feeding else phase
        for index, phase in enumerate(dependences)
    ]
