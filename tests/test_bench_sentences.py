"""What a sweep says, and the rows that it says it of."""

from __future__ import annotations

import math

import pytest

from bpcli.bench.rows import by_spec, column_name, csv_keys, grid_keys
from bpcli.bench.sentences import sentences


def row(method="bptt", time_s=1e-3, *, memory=1000, cosine=1.0, bias=0.0, backend="bp", **rest):
    """A row of results; what is not given is that of a right and measured one."""
    settings = rest.pop("settings", {})
    checked = {"verdict": rest.pop("verdict", "pass"), "how": "every entry", "detail": ""}
    return {
        "spec": "net", "method": method, "backend": backend, "settings": settings,
        "grid": {**settings, **rest.pop("options", {})}, "dtype": "float64", "time_s": time_s, "flops": 1e6,
        "threads": 1, "predicted_bytes": memory, "allocated_bytes": memory, "cosine": cosine, "bias": bias,
        "check": checked, "ratio": None, **rest,
    }  # fmt: skip


def biased(method, time_s, memory, cosine):
    """A row of a method that is meant to be off."""
    return row(method, time_s, memory=memory, cosine=cosine, bias=math.sqrt(2 - 2 * cosine))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], []),
        (
            [row(), biased("tbptt:k2=4", 1e-3, 1000, 0.0), biased("tbptt:k2=8", 1e-3, 1000, -0.5)],
            ["3 rows measured, all gradients checked first.",
             "tbptt:k2=4 gets no nearer than cosine 0.00, at about the memory of bptt and about its time."],
        ),
        ([row()], ["1 row measured, all gradients checked first."]),
        (
            [row(), row("rtrl", 12e-3, memory=400)],
            ["2 rows measured, all gradients checked first.",
             "rtrl gives the same gradient at 0.4 of the memory of bptt and 12 times its time."],
        ),
        (
            [row(), biased("tbptt:k2=4", 1.1e-3, 200, 0.9), biased("tbptt:k2=8", 1.2e-3, 300, 0.9913),
             biased("tbptt:k2=16", 1.4e-3, 600, 0.99996)],
            ["4 rows measured, all gradients checked first.",
             "tbptt:k2=8 reaches cosine 0.9913 at 0.3 of the memory of bptt and 1.2 times its time."],
        ),
        (
            [row(), biased("tbptt:k2=1", 1e-3, 200, 0.5), biased("tbptt:k2=2", 1e-3, 300, 0.8731)],
            ["3 rows measured, all gradients checked first.",
             "tbptt:k2=2 gets no nearer than cosine 0.87, at 0.3 of the memory of bptt and about its time."],
        ),
        (
            [row("bptt", 1e-3, settings={"n": 8}), row("rtrl", 2e-3, settings={"n": 8}),
             row("bptt", 4e-3, settings={"n": 16}), row("rtrl", 32e-3, settings={"n": 16})],
            ["4 rows measured, all gradients checked first.",
             "At n=16, rtrl gives the same gradient at about the memory of bptt and 8 times its time.",
             "From n=8 to n=16 the time grows by these factors: bptt 4, rtrl 16."],
        ),
        (
            [row(), row(backend="jax", time_s=3e-3, ratio={"median": 3.14, "low": 3.0, "high": 3.3})],
            ["2 rows measured, all gradients checked first.", "bptt: bp is 3.1 times as fast as jax."],
        ),
        (
            [row(), row("rtrl", None, verdict="wrong", cosine=0.3, bias=1.0)],
            ["1 of 2 rows measured; the gradient of rtrl is wrong and was not timed."],
        ),
        ([row(verdict="inconclusive")], ["1 row measured; the check of 1 was inconclusive."]),
        ([biased("tbptt:k2=4", 1e-3, 200, 0.9)], ["1 row measured, all gradients checked first."]),
        ([row(cosine=None, bias=None)], ["1 row measured, all gradients checked first."]),
    ],
)  # fmt: skip
def test_the_trade_off_is_told_in_sentences(rows, expected):
    """The exact ones at their price, the biased ones by what they reach, growth, peers, faults."""
    assert expected == sentences(rows)


def test_several_specs_are_told_apart():
    """Each sentence starts with its spec."""
    rows = [row(), row("rtrl", 2e-3), row(spec="other"), row("rtrl", 3e-3, spec="other")]
    assert ["net: rtrl", "other: rtrl"] == [s[: s.index("rtrl") + 4] for s in sentences(rows)[1:]]


def test_grid_keys_have_a_column_each_and_none_twice():
    """T, batch and dtype have theirs anyway; a dim called like a column gets another name."""
    rows = [row(settings={"n": 3, "T": 5}, T=5), row(settings={"bias": 1}, options={"k2": 4})]
    keys = grid_keys(rows)
    assert ("n", "bias", "k2") == keys
    assert ["n", "grid_bias", "k2"] == [column_name(k) for k in keys]
    assert len(set(csv_keys(keys))) == len(csv_keys(keys))


def test_rows_are_grouped_by_spec():
    """In the order in which specs appear."""
    assert {"b": 2, "a": 1} == {k: len(v) for k, v in by_spec([row(spec="b"), row(spec="a"), row(spec="b")]).items()}
