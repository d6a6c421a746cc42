"""PyTorch's own recurrent layers as a peer: `torch.nn.RNN`, `GRU` and `LSTM`, where the spec is one of these cells.

Their loops over time are compiled, forward and back, unlike those of the peer `torch`, which runs any graph under eager
autograd. With x the one input of the products, h the state, and each line's biases optional:

    RNN    h = tanh(W x + U h(t-1) + b), or relu
    GRU    h = (1 - z) c + z h(t-1),  r, z = sigmoid(W x + U h(t-1) + b),  c = tanh(W x + b + r (U h(t-1) + d))
    LSTM   h = o tanh(c),  c = f c(t-1) + i g,  i, f, o = sigmoid(W x + U h(t-1) + b),  g = tanh(W x + U h(t-1) + b)

Gates may be slices of one product. The weights are packed once, before the clock runs; the loss is computed from the
states of all steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from typing import Any, ClassVar

import numpy as np

from bpcli.backends import Arrays, peer_refusal
from bpcli.backends.array_graph import masks, readout
from bpcli.backends.torch import PEER as TORCH
from bpcli.backends.torch import tensors_of, torch_library
from bpcli.graph.nodes import Graph, Phase, ancestors
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup

Rows = tuple[str, int, int]
"""A parameter's name, and its rows from a start to a stop."""


@dataclass(frozen=True)
class Side:
    """One side of a gate: the rows that multiply the input or the state, and those of the biases beside them."""

    product: Rows
    biases: tuple[Rows, ...]


@dataclass(frozen=True)
class Cell:
    """A layer of `torch.nn`, its nonlinearity, the input that it takes, its gates in PyTorch's order, and its states.

    A gate has a side of the input and one of the state.
    """

    layer: str
    nonlinearity: str
    input: str
    gates: tuple[tuple[Side, Side], ...]
    states: tuple[str, ...]


class TorchNN:
    """BPTT by PyTorch's recurrent layers."""

    name: ClassVar[str] = "torch_nn"
    summary: ClassVar[str] = "PyTorch's layers: torch.nn.RNN, GRU and LSTM, where the spec is one of these cells"
    methods: ClassVar[tuple[str, ...]] = ("bptt",)

    def available(self) -> str | None:
        """See `Peer`."""
        return TORCH.available()

    def prepare(self, threads: int) -> int | None:
        """See `Peer`."""
        return TORCH.prepare(threads)

    def refusal(self, setup: Setup, method: str) -> str | None:
        """See `Peer`."""
        if reason := peer_refusal(self, setup, method):
            return reason
        return None if cell_of(setup.graph) else "the network is no cell of torch.nn: RNN, GRU or LSTM"

    def gradient_function(self, problem: Problem, method: str) -> Callable[[], Gradient]:
        """See `Peer`."""
        import torch

        setup, cell = problem.setup, cell_of(problem.setup.graph)
        assert cell is not None  # see `refusal`
        library, arrays = torch_library(), tensors_of(problem)
        layer, owners = _layer(cell, problem)
        leaves = {t.name: arrays[t.name].requires_grad_() for t in setup.wrt if t.name not in owners}
        weights = [p for p in layer.parameters() if p.requires_grad]
        rest = readout(library, setup, setup.graph.new[cell.states[0]])
        kept = {name: torch.from_numpy(mask) for name, mask in masks(setup).items()}

        def gradient() -> Gradient:
            first = [arrays[s].expand(setup.batch, -1)[None].contiguous() for s in cell.states]
            output = layer(arrays[cell.input], tuple(first) if len(first) > 1 else first[0])[0]
            total = rest(arrays, output)
            by_weight = torch.autograd.grad(total, [*weights, *leaves.values()], materialize_grads=True)
            found = dict(zip(leaves, by_weight[len(weights) :], strict=True))
            packed = {id(p): g for p, g in zip(weights, by_weight, strict=False)}
            found |= {name: _unpacked(places, packed) for name, places in owners.items()}
            masked = {n: torch.where(kept[n], g, 0.0) if n in kept else g for n, g in found.items()}
            return Gradient(total.item(), {t.name: masked[t.name].numpy() for t in setup.wrt})

        return gradient


@dataclass
class Place:
    """Rows `start` to `stop` of a parameter, which stand in the layer's `packed` parameter from the row `first` on."""

    packed: Any
    first: int
    start: int
    stop: int


