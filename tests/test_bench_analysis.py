"""Conclusions from rows: sentences, the frontier, growth laws, seeds; control kernels, shards and merged runs."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bpcli.bench import profiling
from bpcli.bench.analysis import frontier, laws, sentences
from bpcli.bench.measurement import by_spec, column_name, csv_keys, grid_keys, over_seeds, table
from bpcli.cli import main


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
            ["3 rows measured, all gradients checked first (every entry).",
             "tbptt:k2=4 reaches a cosine of only 0.00; it needs about as much memory and time as bptt."],
        ),
        (
            [row(), biased("uoro", 2e-3, 500, 0.9913) | {"draws": 16}],
            ["2 rows measured, all gradients checked first (every entry).",
             "uoro reaches a cosine of 0.9913 in the mean of 16 draws; each draw needs 0.5 times as much memory and "
             "2 times as much time as bptt."],
        ),
        ([row()], ["1 row measured, all gradients checked first (every entry)."]),
        (
            [row(), row("rtrl", 12e-3, memory=400)],
            ["2 rows measured, all gradients checked first (every entry).",
             "rtrl gives the same gradient; it needs 0.4 times as much memory and 12 times as much time as bptt."],
        ),
        (
            [row(), biased("tbptt:k2=4", 1.1e-3, 200, 0.9), biased("tbptt:k2=8", 1.2e-3, 300, 0.9913),
             biased("tbptt:k2=16", 1.4e-3, 600, 0.99996)],
            ["4 rows measured, all gradients checked first (every entry).",
             "tbptt:k2=8 reaches a cosine of 0.9913; it needs 0.3 times as much memory and 1.2 times as much time as "
             "bptt."],
        ),
        (
            [row(), biased("tbptt:k2=1", 1e-3, 200, 0.5), biased("tbptt:k2=2", 1e-3, 300, 0.8731)],
            ["3 rows measured, all gradients checked first (every entry).",
             "tbptt:k2=2 reaches a cosine of only 0.87; it needs 0.3 times as much memory and about as much time as "
             "bptt."],
        ),
        (
            [row("bptt", 1e-3, settings={"n": 8}), row("rtrl", 2e-3, settings={"n": 8}),
             row("bptt", 4e-3, settings={"n": 16}), row("rtrl", 32e-3, settings={"n": 16})],
            ["4 rows measured, all gradients checked first (every entry).",
             "At n=16, rtrl gives the same gradient; it needs about as much memory and 8 times as much time as bptt.",
             "From n=8 to n=16, time grows by a factor of 4 (bptt), 16 (rtrl)."],
        ),
        (
            [row(), row(backend="jax", time_s=3e-3, ratio={"median": 3.14, "low": 3.0, "high": 3.3})],
            ["2 rows measured, all gradients checked first (every entry).", "bptt: bp is 3.1 times as fast as jax."],
        ),
        (
            [row(), row("rtrl", None, verdict="wrong", cosine=0.3, bias=1.0)],
            ["1 of 2 rows measured; the gradient of rtrl is wrong, so it was not timed."],
        ),
        ([row(verdict="inconclusive")], ["1 row measured; the check of 1 was inconclusive."]),
        ([biased("tbptt:k2=4", 1e-3, 200, 0.9)], ["1 row measured, all gradients checked first (every entry)."]),
        ([row(cosine=None, bias=None)], ["1 row measured, all gradients checked first (every entry)."]),
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


def test_a_table_has_the_columns_of_the_csv():
    """Grid keys between names and figures, numbers as numbers, and nothing where a row has no value."""
    common = {"T": 5, "batch": 1, "time_low_s": 1.0}
    frame = table([row(settings={"n": 3, "T": 5}, **common), row("rtrl", None, options={"bias": 2}, **common)])
    assert [*csv_keys(("n", "bias"))] == [*frame.columns]
    assert ["bptt", "rtrl"] == [*frame.method]
    assert (3.0, 2.0) == (frame.n[0], frame.grid_bias[1])
    assert [[False, True]] * 2 == [[*frame.n.isna()], [*frame.time_s.isna()]]
    assert all(frame[c].dtype.kind in "if" for c in ("n", "grid_bias", "T", "time_s", "predicted_bytes", "flops"))
    assert isinstance(frame, pd.DataFrame)


def timed(method, time_s, memory, cosine=1.0, spread=0.0, **rest):
    """A row with an interval of `spread` each way."""
    made = biased(method, time_s, memory, cosine) if cosine < 1 else row(method, time_s, memory=memory)
    return {**made, "time_low_s": time_s * (1 - spread), "time_high_s": time_s * (1 + spread), "samples_s": [],
            "grid": rest.get("settings", {}), **rest}  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([timed("bptt", 1.0, 100), timed("rtrl", 2.0, 200)], [True, False]),
        ([timed("bptt", 1.0, 100), timed("rtrl", 2.0, 50)], [True, True]),
        ([timed("bptt", 1.0, 100), timed("tbptt", 0.9, 200, 0.9)], [True, True]),
        ([timed("bptt", 1.0, 100), timed("tbptt", 1.1, 100, 0.9)], [True, False]),
        ([timed("a", 1.0, 100), timed("b", 1.05, 100)], [True, False]),
        ([timed("a", 1.0, 100, spread=0.1), timed("b", 1.05, 100, spread=0.1)], [True, True]),
        ([timed("a", 1.0, 100), timed("b", 1.5, 100) | {"bias": 1e-12}], [True, False]),
        ([timed("a", 1.0, 100), timed("b", 2.0, 200, settings={"n": 3})], [True, True]),
        ([timed("a", 1.0, 100), timed("a", 0.1, 10) | {"backend": "jax"}], [True, None]),
        ([timed("a", 1.0, 100), row("b", None)], [True, None]),
        ([timed("a", 1.0, 100), timed("b", 1.0, 10) | {"bias": None}], [True, None]),
    ],
)
def test_the_frontier_is_what_nothing_beats(rows, expected):
    """In error, memory and time at once; times whose intervals overlap do not differ, nor do errors of rounding."""
    assert expected == frontier(rows)


def test_seeds_are_taken_together_with_their_spread():
    """Medians, ranges, the widest interval and the worst verdict; nothing else is touched."""
    rows = [timed("t", s, 100, c, 0.1, settings={"n": 2, "seed": i}, parameters=4) for i, s, c in
            [(0, 1.0, 0.8), (1, 3.0, 0.9), (2, 2.0, 0.7)]]  # fmt: skip
    rows[1]["check"] = {"verdict": "inconclusive", "how": "", "detail": ""}
    alone = timed("t", 5.0, 100)
    together, other = over_seeds([*rows, alone])
    assert other is alone
    assert ({"n": 2}, [0, 1, 2]) == (together["settings"], together["seeds"])
    assert (2.0, 0.8) == (together["time_s"], together["cosine"])
    assert ([1.0, 3.0], [0.7, 0.9]) == (together["spread"]["time_s"], together["spread"]["cosine"])
    assert pytest.approx((0.9, 3.3)) == (together["time_low_s"], together["time_high_s"])
    assert "inconclusive" == together["check"]["verdict"]


def grown(n, T, seed, noise):
    """A row whose time is n² T, and some noise."""
    settings = {"n": n, "T": T, "seed": seed}
    return timed("bptt", 1e-6 * n**2 * T * noise, 8 * n, settings=settings) | {"base": "bptt"}


def test_a_law_is_found_with_its_margin():
    """time ~ n² T: the exponents lie within their margins, which shrink with the noise; memory has its own law."""
    rng = np.random.default_rng(2)
    rows = [grown(n, T, s, np.exp(0.05 * rng.standard_normal())) for n in (8, 16, 32, 64) for T in (5, 10, 20)
            for s in (0, 1)]  # fmt: skip
    time, space = laws(rows)
    assert ("time_s", 24) == (time.figure, time.points)
    for key, exponent in (("n", 2.0), ("T", 1.0)):
        assert abs(time.exponents[key] - exponent) < time.margins[key] < 0.1
    assert pytest.approx({"n": 1.0, "T": 0.0}, abs=1e-9) == space.exponents
    assert 0.03 < time.residual < 0.07
    assert json.loads(json.dumps(time.to_json()))["exponents"]["n"] == time.exponents["n"]
    (said,) = [s for s in sentences(over_seeds(rows)) if s.startswith("For n")]
    assert "For n from 8 to 64, T from 5 to 20, time grows as n^(" in said


def test_a_law_that_says_nothing_is_not_told():
    """Three points off a line by as much as it rises: the rows keep the law, in words it would mislead."""
    rows = [grown(n, 10, 0, noise) for n, noise in ((8, 1.0), (16, 3.0), (32, 0.5))]
    assert laws(rows)[0].margins["n"] > 1.0
    assert not [said for said in sentences(rows) if "grows as" in said]
    # Growth for sure, of a power that may be the next one.
    rows = [grown(n, 10, 0, noise) for n, noise in ((8, 1.0), (16, 0.88), (32, 1.0))]
    assert 1.0 < laws(rows)[0].margins["n"] < laws(rows)[0].exponents["n"]
    assert not [said for said in sentences(rows) if "grows as" in said]
    even = [grown(n, 10, 0, 1.0) for n in (8, 16, 32)]
    assert [said for said in sentences(even) if "grows as" in said]


def test_what_does_not_grow_with_a_setting_is_not_told():
    """Of a constant that is swept too, whose exponent is nothing but noise, the sentence says nothing."""
    rng = np.random.default_rng(3)
    rows = [grown(n, 10, 0, np.exp(0.05 * rng.standard_normal())) for n in (8, 16, 32) for _ in range(3)]
    for one, alpha in zip(rows, [0.1, 0.5, 0.9] * 3, strict=True):
        one["grid"] = {**one["grid"], "alpha": alpha}
    assert laws(rows)[0].margins["alpha"] > abs(laws(rows)[0].exponents["alpha"])
    (said,) = [said for said in sentences(rows) if "grows as" in said]
    assert said.startswith("For n from 8 to 32, time grows as n^(") and "alpha" not in said


def test_a_law_over_an_option_is_of_the_method_without_it():
    """Whatever value of it the spec names."""
    methods = [("tbptt:k1=1,k2=8", {"n": n, "k2": k2}) for n in (8, 16, 32) for k2 in (2, 4, 8)] + [
        ("ebptt:tau=3", {"n": n}) for n in (8, 16, 32)
    ]
    rows = [
        timed(m, 1e-6 * g["n"] * g.get("k2", 1), 8, settings={"n": g["n"]}) | {"base": m, "grid": g} for m, g in methods
    ]
    found = [law for law in laws(rows) if law.figure == "time_s"]
    assert [("tbptt:k1=1", ["n", "k2"]), ("ebptt:tau=3", ["n"])] == [(law.method, [*law.exponents]) for law in found]


def test_a_law_needs_more_than_two_values():
    """Two points always lie on one; and words have no logarithm."""
    rows = [grown(n, 5, 0, 1.0) for n in (8, 16)]
    assert [] == laws(rows)
    assert [] == laws([timed("a", 1.0, 1, settings={"dtype": d}) for d in ("x", "y", "z", "w")])


def test_other_settings_shift_a_law_and_do_not_bend_it():
    """float32 at half the time is a factor, not an exponent."""
    rows = [grown(n, 5, 0, f) for n in (8, 16, 32) for f in (1.0,)]
    rows += [{**grown(n, 5, 0, 0.5), "grid": {"n": n, "T": 5, "dtype": "float32"}} for n in (8, 16, 32)]
    assert pytest.approx(2.0) == laws(rows)[0].exponents["n"]


@pytest.mark.parametrize(("gemm", "told"), [([1.0, 1.04, 1.02], False), ([1.0, 1.06, 1.0], True)])
def test_a_machine_that_is_not_quiet_is_told(gemm, told):
    """Five percent between the slowest and the quickest sample."""
    movement = profiling.movement([{"gemm": g, "copy": 2.0} for g in gemm])
    assert told == profiling.contaminated(movement)
    rows = [timed("bptt", 1.0, 100) | {"control_moved": movement, "contaminated": told}]
    assert told == any("Timings unreliable" in s for s in sentences(rows))


def test_control_kernels_take_time():
    """A product and a copy, in seconds."""
    assert {"gemm", "copy"} == {k for k, v in profiling.sample_controls().items() if 1e-6 < v < 1.0}


def document(rows, **more):
    """A saved run."""
    machine = {"cpu": "x", "cores": 2, "system": "s", "python": "3.12", "versions": {}}
    context = {"command": "bench", "version": "1", "machine": machine, "budget_s": 0.5, "spec_sha256": {"net": "aa"}}
    return {"schema_version": 1, "context": {**context, **more}, "cells": rows, "errors": [], "summary": {}}


def cell(number, method):
    """A cell as it is saved."""
    made = timed(method, 1.0, 100) | {"cell": number, "T": 3, "batch": 1, "control_moved": {}, "contaminated": False}
    blank = ("time_min_s", "compile_s", "first_s", "peak_bytes", "forward_steps", "gemm_fraction")
    return {**made, **dict.fromkeys(blank)}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Two parts of one sweep, `a.json` and `b.json`; a function that changes a part."""
    monkeypatch.chdir(tmp_path)
    parts = {
        "a": document([cell(0, "one"), cell(3, "four")], shard="1/2", sweep_sha256="s"),
        "b": document([cell(1, "two"), cell(2, "three")], shard="2/2", sweep_sha256="s"),
    }

    def save(change=lambda part: None):
        change(parts["b"])
        for name, part in parts.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(part))
        return copy.deepcopy(parts)

    save()
    return save


