"""Verdicts on entries and tensors: pass, wrong and inconclusive, with their causes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from bpcli.checking.verdict import (
    CAUSES,
    INCONCLUSIVE,
    PASS,
    VERDICTS,
    WRONG,
    Entries,
    References,
    judge,
    settle,
    summarise,
)
from bpcli.references.base import Estimate
from bpcli.references.numerics.rounding import bound as rounding_bound

Array = NDArray[np.float64]
F64, F32 = np.dtype(np.float64), np.dtype(np.float32)
TRUE = np.random.default_rng(7).normal(size=(6, 6))
TINY = np.array([1.0, 3e-39])
NO_ROUNDING = np.zeros_like(TRUE)
U_G = 1e-14 * np.abs(TRUE)


def estimate(value: Array, bound: float | Array = 0.0, noise: float = 0.0, kink: float = 0.0) -> Estimate:
    """An estimate with the same bound, noise and kink everywhere."""
    return Estimate(value, *(np.broadcast_to(np.asarray(a, dtype=float), value.shape) for a in (bound, noise, kink)))


EXACT = estimate(TRUE, np.abs(TRUE) * 1e-14)
REAL = estimate(TRUE * (1 + 1e-11), 1e-10 * np.abs(TRUE))
ANALYTIC = References(EXACT, REAL)
BLACK_BOX = References(None, REAL, estimate(TRUE, 1e-10 * np.abs(TRUE)))


def one_off(gradient: Array, factor: float) -> Array:
    """The gradient with one entry multiplied."""
    changed = gradient.copy()
    changed[2, 3] *= factor
    return changed


FAULTS = {
    "sign": -TRUE,
    "doubled": 2 * TRUE,
    "half a permille": 1.0005 * TRUE,
    "one entry by 1e-6": one_off(TRUE, 1 + 1e-6),
    "transposed": TRUE.T.copy(),
    "shifted": np.roll(TRUE, 1, axis=0),
    "zeroed": np.zeros_like(TRUE),
    "one entry zeroed": one_off(TRUE, 0.0),
    "one nan": one_off(TRUE, np.nan),
    "all nan": np.full_like(TRUE, np.nan),
    "infinite": one_off(TRUE, np.inf),
    "a row lost": np.where(np.arange(6)[:, None] == 4, 0.0, TRUE),
}


@pytest.mark.parametrize(
    "references",
    [ANALYTIC, replace(ANALYTIC, central=None), BLACK_BOX],
    ids=["complex step and differences", "complex step", "two ladders"],
)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_wrong(fault: str, references: References) -> None:
    """Every planted fault is found, by every set of references."""
    verdict, cause, worst = summarise(judge(FAULTS[fault], references, U_G, F64))
    assert verdict == "wrong"
    assert cause == ("not finite" if not np.isfinite(FAULTS[fault]).all() else "")
    assert worst is not None
    assert not worst.z <= 1


@pytest.mark.parametrize("references", [ANALYTIC, replace(ANALYTIC, central=None), BLACK_BOX])
@pytest.mark.parametrize("ulps", [0, 1, -4])
def test_correct_gradients_pass(references: References, ulps: int) -> None:
    """A gradient off by a few units in the last place passes."""
    verdict, cause, _ = summarise(judge(TRUE * (1 + ulps * 2.0**-52), references, U_G, F64))
    assert (verdict, cause) == ("pass", "")


@dataclass(frozen=True)
class Row:
    """One entry with value g, estimates (value, bound) and the verdict expected."""

    name: str
    g: float
    exact: tuple[float, float] | None
    real: tuple[float, float] | None
    second: tuple[float, float] | None
    expected: tuple[int, str, bool]


ROWS = (
    Row("complex step accepts, difference accepts", 1.0, (1.0, 1e-14), (1.0, 1e-9), None, (PASS, "", False)),
    Row("complex step rejects, difference rejects", 1.1, (1.0, 1e-14), (1.0, 1e-9), None, (WRONG, "", False)),
    Row("complex step rejects, difference can't tell", 1.1, (1.0, 1e-14), (1.0, 0.5), None, (WRONG, "", False)),
    Row(
        "difference rejects what the complex step accepts",
        1.0,
        (1.0, 1e-14),
        (1.1, 1e-9),
        None,
        (INCONCLUSIVE, "references disagree", True),
    ),
    Row(
        "so does the second ladder",
        1.0,
        (1.0, 1e-14),
        (1.1, 1e-9),
        (1.1, 1e-9),
        (INCONCLUSIVE, "references disagree", False),
    ),
    Row("the second ladder does not", 1.0, (1.0, 1e-14), (1.1, 1e-9), (1.0, 1e-9), (PASS, "", False)),
    Row(
        "difference sides with the gradient",
        1.1,
        (1.0, 1e-14),
        (1.1, 1e-9),
        None,
        (INCONCLUSIVE, "references disagree", True),
    ),
    Row("the second ladder does not side with it", 1.1, (1.0, 1e-14), (1.1, 1e-9), (1.0, 1e-9), (WRONG, "", False)),
    Row("complex step unknown, difference accepts", 1.0, (0.0, np.inf), (1.0, 1e-9), None, (PASS, "", False)),
    Row("complex step unknown, two reject", 1.1, (0.0, np.inf), (1.0, 1e-9), (1.0, 1e-9), (WRONG, "", False)),
    Row("nothing is known", 1.0, (0.0, np.inf), (0.0, np.inf), None, (INCONCLUSIVE, "no power", False)),
    Row("difference alone, powerful", 1.0, None, (1.0, 1e-9), None, (PASS, "", False)),
    Row("difference alone, z > 1, one ladder", 1.1, None, (1.0, 1e-9), None, (INCONCLUSIVE, "no power", True)),
    Row("z > 1 on both ladders", 1.1, None, (1.0, 1e-9), (1.0, 1e-9), (WRONG, "", False)),
    Row(
        "z > 1 on one of two ladders", 1.1, None, (1.0, 1e-9), (1.1, 1e-9), (INCONCLUSIVE, "references disagree", False)
    ),
    Row("difference without power", 1.0, None, (1.0, 1e-2), None, (INCONCLUSIVE, "no power", False)),
    Row("difference that knows nothing", 1.0, None, (0.0, np.inf), None, (INCONCLUSIVE, "no power", False)),
    Row("nan", np.nan, None, (1.0, 1e-9), None, (WRONG, "not finite", False)),
    Row("nan where nothing is known", np.nan, None, (0.0, np.inf), None, (WRONG, "not finite", False)),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_the_table_of_verdicts(row: Row) -> None:
    """Three verdicts, their causes, and when a second ladder is asked for."""
    references = References(
        *(None if e is None else estimate(np.array([e[0]]), e[1]) for e in (row.exact, row.real, row.second))
    )
    found = judge(np.array([row.g]), references, np.array([1e-15]), F64)
    assert row.expected == (found.verdict[0], CAUSES[found.cause[0]], found.suspect[0])


def test_noise_never_accuses() -> None:
    """A difference whose bound is noise leaves the verdict open, even for a gradient that looks wrong by less."""
    references = References(None, estimate(TRUE, 0.1, noise=0.1), estimate(TRUE, 0.1, noise=0.1))
    verdict, cause, _ = summarise(judge(TRUE + 0.05, references, U_G, F64))
    assert (verdict, cause) == ("inconclusive", "noise")


@pytest.mark.parametrize(("value", "expected"), [(0.0, "pass"), (1e-9, "wrong"), (-1e-300, "wrong")])
@pytest.mark.parametrize(
    "references",
    [
        References(estimate(np.zeros(3)), estimate(np.zeros(3), 1e-7)),
        References(None, estimate(np.zeros(3), 1e-7), estimate(np.zeros(3), 1e-7)),
    ],
    ids=["analytic", "differences"],
)
def test_exactly_nothing_has_no_rounding(references: References, value: float, expected: str) -> None:
    """Where no term contributes only an exact zero passes."""
    assert expected == summarise(judge(np.full(3, value), references, np.zeros(3), F64))[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, ("pass", "kink")),
        (0.5, ("pass", "kink")),
        (1.5, ("pass", "kink")),
        (1.6, ("wrong", "")),
        (0.0, ("wrong", "")),
    ],
)
def test_any_one_sided_value_passes_at_a_kink(value: float, expected: tuple[str, str]) -> None:
    """At an exact kink everything between the one-sided derivatives is accepted, and said so."""
    mean = estimate(np.array([1.0]), 1e-9, kink=0.5)
    found = judge(np.array([value]), References(None, mean, mean), np.array([1e-15]), F64)
    assert expected == summarise(found)[:2]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, ("pass", "kink")),
        (1.6, ("inconclusive", "kink")),
        (0.3, ("inconclusive", "kink")),
        (1.71, ("wrong", "")),
        (0.29, ("wrong", "")),
    ],
)
def test_what_unlike_slopes_may_come_to_is_not_accused(value: float, expected: tuple[str, str]) -> None:
    """Values outside the interval that different slopes at different kinks may reach are inconclusive."""
    mean = replace(estimate(np.array([1.0]), 1e-9, kink=0.5), beyond=np.array([0.2]))
    for references in (References(None, mean, mean), References(None, mean)):
        verdict, cause, _ = summarise(judge(np.array([value]), references, np.array([1e-15]), F64))
        if references.second is not None or expected[0] != "wrong":
            assert expected == (verdict, cause)


@pytest.mark.parametrize(("relative", "expected"), [(1e-7, "pass"), (1e-6, "pass"), (5e-4, "wrong"), (1.0, "wrong")])
@pytest.mark.parametrize("references", [ANALYTIC, BLACK_BOX], ids=["analytic", "differences"])
def test_float32_is_judged_by_its_own_rounding(references: References, relative: float, expected: str) -> None:
    """A float32 gradient may be off by float32's rounding and no more."""
    bound = 4e-6 * np.abs(TRUE)
    assert expected == summarise(judge(TRUE * (1 + relative), references, bound, F32))[0]


