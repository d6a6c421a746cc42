"""The plugin for pytest: specs as tests, the fixture, what a reader sees when they fail, and what it costs at start."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest
from cli_cases import FORWARD, RECURRENT

from bpcli.pytest_plugin import plan
from bpcli.runtime.kernel_cache import cache_folder

ROOT = Path(__file__).parents[1]
WITH_PLUGIN = ("-p", "bpcli.pytest_plugin")

# Makes the verdict of a check what the spec is called, with the real check before it.
VERDICTS = """
import dataclasses
import bpcli.checking.checker as run

real = run.check

def check(setup, calls, options, elsewhere=None, told=None):
    found = real(setup, calls, options)
    changes = {"wrong": {"cause": "sign", "blame": {"text": "the sign is wrong", "reproduce": "bp check again"}},
               "inconclusive": {"cause": "noise"}}
    name = setup.spec.name
    return [dataclasses.replace(f, verdict=name, **changes[name]) if name in changes else f for f in found]

run.check = check
"""

PAIRS = """
import numpy as np

def loss(params):
    return float(np.sum(params["w"] ** 2))

def test_right(bp_check):
    bp_check(loss, lambda params: {"w": 2 * params["w"]}, {"w": np.array([0.5, -1.5])})

def test_wrong(bp_check):
    bp_check(loss, lambda params: {"w": params["w"]}, {"w": np.array([0.5, -1.5])})

def test_raises(bp_check):
    def grad(params):
        return {"w": params["v"]}
    bp_check(loss, grad, {"w": np.array([0.5, -1.5])})

def test_refused(bp_check):
    bp_check(loss, lambda params: params, {"w": "text"})

def test_function(bp_check):
    bp_check(lambda x: np.sin(x), np.array([0.5, -1.5]), vjp=lambda x, u: u * np.cos(x))

def test_wrong_function(bp_check):
    bp_check(lambda x: np.sin(x), np.array([0.5, -1.5]), vjp=lambda x, u: np.cos(x))

def test_random(bp_check):
    def noisy(params):
        return loss(params) + np.random.random()
    bp_check(noisy, lambda params: {"w": 2 * params["w"]}, {"w": np.array([0.5, -1.5])})
"""


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """The modules that collecting takes: `pytester` would take back those that are imported in a test."""
    plan(ROOT / "specs" / "vanilla_rnn.toml", [])


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the plugin that is named, installed or not, the package of this folder, and the kernels that are compiled.

    A process of `pytester` has a home of its own, and would compile them again.
    """
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache_folder().parents[1]))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("PYTEST_PLUGINS", raising=False)


def project(pytester: pytest.Pytester, settings: str, **specs: str) -> None:
    """A project with settings of pytest and specs."""
    pytester.makepyprojecttoml(f"[tool.pytest.ini_options]\nfilterwarnings = ['error']\n{settings}\n")
    pytester.mkdir("specs")
    for name, text in specs.items():
        (pytester.path / "specs" / f"{name}.toml").write_text(text, encoding="utf-8")


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """pytest in a process of its own."""
    return pytester.runpytest_subprocess(*WITH_PLUGIN, *args)


