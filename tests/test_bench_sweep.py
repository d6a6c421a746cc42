"""From a grid to cells."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bpcli.bench.measurement import BenchResults, Cell
from bpcli.bench.sweep import BenchOptions, expand, merge, parse_axis, plan_sweep, with_options
from bpcli.errors import BpError, Diagnostic, Place
from bpcli.methods import parse
from bpcli.methods.base import KINDS
from bpcli.problem.limits import Limits
from bpcli.problem.setup import SpecFile
from bpcli.spec.sections import MAX_CELLS

VANILLA = Path(__file__).parents[1] / "specs" / "vanilla_rnn.toml"
SETTINGS = ("n", "alpha", "T", "batch", "dtype", "seed")
OPTIONS = {"bptt": (), "rtrl": (), "tbptt": ("k1", "k2"), "ebptt": ("tau",)}
TBPTT = "tbptt:k1=2,k2=8"


def take(text: str, base: str) -> None:
    """A parser of method texts that knows that k2 is not smaller than k1, and that options are integers."""
    name, _, tail = text.partition(":")
    values = dict(part.split("=") for part in tail.split(",") if part)
    if any(not v.isdigit() for v in values.values()):
        raise BpError([Diagnostic("wrong-type", "an integer is needed", help="write one")])
    if name == "tbptt" and int(values["k2"]) < int(values["k1"]):
        raise BpError([Diagnostic("out-of-range", "tbptt: k2 is smaller than k1", help="enlarge k2")])


@pytest.mark.parametrize(
    ("grid", "methods", "expected"),
    [
        ({}, ("bptt", "rtrl"), [({}, ["bptt", "rtrl"])]),
        ({"n": (4, 8)}, ("bptt",), [({"n": 4}, ["bptt"]), ({"n": 8}, ["bptt"])]),
        ({"k2": (2, 4)}, ("bptt", TBPTT), [({}, ["bptt", "tbptt:k1=2,k2=2", "tbptt:k1=2,k2=4"])]),
        ({"k2": (1, 4)}, (TBPTT,), [({}, ["tbptt:k1=2,k2=4"])]),
        ({"k1": (1, 2), "k2": (1, 2)}, (TBPTT,), [({}, ["tbptt:k1=1,k2=1", "tbptt:k1=1,k2=2", "tbptt:k1=2,k2=2"])]),
        ({"k2": (4,)}, (TBPTT, "tbptt:k1=2,k2=4"), [({}, ["tbptt:k1=2,k2=4"])]),
        ({"tau": (1, 2)}, ("ebptt:8",), [({}, ["ebptt:tau=1", "ebptt:tau=2"])]),
        ({"tau": (1, 2)}, ("bptt",), [({}, ["bptt"])]),
        (
            {"T": (5, 6), "dtype": ("float32",)},
            ("rtrl",),
            [({"T": 5, "dtype": "float32"}, ["rtrl"]), ({"T": 6, "dtype": "float32"}, ["rtrl"])],
        ),
    ],
)
def test_a_grid_becomes_points_with_the_methods_that_run_there(grid, methods, expected):
    """Settings make points, options make methods, and a method without the option runs once."""
    points, variants, _ = expand(grid, SETTINGS, dict.fromkeys(methods, ()), OPTIONS, take)
    assert expected == [(point, [v.method for v in variants]) for point in points]


def test_all_stands_for_the_methods_that_apply():
    """With usual options, which the grid of the spec may sweep, and those given beside it; the exact ones first."""
    leaky = SpecFile(str(VANILLA.with_name("leaky_rnn.toml")), "leaky", {}, (), Limits())
    cells = plan_sweep(leaky, BenchOptions(methods=("all", "tbptt:k1=2,k2=4")), BenchResults()).cells
    found = list(dict.fromkeys(cell.method for cell in cells if cell.settings["alpha"] == 0.5))
    assert "bptt" == found[0] and {"rtrl", "snap:k=1", "uoro", "fbptt:tau=8", "tbptt:k1=2,k2=4"} <= set(found)
    assert {"tbptt:k1=1,k2=1", "tbptt:k1=1,k2=4", "tbptt:k1=1,k2=16"} <= set(found) and "backprop" not in found
    kinds = [KINDS[type(parse(m).definition(leaky.open({})))] for m in found if m != "tbptt:k1=2,k2=4"]
    assert sorted(kinds, key=list(KINDS.values()).index) == kinds


def test_options_in_a_method_of_the_command_line_win_over_the_grid_of_the_spec():
    """Options of methods in the spec give way to its grid, and both to the grid of the command line."""
    leaky = SpecFile(str(VANILLA.with_name("leaky_rnn.toml")), "leaky", {}, (), Limits())
    texts = ("tbptt:k1=2,k2=16", "tbptt:k1=1,k2=4")

    def swept(**options):
        plan = plan_sweep(leaky, BenchOptions(**options), BenchResults())
        return list(dict.fromkeys(c.method for c in plan.cells if c.method.startswith("tbptt")))

    assert list(texts) == swept(methods=texts)
    assert ["tbptt:k1=1,k2=1", "tbptt:k1=1,k2=4", "tbptt:k1=1,k2=16"] == swept()
    assert ["tbptt:k1=2,k2=2", "tbptt:k1=2,k2=6"] == swept(methods=texts[:1], grid={"k2": (2, 6)})


def test_a_cell_knows_the_values_that_apply_to_it_in_the_order_of_the_grid():
    """Keys of the spec first; a method without an option has no value of it. A cell survives the way to a worker."""
    spec = SpecFile(str(VANILLA), "net", {}, (), Limits())
    options = BenchOptions(("bptt", TBPTT), grid={"k2": (8,), "n": (3,), "threads": (1, 2)}, fixed=frozenset("T"))
    cells = plan_sweep(spec, options, BenchResults()).cells
    threads_1, threads_2 = {"n": 3, "threads": 1}, {"n": 3, "threads": 2}
    expected = [(t["threads"], base, t | more) for t in (threads_1, threads_2)
                for base, more in (("bptt", {}), (TBPTT, {"k2": 8}))]  # fmt: skip
    assert expected == [(c.threads, c.base, dict(c.grid)) for c in cells]
    assert ["n", "k2", "threads"] == list(cells[1].grid)
    assert [{"n": 3}] * 4 == [dict(c.settings) for c in cells]
    assert 4 == len({c.key for c in cells})
    assert cells[1] == dataclasses.replace(Cell.from_json(json.loads(json.dumps(cells[1].to_json()))), base=TBPTT)


def test_what_is_left_out_is_noted():
    """A combination out of range and an option of no method that runs are told."""
    _, _, notes = expand({"k2": (1, 4), "tau": (3,)}, SETTINGS, {TBPTT: ()}, OPTIONS, take)
    expected = [f'"tau" is no option of {TBPTT}: not swept', "tbptt:k1=2,k2=1: left out, tbptt: k2 is smaller than k1"]
    assert expected == notes


@pytest.mark.parametrize(
    ("grid", "methods", "code", "words"),
    [
        ({"nn": (1,)}, ("bptt",), "unknown-key", 'did you mean "n"'),
        ({"k3": (1,)}, (TBPTT,), "unknown-key", "k2"),
        ({"k2": ("four",)}, (TBPTT,), "wrong-type", ""),
        ({}, ("tbptt:k1=3,k2=2",), "out-of-range", ""),
        ({"n": tuple(range(1000)), "T": tuple(range(51)), "batch": (1, 2)}, ("bptt",), "too-large", "100,000"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(grid, methods, code, words):
    """Unknown keys get the nearest known one; values of the wrong type and crowds are refused before anything runs."""
    with pytest.raises(BpError) as caught:
        expand(grid, SETTINGS, dict.fromkeys(methods, ()), OPTIONS, take)
    (diagnostic,) = caught.value.diagnostics
    assert code == diagnostic.code
    assert words in diagnostic.help


def test_an_unknown_key_is_refused_where_it_stands():
    """A key of a spec's grid has a place."""
    place = Place("a.toml", 7, 1)
    with pytest.raises(BpError) as caught:
        expand({"m": (1,)}, SETTINGS, {"bptt": ()}, OPTIONS, take, {"m": place})
    assert place == caught.value.diagnostics[0].place


