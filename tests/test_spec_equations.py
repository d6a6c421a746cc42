"""The language of equations: its grammar, the grouping of chains, and refusals at their tokens."""

from __future__ import annotations

import operator
import random
import sys
from fractions import Fraction

import pytest
from spec_cases import MARK, unmarked, written

from bpcli.errors import Collector, Place
from bpcli.spec.equations import evaluate, parse
from bpcli.spec.specification import Binary, Call, Expr, Negate, Number, Ref

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def read(text: str, grammar: str = "real") -> tuple[Expr | None, list[tuple[str, int]]]:
    """The expression, and the codes of refusals with their offsets, first to last."""
    collector = Collector()
    expression = parse(text, lambda start, end: Place("", 1, start + 1, "", end - start), collector, grammar)
    return expression, sorted(((d.code, d.place.column - 1) for d in collector.diagnostics), key=lambda item: item[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", "1"),
        ("1.5e-3", "0.0015"),
        (".5", "0.5"),
        ("2.", "2.0"),
        ("1_000", "1000"),
        ("x", "x"),
        ("x[t]", "x"),
        ("a[t-1]", "a[t-1]"),
        ("a[ t - 1 ][1:n]", "a[t-1][1:n]"),
        ("-x**2", "(-(x ** 2))"),
        ("x**-2", "(x ** (-2))"),
        ("a**b**c", "(a ** (b ** c))"),
        ("a - b - c", "((a - b) - c)"),
        ("a - (b - c)", "(a - (b - c))"),
        ("a / b * c", "((a / b) * c)"),
        ("(a + b) * -c", "((a + b) * (-c))"),
        ("W @ a[t-1] + V @ x", "((W @ a[t-1]) + (V @ x))"),
        ("W.T @ (U @ v)", "(W.T @ (U @ v))"),
        ("(W - W.T) @ x", "((W - W.T) @ x)"),
        ("concat(u, v, 1)", "concat(u, v, 1)"),
        ("leaky_relu(v, 0.1)", "leaky_relu(v, 0.1)"),
        ("v[0]", "v[0]"),
        ("v[:]", "v[:]"),
        ("v[:n]", "v[:n]"),
        ("v[n:]", "v[n:]"),
        ("v[n:2*n]", "v[n:(2 * n)]"),
        ("v[(n+1)//2 - 1 : n]", "v[(((n + 1) // 2) - 1):n]"),
        ("tanh(W @ x)[1:2][0]", "tanh((W @ x))[1:2][0]"),
        ("(u + v)[0]", "(u + v)[0]"),
        ("a\n  +\tb\r\n+ c", "((a + b) + c)"),
        ("α * β", "(α * β)"),
        ("µ", "μ"),
        ("ﬁ", "fi"),
        ("match + case", "(match + case)"),
        ("((x))", "x"),
    ],
)
def test_what_is_read(text, expected):
    """Precedence, association and names are Python's, in normal form KC."""
    expression, refused = read(text)
    assert [] == refused
    assert expected == written(expression)


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("a[:▸, 1]", "not-in-language"),
        ("a ▸< b", "not-in-language"),
        ("a ▸== b", "not-in-language"),
        ("a ▸:= b", "not-in-language"),
        ("a ▸% b", "not-in-language"),
        ("a▸//b", "not-in-language"),
        ("a ▸& b", "not-in-language"),
        ("a▸^2", "not-in-language"),
        ("a▸²", "not-in-language"),
        ("a ▸× b", "not-in-language"),
        ("▸~a", "not-in-language"),
        ("▸'a'", "not-in-language"),
        ('f▸"{a}"', "not-in-language"),
        ("a ▸# note", "not-in-language"),
        ("a ▸\\\n + b", "not-in-language"),
        ("▸{a}", "not-in-language"),
        ("▸[a, b]", "not-in-language"),
        ("▸lambda * x", "not-in-language"),
        ("▸lambda x▸: x", "not-in-language"),
        ("a ▸if b ▸else c", "not-in-language not-in-language"),
        ("a ▸and ▸not b", "not-in-language not-in-language"),
        ("▸None + ▸True", "not-in-language not-in-language"),
        ("sum(x, axis▸=0)", "not-in-language"),
        ("sum(▸*x)", "not-in-language"),
        ("sum(▸**x)", "not-in-language"),
        ("(x ▸for x ▸in y)", "not-in-language not-in-language"),
        ("▸a, b", "not-in-language"),
        ("x.▸shape", "not-in-language"),
        ("x.▸__class__", "not-in-language"),
        ("np.▸tanh(x)", "not-in-language"),
        ("W.▸T()", "not-in-language"),
        ("▸2(x)", "not-in-language"),
        ("(▸a)(b)", "unknown-function"),
        ("▸+x", "not-in-language"),
        ("x + ▸+y", "not-in-language"),
        ("v[1:2:▸3]", "not-in-language"),
        ("W▸[1, 2]", "not-in-language"),
        ("a[▸t+1]", "not-in-language"),
        ("a[▸t*1]", "not-in-language"),
        ("a[1 - ▸t]", "not-in-language"),
        ("a[▸t-1:n]", "not-in-language"),
        ("a[1:n][▸t-1]", "not-in-language"),
        ("(a + b)[▸t-1]", "not-in-language"),
        ("a[▸t-2]", "known-limit"),
        ("a[▸t-n]", "known-limit"),
        ("▸t * x", "known-limit"),
        ("x + ▸conv(x, w)", "known-limit"),
        ("▸tanh + 1", "not-a-value"),
        ("▸tanhh(x)", "unknown-function"),
        ("▸open(x)", "unknown-function"),
        ("▸__import__(x)", "unknown-function"),
        ("1 + ▸dot(u)", "arity"),
        ("▸concat(u)", "arity"),
        ("▸tanh()", "arity"),
        ("▸tanh(x, y)", "arity"),
        ("v[▸-1]", "not-whole"),
        ("v[▸1.0]", "not-whole"),
        ("v[n▸/2]", "not-whole"),
        ("v[n▸**2]", "not-whole"),
        ("v[▸tanh(n):2]", "not-whole"),
        ("▸", "empty-equation"),
        ("▸   ", "empty-equation"),
        ("a ▸b", "equation-syntax"),
        ("2▸x", "equation-syntax"),
        ("0▸x10", "equation-syntax"),
        ("1▸j", "equation-syntax"),
        ("a ▸+", "equation-syntax"),
        ("▸* a", "equation-syntax"),
        ("a * ▸/ b", "equation-syntax"),
        ("sum▸(a", "equation-syntax"),
        ("a + b▸)", "equation-syntax"),
        ("(a + b▸]", "equation-syntax"),
        ("a▸)(b", "equation-syntax"),
        ("▸.", "equation-syntax"),
        ("v[▸]", "equation-syntax"),
        ("dot(u,▸,v)", "equation-syntax"),
        ("▸007", "bad-number"),
        ("▸1__0", "bad-number"),
        ("▸1e999 * x", "not-finite"),
        ("x * ▸" + "9" * 400, "not-finite"),
        ("x * ▸" + "9" * 5000, "not-finite"),
        ("α + β * ▸tahn(x)", "unknown-function"),
        ("α + β.▸Q", "not-in-language"),
        ("▸tahn(x) + ▸sinn(y) + x.▸q", "unknown-function unknown-function not-in-language"),
    ],
)
def test_what_is_refused(text, codes):
    """Each refusal has its code and stands at its token; all of one equation come together."""
    plain = text.replace(MARK, "")
    offsets = [at - index for index, at in enumerate(at for at, c in enumerate(text) if c == MARK)]
    expression, refused = read(plain)
    assert expression is None
    expected = codes.split()
    assert [(code, at) for code, at in zip(expected, offsets, strict=False)] == refused


