"""Random networks: the generator writes all of the language, and nothing accuses, breaks or disagrees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import naive_dual
import numpy as np
import pytest
import random_networks
from checking_cases import FakeMethod, call
from network_differential import LAWFUL, LIMITS, Failure, Outcome, examine, methods, problem_of_text
from network_generator import ROWS, SCALES, generate
from network_shrinker import shrink
from network_terms import Network

from bpcli.backends.jax import PEER as JAX
from bpcli.checking import checker as run
from bpcli.checking import reference_cache as truth
from bpcli.checking.check_options import CheckOptions
from bpcli.errors import BpError
from bpcli.graph.nodes import Phase, ancestors
from bpcli.graph.operations import OPERATIONS
from bpcli.methods import parse
from bpcli.methods.rtrl import RTRL
from bpcli.problem.definition import Problem, Setup
from bpcli.problem.draw import draw
from bpcli.problem.setup import open_setup
from bpcli.references.base import Estimate
from bpcli.references.central import Central
from bpcli.references.numerics import rounding
from bpcli.runtime import trace
from bpcli.runtime.reverse_mode import Window, unrolled

TESTS = Path(__file__).parent
SEEN = range(360)
HELD, COMPARED = range(140), range(140, 300)
EXTRAS_EVERY = 20


@cache
def network(seed: int) -> Network:
    """The network of a seed."""
    return generate(seed)


@pytest.fixture(scope="module")
def setups(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Setup]:
    """The setups of many networks; few are refused, for a constant that is not finite or a density without entries."""
    folder, found, codes = tmp_path_factory.mktemp("networks"), {}, set()
    for seed in SEEN:
        path = folder / f"{seed}.toml"
        path.write_text(network(seed).text(), encoding="utf-8")
        try:
            found[seed] = open_setup(path, {}, (), LIMITS)
        except BpError as error:
            codes |= {d.code for d in error.diagnostics}
    assert codes <= set(LAWFUL)
    assert len(found) > 0.95 * len(SEEN)
    return found


def test_every_operation_and_function_is_written(setups: dict[int, Setup]) -> None:
    """Of the table of operations each is a node of several networks; functions that are put together stand there."""
    nodes = Counter(op for setup in setups.values() for op in {node.op for node in setup.graph.nodes})
    assert [] == [op for op in OPERATIONS if nodes[op] < 3]
    texts = [network(seed).text() for seed in setups]
    composed = [name for name, _ in ROWS if name not in OPERATIONS]
    assert [] == [name for name in composed if sum(f"{name}(" in text for text in texts) < 3]


def sources(setup: Setup) -> dict[str, set[int]]:
    """All nodes that each state's new value is computed from within a step, itself included."""
    args = [node.args for node in setup.graph.nodes]
    return {name: ancestors([n], args) for name, n in setup.graph.new.items()}


def kinds_of_states(setup: Setup) -> list[set[str]]:
    """What each state's new value depends on: parameters, inputs, earlier states."""
    nodes = setup.graph.nodes
    return [{nodes[n].op for n in some} & {"param", "input", "previous"} for some in sources(setup).values()]


def chained(setup: Setup) -> bool:
    """Whether the new value of a state is computed from that of another."""
    new = setup.graph.new
    return any(new[other] in some for name, some in sources(setup).items() for other in new if new[other] != new[name])


def phases_of_uses(setup: Setup) -> set[frozenset[Phase]]:
    """The phases of the nodes that use each parameter."""
    nodes = setup.graph.nodes
    leaves = [n.index for n in nodes if n.op == "param"]
    return {frozenset(n.phase for n in nodes if leaf in n.args) for leaf in leaves}


