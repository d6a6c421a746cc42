"""References for the lines of a derivation: differences of the network itself, extrapolated, node values replaced.

Nothing here knows a derivative. A node's value is changed at one step, other nodes are held where a line holds them,
and the rest is computed anew by the rules of the interpreter. Values behind `stop_gradient` and `step` are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from bpcli.checking.interpreter import ForwardPass
from bpcli.checking.rules import apply
from bpcli.graph.nodes import Graph, Phase
from bpcli.graph.operations import STOPPING
from bpcli.lecture.derivation import Claim, Step
from bpcli.lecture.line_values import LineValues, loss_share
from bpcli.lecture.named_graph import NamedGraph
from bpcli.problem.definition import FloatArray

WIDTH = 4e-3
"""Step of the differences, relative to 1 and to the value that is changed."""
WHOLE = 16
"""Entries that are all tried; of more, half as many single entries, and MIXED random directions of all of them."""
MIXED = 4
MOST_STEPS = 4
"""Steps at which the consequences for all later losses are measured."""
MOST_ROWS = 64
"""Steps times samples at which a single step is measured."""
CLOSE = 1e-6
"""An error of this size, relative to the largest number of a line, passes in any case."""
Changes = Mapping[int, FloatArray]
"""By node, the values (rows, *shape) that replace its own."""


@dataclass(frozen=True)
class Measurement:
    """A line's largest error, relative to its largest number, and whether it is within the reference's own error.

    `numbers` counts the comparisons; `zero` is whether both sides are 0 everywhere, `norm` the largest number.
    """

    error: float
    right: bool
    numbers: int
    zero: bool
    norm: float


@dataclass
class Comparison:
    """Pairs of a line's numbers and their references, with bounds on the error of the references.

    With `strict`, a number that is not finite is wrong; a network with values that are not finite has such derivatives,
    0 times infinity for one, where the function itself has a limit.
    """

    strict: bool = True
    value: list[FloatArray] = field(default_factory=list)
    reference: list[FloatArray] = field(default_factory=list)
    bound: list[FloatArray] = field(default_factory=list)

    def add(self, value: FloatArray, reference: FloatArray, bound: FloatArray) -> None:
        """Numbers of one shape; NaN in a reference leaves a number out."""
        arrays = np.broadcast_arrays(value, reference, bound)
        for held, array in zip((self.value, self.reference, self.bound), arrays, strict=True):
            held.append(np.ravel(array))

    def measurement(self) -> Measurement | None:
        """The comparison of them all; None where no number could be measured."""
        if not self.value:
            return None
        value, reference, bound = (np.concatenate(a) for a in (self.value, self.reference, self.bound))
        known = np.isfinite(reference) & (self.strict | np.isfinite(value))
        value, reference, bound = value[known], reference[known], bound[known]
        if not len(value):
            return None
        scale = float(max(np.abs(value).max(), np.abs(reference).max()))
        error = np.abs(value - reference)
        right = bool(np.all(error <= CLOSE * scale + bound))
        relative = float(error.max() / scale) if scale else 0.0
        return Measurement(relative, right, len(value), scale == 0.0, float(np.abs(value).max()))


@dataclass(eq=False)
class Network:
    """The plain network as a function of changed node values, for rows of samples."""

    forward: ForwardPass

    @property
    def graph(self) -> Graph:
        """The graph of one step."""
        return self.forward.graph

    @cached_property
    def stopped(self) -> frozenset[int]:
        """Nodes that count as constants."""
        return frozenset(node.index for node in self.graph.nodes if node.op in STOPPING)

    def step(self, base: Sequence[FloatArray], changes: Changes) -> list[FloatArray]:
        """All node values of a step whose values are `base` without the changes."""
        values, moved = list[FloatArray](), set(changes)
        for node in self.graph.nodes:
            n = node.index
            if n in changes:
                values.append(changes[n])
            elif n in self.stopped or not moved.intersection(node.args):
                values.append(base[n])
            else:
                moved.add(n)
                values.append(apply(node.op, [values[a] for a in node.args], node.numbers, node.shape))
        return values

    def run(self, steps: Sequence[Sequence[FloatArray]], changes: Changes, everywhere: bool) -> list[list[FloatArray]]:
        """The values of consecutive steps, with changes at the first, or at every one."""
        found, state = list[list[FloatArray]](), dict[int, FloatArray]()
        for k, base in enumerate(steps):
            found.append(self.step(base, {**state, **(changes if everywhere or k == 0 else {})}))
            state = {self.graph.previous[s]: found[-1][n] for s, n in self.graph.new.items()}
        return found


Function = Callable[[FloatArray], FloatArray]


def along(f: Function, x: FloatArray, direction: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The derivative of f at x along a direction, by central differences of three steps, and a bound on its error.

    NaN where the bound is a good part of it, as next to a kink.
    """
    h = WIDTH * max(1.0, float(np.abs(x).max()))
    here = f(x)
    central, bend, size = list[FloatArray](), list[FloatArray](), np.abs(here)
    for width in (h, h / 2, h / 4):
        after, before = f(x + width * direction), f(x - width * direction)
        central.append((after - before) / (2 * width))
        bend.append((after - 2 * here + before) / width)
        size = np.maximum(size, np.maximum(np.abs(after), np.abs(before)))
    first, second = ((4 * central[k + 1] - central[k]) / 3 for k in (0, 1))
    found = (16 * second - first) / 15
    # At half the step, one-sided differences of a smooth function lie half as far apart, and central ones a quarter as
    # far from the limit; not so where a kink, or one of the slope, is within reach.
    bent = np.maximum(np.abs(bend[0] - 2 * bend[1]), np.abs(bend[1] - 2 * bend[2]))
    bent += np.abs((central[0] - central[1]) - 4 * (central[1] - central[2]))
    bound = 4 * np.abs(found - second) + 3 * bent + 40 * np.finfo(float).eps * size / h
    rough = bound > 1e-2 * (np.abs(found) + np.abs(found).max()) + 1e-9
    return np.where(rough | ~np.isfinite(bound), np.nan, found), bound


