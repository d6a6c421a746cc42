"""Legal specs, read as the format says: every form of TOML, every default, every option over the file."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from spec_cases import FEED_FORWARD, RECURRENT, changed, load_text, loaded, unmarked, written

from bpcli.errors import BpError, Collector
from bpcli.spec.load import load, parse_assignment

SPECS = sorted(Path(__file__).parent.parent.joinpath("specs").glob("*.toml"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_specs_of_the_project(path):
    """Every spec that comes with the project loads, under its own name."""
    collector = Collector()
    spec = load(path, {}, collector)
    assert [] == collector.diagnostics
    assert path.stem == spec.name
    assert frozenset() == spec.refused


def test_a_whole_spec(tmp_path):
    """The Spec holds the content of the file, in the file's order."""
    spec = loaded(tmp_path, RECURRENT)
    assert ("spec", "A net", "", "float64") == (spec.name, spec.title, spec.description, spec.dtype)
    assert {"n": 4, "m": 2} == spec.dims
    assert {"alpha": 0.5} == spec.constants
    assert [("x", (2,)), ("y_star", ())] == [(d.name, d.shape) for d in spec.inputs.values()]
    assert [("W", (4, 4)), ("V", (4, 2)), ("b", (4,))] == [(d.name, d.shape) for d in spec.params.values()]
    assert [("a", (4,), "zeros", False)] == [(d.name, d.shape, d.init, d.trainable) for d in spec.states.values()]
    assert ["h", "a", "loss"] == list(spec.equations)
    assert "(((W @ a[t-1]) + (V @ x)) + b)" == written(spec.equations["h"].expr)
    assert ("loss", "sum", "mean") == (spec.objective.loss, spec.objective.over_time, spec.objective.over_batch)
    assert ("random", None, None, 7, 3, 0) == (
        spec.data.task,
        spec.data.file,
        spec.data.values,
        spec.data.T,
        spec.data.batch,
        spec.data.seed,
    )
    assert (("bptt",), ("params",)) == (spec.check.methods, spec.check.wrt)
    assert {"n": (4, 8)} == spec.bench.grid
    assert spec.weights is None


def test_the_least_spec(tmp_path):
    """Only the version and the equations are required."""
    spec = loaded(tmp_path, 'bp = 1\n[equations]\nloss = "1"\n')
    assert ({}, {}, {}, {}) == (spec.dims, spec.inputs, spec.params, spec.states)
    assert (None, None, 0) == (spec.data.T, spec.data.batch, spec.data.seed)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("p = []", ((), "normal", 0.1)),
        ('p = ["n"]', ((3,), "normal", 0.1)),
        ('p = ["2*n + 1"]', ((7,), "normal", 0.1)),
        ('p = ["(n + 1) // 2"]', ((2,), "normal", 0.1)),
        ("p = [2, 16]", ((2, 16), "normal", 0.25)),
        ('p = { shape = [2, 16], init = "uniform" }', ((2, 16), "uniform", 0.25)),
        ('p = { shape = [2, 16], init = "glorot" }', ((2, 16), "glorot", 1.0)),
        ('p = { shape = [2, 16], init = "orthogonal", scale = 2 }', ((2, 16), "orthogonal", 2.0)),
        ('p = { shape = [2, 2], init = "identity", scale = -1.5 }', ((2, 2), "identity", -1.5)),
        ("p = { shape = [2], scale = 3 }", ((2,), "normal", 3.0)),
        ("p.shape = [2]\np.init = 'ones'", ((2,), "ones", 1.0)),
        ("[params.p]\nshape = [\n  2, # rows\n  'n',\n]", ((2, 3), "normal", 1 / math.sqrt(3))),
        ('"p" = [2]', ((2,), "normal", 0.1)),
    ],
)
def test_shapes_and_inits_of_params(declared, expected, tmp_path):
    """Short forms, tables, dotted keys and subtables, with the default scale of each init."""
    text = changed(FEED_FORWARD, "[equations]", f"{declared}\n[equations]")
    param = loaded(tmp_path, text).params["p"]
    assert expected == (param.shape, param.init, param.scale)
    assert param.trainable
    assert param.density is None


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("{ shape = [], value = 2 }", 2.0),
        ("{ shape = [2], value = [1, -2.5] }", (1.0, -2.5)),
        ("{ shape = [2, 1], value = [[1], [2]] }", ((1.0,), (2.0,))),
        ("{ shape = [1, 2], value = [[1, 2]], trainable = false, density = 0.5 }", ((1.0, 2.0),)),
    ],
)
def test_values(declared, value, tmp_path):
    """Numbers given inline become nested tuples of floats."""
    param = loaded(tmp_path, changed(FEED_FORWARD, "[equations]", f"p = {declared}\n[equations]")).params["p"]
    assert ("value", value) == (param.init, param.value)
    assert param.trainable == (param.density is None)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ('["n"]', ("zeros", 1.0, False)),
        ('{ shape = ["n"], trainable = true }', ("zeros", 1.0, True)),
        ('{ shape = ["n"], init = "normal" }', ("normal", 0.1, False)),
        ('{ shape = ["n"], init = "ones", scale = 0.5 }', ("ones", 0.5, False)),
        ('{ shape = ["n"], value = [1, 2, 3, 4] }', ("value", 1.0, False)),
    ],
)
def test_states(declared, expected, tmp_path):
    """States start from zeros unless they say otherwise."""
    state = loaded(tmp_path, changed(RECURRENT, 'a = ["n"]', f"a = {declared}")).states["a"]
    assert expected == (state.init, state.scale, state.trainable)


