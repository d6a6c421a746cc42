"""Checks along directions: as strict as those of every entry, with the wrong entry located."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from checking_cases import SMALL, Arrays, FakeMethod, call, small_setup

from bpcli.checking import checker
from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check
from bpcli.methods import parse
from bpcli.problem.definition import Problem

DIRECTIONAL = CheckOptions(mode="directional")
pytestmark = pytest.mark.usefixtures("free_directions")


@pytest.mark.parametrize("reference", ["auto", "central", "complex-step", "ladder"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", SMALL)
def test_right_gradients_pass_along_directions(name: str, dtype: str, reference: str) -> None:
    """Eight directions a tensor, and no index."""
    setup = small_setup(name, dtype=dtype)
    options = replace(DIRECTIONAL, reference=reference)  # type: ignore[arg-type]
    for finding in check(setup, [call(FakeMethod())], options):
        assert ("pass", 8) == (finding.verdict, finding.checked)
        assert finding.worst is not None and finding.worst.index is None
        assert finding.kernel_error is not None and finding.kernel_error < (1e-5 if dtype == "float32" else 1e-7)


def permille(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    arrays["W"] *= arrays["W"].dtype.type(1.0005)


def one_entry(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    arrays["W"][1, 2] += arrays["W"].dtype.type(1e-3) * np.abs(arrays["W"]).max()


def not_finite(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    arrays["W"][2, 0] = np.nan


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("affordable", [checker.AFFORDABLE, 0.0], ids=["every entry", "halving"])
@pytest.mark.parametrize(("fault", "where"), [(permille, None), (one_entry, (1, 2)), (not_finite, (2, 0))])
def test_a_suspect_tensor_is_looked_at_entry_by_entry(
    monkeypatch: pytest.MonkeyPatch, fault: object, where: tuple[int, int] | None, affordable: float, dtype: str
) -> None:
    """Every entry is judged where that is affordable; else bisection finds the wrong one."""
    monkeypatch.setattr(checker, "AFFORDABLE", affordable)
    setup = small_setup("vanilla_rnn", ("params",), dtype=dtype)
    findings = check(setup, [call(FakeMethod(fault))], DIRECTIONAL)  # type: ignore[arg-type]
    assert {t.name: "pass" for t in setup.wrt} | {"W": "wrong"} == {f.tensor: f.verdict for f in findings}
    wrong = next(f for f in findings if f.tensor == "W")
    assert wrong.worst is not None and wrong.worst.index is not None
    assert where is None or where == wrong.worst.index
    assert (9 if affordable else 1) == wrong.checked


def test_errors_and_biases_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bias of a truncated gradient is estimated from eight directions; a cosine is not."""
    setup, truncated = small_setup("leaky_rnn", ("params",)), FakeMethod(k1=1, k2=2)
    full, along = (check(setup, [call(truncated)], o) for o in (CheckOptions(), DIRECTIONAL))
    for one, other in zip(full, along, strict=True):
        assert one.bias is not None and other.bias is not None
        assert 0.3 * one.bias - 1e-12 <= other.bias <= 3 * one.bias + 1e-12
        assert other.cosine is None


def test_a_direction_over_a_kink_is_decided_by_entries() -> None:
    """Directions at a kink are followed by entries, which pass, one of them with that cause."""
    findings = check(small_setup("kink", ("params",)), [parse("backprop")], DIRECTIONAL)
    assert {"pass"} == {f.verdict for f in findings}