Pair = tuple[FloatArray, FloatArray]
"""A derivative (directions, rows, entries) and the bound on its error."""


@dataclass(eq=False)
class Measured:
    """The references for all lines of a derivation on a problem; `pairs` (t, s) are those a truncated method keeps."""

    net: NamedGraph
    values: LineValues
    pairs: Sequence[tuple[int, int]] = ()
    _whole: dict[tuple[int, tuple[int, ...]], Pair] = field(default_factory=dict)

    @cached_property
    def network(self) -> Network:
        """The network of the problem."""
        return Network(self.values.forward)

    @property
    def graph(self) -> Graph:
        """The graph of one step."""
        return self.net.graph

    @cached_property
    def finite(self) -> bool:
        """Whether all values of the network are."""
        return all(bool(np.isfinite(v).all()) for values in self.values.forward.values for v in values)

    @cached_property
    def times(self) -> list[int]:
        """The steps at which a single step is measured: all of them as rows of one batch, if they are not too many."""
        T, batch = self.values.T, self.net.setup.batch
        return sorted({*np.linspace(0, T - 1, max(2, min(T, MOST_ROWS // batch))).astype(int).tolist()})

    @cached_property
    def single(self) -> list[FloatArray]:
        """The values (steps · batch, *shape) of each node, (1, *shape) of a static one."""
        steps, batch = [self.values.forward.values[t] for t in self.times], self.net.setup.batch
        found = []
        for node in self.graph.nodes:
            own = [steps[k][node.index] for k in range(len(steps))]
            if node.phase is Phase.STATIC:
                found.append(own[0])
            else:
                found.append(np.concatenate([np.broadcast_to(v, (batch, *v.shape[1:])) for v in own]))
        return found

    def check(self, step: Step) -> Measurement | None:
        """A line against its reference; None where it cannot be measured, on a kink for example."""
        comparison, kind = Comparison(self.finite), step.claim.kind
        with np.errstate(all="ignore"):
            if kind == "value":
                for t in range(self.values.T):
                    own = self.values.value(step, t)
                    comparison.add(own, self.values.node(step.claim.of, t), np.zeros(()))
            elif kind == "windows":
                self._compare_windows(step, comparison)
            elif kind in ("total", "credit", "influence"):
                self._compare_whole(step, comparison)
            else:
                value = self._rows(step, self.times)
                x, f = self.single[step.claim.by], self._single_step(step)
                self._compare(step, value, self._along(step.claim.by, f, x), comparison)
        return comparison.measurement()

    def _rows(self, step: Step, times: Sequence[int]) -> FloatArray:
        """A line's values at some steps, (steps · batch, *shape)."""
        batch, found = self.net.setup.batch, list[FloatArray]()
        for t in times:
            value = self.values.found[step.key][t]
            assert value is not None
            found.append(np.broadcast_to(value, (batch, *value.shape[1:])))
        return np.concatenate(found)

    def _compare(self, step: Step, value: FloatArray, pair: Pair, comparison: Comparison) -> None:
        """Compare a line's value, a matrix with a column for each entry of node `by`, along all directions."""
        size = self.graph.nodes[step.claim.by].size
        matrix = step.claim.kind in ("edge", "jacobian", "immediate", "influence")
        flat = value.reshape(len(value), -1 if matrix else 1, size)
        directions, finite = self._directions(step.claim.by), np.isfinite(flat)
        own = np.einsum("bon,kn->kbo", np.where(finite, flat, 0.0), directions)
        if not finite.all():
            own[np.einsum("bon,kn->kbo", 1.0 - finite, np.abs(directions)) > 0] = np.nan
        comparison.add(own.reshape(pair[0].shape), *pair)

    def _compare_whole(self, step: Step, comparison: Comparison) -> None:
        """A line about the losses or states of many steps."""
        claim, T, batch = step.claim, self.values.T, self.net.setup.batch
        by = self.graph.nodes[claim.by]
        if by.phase is Phase.STATIC:
            held = self._held(by.index) if claim.kind == "influence" else ()
            if (by.index, held) not in self._whole:
                whole = partial(self._everything, by=by.index, held=held)
                self._whole[by.index, held] = self._along(by.index, whole, self.single[by.index])
            found, bound = self._whole[by.index, held]
            if claim.kind == "total":
                still = self.values.still
                value = still[step.key] if step.key in still else self._rows(step, [0])
                value = np.broadcast_to(value, (batch, *value.shape[1:]))
                self._compare(step, value, (found[..., :1], bound[..., :1]), comparison)
                return
            first = 1 + sum(self.graph.nodes[n].size for n in self.graph.new.values() if n < claim.of) * T
            size = self.graph.nodes[claim.of].size
            for t in self.times:
                own = slice(first + t * size, first + (t + 1) * size)
                self._compare(step, self._rows(step, [t]), (found[..., own], bound[..., own]), comparison)
            return
        first_step = by.op == "previous"
        for t in [0] if first_step else sorted({*np.linspace(0, T - 1, min(T, MOST_STEPS)).astype(int).tolist()}):
            x = self.values.node(by.index, t)
            x = np.broadcast_to(x, (batch, *x.shape[1:]))
            value = self.values.still[step.key] if first_step else self._rows(step, [t])
            value = np.broadcast_to(value, (batch, *value.shape[1:]))
            pair = self._along(by.index, self._later_losses(claim, t), x)
            self._compare(step, value, pair, comparison)

    def _compare_windows(self, step: Step, comparison: Comparison) -> None:
        """A sum over pairs (t, s): a parameter is changed at step s alone, and the loss of step t is read."""
        by, T, batch = step.claim.by, self.values.T, self.net.setup.batch
        graph, base, kept = self.graph, self.values.forward.values, set(self.pairs)
        held = {n: base[0][n] for n in self._held(by)}
        found, bound = np.zeros(()), np.zeros(())
        for s in range(T):
            read = [t for t in range(s, T) if (t, s) in kept]
            if not read:
                continue

            def f(x: FloatArray, s: int = s, read: Sequence[int] = read) -> FloatArray:
                steps = self.network.run(base[s : read[-1] + 1], {**held, by: x}, everywhere=False)
                losses = [steps[t - s][graph.loss] * loss_share(self.net.setup, t) for t in read]
                return np.asarray(np.sum([np.broadcast_to(one, batch) for one in losses], axis=0)[:, None])

            more, error = self._along(by, f, self.single[by])
            found, bound = found + more, bound + error
        value = self.values.still[step.key]
        self._compare(step, np.broadcast_to(value, (batch, *value.shape[1:])), (found, bound), comparison)

    def _held(self, by: int) -> tuple[int, ...]:
        """The other functions of parameters that have a name: the influence of each is a line of its own."""
        nodes = self.graph.nodes
        return tuple(n for n in self.net.equations() if nodes[n].phase is Phase.STATIC and n != by)

    def _everything(self, x: FloatArray, by: int, held: Sequence[int]) -> FloatArray:
        """(batch, 1 + states): the whole loss, then the states in order of their nodes, each of all steps."""
        batch, graph = self.net.setup.batch, self.graph
        base = self.values.forward.values
        steps = self.network.run(base, {**{n: base[0][n] for n in held}, by: x}, everywhere=True)
        columns = [self._loss(steps, 0, batch)]
        for n in sorted(graph.new.values()):
            columns += [np.broadcast_to(v[n], (batch, *v[n].shape[1:])).reshape(batch, -1) for v in steps]
        return np.concatenate(columns, axis=1)

    def _loss(self, steps: Sequence[Sequence[FloatArray]], first: int, rows: int) -> FloatArray:
        """(rows, 1): the losses of steps from `first` on, as they count in L."""
        losses = [v[self.graph.loss] * loss_share(self.net.setup, first + k) for k, v in enumerate(steps)]
        return np.asarray(np.sum([np.broadcast_to(one, rows) for one in losses], axis=0)[:, None])

    def _later_losses(self, claim: Claim, t: int) -> Function:
        """The losses from step t on as a function of the values of node `by` at that step."""
        steps, by = self.values.forward.values[t:], claim.by
        others = [n for n in self.graph.new.values() if n != by] if claim.kind == "credit" else []

        def f(x: FloatArray) -> FloatArray:
            tiled = [self._tiled(values, len(x)) for values in steps]
            held = {n: tiled[0][n] for n in others}
            return self._loss(self.network.run(tiled, {**held, by: x}, everywhere=False), t, len(x))

        return f

    def _single_step(self, step: Step) -> Function:
        """The function of node `by` whose derivative a line about one step states."""
        claim, graph = step.claim, self.graph
        held: Iterable[int] = ()
        if claim.kind == "edge":
            held = [n for n in self.net.equations() if n not in (claim.of, claim.by)]
        elif claim.kind == "local":
            held = [n for n in (*graph.new.values(), *self._held(claim.by)) if n != claim.by]
        elif claim.kind == "immediate":
            held = self._held(claim.by)
        weights = np.repeat([loss_share(self.net.setup, t) for t in self.times], self.net.setup.batch)

        def f(x: FloatArray) -> FloatArray:
            rows = len(x) if graph.nodes[claim.by].phase is not Phase.STATIC else len(weights)
            base = self._tiled(self.single, rows)
            values = self.network.step(base, {**{n: base[n] for n in held}, claim.by: x})
            found = values[graph.loss if claim.kind == "local" else claim.of]
            found = np.broadcast_to(found, (rows, *found.shape[1:])).reshape(rows, -1)
            return found * np.tile(weights, rows // len(weights))[:, None] if claim.kind == "local" else found

        return f

    def _tiled(self, values: Sequence[FloatArray], rows: int) -> list[FloatArray]:
        """Values for a multiple of their rows; those of static nodes as they are."""
        nodes = self.graph.nodes
        return [v if nodes[n].phase is Phase.STATIC or len(v) == rows else
                np.tile(v, (rows // len(v), *(1,) * (v.ndim - 1))) for n, v in enumerate(values)]  # fmt: skip

    def _along(self, by: int, f: Function, x: FloatArray) -> Pair:
        """The derivative of f along every direction of a node; those of a static node one after the other."""
        node, directions = self.graph.nodes[by], self._directions(by)
        if node.phase is Phase.STATIC:
            pairs = [along(f, x, one.reshape(1, *node.shape)) for one in directions]
            return np.array([found for found, _ in pairs]), np.array([bound for _, bound in pairs])
        rows = len(x)
        tiled = np.tile(x, (len(directions), *(1,) * (x.ndim - 1)))
        found, bound = along(f, tiled, np.repeat(directions, rows, axis=0).reshape(tiled.shape))
        shape = (len(directions), rows, -1)
        return found.reshape(shape), bound.reshape(shape)

    def _directions(self, by: int) -> FloatArray:
        """(directions, size): unit vectors of all entries, or of some of them and random directions of all."""
        node = self.graph.nodes[by]
        pattern = next((x.pattern for x in self.net.setup.wrt if x.name == node.name and x.kind == "param"), None)
        entries = np.arange(node.size) if pattern is None else pattern
        rng = np.random.default_rng(len(entries))
        if len(entries) <= WHOLE:
            return np.eye(node.size)[entries]
        chosen = rng.choice(entries, WHOLE // 2, replace=False)
        found = np.zeros((WHOLE // 2 + MIXED, node.size))
        found[np.arange(len(chosen)), chosen] = 1.0
        found[len(chosen) :, entries] = rng.standard_normal((MIXED, len(entries))) / np.sqrt(len(entries))
        return found
