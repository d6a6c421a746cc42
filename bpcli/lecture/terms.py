"""Expressions of a derivation: small trees of names and operations, simplified as they are built, that have values.

A vector is a column; vectors multiply entry by entry (`times`), and a scalar multiplies anything. Matrices of entries
that vary, such as `diag(v)`, occur in Jacobians alone. A value has a leading axis of samples, of length one where all
samples share it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bpcli.graph.operations import Shape


@dataclass(frozen=True)
class Symbol:
    """A name as it is written: `form` says how, `parts` are names of the spec; `lag` is its step relative to t.

    `about` are the names that an entry of a third-order tensor is written with, ∂a_i/∂W_jk.

    Forms: "name" of one part, "delta" ∂L/∂part, "partial" ∂part/∂part, "jacobian" a block of J between two states,
    "immediate" one of M̄ and "influence" one of M between a state and a parameter, "loss" q(t), "credit" c(t), "direct"
    ∂l(t)/∂part, "gradient" ∂L/∂part. Of a network with one state its name is left out.
    """

    form: str
    parts: tuple[str, ...]
    lag: int = 0
    about: tuple[str, ...] = ()


@dataclass(frozen=True)
class Term:
    """One node of an expression.

    `kind` is a key of `VALUES` in `term_values`; `key` is that of a name's value; `numbers` are the value of a number,
    the exponent of a power, the bounds of a slice. `function` is an operation of the network's table.
    """

    kind: str
    args: tuple[Term, ...] = ()
    shape: Shape = ()
    symbol: Symbol | None = None
    key: Hashable = None
    numbers: tuple[float, ...] = ()
    function: str = ""

    @property
    def zero(self) -> bool:
        """Whether this is 0, in every entry."""
        one = self.args[0] if self.kind == "full" else self
        return one.kind == "number" and one.numbers[0] == 0.0

    @property
    def one(self) -> bool:
        """Whether this is the number 1."""
        return self.kind == "number" and self.numbers[0] == 1.0


def number(value: float) -> Term:
    """A number."""
    return Term("number", numbers=(float(value),))


ZERO, ONE = number(0.0), number(1.0)


def name(symbol: Symbol, key: Hashable, shape: Shape) -> Term:
    """A name whose value stands under `key`, at the step that the symbol's lag says."""
    return Term("name", (), shape, symbol, key)


def full(value: Term, shape: Shape) -> Term:
    """An array whose entries all equal a scalar; one of that shape already stays as it is."""
    if value.shape == shape:
        return value
    if value.kind == "full":
        value = value.args[0]
    return Term("full", (value,), shape)


def _flat(kind: str, terms: Iterable[Term]) -> list[Term]:
    return [part for term in terms for part in (term.args if term.kind == kind else (term,))]


def _widest(terms: Sequence[Term]) -> Shape:
    return max((term.shape for term in terms), key=lambda shape: (math.prod(shape), len(shape)))


def add(*terms: Term) -> Term:
    """A sum; numbers are added to one."""
    shape = _widest(terms)
    parts = _flat("sum", (term.args[0] if term.kind == "full" else term for term in terms))
    total = sum(part.numbers[0] for part in parts if part.kind == "number")
    rest = [part for part in parts if part.kind != "number"]
    if not rest:
        return full(number(total), shape)
    if total:
        rest = [number(total), *rest]
    return full(rest[0] if len(rest) == 1 else Term("sum", tuple(rest), _widest(rest)), shape)


def factors(term: Term) -> tuple[float, list[Term]]:
    """The number in front of a product, and its other factors."""
    if term.kind == "number":
        return term.numbers[0], []
    if term.kind != "product":
        return 1.0, [term]
    first, *rest = term.args
    return (first.numbers[0], rest) if first.kind == "number" else (1.0, list(term.args))


def times(*terms: Term) -> Term:
    """A product entry by entry: the number first, then scalars, then the rest in order."""
    shape = _widest(terms)
    parts = [part.args[0] if part.kind == "full" else part for term in terms for part in _flat("product", [term])]
    for minus, other in (parts, parts[::-1]) if len(parts) == 2 else ():
        if minus.kind == "number" and minus.numbers[0] == -1.0 and _difference(other):
            return full(negate(other), shape)
    coefficient, rest = 1.0, list[Term]()
    for part in parts:
        value, others = factors(part)
        coefficient *= value
        rest += others
    if coefficient == 0.0:
        return full(ZERO, shape)
    coefficient, rest = _over_one(coefficient, rest)
    rest.sort(key=lambda part: part.shape != ())
    if coefficient != 1.0 or not rest:
        rest = [number(coefficient), *rest]
    found = rest[0] if len(rest) == 1 else Term("product", tuple(rest), _widest(rest))
    return full(found, shape) if found.shape == () and shape != () else found