@pytest.mark.parametrize(
    "text",
    [
        FEED_FORWARD.replace("\n", "\r\n"),
        "\ufeff" + FEED_FORWARD,
        FEED_FORWARD.rstrip("\n"),
        FEED_FORWARD.replace('"W @ x"', "'''\nW @\n x'''"),
        FEED_FORWARD.replace('"W @ x"', '"""W @\\\n   x"""'),
        FEED_FORWARD.replace('"W @ x"', '"\\u0057 @ x"'),
        FEED_FORWARD.replace("y =", "'y' ="),
        FEED_FORWARD + "[state]\n",
        FEED_FORWARD + "[objective]\nover_batch = 'sum'\n[check]\n[bench]\n[data]\n",
        FEED_FORWARD.replace("[params]\nW = ", "[params] # with a note\nW=").replace("[dims]", "[ dims ]"),
    ],
)
def test_the_same_spec_in_other_words(text, tmp_path):
    """Line ends, byte order marks, strings and keys of every form."""
    spec = loaded(tmp_path, text.encode("utf-8"))
    assert ["(W @ x)", "sum(y)"] == [written(e.expr) for e in spec.equations.values()]
    assert (3, 3) == spec.params["W"].shape


def test_names_in_normal_form(tmp_path):
    """A name is the identifier that Python reads: the micro sign is the Greek letter, wherever either stands."""
    text = """bp = 1
[params]
"µ" = { shape = [2], init = "ones" }
[equations]
"α" = "µ * 2"
loss = "sum(α) + dot(μ, α)"
"""
    spec = loaded(tmp_path, text)
    assert ["μ"] == list(spec.params)
    assert (3, 1) == (spec.source.key("params", "μ").line, spec.source.key("params", "µ").column)
    assert "(sum(α) + dot(μ, α))" == written(spec.equations["loss"].expr)


def test_one_of_task_file_and_values(tmp_path):
    """Inputs come from a task, a file or inline values; files are not opened here."""
    data = loaded(tmp_path, FEED_FORWARD + '[data]\nfile = "missing.npz"\n').data
    assert (None, "missing.npz", None) == (data.task, data.file, data.values)
    data = loaded(tmp_path, FEED_FORWARD + "[data]\nvalues = { x = [1, 2, 3] }\n").data
    assert (None, None, {"x": (1.0, 2.0, 3.0)}) == (data.task, data.file, data.values)
    data = loaded(tmp_path, FEED_FORWARD + "[data]\ntask = 'copy'\ninput = 'x'\nseed = 5\n").data
    assert ("copy", "x", 5) == (data.task, data.input, data.seed)


def test_weights(tmp_path):
    """A map takes names of parameters to those in the file."""
    weights = loaded(tmp_path, FEED_FORWARD + "[weights]\nfile = 'w.npz'\nmap.W = 'rnn.w'\n").weights
    assert ("w.npz", {"W": "rnn.w"}) == (weights.file, weights.map)


