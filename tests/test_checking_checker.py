"""Whole checks of small specs: correct gradients pass and broken ones are wrong, with their cause."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checking_cases import LIMITS, SMALL, Arrays, FakeMethod, call, small_setup

from bpcli.api.check_document import findings_document
from bpcli.api.check_runner import Results
from bpcli.checking.check_options import CheckOptions, check_bytes, check_cost, choose
from bpcli.checking.checker import check
from bpcli.checking.findings import Finding
from bpcli.checking.reference_cache import ReferenceCache
from bpcli.checking.verdict import cosine, relative_error
from bpcli.methods import parse
from bpcli.problem.definition import Problem, Setup
from bpcli.problem.draw import draw
from bpcli.problem.limits import array_bytes, predicted_seconds
from bpcli.problem.setup import open_setup

AUTO = CheckOptions()
DEFAULTS = {"T": 20, "batch": 4}


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


def threaded(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
    if method.calls == 2:  # the call with jobs in another order
        arrays["W"][0, 0] *= 1 + 2.0**-52


FAULTS = {
    threaded: "depends on the order of parallel jobs",
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
    """Every tensor is wrong, and the arrays are restored for the next method."""

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


def test_the_complex_step_follows_the_branches_of_kinked_operations() -> None:
    """Away from kinks an error of 1e-10 is found in a network of relu and abs."""
    setup, options = small_setup("relu"), CheckOptions("complex-step")
    assert {"pass"} == {f.verdict for f in check(setup, [call(FakeMethod())], options)}

    def slightly(arrays: Arrays, method: FakeMethod, problem: Problem) -> None:
        arrays["W"] *= 1 + 1e-10

    assert ("wrong", "") == verdicts(check(setup, [call(FakeMethod(slightly))], options))["W"]


def test_at_a_kink_the_complex_step_knows_nothing() -> None:
    """The complex step alone leaves open the entries at a kink, and nothing else."""
    (b, v) = check(small_setup("kink", ("params",)), [call(FakeMethod())], CheckOptions("complex-step"))
    assert ("inconclusive", "no power") == (b.verdict, b.cause)
    assert "pass" == v.verdict


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


TINY = """bp = 1
[inputs]
x = [2]
[params]
W = {{ shape = [2, 2], density = 0.1 }}
{more}
[equations]
loss = "{loss}"
[data]
batch = 3
"""


def opened(folder: Path, text: str, wrt: tuple[str, ...] = ("params",)) -> Setup:
    """The setup of a spec's text."""
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return open_setup(path, {}, wrt, LIMITS)


@pytest.mark.parametrize("reference", ["auto", "central"])
def test_a_tensor_without_entries_gives_no_finding(tmp_path: Path, reference: str) -> None:
    """A tensor without entries is skipped beside others; alone it is inconclusive."""
    options = CheckOptions(reference)  # type: ignore[arg-type]
    setup = opened(tmp_path, TINY.format(more="b = [2]", loss="sum(tanh(W @ x + b))"))
    assert {"b": ("pass", "")} == verdicts(check(setup, [parse("backprop")], options))
    setup = replace(setup, wrt=setup.wrt[:1])
    assert {"W": ("inconclusive", "nothing compared")} == verdicts(check(setup, [parse("backprop")], options))


@pytest.mark.parametrize(("init", "vanishes"), [("zeros", True), ("normal", False)])
def test_a_gradient_that_vanishes_is_told(tmp_path: Path, init: str, vanishes: bool) -> None:
    """A gradient that is rounding alone passes without relative errors and with a note."""
    text = TINY.format(more="", loss="sum(tanh(W @ x)**2)")
    text = text.replace("density = 0.1", f'init = "{init}"')
    found = check(opened(tmp_path, text), [parse("backprop")], AUTO)
    assert ["pass"] == [f.verdict for f in found] and [vanishes] == [f.kernel_error is None for f in found]
    notes = findings_document(found, [], {}, []).notes
    assert vanishes == any(note.startswith("tiny: the gradient of W is zero up to rounding") for note in notes)