def test_flushed_products_are_underflow() -> None:
    """A float32 gradient of 0 in place of 1e-38 may be a flushed product and is inconclusive."""
    exact = estimate(TINY, 1e-50)
    found = judge(np.array([1.0, 0.0]), References(exact), rounding_bound(TINY, 1e-7 * TINY, TINY, F32), F32)
    assert summarise(found)[:2] == ("inconclusive", "underflow")


def test_the_worst_entry_is_named() -> None:
    """Index, both values and z of the entry with the largest z."""
    _, _, worst = summarise(judge(one_off(TRUE, 1.1), ANALYTIC, U_G, F64))
    assert worst is not None
    assert worst.index == (2, 3)
    assert worst.value == 1.1 * TRUE[2, 3]
    assert worst.reference == TRUE[2, 3]
    assert worst.z == pytest.approx(abs(worst.value - worst.reference) / worst.bound)


def test_only_entries_that_exist_are_summarised() -> None:
    """Entries outside of the given places are ignored; without any place nothing was compared."""
    entries = judge(one_off(TRUE, 3.0), ANALYTIC, U_G, F64)
    assert summarise(entries, np.array([0, 1, 7]))[0] == "pass"
    assert summarise(entries, np.array([], dtype=np.int64)) == ("inconclusive", "nothing compared", None)


