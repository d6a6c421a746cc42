"""The source of every array of a Problem, bitwise equal after a round trip through a file, and seeded draws."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from problem_cases import FEED_FORWARD, RNN, assert_same, open_text, refusals

from bpcli import tasks
from bpcli.errors import BpError, Place
from bpcli.problem.array_files import export_arrays, write_npz
from bpcli.problem.definition import Problem
from bpcli.problem.draw import draw, generator, initial, outside, pattern
from bpcli.spec.specification import ArrayDecl
from bpcli.tasks import find_task, known_tasks

FLOAT64, FLOAT32 = np.dtype(np.float64), np.dtype(np.float32)


def arrays_of(problem: Problem) -> dict[str, np.ndarray]:
    """All arrays by name."""
    return {**problem.params, **problem.inputs, **problem.state}


STATE = 'a = ["n"]'
PER_SAMPLE = '{ shape = ["n"], init = "uniform", scale = 0.5, per_sample = true }'


def test_a_state_may_be_drawn_for_every_sample(tmp_path):
    """Samples differ, and more of them change none of the first ones; a file's state for all samples wins."""
    text = RNN.replace(STATE, f"a = {PER_SAMPLE}")
    few, more = (draw(open_text(tmp_path, text, batch=batch)).state["a"] for batch in (2, 5))
    assert ((2, 3), (5, 3)) == (few.shape, more.shape)
    assert np.array_equal(few, more[:2]) and (0.5 >= np.abs(more)).all()
    assert 15 == len(set(more.ravel().tolist()))
    shared = draw(open_text(tmp_path, text.replace(", per_sample = true", ""), batch=5)).state["a"]
    assert (3,) == shared.shape


@pytest.mark.parametrize("held", [(3,), (4, 3)])
def test_a_file_replaces_what_would_be_drawn_for_every_sample(held, tmp_path):
    """With one state for each sample or one for all."""
    problem = draw(open_text(tmp_path, RNN.replace(STATE, f"a = {PER_SAMPLE}"), T=2, batch=4))
    arrays = {**problem.inputs, "a": np.full(held, 7.0)}
    write_npz(tmp_path / "data.npz", arrays)
    again = RNN.replace(STATE, f"a = {PER_SAMPLE}") + '[data]\nfile = "data.npz"\n'
    assert np.array_equal(arrays["a"], draw(open_text(tmp_path, again)).state["a"])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_arrays_have_the_shapes_of_the_problem(dtype, tmp_path):
    """C-contiguous arrays of the spec's type: one state for all samples, inputs by step and sample."""
    problem = draw(open_text(tmp_path, RNN, T=5, batch=6, dtype=dtype))
    shapes = {"W": (3, 3), "U": (3, 2), "w": (3,), "x": (5, 6, 2), "y_star": (5, 6), "a": (3,)}
    assert shapes == {name: array.shape for name, array in arrays_of(problem).items()}
    for array in arrays_of(problem).values():
        assert np.dtype(dtype) == array.dtype
        assert array.flags.c_contiguous and array.flags.writeable


def test_feed_forward_inputs_have_no_time(tmp_path):
    """Inputs are `(batch, *shape)` and there is no state."""
    problem = draw(open_text(tmp_path, FEED_FORWARD))
    assert (4, 2) == problem.inputs["x"].shape
    assert {} == problem.state


@pytest.mark.parametrize(
    "change",
    [
        ("w = [", 'extra = ["n", "n"]\nw = ['),
        ("y_star = []", 'y_star = []\nz = ["n"]'),
        ("[state]", '[state]\nb = ["n"]'),
        ('U = ["n", "m"]', 'U = { shape = ["n", "m"], density = 0.5 }'),
    ],
)
def test_adding_an_array_changes_no_other(change, tmp_path):
    """Every array that both specs have alike has the same bits."""
    before = arrays_of(draw(open_text(tmp_path, RNN)))
    text = RNN.replace(*change).replace(
        "[equations]", '[equations]\nb = "b[t-1]"' if "b = [" in change[1] else "[equations]"
    )
    after = arrays_of(draw(open_text(tmp_path, text)))
    for name in set(before) - ({"U"} if "density" in change[1] else set()):
        assert before[name].tobytes() == after[name].tobytes(), name


