"""From a spec to a Setup: sizes, the arrays to differentiate with respect to, and each refusal with its line."""

from __future__ import annotations

import numpy as np
import pytest
from problem_cases import FEED_FORWARD, RNN, open_text, refusals

from bpcli.errors import BpError
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup

STATE = RNN.replace('a = ["n"]', 'a = { shape = ["n"], trainable = true }')
FROZEN = RNN.replace('w = ["n"]', 'w = { shape = ["n"], trainable = false }')
SPARSE = RNN.replace('W = ["n", "n"]', 'W = { shape = ["n", "n"], density = 0.5 }')


@pytest.mark.parametrize(
    ("text", "wrt", "expected"),
    [
        (RNN, (), [("W", "param", (3, 3)), ("U", "param", (3, 2)), ("w", "param", (3,))]),
        (FROZEN, ("params",), [("W", "param", (3, 3)), ("U", "param", (3, 2))]),
        (RNN, ("inputs",), [("x", "input", (20, 4, 2)), ("y_star", "input", (20, 4))]),
        (RNN, ("state",), [("a", "state", (3,))]),
        (RNN, ("a", "x", "W"), [("W", "param", (3, 3)), ("x", "input", (20, 4, 2)), ("a", "state", (3,))]),
        (RNN, ("w", "w"), [("w", "param", (3,))]),
        (STATE, (), [("W", "param", (3, 3)), ("U", "param", (3, 2)), ("w", "param", (3,)), ("a", "state", (3,))]),
        (FEED_FORWARD, ("inputs", "params", "state"), [("w", "param", (2,)), ("x", "input", (4, 2))]),
        (RNN + '[check]\nwrt = ["state"]\n', (), [("a", "state", (3,))]),
        (RNN + '[check]\nwrt = ["state"]\n', ("w",), [("w", "param", (3,))]),
    ],
)
def test_wrt_names_tensors_in_the_order_of_the_spec(text, wrt, expected, tmp_path):
    """Kinds and names, from the caller or `[check]`, become tensors with the gradient's shape."""
    setup = open_text(tmp_path, text, wrt)
    assert expected == [(t.name, t.kind, t.shape) for t in setup.wrt]


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (RNN, {}, (20, 4)),
        (RNN, {"T": 3, "batch": 2}, (3, 2)),
        (RNN + "[data]\nT = 5\nbatch = 6\n", {}, (5, 6)),
        (RNN + "[data]\nT = 5\nbatch = 6\n", {"T": 7}, (7, 6)),
        (FEED_FORWARD, {}, (1, 4)),
    ],
)
def test_sizes_without_a_file(text, overrides, expected, tmp_path):
    """T and batch as given, else the defaults; T is 1 when feed-forward. Every drawn state is shared."""
    setup = open_text(tmp_path, text, **overrides)
    assert expected == (setup.T, setup.batch)
    assert setup.shared == frozenset(setup.spec.states)
    assert np.dtype(np.float64) == setup.dtype


def test_sparse_tensors_carry_their_pattern(tmp_path):
    """A density's tensor counts the entries that exist."""
    tensor = open_text(tmp_path, SPARSE, ("W",)).wrt[0]
    assert (3, 3) == tensor.shape
    assert 4 == tensor.entries == len(tensor.pattern)


@pytest.mark.parametrize(
    ("text", "wrt", "code", "line", "says"),
    [
        (RNN, ("weights",), "unknown-wrt", 0, "known: U, W, a, inputs, params, state, w, x, y_star"),
        (RNN, ("state", "y_tsar"), "unknown-wrt", 0, 'did you mean "y_star"'),
        (RNN + '[check]\nwrt = ["params", "inpts"]\n', (), "unknown-wrt", 18, 'did you mean "inputs"'),
        (FROZEN, ("w",), "not-trainable", 11, "trainable = false"),
        (FEED_FORWARD, ("state",), "nothing-to-differentiate", 0, "params, inputs"),
        (FEED_FORWARD + '[check]\nwrt = ["state"]\n', (), "nothing-to-differentiate", 9, "params, inputs"),
        (
            FEED_FORWARD.replace("w = [2]", "w = { shape = [2], trainable = false }"),
            (),
            "nothing-to-differentiate",
            1,
            "inputs",
        ),
    ],
)
def test_bad_wrt_is_refused(text, wrt, code, line, says, tmp_path):
    """Unknown, constant or empty: refused at its place, with the known names."""
    with pytest.raises(BpError) as caught:
        open_text(tmp_path, text, wrt)
    assert [(code, line)] == refusals(caught.value)
    diagnostic = caught.value.diagnostics[0]
    assert says in diagnostic.what + diagnostic.help


