"""Preactivations: which parameters are in them, and derivatives that are put together from theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_cases import FEED_FORWARD, RECURRENT, SPECS, distance, gradient, problem_of, small, written

from bpcli import references
from bpcli.methods import parse
from bpcli.methods.base import Exact
from bpcli.methods.ebptt import epochs
from bpcli.problem.definition import Problem
from bpcli.references.numerics import chain_rule as chain
from bpcli.references.numerics.adjoints import WindowSlots, carry
from bpcli.references.numerics.chain_rule import Chain
from bpcli.references.numerics.derivatives import Derivatives
from bpcli.references.perturbation import one_step as steps
from bpcli.references.perturbation.kinks import find_kinks
from bpcli.references.perturbation.one_step import cut
from bpcli.references.perturbation.perturbed import Perturbed
from bpcli.references.perturbation.preactivations import (
    chain_parameters,
    differentiated_nodes,
    reaches_state,
    state_links,
    terms,
)
from bpcli.runtime.copies import layout_of
from bpcli.runtime.reverse_mode import Window, staircase

ALWAYS = 1e9
METHODS = [
    *((name, method) for name in RECURRENT for method in ("bptt", "tbptt:k1=1,k2=2", "tbptt:k1=3,k2=3", "fbptt:2")),
    *((name, "backprop") for name in FEED_FORWARD),
]

NETWORK = """bp = 1
[inputs]
x = [3]
[params]
W = [3, 3]
b = [3]
c = [3]
[state]
a = [3]
[equations]
a = "{a}"
loss = "{loss}"
[data]
T = 4
batch = 2
"""


def through(problem: Problem, method: str, dtype: type) -> Chain:
    """All that may be differentiated through preactivations."""
    windows = parse(method).definition(problem.setup).over(problem.setup)
    perturbed = Perturbed(problem, windows, np.dtype(dtype), find_kinks(problem))
    return Chain(problem, perturbed, problem.setup.wrt, 1, ALWAYS)


def on_pattern(problem: Problem, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Zero where a density leaves entries out."""
    for tensor in problem.setup.wrt:
        if tensor.pattern is not None and tensor.name in found:
            kept = np.isin(np.arange(found[tensor.name].size), tensor.pattern).reshape(tensor.shape)
            found[tensor.name] = np.where(kept, found[tensor.name], 0.0)
    return found


@pytest.mark.parametrize(
    ("a", "loss", "expected"),
    [
        ("tanh(W @ a[t-1] + x + b)", "sum(a)", {"W", "b"}),
        ("tanh(b + x + W.T @ a[t-1])", "sum(a)", {"W", "b"}),
        ("tanh(W @ a[t-1] + W.T @ x)", "dot(W @ a, x)", {"W"}),
        ("tanh(W @ x + c * a[t-1]) + b", "sum(a)", {"W", "b", "c"}),
        ("tanh(2 * W @ a[t-1] + b)", "sum(a)", {"b"}),  # a matrix that is computed
        ("tanh(W @ a[t-1]) * b", "sum(a) + sum(c)", {"W", "b"}),
        ("tanh(W @ (b * a[t-1]) + c * x)", "sum(c * a) + sum(x * b)", {"W", "b", "c"}),
        ("tanh(W @ a[t-1] + b * c)", "sum(a)", {"W"}),  # a vector that is computed
        ("tanh(W @ a[t-1] + b) / c", "sum(a)", {"W", "b"}),
        ("tanh(W @ a[t-1] - b)", "dot(W @ b, a)", set()),  # W b is no product with what varies
        ("W @ a[t-1] + b", "sum(a * a) + dot(b, c)", {"W"}),
    ],
)
def test_what_is_in_preactivations(tmp_path: Path, a: str, loss: str, expected: set[str]) -> None:
    """Matrices of products and terms of sums, and only where they are nothing else."""
    problem = written(tmp_path, NETWORK.format(a=a, loss=loss))
    assert expected == set(terms(problem.setup.graph))
    found = through(problem, "bptt", complex).imaginary()
    assert expected == set(found)
    if expected:
        assert distance(found, gradient(problem, "bptt").arrays) < 1e-13