def merge(*args):
    """`bp merge ARGS -o out.json`."""
    return CliRunner().invoke(main, ["merge", *args, "-o", "out.json"])


def test_parts_are_merged_in_the_order_of_the_sweep(saved, tmp_path):
    """All rows with all that they said, marked anew."""
    result = merge("b.json", "a.json")
    assert 0 == result.exit_code, result.output
    merged = json.loads((tmp_path / "out.json").read_text())
    assert ["one", "two", "three", "four"] == [c["method"] for c in merged["cells"]]
    assert {"2/2", "1/2"} == {part["shard"] for part in merged["context"]["merged"]}
    assert all("pareto" in c for c in merged["cells"])
    assert "4 rows measured" in result.stdout


def test_a_missing_part_is_told(saved):
    """Not refused: the rest may come later."""
    assert "missing: part 2/2" in merge("a.json").stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda part: part["cells"].append(cell(0, "one")), "is in a.json and in b.json"),
        (lambda part: part["context"].update(version="2"), "differ in version"),
        (lambda part: part["context"]["machine"].update(cpu="y"), "differ in machine.cpu"),
        (lambda part: part["context"].update(spec_sha256={"net": "bb"}), "content of the spec net"),
        (lambda part: part.update(schema_version=2), "has schema version 2"),
        (lambda part: part.pop("cells"), "not a saved run of bp"),
        (lambda part: part["context"].update(command="check"), "not a document of bp bench"),
        (lambda part: part["cells"].append({}), 'cells[2] has no "spec"'),
        (lambda part: part["cells"][0].pop("grid"), "a cell without its name"),
    ],
)
def test_what_does_not_go_together_is_refused(saved, tmp_path, change, words):
    """With what differs; nothing is written."""
    saved(change)
    result = merge("a.json", "b.json")
    assert 2 == result.exit_code
    assert words in result.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("a.json", "./a.json"), "named twice"),
        (("c.json",), "cannot read"),
        (("out.json", "a.json"), "also one of the runs"),
    ],
)
def test_runs_are_files_named_once(saved, args, words):
    """Usage errors."""
    result = merge(*args)
    assert (2, True) == (result.exit_code, words in result.stderr)