def test_the_largest_lawful_sweep_is_planned():
    """As many cells as are allowed."""
    half = tuple(range(MAX_CELLS // 2))
    points, variants, _ = expand({"seed": half}, SETTINGS, {"bptt": (), "rtrl": ()}, OPTIONS, take)
    assert MAX_CELLS == len(points) * len(variants)


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("tbptt:k1=1,k2=8", {"k2": 4}, "tbptt:k1=1,k2=4"),
        ("tbptt:k2=8", {"k1": 4}, "tbptt:k1=4,k2=8"),
        (" tbptt : k2 = 8 , k1 = 2", {"k1": 4}, "tbptt:k1=4,k2=8"),
        ("tbptt", {"k1": 1, "k2": 2}, "tbptt:k1=1,k2=2"),
        ("ebptt:3", {"tau": 4}, "ebptt:tau=4"),
        (" bptt ", {}, "bptt"),
        ("tbptt:odd=1", {"k1": 4}, "tbptt:k1=4,odd=1"),
    ],
)
def test_options_go_over_those_that_a_text_gives(text, values, expected):
    """The grid overrides the text, option by option."""
    assert expected == with_options(text, values, OPTIONS[text.partition(":")[0].strip()])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n=16,32", ("n", (16, 32))),
        (" alpha = 0.5 , 1 ", ("alpha", (0.5, 1))),
        ("dtype=float32,float64", ("dtype", ("float32", "float64"))),
        ("k2=1e3", ("k2", (1000.0,))),
    ],
)
def test_an_axis_is_read_from_the_command_line(text, expected):
    """Integers, numbers, words."""
    assert expected == parse_axis(text)


@pytest.mark.parametrize("text", ["n", "n=", "=3", "n=1,,2", ""])
def test_an_axis_without_key_or_values_is_refused(text):
    """A usage error, not a crash."""
    with pytest.raises(BpError, match="expected KEY=V1,V2"):
        parse_axis(text)


def test_the_command_line_goes_over_the_spec():
    """Keys of both are replaced in their place, others added; a value given twice counts once."""
    merged = merge({"n": (1, 2), "T": (5,)}, {"n": (3, 3), "k2": (1,)})
    assert {"n": (3,), "T": (5,), "k2": (1,)} == merged
    assert ["n", "T", "k2"] == list(merged)
