"""Every refusal of the graph, with its line and column: `¦` marks where the message must point."""

from __future__ import annotations

from pathlib import Path

import pytest
from graph_cases import graph_of, with_arrays

MARK = "¦"


def _refused(tmp_path: Path, marked: str) -> tuple[list[str], list[tuple[int, int]], list[str]]:
    """Codes, places and texts of the refusals of a spec, with the marks taken out."""
    graph, refused = graph_of(tmp_path, marked.replace(MARK, ""))
    assert graph is None
    places = [(d.place.line, d.place.column) for d in refused if d.place]
    return [d.code for d in refused], places, [f"{d.what}; {d.help}" for d in refused]


def _marks(marked: str) -> list[tuple[int, int]]:
    lines = enumerate(marked.splitlines(), 1)
    return [
        (number, len(piece) + 1)
        for number, line in lines
        for cut in range(1, line.count(MARK) + 1)
        for piece in ["".join(line.split(MARK)[:cut])]
    ]


@pytest.mark.parametrize(
    ("equation", "code", "words"),
    [
        ("¦xx * 2", "unknown-name", 'did you mean "x"?'),
        ("¦alpha2 * x", "unknown-name", 'did you mean "alpha"?'),
        ("W @ ¦A[t-1]", "unknown-name", "known: a"),
        ("¦x[t-1] + b", "lag", 'only states have an earlier value, and "x" is not a state; states: a'),
        ("¦n[t-1] * b", "lag", '"n" is not a state'),
        ("¦y[t-1] + b", "lag", '"y" is not a state'),
        ("x ¦+ z", "shape-mismatch", "a vector of 3 and a vector of 2"),
        ("x + b ¦- z + z", "shape-mismatch", "a vector of 3 and a vector of 2"),
        ("s + x ¦+ (g + (z - 1)) * z", "shape-mismatch", "a vector of 3 and a vector of 2"),
        ("x ¦* z", "shape-mismatch", "a vector of 3 and a vector of 2"),
        ("z ¦/ x", "shape-mismatch", "a vector of 2 and a vector of 3"),
        ("W ¦+ b", "shape-mismatch", "a 3 by 3 matrix and a vector of 3"),
        ("V ¦@ z", "shape-mismatch", "a 2 by 3 matrix `@` a vector of 2; the matrix has 3 columns"),
        ("V ¦@ z", "shape-mismatch", "`.T` would fit"),
        ("V ¦@ V @ x", "shape-mismatch", "the right-hand side has 2 rows"),
        ("x ¦@ W", "bad-operand", "write `W.T @ v`"),
        ("x ¦@ b", "bad-operand", "`dot(u, v)`"),
        ("2 ¦@ x", "bad-operand", "with `*`"),
        ("W ¦@ s", "bad-operand", "with `*`"),
        ("x.¦T", "bad-operand", "`.T` takes a matrix"),
        ("W ¦* s @ x", "known-limit", "a 3 by 3 matrix that varies with samples or time"),
        ("(W ¦+ a[t-1][0]) @ x", "known-limit", "depend only on parameters and constants"),
        ("b ¦* W @ x", "shape-mismatch", "write brackets: `u * (W @ v)`"),
        ("¦softmax(W) @ x", "bad-operand", "a vector is needed here"),
        ("¦logsumexp(W)", "bad-operand", "a 3 by 3 matrix"),
        ("¦dot(W, x)", "bad-operand", "a 3 by 3 matrix"),
        ("¦dot(x, z)", "shape-mismatch", "equally long"),
        ("¦cross_entropy(x, z)", "shape-mismatch", "a vector of 2 and a vector of 3"),
        ("¦concat(x, W)", "bad-operand", "a 3 by 3 matrix"),
        ("x[¦1:4]", "slice-bounds", "a vector of 3 has no entries 1:4; entries count from 0"),
        ("x[¦2:2]", "slice-bounds", "0 <= start < stop <= length"),
        ("x[:n¦+1]", "slice-bounds", "no entries 0:4"),
        ("x[¦n]", "slice-bounds", "no entries 3:4"),
        ("x[¦3:]", "slice-bounds", "no entries 3:3"),
        ("x[¦k:]", "unknown-name", "known: m, n"),
        ("x[¦alpha:]", "unknown-name", "known: m, n"),
        ("s[¦0]", "bad-operand", "only vectors have slices"),
        ("W[¦0:1]", "bad-operand", "this is a 3 by 3 matrix"),
        ("x**¦g", "not-constant", "an exponent"),
        ("x**¦z", "not-constant", "exp(v * log(u))"),
        ("leaky_relu(x, ¦g)", "not-constant", "the slope of leaky_relu"),
        ("x * (1 ¦/ 0)", "not-finite", "division by zero"),
        ("x ¦/ (n - 3)", "not-finite", "division by zero"),
        ("x * (0 / (¦alpha2))", "unknown-name", "alpha"),
        ("10.0 ¦** 400 * x", "not-finite", "power(10, 400)"),
        ("(-1) ¦** 0.5 * x", "not-finite", "power(-1, 0.5) is not a finite real number"),
        ("0 ¦** -1 * x", "not-finite", "power(0, -1)"),
        ("¦log(alpha - 1) * x", "not-finite", "log(-0.75)"),
        ("1e300 ¦* 1e300 * x", "not-finite", "multiply(1e+300, 1e+300)"),
        ("1e308 + x ¦+ 1e308", "not-finite", "not finite"),
    ],
)
def test_expression(tmp_path: Path, equation: str, code: str, words: str) -> None:
    """One mistake in an equation is one refusal at its token, even where the equation is used."""
    marked = with_arrays(f'y = "{equation}"\nloss = "sum(tanh(y) * (x + b))"')
    codes, places, texts = _refused(tmp_path, marked)
    assert ([code], _marks(marked)) == (codes, places)
    assert words in texts[0]


