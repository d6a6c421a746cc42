"""Networks in which rounding grows from step to step: bounds follow the accuracy of the gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_cases import gradient, written

from bpcli.checking.checker import decide, decide_along
from bpcli.checking.reference_cache import ReferenceCache
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


def worst(truth: ReferenceCache, factor: float, along: bool) -> int:
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
    """A gradient of the wrong sign never passes; a right one passes while it has digits, and is inconclusive after."""
    truth = ReferenceCache(written(tmp_path, CHAOTIC.replace("STEPS", str(steps))), (complex_step.REFERENCE,))
    assert worst(truth, 1.0, along) == right
    assert worst(truth, -1.0, along) == (WRONG if right == PASS else INCONCLUSIVE)


@pytest.mark.parametrize("steps", [200, 400])
@pytest.mark.parametrize("seed", range(4))
def test_the_wrong_sign_never_passes(tmp_path: Path, seed: int, steps: int) -> None:
    """A wrong sign never passes, however large the gradients that rounding makes."""
    problem = written(tmp_path, CHAOTIC.replace("STEPS", str(steps)), {"seed": seed})
    assert worst(ReferenceCache(problem, (complex_step.REFERENCE,)), -1.0, along=False) != PASS


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
    """A gradient at a minimum, which is rounding alone."""
    problem = written(tmp_path, CANCELLING)
    (tensor,) = (t for t in problem.setup.wrt if t.name == "b")
    truth = ReferenceCache(problem, (complex_step.REFERENCE,))
    value = gradient(problem, "backprop").arrays["b"] + off
    assert np.abs(value - off).max() < 1e-15
    assert int(np.max(decide(truth, Exact(), tensor, value).verdict)) == expected
