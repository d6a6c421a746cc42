"""Causes of handwritten slips: what is said first, and what must not be said. `slips_report.py` counts all of them."""

from __future__ import annotations

import numpy as np
import pytest
from slips import BOXES, PAIRS, SLIPS
from slips_report import blamed, boxed, judged

from bpcli.checking.blame.patterns import Numbers, of_one, patterns

FAST = ("classifier", "normed", "one hot")
SOME = (
    ("leaky", "h[-1]"), ("leaky", "= for +="), ("leaky", "slope of sigmoid"), ("leaky", "x squared"),
    ("gru", "b_r is b_z"), ("gru", "d_c without r"), ("relu", "mean over classes"), ("relu", "mask the other way"),
)  # fmt: skip


def told(network: str, *slips: str) -> dict[str, str]:
    """The cause of each wrong tensor."""
    found = blamed(network, frozenset(slips))
    return {f.tensor: str((f.blame or {})["cause"]) for f in found if f.verdict == "wrong"}


@pytest.mark.parametrize(("network", "slip"), [*((n, s) for n in FAST for s in SLIPS[n]), *SOME])
def test_a_slip_has_its_cause_first(network: str, slip: str) -> None:
    """In every wrong tensor; a slip that is none of the kinds known has no cause."""
    outcome, causes = judged(blamed(network, frozenset([slip])), [SLIPS[network][slip]])
    assert "right" == outcome, causes


@pytest.mark.parametrize(("network", "pair"), [(n, pair) for n in FAST for pair in PAIRS.get(n, ())])
def test_two_slips_have_both_causes(network: str, pair: tuple[str, str]) -> None:
    """Each tensor has the causes that change it."""
    outcome, causes = judged(blamed(network, frozenset(pair)), [SLIPS[network][slip] for slip in pair])
    assert "right" == outcome, causes


@pytest.mark.parametrize("name", BOXES)
def test_black_boxes(name: str) -> None:
    """Patterns of the numbers; a scalar, and three rows of four, show none."""
    words = BOXES[name][1]
    outcome, causes = judged(boxed(name), [[w] for w in words] if " and " in name else [words])
    assert "right" == outcome, causes


def test_a_right_gradient_has_no_wrong_tensor() -> None:
    """Without a slip every handwritten gradient passes."""
    assert all({} == told(network) for network in ("leaky", "lstm", "gru", *FAST))


def test_a_term_that_is_left_out_is_no_shift() -> None:
    """An input that is 1 at the last step alone: x(t-1) gives the same numbers, and so it does for a right twin."""
    causes = told("one hot", "no term").values()
    assert causes and all(cause.startswith("the term ") for cause in causes)
    assert all("x(t-1)" in cause for cause in told("one hot", "x(t-1)").values())


def test_a_copy_is_no_exchange() -> None:
    """The tensor that was copied passes; if it does not, the two are exchanged."""
    assert {"b_r": "it is the gradient of b_z"} == told("gru", "b_r is b_z")
    assert {"b_r", "b_z"} == set(causes := told("gru", "b_r and b_z"))
    assert all("exchanged" in cause for cause in causes.values())


def numbers(given: object, right: object, theta: object) -> Numbers:
    """A single tensor w."""
    arrays = [{"w": np.asarray(a, float)} for a in (given, right, theta)]
    return Numbers(arrays[0], arrays[1], {"w": np.full_like(arrays[1]["w"], 1e-14)}, arrays[2])


ROWS = np.arange(1.0, 17.0).reshape(8, 2)


@pytest.mark.parametrize(
    ("given", "right", "words"),
    [
        ([[1.3]], [[1.0]], ""),  # one entry is no ratio, no decay, no block
        ([1.3, 2.6], [1.0, 2.0], "the gradient is 1.3 times"),
        ([0.0, 0.0], [1.0, 2.0], "the gradient is zero"),
        (np.where(np.arange(8)[:, None] > 0, -1, 1) * ROWS, ROWS, ""),  # seven rows of eight are no block
        (np.where(np.arange(8)[:, None] > 3, -1, 1) * ROWS, ROWS, "rows 4 to 7, a block, are -1 times"),
        (np.where(np.arange(8)[:, None] % 7 > 3, -1, 1) * ROWS, ROWS, ""),  # three rows
        (np.concatenate([ROWS[4:], ROWS[:4]]), ROWS, "rows 0 to 3 and rows 4 to 7 are exchanged"),
        ([0.5, 0.2, -0.5], [0.9, 0.2, -3.0], "entries are clipped at ±0.5"),
        ([0.51234, 0.2, -0.4], [0.9, 0.2, -0.4], ""),  # a single entry at a bound that nobody chooses
        ([0.6, 0.8], [3.0, 4.0], "clipped to the norm 1"),
        ([0.61, 0.8], [3.0, 4.0], ""),
    ],
)
def test_patterns_of_one_tensor(given: object, right: object, words: str) -> None:
    """Each on numbers that show it, and on a twin that does not."""
    found = numbers(given, right, 0.7 * np.sin(np.arange(np.size(right))).reshape(np.shape(right)))
    said = of_one(found, found.right, "w")
    assert words in said and bool(words) == bool(said)


def test_a_factor_of_the_data_is_none_of_a_decay() -> None:
    """Of all but the terms of parameters; with the same one it is of all, with another there is no pattern."""
    right = {"a": np.arange(1.0, 4.0), "W": np.arange(4.0).reshape(2, 2) + 1}
    terms = {"a": 0 * right["a"], "W": np.array([[0.3, -0.1], [0.2, 0.5]])}
    slack = {n: np.full_like(a, 1e-14) for n, a in right.items()}

    def said(of_terms: float) -> list[str]:
        given = {n: 0.25 * (a - terms[n]) + of_terms * terms[n] for n, a in right.items()}
        held = {"a": right["a"], "W": 2 * terms["W"]}
        found = patterns(Numbers(given, right, slack, held, terms=terms), right)
        return [p.words for p in found or ()]

    assert ["the gradient is 0.25 times the right one, except in the term of parameters only"] == said(1.0)
    assert ["the gradient is 0.25 times the right one"] == said(0.25)
    assert [] == said(2.0)


def test_patterns_account_for_all_tensors() -> None:
    """A factor of all with one tensor transposed too; one more tensor that is merely wrong, and there is none."""
    right = {"a": np.arange(1.0, 4.0), "b": np.arange(2.0, 6.0), "W": np.arange(4.0).reshape(2, 2) + 1}
    given = {"a": -right["a"], "b": -right["b"], "W": -right["W"].T}
    slack = {n: np.full_like(a, 1e-14) for n, a in right.items()}
    found = patterns(Numbers(given, right, slack, {}), right)
    assert found is not None
    assert ["-1 times", "transposed"] == [w for p in found for w in ("-1 times", "transposed") if w in p.words]
    given["b"] = given["b"] + np.array([0.1, 0.0, 0.2, 0.0])
    assert patterns(Numbers(given, right, slack, {}), right) is None
