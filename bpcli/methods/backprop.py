"""Backpropagation: the reverse pass of a feed-forward graph, the chain rule from the loss back to every leaf."""

from bpcli.methods._unrolling import NoOptions, Unrolling
from bpcli.runtime.reverse_mode import Window

METHOD = Unrolling(
    name="backprop",
    summary="reverse pass of a feed-forward graph",
    tags=frozenset({"exact", "feed-forward"}),
    Options=NoOptions,
    reach=lambda T, options: (Window(0, 0, T),),
)