@pytest.mark.parametrize(
    ("a", "loss", "expected"),
    [
        ("tanh(W @ a[t-1] + x + b)", "sum(a)", True),
        ("tanh(x - W.T @ a[t-1])", "sum(a)", True),
        ("tanh(2 * W.T @ a[t-1] + b)", "sum(a)", True),
        ("tanh(W @ a[t-1]) * sigmoid(W.T @ a[t-1] + b)", "sum(a)", True),
        ("tanh(2 * W @ a[t-1] + b)", "dot(W @ a[t-1], x)", False),  # one of the products is in no preactivation
        ("tanh(tanh(2 * W @ a[t-1]) + b)", "sum(a)", False),
        ("tanh(W @ a[t-1]) * b + 0.5 * a[t-1]", "sum(a)", False),
        ("tanh(W @ a[t-1] + b)", "dot(a, a[t-1])", False),
        ("tanh(W @ x + b)", "sum(a)", True),  # nothing reads the state
    ],
)
def test_states_that_products_alone_read(tmp_path: Path, a: str, loss: str, expected: bool) -> None:
    """They are not changed: what they are worth is that of the products."""
    problem = written(tmp_path, NETWORK.format(a=a, loss=loss))
    graph, found = problem.setup.graph, through(problem, "bptt", complex)
    state = graph.previous["a"]
    assert expected == (state in state_links(graph, found.zs)) == (state not in differentiated_nodes(graph, found.zs))
    assert distance(found.imaginary(), gradient(problem, "bptt").arrays) < 1e-13
    ready = through(problem, "bptt", float).real(1.0, 5e-4)
    assert distance({n: r.found.value for n, r in ready.items()}, gradient(problem, "bptt").arrays) < 1e-7


def test_a_number_that_lacks(tmp_path: Path) -> None:
    """Of parameters without an axis too another step is tried, and the better one taken."""
    text = NETWORK.format(a="tanh(b * (W @ a[t-1]) + x)", loss="sum(a) + 1e5").replace("b = [3]", "b = []")
    problem = written(tmp_path, text)
    ready = through(problem, "bptt", float).real(1.0, 1e-9)
    for name, expected in gradient(problem, "bptt").arrays.items():
        if name in ready:
            assert (np.abs(ready[name].found.value - expected) <= ready[name].found.bound).all()
    assert () == ready["b"].found.value.shape and ready["b"].found.exceeds(1e-9).any()