def test_grids_may_name_options_of_methods(tmp_path):
    """Keys of the grid that are no dim, constant or setting are left to the methods."""
    grid = loaded(tmp_path, changed(RECURRENT, "n = [4, 8]", 'k2 = [1, 2]\nT = [5]\ndtype = ["float32"]')).bench.grid
    assert {"k2": (1, 2), "T": (5,), "dtype": ("float32",)} == grid


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"n": 9}, (9, 0.5, 7, 3, 0, "float64")),
        ({"alpha": 1}, (4, 1.0, 7, 3, 0, "float64")),
        ({"T": 2, "batch": 1, "seed": 8}, (4, 0.5, 2, 1, 8, "float64")),
        ({"dtype": "float32"}, (4, 0.5, 7, 3, 0, "float32")),
    ],
)
def test_options_over_the_file(overrides, expected, tmp_path):
    """An option replaces what the file says, before shapes are worked out."""
    spec = loaded(tmp_path, RECURRENT, overrides)
    found = (spec.dims["n"], spec.constants["alpha"], spec.data.T, spec.data.batch, spec.data.seed, spec.dtype)
    assert expected == found
    assert (expected[0], expected[0]) == spec.params["W"].shape


def test_a_dim_may_be_called_t(tmp_path):
    """T is the number of steps in a recurrent network, and may be a dim or constant of any other."""
    assert 5 == loaded(tmp_path, changed(FEED_FORWARD, "n = 3", "n = 3\nT = 2"), {"T": 5}).dims["T"]
    spec = loaded(tmp_path, changed(RECURRENT, "m = 2", "m = 2\nT = 2"), {"T": 5})
    assert (2, 5) == (spec.dims["T"], spec.data.T)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n=64", ("n", 64)),
        (" n = -3 ", ("n", -3)),
        ("alpha=1e-3", ("alpha", 0.001)),
        ("dtype=float32", ("dtype", "float32")),
        ("µ=1", ("μ", 1)),
        ("x=a=b", ("x", "a=b")),
    ],
)
def test_assignments(text, expected):
    """KEY=VALUE is read as an integer, a number or a word."""
    key, value = parse_assignment(text)
    assert (*expected, type(expected[1])) == (key, value, type(value))


@pytest.mark.parametrize("text", ["n", "=3", "n=", "", "n:3"])
def test_what_is_no_assignment(text):
    """Text other than KEY=VALUE is a usage error."""
    with pytest.raises(BpError) as caught:
        parse_assignment(text)
    assert ["usage"] == [d.code for d in caught.value.diagnostics]


def test_places_of_keys_and_values(tmp_path):
    """Every key and value has its line and column in characters, elements of arrays by their index."""
    text, places = unmarked(
        'bp = 1\n▸[params]\n▸W = ▸["αβ", ▸[▸2]] # note\n'
        '▸"é" . ▸k = { ▸shape = [\n  1,\n  ▸2 ], ▸"y z" = ▸true }\n[▸q.▸r]\ns = 1'
    )
    spec = load_text(tmp_path, text + "\n[equations]\nloss = '1'")[0]
    source = spec.source
    found = [
        source.key("params"),
        source.key("params", "W"),
        source.value("params", "W"),
        source.value("params", "W", "1"),
        source.value("params", "W", "1", "0"),
        source.key("params", "é"),
        source.key("params", "é", "k"),
        source.key("params", "é", "k", "shape"),
        source.value("params", "é", "k", "shape", "1"),
        source.key("params", "é", "k", "y z"),
        source.value("params", "é", "k", "y z"),
        source.key("q"),
        source.key("q", "r"),
    ]
    expected = [*places[:-1], (places[-2][0], 1)]
    assert expected == [(place.line, place.column) for place in found]
    assert places[0] == (source.key("params", "missing").line, source.key("params", "missing").column)
    assert (1, 1) == (source.key("missing").line, source.key("missing").column)


def test_places_of_tokens_are_as_wide_as_they_are_written(tmp_path):
    """A caret is as wide as the token in the file, escapes included, and ends with the line."""
    text = changed(FEED_FORWARD, '"W @ x"', '"tanh(W @ \\u0078) + c\\u0061t"')
    refused = loaded(tmp_path, text).equations["y"].expr
    assert (9, 23, 1) == (refused.place.line, refused.place.column, refused.place.width)
    assert (25, 8) == (refused.right.place.column, refused.right.place.width)


@pytest.mark.parametrize("module", ["bpcli.spec.load", "bpcli.spec.equations", "bpcli.spec.specification"])
def test_pydantic_is_imported_only_to_load(module):
    """Importing the loader imports neither pydantic nor Numba."""
    code = f"import sys, {module}; sys.exit('pydantic' in sys.modules or 'numba' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode
