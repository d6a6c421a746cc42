"""The losses that a full check is made of, computed on a cluster: blocks of perturbed copies, sent where there is room.

A block is computed from the same arrays in the same way wherever that is: a check gives the same bits as at home.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from bpcli.cluster.connect import Cluster
from bpcli.cluster.dask_worker import answered, require_same
from bpcli.errors import BpError, Diagnostic
from bpcli.problem.draw import draw
from bpcli.problem.spec_file import SpecFile
from bpcli.references.perturbation.executor import Asked, Found, Piece
from bpcli.references.perturbation.perturbed import Perturbed, answering
from bpcli.runtime import kernel_loader as library
from bpcli.runtime.machine import cores

LEAST_FLOPS, MOST_FLOPS = 2e8, 2e9
"""Pieces go together to about so many operations: with less, sending them takes longer than the work."""
_TURNS = 4
"""Tasks for each worker, so that none waits for another for long."""
_EACH = 2
"""Tasks at a worker at a time: they are short, and the next is there when one is done."""


@dataclass(frozen=True, eq=False)
class Order:
    """Pieces of the losses that are asked for, of `spec`, a SpecFile in JSON, on `threads` threads."""

    spec: str
    sha256: str
    asked: Asked
    pieces: Sequence[Piece]
    threads: int


class Farm:
    """`Executor` on a cluster, for one spec."""

    def __init__(self, cluster: Cluster, spec: SpecFile, sha256: str, threads: int) -> None:
        """Raises BpError where a worker does not find the same spec."""
        self.cluster, self.sha256, self.threads = cluster, sha256, threads
        self.spec = spec.absolute()
        cluster.require(self.spec, sha256)

    def losses(self, asked: Asked, pieces: Sequence[Piece]) -> Iterable[Found]:
        """See `Executor`."""
        spec = json.dumps(self.spec.to_json(), sort_keys=True)
        together = batches(pieces, _TURNS * len(self.cluster.workers))
        orders = [Order(spec, self.sha256, asked, some, self.threads) for some in together]
        found: dict[int, list[Found]] = {}
        for number, answer in self.cluster.results(compute, orders, _EACH):
            if isinstance(answer, tuple):
                raise BpError(answer)
            found[number] = answer
        return [values for number in range(len(orders)) for values in found[number]]


def batches(pieces: Sequence[Piece], count: int) -> Iterator[list[Piece]]:
    """Neighbours that are sent together, in about `count` parts where that is neither too little each nor too much."""
    size = min(max(sum(p.flops for p in pieces) / count, LEAST_FLOPS), MOST_FLOPS)
    batch, flops = list[Piece](), 0.0
    for piece in pieces:
        if batch and flops + piece.flops > size:
            yield batch
            batch, flops = [], 0.0
        batch.append(piece)
        flops += piece.flops
    if batch:
        yield batch


def compute(order: Order) -> list[Found] | tuple[Diagnostic, ...]:
    """The losses of each piece; runs in a worker."""
    return answered(lambda: _computed(order))


def _computed(order: Order) -> list[Found]:
    library.set_threads(min(order.threads, cores()))
    perturbed = _perturbed(order.spec, order.sha256, order.asked)
    return [perturbed.piece(piece) for piece in order.pieces]


@lru_cache(maxsize=2)
def _perturbed(spec: str, sha256: str, asked: Asked) -> Perturbed:
    """Kept from piece to piece: the problem, and its states at every step."""
    file = SpecFile.from_json(json.loads(spec))
    require_same(file, sha256)
    return answering(draw(file.open({})), asked)