def test_the_seed_changes_every_drawn_array(tmp_path):
    """Parameters and inputs follow the seed; the same seed gives the same bits."""
    first, again = (arrays_of(draw(open_text(tmp_path, RNN, seed=1))) for _ in range(2))
    assert_same(first, again)
    other = arrays_of(draw(open_text(tmp_path, RNN, seed=2)))
    assert all((first[name] != other[name]).any() for name in ("W", "U", "w", "x", "y_star"))


def test_float32_draws_are_the_float64_ones_rounded(tmp_path):
    """The type changes the last rounding alone."""
    wide = arrays_of(draw(open_text(tmp_path, RNN)))
    narrow = arrays_of(draw(open_text(tmp_path, RNN, dtype="float32")))
    for name, array in wide.items():
        np.testing.assert_array_equal(array.astype(np.float32), narrow[name])


def test_density_leaves_zeros_and_keeps_the_rest(tmp_path):
    """Outside the pattern there are zeros, inside the numbers of the dense draw."""
    text = RNN.replace('W = ["n", "n"]', 'W = { shape = ["n", "n"], density = 0.5 }')
    dense = draw(open_text(tmp_path, RNN)).params["W"]
    problem = draw(open_text(tmp_path, text))
    pattern = problem.setup.wrt[0].pattern
    expected = np.zeros(9)
    expected[pattern] = dense.ravel()[pattern]
    np.testing.assert_array_equal(expected.reshape(3, 3), problem.params["W"])


def test_values_in_the_spec_are_used(tmp_path):
    """Inline values serve every step and sample; a state's and a parameter's value is taken as it is."""
    text = RNN.replace('w = ["n"]', 'w = { shape = ["n"], value = [1, 2, 3] }')
    text = text.replace('a = ["n"]', 'a = { shape = ["n"], value = [4, 5, 6] }')
    problem = draw(open_text(tmp_path, text + "[data]\nvalues = { x = [7, 8], y_star = 9 }\nT = 2\nbatch = 3\n"))
    np.testing.assert_array_equal([1.0, 2.0, 3.0], problem.params["w"])
    np.testing.assert_array_equal([4.0, 5.0, 6.0], problem.state["a"])
    np.testing.assert_array_equal(np.broadcast_to([7.0, 8.0], (2, 3, 2)), problem.inputs["x"])
    np.testing.assert_array_equal(np.full((2, 3), 9.0), problem.inputs["y_star"])


FILES = '[weights]\nfile = "all.npz"\n[data]\nfile = "all.npz"\n'
TRAINED = RNN.replace('a = ["n"]', 'a = { shape = ["n"], init = "normal", trainable = true }')


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (RNN, {"T": 5, "batch": 2}),
        (TRAINED, {"seed": 0}),
        (RNN.replace('W = ["n", "n"]', 'W = { shape = ["n", "n"], density = 0.5 }'), {}),
        (FEED_FORWARD, {"batch": 7}),
    ],
)
def test_an_export_read_back_is_the_same_problem(text, overrides, dtype, tmp_path):
    """Parameters, inputs and initial states survive the file bit for bit."""
    problem = draw(open_text(tmp_path, text, dtype=dtype, **overrides))
    write_npz(tmp_path / "all.npz", export_arrays(problem))
    again = draw(open_text(tmp_path, text + FILES, dtype=dtype))
    assert_same(arrays_of(problem), arrays_of(again))
    assert (problem.setup.T, problem.setup.batch, problem.setup.shared) == (
        again.setup.T,
        again.setup.batch,
        again.setup.shared,
    )


def test_a_state_for_each_sample_is_exported_as_such(tmp_path):
    """`(batch, *shape)` in, `(batch, *shape)` out."""
    start = np.arange(12.0).reshape(4, 3)
    np.savez(tmp_path / "data.npz", x=np.ones((5, 4, 2)), y_star=np.ones((5, 4)), a=start)
    problem = draw(open_text(tmp_path, RNN + '[data]\nfile = "data.npz"\n'))
    np.testing.assert_array_equal(start, export_arrays(problem)["a"])