def test_specs_are_tests(pytester: pytest.Pytester) -> None:
    """A test for each spec and method: passed, failed in words, skipped with its reason; a refusal stops no other."""
    broken = RECURRENT.replace("a[t-1]", "b[t-1]")
    specs = {"right": RECURRENT, "wrong": RECURRENT, "inconclusive": FORWARD, "broken": broken, "forward": FORWARD}
    project(pytester, "bp_specs = ['specs/*.toml']\nbp_methods = ['rtrl', 'backprop']", **specs)
    pytester.makeconftest(VERDICTS)
    result = run(pytester, "-v", "-rs")
    result.assert_outcomes(passed=2, failed=2, skipped=3)
    result.stdout.re_match_lines_random(
        [
            r"specs/right.toml::bptt PASSED.*",
            r"specs/wrong.toml::bptt FAILED.*",
            r"specs/inconclusive.toml::backprop SKIPPED.*",
            r"specs/inconclusive.toml::rtrl SKIPPED.*",
            r"specs/broken.toml::spec FAILED.*",
            r"specs/forward.toml::backprop PASSED.*",
            r"SKIPPED.* inconclusive backprop w: inconclusive: noise.*",
        ]
    )
    result.stdout.fnmatch_lines(
        ['error[[]unknown-name[]]: unknown name "b"', " --> specs/broken.toml:11:15", "help: *"]
    )
    result.stdout.fnmatch_lines(
        [
            "wrong bptt W: wrong: sign, z = * at W[[]*[]]",
            "  W[[]*[]]: value *, reference *, bound *",
            "  4 entries compared, *",
            "  the sign is wrong",
            "  reproduce: bp check again",
            " --> specs/wrong.toml:3:1",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_plugin.py:*: *Error")


KERNELS = """import numpy as np

def right(params, inputs, state):
    w = params["w"]
    return {"w": 2 * w}

def wrong(params, inputs, state):
    return {"w": params["w"]}
"""


def test_kernels_of_a_spec_are_tests(pytester: pytest.Pytester) -> None:
    """Each beside the methods; one that is wrong fails with what to blame, and can be chosen alone."""
    declared = "".join(f'[kernel.{n}]\nfile = "mine.py"\nfunction = "{n}"\n' for n in ("right", "wrong"))
    project(pytester, "bp_specs = ['specs/*.toml']", square=FORWARD + declared)
    (pytester.path / "specs" / "mine.py").write_text(KERNELS)
    result = run(pytester, "-v")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.re_match_lines_random(
        [
            r"specs/square.toml::backprop PASSED.*",
            r"specs/square.toml::kernel:right PASSED.*",
            r"specs/square.toml::kernel:wrong FAILED.*",
            r".*a factor 2 is missing.*",
        ]
    )
    run(pytester, "-v", "-k", "right").assert_outcomes(passed=1, deselected=2)


def test_a_kernel_that_is_not_there_fails_alone(pytester: pytest.Pytester) -> None:
    """Its missing file is no fault of the spec's methods, nor of another kernel."""
    declared = "".join(
        f'[kernel.{n}]\nfile = "{f}.py"\nfunction = "{n}"\n' for n, f in (("right", "mine"), ("gone", "x"))
    )
    project(pytester, "bp_specs = ['specs/*.toml']", square=FORWARD + declared)
    (pytester.path / "specs" / "mine.py").write_text(KERNELS)
    result = run(pytester, "-v")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.re_match_lines_random([r"specs/square.toml::kernel:gone FAILED.*", r".*no file .*x\.py.*"])


def test_the_tolerance_of_the_fixture(pytester: pytest.Pytester) -> None:
    """A gradient that is right to a solver's tolerance passes if told so."""
    project(pytester, "")
    pytester.makepyfile(
        """
        import numpy as np
        import pytest

        @pytest.mark.parametrize("tolerance", [1e-5, 1e-7])
        def test_implicit(bp_check, tolerance):
            params = {"w": np.array([0.5, -1.5])}
            bp_check(lambda p: p["w"] @ p["w"], lambda p: {"w": 2.000001 * p["w"]}, params, tolerance=tolerance)
        """
    )
    run(pytester).assert_outcomes(passed=1, failed=1)


@pytest.mark.parametrize(
    ("variable", "table", "words"),
    [
        ({}, "wrt = ['inputs']", "wrong bptt x: wrong"),
        ({"BP_WRT": "W"}, "wrt = ['inputs']", "wrong bptt W: wrong"),
        ({}, "max-memory = '1kB'", "error[[]too-large[]]: *"),
        ({}, "reference = 'centre'", 'error[[]usage[]]: *unknown value "centre"'),
        ({}, "strict = 1", "error[[]wrong-type[]]: strict must be true or false"),
    ],
)
def test_the_options_of_the_project(
    variable: dict[str, str], table: str, words: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables and `[tool.bp]` say how specs are checked, as for bp check; a bad one fails the spec in words."""
    project(pytester, f"bp_specs = ['specs/*.toml']\n[tool.bp]\n{table}", wrong=RECURRENT)
    pytester.makeconftest(VERDICTS)
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"{words}*"])


def test_a_setting_that_is_none(pytester: pytest.Pytester) -> None:
    """It is named, before any test is run."""
    project(pytester, "bp_strict = 'maybe'", right=RECURRENT)
    result = run(pytester)
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(["ERROR: bp_strict: *maybe*"])


def test_strict(pytester: pytest.Pytester) -> None:
    """With bp_strict what is inconclusive fails."""
    project(pytester, "bp_specs = ['specs/*.toml']\nbp_strict = true", inconclusive=FORWARD)
    pytester.makeconftest(VERDICTS)
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["inconclusive backprop w: inconclusive: noise, z = * at w"])


def test_the_fixture(pytester: pytest.Pytester) -> None:
    """A right gradient passes, a wrong one fails at the reader's line, with the finding and no line of ours."""
    project(pytester, "")
    pytester.makepyfile(PAIRS)
    result = run(pytester)
    result.assert_outcomes(passed=2, failed=5)
    result.stdout.fnmatch_lines(
        [
            ">*bp_check(loss, lambda params: {*",
            "E*GradientError: test_the_fixture.py:test_wrong.<lambda> grad w: wrong: z = * at w[[]*[]]",
            "E *value *, reference *, bound *",
            "test_the_fixture.py:10: GradientError",
            "E*wrong: raises KeyError: 'v' (test_the_fixture.py:14)*",
            'E*error[[]usage[]]: *params[[]"w"[]] is of type*',
            "E*GradientError: *<lambda> vjp x: wrong: z = * at x[[]*[]]",
            "E*ignores its cotangent*",
            "E*grad loss: wrong: draws random numbers*",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_plugin*")


def test_nothing_heavy_at_start(pytester: pytest.Pytester) -> None:
    """A session that does not use the plugin imports none of what it stands on."""
    project(pytester, "", right=RECURRENT)
    names = ("numba", "numpy", "pandas", "scipy", "pydantic", "rich", "click", "bpcli.commands", "bpcli.errors")
    pytester.makepyfile(f"import sys\ndef test_it():\n    assert [] == [n for n in {names!r} if n in sys.modules]\n")
    run(pytester).assert_outcomes(passed=1)


def test_opt_in(pytester: pytest.Pytester) -> None:
    """Without bp_specs no spec is a test, be it named."""
    project(pytester, "", right=RECURRENT)
    assert pytest.ExitCode.NO_TESTS_COLLECTED == run(pytester).ret
    assert pytest.ExitCode.USAGE_ERROR == run(pytester, "specs/right.toml").ret


@pytest.mark.parametrize(
    ("pattern", "hint"), [("spec*", "for a folder write specs/[*].toml"), ("*.toml", "apart from pyproject.toml")]
)
def test_a_pattern_without_a_match(pattern: str, hint: str, pytester: pytest.Pytester) -> None:
    """A pattern that matches nothing, folders or pyproject.toml alone, is an error: it would test nothing unnoticed."""
    project(pytester, f"bp_specs = ['{pattern}']", right=RECURRENT)
    result = run(pytester)
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines([f'ERROR: bp_specs: no file matches "{pattern.replace("*", "[*]")}" in *{hint}'])


@pytest.mark.parametrize(
    ("settings", "args", "expected"),
    [
        ("bp_specs = ['specs/*.toml']", (), ["a::bptt", "b::backprop"]),
        ("bp_specs = ['specs/a.toml']", (), ["a::bptt"]),
        ("bp_specs = ['**/*a.toml']", (), ["a::bptt"]),
        ("bp_specs = ['specs/*.toml']\ntestpaths = ['tests']", (), ["a::bptt", "b::backprop"]),
        ("bp_specs = ['specs/*.toml']\ntestpaths = ['tests', 'specs']", (), ["a::bptt", "b::backprop"]),
        ("bp_specs = ['specs/*.toml']\ntestpaths = ['tests']", ("tests",), []),
        ("bp_specs = ['specs/*.toml']", ("specs/b.toml::backprop",), ["b::backprop"]),
        ("bp_specs = ['specs/*.toml']", ("-k", "backprop"), ["b::backprop"]),
    ],
)
def test_what_is_collected(
    pytester: pytest.Pytester, settings: str, args: tuple[str, ...], expected: list[str]
) -> None:
    """The specs that match, once each, also beside testpaths; of these, what the command line asks for."""
    project(pytester, settings, a=RECURRENT, b=FORWARD)
    pytester.mkdir("tests").joinpath("test_one.py").write_text("def test_one():\n    pass\n")
    result = pytester.runpytest_inprocess(*WITH_PLUGIN, "--collect-only", "-q", "-W", "ignore", *args)
    found = re.findall(r"^specs/(\w+)\.toml(::\S+)$", result.stdout.str(), re.MULTILINE)
    assert expected == [name + method for name, method in found]


def test_the_entry_point() -> None:
    """What pytest is told to load is there, with settings and a fixture."""
    written = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module = importlib.import_module(written["project"]["entry-points"]["pytest11"]["bp"])
    assert callable(module.pytest_addoption) and hasattr(module, "bp_check")


def test_the_readme(pytester: pytest.Pytester) -> None:
    """The examples of `bp help python` run as they stand; with the gradient halved, the test fails."""
    text = (ROOT / "bpcli" / "help" / "python.md").read_text(encoding="utf-8").partition("## In your tests")[2]
    python, toml = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)[0] for kind in ("python", "toml"))
    pytester.makepyprojecttoml(toml)
    pytester.mkdir("specs").joinpath("net.toml").write_text(RECURRENT, encoding="utf-8")
    pytester.makepyfile(test_good=python, test_bad=python.replace("(2 * y", "(y"))
    result = run(pytester)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["FAILED test_bad.py::test_grad*"])