def _over_one(coefficient: float, parts: list[Term]) -> tuple[float, list[Term]]:
    """A number in front and factors with c/v among them: one quotient with the next factor of its shape above v."""
    for part in parts:
        if part.kind != "quotient" or part.args[0].kind != "number" or (len(parts) == 1 and abs(coefficient) == 1.0):
            continue
        coefficient *= part.args[0].numbers[0]
        rest = [other for other in parts if other is not part]
        same = [other for other in rest if other.shape == part.shape and other.kind != "quotient"]
        above, sign = number(abs(coefficient)), -1.0 if coefficient < 0 else 1.0
        if same:
            rest.remove(same[-1])
            above, sign = same[-1], coefficient
        return sign, [*rest, Term("quotient", (above, part.args[1]), part.shape)]
    return coefficient, parts


def _difference(term: Term) -> bool:
    return term.kind == "sum" and any(factors(part)[0] < 0 for part in term.args)


def negate(term: Term) -> Term:
    """-term; of a difference the difference the other way round."""
    if _difference(term):
        parts = [times(number(-1.0), part) for part in term.args]
        return add(*sorted(parts, key=lambda part: factors(part)[0] < 0))
    return times(number(-1.0), term)


def subtract(left: Term, right: Term) -> Term:
    """left - right."""
    return add(left, negate(right))


def divide(above: Term, below: Term) -> Term:
    """A quotient entry by entry; numbers come to the front."""
    shape = _widest((above, below))
    above, below = (term.args[0] if term.kind == "full" else term for term in (above, below))
    (over, some), (under, others) = factors(above), factors(below)
    if under == 0.0 or over == 0.0 or not others:
        return times(number(over / under) if under else Term("quotient", (ONE, ZERO)), full(times(ONE, *some), shape))
    top, bottom = times(ONE, *some), times(ONE, *others)
    if top.one and over / under > 0:
        return full(Term("quotient", (number(over / under), bottom), bottom.shape), shape)
    found = Term("quotient", (top, bottom), _widest((top, bottom)))
    return full(times(number(over / under), found), shape)


def power(term: Term, exponent: float) -> Term:
    """term to a fixed power, entry by entry."""
    if exponent == 0.0:
        return full(ONE, term.shape)
    return term if exponent == 1.0 else Term("power", (term,), term.shape, numbers=(exponent,))


def call(function: str, *args: Term, shape: Shape | None = None, numbers: tuple[float, ...] = ()) -> Term:
    """A function of the network's table, or one of `FUNCTIONS`."""
    return Term("call", args, args[0].shape if shape is None else shape, function=function, numbers=numbers)


def total(term: Term) -> Term:
    """The sum of all entries."""
    coefficient, rest = factors(term)
    if term.shape == ():
        return term
    if term.kind == "full":
        return times(number(math.prod(term.shape)), term.args[0])
    scalars = [part for part in rest if part.shape == ()]
    arrays = [part for part in rest if part.shape != ()]
    if len(arrays) == 2 and len(term.shape) == 1:
        return times(number(coefficient), *scalars, dot(arrays[0], arrays[1]))
    return times(number(coefficient), *scalars, Term("total", (times(*arrays),)))


def dot(u: Term, v: Term) -> Term:
    """Sum of u * v."""
    if u.shape == v.shape == ():
        return times(u, v)
    if "full" in (u.kind, v.kind) or u.shape == () or v.shape == ():
        return total(times(u, v))
    (a, us), (b, vs) = factors(u), factors(v)
    scalars = [part for part in (*us, *vs) if part.shape == ()]
    left, right = (times(ONE, *(p for p in parts if p.shape != ())) for parts in (us, vs))
    return times(number(a * b), *scalars, Term("dot", (left, right)))


def shaped(term: Term, shape: Shape) -> Term:
    """The same entries in another shape, which notation leaves out."""
    return term if term.shape == shape else Term("shaped", (term,), shape)


def transpose(matrix: Term) -> Term:
    """A matrix transposed; that of c vᵀ is v cᵀ."""
    if matrix.kind == "transpose":
        return matrix.args[0]
    if matrix.kind == "outer":
        return Term("outer", matrix.args[::-1], matrix.shape[::-1])
    if matrix.kind in ("diag", "eye"):
        return matrix
    return Term("transpose", (matrix,), matrix.shape[::-1])


def apply_matrix(matrix: Term, v: Term) -> Term:
    """A matrix times a vector; a number in front of the vector comes to the front."""
    coefficient, rest = factors(v)
    scalars = [part for part in rest if part.shape == ()]
    arrays = [part for part in rest if part.shape != ()]
    vector = times(*arrays) if arrays else v
    if not arrays:
        coefficient, scalars = 1.0, []
    found = Term("apply", (matrix, vector), matrix.shape[:1])
    return times(number(coefficient), *scalars, found)


def outer(u: Term, v: Term) -> Term:
    """u vᵀ."""
    coefficient, rest = factors(u)
    scalars = [part for part in rest if part.shape == ()]
    arrays = [part for part in rest if part.shape != ()]
    if not arrays:
        return Term("outer", (full(u, u.shape), v), (*u.shape, *v.shape))
    found = Term("outer", (times(*arrays), v), (*u.shape, *v.shape))
    return times(number(coefficient), *scalars, found)