@pytest.mark.parametrize(
    ("weights", "data", "expected"), [(False, False, 9.0), (True, False, 1.0), (True, True, 2.0), (False, True, 2.0)]
)
def test_a_trainable_state_comes_from_data_then_weights_then_value(weights, data, expected, tmp_path):
    """Data precede weights, and weights the declaration; a weights file without the state leaves it as declared."""
    text = RNN.replace('a = ["n"]', 'a = { shape = ["n"], value = [9, 9, 9], trainable = true }')
    params = {"W": np.ones((3, 3)), "U": np.ones((3, 2)), "w": np.ones(3)}
    np.savez(tmp_path / "w.npz", **params, **({"a": np.ones(3)} if weights else {}))
    inputs = {"x": np.ones((5, 4, 2)), "y_star": np.ones((5, 4))}
    np.savez(tmp_path / "d.npz", **inputs, **({"a": np.full(3, 2.0)} if data else {}))
    problem = draw(open_text(tmp_path, text + '[weights]\nfile = "w.npz"\n[data]\nfile = "d.npz"\n'))
    np.testing.assert_array_equal(np.full(3, expected), problem.state["a"])


def test_weights_are_read_under_mapped_names(tmp_path):
    """`map` takes our name to the file's; other arrays are ignored."""
    np.savez(tmp_path / "w.npz", **{"rnn.W": 2 * np.ones((3, 3)), "U": np.ones((3, 2)), "w": np.ones(3), "z": [True]})
    text = RNN + '[weights]\nfile = "w.npz"\nmap = { W = "rnn.W" }\n'
    np.testing.assert_array_equal(2 * np.ones((3, 3)), draw(open_text(tmp_path, text)).params["W"])


SPARSE = '{ shape = ["n", "n"], density = 0.5'


@pytest.mark.parametrize(
    ("change", "dtype", "expected"),
    [
        (
            ('W = ["n", "n"]', f"W = {SPARSE}, value = [[1, 1, 1], [1, 1, 1], [1, 1, 1]] }}"),
            "float64",
            ("outside-pattern", 9),
        ),
        (('W = ["n", "n"]', 'W = { shape = ["n", "n"], scale = 1.7e308 }'), "float64", ("not-finite", 9)),
        (('a = ["n"]', 'a = { shape = ["n"], init = "normal", scale = 3.4e38 }'), "float32", ("not-finite", 13)),
    ],
)
def test_values_that_cannot_be_used_are_refused(change, dtype, expected, tmp_path):
    """Numbers off the pattern, and numbers that the type can't hold, are refused at their line."""
    setup = open_text(tmp_path, RNN.replace(*change), dtype=dtype, seed=1)
    with pytest.raises(BpError) as caught:
        draw(setup)
    assert [expected] == refusals(caught.value)


@pytest.mark.parametrize(
    ("bad", "line", "code"),
    [
        ({"W": np.ones((3, 3))}, 18, "outside-pattern"),
        ({"w": np.array([0.0, np.inf, 0.0])}, 18, "not-finite"),
        ({"x": np.full((5, 4, 2), np.nan)}, 20, "not-finite"),
        ({"a": np.full((4, 3), np.nan)}, 20, "not-finite"),
    ],
)
def test_contents_of_files_are_refused_at_the_line_that_names_them(bad, line, code, tmp_path):
    """Errors in the content of a file are refused at the line that names it."""
    good = {
        "W": np.zeros((3, 3)),
        "U": np.ones((3, 2)),
        "w": np.ones(3),
        "x": np.ones((5, 4, 2)),
        "y_star": np.ones((5, 4)),
    }
    np.savez(tmp_path / "all.npz", **{**good, **bad})
    setup = open_text(tmp_path, RNN.replace('W = ["n", "n"]', f"W = {SPARSE} }}") + FILES)
    with pytest.raises(BpError) as caught:
        draw(setup)
    assert [(code, line)] == refusals(caught.value)


