"""Networks in which rounding grows from step to step: bounds stay as small as the gradient is right, and no smaller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_cases import gradient, written

from bpcli.checking.escalation import decide, decide_along
from bpcli.checking.reference_cache import Truth
from bpcli.checking.verdict import INCONCLUSIVE, PASS, WRONG
from bpcli.methods.base import Exact
from bpcli.references import complex_step
from bpcli.references.numerics.probe import directions

CHAOTIC = """bp = 1
inputs = { x = [2], y_star = [1] }
params = { W = { shape = [20, 20], init = "normal", scale = 0.7 }, V = [20, 2], O = [1, 20] }
state = { a = [20] }
[equations]
a = "tanh(W @ a[t-1] + V @ x)"
loss = "0.5 * sum((O @ a - y_star)**2)"
[data]
T = STEPS
batch = 1
"""


def worst(truth: Truth, factor: float, along: bool) -> int:
    """The verdict on W where its gradient is `factor` times that of BPTT."""
    setup = truth.problem.setup
    tensor = next(t for t in setup.wrt if t.name == "W")
    value = factor * gradient(truth.problem, "bptt").arrays["W"]
    if along:
        entries = decide_along(truth, Exact(), tensor, value, directions(tensor))
    else:
        entries = decide(truth, Exact(), tensor, value)
    return int(np.max(entries.verdict))


@pytest.mark.parametrize("along", [False, True], ids=["entries", "directions"])
@pytest.mark.parametrize(("steps", "right"), [(30, PASS), (60, PASS), (400, INCONCLUSIVE)])
def test_rounding_that_grows(tmp_path: Path, steps: int, right: int, along: bool) -> None:
    """A gradient of the wrong sign never passes; a right one does as long as it has digits, and then is left open."""
    truth = Truth(written(tmp_path, CHAOTIC.replace("STEPS", str(steps))), (complex_step.REFERENCE,))
    assert worst(truth, 1.0, along) == right
    assert worst(truth, -1.0, along) == (WRONG if right == PASS else INCONCLUSIVE)


@pytest.mark.parametrize("steps", [200, 400])
@pytest.mark.parametrize("seed", range(4))
def test_the_wrong_sign_never_passes(tmp_path: Path, seed: int, steps: int) -> None:
    """However large the gradients are that rounding leads to."""
    problem = written(tmp_path, CHAOTIC.replace("STEPS", str(steps)), {"seed": seed})
    assert worst(Truth(problem, (complex_step.REFERENCE,)), -1.0, along=False) != PASS


CANCELLING = """bp = 1
inputs = { x = [2] }
params = { b = { shape = [3], value = [0.0, 0.0, 0.0] } }
[equations]
loss = "logsumexp(b + 2.0) - sum(b) / 3 + sum(x)"
[data]
batch = 2
"""


@pytest.mark.parametrize(("off", "expected"), [(0.0, PASS), (1e-9, WRONG)])
def test_a_gradient_that_cancels_is_told(tmp_path: Path, off: float, expected: int) -> None:
    """At a minimum, where nothing but rounding is left of it."""
    problem = written(tmp_path, CANCELLING)
    (tensor,) = (t for t in problem.setup.wrt if t.name == "b")
    truth = Truth(problem, (complex_step.REFERENCE,))
    value = gradient(problem, "backprop").arrays["b"] + off
    assert np.abs(value - off).max() < 1e-15
    assert int(np.max(decide(truth, Exact(), tensor, value).verdict)) == expected
