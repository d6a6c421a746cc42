"""`bp explain`: every line is checked against the network itself, and lines from wrong rules fail."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.mathtext import MathTextParser
from network_differential import LIMITS
from network_generator import generate
from spec_cases import FEED_FORWARD, RECURRENT, changed

from bpcli.cli import main
from bpcli.errors import BpError
from bpcli.graph.operations import OPERATIONS, STOPPING
from bpcli.lecture import drawing, linear_maps, recurrent
from bpcli.lecture.lesson import Lesson, compose, on_data, verify, with_named_constants
from bpcli.lecture.notation import Writer
from bpcli.lecture.pages import PAGES, folded, wide
from bpcli.lecture.styles import TEXT
from bpcli.methods import parse
from bpcli.problem.draw import draw
from bpcli.problem.setup import open_setup
from bpcli.runtime.evaluation import whole_loss

SPECS = Path(__file__).parents[1] / "specs"
NAMES = sorted(path.stem for path in SPECS.glob("*.toml"))
# For each operation an equation that uses it; x, u (4) and W (4, 4) vary, k is a scalar.
USES = {
    "copy": "v",
    "negate": "-u",
    "add": "u + v",
    "subtract": "u - v",
    "multiply": "u * v",
    "divide": "u / (2 + v**2)",
    "power": "0.1 * v**3",
    "exp": "exp(-abs(v))",
    **{name: f"{name}(v)" for name in ("tanh", "sigmoid", "relu", "softplus", "sin", "cos", "abs", "erf")},
    "leaky_relu": "leaky_relu(v, 0.2)",
    "log": "log(2 + v**2)",
    "sqrt": "sqrt(2 + v**2)",
    "matmul": "W @ v",
    "matmat": "(W @ W) @ v",
    "transpose": "W.T @ v",
    "sum": "u * sum(v)",
    "dot": "u * dot(u, v)",
    "logsumexp": "u * logsumexp(v)",
    "softmax": "softmax(v)",
    "log_softmax": "log_softmax(v)",
    "concat": "concat(v[2:4], k, v[1])",
    "slice": "u * v[2]",
    "max": "max(u, v)",
    "min": "min(v, u)",
    "stop_gradient": "u * stop_gradient(v) + v",
    "step": "u * step(v, 0.5) + v",
}
HEAD = "bp = 1\ninputs = { x = [4] }\nparams = { W = [4, 4], u = [4], k = [] }\n"
FLAT = HEAD + '[equations]\nv = "x + 0.3 * u"\ny = "{}"\nloss = "sum(sin(y))"\n'
LOOP = HEAD + 'state = { a = { shape = [4], init = "normal" } }\n[equations]\nv = "x + W @ a[t-1]"\n' + (
    'a = "{}"\nloss = "sum(sin(a) * u)"\n[data]\nT = 3\n'
)  # fmt: skip


def run(*args: str) -> Result:
    """The command."""
    return CliRunner().invoke(main, ["explain", *args], prog_name="bp")


def lesson(path: Path, methods: tuple[str, ...] = (), node: str | None = None, **overrides: int) -> Lesson:
    """The derivation of a spec, not checked; by default by all its methods."""
    setup = open_setup(path, overrides, (), LIMITS)
    chosen = methods or (("bptt", "rtrl", "tbptt:k1=1,k2=2") if setup.graph.recurrent else ("backprop",))
    return compose(setup, [parse(text) for text in chosen], node)


def checked(path: Path, methods: tuple[str, ...] = (), **overrides: int) -> Lesson:
    """The derivation of a spec with its lines checked."""
    found = lesson(path, methods, **overrides)
    return verify(found, draw(open_setup(path, overrides, (), LIMITS)))


def texts(found: Lesson) -> list[str]:
    """Its lines."""
    write = Writer(TEXT)
    return [" = ".join(write.claim(s.claim.left, s.claim.right, s.claim.middle)) for s in found.steps]


@pytest.mark.parametrize("name", NAMES)
def test_every_line_of_a_spec_holds(name: str) -> None:
    """No line of any bundled spec differs from the network's own differences, and none is left unchecked."""
    recurrent_spec = open_setup(SPECS / f"{name}.toml", {}, (), LIMITS).graph.recurrent
    found = checked(SPECS / f"{name}.toml", **({"T": 4} if recurrent_spec else {}))
    assert [] == found.wrong
    assert 0 == found.left_out
    assert len(found.steps) == len(found.results)
    assert not all(one.zero for one in found.results.values())
    assert 100 >= max(map(wide, PAGES["text"](found).splitlines()))