def test_at_a_kink_errors_are_from_the_nearest_derivative(tmp_path: Path) -> None:
    """Any slope of relu(w) + abs(w) at 0 is exact: z and the kernel's error say so."""
    text = TINY.format(more="w = { shape = [2], value = [0.0, 0.0] }", loss="sum(relu(w) + abs(w)) + sum(W @ x)")
    (finding,) = check(opened(tmp_path, text), [parse("backprop")], AUTO)
    assert ("w", "pass", "kink") == (finding.tensor, finding.verdict, finding.cause)
    assert finding.worst is not None and finding.kernel_error is not None
    assert finding.worst.z <= 1
    assert finding.kernel_error < 1e-6


def test_the_loss_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is evaluated once for any number of methods."""
    truth = ReferenceCache(draw(small_setup("exercise", ("params",))), ())
    first = truth.loss
    monkeypatch.setattr("bpcli.checking.reference_cache.whole_loss", None)
    assert first == truth.loss


@pytest.mark.parametrize("reference", ["auto", "central"])
@pytest.mark.parametrize(
    ("name", "sizes", "methods"),
    [
        ("vanilla_rnn", {"n": 6, "T": 30, "batch": 8}, ("bptt", "tbptt:k1=1,k2=4")),
        ("relu", {"n": 8, "T": 50}, ("bptt",)),
        ("exercise", {"n_hidden": 40, "batch": 30}, ("backprop",)),
    ],
)
def test_the_memory_of_a_check_is_foreseen(
    name: str, sizes: dict[str, object], methods: tuple[str, ...], reference: str
) -> None:
    """The predicted memory is an upper bound on that allocated, and not much more."""
    setup, options = small_setup(name, ("params",), **sizes), CheckOptions(reference)  # type: ignore[arg-type]
    calls = [parse(text) for text in methods]
    check(small_setup(name, ("params",), **sizes), calls, options)  # kernels are loaded here: they are not the check's
    peaks = []
    for _ in range(3):  # the interpreter, whose tables grow now and then, takes more by chance
        tracemalloc.start()
        check(setup, calls, options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    peak = min(peaks)
    assert peak <= check_bytes(setup, calls, options) + sum(array_bytes(setup).values()) + (1 << 19)
    assert check_bytes(setup, calls, options) <= 2 * peak + (1 << 19)


@pytest.mark.parametrize(
    ("name", "sizes", "options", "mode", "sampled"),
    [
        ("vanilla_rnn", {}, AUTO, "full", False),
        ("vanilla_rnn", {"n": 100, "T": 10}, AUTO, "full", False),
        ("vanilla_rnn", {"n": 200, "T": 20}, AUTO, "full", False),
        ("vanilla_rnn", {"n": 200, "T": 100}, AUTO, "full", False),
        ("vanilla_rnn", {"n": 512, "T": 10}, AUTO, "full", False),
        ("vanilla_rnn", {"n": 512, "T": 150}, AUTO, "full", False),
        ("leaky_rnn", {"n": 512, "T": 10}, AUTO, "full", True),
        ("leaky_rnn", {"n": 512, "T": 200}, AUTO, "directional", False),
        ("leaky_rnn", {"n": 200, "T": 100}, CheckOptions(mode="full"), "full", False),
        ("vanilla_rnn", {"n": 40, "T": 10}, CheckOptions("central"), "full", False),
    ],
)
def test_auto_is_what_is_affordable(
    name: str, sizes: dict[str, object], options: CheckOptions, mode: str, sampled: bool
) -> None:
    """Every entry with differences beside each, or beside a sample, or directions; it says which, and the cost."""
    taken = choose(small_setup(name, ("params",), **{**DEFAULTS, **sizes}), [parse("bptt")], options)
    assert (mode, sampled) == (taken.mode, taken.sampled)
    assert 0 < taken.flops and (taken.flops <= taken.full_flops or options.mode != "auto")
    assert ("directions" in str(taken), "sample" in str(taken)) == (mode == "directional", sampled)
    assert ("--mode full" in str(taken)) == (mode == "directional")


@pytest.mark.parametrize(
    ("name", "sizes", "mode"),
    [
        ("vanilla_rnn", {}, "full"),
        ("vanilla_rnn", {"T": 3000}, "full"),
        ("vanilla_rnn", {"n": 200, "T": 10}, "full"),
        ("leaky_rnn", {"n": 24, "T": 20}, "full"),
        ("leaky_rnn", {"n": 512, "T": 200}, "directional"),
    ],
)
def test_directions_are_no_slower_than_every_entry(name: str, sizes: dict[str, object], mode: str) -> None:
    """Few units, over few steps or many: every entry takes less time, and the note says so; many units: directions."""
    setup = small_setup(name, ("params",), **{**DEFAULTS, **sizes})
    taken = choose(setup, [parse("bptt")], CheckOptions(mode="directional"))
    every = choose(setup, [parse("bptt")], CheckOptions(mode="full"))
    assert mode == taken.mode
    assert predicted_seconds(taken.flops, taken.steps) <= predicted_seconds(every.flops, every.steps)
    assert ("8 directions per tensor would take" in str(taken)) == (mode == "full") == (taken.spared >= 1)


def test_the_notes_say_what_was_chosen() -> None:
    """By the names of the specs."""
    assert ["By darts: a, b"] == Results(chosen={"by darts": ["a", "b"]}).notes()
    assert [] == Results().notes()


STATIC_STATE = """bp = 1
[state]
a = [2]
[params]
P = {{ shape = [2, 2], value = [[1.0, 2.0], [0.5, 1.0]] }}
q = {{ shape = [2], value = [1.0, -1.0] }}
[equations]
h = "{h}"
a = "{a}"
loss = "{loss}"
[data]
batch = {batch}
T = {T}
"""


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize(
    ("h", "a", "loss"),
    [
        ("P @ q", "h", "sum(a)"),
        ("P @ q", "P @ h", "sum(a)"),
        ("tanh(P @ q)", "P @ h", "sum((sin(P @ a) - cos(a[t-1]))**2)"),
        ("P @ q", "P @ h", "2.0"),
    ],
)
def test_states_of_parameters_alone(tmp_path: Path, h: str, a: str, loss: str, T: int, batch: int) -> None:
    """Right gradients pass where a state's update depends on parameters alone; one that is 0.05% off is wrong."""
    path = tmp_path / "static.toml"
    path.write_text(STATIC_STATE.format(h=h, a=a, loss=loss, T=T, batch=batch), encoding="utf-8")
    setup = open_setup(path, {}, ("params", "state"), LIMITS)
    assert {"pass"} == {f.verdict for f in check(setup, [parse("bptt"), parse("rtrl")], AUTO)}
    off = check(setup, [call(FakeMethod(lambda arrays, *_: arrays["q"].__imul__(1.0005)))], AUTO)
    assert ("pass" if loss == "2.0" else "wrong") == {f.tensor: f.verdict for f in off}["q"]


@pytest.mark.parametrize("loss", ["sum(x) * sum(h)", "sum(x) * dot(h, h)", "logsumexp(h)"])
def test_long_sums_of_equal_terms(tmp_path: Path, loss: str) -> None:
    """Rounding of 16384 equal terms in order would exceed every bound; a millionth too much is wrong."""
    joined = "\n".join(f'h{k + 1} = "concat(h{k}, h{k})"' for k in range(11))
    text = f"""bp = 1
inputs = {{ x = [4] }}
params = {{ w = [4] }}
[equations]
h0 = "w * x"
{joined}
h = "concat(h11, h11)"
loss = "{loss}"
"""
    path = tmp_path / "long.toml"
    path.write_text(text, encoding="utf-8")
    setup = open_setup(path, {}, ("params",), LIMITS)
    assert {"w": ("pass", "")} == verdicts(check(setup, [parse("backprop")], AUTO))
    off = check(setup, [call(FakeMethod(lambda arrays, *_: arrays["w"].__imul__(1 + 1e-6)))], AUTO)
    assert "wrong" == verdicts(off)["w"][0]
