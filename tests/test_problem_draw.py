"""From a Setup to a Problem and out to a file: where every array comes from, and that it comes back bit for bit."""

from __future__ import annotations

import stat
from types import SimpleNamespace

import numpy as np
import pytest
from problem_cases import FEED_FORWARD, RNN, open_text, refusals

from bpcli import tasks
from bpcli.errors import BpError
from bpcli.problem.array_writer import check_writable, export_arrays, replace_file, write_npz
from bpcli.problem.definition import Problem
from bpcli.problem.draw import draw
from bpcli.tasks import find_task, known_tasks


def arrays_of(problem: Problem) -> dict[str, np.ndarray]:
    """All arrays by name."""
    return {**problem.params, **problem.inputs, **problem.state}


def assert_same(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> None:
    """Equal bits, names, types and shapes."""
    assert list(expected) == list(actual)
    for name, array in expected.items():
        assert (array.dtype, array.shape) == (actual[name].dtype, actual[name].shape)
        assert array.tobytes() == actual[name].tobytes(), name


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
    """The nearest source wins; a weights file without the state leaves it as declared."""
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
    """What only reading shows points at the file's line."""
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
    """A module a task: its name is the module's, its summary one line."""
    assert "random" in known_tasks()
    for name in known_tasks():
        task = find_task(name, None)
        assert name == task.name
        assert task.summary and "\n" not in task.summary


def _task(monkeypatch, fill) -> None:
    module = SimpleNamespace(TASK=SimpleNamespace(name="fake", summary="", fill=fill))
    monkeypatch.setattr(tasks, "known_tasks", lambda: ("fake", "random"))
    monkeypatch.setattr(tasks.importlib, "import_module", lambda name: module)


@pytest.mark.parametrize(
    ("text", "filled"),
    [(RNN, "x"), (RNN.replace("x = [", "u = [").replace("@ x", "@ u") + '[data]\ninput = "u"\n', "u")],
)
def test_a_task_fills_the_inputs_of_its_roles(text, filled, monkeypatch, tmp_path):
    """x and y_star, unless `[data]` says otherwise; a task's draws are its own, and other inputs are drawn normal."""
    _task(monkeypatch, lambda setup, rng: {"input": rng("signal").random((setup.T, setup.batch, 2))})
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
    _task(monkeypatch, lambda setup, rng: {"input": np.zeros(shape)})
    setup = open_text(tmp_path, text + '[data]\ntask = "fake"\n')
    with pytest.raises(BpError) as caught:
        draw(setup)
    assert [(code, 18)] == refusals(caught.value)


def test_written_files_are_whole_and_reproducible(tmp_path):
    """The same arrays give the same bytes, readable by numpy; nothing else is left in the folder."""
    arrays = {"α": np.arange(6.0).reshape(2, 3), "loss": np.array(1.5)}
    for name in ("one.npz", "two"):
        write_npz(tmp_path / name, arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two").read_bytes()
    with np.load(tmp_path / "one.npz") as stored:
        assert_same(arrays, dict(stored))
    assert ["one.npz", "two"] == sorted(p.name for p in tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """An error on the way neither harms what was there nor leaves anything behind."""
    target = tmp_path / "out.npz"
    target.write_bytes(b"old")
    with pytest.raises(KeyError):
        replace_file(target, lambda stream: {}["missing"])
    assert b"old" == target.read_bytes()
    assert ["out.npz"] == [p.name for p in tmp_path.iterdir()]


def test_a_link_is_written_through_and_permissions_stay(tmp_path):
    """The file behind a link is replaced, not the link, and keeps its mode."""
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    replace_file(tmp_path / "link", lambda stream: stream.write(b"new"))
    assert (tmp_path / "link").is_symlink()
    assert b"new" == (tmp_path / "real").read_bytes()
    assert 0o640 == stat.S_IMODE((tmp_path / "real").stat().st_mode)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("none/out.npz", "its folder does not exist"),
        ("folder", "it is a folder"),
        ("file/out.npz", "its folder does not exist"),
        ("x" * 300, "File name too long"),
        ("nul\0", "null"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_unwritable_paths_are_refused(path, says, tmp_path):
    """Before anything is computed and when it is written, with the reason."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    for attempt in (check_writable, lambda p: write_npz(p, {})):
        with pytest.raises(BpError) as caught:
            attempt(f"{tmp_path}/{path}")
        assert [("unwritable", 0)] == refusals(caught.value)
        assert says in caught.value.diagnostics[0].what


@pytest.mark.parametrize("path", ["out.npz", "old.npz"])
def test_writable_paths_pass_and_stay_as_they_are(path, tmp_path):
    """The test of a path changes nothing."""
    (tmp_path / "old.npz").write_bytes(b"old")
    check_writable(tmp_path / path)
    assert ["old.npz"] == [p.name for p in tmp_path.iterdir()]
    assert b"old" == (tmp_path / "old.npz").read_bytes()


def test_a_device_is_written_and_not_replaced():
    """`/dev/null` stays what it is."""
    check_writable("/dev/null")
    write_npz("/dev/null", {"a": np.zeros(3)})
    with open("/dev/null", "rb") as stream:
        assert b"" == stream.read()
