"""The loader returns a Spec or refusals for damaged specs of every kind; `BP_FUZZ` is the number of examples."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spec_cases import FEED_FORWARD, RECURRENT

from bpcli.errors import Collector, format_diagnostic
from bpcli.spec.load import load

EXAMPLES = int(os.environ.get("BP_FUZZ", "300"))
FOLDER = Path(__file__).parent.parent / "specs"
TEXTS = [FEED_FORWARD, RECURRENT, *(path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.toml")))]
TOKENS = [
    *"=[]{}()\"'#,.:+-*/@\n\\ \t\0\x1b\ufeffµ²α😀",
    "\r\n",
    '"""',
    "'''",
    "[[",
    "**",
    "//",
    ".T",
    "[t-1]",
    "[t-2]",
    "[1:n]",
    "[-1]",
    "nan",
    "-inf",
    "true",
    "1e999",
    "10**400",
    "9" * 400,
    "0x" + "f" * 400,
    "9" * 5000,
    "1979-05-27",
    "(" * 120,
    "[" * 120,
    "-" * 300,
    "+x" * 2000,
    "x." * 60,
    '"n"',
    '{ shape = ["n"] }',
    "lambda",
    "if",
    "None",
    "t",
    "tanh",
    "concat",
    "n",
    "W",
    "[state]",
    "[params]",
    "[equations]",
    "[data]",
    "[bench.grid]",
    "\nvalue = ",
    "\nT = 3\n",
    "\n'a' = 'a'\n",
    "dims.n = 3\n",
]
OVERRIDES = st.dictionaries(
    st.sampled_from(["n", "alpha", "T", "batch", "seed", "dtype", "x", "µ", "", "__class__"]),
    st.one_of(st.integers(), st.floats(), st.text(max_size=5), st.just(10**5000)),
    max_size=2,
)


@st.composite
def damaged(draw):
    """A spec with a few characters, words or lines taken out, doubled, swapped or put in."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        kind = draw(st.sampled_from(["cut", "double", "insert", "replace", "line", "swap"]))
        length = draw(st.integers(1, 12))
        piece = text[start : start + length]
        if kind == "cut":
            text = text[:start] + text[start + length :]
        elif kind == "double":
            text = text[:start] + piece + text[start:]
        elif kind == "insert":
            text = text[:start] + draw(st.sampled_from(TOKENS)) + text[start:]
        elif kind == "replace":
            text = text[:start] + draw(st.sampled_from(TOKENS)) + text[start + length :]
        else:
            text = _by_lines(draw, text, kind)
    return text


def _by_lines(draw, text, kind):
    lines = text.split("\n")
    first, second = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    if kind == "swap":
        lines[first], lines[second] = lines[second], lines[first]
    else:
        lines[first : first + 1] = [lines[first]] * draw(st.sampled_from([0, 2]))
    return "\n".join(lines)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=damaged(), overrides=OVERRIDES)
def test_damaged_specs(text, overrides, tmp_path_factory):
    """No damage raises anything; every refusal has a place inside the file and prints."""
    check(text.encode("utf-8"), overrides, tmp_path_factory)


@settings(max_examples=max(20, EXAMPLES // 10), deadline=None, derandomize=True, database=None)
@given(head=st.sampled_from(TEXTS), at=st.integers(0, 2000), piece=st.binary(min_size=1, max_size=20))
def test_damaged_bytes(head, at, piece, tmp_path_factory):
    """Bytes that are no text are refused too."""
    data = head.encode("utf-8")
    check(data[:at] + piece + data[at:], {}, tmp_path_factory)


def check(data, overrides, factory):
    """Load `data` and check the Spec or the refusals."""
    path = factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(data)
    collector = Collector()
    spec = load(path, overrides, collector)
    assert spec is not None or collector.diagnostics
    lines = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace").replace("\r\n", "\n").split("\n")
    for diagnostic in collector.diagnostics:
        assert format_diagnostic(diagnostic).startswith("error[")
        place = diagnostic.place
        if place is not None and diagnostic.code != "not-utf-8":
            assert lines[place.line - 1] == place.quote
            assert 1 <= place.column <= len(place.quote) + 1
    if spec is not None and not collector.diagnostics:
        assert frozenset() == spec.refused
        assert set(spec.states) <= set(spec.equations)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "a." * 200_000, "x = " + "{a=" * 50_000, '"' * 100_000, "=\n" * 100_000]
)
def test_large_nonsense_is_refused_quickly(text, tmp_path_factory):
    """A file of the largest size that is no spec is refused within the time that a spec of that size may take."""
    check(text.encode("utf-8"), {}, tmp_path_factory)