def test_a_wrong_product_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few entries that are shifted themselves tell, and then all are."""
    problem = small("vanilla_rnn")
    expected = gradient(problem, "bptt").arrays
    right = chain.pulling
    monkeypatch.setattr(chain, "pulling", lambda *args: right(*args) * 1.01)
    assert distance(through(problem, "bptt", complex).imaginary(), expected) > 1e-4
    for reference in ("complex-step", "central"):
        found = references.get(reference).estimate(problem, Exact().over(problem.setup), problem.setup.wrt)
        assert distance({n: e.value for n, e in found.items()}, expected) < 1e-7


def test_what_is_unknown_spreads_by_products() -> None:
    """A state that is multiplied with an unknown slope is unknown, one that is multiplied with zero is not."""
    slopes, source = np.array([[[[1.0, 0.0], [2.0, 3.0]]]]), np.zeros((1, 1, 2, 1, 2))  # (steps, batch, U, N or …)
    credit = np.array([[[[np.nan, 1.0]], [[1.0, 1.0]]]])  # (batch, N, W, columns)
    for fresh, expected in ((False, [[np.nan, 1.0], [np.nan, 5.0]]), (True, [[0.0, 0.0], [0.0, 0.0]])):
        found = carry(slopes, source, credit, np.array([[fresh]]), np.eye(2))
        np.testing.assert_array_equal(expected, found.found[0, 0, :, 0])
        np.testing.assert_array_equal(expected, found.before[0, :, 0])
    swapped = carry(slopes[..., ::-1], source, credit, np.array([[False]]), np.eye(2))
    np.testing.assert_array_equal([[1.0, 1.0], [np.nan, 5.0]], swapped.found[0, 0, :, 0])


@pytest.mark.parametrize(
    "windows",
    [
        (Window(0, 0, 11),),
        staircase(11, 1, 4),
        staircase(11, 3, 5),
        tuple(epochs(11, 4)),
        (Window(0, 2, 3), Window(6, 6, 7), Window(2, 5, 9)),
    ],
)
def test_windows_in_slots(windows: tuple[Window, ...]) -> None:
    """No two windows are in one slot at a time, no slot is without need, and a slot is fresh where a window ends."""
    slots = WindowSlots(windows)
    inside = np.array([[w.start <= t < w.stop for w in windows] for t in range(11)])
    assert slots.count == inside.sum(axis=1).max()
    for first, last in ((0, 11), (3, 8), (10, 11)):
        masks, here = slots.masks(first, last), inside[first:last]
        counted = np.array([[w.loss_from <= t < w.stop for w in windows] for t in range(first, last)])
        np.testing.assert_array_equal(here.sum(axis=1), masks.on.sum(axis=1))
        np.testing.assert_array_equal(counted.sum(axis=1), masks.counted.sum(axis=1))
        ends = [sum(w.stop == t + 1 for w in windows) for t in range(first, last)]
        np.testing.assert_array_equal(ends, (masks.fresh & masks.on).sum(axis=1))
        assert masks.fresh[~masks.on].all()


def test_a_product_that_a_sum_follows_in_another_equation(tmp_path: Path) -> None:
    """Its tangent has a value of its own, though the instruction of the sum could take it in."""
    text = NETWORK.format(a="tanh(u + V @ s[t-1])", loss="sum(a * s)")
    text = text.replace("c = [3]", "c = [3]\nV = [3, 3]").replace("a = [3]", "a = [3]\ns = [3]")
    text = text.replace("[equations]", '[equations]\nu = "W @ a[t-1] - c"\ns = "0.5 * s[t-1] + 0.5 * a + b * x"')
    problem = written(tmp_path, text)
    found = through(problem, "bptt", complex).imaginary()
    assert {"V", "W", "b"} == set(found) and distance(found, gradient(problem, "bptt").arrays) < 1e-13


@pytest.mark.parametrize("gain", [14.0, 2e4])
def test_a_unit_unlike_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    """Its truncation is within its bound, as each unit has a pair; with steps as large as it bends it is not.

    Where a unit bends within the step, a smaller one is taken.
    """
    gains = [gain if i in (20, 33, 41) else 1.0 for i in range(64)]
    text = f"""bp = 1
[inputs]
x = [64]
[params]
W = {{ shape = [64, 64], init = "zeros" }}
w = {{ shape = [64], value = {gains}, trainable = false }}
[equations]
loss = "sum(tanh(w * (W @ x))) + sum(x * x)"
[data]
batch = 4
"""
    problem = written(tmp_path, text)
    expected = gradient(problem, "backprop").arrays["W"]

    def known() -> Derivatives:
        return through(problem, "backprop", float).real(1.0, 5e-4)["W"].found

    assert (np.abs(known().value - expected) <= known().bound).all() and not known().exceeds(5e-4).any()
    monkeypatch.setattr(chain, "_FINE", chain._FIRST)
    assert known().exceeds(5e-4).any() == (gain > 1e3)
    for name in ("_FIRST", "_FINE", "_COARSE"):
        monkeypatch.setattr(chain, name, 2.0**-4 / gain**0.5)
    wide, off = known(), np.abs(known().value - expected)
    assert (off <= wide.bound).all() and (off > wide.noise).any()


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_the_noise_of_the_loss(tmp_path: Path, offset: float) -> None:
    """What a large loss rounds off is within the bound, and the bound is no more than 200 times what it is."""
    text = NETWORK.format(a="tanh(W @ a[t-1] + x + b)", loss=f"sum(a) + {offset}").replace("T = 4", "T = 30")
    problem = written(tmp_path, text.replace("3", "12"))
    expected, found = gradient(problem, "bptt").arrays, through(problem, "bptt", float).real(1.0, 5e-4)
    for name in ("W", "b"):
        off, known = np.abs(found[name].found.value - expected[name]), found[name].found
        assert (off <= known.bound).all() and known.noise.mean() <= 200 * off.mean()
    # A loss of 1e6 rounds by 1e-10, and thirty steps and two samples of them.
    level = max(offset, 1.0) * 2.0**-53 * 60**0.5
    assert level / 2 <= found["b"].noise <= 40 * level


def test_a_noisy_unit_among_quiet_ones(tmp_path: Path) -> None:
    """Its noise is its own, no share of what all show together."""
    large = [1e6 if i == 20 else 0.0 for i in range(200)]
    text = f"""bp = 1
