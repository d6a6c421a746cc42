"""The notation of lectures, papers, other tools and other systems: each is answered by how it is written here."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_cases import run, write
from spec_cases import RECURRENT, changed, load_text

from bpcli.errors import Collector
from bpcli.graph.build import build
from bpcli.spec.load import load

LOSS = "(sum(a) - y_star)**2"
UPDATE = "W @ a[t-1] + V @ x + b"
EQUATIONS = {
    "W @ a(t-1) + V @ x + b": "a[t-1]",
    "W @ a[t-1] + V @ x(t) + b": "x, or x[t]",
    "W @ a_{t-1} + V @ x + b": "a[t-1]",
    "W @ a[-1] + V @ x + b": "[t-1]",
    "W @ a_prev + V @ x + b": "a[t-1]",
    "W @ prev_a + V @ x + b": "a[t-1]",
    "W @ a_tm1 + V @ x + b": "a[t-1]",
    "W @ a[t-1] + V @ x_t + b": "written x",
    "W * a[t-1] + V @ x + b": "W @ v",
    "W a[t-1] + V x + b": "W @ v",
    "W^T @ a[t-1] + V @ x + b": "W.T",
    "Wᵀ @ a[t-1] + V @ x + b": "W.T",
    "W' @ a[t-1] + V @ x + b": "W.T",
    "b ⊙ (W @ a[t-1]) + V @ x": "with *",
}


def _helps(folder: Path, text: str) -> list[str]:
    """The help of every refusal of a spec and its equations."""
    path = write(folder / "net.toml", text)
    collector = Collector()
    spec = load(path, {}, collector)
    if spec is not None:
        build(spec, collector)
    return [d.help for d in collector.diagnostics]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_equation(tmp_path, equation):
    """The help has the notation of the language."""
    helps = _helps(tmp_path, changed(RECURRENT, UPDATE, equation))
    assert any(EQUATIONS[equation] in text for text in helps), helps


@pytest.mark.parametrize("update", [UPDATE, "W @ a[t-1] + V @ x[t] + b", "W.T @ a[t-1] + V @ x + b"])
def test_what_the_help_says_is_accepted(tmp_path, update):
    """The twins of the above."""
    assert [] == _helps(tmp_path, changed(RECURRENT, UPDATE, update))


def test_a_name_that_is_only_similar_has_the_ordinary_help(tmp_path):
    """`b_prev` is of a parameter, which has no earlier value."""
    (text,) = _helps(tmp_path, changed(RECURRENT, UPDATE, "W @ a[t-1] + V @ x + b_prev"))
    assert "known: " in text and "one step earlier" not in text


@pytest.mark.parametrize("key", ['"a(t)"', "a(t)", "a[t]", '"a[t]"'])
def test_a_time_on_the_left(tmp_path, key):
    """An equation is named by its value alone."""
    _, diagnostics = load_text(tmp_path, changed(RECURRENT, '\na = "', f'\n{key} = "'))
    assert any("write a = …" in d.help for d in diagnostics)


CALLS = {
    ("check", r"specs\net.toml"): 'write "specs/net.toml"',
    ("grad", r"specs\net.toml", "-m", "bptt"): 'write "specs/net.toml"',
    ("check", r"specs\nte.toml"): 'did you mean "specs/net.toml"?',
    ("check", "specs/net"): 'did you mean "specs/net.toml"?',
    ("check", "specs/net.toml", "-m", "bptt,rtrl"): "write -m bptt -m rtrl",
    ("check", "specs/net.toml", "-m", "bptt rtrl"): "write -m bptt -m rtrl",
    ("check", "specs/net.toml", "-m", "tbptt:k1=1,k2=4,rtrl"): "write -m tbptt:k1=1,k2=4 -m rtrl",
    ("check", "specs/net.toml", "-m", "tbptt,k1=1,k2=4"): "options follow a colon: tbptt:k1=1,k2=4",
    ("bench", "specs/net.toml", "-m", "bptt;rtrl"): "write -m bptt -m rtrl",
    ("check", "specs/net.toml", "--wrt", "W,V"): "--wrt W --wrt V",
    ("check", "specs/net.toml", "-T", "5"): "--set T=5",
    ("version",): "bp --version",
}


@pytest.mark.parametrize("call", CALLS)
def test_call(tmp_path, monkeypatch, call):
    """A usage error whose help is what to type."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "specs/net.toml", RECURRENT)
    result = run(*call)
    assert 2 == result.exit_code
    assert CALLS[call] in result.stderr


def test_methods_in_a_spec(tmp_path):
    """A list in one string is answered with the list."""
    path = write(tmp_path / "net.toml", changed(RECURRENT, '["bptt"]', '["bptt, rtrl"]'))
    assert 'methods = ["bptt", "rtrl"]' in run("check", path).stderr


def test_a_backslash_in_a_spec(tmp_path):
    """The file is there, and the help says what the separator is."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/w.npz").write_bytes(b"")
    path = write(tmp_path / "net.toml", changed(RECURRENT, "[data]", "[weights]\nfile = 'sub\\w.npz'\n[data]"))
    assert "separated by slashes in a spec" in run("check", path).stderr


def test_help_of_bp():
    """`bp help bp` is `bp help`."""
    assert run("help").stdout == run("help", "bp").stdout
    assert run("help").stdout != run("help", "check").stdout