@pytest.mark.parametrize(
    ("text", "legal"),
    [
        ("(" * 100 + "x" + ")" * 100, True),
        ("(" * 101 + "x" + ")" * 101, False),
        ("tanh(" * 100 + "x" + ")" * 100, True),
        ("tanh(" * 101 + "x" + ")" * 101, False),
        ("-" * 100 + "x", True),
        ("-" * 101 + "x", False),
        ("-" * 9_999 + "x", False),
        ("(" * 100 + "1" + " + 2) * x" * 100, True),
        ("x" + ".T" * 4_000, False),
        ("x" + "[0]" * 3_000, False),
        ("**".join("x" * 3_000), False),
        ("@".join("W" * 300), False),
        (" + ".join("x" * 2_500), True),
        (" / ".join("x" * 2_500), True),
        ("x" + " " * 9_999, True),
        ("x" + " " * 10_000, False),
    ],
)
def test_limits(text, legal):
    """Equations have 10,000 characters and nest 100 deep at most; a long sum is shallow, as read and as grouped."""
    expression, refused = read(text)
    assert legal == (expression is not None)
    assert legal == (not refused)
    if expression is not None:
        assert depth(expression) <= 200


def depth(expression: Expr) -> int:
    """The longest path from the root, found without recursion."""
    deepest, stack = 0, [(expression, 0)]
    while stack:
        node, level = stack.pop()
        deepest = max(deepest, level)
        match node:
            case Binary(_, left, right):
                stack += [(left, level + 1), (right, level + 1)]
            case Negate(operand):
                stack.append((operand, level + 1))
            case Call(_, args):
                stack += [(arg, level + 1) for arg in args]
    return deepest


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [2, 17, 18, 19, 300])
@pytest.mark.parametrize("operators", ["+-", "*/"])
def test_long_chains_keep_their_value(operators, count, seed):
    """A chain has the value that Python gives it, in exact fractions, however it is grouped."""
    rng = random.Random(seed)
    names = [f"v{i}" for i in range(count)]
    values = {name: Fraction(rng.randint(1, 9), rng.randint(1, 9)) for name in names}
    text = names[0] + "".join(f" {rng.choice(operators)} {name}" for name in names[1:])
    total = values[names[0]]
    for op, name in zip(text.split()[1::2], names[1:], strict=True):
        total = OPERATORS[op](total, values[name])
    assert total == value_of(read(text)[0], values)


