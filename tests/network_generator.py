"""Random networks over the whole language: the table of operations says which terms there are, and of what shapes.

An operation that is added to the table is written `name(arguments, numbers)` unless `FORMS` says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from math import prod
from random import Random

from network_terms import Array, Network, Number, Term

from bpcli.graph.nodes import Phase
from bpcli.graph.operations import OPERATIONS, Misfit, Operation, Shape
from bpcli.spec.language import FUNCTIONS

# How operations are written that are no functions of the language; those of None stand for something else that is.
FORMS: Mapping[str, str | None] = {
    "copy": None,  # an equation that is a name
    "negate": "(-{})",
    "add": "({} + {})",
    "subtract": "({} - {})",
    "multiply": "({} * {})",
    "divide": "({} / {})",
    "power": "({}**{})",
    "matmul": "({} @ {})",
    "matmat": "({} @ {})",
    "transpose": "{}.T",
    "slice": "{}[{}:{}]",
}
ELEMENT = "{}[{}]"
# Functions that are put together from operations: each has the shapes of one.
COMPOSED = {"mean": OPERATIONS["sum"], "cross_entropy": OPERATIONS["dot"], "clip": OPERATIONS["relu"]}
NUMBERS: Mapping[str, tuple[tuple[Number, ...], ...]] = {
    "power": tuple((p,) for p in (2, 2, 2, 3, 3, 1, 0, 4, "(-1)", "(-2)", 0.5, 1.5, "(-0.5)")),
    "step": ((), (1,), (0.5,), (2,)),
    "clip": ((0, 1), ("(-0.5)", 0.5), ("(-1)", 2)),
    "leaky_relu": tuple((s,) for s in (0.1, 0.1, 0, 1, 2, "(-0.5)")),
}
GROWING = ("exp",)
SINGULAR = ("log", "sqrt", "divide", "power")
TAME = ("tanh({})", "sin({})", "cos({})", "sigmoid({})", "(0.1 * {})")
POSITIVE = ("(1 + {}**2)", "(2 + cos({}))", "exp(0.3 * tanh({}))", "(0.1 + softplus({}))", "(0.5 + sigmoid({}))")
SQUASHED = (
    "tanh({})", "tanh({})", "sin({})", "sigmoid({})", "softmax({})", "relu(sin({}))", "leaky_relu(tanh({}), 0.1)",
    "abs(tanh({}))", "clip({}, (-1), 1)", "max(tanh({}), 0.1)", "(0.2 * {})", "relu(0.3 * {})",
    "log_softmax(tanh({}))", "(1 / (1 + {}**2))",
)  # fmt: skip
LITERALS = ("0.5", "2", "1", "0.1", "3", "0", "(-1)", "1.5", "(-0.25)")
FLAT = (0.0, 0.0, 0.0, 1.0, 1.0, -1.0, 0.5, 2.0)
SIZES = (1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9)
SCALES = ("ordinary", "flat", "wide", "extreme")
EXTREME = (0.0, 1e-300, 1e300, 1e-160, 1e154, 1e-80, 1e200, 1e38, 1e-310)
EXTREME_SINGLE = (0.0, 1e-38, 1e38, 1e-20, 1e19, 1e-45, 1e30)


@dataclass(frozen=True)
class Name:
    """Something that a term may use."""

    text: str
    shape: Shape
    phase: Phase


@dataclass
class Writer:
    """Writes terms from the names that there are so far, the `favourite` more often than others."""

    rng: Random
    dims: Mapping[str, int]
    names: list[Name] = field(default_factory=list)
    favourite: str = ""

    def add(self, text: str, shape: Shape, phase: Phase) -> None:
        """Let terms use a name."""
        self.names.append(Name(text, shape, phase))

    def shapes(self, most: Phase) -> tuple[Shape, ...]:
        """Shapes that names have, matrices and their transposes last."""
        found = {n.shape for n in self.names if n.phase <= most} | {()}
        matrices = {s for s in found if len(s) == 2}
        return tuple(sorted(found | {s[::-1] for s in matrices}, key=lambda s: (len(s), s)))

    def term(self, shape: Shape, most: Phase, depth: int) -> Term:
        """A term of a shape whose names are at most of a phase; it is `depth` operations deep, or less."""
        most = Phase.STATIC if len(shape) == 2 else most
        if depth > 0 and self.rng.random() < 0.9:
            for row in self.rng.sample(ROWS, len(ROWS)):
                made = self.applied(row, shape, most, depth)
                if made is not None:
                    return made
        return self.leaf(shape, most)

    def leaf(self, shape: Shape, most: Phase) -> Term:
        """A name where there is one, rather a late one; else a number, or names joined or cut."""
        fitting = [n.text for n in self.names if n.shape == shape and n.phase <= most]
        if self.favourite in fitting and self.rng.random() < 0.4:
            return Term(self.favourite)
        if fitting and not (shape == () and self.rng.random() < 0.3):
            return Term(fitting[max(self.rng.randrange(len(fitting)) for _ in range(2))])
        if shape == ():
            return self.scalar(most)
        if len(shape) == 2:  # a transpose of what there is
            return Term("{}.T", (self.leaf(shape[::-1], most),))
        return self.vector(shape[0], most)

    def scalar(self, most: Phase) -> Term:
        """A number, or a scalar of a vector that has a name."""
        vectors = [n for n in self.names if len(n.shape) == 1 and n.phase <= most]
        if not vectors or self.rng.random() < 0.4:
            return Term(self.rng.choice((*LITERALS, *self.dims)))
        name = self.rng.choice(vectors)
        if self.rng.random() < 0.5:
            return Term(ELEMENT, (Term(name.text),), (self.rng.randrange(name.shape[0]),))
        return Term(self.rng.choice(("sum({})", "mean({})", "logsumexp({})")), (Term(name.text),))

    def vector(self, size: int, most: Phase) -> Term:
        """A vector of any size: a name's slice, or scalars joined."""
        longer = [n for n in self.names if len(n.shape) == 1 and n.shape[0] >= size and n.phase <= most]
        if longer:
            name = self.rng.choice(longer)
            return self.cut(Term(name.text), name.shape[0], size)
        if size == 1:
            return Term("concat({}, {})[0:1]", (self.leaf((), most), self.leaf((), most)))
        return joined(tuple(self.leaf((), most) for _ in range(size)))

    def cut(self, vector: Term, length: int, size: int) -> Term:
        """A slice; bounds are numbers or, now and then, the names of dims."""
        start = self.rng.randrange(length - size + 1)
        return Term("{}[{}:{}]", (vector,), (self.bound(start), self.bound(start + size)))

    def bound(self, number: int) -> Number:
        """A number, or the name of a dim that has it."""
        named = [name for name, size in self.dims.items() if size == number]
        return self.rng.choice(named) if named and self.rng.random() < 0.5 else number

    def applied(self, row: tuple[str, Operation], shape: Shape, most: Phase, depth: int) -> Term | None:
        """A function or operation of a result's shape on terms; None where it has no such result."""
        name, operation = row
        form = FORMS.get(name, "")
        if form is None:
            return None
        if name == "slice":
            return self.sliced(shape, most, depth)
        if name == "concat":
            return self.concat(shape, most, depth)
        numbers = self.rng.choice(NUMBERS.get(name, ((),)))
        given = tuple(float(str(n).strip("()")) for n in numbers)
        pools = signatures(operation, given, shape, self.shapes(most), self.shapes(Phase.STATIC))
        pools = [pool for pool in pools if FITS.get(name, _any)(pool)]
        if not pools:
            return None
        args = tuple(self.term(s, most, depth - 1) for s in self.rng.choice(pools))
        if not form:
            form = f"{name}({', '.join(['{}'] * (len(args) + len(numbers)))})"
        return Term(form, self.guarded(name, args, given), numbers)

    def guarded(self, name: str, args: tuple[Term, ...], numbers: tuple[float, ...]) -> tuple[Term, ...]:
        """The last argument made tame or positive where the operation needs it, as a rule."""
        whole = name == "power" and numbers[0] >= 0 and numbers[0] == int(numbers[0])
        forms = TAME if name in GROWING else POSITIVE if name in SINGULAR and not whole else ()
        if not forms or self.rng.random() < 0.1:
            return args
        return (*args[:-1], Term(self.rng.choice(forms), args[-1:]))

    def sliced(self, shape: Shape, most: Phase, depth: int) -> Term | None:
        """A slice of a term, or an element."""
        size = prod(shape)
        longer = [s for s in self.shapes(most) if len(s) == 1 and s[0] >= size]
        if len(shape) == 2 or not longer:
            return None
        length = self.rng.choice(longer)[0]
        vector = self.term((length,), most, depth - 1)
        return self.cut(vector, length, size) if shape else Term(ELEMENT, (vector,), (self.rng.randrange(length),))

    def concat(self, shape: Shape, most: Phase, depth: int) -> Term | None:
        """Two or more parts of any sizes."""
        if len(shape) != 1 or shape[0] < 2:
            return None
        left, parts = shape[0], list[Term]()
        while left:
            size = self.rng.randint(1, left if parts else left - 1)
            left -= size
            whole = () if size == 1 and self.rng.random() < 0.5 else (size,)
            parts.append(self.term(whole, most, depth - 1) if whole in self.shapes(most) else self.leaf(whole, most))
        return joined(tuple(parts))


