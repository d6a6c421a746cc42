"""Whole checks of small specs: correct gradients pass and broken ones are wrong, with their cause."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from checking_cases import SMALL, Arrays, FakeMethod, call, small_setup

from bpcli.checking.findings import Finding
from bpcli.checking.run import CheckOptions, check, check_cost, cosine, relative_error
from bpcli.errors import BpError
from bpcli.problem.model import Problem

AUTO = CheckOptions()


def verdicts(findings: list[Finding]) -> dict[str, tuple[str, str]]:
    """Verdict and cause by tensor."""
    return {f.tensor: (f.verdict, f.cause) for f in findings}


@pytest.mark.parametrize("reference", ["auto", "central"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", SMALL)
def test_correct_gradients_pass(name: str, dtype: str, reference: str) -> None:
    """Parameters, inputs and initial states of several specs, analytic and not, in both dtypes."""
    setup = small_setup(name, dtype=dtype)
    findings = check(setup, [call(FakeMethod())], CheckOptions(reference))  # type: ignore[arg-type]
    assert {t.name: ("pass", "") for t in setup.wrt} == verdicts(findings)
    for finding, tensor in zip(findings, setup.wrt, strict=True):
        assert finding.checked == tensor.entries
        assert finding.shape == tensor.shape
        assert finding.kernel_error is not None and finding.kernel_error < (1e-6 if dtype == "float32" else 1e-9)


def sign(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    arrays["W"] *= -1


def permille(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    arrays["W"] *= 1.0005


def transposed(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    arrays["W"] = arrays["W"].T.copy()


def one_entry(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    arrays["W"][1, 2] *= 1 + 1e-6


def zeroed(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    arrays["W"][:] = 0


def late(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    arrays["W"] = np.roll(arrays["W"], 1, axis=1)


def not_finite(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    arrays["W"][0, 0] = np.nan


def missing(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    del arrays["W"]


def misshapen(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    arrays["W"] = arrays["W"].ravel()


def mistyped(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    arrays["W"] = arrays["W"].astype(np.float32)


def unsteady(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    arrays["W"][0, 0] *= 1 + 2.0**-52 * method.calls


FAULTS = {
    sign: "",
    permille: "",
    transposed: "",
    one_entry: "",
    zeroed: "",
    late: "",
    not_finite: "not finite",
    missing: "missing",
    misshapen: "wrong shape",
    mistyped: "wrong type",
    unsteady: "not deterministic",
}


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("vanilla_rnn", "auto"),
        ("vanilla_rnn", "central"),
        ("vanilla_rnn", "complex-step"),
        ("relu", "auto"),
    ],
)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_planted_faults_are_wrong(fault: object, name: str, reference: str) -> None:
    """Each fault is found in the tensor that has it, and nowhere else."""
    setup = small_setup(name, ("params",))
    findings = check(setup, [call(FakeMethod(fault))], CheckOptions(reference))  # type: ignore[arg-type]
    expected = {t.name: ("pass", "") for t in setup.wrt} | {"W": ("wrong", FAULTS[fault])}  # type: ignore[index]
    assert expected == verdicts(findings)


def test_a_method_that_writes_to_its_arguments_is_wrong() -> None:
    """All its tensors are, and the arrays are put back for the next method."""

    def writes(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
        problem.params["W"][0, 0] += 1

    setup = small_setup("vanilla_rnn", ("params",))
    findings = check(setup, [call(FakeMethod(writes)), call(FakeMethod())], AUTO)
    count = len(setup.wrt)
    assert {("wrong", "changes its arguments")} == {(f.verdict, f.cause) for f in findings[:count]}
    assert {("pass", "")} == {(f.verdict, f.cause) for f in findings[count:]}


def test_a_wrong_loss_is_a_finding() -> None:
    """A loss off by 1e-9 gets a finding of its own, called loss; a right one gets none."""
    setup = small_setup("exercise", ("params",))
    findings = check(setup, [call(FakeMethod(loss_factor=1 + 1e-9))], AUTO)
    assert {t.name: "pass" for t in setup.wrt} | {"loss": "wrong"} == {f.tensor: f.verdict for f in findings}


def test_truncated_gradients_are_judged_by_their_own_definition() -> None:
    """The truncated gradient passes, and its bias is told; under the exact definition the same numbers are wrong."""
    setup = small_setup("leaky_rnn", ("params",))
    truncated = FakeMethod(k1=1, k2=2)
    findings = check(setup, [call(truncated), call(replace(truncated, claims_exact=True))], AUTO)
    ours, theirs = findings[: len(setup.wrt)], findings[len(setup.wrt) :]
    assert {"pass"} == {f.verdict for f in ours}
    biased = next(f for f in ours if f.tensor == "W")
    assert biased.bias is not None and biased.cosine is not None
    assert biased.bias > 1e-3
    assert 0.5 < biased.cosine < 1
    assert next(f for f in theirs if f.tensor == "W").verdict == "wrong"
    assert biased.bias == pytest.approx(next(f for f in theirs if f.tensor == "W").kernel_error or 0)


def test_the_complex_step_is_refused_where_it_does_not_apply() -> None:
    """The operation that is not analytic is named."""
    with pytest.raises(BpError, match="relu is not analytic"):
        check(small_setup("relu"), [call(FakeMethod())], CheckOptions("complex-step"))


@pytest.mark.parametrize(("slope", "expected"), [(0.0, "pass"), (0.5, "pass"), (1.0, "pass"), (1.1, "wrong")])
def test_any_slope_passes_at_an_exact_kink(slope: float, expected: str) -> None:
    """Between the one-sided derivatives of relu at 0, and said so."""

    def at_kink(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
        arrays["b"][:2] += slope * problem.params["v"][:2]

    findings = check(small_setup("kink", ("params",)), [call(FakeMethod(at_kink))], AUTO)
    assert (expected, "kink" if expected == "pass" else "") == verdicts(findings)["b"]


def test_the_cost_grows_with_what_is_compared() -> None:
    """More sizes, more operations; the predicted cost includes the method's own."""
    small, large = small_setup("vanilla_rnn"), small_setup("vanilla_rnn", n=12)
    costs = [check_cost(setup, [call(FakeMethod())], AUTO) for setup in (small, large)]
    assert 2e3 < costs[0] < costs[1] / 4


@pytest.mark.parametrize(
    ("value", "reference", "error", "angle"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0, 1.0),
        ([0.0, 0.0], [3.0, 4.0], 1.0, None),
        ([3.0, 4.0], [0.0, 0.0], None, None),
        ([-3e200, -4e200], [3e200, 4e200], 2.0, -1.0),
        ([4e-200, -3e-200], [3e-200, 4e-200], 2**0.5, 0.0),
    ],
)
def test_errors_and_angles(
    value: list[float], reference: list[float], error: float | None, angle: float | None
) -> None:
    """Relative error and cosine, at any scale; None where they mean nothing."""
    pair = np.array(value), np.array(reference)
    assert relative_error(*pair) == (error if error is None else pytest.approx(error))
    assert cosine(*pair) == (angle if angle is None else pytest.approx(angle, abs=1e-15))