def test_the_exercise_as_on_the_board() -> None:
    """∂L/∂W1 by hand."""
    result = run(str(SPECS / "exercise.toml"), "--numbers", "--wrt", "W1")
    assert 0 == result.exit_code, result.output
    expected = [
        "h = W1 x + b1",
        "s = σ(h)",
        "y = W2 s + b2",
        "loss = 0.5 Σ (y − y_star)²",
        "δy = ∂L/∂y = y − y_star",
        "δs = ∂L/∂s = W2ᵀ δy",
        "δh = ∂L/∂h = δs ⊙ s ⊙ (1 − s)",
        "∂L/∂W1 = δh xᵀ",
    ]
    lines = [line for line in result.output.splitlines() if " ✓ " in line]
    assert expected == [re.split(r" {2,}", line.strip())[0] for line in lines]
    for entry in ("(δs)_i = Σ_k W2_ki (δy)_k", "(δh)_i = (δs)_i s_i (1 − s_i)", "∂L/∂W1_ij = (δh)_i x_j"):
        assert entry in result.output


VANILLA = (
    "J = ∂a/∂h ∂h/∂a[t-1] = diag(1 − a²) W",
    "q = W_outᵀ δy",
    "c = q + J[t+1]ᵀ c[t+1]",
    "δa = ∂L/∂a = q + Wᵀ δh[t+1]",
    "∂L/∂W = Σ_t δh a[t-1]ᵀ",
    "M_W = J M_W[t-1] + M̄_W",
    "∂L/∂W = Σ_t M_Wᵀ q",
)
LINES = {
    "vanilla_rnn": VANILLA,
    "leaky_rnn": ("J = ∂a/∂a[t-1] + ∂a/∂h ∂h/∂a[t-1] = (1 − alpha) I + alpha diag(1 − tanh(h)²) W",),
    "gru": (
        "δz = ∂L/∂z = δh ⊙ (h[t-1] − c)",
        "J = ∂h/∂h[t-1] + ∂h/∂z ∂z/∂h[t-1] + ∂h/∂c ∂c/∂h[t-1] + ∂h/∂c ∂c/∂r ∂r/∂h[t-1]",
    ),
    "lstm": ("∂c/∂c[t-1] = diag(f)", "M_h,W = J_h,h M_h,W[t-1] + J_h,c M_c,W[t-1] + M̄_h,W"),
    "stacked_rnn": ("J_a2,a1 = ∂a2/∂a1 ∂a1/∂a1[t-1]",),
    "lru": ("J_re,im = −diag(l_im)", "∂L/∂nu = −∂L/∂modulus ⊙ modulus ⊙ exp(nu)"),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_of_the_lecture(name: str) -> None:
    """The formulas that the comments of the specs announce."""
    found = texts(lesson(SPECS / f"{name}.toml"))
    assert [] == [text for text in LINES[name] if not any(line.startswith(text) for line in found)]


def test_third_order_in_index_notation() -> None:
    """∂a_i/∂W_jk, and paths of a gated cell by name."""
    output = run(str(SPECS / "vanilla_rnn.toml")).output
    assert "∂a_i/∂W_jk = (1 − a_i²) δ_ij a_k[t-1]" in output
    assert "h[t-1] → r → c → h" in run(str(SPECS / "gru.toml")).output


def test_index_letters_are_no_names() -> None:
    """The LSTM has a gate i: its entries are not i_i."""
    output = run(str(SPECS / "lstm.toml")).output
    assert "i_i" not in output
    assert "(∂c/∂g)_jk = i_j δ_jk" in output


def wrong_rule(rule: linear_maps.Rule) -> linear_maps.Rule:
    """A rule that gives twice the derivative."""

    def twice(use: linear_maps.Use) -> linear_maps.LinearMap | None:
        found = rule(use)
        if found is None:
            return None
        two = linear_maps.number(2.0)
        matrix = None if found.matrix is None else linear_maps.times(two, found.matrix)
        return linear_maps.LinearMap(lambda c: linear_maps.times(two, found.pull(c)), matrix, found.because)

    return twice


@pytest.mark.parametrize("form", [FLAT, LOOP], ids=["flat", "loop"])
@pytest.mark.parametrize("name", USES)
def test_every_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: str) -> None:
    """All lines hold, in every format; with twice the derivative of the operation some do not."""
    path = tmp_path / "net.toml"
    path.write_text(form.replace("{}", USES[name]))
    graph = open_setup(path, {}, (), LIMITS).graph
    assert name in {node.op for node in graph.nodes} or (name, form) == ("copy", FLAT)
    found = checked(path)
    assert [] == found.wrong
    assert 0 == found.left_out
    for page in PAGES.values():
        assert found.title in page(found) or "spec" in page(found)
    if name in STOPPING or (name, form) == ("copy", FLAT):
        return
    for key in [key for key in linear_maps.RULES if name in (key, key[0])]:
        with monkeypatch.context() as patch:
            patch.setitem(linear_maps.RULES, key, wrong_rule(linear_maps.RULES[key]))
            assert checked(path).wrong, key


