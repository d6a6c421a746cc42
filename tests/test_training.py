"""Training: steps against loops, online influences against plain NumPy, comparisons, and what ends a method."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from problem_cases import LIMITS, open_text

import bpcli
from bpcli.methods import parse
from bpcli.problem.draw import draw, draw_inputs
from bpcli.problem.setup import open_setup
from bpcli.render.page.curves import points
from bpcli.training.descent import STALE, TrainOptions, begin
from bpcli.training.online import online_refusal
from bpcli.training.optimizers import OPTIMIZERS, Optimizer, length
from bpcli.training.watching import Watch, between, compared, watch_interval, watched_in

SPECS = Path(__file__).parents[1] / "specs"
RNN = """\
bp = 1
[inputs]
x = [2]
y_star = [2]
[params]
W = [3, 3]
U = [3, 2]
V = [2, 3]
[state]
a = { shape = [3], init = "normal", scale = 0.5 }
[equations]
a = "tanh(W @ a[t-1] + U @ x)"
loss = "0.5 * sum((V @ a - y_star)**2)"
[data]
task = "add:lag1=1,lag2=2"
T = 9
batch = 2
"""
GATED = RNN.replace('"tanh(W @ a[t-1] + U @ x)"', '"u * a[t-1] + (1 - u) * tanh(W @ a[t-1] + U @ x)"').replace(
    "[equations]", '[equations]\nu = "exp(-exp(nu))"'
).replace("V = [2, 3]", "V = [2, 3]\nnu = [3]")  # fmt: skip


def trained(setup, methods, **options):
    """All learners after their steps, plain gradient descent by default."""
    training = begin(setup, [parse(m) for m in methods], TrainOptions(**{"optimizer": "sgd", "lr": 0.1, **options}))
    taken = list(training.run())
    assert list(range(1, 1 + max(x.done for x in training.learners))) == taken
    return training.learners


def naive_adam(gradients, lr):
    """Algorithm 1 of Kingma & Ba, number by number."""
    theta, m, v = 0.0, 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theta -= lr * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return theta


def naive_momentum(gradients, lr, mu=0.9):
    """v ← μ v + g, θ ← θ - lr v."""
    theta = v = 0.0
    for g in gradients:
        v = mu * v + g
        theta -= lr * v
    return theta


@pytest.mark.parametrize(
    ("name", "twin", "wrong"),
    [
        ("sgd", lambda g, lr: -lr * sum(g), naive_momentum),
        ("momentum", naive_momentum, lambda g, lr: naive_momentum(g, lr, 0.8)),
        ("adam", naive_adam, lambda g, lr: naive_adam([10, *g[1:]], lr)),
    ],
)
def test_optimizers_take_the_steps_of_the_papers(name, twin, wrong):
    """Against loops over single numbers; another rule, or rate, differs."""
    gradients = np.random.default_rng(0).standard_normal((20, 3))
    theta, optimizer = np.zeros(3), Optimizer(name, 0.03)
    for g in gradients:
        optimizer.move(theta, g.copy())
    columns = gradients.T.tolist()
    np.testing.assert_allclose(theta, [twin(g, 0.03) for g in columns], rtol=1e-12)
    assert (np.abs(theta - [wrong(g, 0.03) for g in columns]) > 1e-3).any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clipping_cuts_long_gradients_alone(name):
    """To the norm, in their direction."""
    moved = {}
    for clip in (None, 1.0, 100.0):
        theta, optimizer = np.zeros(2), Optimizer(name, 0.1, clip)
        optimizer.move(theta, np.array([3.0, 4.0]))
        moved[clip] = theta
    assert (moved[None] == moved[100.0]).all()
    if name != "adam":  # whose first step does not depend on the size
        np.testing.assert_allclose(moved[1.0], moved[None] / 5)


def test_a_step_is_the_gradient_of_the_method(tmp_path):
    """The first on the data of the spec, the second on a batch of its own; of the same data it would be another."""
    setup = open_text(tmp_path, RNN)
    call, start = parse("tbptt:k1=1,k2=2"), draw(setup)
    (learner,) = trained(setup, [call.text], steps=2, fresh=True)
    found = call.gradient(start)
    params = {n: start.params[n] - 0.1 * found.arrays[n] for n in start.params}
    losses = []
    for inputs in (draw_inputs(setup, 1), start.inputs):
        second = call.gradient(type(start)(setup, params, inputs, start.state))
        losses.append(second.loss)
    np.testing.assert_allclose(learner.losses, [found.loss, losses[0]], rtol=1e-14)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("text", [RNN, GATED])
@pytest.mark.parametrize("online", [False, True])
def test_a_run_is_the_same_bit_by_bit_and_each_method_its_own(text, online, tmp_path):
    """Whatever others train beside it."""
    options = {"steps": 4, "fresh": True, "online": online, "lr": 0.01, "optimizer": "adam"}
    setup = open_text(tmp_path, text)
    together = trained(setup, ["rtrl", "uoro", "tbptt:k1=1,k2=3"], **options)
    for learner in together:
        (alone,) = trained(setup, [learner.call.text], **options)
        assert (alone.parameters.theta == learner.parameters.theta).all()
        assert (alone.losses == learner.losses).all()
    (other,) = trained(open_text(tmp_path, text, seed=1), ["rtrl"], **options)
    assert (other.losses != together[0].losses).all()


ONLINE = [
    "rtrl",
    "rtrl-dense",
    "uoro",
    "snap:k=1",
    "tbptt:k1=1,k2=4",
    "tbptt:k1=3,k2=9",
    "tbptt:k1=4,k2=6",
    "fbptt:tau=3",
    "ebptt:tau=3",
    "bptt",
]


@pytest.mark.parametrize("over_time", ["sum", "mean", "last"])
@pytest.mark.parametrize("method", ONLINE)
@pytest.mark.parametrize("text", [RNN, GATED])
def test_slow_online_training_is_training_by_sequence(text, method, over_time, tmp_path):
    """As the rate goes to zero the moves of a sequence add up to its gradient; at a rate that matters they do not."""
    setup = open_text(tmp_path, text.replace("[data]", f'[objective]\nover_time = "{over_time}"\n[data]'))
    moves = {}
    for online in (False, True):
        for lr in (1e-7, 0.5):
            (learner,) = trained(setup, [method], steps=1, online=online, lr=lr)
            start = begin(setup, [], TrainOptions(1, "sgd", lr)).start
            theta = np.concatenate([start.array(x).ravel() for x in setup.wrt])
            moves[online, lr] = (theta - learner.parameters.theta) / lr
    size = np.abs(moves[False, 1e-7]).max()
    assert np.abs(moves[True, 1e-7] - moves[False, 1e-7]).max() < 2e-5 * size
    once = method == "bptt" or over_time == "last"
    assert (np.abs(moves[True, 0.5] - moves[False, 0.5]).max() > 1e-3 * size) or once


def naive_rtrl(start, lr):
    """Online RTRL of the tanh network, unit by unit and sample by sample, with the influence of earlier parameters."""
    W, U, V = (start.params[n].copy() for n in ("W", "U", "V"))
    T, batch = start.inputs["x"].shape[:2]
    a = [start.state["a"].copy() for _ in range(batch)]
    M = [{"W": np.zeros((3, 3, 3)), "U": np.zeros((3, 3, 2))} for _ in range(batch)]
    loss = 0.0
    for t in range(T):
        g = {"W": np.zeros((3, 3)), "U": np.zeros((3, 2)), "V": np.zeros((2, 3))}
        for b in range(batch):
            x, before = start.inputs["x"][t, b], a[b]
            a[b] = np.tanh(W @ before + U @ x)
            slope = 1 - a[b] ** 2
            error = V @ a[b] - start.inputs["y_star"][t, b]
            loss += 0.5 * (error**2).sum() / batch
            for name, vector in (("W", before), ("U", x)):
                new = np.einsum("ij,jkl->ikl", slope[:, None] * W, M[b][name])
                for i in range(3):
                    new[i, i] += slope[i] * vector
                M[b][name] = new
                g[name] += np.einsum("i,ikl->kl", V.T @ error, new) / batch
            g["V"] += np.outer(error, a[b]) / batch
        W, U, V = W - lr * g["W"], U - lr * g["U"], V - lr * g["V"]
    return loss, np.concatenate([W.ravel(), U.ravel(), V.ravel()])


@pytest.mark.parametrize("method", ["rtrl", "rtrl-dense"])
def test_online_rtrl_against_loops(method, tmp_path):
    """Parameters move at every step, the influence stays stale; by sequence the same rate goes elsewhere."""
    setup = open_text(tmp_path, RNN)
    (learner,) = trained(setup, [method], steps=1, online=True, lr=0.3)
    loss, theta = naive_rtrl(draw(setup), 0.3)
    np.testing.assert_allclose(learner.losses, [loss], rtol=1e-12)
    np.testing.assert_allclose(learner.parameters.theta, theta, rtol=1e-10)
    (other,) = trained(setup, [method], steps=1, lr=0.3)
    assert np.abs(other.parameters.theta - theta).max() > 1e-2
    assert 0.5 < learner.curve[STALE][0] < 1 - 1e-9


@pytest.mark.parametrize("name", ["gru", "lstm", "stacked_rnn", "lru", "masked_rnn", "leaky_rnn", "indrnn"])
def test_online_rtrl_on_other_networks(name):
    """Compiled and plain rtrl go the same way, which is not that of their gradients by sequence."""
    setup = open_setup(SPECS / f"{name}.toml", {"T": 6, "batch": 2}, ("params",), LIMITS)
    lr = 0.02
    one, other = trained(setup, ["rtrl", "rtrl-dense"], steps=2, online=True, lr=lr)
    np.testing.assert_allclose(one.parameters.theta, other.parameters.theta, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-10)
    (apart,) = trained(setup, ["rtrl"], steps=2, lr=lr)
    assert np.abs(apart.parameters.theta - one.parameters.theta).max() > 1e-6


@pytest.mark.parametrize("text", [RNN, GATED])
def test_trained_initial_states_move_too(text, tmp_path):
    """Shared by all samples, online and by sequence; rtrl and its plain twin agree."""
    setup = open_text(tmp_path, text.replace("scale = 0.5 }", "scale = 0.5, trainable = true }"))
    for online in (False, True):
        one, other = trained(setup, ["rtrl", "rtrl-dense"], steps=3, online=online)
        np.testing.assert_allclose(one.parameters.theta, other.parameters.theta, rtol=1e-9)
        assert (one.parameters.state["a"] != draw(setup).state["a"]).all()
        assert {"W", "U", "V", "a"} <= set(one.parameters.saved())


def test_methods_without_an_online_form():
    """Methods that run through a sequence more than once have no online form."""
    assert [None] * len(ONLINE) == [online_refusal(parse(m)) for m in ONLINE]
    assert all(online_refusal(parse(m)) for m in ("sqrt", "revolve:s=3"))


def test_comparisons_with_the_true_gradient():
    """Cosine, norm ratio and signs by hand; where one is zero or not finite there is nothing to compare."""
    found = compared(np.array([3.0, -4.0, 7.0]), np.array([3.0, 4.0, 0.0]))
    cosine = (9 - 16) / 5 / math.sqrt(74)
    assert {"cosine": cosine, "ratio": math.sqrt(74) / 5, "signs": 0.5} == pytest.approx(found)
    for other in (np.zeros(3), np.array([1.0, np.inf, 0.0])):
        assert {} == compared(other, np.ones(3)) == compared(np.ones(3), other)
    assert 5.0 == length(np.array([3, 4], np.float32))


def test_watching_changes_nothing(tmp_path):
    """An exact method has cosine 1, a truncated one less, at the steps that are due; the trajectory stays the same."""
    setup = open_text(tmp_path, RNN)
    watch = Watch((parse("rtrl"), parse("tbptt:k1=1,k2=1")), 2)
    (plain,) = trained(setup, ["bptt"], steps=5, fresh=True)
    (watched,) = trained(setup, ["bptt"], steps=5, fresh=True, watch=watch)
    assert (plain.parameters.theta == watched.parameters.theta).all()
    assert (watched.curve["cosine[rtrl|tbptt:k1=1,k2=1]"][::2] < 1 - 1e-6).all()
    exact, short = (watched.curve[f"cosine[{m}]"] for m in ("rtrl", "tbptt:k1=1,k2=1"))
    assert [True, False, True, False, True] == np.isfinite(exact).tolist()
    assert (exact[::2] > 1 - 1e-12).all() and (short[::2] < 1 - 1e-6).all()


def test_a_zero_gradient_is_not_averaged_in(tmp_path):
    """A loss without slope has no direction: the figures of its steps are empty."""
    setup = open_text(tmp_path, RNN.replace("0.5 * sum((V @ a - y_star)**2)", "0 * sum(V @ a - y_star)"))
    (learner,) = trained(setup, ["bptt"], steps=2, watch=Watch((parse("uoro"),), 1))
    assert np.isnan(learner.curve["cosine[uoro]"]).all() and (learner.losses == 0).all()


@pytest.mark.parametrize("online", [False, True])
def test_a_loss_that_is_not_finite_ends_its_method_alone(online, tmp_path):
    """With the step, and the parameters before it; the other method goes on."""
    setup = open_text(tmp_path, RNN.replace("sum((V @ a - y_star)**2)", "sum((V @ a - y_star)**2)**3"))
    options = {"steps": 30, "online": online, "fresh": True}
    (learner,) = trained(setup, ["bptt" if not online else "rtrl"], lr=1e3, **options)
    assert "not finite" == learner.outcome and learner.done < 30
    assert np.isfinite(learner.parameters.theta).all()
    (leap,) = trained(setup, ["bptt"], steps=2, lr=1e308)
    assert ("not finite", 1) == (leap.outcome, leap.done) and np.isfinite(leap.parameters.theta).all()
    (calm,) = trained(setup, ["bptt"], lr=1e-9, **options)
    assert ("", 30) == (calm.outcome, calm.done)


def test_a_method_ends_where_its_mean_loss_is_below(tmp_path):
    """The mean of the last ten, and not one step before."""
    setup = open_text(tmp_path, RNN)
    (full,) = trained(setup, ["bptt"], steps=60)
    means = [full.losses[max(0, k - 9) : k + 1].mean() for k in range(60)]
    bound = float(means[30]) * (1 + 1e-9)
    (learner,) = trained(setup, ["bptt"], steps=60, until=bound)
    assert ("reached", next(k for k, m in enumerate(means, 1) if m < bound)) == (learner.outcome, learner.done)


def test_rules_in_numpy_are_compared_more_rarely():
    """Unless one of them is trained, which takes as long."""
    bptt, uoro, snap, kf = (parse(m) for m in ("bptt", "uoro", "snap:k=1", "kf-rtrl"))
    assert (1, 10, 20) == tuple(watch_interval([bptt], watched) for watched in ([snap], [uoro, snap], [uoro, kf]))
    assert 1 == watch_interval([bptt, kf], [uoro])


def test_cosines_between_watched_methods(tmp_path):
    """In the mean over the steps that were compared, in any order; None for what was not."""
    setup = open_text(tmp_path, RNN)
    watch = Watch((parse("rflo"), parse("snap:k=1")), 2)
    (learner,) = trained(setup, ["bptt"], steps=5, watch=watch)
    curve = {name: values.tolist() for name, values in learner.curve.items()}
    assert ["rflo", "snap:k=1"] == watched_in(curve)
    mean = np.nanmean(learner.curve["cosine[rflo|snap:k=1]"])
    assert pytest.approx(mean) == between(curve, "snap:k=1", "rflo") == between(curve, "rflo", "snap:k=1")
    assert pytest.approx(np.nanmean(learner.curve["cosine[rflo]"])) == between(curve, "true", "rflo")
    assert 1.0 == between(curve, "true", "true") and between(curve, "rflo", "uoro") is None


def test_points_of_a_curve():
    """Means of neighbouring steps, without those that have no logarithm."""
    assert [(1.0, 2.0), (3.0, 4.0)] == points([2.0, 0.0, 4.0])
    assert [(1.5, 2.0), (3.5, 3.0)] == points([1.0, 3.0, 2.0, 4.0] + [-1.0] * 396)[:2]


def test_the_api_trains_as_the_command_does(tmp_path):
    """The rows of the table of curves, the parameters by method, and refusals in words."""
    (tmp_path / "net.toml").write_text(RNN, encoding="utf-8")
    net = bpcli.load(tmp_path / "net.toml")
    trained = net.train(["bptt", "uoro"], steps=4, lr=0.1, optimizer="sgd", watch="snap:k=1", watch_every=2)
    frame = trained.to_frame()
    assert ["bptt", "uoro"] * 4 == frame["method"].tolist() and [2, 2] == [
        *frame["cosine[snap:k=1]"].groupby(frame["method"]).count()
    ]
    (learner, _) = trained.training.learners
    assert (learner.losses == frame["loss"][::2]).all() and "bptt" in repr(trained)
    assert {"W", "U", "V"} == set(trained.params["uoro"])
    assert trained.runs[0]["share"] == pytest.approx(trained.runs[0]["last"] / trained.trivial_loss)
    for wrong in ({"steps": 0}, {"lr": -1.0}, {"optimizer": "adan"}, {"data": "old"}, {"methods": "backprop"}):
        with pytest.raises(bpcli.BpError):
            net.train(**wrong)


LEARNED = {
    "add": (150, 0.8), "copy": (150, 0.2), "flip_flop": (150, 0.2), "integration": (150, 0.2), "sine": (150, 0.3),
    "adding": (2000, 0.5), "delay_nonmatch": (150, 0.1), "anbn": (150, 0.4), "lorenz": (150, 0.1), "mimic": (150, 0.1),
}  # fmt: skip
"""Steps of `bp train specs/tasks/NAME.toml`, and the share of the trivial loss that is left at most."""


@pytest.mark.parametrize("name", LEARNED)
def test_every_task_is_learned(name):
    """Clearly below the loss of a predictor that ignores the input, which the first step is not."""
    steps, share = LEARNED[name]
    trained = bpcli.load(SPECS / "tasks" / f"{name}.toml").train(steps=steps)
    assert trained.runs[0]["share"] < share and trained.runs[0]["first"] > trained.trivial_loss


def test_truncation_walks_the_wrong_way():
    """Influence balancing (Tallec & Ollivier 2018): rtrl and a long window reach θ = -1/6 online, a short one flees."""
    net = bpcli.load(SPECS / "papers" / "influence_balancing.toml", T=1000)
    methods = ["rtrl", "tbptt:k1=1,k2=100", "tbptt:k1=1,k2=10"]
    trained = net.train(methods, steps=2, online=True, optimizer="sgd", lr=1e-4)
    exact, long, short = (float(trained.params[m]["theta"]) for m in methods)
    assert exact == pytest.approx(-1 / 6, rel=0.01) and long == pytest.approx(-1 / 6, rel=0.01)
    assert short > 100