def _any(shapes: tuple[Shape, ...]) -> bool:
    return True


BINARY = frozenset({"add", "subtract", "multiply", "divide", "matmul", "matmat", "dot", "max", "min"})
FITS = {"matmul": lambda shapes: len(shapes[1]) == 1, "matmat": lambda shapes: len(shapes[1]) == 2}
ROWS: tuple[tuple[str, Operation], ...] = (*OPERATIONS.items(), *COMPOSED.items())
assert set(FUNCTIONS) <= {name for name, _ in ROWS}, "a function that no row writes"


@cache
def signatures(
    operation: Operation,
    numbers: tuple[float, ...],
    result: Shape,
    shapes: tuple[Shape, ...],
    static: tuple[Shape, ...],
) -> list[tuple[Shape, ...]]:
    """The shapes of arguments that give a result, of those that there are; matrices are of parameters and constants."""
    usable = [s for s in shapes if len(s) < 2 or s in static]
    return [
        args
        for args in product(usable, repeat=2 if operation.name in BINARY else 1)
        if not isinstance(found := operation.shape(args, numbers), Misfit) and found == result
    ]


def joined(parts: tuple[Term, ...]) -> Term:
    """`concat` of terms."""
    return Term(f"concat({', '.join(['{}'] * len(parts))})", parts)