def eye(size: int) -> Term:
    """The identity."""
    return Term("eye", (), (size, size))


def diag(v: Term, size: int) -> Term:
    """The diagonal matrix of a vector, or a scalar times the identity."""
    if v.kind == "full":
        v = v.args[0]
    if v.shape == ():
        return times(v, eye(size))
    coefficient, rest = factors(v)
    scalars = [part for part in rest if part.shape == ()]
    arrays = times(ONE, *(part for part in rest if part.shape != ()))
    return times(number(coefficient), *scalars, Term("diag", (arrays,), (size, size)))


def column(v: Term) -> Term:
    """A vector as a matrix of one column."""
    return Term("column", (v,), (*v.shape, 1))


def row(v: Term) -> Term:
    """A vector as a matrix of one row."""
    return Term("row", (v,), (1, *v.shape))


def chain(*matrices: Term) -> Term:
    """A product of matrices: scalars to the front, identities left out, neighbouring diagonals joined."""
    shape = (matrices[0].shape[0], matrices[-1].shape[1])
    scalars, rest = list[Term](), list[Term]()
    for matrix in matrices:
        if matrix.zero:
            return full(ZERO, shape)
        value, parts = factors(matrix)
        own = [part for part in parts if len(part.shape) == 2]
        scalars += [number(value), *(part for part in parts if part.shape == ())]
        for part in _flat("chain", own):
            if part.kind == "eye":
                continue
            before = rest[-1] if rest else None
            if before is not None and before.kind == "diag" and part.kind in ("diag", "column"):
                v = times(before.args[0], part.args[0])
                rest[-1] = Term(part.kind, (v,), part.shape)
            elif before is not None and before.kind == "row" and part.kind == "column":
                scalars.append(dot(before.args[0], part.args[0]))
                rest.pop()
            elif before is not None and before.kind == "row" and part.kind == "diag":
                rest[-1] = row(times(before.args[0], part.args[0]))
            else:
                rest.append(part)
    if not rest:
        return times(*scalars, eye(shape[0]))
    found = rest[0] if len(rest) == 1 else Term("chain", tuple(rest), shape)
    return times(*scalars, found)


def add_matrices(left: Term, right: Term) -> Term:
    """A sum of matrices, diagonal ones joined."""
    if left.zero or right.zero:
        return right if left.zero else left
    found = list[Term]()
    for matrix in _flat("sum", (left, right)):
        v = diagonal(matrix)
        at = next((k for k, other in enumerate(found) if v is not None and diagonal(other) is not None), None)
        if at is None or v is None:
            found.append(matrix)
            continue
        both = sorted((diagonal(found[at]) or ZERO, v), key=lambda term: factors(term)[0] < 0)
        found[at] = diag(add(*both), matrix.shape[0])
    return add(*found)


def diagonal(matrix: Term) -> Term | None:
    """The diagonal of a diagonal matrix, None of any other."""
    coefficient, rest = factors(matrix)
    last = rest[-1] if rest else None
    if last is None or last.kind not in ("diag", "eye"):
        return None
    return times(number(coefficient), *rest[:-1], *(last.args or (ONE,)))


def collect(terms: Sequence[Term]) -> Term:
    """The sum of contributions, a factor that all of them share taken out: -c h + c k is c (k - h)."""
    present = sorted((term for term in terms if not term.zero), key=lambda term: factors(term)[0] < 0)
    if len(present) < 2:
        return present[0] if present else ZERO
    split = [factors(term) for term in present]
    shape = _widest(present)
    for shared in split[0][1]:
        if shared.shape != () and all(shared in rest for _, rest in split):
            others = []
            for coefficient, rest in split:
                left = list(rest)
                left.remove(shared)
                others.append(times(number(coefficient), *left))
            others.sort(key=lambda term: factors(term)[0] < 0)
            return full(times(shared, add(*others)), shape)
    return add(*present)


def shifted(term: Term, previous: Mapping[Hashable, Term]) -> Term:
    """The term one step later; `previous` maps the key of a state's value at t-1 to its name at t."""
    if term.kind == "name" and term.symbol is not None:
        if term.key in previous:
            return previous[term.key]
        return replace(term, symbol=replace(term.symbol, lag=term.symbol.lag + 1)) if _moves(term) else term
    return replace(term, args=tuple(shifted(arg, previous) for arg in term.args))


STILL = "still"
"""Marks the keys of values that are the same at all steps."""


def _moves(term: Term) -> bool:
    return not (isinstance(term.key, tuple) and term.key and term.key[0] == STILL)


def size_of(term: Term) -> int:
    """The number of nodes of the tree."""
    return 1 + sum(size_of(arg) for arg in term.args)


def names_in(term: Term) -> set[Hashable]:
    """The keys of all names in a term."""
    own = {term.key} if term.kind == "name" else set()
    return own.union(*(names_in(arg) for arg in term.args)) if term.args else own