def test_the_table_names_every_operation() -> None:
    """Each row of the table of operations has a rule, and a use above."""
    assert set(OPERATIONS) == set(USES)
    assert [] == [op for op in OPERATIONS if op not in linear_maps.RULES and (op, 0) not in linear_maps.RULES]


def test_a_wrong_rule_makes_its_line_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """tanh' without the square: the line of δh is marked, the one before it is not, and the exit code is 1."""
    slope = linear_maps._unary(lambda v, y, n: linear_maps.subtract(linear_maps.ONE, y), "wrong")
    monkeypatch.setitem(linear_maps.RULES, "tanh", slope)
    result = run(str(SPECS / "vanilla_rnn.toml"), "--numbers")
    assert 1 == result.exit_code
    marks = {
        line.split(" = ")[0].strip(): "✗" in line for line in result.output.splitlines() if re.search("[✓✗]", line)
    }
    assert marks["∂a/∂h"]
    assert marks["δh"]
    assert not marks["δy"]
    assert not marks["q"]
    assert "wrong, marked ✗" in result.output


def test_a_path_that_is_left_out_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """J of a GRU without one of its paths."""
    whole = recurrent.RecurrentDerivation.paths

    def fewer(self: recurrent.RecurrentDerivation, start: int, end: int) -> tuple[list[tuple[int, ...]], int]:
        paths, count = whole(self, start, end)
        return (paths[:-1], count) if count > 1 else (paths, count)

    monkeypatch.setattr(recurrent.RecurrentDerivation, "paths", fewer)
    found = checked(SPECS / "gru.toml", ("bptt",))
    assert "J" in {text.split(" = ")[0] for text in texts(dataclasses.replace(found, sections=_of(found)))}


def _of(found: Lesson) -> tuple:
    """The sections with their wrong lines alone."""
    bad = {id(step) for step in found.wrong}
    return tuple(dataclasses.replace(s, steps=tuple(x for x in s.steps if id(x) in bad)) for s in found.sections)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(tmp_path: Path, seed: int) -> None:
    """No line of a random network is accused, and every format takes it."""
    path = tmp_path / "net.toml"
    path.write_text(generate(seed, ("ordinary",)).text(), encoding="utf-8")
    try:
        found = checked(path)
    except BpError:  # a constant that is not finite, or a density without entries
        return
    assert [] == found.wrong
    for page in PAGES.values():
        page(found)


@pytest.mark.parametrize("name", ["checking_kink", "checking_zero_rnn", "checking_relu", "checking_zero_mlp"])
def test_kinks_are_not_accused(name: str) -> None:
    """A line that meets a kink is left out where no difference can tell."""
    path = Path(__file__).with_name(f"{name}.toml")
    assert [] == checked(path).wrong


def test_narrowed_to_a_parameter_and_to_a_node() -> None:
    """Lines that are not needed are left out."""
    path = str(SPECS / "gru.toml")
    assert "∂L/∂W_z =" not in run(path, "--wrt", "U_r", "-m", "bptt").output
    output = run(path, "--node", "r", "--numbers").output
    assert "δr = ∂L/∂r" in output
    assert "∂L/∂U_r" not in output
    assert "M̄" not in output
    output = run(str(SPECS / "exercise.toml"), "--node", "s").output
    assert "δs = ∂L/∂s" in output
    assert "δh" not in output


def test_a_node_without_influence(tmp_path: Path) -> None:
    """A derivative that is zero is said to be so."""
    path = tmp_path / "net.toml"
    path.write_text(FLAT.replace("{}", "u + stop_gradient(v)"))
    assert "∂L/∂v = 0" in run(str(path), "--node", "v").output