def test_one_wrong_entry_outweighs_all() -> None:
    """The order is wrong, inconclusive, pass."""
    codes = np.array([PASS, INCONCLUSIVE, WRONG], dtype=np.int8)
    numbers = np.zeros(3)
    causes = np.array([0, CAUSES.index("noise"), 0], dtype=np.int8)
    entries = Entries(codes, causes, numbers, numbers, numbers, numbers, codes > 5, numbers, numbers)
    for last, expected in ((3, "wrong"), (2, "inconclusive"), (1, "pass")):
        assert expected == summarise(entries, np.arange(last))[0]
    assert VERDICTS == ("pass", "inconclusive", "wrong")


def test_a_verdict_needs_a_reference() -> None:
    """Nothing compared is never a pass."""
    with pytest.raises(ValueError, match="reference"):
        judge(TRUE, References(), NO_ROUNDING, F64)


@pytest.mark.parametrize(
    "references",
    [
        References(estimate(np.zeros(3), np.inf)),
        References(None, estimate(np.zeros(3), np.inf), estimate(np.zeros(3), np.inf)),
    ],
    ids=["complex step", "differences"],
)
def test_what_nothing_was_learnt_of_does_not_pass(references: References) -> None:
    """An estimate with an infinite bound does not confirm an exact zero."""
    assert summarise(judge(np.zeros(3), references, np.zeros(3), F64))[0] == "inconclusive"


@pytest.mark.parametrize(("value", "z"), [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (2 + 1e-9, 0.5), (-1 - 4e-9, 2.0)])
def test_distances_at_a_kink_are_from_the_nearest_derivative(value: float, z: float) -> None:
    """As of relu(w) + abs(w) at 0, with slopes from -1 to 2."""
    mean = estimate(np.array([0.5]), 2e-9, kink=1.5)
    found = judge(np.array([value]), References(None, mean, mean), np.zeros(1), F64)
    assert found.z[0] == pytest.approx(z, rel=1e-6)
    assert found.reference[0] == min(max(value, -1.0), 2.0)
    assert found.verdict[0] == (PASS if z <= 1 else WRONG)


@pytest.mark.parametrize(
    ("g", "rate", "expected"),
    [
        (1.0, "right", (PASS, "")),
        (1.0, "wrong", (INCONCLUSIVE, "no power")),
        (1.0, "neither", (INCONCLUSIVE, "no power")),
        (1.2, "right", (INCONCLUSIVE, "references disagree")),
        (1.2, "wrong", (WRONG, "")),
        (np.nan, "right", (WRONG, "not finite")),
    ],
)
def test_the_taylor_rate_breaks_ties(g: float, rate: str, expected: tuple[int, str]) -> None:
    """The Taylor rate decides together with a reference, never alone."""
    weak, other = estimate(np.array([1.0]), 1e-1), estimate(np.array([1.2]), 1e-1)
    entries = judge(np.array([g]), References(None, weak, other), np.array([1e-15]), F64)
    found = settle(entries, np.array([rate == "right"]), np.array([rate == "wrong"]))
    assert expected == (found.verdict[0], CAUSES[found.cause[0]])
