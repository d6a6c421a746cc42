"""`-m FILE.py:RULE`: a user's online rule, checked, run and measured; each equality has a slip that must be found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import FORWARD, RECURRENT, run, write
from kernel_cases import SPECS

import bpcli

RULES = """import os
import numpy as np
from bpcli.methods.base import Exact, StepGradient, Windows
from bpcli.runtime.local_derivatives import influence_layout
from bpcli.runtime.sparse_plan import influence_pattern
from bpcli.runtime.reverse_mode import Window


class SnAp1:
    def start(self, setup, options, rng):
        layout = influence_layout(setup)
        self.mask, M = influence_pattern(layout, 1), layout.initial(setup.batch, setup.dtype)
        return M, M

    def step(self, state, local):
        return self.mask * (local.J @ state[0] + local.Mbar), state[0]

    def credit(self, state, local):
        M, before = state
        return (local.q[:, None] @ M + local.q_before[:, None] @ before)[:, 0], local.direct


class Stale(SnAp1):
    def credit(self, state, local):
        return (local.q[:, None] @ state[1])[:, 0], local.direct


class WrongMask(SnAp1):
    def step(self, state, local):
        J = local.J * np.eye(local.J.shape[1], k=-1)
        return self.mask * (J @ state[0] + local.Mbar), state[0]


class Undecayed(SnAp1):
    def step(self, state, local):
        return self.mask * (state[0] + local.Mbar), state[0]


class NoDirect(SnAp1):
    def credit(self, state, local):
        return super().credit(state, local)[0], {}


class Exactly(SnAp1):
    definition = "bptt"

    def step(self, state, local):
        return local.J @ state[0] + local.Mbar, state[0]


class NotExactly(SnAp1):
    definition = "bptt"


class ByFunction(Exactly):
    def definition(self, setup, options):
        return Exact()


class OneStep(SnAp1):
    def definition(self, setup, options):
        return Windows(tuple(Window(t, t, t + 1) for t in range(setup.T)))

    def step(self, state, local):
        return local.Mbar, state[0]


class NotOneStep(OneStep):
    def step(self, state, local):
        return local.J @ state[0] + local.Mbar, state[0]


class Named(OneStep):
    definition = "fbptt:1"


class Random(SnAp1):
    def credit(self, state, local):
        influence, direct = super().credit(state, local)
        return StepGradient(influence + np.random.default_rng().random(influence.shape), direct)


class Raises(SnAp1):
    def credit(self, state, local):
        raise ValueError("no credit")


class Hangs(SnAp1):
    def step(self, state, local):
        while local.t == 1:
            pass
        return super().step(state, local)


class Exits(SnAp1):
    def start(self, setup, options, rng):
        os._exit(3)


class Crashes(SnAp1):
    def start(self, setup, options, rng):
        os.abort()


class Shape(SnAp1):
    def credit(self, state, local):
        return local.q, local.direct


class Complex(SnAp1):
    def credit(self, state, local):
        influence, direct = super().credit(state, local)
        return influence * 1j, direct


class NoPair(SnAp1):
    def credit(self, state, local):
        return super().credit(state, local)[0]


class Unknown(SnAp1):
    def credit(self, state, local):
        return super().credit(state, local)[0], {"U": 0.0}


class BadDefinition(SnAp1):
    def definition(self, setup, options):
        return 3


made = SnAp1()
"""
SLIPS = ("Stale", "WrongMask", "Undecayed")
SMALL = ("--set", "T=3", "--set", "batch=1")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("rules.py"), RULES)


def check(spec: str, *args: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the document of a check."""
    result = run("check", spec, *args, "--format", "json")
    return result.exit_code, json.loads(result.stdout)


def of(name: str) -> str:
    return str(SPECS / f"{name}.toml")


def loaded(name: str) -> dict[str, np.ndarray]:
    with np.load(f"{name}.npz") as file:
        return dict(file)