DATA = RNN + '[data]\nfile = "data.npz"\n'
X, Y = np.ones((5, 6, 2)), np.ones((5, 6))


@pytest.mark.parametrize(
    ("arrays", "sizes", "shared", "shape"),
    [
        ({"x": X, "y_star": Y}, (5, 6), {"a"}, (3,)),
        ({"x": X, "y_star": Y, "a": np.ones(3)}, (5, 6), {"a"}, (3,)),
        ({"x": X, "y_star": Y, "a": np.ones((6, 3))}, (5, 6), set(), (6, 3)),
        ({"x": X, "y_star": Y, "other": np.ones((9, 9, 9))}, (5, 6), {"a"}, (3,)),
    ],
)
@pytest.mark.parametrize("given", ["", "T = 5\n", "batch = 6\n", "T = 5\nbatch = 6\n"])
def test_sizes_come_from_the_data_file(given, arrays, sizes, shared, shape, tmp_path):
    """T and batch are the arrays'; an initial state with a batch axis is not shared."""
    np.savez(tmp_path / "data.npz", **arrays)
    setup = open_text(tmp_path, DATA + given, ("state",))
    assert sizes == (setup.T, setup.batch)
    assert shared == setup.shared
    assert shape == setup.wrt[0].shape


@pytest.mark.parametrize(
    ("given", "arrays", "expected", "says"),
    [
        (
            "T = 7\n",
            {"x": X, "y_star": Y},
            [("contradiction", 19)],
            'T = 7 contradicts the data file, where "x" has T = 5',
        ),
        ("batch = 5\n", {"x": X, "y_star": Y}, [("contradiction", 19)], "batch = 5"),
        ("T = 1\nbatch = 1\n", {"x": X, "y_star": Y}, [("contradiction", 19), ("contradiction", 20)], "leave T out"),
        ("", {"x": X}, [("missing-array", 18)], "the file holds: x"),
        ("", {}, [("missing-array", 18), ("missing-array", 18)], "no arrays"),
        ("", {"x": Y, "y_star": Y}, [("shape-mismatch", 18)], "(5, 6), expected (T, batch, 2)"),
        ("", {"x": X[..., :1], "y_star": Y}, [("shape-mismatch", 18)], "(5, 6, 1), expected (T, batch, 2)"),
        ("", {"x": X[:0], "y_star": Y}, [("shape-mismatch", 18)], "(0, 6, 2)"),
        ("", {"x": X, "y_star": Y.T}, [("shape-mismatch", 18)] * 2, '"x" has T = 5 and "y_star" has T = 6'),
        ("", {"x": X, "y_star": Y, "a": np.ones((5, 3))}, [("shape-mismatch", 18)], '"a" has batch = 5'),
        ("", {"x": X, "y_star": Y, "a": np.ones(4)}, [("shape-mismatch", 18)], "(4,), expected (3,) or (batch, 3)"),
        ("", {"x": X, "y_star": Y, "a": np.ones((1, 6, 3))}, [("shape-mismatch", 18)], "(1, 6, 3), expected"),
        ("", {"x": X > 0, "y_star": Y}, [("bad-dtype", 18)], "|b1"),
        ('file = "nope.npz"\n', None, None, ""),
    ],
)
def test_bad_data_files_are_refused(given, arrays, expected, says, tmp_path):
    """Contradictions, missing arrays and wrong shapes: all of them, at the line that names the file."""
    if arrays is None:
        text, expected = RNN + "[data]\n" + given, [(None, 18)]
    else:
        np.savez(tmp_path / "data.npz", **arrays)
        text = DATA + given
    with pytest.raises(BpError) as caught:
        open_text(tmp_path, text)
    found = refusals(caught.value)
    assert [line for _, line in expected] == [line for _, line in found]
    assert all(code in (None, other) for (code, _), (other, _) in zip(expected, found, strict=True))
    assert says in " ".join(d.what + " " + d.help for d in caught.value.diagnostics)


WEIGHTS = RNN + '[weights]\nfile = "w.npz"\n'
PARAMS = {"W": np.ones((3, 3)), "U": np.ones((3, 2)), "w": np.ones(3)}