[inputs]
x = [3]
[params]
W = [200, 3]
c = {{ shape = [200], value = {large}, trainable = false }}
[equations]
loss = "sum(sin(tanh(W @ x) + c))"
[data]
batch = 32
"""
    problem = written(tmp_path, text)
    expected, found = gradient(problem, "backprop").arrays["W"], through(problem, "backprop", float).real(1.0, 5e-4)
    off, known = np.abs(found["W"].found.value - expected), found["W"].found
    assert (off <= known.bound).all() and off[20].max() <= known.noise[20].max() / 4
    assert known.noise[20].max() > 10 * np.median(known.noise)


@pytest.mark.parametrize("size", ["1e-165", "1e165"])
def test_noise_of_losses_whose_squares_are_out_of_range(tmp_path: Path, size: str) -> None:
    """It grows as the loss does."""
    parts = []
    for factor in ("1.0", size):
        text = NETWORK.format(a="tanh(W @ a[t-1] + x + b)", loss=f"{factor} * sum(a)")
        found = through(written(tmp_path, text), "bptt", float).real(1.0, 5e-4)["W"].found
        assert not found.exceeds(5e-4).any()
        parts.append(found.noise / float(factor))
    np.testing.assert_allclose(np.log(parts[1]), np.log(parts[0]), atol=1.0)


def test_a_loss_of_zero(tmp_path: Path) -> None:
    """At its least it rounds by what it changes, not by its size: by nothing."""
    value = "value = [0.3, 0.49999999999999994, 0.1]"  # half is rounded differently on either side
    text = NETWORK.format(a="W @ x + b", loss="sum((a - c) * (a - c))").replace(
        "W = [3, 3]", 'W = { shape = [3, 3], init = "zeros" }'
    )
    text = text.replace("\nb = [3]", f"\nb = {{ shape = [3], {value} }}")
    problem = written(tmp_path, text.replace("\nc = [3]", f"\nc = {{ shape = [3], {value}, trainable = false }}"))
    for name, ready in through(problem, "bptt", float).real(1.0, 5e-4).items():
        assert 0.0 == np.abs(gradient(problem, "bptt").arrays[name]).max()
        assert (np.abs(ready.found.value) <= ready.found.bound).all() and ready.found.value[1].any()


def test_zeros_are_known_to_be(tmp_path: Path) -> None:
    """Where a parameter is multiplied with zeros alone there is no noise, and no need for shifts of its own."""
    text = NETWORK.format(a="tanh(W @ a[t-1] + V @ (x * c) + b)", loss="sum(a * a) + 1e6").replace(
        "b = [3]", "b = [3]\nV = [3, 3]"
    )
    problem = written(
        tmp_path, text.replace("\nc = [3]", "\nc = { shape = [3], value = [1.0, 0.0, 1.0], trainable = false }")
    )
    known = through(problem, "bptt", float).real(1.0, 5e-4)["V"].found
    assert (known.bound[:, 1] == 0.0).all() and (known.noise[:, [0, 2]] > 0.0).all()
    assert not known.exceeds(5e-4)[:, 1].any()


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_imaginary_steps_of_preactivations(name: str, method: str) -> None:
    """Put together they give the gradient to rounding, of windows too; as tangents and as complex copies."""
    problem = small(name)
    found = through(problem, method, complex)
    expected = gradient(problem, method).arrays
    if not found.tensors:
        pytest.skip("nothing is in preactivations")
    assert distance(on_pattern(problem, found.imaginary()), expected) < 1e-13


@pytest.mark.parametrize("offset", [1.0, 0.75])
@pytest.mark.parametrize(("name", "method"), METHODS)
def test_differences_at_preactivations(name: str, method: str, offset: float) -> None:
    """Their bounds cover what they are off by, and are small."""
    problem = small(name)
    found = through(problem, method, float)
    if find_kinks(problem).steps or not found.tensors:
        pytest.skip("differences are not taken there")
    expected = gradient(problem, method).arrays
    ready = found.real(offset, 5e-4)
    for tensor in found.tensors:
        part, largest = ready[tensor.name].found, np.abs(expected[tensor.name]).max()
        kept = slice(None) if tensor.pattern is None else tensor.pattern
        off = np.abs(part.value - expected[tensor.name]).reshape(-1)[kept]
        assert (off <= part.bound.reshape(-1)[kept] + 1e-14 * largest).all()
        assert part.bound.reshape(-1)[kept].max() <= 1e-6 * max(largest, 1e-3)


def test_the_twin() -> None:
    """What windows leave out is missed."""
    problem = small("vanilla_rnn")
    assert distance(through(problem, "fbptt:2", complex).imaginary(), gradient(problem, "bptt").arrays) > 1e-3


@pytest.mark.parametrize("entries", [1, 300])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    """However few copies are run at a time."""
    problem = small("lstm")
    expected = gradient(problem, "tbptt:k1=2,k2=3").arrays
    monkeypatch.setattr(steps, "MOST_ENTRIES", entries)
    assert distance(through(problem, "tbptt:k1=2,k2=3", complex).imaginary(), expected) < 1e-13
    ready = through(problem, "tbptt:k1=2,k2=3", float).real(1.0, 5e-4)
    assert distance({n: r.found.value for n, r in ready.items()}, expected) < 1e-6


def test_copies_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a node serves all stretches of steps, whatever becomes of its layout."""
    monkeypatch.setattr(steps, "layout_of", layout_of.__wrapped__)
    monkeypatch.setattr(steps, "MOST_ENTRIES", 1000)
    found = through(small("lstm"), "bptt", complex).steps
    for _, _, parts in found.backwards(dict.fromkeys(found.nodes, np.array([1e-40j]))):
        list(parts)
    stretch, blocks = cut(found.setup, dict.fromkeys(found.nodes, 1))
    assert stretch < found.setup.T and len({(node, len(some)) for node, some in blocks}) == len(found._kept)


