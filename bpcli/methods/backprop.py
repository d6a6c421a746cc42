"""Backpropagation (Rumelhart, Hinton & Williams 1986): the reverse pass of a feed-forward graph.

The chain rule from the loss back to every leaf.
"""

from bpcli.methods._unrolling import Unrolling
from bpcli.methods.base import Exact, NoOptions

PER_STEP = ("3 F", "V")
METHOD = Unrolling(
    name="backprop",
    summary="reverse pass of a feed-forward graph",
    tags=frozenset({"default", "exact", "feed-forward", "reverse"}),
    Options=NoOptions,
    defined=lambda T, options: Exact(),
)