def test_a_file_that_changed_since_is_refused(tmp_path):
    """Shapes are looked at again before anything is read."""
    np.savez(tmp_path / "d.npz", x=np.ones((5, 4, 2)), y_star=np.ones((5, 4)))
    setup = open_text(tmp_path, RNN + '[data]\nfile = "d.npz"\n')
    np.savez(tmp_path / "d.npz", x=np.ones((50, 4, 2)), y_star=np.ones((5, 4)))
    with pytest.raises(BpError) as caught:
        draw(setup)
    assert [("shape-mismatch", 18)] == refusals(caught.value)


def test_every_task_can_be_found():
    """A task has its module's name and a summary of one line."""
    assert "random" in known_tasks()
    for name in known_tasks():
        task = find_task(name, None)
        assert name == task.name
        assert task.summary and "\n" not in task.summary


def _task(monkeypatch, fill) -> None:
    module = SimpleNamespace(TASK=SimpleNamespace(name="fake", summary="", Options=tasks.NoTaskOptions, fill=fill))
    monkeypatch.setattr(tasks, "known_tasks", lambda: ("fake", "random"))
    monkeypatch.setattr(tasks.importlib, "import_module", lambda name: module)


@pytest.mark.parametrize(
    ("text", "filled"),
    [(RNN, "x"), (RNN.replace("x = [", "u = [").replace("@ x", "@ u") + '[data]\ninput = "u"\n', "u")],
)
def test_a_task_fills_the_inputs_of_its_roles(text, filled, monkeypatch, tmp_path):
    """x and y_star, unless `[data]` says otherwise; a task's draws are its own, and other inputs are drawn normal."""
    _task(monkeypatch, lambda setup, options, rng: {"input": rng("signal").random((setup.T, setup.batch, 2))})
    text = text.replace("[data]", '[data]\ntask = "fake"') if "[data]" in text else text + '[data]\ntask = "fake"\n'
    inputs = draw(open_text(tmp_path, text, batch=500)).inputs
    assert 0 <= inputs[filled].min() < inputs[filled].max() < 1
    assert inputs["y_star"].min() < -1 and inputs["y_star"].max() > 1