def test_a_kink_that_is_met_is_unknown(tmp_path: Path) -> None:
    """NaN in the row of a unit that is at the kink, numbers in the others; at other points there is no kink."""
    text = NETWORK.format(a="relu(W @ a[t-1] + b)", loss="sum(a)")
    text = text.replace("W = [3, 3]", 'W = { shape = [3, 3], init = "zeros" }')
    for value, unknown in (("[0.0, 0.5, 1.0]", [0]), ("[0.1, 0.5, 1.0]", [])):
        problem = written(tmp_path, text.replace("\nb = [3]", f"\nb = {{ shape = [3], value = {value} }}"))
        found = through(problem, "bptt", complex).imaginary()
        assert unknown == np.flatnonzero(np.isnan(found["b"])).tolist()


def test_preactivations_are_chosen_where_that_is_less_work() -> None:
    """Not where they are more than the entries."""
    setup = problem_of(SPECS / "vanilla_rnn.toml", {"n": 32, "T": 10}).setup
    assert {"W", "W_in", "b_rec", "W_out", "b_out"} == {t.name for t in chain_parameters(setup, setup.wrt, 4, 14)}
    assert not chain_parameters(setup, [t for t in setup.wrt if t.name == "b_rec"], 1, 1)


def test_what_lasts() -> None:
    """What states depend on lasts beyond its step, an output does not."""
    graph = small("vanilla_rnn").setup.graph
    assert reaches_state(graph, terms(graph)["W"][0].z)
    assert not reaches_state(graph, terms(graph)["W_out"][0].z)