def value_of(expression: Expr, values: dict[str, Fraction]) -> Fraction:
    """The exact value of a chain."""
    if isinstance(expression, Ref):
        return values[expression.name]
    return OPERATORS[expression.op](value_of(expression.left, values), value_of(expression.right, values))


def test_places_are_those_of_tokens():
    """An operator's place is the operator, a call's the function, a slice's the bracket, whatever the alphabet."""
    text, places = unmarked("(α) ▸* ((β)) ▸+ ▸tanh((▸γ) ▸@ ▸x)▸[0]")
    expression = read(text)[0]
    times, item = expression.left, expression.right
    call = item.vector
    product = call.args[0]
    nodes = [times, expression, call, product.left, product, product.right, item]
    assert [column for _, column in places] == [node.place.column for node in nodes]


def test_the_recursion_limit_is_left_as_it_was():
    """Reading an equation changes nothing for the rest of the process."""
    before = sys.getrecursionlimit()
    read("x +")
    read("+".join("x" * 2_000))
    assert before == sys.getrecursionlimit()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7), ("n", 4), ("3*n", 12), ("n//3 + 1", 2), ("(n - 1) * m", 15), ("2*n - m", 3), ("m - 2*n", -3)],
)
def test_integer_expressions(text, expected):
    """Dims and integers with + - * //."""
    expression, refused = read(text, "integer")
    assert [] == refused
    assert expected == evaluate(expression, {"n": 4, "m": 5}, Collector())


@pytest.mark.parametrize(
    ("text", "code", "column"),
    [
        ("n + k", "unknown-name", 5),
        ("n // (m - m)", "out-of-range", 3),
        ("n * " + "9" * 30, "out-of-range", 5),
        ("*".join(["n * n"] * 40), "out-of-range", None),
    ],
)
def test_integer_expressions_without_a_value(text, code, column):
    """Unknown dims, divisions by zero and integers beyond any size are refused."""
    collector = Collector()
    assert evaluate(read(text, "integer")[0], {"n": 4, "m": 5}, collector) is None
    assert code == collector.diagnostics[0].code
    assert column in (None, collector.diagnostics[0].place.column)


def test_refused_dims_are_not_refused_again():
    """A use of a refused dim is no second error."""
    collector = Collector()
    assert evaluate(read("n + k", "integer")[0], {"n": 4}, collector, {"k"}) is None
    assert [] == collector.diagnostics


def test_negative_zero_and_floats_are_numbers():
    """Literals keep their type: integers stay exact."""
    assert int is type(read("3")[0].value)
    assert float is type(read("3.0")[0].value)
    assert isinstance(read("3")[0], Number)
