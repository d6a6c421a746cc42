"""Method strings: names, options, and what is wrong with them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import pytest

import bpcli.methods as methods
from bpcli.errors import BpError, Place


@dataclass(frozen=True)
class NoOptions:
    """A method without options."""


@dataclass(frozen=True)
class Truncation:
    """Two integers, one with a default."""

    k1: int
    k2: int = 4

    def __post_init__(self) -> None:
        if self.k2 < self.k1:
            raise ValueError(f"k2 = {self.k2} is smaller than k1 = {self.k1}")


@dataclass(frozen=True)
class Chance:
    """One number."""

    p: float


@dataclass(frozen=True)
class Assorted:
    """One of each other kind."""

    signs: bool = True
    spread: Literal["normal", "rademacher"] = "normal"
    rank: int | None = None
    label: str = "a"


FAKES: Mapping[str, type[Any]] = {
    "bptt": NoOptions,
    "tbptt": Truncation,
    "artbp": Chance,
    "kf-rtrl": NoOptions,
    "any": Assorted,
}


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue with options of every type."""
    monkeypatch.setattr(methods, "known_names", lambda: tuple(sorted(FAKES)))
    monkeypatch.setattr(methods, "load", lambda name: SimpleNamespace(name=name, Options=FAKES[name]))


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("bptt", "bptt", NoOptions()),
        (" bptt ", "bptt", NoOptions()),
        ("kf-rtrl", "kf-rtrl", NoOptions()),
        ("tbptt:k1=1,k2=8", "tbptt", Truncation(1, 8)),
        ("tbptt: k2 = 8 , k1 = 2", "tbptt", Truncation(2, 8)),
        ("tbptt:k1=1", "tbptt", Truncation(1, 4)),
        ("artbp:p=0.25", "artbp", Chance(0.25)),
        ("artbp:0.25", "artbp", Chance(0.25)),
        ("artbp:p=1e-2", "artbp", Chance(0.01)),
        ("any", "any", Assorted()),
        ("any:signs=false,spread=rademacher,rank=3,label=b", "any", Assorted(False, "rademacher", 3, "b")),
        ("any:rank=none", "any", Assorted(rank=None)),
    ],
)
def test_parse(text: str, name: str, options: object) -> None:
    """A method string gives its method and options, and keeps its text."""
    call = methods.parse(text)
    assert (text.strip(), name, options) == (call.text, call.method.name, call.options)


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ("bptr", "unknown-method", 'did you mean "bptt"?'),
        ("", "unknown-method", "known: "),
        ("BPTT", "unknown-method", 'did you mean "bptt"?'),
        ("bptt:k=1", "unknown-option", "takes no options"),
        ("bptt:", "bad-option", "takes no options"),
        ("bptt:4", "bad-option", "takes no options"),
        ("tbptt:k1=1,k3=2", "unknown-option", 'did you mean "k2"?'),
        ("tbptt:4", "bad-option", "options of tbptt: k1, k2"),
        ("tbptt:", "bad-option", "options of tbptt: k1, k2"),
        ("tbptt", "missing-option", "tbptt needs k1"),
        ("tbptt:k2=3", "missing-option", "tbptt needs k1\nwrite tbptt:k1=4,k2=3, for example"),
        ("tbptt:k1=1,k1=1", "repeated-option", '"k1" of tbptt is given twice'),
        ("tbptt:k1=1.5", "wrong-type", "must be an integer"),
        ("tbptt:k1=", "wrong-type", "must be an integer"),
        ("tbptt:k1=1_0", "wrong-type", "must be an integer"),
        ("tbptt:k1=" + "9" * 5000, "wrong-type", "must be an integer"),
        ("tbptt:k1=8,k2=2", "out-of-range", "k2 = 2 is smaller than k1 = 8"),
        ("artbp:p=nan", "wrong-type", "finite number"),
        ("artbp:p=1e999", "wrong-type", "finite number"),
        ("artbp:half", "wrong-type", "finite number"),
        ("any:signs=1", "wrong-type", "true or false"),
        ("any:spread=normel", "bad-option", 'did you mean "normal"?'),
        ("any:label=", "wrong-type", "a word"),
        ("bptt,rtrl", "unknown-method", 'did you mean "bptt"?'),
    ],
)
def test_refusals(text: str, code: str, part: str) -> None:
    """What is wrong with a method string is said with its code, place and remedy."""
    place = Place("a.toml", 3, 12)
    with pytest.raises(BpError) as caught:
        methods.parse(text, place)
    (diagnostic,) = caught.value.diagnostics
    assert (code, place) == (diagnostic.code, diagnostic.place)
    assert part in f"{diagnostic.what}\n{diagnostic.help}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bptt", ()),
        ("tbptt", ("k1=…", "k2=4")),
        ("artbp", ("p=…",)),
        ("any", ("signs=True", "spread=normal", "rank=None", "label=a")),
    ],
)
def test_options_of(name: str, expected: tuple[str, ...]) -> None:
    """The catalogue shows options with their defaults."""
    assert expected == methods.options_of(methods.load(name))


def test_known_names_are_file_names() -> None:
    """Methods are found by their files, without importing one."""
    code = "import sys, bpcli.methods as m; print('base' in m.known_names(), 'numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "False False" == done.stdout.strip()