@pytest.mark.parametrize(("name", "slips"), [("vanilla_rnn", SLIPS), ("gru", ("Stale",)), ("lru", ("WrongMask",))])
def test_ten_lines_are_snap(name: str, slips: tuple[str, ...]) -> None:
    """A rule of ten lines passes as snap:k=1, float32 too, and slips in it do not."""
    args = ("--as", "snap:k=1", *SMALL, "--wrt", "params")
    for more in ((), ("--dtype", "float32")):
        code, document = check(of(name), "-m", "rules.py:SnAp1", *args, *more)
        assert (0, {"pass"}) == (code, {f["verdict"] for f in document["findings"]})
    for slip in slips:
        code, document = check(of(name), "-m", f"rules.py:{slip}", *args)
        assert 1 == code, slip
        wrong = next(f for f in document["findings"] if f["verdict"] == "wrong" and f["blame"])
        assert "snap:k=1 on local derivatives measured by the complex step" in wrong["blame"]["text"]
        assert f"-m rules.py:{slip} --as snap:k=1" in wrong["blame"]["reproduce"]


def test_a_missing_direct_part_is_found() -> None:
    """The output layer gets its gradient by the direct part alone."""
    code, document = check(of("vanilla_rnn"), "-m", "rules.py:NoDirect", "--as", "snap:k=1")
    assert (1, {"W_out", "b_out"}) == (code, {f["tensor"] for f in document["findings"] if f["verdict"] == "wrong"})


@pytest.mark.parametrize(
    ("right", "slip"), [("Exactly", "NotExactly"), ("ByFunction", ""), ("OneStep", "NotOneStep"), ("Named", "")]
)
def test_a_definition_of_its_own(right: str, slip: str) -> None:
    """The text of a method, or a function that gives the total derivative or windows."""
    code, document = check(of("gru"), "-m", f"rules.py:{right}", *SMALL)
    assert (0, {"pass"}) == (code, {f["verdict"] for f in document["findings"]})
    assert not any("shows only as bias" in note for note in document["context"]["notes"])
    assert not slip or check(of("gru"), "-m", f"rules.py:{slip}", *SMALL)[0] == 1


def test_without_a_definition() -> None:
    """It is compared with itself, which passes whatever it computes, and its bias is said."""
    for rule in ("SnAp1", "made", "Stale"):
        code, document = check(of("vanilla_rnn"), "-m", f"rules.py:{rule}", "-m", "bptt", *SMALL)
        own = [f for f in document["findings"] if f["method"] == f"rules.py:{rule}"]
        assert (0, 6, 11) == (code, len(own), len(document["findings"]))  # a user's loss is judged too
        assert max(f["bias"] or 0.0 for f in own) > 0.1
        assert any("shows only as bias" in note for note in document["context"]["notes"])


@pytest.mark.parametrize(
    ("rule", "cause", "line"),
    [
        ("Raises", "raises ValueError: no credit", 'raise ValueError("no credit")'),
        ("Hangs", "takes longer than 2 seconds, the limit of --user-time", "while local.t == 1:"),
        ("Exits", "raises SystemExit: 3", "os._exit(3)"),
        ("Crashes", "crashes with SIGABRT", "os.abort()"),
        ("Shape", "credit returns an influence of shape (2, 2), not (batch, P) = (2, 4)", "class Shape"),
        ("Complex", "credit returns an influence of type complex128", "class Complex"),
        ("NoPair", "credit returns ndarray, not StepGradient", "class NoPair"),
        ("Unknown", 'credit returns an unknown name "U" in its direct part', "class Unknown"),
    ],
)
def test_faults_are_findings(rule: str, cause: str, line: str) -> None:
    """A rule that raises, hangs, ends its process or returns nonsense is wrong, at a line of its file."""
    write(Path("net.toml"), RECURRENT)
    code, document = check("net.toml", "-m", f"rules.py:{rule}", "--user-time", "2", "--wrt", "W")
    (finding,) = document["findings"]
    assert (1, "wrong") == (code, finding["verdict"])
    assert cause in finding["cause"]
    text = RULES.splitlines()
    number = int(finding["cause"].rstrip(")").rpartition(":")[2])
    first = next(i for i, found in enumerate(text, 1) if line in found)
    # A flaw is at the function that returned it.
    assert number == first if not line.startswith("class") else first < number <= first + 2