@pytest.mark.parametrize(
    ("extra", "arrays", "expected", "says"),
    [
        ("", {**PARAMS, "w": np.ones(4)}, [("shape-mismatch", 18)], "(4,), the spec declares (3,)"),
        ("", {"W": PARAMS["W"], "z": Y}, [("missing-array", 18)] * 2, 'no array "U" | the file holds: W, z'),
        ('map = { w = "rnn.w" }\n', PARAMS, [("missing-array", 18)], 'no array "rnn.w"'),
        ('map = { w = "W" }\n', PARAMS, [("shape-mismatch", 18)], '"w" (as "W") with shape (3, 3)'),
        ("", {**PARAMS, "U": np.ones((3, 2), dtype=complex)}, [("bad-dtype", 18)], "<c16"),
    ],
)
def test_bad_weights_files_are_refused(extra, arrays, expected, says, tmp_path):
    """Every parameter must be there, under its name or the mapped one, in its shape."""
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(BpError) as caught:
        open_text(tmp_path, WEIGHTS + extra)
    assert expected == refusals(caught.value)
    assert says in " ".join(f"{d.what} | {d.help}" for d in caught.value.diagnostics)


@pytest.mark.parametrize(
    ("data", "line", "says"),
    [
        ('task = "rndom"', 18, 'did you mean "random"'),
        ('input = "xx"', 18, 'did you mean "x"'),
        ('target = "y"', 18, "y_star"),
        ("values = { x = [1.0, 2.0] }", 18, "y_star"),
        ("values = { x = [1.0], y_star = 0.0 }", 18, "[1], declared is [2]"),
        ("values = { x = [1.0, 2.0], y_star = 0.0, z = 1.0 }", 18, '"z"'),
    ],
)
def test_bad_data_tables_are_refused(data, line, says, tmp_path):
    """Unknown tasks and names, and inline values that do not fit, are refused where they stand."""
    with pytest.raises(BpError) as caught:
        open_text(tmp_path, RNN + f"[data]\n{data}\n")
    assert [line] == [place for _, place in refusals(caught.value)]
    assert says in " ".join(d.what + " " + d.help for d in caught.value.diagnostics)


def test_everything_wrong_is_reported_together(tmp_path):
    """Data, weights and wrt are all looked at before the refusal."""
    np.savez(tmp_path / "w.npz", W=PARAMS["W"], U=PARAMS["U"])
    np.savez(tmp_path / "data.npz", x=X)
    text = WEIGHTS + '[data]\nfile = "data.npz"\n[check]\nwrt = ["Z"]\n'
    with pytest.raises(BpError) as caught:
        open_text(tmp_path, text)
    assert [("missing-array", 18), ("missing-array", 20), ("unknown-wrt", 22)] == refusals(caught.value)


def test_errors_of_the_spec_do_not_hide_those_of_its_files(tmp_path):
    """A bad equation, a bad scale, a bad file and a bad name in `wrt` are refused together, each once."""
    np.savez(tmp_path / "w.npz", W=PARAMS["W"], w=PARAMS["w"])
    text = WEIGHTS.replace("- y_star", "- y_star + q").replace(
        'U = ["n", "m"]', 'U = { shape = ["n", "m"], init = "x" }'
    )
    with pytest.raises(BpError) as caught:
        open_text(tmp_path, text + '[data]\ntask = "rndm"\nbatch = 0\n[check]\nwrt = ["U", "zz"]\n')
    lines = [line for _, line in refusals(caught.value)]
    assert sorted(lines) == lines
    assert {10, 16, 20, 21, 23} <= set(lines)
    assert 1 == lines.count(23)


@pytest.mark.parametrize("file", ["../w.npz", "/etc/passwd", "folder", "link.npz"])
def test_files_outside_the_folder_and_no_files_are_refused(file, tmp_path):
    """The refusal stands at the line that names the file, and has no consequences."""
    np.savez(tmp_path / "w.npz", **PARAMS)
    inner = tmp_path / "inner"
    (inner / "folder").mkdir(parents=True)
    (inner / "link.npz").symlink_to("../w.npz")
    with pytest.raises(BpError) as caught:
        open_text(inner, RNN + f'[weights]\nfile = "{file}"\n')
    assert [18] == [line for _, line in refusals(caught.value)]


def test_allow_outside_lets_a_spec_reach_out(tmp_path):
    """With the flag, the same file is read."""
    np.savez(tmp_path / "w.npz", **PARAMS)
    (tmp_path / "inner").mkdir()
    spec = tmp_path / "inner" / "spec.toml"
    spec.write_text(RNN + '[weights]\nfile = "../w.npz"\n', encoding="utf-8")
    setup = open_setup(spec, {}, (), Limits(max_memory=1 << 30, allow_outside=True))
    assert str(tmp_path / "w.npz") == setup.spec.weights.file