@pytest.mark.parametrize(
    ("equations", "code", "words"),
    [
        ('p = "q + x"\nq = "r * 2"\nr = "tanh(¦p)"', "cycle", "p -> q -> r -> p"),
        ('p = "x + ¦p"', "cycle", "p -> p"),
        ('a = "tanh(W @ ¦a)"', "cycle", "one step earlier of a state is `name[t-1]`"),
        ('p = "2 * q"\nq = "a * 2"\na = "a[t-1] + ¦p"', "cycle", "p -> q -> a -> p"),
        ('¦a = "z"', "shape-mismatch", 'state "a" is declared as a vector of 3, its equation gives a vector of 2'),
        ('¦a = "g"', "shape-mismatch", "its equation gives a scalar"),
        ('p = "¦nope"\nq = "p + x @ p"\nr = "q.T"\nloss = "r"', "unknown-name", "nope"),
        ('a = "¦nope"\np = "a + x"', "unknown-name", "nope"),
        ('unread = "x ¦+ z"', "shape-mismatch", "a vector of 3 and a vector of 2"),
    ],
)
def test_equations(tmp_path: Path, equations: str, code: str, words: str) -> None:
    """Cycles, states and errors of unused equations; the consequence of a mistake is not another."""
    marked = with_arrays(equations)
    codes, places, texts = _refused(tmp_path, marked)
    assert ([code], _marks(marked)) == (codes, places)
    assert words in texts[0]


def test_all_are_reported(tmp_path: Path) -> None:
    """Mistakes in several places, one inside a broken expression, are all found in one go."""
    marked = with_arrays(
        'p = "¦nope + x ¦* z"\nq = "W ¦@ z + tanh(¦nil)"\na = "W @ a[t-1] ¦+ z"\nr = "a ¦+ z"\nloss = "sum(p) + ¦no"'
    )
    _, places, _ = _refused(tmp_path, marked)
    assert _marks(marked) == sorted(places)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('[inputs]\nbad = ["¦nowhere"]', "unknown-name"),
        ('[params]\nbad = { shape = [3], init = ¦"nothing" }', "unknown-value"),
        ('[equations]\nbad = "x ¦% 2"', "not-in-language"),
        ("[state]\n¦bad = [3]", "missing-equation"),
        ("[dims]\nbad = ¦0", "out-of-range"),
    ],
)
def test_refused_elsewhere(tmp_path: Path, line: str, code: str) -> None:
    """A name whose declaration was refused is not refused again where it is used."""
    table, entry = line.split("\n")
    uses = 'y = "bad * x + sum(bad)"\np = "x[bad - 1]" \nq = "bad[t-1] + y"' if table in {"[dims]"} else 'y = "bad * x"'
    marked = with_arrays(uses).replace(f"{table}\n", f"{table}\n{entry}\n")
    codes, places, _ = _refused(tmp_path, marked)
    assert ([code], _marks(marked)) == (codes, places)


def test_refused_state(tmp_path: Path) -> None:
    """A state whose shape was refused is still one: its earlier value is not refused as well."""
    marked = with_arrays('fallen = "fallen[t-1] + x"').replace("[state]\n", "[state]\nfallen = [¦0]\n")
    codes, places, _ = _refused(tmp_path, marked)
    assert (["out-of-range"], _marks(marked)) == (codes, places)


def test_refused_loss(tmp_path: Path) -> None:
    """A loss that could not be read is not reported as missing."""
    marked = with_arrays('loss = "x ¦% 2"')
    codes, places, _ = _refused(tmp_path, marked)
    assert (["not-in-language"], _marks(marked)) == (codes, places)


def test_long_cycle_is_cut(tmp_path: Path) -> None:
    """A cycle of many equations is named by its ends."""
    equations = "\n".join(f'p{i} = "p{(i + 1) % 50} + x"' for i in range(50))
    codes, _, texts = _refused(tmp_path, with_arrays(equations))
    assert ["cycle"] == codes
    assert "p0 -> p1 -> p2 -> p3 -> p4 -> p5 -> … -> p46 -> p47 -> p48 -> p49 -> p0" in texts[0]


@pytest.mark.parametrize(
    ("loss", "code", "words"),
    [
        ("wide", "loss-not-scalar", 'the loss "wide" must be a scalar, it is a vector of 3'),
        ("los", "unknown-name", 'did you mean "loss"?'),
        ("s", "unknown-name", 'the loss "s" is not an equation'),
    ],
)
def test_loss(tmp_path: Path, loss: str, code: str, words: str) -> None:
    """The loss must be a scalar equation; the message points at its name in [objective]."""
    marked = with_arrays('wide = "x"') + f'[objective]\nloss = ¦"{loss}"\n'
    codes, places, texts = _refused(tmp_path, marked)
    assert ([code], _marks(marked)) == (codes, places)
    assert words in texts[0]


def test_a_loss_that_is_no_scalar_has_its_line(tmp_path: Path) -> None:
    """Where no [objective] names it."""
    marked = with_arrays('¦loss = "x"')
    codes, places, _ = _refused(tmp_path, marked)
    assert (["loss-not-scalar"], _marks(marked)) == (codes, places)


def test_something_must_be_differentiable(tmp_path: Path) -> None:
    """Constant arrays alone leave nothing to differentiate."""
    text = 'bp = 1\n[params]\nw = { shape = [2], trainable = false }\n[equations]\nloss = "sum(w)"\n'
    codes, places, _ = _refused(tmp_path, text)
    assert (["nothing-to-differentiate"], [(2, 1)]) == (codes, places)


def test_float32_range(tmp_path: Path) -> None:
    """A number that float64 holds and float32 does not is refused in a float32 spec."""
    equations = 'y = "x * ¦1e39"\nloss = "sum(y)"'
    codes, places, texts = _refused(tmp_path, with_arrays(equations, dtype="float32"))
    assert (["not-finite"], _marks(with_arrays(equations))) == (codes, places)
    assert "float32" in texts[0]


def test_mark_helper() -> None:
    """The marks of a line count their columns without the marks themselves."""
    assert [(1, 2), (1, 3), (2, 1)] == _marks("a¦b¦c\n¦d")