@pytest.mark.parametrize(
    ("text", "shape", "code"),
    [
        (RNN, (20, 4, 3), "shape-mismatch"),
        (RNN.replace("x = [", "u = [").replace("@ x", "@ u"), (20, 4, 2), "unknown-name"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(text, shape, code, monkeypatch, tmp_path):
    """A role without an input, or an input of another shape, is refused at the task's line."""
    _task(monkeypatch, lambda setup, options, rng: {"input": np.zeros(shape)})
    setup = open_text(tmp_path, text + '[data]\ntask = "fake"\n')
    with pytest.raises(BpError) as caught:
        draw(setup)
    assert [(code, 18)] == refusals(caught.value)


def param(shape: tuple[int, ...], **fields: object) -> ArrayDecl:
    """A parameter called W."""
    return ArrayDecl(name="W", kind="param", shape=shape, place=Place("s", 1, 1), **fields)


@pytest.mark.parametrize(
    ("init", "shape", "expected"),
    [
        ("zeros", (2, 3), np.zeros((2, 3))),
        ("ones", (), np.array(0.5)),
        ("ones", (3,), np.full(3, 0.5)),
        ("identity", (2, 2), 0.5 * np.eye(2)),
        ("identity", (2, 3), 0.5 * np.eye(2, 3)),
        ("identity", (3, 2), 0.5 * np.eye(3, 2)),
    ],
)
def test_fixed_initialisers(init, shape, expected):
    """Each is its matrix times the scale, in a writable array of the shape asked for."""
    array = initial(param(shape, init=init, scale=0.5), 0, FLOAT64)
    assert shape == array.shape
    assert array.flags.writeable and array.flags.c_contiguous
    np.testing.assert_array_equal(expected, array)


@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("scale", [1.0, 0.9, -2.0])
def test_orthogonal_has_orthonormal_rows_or_columns(shape, scale):
    """The Gram matrix of the shorter side is the identity times scale squared."""
    array = initial(param(shape, init="orthogonal", scale=scale), 3, FLOAT64)
    gram = array @ array.T if shape[0] < shape[1] else array.T @ array
    np.testing.assert_allclose(scale**2 * np.eye(min(shape)), gram, atol=1e-13)


@pytest.mark.parametrize(
    ("init", "scale", "deviation", "bound"),
    [
        ("normal", 0.3, 0.3, np.inf),
        ("uniform", 0.3, 0.3 / np.sqrt(3), 0.3),
        ("glorot", 2.0, 2.0 * np.sqrt(2 / 700), 2.0 * np.sqrt(6 / 700)),
    ],
)
def test_drawn_initialisers_have_their_moments(init, scale, deviation, bound):
    """Mean 0, the standard deviation of the definition, and entries within the bound."""
    array = initial(param((300, 400), init=init, scale=scale), 0, FLOAT64)
    assert abs(array.mean()) < 4 * deviation / np.sqrt(array.size)
    assert abs(array.std() / deviation - 1) < 0.01
    assert np.abs(array).max() <= bound


@pytest.mark.parametrize(
    ("init", "shape"),
    [("orthogonal", (7, 9)), ("glorot", (70, 1000)), ("normal", (70, 1000)), ("uniform", (70, 1000))],
)
def test_float32_is_float64_rounded(init, shape):
    """The type changes the last rounding alone."""
    wide = initial(param(shape, init=init), 0, FLOAT64)
    narrow = initial(param(shape, init=init), 0, FLOAT32)
    assert FLOAT32 == narrow.dtype
    np.testing.assert_array_equal(wide.astype(np.float32), narrow)


@pytest.mark.parametrize(
    ("value", "shape"), [(2.5, ()), ((1.0, 2.0), (2,)), (((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), (2, 3))]
)
def test_value_is_taken_as_it_is(value, shape):
    """Numbers given in the spec are the array."""
    array = initial(param(shape, init="value", value=value), 0, FLOAT64)
    np.testing.assert_array_equal(np.array(value), array)
    assert shape == array.shape


def test_generators_depend_on_seed_kind_and_name_alone():
    """Equal labels give equal numbers; any difference gives others. The first number is fixed for good."""
    labels = [(s, k, n) for s in (0, 1, 2**70) for k in ("inputs", "params", "states") for n in ("a", "b", "α")]
    draws = [generator(*label).random() for label in labels]
    assert len(labels) == len(set(draws))
    assert draws == [generator(*label).random() for label in reversed(labels)][::-1]
    assert FIRST == generator(0, "params", "W").random()


FIRST = 0.9206428812833373


@pytest.mark.parametrize(
    ("shape", "density", "count"),
    [((10, 10), 0.1, 10), ((3, 3), 0.5, 4), ((100, 100), 0.001, 10), ((7, 5), 0.99, 35), ((2, 2), 0.01, 0)],
)
def test_density_keeps_the_rounded_count(shape, density, count):
    """round(density * size) distinct entries, sorted; the mask holds the others."""
    decl = param(shape, init="normal", density=density)
    kept = pattern(decl, 0)
    assert np.dtype(np.int64) == kept.dtype
    assert count == len(kept) == len(set(kept.tolist()))
    assert kept.tolist() == sorted(kept.tolist())
    mask = outside(decl, 0)
    np.testing.assert_array_equal(kept, np.flatnonzero(~mask))
    assert shape == mask.shape


def test_a_full_density_is_no_pattern():
    """Density 1 is a dense array."""
    assert pattern(param((3, 3), density=1.0), 0) is None
    assert outside(param((3, 3)), 0) is None


def test_patterns_are_spread_evenly_and_follow_the_seed():
    """Every entry is kept about equally often over seeds, and seeds give different patterns."""
    decl = param((4, 5), density=0.25)
    counts = np.bincount(np.concatenate([pattern(decl, seed) for seed in range(800)]), minlength=20)
    assert 800 * 5 == counts.sum()
    assert np.abs(counts - 200).max() < 60