WANTED: dict[str, Callable[[Setup], bool]] = {
    "feed-forward": lambda s: not s.graph.recurrent,
    "states of parameters alone": lambda s: {"param"} in kinds_of_states(s),
    "states of inputs": lambda s: {"input", "param"} in kinds_of_states(s),
    "several states": lambda s: len(s.graph.new) > 1,
    "chained states": chained,
    "scalar states": lambda s: any(d.shape == () for d in s.spec.states.values()),
    "unused arrays and equations": lambda s: bool(s.graph.unused),
    "unused states": lambda s: bool(set(s.graph.unused) & set(s.graph.new)),
    "an earlier state in the loss": lambda s: any(
        n.phase is Phase.OUTPUT and set(n.args) & set(s.graph.previous.values()) for n in s.graph.nodes
    ),
    "parameters before, within and after the loop": lambda s: any(
        {Phase.STATIC, Phase.RECURRENT, Phase.OUTPUT} <= phases for phases in phases_of_uses(s)
    ),
    "densities": lambda s: any(d.density is not None for d in s.spec.params.values()),
    "untrainable parameters": lambda s: any(not d.trainable for d in s.spec.params.values()),
    "trainable initial states": lambda s: any(d.trainable for d in s.spec.states.values()),
    "inline data": lambda s: s.spec.data.values is not None,
    "gradients of everything": lambda s: {"param", "input", "state"} == {t.kind for t in s.wrt},
    "one step": lambda s: s.graph.recurrent and s.T == 1,
    "twelve steps": lambda s: s.T == 12,
    "one sample": lambda s: s.batch == 1,
    "four samples": lambda s: s.batch == 4,
    "a size of 1": lambda s: 1 in s.spec.dims.values(),
    "a size of 9": lambda s: 9 in s.spec.dims.values(),
    **{dtype: lambda s, dtype=dtype: s.dtype.name == dtype for dtype in ("float32", "float64")},
    **{
        f"{r} over time": lambda s, r=r: s.graph.recurrent and s.spec.objective.over_time == r
        for r in ("sum", "mean", "last")
    },
    **{f"{r} over samples": lambda s, r=r: s.spec.objective.over_batch == r for r in ("sum", "mean")},
    **{
        f"powers of {p}": lambda s, p=p: any(n.op == "power" and n.numbers == (p,) for n in s.graph.nodes)
        for p in (0, 2, 3, -1, -2, 0.5)
    },
}  # fmt: skip


def test_every_kind_of_network_is_generated(setups: dict[int, Setup]) -> None:
    """Several times each."""
    assert [] == [kind for kind, wanted in WANTED.items() if sum(map(wanted, setups.values())) < 3]


def test_numbers_of_every_scale_are_generated(setups: dict[int, Setup]) -> None:
    """Zeros, ones, and from the smallest numbers to the largest; kinks are met at exactly zero."""
    assert set(SCALES) == {network(seed).scales for seed in setups}
    values = [a for s in setups.values() for group in draw(s).arrays for a in group.values() if a.size]
    sizes = np.concatenate([np.abs(a.astype(np.float64)).ravel() for a in values])
    assert {0.0, 1.0} <= set(sizes)
    assert sizes[sizes > 0].min() < 1e-299 and sizes.max() > 1e290


def test_a_seed_is_a_network() -> None:
    """In any process, however strings are hashed there."""
    script = "import sys; from network_generator import generate; print(''.join(generate(s).text() for s in range(60)))"
    paths = os.pathsep.join((str(TESTS), str(TESTS.parent)))
    elsewhere = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "".join(network(seed).text() for seed in range(60)) == elsewhere.stdout[:-1]


@pytest.mark.parametrize("seed", HELD)
def test_a_network_is_right_in_every_respect(seed: int) -> None:
    """Methods, twin, references and check agree; nothing is printed."""
    wanted = ("ladder", "spoiled", "windows") if seed % EXTRAS_EVERY == 0 else ()
    assert [] == examine(network(seed).text(), wanted).failures, network(seed).text()


