"""Terms as formulas, in matrix notation and in index notation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from bpcli.lecture.styles import LATEX, MATH, TEXT, Style
from bpcli.lecture.terms import Symbol, Term, factors, negate

_LAGGED = re.compile(r"^(.*)\[(t-1|0)\]$")


def lag_text(lag: int) -> str:
    """t, t-1 or t+1."""
    return f"t{lag:+d}" if lag else ""


SUM, SIGMA, PRODUCT, POWER, ATOM = range(5)
Piece = tuple[str, int]
"""A formula and how tightly it binds."""
_MARKS = {
    "delta": "δ",
    "loss": "q",
    "credit": "c",
    "jacobian": "J",
    "immediate": "M̄",
    "influence": "M",
    "kept": "g",
}
_WORDS = {"sigmoid": "σ", "stop_gradient": "stop", "log_softmax": "log softmax"}


@dataclass
class Writer:
    """Terms in one style; `letters` are those for indices, of which `free` are not summed in the formula at hand."""

    style: Style
    letters: str = "ijklmnpqrsuvw"
    free: str = ""

    def claim(self, left: Term, right: Term, middle: Term | None = None) -> list[str]:
        """The sides of an equation in matrix notation."""
        return [self.term(part)[0] for part in (left, middle, right) if part is not None]

    def entries(self, left: Term, right: Term, letters: tuple[str, ...]) -> list[str]:
        """The sides of an equation in index notation."""
        letters = tuple(self.letters["ijk".index(letter)] for letter in letters)
        self.free = "".join(letters)
        if left.symbol is not None and left.symbol.form == "immediate":
            first, others = letters[0], "".join(letters[1:])
            assert left.symbol.about
            sides = (self._lone(left.symbol.about[0], first), self._lone(left.symbol.about[1], others))
            head = self._partial(*sides)
            return [head, self.entry(right, (first, others or "1") if len(letters) < 3 else letters)[0]]
        return [self.entry(left, letters)[0], self.entry(right, letters)[0]]

    def _lone(self, part: str, entry: str) -> str:
        match = _LAGGED.match(part)
        base, lag = match.groups() if match else (part, "")
        return self.style.plain(base, lag, entry)

    def _partial(self, above: str, below: str) -> str:
        s = self.style
        return s.fraction(s.symbol("∂") + above, s.symbol("∂") + below)

    def symbol(self, symbol: Symbol, entry: str = "") -> str:
        """A name."""
        s, parts, lag = self.style, symbol.parts, lag_text(symbol.lag)
        if symbol.form == "name":
            match = _LAGGED.match(parts[0])
            base, own = match.groups() if match else (parts[0], lag)
            return s.plain(base, own, entry)
        if symbol.form == "partial":
            found = self._partial(self._lone(parts[0], ""), self._lone(parts[1], ""))
        elif symbol.form == "gradient":
            below = self._lone(parts[0], entry)
            return self._partial(s.word("L"), below)
        elif symbol.form == "direct":
            found, entry = self._partial(s.word("l"), self._lone(parts[0], entry)), ""
        else:
            comma = "," if s is TEXT or s is LATEX else "<mo>,</mo>"
            below = comma.join(self._lone(part, "") for part in parts)
            return self._lagged(_MARKS[symbol.form], below, lag, entry)
        if lag:
            found = s.bracket(found) + (f"[{lag}]" if s is TEXT else "")
            found = found if s is TEXT else s.sup(found, f"({lag})")
        return s.sub(s.bracket(found), entry) if entry else found

    def _lagged(self, mark: str, below: str, lag: str, entry: str) -> str:
        s = self.style
        if not lag:
            return s.marked(mark, below, entry)
        if s is TEXT:
            return f"{s.marked(mark, below, entry)}[{lag}]"
        return s.marked(f"{mark}[{lag}]", below, entry)

    def number(self, value: float) -> str:
        """Six digits."""
        return f"{value:g}" if self.style is not MATH else f"<mn>{value:g}</mn>"

    def wrapped(self, piece: Piece, level: int) -> str:
        """In brackets where it binds less tightly than it has to."""
        return piece[0] if piece[1] >= level else self.style.bracket(piece[0])

    def term(self, term: Term) -> Piece:
        """Matrix notation."""
        s, args = self.style, term.args
        match term.kind:
            case "name":
                assert term.symbol is not None
                tight = term.symbol.form not in ("partial", "gradient") or s is not TEXT
                return self.symbol(term.symbol), ATOM if tight else POWER
            case "number":
                return self.signed(term.numbers[0])
            case "sum":
                return self.sum([self.term(arg) for arg in args])
            case "product":
                return self.product(term, self.term, s.times)
            case "full" | "shaped":
                return self.full(term)
            case "next":
                return self.term(args[0])
            case "apply" | "matmat" | "chain":
                parts = [self.wrapped(self.term(arg), POWER if arg.kind == "product" else PRODUCT) for arg in args]
                return s.dot.join(parts), PRODUCT
            case "outer":
                left, right = self.wrapped(self.term(args[0]), POWER), self.wrapped(self.term(args[1]), ATOM)
                return f"{left}{s.dot}{s.sup(right, 'T')}", PRODUCT
            case "dot":
                left, right = self.wrapped(self.term(args[0]), ATOM), self.wrapped(self.term(args[1]), POWER)
                return f"{s.sup(left, 'T')}{s.dot}{right}", PRODUCT
            case "transpose":
                return s.sup(self.wrapped(self.term(args[0]), ATOM), "T"), POWER
            case "row":
                return s.sup(self.wrapped(self.term(args[0]), ATOM), "T"), POWER
            case "column":
                return self.term(args[0])
            case "third":
                left, right = (self.wrapped(self.term(arg), POWER) for arg in args)
                return left + (" ⊗ " if s is TEXT else s.symbol("⊗")) + right, PRODUCT
            case "total":
                return s.sigma("", self.wrapped(self.term(args[0]), PRODUCT)), SIGMA
            case "timesum":
                return s.sigma("t", self.wrapped(self.term(args[0]), SIGMA)), SIGMA
            case "paths":
                return self.paths(term), SIGMA
            case "first":
                return s.bracket(self.term(args[0])[0], "[]") + s.symbol(" at t = 1"), ATOM
            case _:
                return self.common(term, self.term)

    def paths(self, term: Term) -> str:
        """Σ over kept pairs of M̄(s)ᵀ J(s+1)ᵀ ⋯ J(t)ᵀ q(t)."""
        s, part = self.style, self._lone(term.symbol.parts[0] if term.symbol else "", "")
        lagged = [self._lagged(mark, below, lag, "") for mark, below, lag in
                  (("M̄", part, "s"), ("J", "", "s+1"), ("J", "", "t"), ("q", "", "t"))]  # fmt: skip
        steps = [s.sup(lagged[0], "T"), s.sup(lagged[1], "T"), s.symbol("⋯"), s.sup(lagged[2], "T"), lagged[3]]
        return s.sigma("t,s", s.dot.join(steps))

    def full(self, term: Term) -> Piece:
        """A scalar in every entry: the ones are written where they stand alone, else the scalar."""
        inner = term.args[0]
        if term.kind == "shaped" or not term.shape:
            return self.term(inner)
        if factors(inner)[0] < 0:
            minus = self.style.symbol("−")
            return minus + self.wrapped(self.full(replace(term, args=(negate(inner),))), PRODUCT), SUM
        one = self.style.word("1")
        return (one, ATOM) if inner.one else (f"{self.wrapped(self.term(inner), POWER)}{self.style.dot}{one}", PRODUCT)

    def signed(self, value: float) -> Piece:
        """A number; a negative one binds like a sum."""
        if value < 0:
            return self.style.symbol("−") + self.number(-value), SUM
        return self.number(value), ATOM

    def sum(self, pieces: Sequence[Piece]) -> Piece:
        """Terms with their signs."""
        s, text = self.style, pieces[0][0]
        minus = s.symbol("−")
        space = "" if s is MATH else " "
        for piece, _ in pieces[1:]:
            if piece.startswith(minus):
                text += f"{space}{minus}{space}{piece[len(minus) :]}"
            else:
                text += f"{space}{s.symbol('+')}{space}{piece}"
        return text, SUM

    def product(self, term: Term, write: _Write, between: str) -> Piece:
        """A number and scalars in front, side by side; then the factors entry by entry."""
        s = self.style
        coefficient, rest = factors(term)
        sign = s.symbol("−") if coefficient < 0 else ""
        lead = [] if abs(coefficient) == 1.0 else [self.number(abs(coefficient))]
        scalars = [self._factor(p, write(p), p is rest[-1]) for p in rest if p.shape == ()]
        arrays = [p for p in rest if p.shape != ()]
        if len(arrays) > 1:
            tight = [POWER if between == s.times or p.kind == "quotient" else PRODUCT for p in arrays[:-1]]
            inner = [self.wrapped(write(p), level) for p, level in zip(arrays[:-1], tight, strict=True)]
            inner.append(self.wrapped(write(arrays[-1]), POWER if between == s.times else SIGMA))
        else:
            inner = [self._factor(p, write(p), True) for p in arrays]
        body = s.dot.join([*lead, *scalars, *([between.join(inner)] if inner else [])])
        level = PRODUCT if not rest or write(rest[-1])[1] != SIGMA or body.endswith(")") else SIGMA
        return sign + body, SUM if sign else level

    def _factor(self, term: Term, piece: Piece, last: bool) -> str:
        """One of several factors side by side; a sum over an index may stand last without brackets."""
        tight = POWER if term.kind in ("dot", "quotient") and not last else PRODUCT
        return self.wrapped(piece, SIGMA if last else tight)

    def common(self, term: Term, write: _Write) -> Piece:
        """The kinds that look alike in both notations, given how to write an argument."""
        s, args = self.style, term.args
        match term.kind:
            case "quotient":
                if s is TEXT:
                    return f"{self.wrapped(write(args[0]), PRODUCT)} / {self.wrapped(write(args[1]), ATOM)}", PRODUCT
                return s.fraction(write(args[0])[0], write(args[1])[0]), POWER
            case "power":
                return s.sup(self.wrapped(write(args[0]), ATOM), f"{term.numbers[0]:g}"), POWER
            case "call" if term.function == "positive":
                above = " > " if s is TEXT else s.symbol(">")
                return s.bracket(write(args[0])[0] + above + self.number(0.0), "[]"), ATOM
            case "call":
                comma = ", " if s is not MATH else "<mo>,</mo>"
                numbers = [self.number(n) for n in term.numbers]
                inner = comma.join([*(write(arg)[0] for arg in args), *numbers])
                return s.word(_WORDS.get(term.function, term.function)) + s.bracket(inner), ATOM
            case "diag":
                return s.word("diag") + s.bracket(write(args[0])[0]), ATOM
            case "eye":
                return s.word("I"), ATOM
            case "slice":
                start, stop = (int(n) for n in term.numbers)
                return s.sub(self.wrapped(write(args[0]), ATOM), _range(start, stop)), ATOM
            case "select":
                start, stop = (int(n) for n in term.numbers)
                return s.sub(s.word("I"), _range(start, stop)), ATOM
            case "pad":
                start, stop = (int(n) for n in term.numbers)
                return s.word("pad") + s.sub("", _range(start, stop)) + s.bracket(write(args[0])[0]), ATOM
        raise AssertionError(f"no notation for {term.kind}")

    def entry(self, term: Term, at: tuple[str, ...], depth: int = 0) -> Piece:
        """Index notation: the entry `at` of a term."""
        s, args = self.style, term.args
        k = next(letter for letter in self.fresh(depth) if letter not in at)

        def write(arg: Term) -> Piece:
            return self.entry(arg, at if arg.shape else (), depth)

        match term.kind:
            case "name":
                assert term.symbol is not None
                loose = term.symbol.form in ("partial", "gradient") and s is TEXT and not at
                return self.symbol(term.symbol, "".join(at)), POWER if loose else ATOM
            case "number":
                return self.signed(term.numbers[0])
            case "full":
                return self.entry(args[0], (), depth)
            case "shaped" | "next":
                return self.entry(args[0], at, depth)
            case "sum":
                return self.sum([write(arg) for arg in args])
            case "product":
                return self.product(term, write, s.dot)
            case "outer":
                pair = (self.entry(args[0], at[:1], depth), self.entry(args[1], at[1:], depth))
                return s.dot.join(self.wrapped(p, PRODUCT) for p in pair), PRODUCT
            case "transpose":
                return self.entry(args[0], at[::-1], depth)
            case "apply":
                return self.contracted([(args[0], (at[0], k)), (args[1], (k,))], k, depth)
            case "matmat" | "chain":
                return self.chained(args, at, depth)
            case "dot":
                return self.contracted([(args[0], (k,)), (args[1], (k,))], k, depth)
            case "total":
                letters = tuple(self.fresh(depth))[: len(args[0].shape)]
                inner = self.entry(args[0], letters, depth + len(letters))
                return s.sigma("".join(letters), self.wrapped(inner, SIGMA)), SIGMA
            case "timesum":
                return s.sigma("t", self.wrapped(self.entry(args[0], at, depth), SIGMA)), SIGMA
            case "diag" | "eye":
                return self.delta(term, at, depth)
            case "row" | "column":
                own = at[1:] if term.kind == "row" else at[:1]
                return self.entry(args[0], own if args[0].shape else (), depth)
            case "third":
                row, other = (at[2], at[1]) if term.numbers else (at[1], at[2])
                D, v = self.entry(args[0], (at[0], row), depth), self.entry(args[1], (other,), depth)
                pair = (v, D) if D[1] == SIGMA else (D, v)
                return self.wrapped(pair[0], PRODUCT) + s.dot + self.wrapped(pair[1], SIGMA), min(pair[1][1], PRODUCT)
            case "call" if not _entrywise(term):
                inner = self.term(term)
                return (s.sub(inner[0], "".join(at)) if at else inner[0]), ATOM
            case "slice" | "pad" | "select":
                return s.sub(s.bracket(self.term(term)[0]), "".join(at)), ATOM
            case _:
                return self.common(term, write)

    def fresh(self, depth: int) -> list[str]:
        """Letters for sums, those of outer sums last."""
        letters = [letter for letter in self.letters[2:] if letter not in self.free]
        start = depth % len(letters)
        return letters[start:] + letters[:start]

    def contracted(self, parts: Sequence[tuple[Term, tuple[str, ...]]], k: str, depth: int) -> Piece:
        """A sum over one index of a product of entries."""
        pieces = [self.entry(term, at, depth + 1) for term, at in parts]
        texts = [*(self.wrapped(p, PRODUCT) for p in pieces[:-1]), self.wrapped(pieces[-1], SIGMA)]
        return self.style.sigma(k, self.style.dot.join(texts)), SIGMA

    def chained(self, matrices: Sequence[Term], at: tuple[str, ...], depth: int) -> Piece:
        """A product of matrices by entries; diagonal ones need no sum."""
        s, left, parts, sums, used = self.style, at[0], list[str](), list[str](), set(at)
        for number, matrix in enumerate(matrices):
            last = number == len(matrices) - 1
            if matrix.kind == "diag" and not last:
                parts.append(self.wrapped(self.entry(matrix.args[0], (left,), depth + 1), PRODUCT))
                continue
            right = at[1] if last else next(letter for letter in self.fresh(depth) if letter not in used)
            if not last and all(m.kind == "diag" for m in matrices[number + 1 :]):
                right = at[1]
            elif not last:
                used.add(right)
                sums.append(right)
            if matrix.kind == "diag" and left == right:
                parts.append(self.wrapped(self.entry(matrix.args[0], (left,), depth + 1), PRODUCT))
            else:
                parts.append(self.wrapped(self.entry(matrix, (left, right), depth + 1), PRODUCT))
            left = right
        body = s.dot.join(parts)
        return (s.sigma("".join(sums), body), SIGMA) if sums else (body, PRODUCT)

    def delta(self, term: Term, at: tuple[str, ...], depth: int) -> Piece:
        """An entry of a diagonal matrix: v_i δ_ij."""
        s = self.style
        kronecker = s.sub(s.word("δ"), "".join(at))
        if term.kind == "eye":
            return kronecker, ATOM
        return f"{self.wrapped(self.entry(term.args[0], at[:1], depth), PRODUCT)}{s.dot}{kronecker}", PRODUCT


class _Write(Protocol):
    def __call__(self, term: Term, /) -> Piece: ...


def _entrywise(term: Term) -> bool:
    return term.function not in ("softmax", "log_softmax", "logsumexp", "concat")


def _range(start: int, stop: int) -> str:
    return f"{start}:{stop}" if stop - start > 1 else str(start)
