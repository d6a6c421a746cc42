"""Tasks: what they draw, against loops written from their definitions, and the loss that they leave to a guess."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from problem_cases import assert_same, open_text, refusals

from bpcli.errors import BpError
from bpcli.problem.definition import Setup
from bpcli.problem.draw import draw, draw_inputs
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup
from bpcli.tasks import known_tasks
from bpcli.training.trivial import predicted, trivial_loss

SPECS = Path(__file__).parents[1] / "specs" / "tasks"
SQUARED, ENTROPY = "0.5 * sum((y - y_star)**2)", "cross_entropy(y, y_star)"


def network(task: str, x: int, y: int, loss: str = SQUARED, T: int = 40) -> str:
    """A linear network of these sizes; with y = 0 the target is a scalar."""
    shape, out = (f"[{y}]", "W @ a") if y else ("[]", "sum(W @ a)")
    return f"""\
bp = 1
[inputs]
x = [{x}]
y_star = {shape}
[params]
U = [2, {x}]
W = [{y or 1}, 2]
[state]
a = [2]
[equations]
a = "0.5 * a[t-1] + U @ x"
y = "{out}"
loss = "{loss}"
[objective]
over_time = "mean"
[data]
task = "{task}"
T = {T}
batch = 16
"""


SIZES = {
    "add": (2, 2), "copy": (6, 5), "flip-flop": (3, 3), "integration": (2, 2), "sine": (1, 1), "adding": (2, 1),
    "delay-nonmatch": (2, 1), "anbn": (3, 3), "lorenz": (3, 3), "mimic": (3, 2),
}  # fmt: skip


def entropy(*p: float) -> float:
    """Of a distribution, in nats."""
    return -sum(q * math.log(q) for q in p if q > 0)


def opened(folder: Path, task: str, **more: object) -> Setup:
    """The setup of a task in a network of its sizes."""
    return open_text(folder, network(task, *SIZES[task.split(":")[0]], **more))


def test_every_task_is_in_the_table():
    """And has a spec that shows it, whose task it is."""
    assert {*SIZES, "random"} == set(known_tasks())
    for name in SIZES:
        setup = open_setup(SPECS / f"{name.replace('-', '_')}.toml", {}, (), Limits())
        assert name == str(setup.spec.data.task).split(":")[0]


@pytest.mark.parametrize("task", SIZES)
def test_draws_follow_from_the_seed(task, tmp_path):
    """The same batch has the same bits, another batch or seed has other inputs, and all have the shapes of the spec."""
    setup = opened(tmp_path, task)
    first = draw_inputs(setup, 1)
    assert_same(first, draw_inputs(setup, 1))
    assert_same(draw(setup).inputs, draw_inputs(setup))
    other = open_text(tmp_path, network(task, *SIZES[task]), seed=1)
    assert (first["x"] != draw_inputs(setup, 2)["x"]).any()
    assert (first["x"] != draw_inputs(other, 1)["x"]).any()
    assert {(40, 16, SIZES[task][1])} == {first["y_star"].shape}


def add(x, T, b):
    """½ + ½ x(t - 3) - ¼ x(t - 8)."""
    flips = x[:, b, 0]
    return [0.5 + 0.5 * (flips[t - 3] if t >= 3 else 0) - 0.25 * (flips[t - 8] if t >= 8 else 0) for t in range(T)]


def copy(x, T, b):
    """The index of the symbol to say: the first three inputs at the last three steps, else the blank."""
    return [int(x[t - T + 3, b].argmax()) if t >= T - 3 else 4 for t in range(T)]


def flip_flop(x, T, b):
    """The last pulse of the first channel."""
    held, found = 0.0, []
    for t in range(T):
        held = x[t, b, 0] or held
        found.append(held)
    return found


def adding(x, T, b):
    """The sum of the marked numbers, at the last step."""
    assert [1, 1] == [x[: T // 2, b, 1].sum(), x[T // 2 :, b, 1].sum()]
    return [0.0] * (T - 1) + [sum(number for number, mark in x[:, b] if mark)]


def nonmatch(x, T, b):
    """+1 where the stimuli differ; shown at steps 1 to 3 and 9 to 11."""
    return [0.0] * 11 + [1.0 if x[0, b].argmax() != x[8, b].argmax() else -1.0] * (T - 11)


TWINS = {
    "add": (add, lambda y: y[:, 0]),
    "copy": (copy, lambda y: y.argmax(axis=1)),
    "flip-flop": (flip_flop, lambda y: y[:, 0]),
    "integration": (lambda x, T, b: [sum(x[: t + 1, b, 0]) / math.sqrt(T) for t in range(T)], lambda y: y[:, 0]),
    "sine": (lambda x, T, b: [math.sin((0.4 + 0.2 * x[0, b, 0]) * (t + 1)) for t in range(T)], lambda y: y[:, 0]),
    "adding": (adding, lambda y: y[:, 0]),
    "delay-nonmatch": (nonmatch, lambda y: y[:, 0]),
    "anbn": (lambda x, T, b: [int(x[t + 1, b].argmax()) for t in range(T - 1)], lambda y: y[:-1].argmax(axis=1)),
    "lorenz": (lambda x, T, b: [x[t + 1, b, 2] for t in range(T - 1)], lambda y: y[:-1, 2]),
}


@pytest.mark.parametrize("task", TWINS)
def test_targets_are_those_of_the_definition(task, tmp_path):
    """By a loop over steps, for every sample; the targets of the next sample are others."""
    inputs = draw(opened(tmp_path, task)).inputs
    twin, told = TWINS[task]
    for b in range(16):
        np.testing.assert_allclose(told(inputs["y_star"][:, b]), twin(inputs["x"], 40, b), rtol=0, atol=1e-12)
    assert any((twin(inputs["x"], 40, b) != np.array(twin(inputs["x"], 40, 0))).any() for b in range(1, 16))


def test_strings_have_as_many_of_both_letters(tmp_path):
    """Every whole string between two signs is aⁿbⁿ with 1 <= n <= 5."""
    symbols = draw(opened(tmp_path, "anbn")).inputs["x"].argmax(axis=2)
    for b in range(16):
        whole = "".join("ab#"[s] for s in symbols[:, b]).split("#")[1:-1]
        assert whole and all(s == "a" * (len(s) // 2) + "b" * (len(s) // 2) and 2 <= len(s) <= 10 for s in whole)


def test_the_teacher_stays_the_same(tmp_path):
    """Two batches of mimic are answered by one teacher: a linear fit of short sequences agrees on both."""
    setup = open_text(tmp_path, network("mimic:units=2", 1, 1, T=1))
    batches = [draw_inputs(setup, number) for number in (1, 2)]
    x = np.concatenate([b["x"].ravel() for b in batches])
    y = np.concatenate([b["y_star"].ravel() for b in batches])
    order = np.argsort(x)
    assert (np.abs(np.diff(y[order])) <= 3 * np.abs(np.diff(x[order])) + 1e-12).all()


def test_orbits_are_those_of_lorenz(tmp_path):
    """A point and the next one satisfy the equations to second order at half the step; with another ρ they do not."""
    inputs = draw(open_text(tmp_path, network("lorenz:dt=0.001", 3, 3))).inputs
    mean, spread = np.array([0.0, 0.0, 23.55]), np.array([7.92, 9.01, 8.62])
    before, after = (mean + spread * inputs[n].reshape(-1, 3) for n in ("x", "y_star"))
    (x, y, z), speed = ((before + after) / 2).T, (after - before).T / 0.001
    np.testing.assert_allclose(speed[0], 10 * (y - x), atol=0.01)
    np.testing.assert_allclose(speed[1], x * (28 - z) - y, atol=0.05)
    np.testing.assert_allclose(speed[2], x * y - 8 / 3 * z, atol=0.05)
    assert np.abs(speed[1] - x * (27 - z) + y).max() > 1


def _sine_variance(T: int) -> float:
    """Of sin(ω t) over ω uniform in [0.2, 0.6], in the mean over steps, by a sum over frequencies."""
    waves = np.sin(np.linspace(0.2, 0.6, 4001)[:, None] * np.arange(1, T + 1))
    return float(waves.var(axis=0).mean())


TRIVIAL = [
    ("add", SQUARED, (37 / 16 + 32 / 64) / 40),
    ("add", ENTROPY, (3 * math.log(2) + 5 * entropy(0.75, 0.25) + 32 * entropy(0.625, 0.375)) / 40),
    ("copy", ENTROPY, 3 * math.log(4) / 40),
    ("flip-flop", SQUARED, 1.5 * sum(1 - 0.8 ** (t + 1) for t in range(40)) / 40),
    ("integration", SQUARED, 2 * 0.5 * 41 / 80),
    ("sine", SQUARED, 0.5 * _sine_variance(40)),
    ("adding", SQUARED, 1 / 12 / 40),
    ("delay-nonmatch", SQUARED, 0.5 * 29 / 40),
    ("lorenz", SQUARED, 1.5),
]
"""The mean loss of a step that a predictor reaches which ignores x, T = 40, by the formula of each task."""


@pytest.mark.parametrize(("task", "loss", "expected"), TRIVIAL)
def test_the_trivial_loss_is_that_of_the_formula(task, loss, expected, tmp_path):
    """Within what a thousand samples tell; the squared error of the same task is another number."""
    assert trivial_loss(opened(tmp_path, task, loss=loss)) == pytest.approx(expected, rel=0.06)
    assert trivial_loss(opened(tmp_path, task, loss=f"2 * {loss}")) != pytest.approx(expected, rel=0.3)


def test_levels_of_add():
    """The entropies that are known for who ignores the flips, and who knows one or both."""
    known = [entropy(0.5 + 0.5 * a - 0.25 * b, 0.5 - 0.5 * a + 0.25 * b) for a in (0, 1) for b in (0, 1)]
    first = [entropy(p, 1 - p) for p in (0.375, 0.875)]
    levels = entropy(0.625, 0.375), sum(first) / 2, sum(known) / 4
    assert (0.66, 0.52, 0.45) == tuple(round(level, 2) for level in levels)


@pytest.mark.parametrize(
    "loss", ["sum((y - y_star) * (a[0:1] - y_star))", "sum(y**2)", "0.5 * sum((y - y_star)**2) + dot(y, y)**2"]
)
def test_no_trivial_loss_where_there_is_no_one_prediction(loss, tmp_path):
    """Two values meet the target, none does, or activity counts too; nor where there is no task."""
    setup = open_text(tmp_path, network("sine", 1, 1, loss=loss))
    assert (predicted(setup, "y_star"), trivial_loss(setup)) == (None, None)
    assert trivial_loss(open_text(tmp_path, network("random", 1, 1))) is None
    assert trivial_loss(open_text(tmp_path, network("sine", 1, 1))) is not None


def test_a_scalar_target_is_filled(tmp_path):
    """A trailing axis of one is dropped for `y_star = []`, and the trivial loss is the same."""
    scalar, vector = (open_text(tmp_path, network("adding", 2, y, T=10)) for y in (0, 1))
    assert (draw(scalar).inputs["y_star"] == draw(vector).inputs["y_star"][..., 0]).all()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (network("copy", 5, 5), "shape-mismatch"),
        (network("copy:length=21", 6, 5), "too-short"),
        (network("flip-flop", 3, 2), "shape-mismatch"),
        (network("integration", 3, 3).replace("x = [3]", "u = [3]").replace("@ x", "@ u"), "unknown-name"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(text, code, tmp_path):
    """At the task's line."""
    setup = open_text(tmp_path, text)
    with pytest.raises(BpError) as caught:
        draw(setup)
    assert [(code, text.splitlines().index(next(x for x in text.splitlines() if "task" in x)) + 1)] == refusals(
        caught.value
    )