def test_randomness_is_found() -> None:
    """Another call that gives other numbers."""
    write(Path("net.toml"), RECURRENT)
    code, document = check("net.toml", "-m", "rules.py:Random")
    assert 1 == code
    assert any(f["cause"].startswith("not deterministic (rules.py:") for f in document["findings"])


def test_where_there_is_no_state() -> None:
    """A feed-forward spec alone is refused, among others it is skipped."""
    write(Path("net.toml"), RECURRENT)
    write(Path("flat.toml"), FORWARD)
    code, document = check("flat.toml", "-m", "rules.py:SnAp1")
    assert (2, ["method-refused"]) == (code, [e["code"] for e in document["errors"]])
    code, document = check(".", "-m", "rules.py:SnAp1")
    assert (0, {"net"}) == (code, {f["spec"] for f in document["findings"]})
    assert any("skipped rules.py:SnAp1 for flat" in note for note in document["context"]["notes"])


def test_a_definition_must_be_one() -> None:
    """A function that gives none is refused at its line."""
    write(Path("net.toml"), RECURRENT)
    code, document = check("net.toml", "-m", "rules.py:BadDefinition")
    assert (2, ["user-code"]) == (code, [e["code"] for e in document["errors"]])
    assert "definition returns int" in document["errors"][0]["message"]


def test_its_gradient() -> None:
    """`bp grad` and the API give that of snap:k=1, and another for a slip."""
    assert 0 == run("grad", of("gru"), "-m", "rules.py:SnAp1", "-o", "own.npz").exit_code
    assert 0 == run("grad", of("gru"), "-m", "rules.py:Stale", "-o", "stale.npz").exit_code
    assert 0 == run("grad", of("gru"), "-m", "snap:k=1", "-o", "snap.npz").exit_code
    own, stale, snap = map(loaded, ("own", "stale", "snap"))
    for name, values in snap.items():
        np.testing.assert_allclose(own[name], values, rtol=1e-12, atol=1e-14)
    assert any(np.abs(stale[name] - values).max() > 1e-3 for name, values in snap.items())
    net = bpcli.load(of("gru"))
    found, steps = net.gradient("rules.py:SnAp1"), net.step_gradients("rules.py:SnAp1")
    for name, values in found.arrays.items():
        assert np.array_equal(own[f"d_{name}"], values)
        np.testing.assert_allclose(steps.arrays[name].sum(axis=0), values, atol=1e-13)
    with pytest.raises(bpcli.BpError, match="raises ValueError: no credit"):
        net.gradient("rules.py:Raises")


def test_in_python() -> None:
    """`check` takes rules among the methods."""
    net = bpcli.load(of("vanilla_rnn"), T=4)
    assert "pass" == net.check("rules.py:SnAp1", as_="snap:k=1").verdict
    assert "wrong" == net.check("rules.py:Stale", as_="snap:k=1").verdict


def test_its_cost() -> None:
    """`bp bench` measures a rule beside the methods; one that fails is an error of its own."""
    methods = [f"-m{m}" for m in ("snap:k=1", "rules.py:SnAp1", "rules.py:Raises", "rules.py:NotExactly")]
    result = run(
        "bench", of("vanilla_rnn"), *methods, "-g", "n=6", "--set", "T=4", "--budget", "0.02", "--format", "json"
    )
    document = json.loads(result.stdout)
    snap, own, wrong = document["cells"]
    assert ("rules.py:SnAp1", "pass", "wrong") == (own["method"], own["check"]["verdict"], wrong["check"]["verdict"])
    assert own["time_s"] > 0
    assert np.isclose(snap["bias"], own["bias"], rtol=1e-9)
    assert wrong["time_s"] is None
    (error,) = document["errors"]
    assert "raises ValueError: no credit (rules.py:" in error["message"]