def undisturbed(problem: Problem, windows: tuple[Window, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """No effect of rounding, and the gradient."""
    loss, arrays = unrolled(problem.setup, windows).gradient(problem)
    exact = {"": np.float64(loss), **{name: a.astype(np.float64) for name, a in arrays.items()}}
    return {name: np.zeros_like(a) for name, a in exact.items()}, exact


def cases(file: str) -> dict[str, str]:
    """The specs of a file by their titles."""
    parts = Path(__file__).with_name(file).read_text().split("## ")[1:]
    return {title: text for title, _, text in (part.partition("\n") for part in parts)}


ONCE_ACCUSED = cases("once_accused.txt")
"""Networks that were accused once, or at odds with the twin, by the seed that an earlier generator made them from.

They lose digits by cancellation in a pass forwards or backwards, have influences that underflow, the logarithm of a sum
near 1, a kink at an underflow, or values that only one side of a step keeps in range.
"""


@pytest.mark.parametrize("name", ONCE_ACCUSED)
def test_what_no_program_can_know_is_no_error(name: str) -> None:
    """Bounds on rounding cover it."""
    assert [] == examine(ONCE_ACCUSED[name]).failures, ONCE_ACCUSED[name]


@pytest.mark.parametrize("name", ["2630", "10141"])
def test_without_simulated_rounding_it_is_taken_for_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A twin of the test above."""
    monkeypatch.setattr(rounding, "_disturbed", lambda problem, windows, _: undisturbed(problem, windows))
    rounding.rounding.cache_clear()
    assert "disagreement" in {failure.kind for failure in examine(ONCE_ACCUSED[name]).failures}
    rounding.rounding.cache_clear()


def test_without_influences_that_underflow_it_is_taken_for_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another twin."""
    monkeypatch.setattr(rounding, "_DENSE", 0.0)
    rounding.rounding.cache_clear()
    assert "accusation" in {failure.kind for failure in examine(ONCE_ACCUSED["7511"]).failures}
    rounding.rounding.cache_clear()


@pytest.mark.parametrize(
    "rule",
    [
        lambda x: (abs(x), float(np.sign(x)) * (1 + 1e-9)),  # wrong off the kink
        lambda x: (abs(x), float(np.sign(x))) if abs(x) > 1e-16 else (1e-300, 9.0),  # no slope at the kink
    ],
)
def test_the_twin_on_another_side_of_a_kink_has_to_agree_there(
    monkeypatch: pytest.MonkeyPatch, rule: Callable[[float], tuple[float, float]]
) -> None:
    """A twin of the test above, where arguments of abs and clip are zero but for rounding."""
    monkeypatch.setitem(naive_dual.ELEMENTWISE, "abs", rule)
    assert "disagreement" in {failure.kind for failure in examine(ONCE_ACCUSED["100045"], judged=False).failures}


ONCE_OPEN = cases("once_open.txt")
"""Networks of ordinary numbers that were once inconclusive.

They have gradients that are zero by cancellation, in every tensor or in one at a kink, a loss that saturates within the
smallest step, and jumps that lie near by.
"""


@pytest.mark.parametrize("name", ONCE_OPEN)
def test_what_can_be_known_is_decided(name: str) -> None:
    """Every tensor passes, and in each that has no kink an entry that is off is wrong."""
    outcome, found = examine(ONCE_OPEN[name]), Outcome()
    assert ([], []) == (outcome.failures, outcome.open)
    problem = problem_of_text(ONCE_OPEN[name], found)
    assert problem is not None
    own = parse(methods(problem.setup)[0])
    passed = {f.tensor for f in run.check_problem(problem, [own], CheckOptions()) if f.kink is None}
    right = own.gradient(problem).arrays
    off = {n: np.array(a) for n, a in right.items()}
    for tensor in problem.setup.wrt:
        if tensor.entries:
            first = 0 if tensor.pattern is None else tensor.pattern[0]
            off[tensor.name].reshape(-1)[first] += 1e-2 * max(1.0, float(np.abs(right[tensor.name]).max()))
    spoiled = call(FakeMethod(lambda arrays, *_: arrays.update(off)))
    verdicts = {f.tensor: f.verdict for f in run.check_problem(problem, [spoiled], CheckOptions())}
    assert dict.fromkeys(passed, "wrong") == {name: verdicts[name] for name in passed}


@pytest.fixture
def dirty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that comes full of a number, rather than of what was there before."""
    allocate = trace.Memory.allocate

    def filled(self: trace.Memory, entries: int, dtype: np.dtype) -> tuple[np.ndarray, int]:
        numbers, address = allocate(self, entries, dtype)
        numbers[:] = 1e3
        return numbers, address

    monkeypatch.setattr(trace.Memory, "allocate", filled)
    monkeypatch.setattr(trace.Memory, "acquire", lambda self, *key: trace.Views(self, *key))


@pytest.mark.usefixtures("dirty")
@pytest.mark.parametrize("seed", COMPARED)
def test_methods_agree_on_a_network(seed: int) -> None:
    """With each other and with the twin, whatever memory holds: the quick half of it, on as many again."""
    assert [] == examine(network(seed).text(), judged=False).failures, network(seed).text()


PARTS = """bp = 1
[params]
p = { shape = [3], init = "normal" }
[state]
a = { shape = [3], init = "normal" }
[equations]
a = "concat(a[t-1][2:3], p[1:3]) + 0.5 * p[0]"
loss = "sum(a)"
[data]
T = 3
"""


@pytest.mark.usefixtures("dirty")
def test_a_vector_of_which_a_step_reads_a_part() -> None:
    """The rest of it, which is read only before the first step, has no influence of its own; it was once left as it
    was in memory."""
    assert [] == examine(PARTS).failures


@pytest.mark.skipif(JAX.available() is not None, reason="no jax")
@pytest.mark.parametrize("seed", [1, 7, 25])
def test_jax_agrees(seed: int) -> None:
    """On a few, as each has to be compiled."""
    assert [] == examine(network(seed).text(), ["jax"], judged=False).failures, network(seed).text()


@pytest.mark.parametrize("seed", [3, 11, 21, 25])
def test_memory_is_as_predicted(seed: int) -> None:
    """On a few, as tracing takes longer than all else."""
    assert [] == examine(network(seed).text(), ["memory"], judged=False).failures, network(seed).text()


SOUND = """bp = 1
inputs = { x = [2], y_star = [2] }
params = { W = [2, 2], V = [2, 2], b = [2] }
state = { a = { shape = [2], init = "normal" } }
[equations]
a = "tanh(W @ a[t-1] + V @ x + b)"
loss = "0.5 * sum((a - y_star)**2)"
[data]
T = 4
batch = 2
[check]
wrt = ["params", "state"]
"""


def slightly_off(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RTRL.gradient

    def gradient(self: RTRL, *args: Any) -> Any:
        answer = right(self, *args)
        answer.arrays["W"][:] *= 1 + 1e-9
        return answer

    monkeypatch.setattr(RTRL, "gradient", gradient)


def a_wrong_rule_of_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    right = naive_dual.ELEMENTWISE["tanh"]
    monkeypatch.setitem(naive_dual.ELEMENTWISE, "tanh", lambda x: (right(x)[0], right(x)[1] * (1 + 1e-9)))


def a_reference_beside_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Central.estimate

    def estimate(*args: Any) -> Any:
        moved = lambda e: Estimate(e.value * (1 + 1e-3), e.bound, e.noise, e.kink)  # noqa: E731 (used once)
        return {name: moved(e) for name, e in right(*args).items()}

    monkeypatch.setattr(Central, "estimate", estimate)


def bounds_that_excuse_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    right = truth.rounding

    def rounding(*args: Any) -> Any:
        found = right(*args)
        return replace(found, gradient={name: b + 1e9 for name, b in found.gradient.items()}, scale=1e12)

    monkeypatch.setattr(truth, "rounding", rounding)


def a_print_from_below(monkeypatch: pytest.MonkeyPatch) -> None:
    right = run.check_problem
    monkeypatch.setattr(run, "check_problem", lambda *args: (os.write(2, b"On entry to ZGEMM\n"), right(*args))[1])


def a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    right = run.check_problem
    monkeypatch.setattr(run, "check_problem", lambda *args: (np.float64(1e300) * np.float64(1e300), right(*args))[1])


def a_crash_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "check_problem", lambda *args: [][1])


def memory_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RTRL.gradient
    monkeypatch.setattr(RTRL, "gradient", lambda *args: (np.ones(1 << 14), right(*args))[1])


PLANTED: dict[Callable[[pytest.MonkeyPatch], None], set[str]] = {
    slightly_off: {"disagreement", "accusation"},
    a_wrong_rule_of_the_twin: {"disagreement", "reference"},
    a_reference_beside_the_truth: {"reference"},
    bounds_that_excuse_anything: {"missed"},
    a_print_from_below: {"printed"},
    a_warning: {"warning"},
    a_crash_in_python: {"internal"},
    memory_that_grows: {"memory"},
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_planted_faults_are_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by what is there to find it, on a network that is right without."""
    wanted = [extra for extra in ("spoiled", "memory") if PLANTED[plant] & {"missed", "memory"}]
    assert [] == examine(SOUND, wanted).failures
    plant(monkeypatch)
    assert PLANTED[plant] <= {failure.kind for failure in examine(SOUND, wanted).failures}


def test_a_failing_network_shrinks_to_what_makes_it_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a wrong rule of `sin` in the twin, to the sine of a number in one step of one sample."""
    wrong = naive_dual.ELEMENTWISE["sin"]
    monkeypatch.setitem(naive_dual.ELEMENTWISE, "sin", lambda x: (wrong(x)[0], 1.5 * wrong(x)[1]))

    def fails(candidate: Network) -> bool:
        return Failure("disagreement", "bptt and the twin, param") in examine(candidate.text(), judged=False).failures

    seed = next(s for s in SEEN if len(network(s).equations) > 3 and "sin(" in network(s).text() and fails(network(s)))
    found = shrink(network(seed), fails)
    assert fails(found)
    assert 1 == found.T == found.batch == max(found.dims.values(), default=1)
    nodes = [term.form for equation in found.equations.values() for _, term in equation.walk()]
    assert len(nodes) <= 4 and any("sin" in form for form in nodes), found.text()


def test_a_network_that_passes_stays_as_it_is() -> None:
    """The twin of the shrinker: nothing is given back that does not fail."""
    assert network(3) == shrink(network(3), lambda candidate: False)


BREAKING = """
import json, os, signal, sys
journal, first, count = sys.argv[2], int(sys.argv[4]), int(sys.argv[6])
with open(journal, "a") as file:
    for seed in range(first, first + count):
        print(json.dumps({"start": seed}), file=file, flush=True)
        if seed == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        line = {"seed": seed, "scales": "flat", "dtype": "float64", "judged": 2, "refused": "", "open": ["noise"]}
        print(json.dumps({**line, "failures": [], "seconds": 0.1}), file=file, flush=True)
"""


def test_a_network_that_ends_its_process_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are looked at all the same, and everything is counted."""
    script = tmp_path / "breaking.py"
    script.write_text(BREAKING, encoding="utf-8")
    monkeypatch.setattr(random_networks, "COMMAND", (sys.executable, str(script)))
    lines = random_networks.look_at_all(0, 6, "all", 1)
    assert {*range(6)} == {line["seed"] for line in lines}
    broken = next(line for line in lines if line["seed"] == 3)
    assert [["crash", f"the process ended with -{signal.SIGSEGV}"]] == broken["failures"]
    table = random_networks.rows(lines)
    assert (6, 10, 1, 5) == tuple(
        sum(row[c] for row in table) for c in ("networks", "gradients", "crash", "inconclusive")
    )
    assert not random_networks.report(lines, SCALES, 0)
    assert "seeds 3" in capsys.readouterr().out
