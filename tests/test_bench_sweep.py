"""From a grid to cells."""

from __future__ import annotations

import pytest

from bpcli.bench.sweep import merge, parse_axis, plan, with_options
from bpcli.errors import BpError, Diagnostic, Place
from bpcli.spec.sections import MAX_CELLS

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
    sweep = plan(grid, SETTINGS, methods, OPTIONS, take)
    assert expected == [(dict(p.settings), [c.method for c in p.cells]) for p in sweep.points]
    assert sum(len(methods) for _, methods in expected) == sweep.cells


def test_a_cell_knows_the_values_that_apply_to_it_in_the_order_of_the_grid():
    """A method without an option has no value of it."""
    (point,) = plan({"k2": (4,), "n": (3,)}, SETTINGS, ("bptt", TBPTT), OPTIONS, take).points
    assert [("bptt", {"n": 3}), (TBPTT, {"k2": 4, "n": 3})] == [(c.base, dict(c.grid)) for c in point.cells]
    assert ["k2", "n"] == list(point.cells[1].grid)


def test_what_is_left_out_is_noted():
    """A combination out of range and an option of no method that runs are told."""
    sweep = plan({"k2": (1, 4), "tau": (3,)}, SETTINGS, (TBPTT,), OPTIONS, take)
    expected = (f'"tau" is no option of {TBPTT}: not swept', "tbptt:k1=2,k2=1: left out, tbptt: k2 is smaller than k1")
    assert expected == sweep.notes


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
        plan(grid, SETTINGS, methods, OPTIONS, take)
    (diagnostic,) = caught.value.diagnostics
    assert code == diagnostic.code
    assert words in diagnostic.help


def test_an_unknown_key_is_refused_where_it_stands():
    """A key of a spec's grid has a place."""
    place = Place("a.toml", 7, 1)
    with pytest.raises(BpError) as caught:
        plan({"m": (1,)}, SETTINGS, ("bptt",), OPTIONS, take, {"m": place})
    assert place == caught.value.diagnostics[0].place


def test_the_largest_lawful_sweep_is_planned():
    """As many cells as are allowed."""
    half = tuple(range(MAX_CELLS // 2))
    assert MAX_CELLS == plan({"seed": half}, SETTINGS, ("bptt", "rtrl"), OPTIONS, take).cells


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