@pytest.mark.parametrize(("k2", "left_out"), [(1, 6), (2, 3), (3, 1), (4, 0)])
def test_truncation(k2: int, left_out: int) -> None:
    """Kept terms add up to what the method computes, those left out are struck out; with k2 = T it is exact."""
    path, method = SPECS / "lstm.toml", f"tbptt:k1=1,k2={k2}"
    found = checked(path, (method,), T=4, batch=2)
    assert [] == found.wrong
    (section,) = [s for s in found.sections if s.rows]
    assert left_out == sum(cell.struck for row in section.rows for cell in row)
    problem = draw(open_setup(path, {"T": 4, "batch": 2}, (), LIMITS))
    gradient = parse(method).gradient(problem).arrays
    assert found.truncation is not None
    assert set(gradient) == {found.net.names[n] for n in found.truncation.parameters()}
    for n, terms in found.truncation._terms.items():
        kept = np.sum([terms[pair] for pair in found.truncation.pairs()], axis=0).mean(axis=0)
        np.testing.assert_allclose(gradient[found.net.names[n]].ravel(), kept, rtol=1e-9, atol=1e-13)


def test_a_wrong_window_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept sum with a term too many differs from differences of the kept pairs."""
    from bpcli.lecture.truncated_terms import Truncation

    kept = Truncation.kept

    def more(self: Truncation, n: int, values: object) -> np.ndarray:
        terms = self.terms(n, values)  # type: ignore[arg-type]
        return np.asarray(kept(self, n, values) + terms[3, 0].reshape(-1, *self.d.net.nodes[n].shape))  # type: ignore[arg-type]

    monkeypatch.setattr(Truncation, "kept", more)
    found = checked(SPECS / "vanilla_rnn.toml", ("tbptt:k1=1,k2=2",), T=4)
    assert {"windows"} == {step.claim.kind for step in found.wrong}


def test_named_constants_are_the_network() -> None:
    """The loss is the same, and the constant is a name where it may be one."""
    setup = open_setup(SPECS / "leaky_rnn.toml", {}, (), LIMITS)
    named = with_named_constants(setup)
    assert "alpha" in named.graph.leaf
    assert whole_loss(draw(setup)) == pytest.approx(whole_loss(on_data(draw(setup), named)), rel=1e-14)


def test_a_constant_that_has_to_be_a_number(tmp_path: Path) -> None:
    """An exponent stays a number."""
    path = tmp_path / "net.toml"
    path.write_text("bp = 1\nconstants = { p = 3 }\n" + FLAT.replace("{}", "v**p").removeprefix("bp = 1\n"))
    assert "y = v³" in run(str(path)).output


OVER = ('over_time = "mean"', 'over_time = "last"', 'over_batch = "sum"')


@pytest.mark.parametrize("over", OVER)
def test_objectives(tmp_path: Path, over: str) -> None:
    """Weights of losses, also where a loss looks past the state."""
    for loss in ("(sum(a) - y_star)**2", "(sum(a[t-1]) - y_star)**2 + sum(h)"):
        text = changed(RECURRENT, "(sum(a) - y_star)**2", loss)
        path = tmp_path / "net.toml"
        path.write_text(changed(text, 'loss = "loss"', f'loss = "loss"\n{over}'))
        assert [] == checked(path).wrong


def balanced(text: str) -> bool:
    """Whether braces, \\left and \\right, and environments pair up."""
    depth, plain = 0, re.sub(r"\\[{}]", "", text)
    for character in plain:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    environments = [re.findall(rf"\\{word}{{([a-z*]+)}}", text) for word in ("begin", "end")]
    return (
        not depth
        and text.count(r"\left") == text.count(r"\right")
        and sorted(environments[0]) == sorted(environments[1])
    )


@pytest.mark.parametrize("name", NAMES)
def test_latex(name: str, tmp_path: Path) -> None:
    """Braces pair up, every formula is one to matplotlib's parser, and the document compiles where there is a TeX."""
    page = PAGES["latex"](lesson(SPECS / f"{name}.toml"))
    assert balanced(page)
    assert page.isascii()
    parser = MathTextParser("path")
    formulas = re.findall(r"^(?:\\quad )?\$(.*)\$$", page.replace(r"\allowbreak", ""), re.MULTILINE)
    assert formulas
    for formula in formulas[:: 1 + len(formulas) // 12]:
        parser.parse("$" + re.sub(r"\\(displaystyle|bigl|bigr)", "", formula) + "$")
    if shutil.which("pdflatex"):
        (tmp_path / "page.tex").write_text(page)
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert 0 == done.returncode, done.stdout[-2000:]
        assert "Overfull" not in done.stdout


def test_names_in_other_alphabets(tmp_path: Path) -> None:
    """LaTeX spells them; the text has them as they are."""
    path = tmp_path / "net.toml"
    path.write_text(
        'bp = 1\ninputs = { "α" = [2] }\nparams = { "вес" = [2] }\n[equations]\nloss = "sum(α * вес)"\n',
        encoding="utf-8",
    )
    page = PAGES["latex"](lesson(path))
    assert page.isascii()
    assert r"\alpha" in page
    assert "вес" in PAGES["text"](lesson(path))


def test_unbalanced_latex_is_noticed() -> None:
    """The test above can fail."""
    assert not balanced(r"\frac{a}{b")
    assert not balanced(r"\left( a")
    assert not balanced(r"\begin{a}\end{b}")


@pytest.mark.parametrize("name", NAMES)
def test_html_and_markdown(name: str) -> None:
    """Formulas and pictures are well-formed, nothing is loaded from elsewhere, and tables have one width."""
    found = checked(SPECS / f"{name}.toml") if name in ("exercise", "square") else lesson(SPECS / f"{name}.toml")
    page = PAGES["html"](found)
    for part in re.findall(r"<math>.*?</math>|<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(part)
    assert not re.search(r"<script|(src|href)=", page)
    for table in re.findall(r"(?:^\|.*\n)+", PAGES["markdown"](found), re.MULTILINE):
        assert 1 == len({row.count("|") for row in table.replace(r"\|", "").splitlines()}), table


DRAW: dict[str, Callable[[str], object]] = {
    "--dot": lambda text: re.search(r"^digraph", text) and text.count("{") == text.count("}"),
    "--mermaid": lambda text: text.startswith("flowchart LR") and text.count("subgraph") == text.count("  end\n"),
    "--svg": lambda text: ElementTree.fromstring(text).tag.endswith("svg"),
}


@pytest.mark.parametrize("option", DRAW)
@pytest.mark.parametrize("name", ["exercise", "lstm", "lru"])
def test_drawings(name: str, option: str) -> None:
    """Each is of its own syntax, with every equation in it."""
    result = run(str(SPECS / f"{name}.toml"), option)
    assert 0 == result.exit_code
    assert DRAW[option](result.output.strip() if option == "--svg" else result.output)
    net = lesson(SPECS / f"{name}.toml").net
    if option != "--svg" or not net.graph.recurrent:
        assert all(net.names[n] in result.output for n in drawing.shown(net))


def test_the_picture_shows_where_it_is_cut() -> None:
    """Edges that the last loss does not go through are dashed."""
    path = str(SPECS / "vanilla_rnn.toml")
    assert "stroke-dasharray" in run(path, "--svg", "-m", "tbptt:k1=1,k2=2").output
    assert "stroke-dasharray" not in run(path, "--svg").output


def test_long_formulas_are_folded_outside_of_brackets() -> None:
    """Each line fits, and none is broken inside a bracket where that can be avoided."""
    formula = "a = " + " + ".join(f"({x} − b_{x})" for x in "cdefghijklmn")
    lines = folded(formula, 40, 4)
    assert all(40 >= len(line) for line in lines)
    assert all(line.count("(") == line.count(")") for line in lines)
    assert formula == " ".join(line.strip() for line in lines)


def test_many_paths_are_summed_node_by_node(tmp_path: Path) -> None:
    """Two ways at each of five nodes: 32 paths, one line that still holds."""
    equations = "".join(f'p{k} = "sin(h{k})"\nr{k} = "cos(h{k})"\nh{k + 1} = "p{k} * r{k}"\n' for k in range(5))
    text = 'bp = 1\ninputs = { x = [3] }\nparams = { w = [3] }\nstate = { a = { shape = [3], init = "normal" } }\n'
    text += f'[equations]\nh0 = "w * a[t-1] + x"\n{equations}a = "tanh(h5)"\nloss = "sum(a)"\n[data]\nT = 3\n'
    path = tmp_path / "net.toml"
    path.write_text(text)
    found = checked(path)
    assert [] == found.wrong
    assert "a sum over 32 paths, node by node" in {step.because for step in found.steps}


def test_the_format_of_tables_is_no_format_of_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BP_FORMAT and [tool.bp] say how tables are printed; pages are text then."""
    path = tmp_path / "net.toml"
    path.write_text(FEED_FORWARD)
    monkeypatch.setenv("BP_FORMAT", "json")
    assert run(str(path)).output.startswith("net")
    assert "<h1>" in run(str(path), "--format", "html").output