def total(terms: Iterable[Term]) -> Term:
    """A sum without brackets."""
    given = tuple(terms)
    return given[0] if len(given) == 1 else Term(" + ".join(["{}"] * len(given)), given)


def generate(seed: int, scales: tuple[str, ...] = SCALES) -> Network:
    """The network of a seed; `scales` are the classes of numbers that it may have."""
    return _Maker(Random(seed), scales).network()


class _Maker:
    """One network: sizes, arrays, equations, and the numbers at last."""

    def __init__(self, rng: Random, scales: tuple[str, ...]) -> None:
        self.rng = rng
        weights = {"ordinary": 9, "flat": 5, "wide": 2, "extreme": 4}
        (self.scales,) = rng.choices(scales, [weights[s] for s in scales])
        self.dtype = "float32" if rng.random() < 0.25 else "float64"
        names = ("n", "m", "k")[: rng.randint(1, 3)]
        self.dims = {name: rng.choice(SIZES) for name in names}
        self.recurrent = rng.random() < 0.85
        self.writer = Writer(rng, self.dims)
        self.equations: dict[str, Term] = {}

    def network(self) -> Network:
        """Declarations first, then equations in an order in which each uses those before it."""
        rng = self.rng
        constants = {"alpha": rng.choice((0.5, 0.1, 1.0, 2.0, 0.0))} if rng.random() < 0.4 else {}
        for name in constants:
            self.writer.add(name, (), Phase.STATIC)
        state = {f"a{i}": self.shape(0) for i in range(rng.choice((1, 1, 1, 2, 2, 3)) if self.recurrent else 0)}
        params = self.declared_params(state)
        inputs = {f"x{i}": self.shape(0) for i in range(rng.choice((0, 1, 1, 1, 2)))}
        for table, phase in ((params, Phase.STATIC), (inputs, Phase.INPUT)):
            for name, shape in table.items():
                self.writer.add(name, self.sized(shape), phase)
        self.writer.favourite = rng.choice((*params, ""))
        for i in range(rng.choice((0, 0, 0, 1, 2))):
            self.equation(f"s{i}", rng.choice(self.writer.shapes(Phase.STATIC)), Phase.STATIC)
        for name, shape in state.items():
            self.writer.add(f"{name}[t-1]", self.sized(shape), Phase.RECURRENT)
        self.step(state)
        self.objective()
        equations = list(self.equations.items())
        if rng.random() < 0.5:
            rng.shuffle(equations)
        inline = rng.random() < {"ordinary": 0.2, "flat": 0.7}.get(self.scales, 0.5)
        wrt = ["params", *(word for word in ("inputs", "state") if rng.random() < 0.4)]
        return Network(
            self.dims,
            constants,
            {name: Array(shape, {}, self.values(True) if inline else None) for name, shape in inputs.items()},
            {name: self.param(shape) for name, shape in params.items()},
            {name: self.initial(shape) for name, shape in state.items()},
            dict(equations),
            loss=self.loss,
            over_time=rng.choice(("sum", "sum", "mean", "last")) if self.recurrent else "sum",
            over_batch=rng.choice(("mean", "mean", "sum")),
            wrt=tuple(wrt),
            dtype=self.dtype,
            T=rng.randint(1, 12) if self.recurrent else 1,
            batch=rng.randint(1, 4),
            seed=rng.randint(0, 99),
            scales=self.scales,
        )

    def shape(self, matrices: float) -> tuple[str, ...]:
        """A declared shape; a matrix with that probability."""
        if self.rng.random() < matrices:
            return self.rng.choice(list(self.dims)), self.rng.choice(list(self.dims))
        return () if self.rng.random() < 0.2 else (self.rng.choice(list(self.dims)),)

    def sized(self, shape: tuple[str, ...]) -> Shape:
        return tuple(self.dims[d] for d in shape)

    def declared_params(self, state: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Some of any shape, and square matrices for states."""
        shapes = [self.shape(0.5) for _ in range(self.rng.randint(1, 4))]
        shapes += [(*shape, *shape) for shape in state.values() if shape and self.rng.random() < 0.6]
        return {f"p{i}": shape for i, shape in enumerate(shapes)}

    def equation(self, name: str, shape: Shape, most: Phase) -> None:
        """An equation of any term, sometimes of a name alone; what follows may use it."""
        depth = self.rng.choice((0, 1, 1, 2, 2, 3))
        term = self.writer.term(shape, most, depth)
        if not any(n.text == inner.form for n in self.writer.names for _, inner in term.walk()):
            term = self.writer.term(shape, most, depth)  # of numbers alone: only now and then
        self.define(name, term, shape, most)

    def define(self, name: str, term: Term, shape: Shape, phase: Phase) -> None:
        self.equations[name] = term
        self.writer.add(name, shape, phase)

    def step(self, state: Mapping[str, tuple[str, ...]]) -> None:
        """The new values of states, in any order, with equations between them."""
        rng, hidden = self.rng, 0
        for name in rng.sample(list(state), len(state)):
            if rng.random() < 0.35:
                self.equation(f"h{hidden}", self.vague(), Phase.RECURRENT)
                hidden += 1
            shape = self.sized(state[name])
            kind = rng.choices(list(STATES), list(STATES.values()))[0]
            self.define(name, getattr(self, kind)(name, shape), shape, Phase.RECURRENT)
        for _ in range(rng.choice((0, 1, 1, 2))):
            self.equation(f"h{hidden}", self.vague(), Phase.RECURRENT)
            hidden += 1

    def vague(self) -> Shape:
        return self.rng.choice([s for s in self.writer.shapes(Phase.RECURRENT) if len(s) < 2])

    def cell(self, name: str, shape: Shape) -> Term:
        """A squashed sum, with a product of the earlier state where a matrix fits."""
        rng = self.rng
        terms = [self.writer.term(shape, Phase.RECURRENT, rng.randint(0, 2))]
        square = [n.text for n in self.writer.names if len(n.shape) == 2 and n.shape == shape * 2]
        if square and rng.random() < 0.8:
            transposed = rng.random() < 0.15
            terms.insert(
                0, Term("{}.T @ {}" if transposed else "{} @ {}", (Term(rng.choice(square)), Term(f"{name}[t-1]")))
            )
        return Term(rng.choice(SQUASHED), (Term("({})", (total(terms),)) if len(terms) > 1 else terms[0],))

    def leaky(self, name: str, shape: Shape) -> Term:
        """A leak beside a cell."""
        return Term("{} * {}[t-1] + 0.5 * {}", (self.writer.leaf((), Phase.STATIC), Term(name), self.cell(name, shape)))

    def gated(self, name: str, shape: Shape) -> Term:
        """A gate between the earlier state and a cell."""
        gate = Term("sigmoid({})", (self.writer.term(shape, Phase.RECURRENT, 1),))
        return Term("{} * {}[t-1] + (1 - {}) * {}", (gate, Term(name), gate, self.cell(name, shape)))

    def static(self, name: str, shape: Shape) -> Term:
        """Parameters alone."""
        return self.writer.term(shape, Phase.STATIC, self.rng.randint(0, 3))

    def fed(self, name: str, shape: Shape) -> Term:
        """Inputs and parameters, no state."""
        return self.writer.term(shape, Phase.INPUT, self.rng.randint(0, 3))

    def free(self, name: str, shape: Shape) -> Term:
        """Anything, squashed."""
        return Term(self.rng.choice(SQUASHED), (self.writer.term(shape, Phase.RECURRENT, self.rng.randint(0, 3)),))

    def delay(self, name: str, shape: Shape) -> Term:
        """A name alone: a copy of another value of this step or the one before."""
        return self.writer.leaf(shape, Phase.RECURRENT)

    def growing(self, name: str, shape: Shape) -> Term:
        """A sum over time."""
        return Term("{}[t-1] + {}", (Term(name), self.writer.term(shape, Phase.RECURRENT, 1)))

    def objective(self) -> None:
        """A loss of some terms; now and then a scalar that there is already."""
        rng = self.rng
        scalars = [name for name in self.equations for n in self.writer.names if n.text == name and n.shape == ()]
        if scalars and rng.random() < 0.05:
            self.loss = rng.choice(scalars)
            return
        self.loss = rng.choice(("loss", "loss", "loss", "cost"))
        terms = [self.writer.term((), Phase.RECURRENT, rng.randint(1, 4)) for _ in range(rng.choice((0, 1, 1, 2)))]
        own = [n for n in self.writer.names if n.text in self.equations and n.phase is not Phase.STATIC]
        terms += [self.read(n) for n in own if rng.random() < 0.6]
        static = [n.text for n in self.writer.names if n.phase is Phase.STATIC]
        if not terms or rng.random() < 0.2:
            terms.append(Term("0.01 * sum({}**2)", (Term(rng.choice(static)),)))
        self.equations[self.loss] = total(terms)

    def read(self, name: Name) -> Term:
        """A scalar of an equation's value, through a matrix now and then."""
        rng, term = self.rng, Term(name.text)
        matrices = [n for n in self.writer.names if len(n.shape) == 2 and n.shape[1:] == name.shape]
        if matrices and rng.random() < 0.5:
            matrix = rng.choice(matrices)
            term = Term("({} @ {})", (Term(matrix.text), term))
        against = [n.text for n in self.writer.names if n.shape == name.shape and n.phase <= Phase.INPUT]
        forms = ["0.5 * sum({}**2)", "sum({})", "mean(cos({}))"]
        if against and not term.args:
            return Term(rng.choice(("0.5 * sum(({} - {})**2)", "dot({}, {})")), (term, Term(rng.choice(against))))
        return Term(rng.choice(forms), (term,))

    def param(self, shape: tuple[str, ...]) -> Array:
        """A parameter with its numbers; some are untrainable, some matrices have a density."""
        rng, options = self.rng, {}
        if rng.random() < 0.08:
            options["trainable"] = False
        if len(shape) == 2 and rng.random() < 0.12:
            return Array(shape, {**options, "density": rng.choice((0.1, 0.3, 0.6, 0.9)), **self.drawn(shape)})
        values = self.values(False)
        return Array(shape, options, values) if values else Array(shape, {**options, **self.drawn(shape)})

    def initial(self, shape: tuple[str, ...]) -> Array:
        """An initial state: zeros, drawn or given; some are trainable."""
        options: dict[str, object] = {"trainable": True} if self.rng.random() < 0.3 else {}
        if self.rng.random() < 0.4:
            return Array(shape, options)
        values = self.values(False)
        if values:
            return Array(shape, options, values)
        drawn = self.drawn(shape)
        if drawn.get("init") in ("normal", "uniform") and not options and self.rng.random() < 0.5:
            options["per_sample"] = True
        return Array(shape, {**options, **drawn})

    def drawn(self, shape: tuple[str, ...]) -> dict[str, object]:
        """Options of an array that is drawn."""
        rng, found = self.rng, dict[str, object]()
        if self.scales == "flat" or rng.random() < 0.15:
            found["init"] = rng.choice(("zeros", "ones"))
        elif rng.random() < 0.5:
            found["init"] = rng.choice(
                ("normal", "uniform", *(("orthogonal", "glorot", "identity") if len(shape) == 2 else ()))
            )
        if scale := self.scale():
            found.setdefault("init", "normal")
            found["scale"] = scale[0]
        return found

    def scale(self) -> tuple[float, ...]:
        """The scale of an array; () leaves the default."""
        rng = self.rng
        if self.scales == "wide":
            return (float(f"{10 ** rng.uniform(-6, 6):.2g}"),)
        if self.scales == "extreme" and rng.random() < 0.5:
            single = self.dtype == "float32"
            if rng.random() < 0.5:
                return (rng.choice(EXTREME_SINGLE if single else EXTREME),)
            least, most = (-44, 38) if single else (-308, 307)
            return (float(f"{10 ** rng.uniform(least, most):.2g}"),)
        return (rng.choice((0.3, 1.0, 0.7)),) if rng.random() < 0.5 else ()

    def values(self, needed: bool) -> tuple[float, ...] | None:
        """Numbers that fill an array, where it is not drawn or they are `needed`."""
        rng = self.rng
        if self.scales == "flat" and (needed or rng.random() < 0.6):
            return tuple(rng.choice(FLAT) for _ in range(rng.randint(1, 5)))
        if not needed and rng.random() < 0.7:
            return None
        scale = (*self.scale(), 1.0)[0]
        return tuple(
            scale * rng.choice((1.0, 1.0, -1.0, 0.5, 0.0, round(rng.uniform(-2, 2), 2)))
            for _ in range(rng.randint(1, 5))
        )


# Kinds of states, and how often each is taken.
STATES = {"cell": 8, "leaky": 3, "gated": 2, "static": 2, "fed": 2, "free": 3, "delay": 1, "growing": 1}