def _layer(cell: Cell, problem: Problem) -> tuple[Any, dict[str, list[Place]]]:
    """The layer with the spec's weights, and where the rows of each differentiated parameter stand in it."""
    import torch

    arrays, wrt = problem.params, {t.name for t in problem.setup.wrt}
    biased = any(side.biases for gate in cell.gates for side in gate)
    hidden, inputs = (arrays[cell.gates[0][k].product[0]].shape[1] for k in (1, 0))
    options = {"nonlinearity": cell.nonlinearity} if cell.layer == "RNN" else {}
    dtype = torch.from_numpy(np.empty(0, problem.setup.dtype)).dtype
    layer = getattr(torch.nn, cell.layer)(inputs, hidden, bias=biased, dtype=dtype, **options)
    owners: dict[str, list[Place]] = {}
    for k, suffix in enumerate(("ih", "hh")):
        _fill(getattr(layer, f"weight_{suffix}_l0"), [(gate[k].product,) for gate in cell.gates], arrays, wrt, owners)
        if biased:
            _fill(getattr(layer, f"bias_{suffix}_l0"), [gate[k].biases for gate in cell.gates], arrays, wrt, owners)
    return layer, owners


def _fill(
    parameter: Any, gates: list[tuple[Rows, ...]], arrays: Arrays, wrt: set[str], owners: dict[str, list[Place]]
) -> None:
    """Set a layer's parameter to the rows of each gate, one below the other, and note where they are."""
    import torch

    size, value = parameter.shape[0] // len(gates), np.zeros(tuple(parameter.shape))
    for number, rows in enumerate(gates):
        first = number * size
        for name, start, stop in rows:
            value[first : first + size] = arrays[name][start:stop]
            places = owners.setdefault(name, []) if name in wrt else []
            if places and places[-1].packed is parameter and places[-1].stop == start:
                places[-1].stop = stop  # whole gates are in PyTorch's order
            else:
                places.append(Place(parameter, first, start, stop))
    parameter.requires_grad_(False).copy_(torch.from_numpy(value))
    parameter.requires_grad_(any(name in wrt for rows in gates for name, _, _ in rows))


def _unpacked(places: list[Place], packed: Mapping[int, Any]) -> Any:
    """A parameter's gradient out of those of the layer, without a copy where its rows stand together."""
    import torch

    each = [packed[id(p.packed)][p.first : p.first + p.stop - p.start] for p in sorted(places, key=lambda p: p.start)]
    return each[0] if len(each) == 1 else torch.cat(each)


@lru_cache(maxsize=16)
def cell_of(graph: Graph) -> Cell | None:
    """The cell that a graph is, if it is one whose output is all that the loss is computed from."""
    found = next((c for recognise in (_rnn, _gru, _lstm) for c in recognise(_Reader(graph))), None)
    if found is None or set(found.states) != set(graph.new):
        return None
    output = graph.new[found.states[0]]
    args = [() if node.index == output else node.args for node in graph.nodes]
    read = [graph.nodes[i] for i in ancestors({graph.loss}, args) - {output}]
    rows = sorted(r for gate in found.gates for side in gate for r in (side.product, *side.biases))
    if any(node.phase is Phase.RECURRENT or node.name in {name for name, _, _ in rows} for node in read):
        return None
    used: dict[str, int] = {}
    for name, start, stop in rows:  # each parameter once, and in whole
        if used.get(name, 0) != start:
            return None
        used[name] = stop
    return found if all(graph.nodes[graph.leaf[name]].shape[0] == stop for name, stop in used.items()) else None


@dataclass(frozen=True)
class _Reader:
    """How the equations of a graph are read, whatever the order of their sums and products."""

    graph: Graph

    def op(self, index: int) -> str:
        return self.graph.nodes[index].op

    def argument(self, index: int, op: str) -> int | None:
        """What an operation of one argument is applied to, None where a node is another one."""
        return self.graph.nodes[index].args[0] if self.op(index) == op else None

    def pairs(self, index: int, op: str) -> list[tuple[int, int]]:
        """The arguments of a sum or product both ways round; empty where the node is neither."""
        args = self.graph.nodes[index].args
        return [(args[0], args[1]), (args[1], args[0])] if self.op(index) == op else []

    def terms(self, index: int) -> list[int]:
        """The terms of a sum of sums."""
        if self.op(index) != "add":
            return [index]
        return [term for arg in self.graph.nodes[index].args for term in self.terms(arg)]

    def side(self, terms: list[int], of: int, rows: tuple[int, int]) -> Side | None:
        """The product with the node `of`, and the biases, that the terms are; None where they are not just that."""
        nodes = [self.graph.nodes[t] for t in terms]
        products = [self.graph.nodes[n.args[0]] for n in nodes if n.op == "matmul" and n.args[1] == of]
        biases = [n for n in nodes if n.op == "param" and len(n.shape) == 1]
        if len(products) != 1 or products[0].op != "param" or len(biases) > 1 or len(terms) != 1 + len(biases):
            return None
        return Side((products[0].name, *rows), tuple((b.name, *rows) for b in biases))

    def gate(self, index: int | None, state: str) -> tuple[str, tuple[Side, Side]] | None:
        """The input and both sides of W x + U h(t-1) + b, or of a slice of it."""
        if index is None:
            return None
        node = self.graph.nodes[index]
        rows = (0, node.size)
        if node.op == "slice":
            rows, index = (int(node.numbers[0]), int(node.numbers[1])), node.args[0]
        before, terms = self.graph.previous[state], self.terms(index)
        of_state = [t for t in terms if self.op(t) == "matmul" and self.graph.nodes[t].args[1] == before]
        others = [t for t in terms if t not in of_state]
        x, hidden = self.input_of(others), self.side(of_state, before, rows)
        fed = None if x is None else self.side(others, self.graph.leaf[x], rows)
        return (x, (fed, hidden)) if x and fed and hidden else None

    def input_of(self, terms: list[int]) -> str | None:
        """The input that one of the terms multiplies by a matrix."""
        nodes = [self.graph.nodes[self.graph.nodes[t].args[1]] for t in terms if self.op(t) == "matmul"]
        return next((n.name for n in nodes if n.op == "input"), None)


def _rnn(read: _Reader) -> Iterator[Cell]:
    for state, index in read.graph.new.items():
        node = read.graph.nodes[index]
        kind = {"tanh": "tanh", "relu": "relu"}.get(node.op)
        gate = read.gate(node.args[0], state) if kind and node.args else None
        if kind and gate:
            yield Cell("RNN", kind, gate[0], (gate[1],), (state,))


def _gru(read: _Reader) -> Iterator[Cell]:
    """h = (1 - z) c + z h(t-1)."""
    for state, index in read.graph.new.items():
        for written, held in read.pairs(index, "add"):
            for (z, before), (rest, c) in product(read.pairs(held, "multiply"), read.pairs(written, "multiply")):
                node = read.graph.nodes[rest]
                one = node.op == "subtract" and read.graph.nodes[node.args[0]].numbers == (1.0,) and node.args[1] == z
                if one and before == read.graph.previous[state]:
                    yield from _candidate(read, state, z, c)


def _candidate(read: _Reader, state: str, z: int, c: int) -> Iterator[Cell]:
    """The GRU with the update gate z and the candidate c = tanh(W x + b + r (U h(t-1) + d))."""
    update, inside = read.gate(read.argument(z, "sigmoid"), state), read.argument(c, "tanh")
    terms = [] if inside is None else read.terms(inside)
    rows = (0, read.graph.nodes[c].size)
    for number, term in enumerate(terms):
        others = terms[:number] + terms[number + 1 :]
        for r, inner in read.pairs(term, "multiply"):
            reset = read.gate(read.argument(r, "sigmoid"), state)
            hidden = read.side(read.terms(inner), read.graph.previous[state], rows)
            if update and reset and hidden and update[0] == reset[0] == read.input_of(others):
                fed = read.side(others, read.graph.leaf[reset[0]], rows)
                if fed:
                    yield Cell("GRU", "", reset[0], (reset[1], update[1], (fed, hidden)), (state,))


def _lstm(read: _Reader) -> Iterator[Cell]:
    """h = o tanh(c), c = f c(t-1) + i g."""
    for (h, output), (c, cell) in permutations(read.graph.new.items(), 2):
        for (o, squashed), (held, written) in product(read.pairs(output, "multiply"), read.pairs(cell, "add")):
            for (f, before), (i, g) in product(read.pairs(held, "multiply"), read.pairs(written, "multiply")):
                if read.argument(squashed, "tanh") != cell or before != read.graph.previous[c]:
                    continue
                lines = [
                    read.argument(n, op) for n, op in ((i, "sigmoid"), (f, "sigmoid"), (g, "tanh"), (o, "sigmoid"))
                ]
                gates = [gate for line in lines if (gate := read.gate(line, h))]
                if len(gates) == 4 and len({x for x, _ in gates}) == 1:
                    yield Cell("LSTM", "", gates[0][0], tuple(sides for _, sides in gates), (h, c))


PEER = TorchNN()
