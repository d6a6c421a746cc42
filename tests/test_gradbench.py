"""GradBench: its protocol, its evals against formulas in NumPy, and the gradients in its logs."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import run

from bpcli.api.gradbench_evals import EVALS

RNG = np.random.default_rng(7)


def answers(*messages: Any, options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The responses to messages, each with its number for its id."""
    lines = [json.dumps({"id": i, **m}) for i, m in enumerate(messages)]
    result = run("gradbench", *options, input="\n".join(lines))
    assert 0 == result.exit_code, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [*range(len(messages))] == [response["id"] for response in found]
    return found


def evaluate(module: str, function: str, given: Any, **options: Any) -> dict[str, Any]:
    """The response to one evaluation."""
    message = {"kind": "evaluate", "module": module, "function": function, "input": given}
    return answers(message, **options)[0]


def test_session():
    """The example of GradBench's first eval; messages of no known kind are answered by their id alone."""
    found = answers(
        {"kind": "start", "eval": "hello"},
        {"kind": "define", "module": "hello"},
        {"kind": "evaluate", "module": "hello", "function": "square", "input": 3},
        {"kind": "analysis", "of": 2, "valid": True},
        {"kind": "evaluate", "module": "hello", "function": "double", "input": 3.5},
        {"kind": "define", "module": "ba"},
        {"kind": "farewell"},
    )
    assert "bp" == found[0]["tool"]
    assert found[1]["success"] and "prepare" == found[1]["timings"][0]["name"]
    assert (True, 9.0) == (found[2]["success"], found[2]["output"])
    assert {"id": 3} == found[3] and {"id": 6} == found[6]
    assert (True, 7.0) == (found[4]["success"], found[4]["output"])
    assert not found[5]["success"] and "gmm, hello, llsq" in found[5]["error"]


def _rows(*shape: int) -> list[list[float]]:
    return RNG.normal(size=shape).tolist()


def _layered(layers: int, b: int, characters: int) -> dict[str, Any]:
    bits = RNG.integers(0, 2, size=(characters, b)).astype(float).tolist()
    sizes = {"main_params": (2 * layers, 4 * b), "extra_params": (3, b), "state": (2 * layers, b)}
    return {name: _rows(*shape) for name, shape in sizes.items()} | {"sequence": bits}


def _mixed(d: int, k: int, n: int) -> dict[str, Any]:
    given = {"d": d, "k": k, "n": n, "x": _rows(n, d), "m": 2, "gamma": 0.7, "alpha": RNG.normal(size=k).tolist()}
    return given | {"mu": _rows(k, d), "q": _rows(k, d), "l": _rows(k, d * (d - 1) // 2)}


def llsq(x: np.ndarray, given: dict[str, Any]) -> Any:
    """The README's sum."""
    t = [-1 + 2 * i / (given["n"] - 1) for i in range(given["n"])]
    return 0.5 * sum((np.sign(ti) - sum(xj * ti**j for j, xj in enumerate(x))) ** 2 for ti in t)


def ode(x: np.ndarray, given: dict[str, Any]) -> Any:
    """The last value after s steps of Runge and Kutta."""
    y, h = np.zeros(len(x), x.dtype), 2.0 / given["s"]

    def f(y: np.ndarray) -> np.ndarray:
        return np.array([x[0], *(x[i] * y[i - 1] for i in range(1, len(x)))])

    for _ in range(given["s"]):
        k1 = f(y)
        k2 = f(y + h * k1 / 2)
        k3 = f(y + h * k2 / 2)
        y = y + h * (k1 + 2 * k2 + 2 * k3 + f(y + h * k3)) / 6
    return y[-1]


def lstm(flat: np.ndarray, given: dict[str, Any]) -> Any:
    """The objective of ADBench, layer by layer."""
    layers, b = len(given["main_params"]) // 2, len(given["extra_params"][0])
    main, extra = flat[: 8 * layers * b].reshape(2 * layers, 4, b), flat[8 * layers * b :].reshape(3, b)
    state, sequence = np.array(given["state"], flat.dtype), np.array(given["sequence"])
    total = 0.0
    for now, after in itertools.pairwise(sequence):
        below = now * extra[0]
        for i in range(layers):
            W, B, (hidden, cell) = main[2 * i], main[2 * i + 1], state[2 * i : 2 * i + 2]
            forget, inside, out = (
                1 / (1 + np.exp(-(v * W[j] + B[j]))) for j, v in enumerate((below, hidden, below))
            )  # fmt: skip
            cell = cell * forget + inside * np.tanh(hidden * W[3] + B[3])
            below = out * np.tanh(cell)
            state[2 * i : 2 * i + 2] = below, cell
        y = below * extra[1] + extra[2]
        total = total + after @ (y - np.log(np.exp(y).sum() + 2))
    return -total / (b * (len(sequence) - 1))


def gmm(flat: np.ndarray, given: dict[str, Any]) -> Any:
    """The log posterior by the densities of the README, with determinants and matrices."""
    d, k, n = given["d"], given["k"], given["n"]
    cuts = np.cumsum([k, k * d, k * d])
    alpha, mu, q, lower = np.split(flat, cuts)
    mu, q, lower = mu.reshape(k, d), q.reshape(k, d), lower.reshape(k, -1)
    count = d + given["m"] + 1
    log_gamma = d * (d - 1) / 4 * math.log(math.pi) + sum(math.lgamma((count - j) / 2) for j in range(d))
    prior, densities = 0.0, []
    for j in range(k):
        Q, at = np.diag(np.exp(q[j])), 0
        for column in range(d):
            for row in range(column + 1, d):
                Q[row, column], at = lower[j][at], at + 1
        precision = Q.T @ Q
        weight = np.exp(alpha[j]) / np.exp(alpha).sum()
        spread = np.array([v @ precision @ v for v in np.array(given["x"]) - mu[j]])
        densities.append(weight * np.exp(-spread / 2) * np.sqrt(np.linalg.det(precision) / (2 * np.pi) ** d))
        trace = given["gamma"] ** 2 * np.trace(precision)
        prior = prior + (given["m"] * np.log(np.linalg.det(precision)) - trace) / 2
        prior = prior - count * d / 2 * math.log(2) + count * d * math.log(given["gamma"]) - log_gamma
    assert n == len(given["x"])
    return np.log(np.sum(densities, axis=0)).sum() + prior


def flat(module: str, given: Any) -> np.ndarray:
    """The numbers to differentiate with respect to, in the order of the output."""
    names = {"lstm": ("main_params", "extra_params"), "gmm": ("alpha", "mu", "q", "l")}.get(module, ("x",))
    return np.concatenate([np.ravel(given[name]) for name in names])


def flattened(module: str, output: Any) -> np.ndarray:
    """An output as numbers in that order."""
    return flat(module, output) if module == "gmm" else np.ravel(output)


FORMULAS: dict[str, Callable[[np.ndarray, Any], Any]] = {
    "llsq": llsq,
    "lse": lambda x, given: np.log(np.exp(x).sum()),
    "ode": ode,
    "lstm": lstm,
    "gmm": gmm,
}
INPUTS: list[tuple[str, Any]] = [
    ("llsq", {"x": [0.3, -0.2, 0.5], "n": 7}),
    ("llsq", {"x": [2], "n": 2}),
    ("lse", {"x": [0.1, -3.0, 2.5, 2.5]}),
    ("ode", {"x": [0.5, 1.5, -0.7, 0.2], "s": 5}),
    ("ode", {"x": [0.5], "s": 1}),
    ("lstm", _layered(2, 3, 6)),
    ("lstm", _layered(1, 1, 2)),
    ("gmm", _mixed(3, 2, 4)),
    ("gmm", _mixed(1, 1, 2)),
]


def derivative(module: str, given: Any) -> np.ndarray:
    """The gradient of a formula, by the complex step."""
    x = flat(module, given)
    moved = x + 1e-30j * np.eye(len(x))
    return np.array([np.imag(FORMULAS[module](row, given)) for row in moved]) / 1e-30


@pytest.mark.parametrize(("module", "given"), INPUTS)
def test_eval(module, given):
    """Value and gradient are those of the formula; the twin, off by 1e-6, is not."""
    found = EVALS[module]
    value = np.ravel(evaluate(module, found.value, given)["output"])[-1]
    np.testing.assert_allclose(value, FORMULAS[module](flat(module, given), given), rtol=1e-12)
    gradient = flattened(module, evaluate(module, found.gradient, given)["output"])
    expected = derivative(module, given)
    np.testing.assert_allclose(gradient, expected, rtol=1e-11, atol=1e-13)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(gradient + 1e-6, expected, rtol=1e-11, atol=1e-13)


def test_runs_and_methods():
    """As many timings as runs are asked for; another method gives the same gradient, and one that does not apply
    says so."""
    given = {"x": [0.5, 1.5], "s": 3, "min_runs": 4, "min_seconds": 0}
    by_reverse, by_rtrl = (evaluate("ode", "gradient", given, options=o) for o in ((), ("-m", "rtrl")))
    assert 4 == len(by_reverse["timings"]) and {"evaluate"} == {t["name"] for t in by_reverse["timings"]}
    np.testing.assert_allclose(by_reverse["output"], by_rtrl["output"], rtol=1e-12)
    refused = evaluate("lse", "gradient", {"x": [1.0]}, options=("-m", "rtrl"))
    assert not refused["success"] and "backprop" in refused["error"]


FAILURES = [
    ("lse", "hessian", {"x": [1.0]}, "known: primal, gradient"),
    ("lse", "gradient", {"x": []}, "x: "),
    ("lse", "gradient", {"x": ["a"]}, "x.0: "),
    ("lse", "gradient", [1.0], "input: "),
    ("llsq", "primal", {"x": [1.0], "n": 1}, "n: "),
    ("lstm", "jacobian", _layered(1, 2, 3) | {"state": [[0.0, 0.0]]}, '"state" should be 2 by 2'),
    ("lstm", "jacobian", _layered(1, 2, 1), "two characters"),
    ("gmm", "jacobian", _mixed(2, 2, 3) | {"l": [[1.0]]}, '"l" should be 2 by 1'),
    ("ba", "objective", {}, "known: gmm"),
]


@pytest.mark.parametrize(("module", "function", "given", "told"), FAILURES)
def test_evaluation_that_fails(module, function, given, told):
    """The session goes on."""
    response = evaluate(module, function, given)
    assert not response["success"] and told in response["error"]


MALFORMED = [
    ('{"id": 0, "kind": "start"', "stdin:2:", "JSON"),
    ("[1]", "stdin:2:1", "object"),
    ('{"kind": "start"}', "stdin:2:1", 'no "id"'),
    ('{"id": true, "kind": "start"}', "stdin:2:1", '"id" of another type'),
    ('{"id": 3}', "stdin:2:1", 'no "kind"'),
    ('{"id": 3, "kind": "define"}', "stdin:2:1", 'no "module"'),
    ('{"id": 3, "kind": "evaluate", "module": "lse"}', "stdin:2:1", 'no "function"'),
]


@pytest.mark.parametrize(("line", "place", "told"), MALFORMED)
def test_malformed_message(line, place, told):
    """The line before it is answered; then the session ends, at the place of the error."""
    result = run("gradbench", input=f'{{"id": 0, "kind": "start"}}\n{line}\n')
    assert 2 == result.exit_code and 1 == len(result.stdout.splitlines())
    assert place in result.stderr and told in result.stderr and "help: " in result.stderr


def logged(path: Path, module: str, given: Any, output: Any, **response: Any) -> str:
    """A log of one gradient of a tool called "other"."""
    found = {"success": True, "output": output} | response
    function = EVALS[module].gradient
    lines = [
        {"message": {"id": 0, "kind": "start"}},
        {"response": {"id": 0, "tool": "other"}},
        {"message": {"id": 1, "kind": "evaluate", "module": module, "function": function, "input": given}},
        {"response": {"id": 1, **found}},
    ]
    path.write_text("\n".join(json.dumps({"elapsed": {"nanoseconds": 1}, **line}) for line in lines))
    return str(path)


def bent(output: Any) -> Any:
    """An output with its last number off by 1%, nested as it was."""
    if isinstance(output, dict):
        return output | {"q": bent(output["q"])}
    return [*output[:-1], bent(output[-1])] if isinstance(output, list) else output * 1.01 + 1e-3


@pytest.mark.parametrize(("module", "given"), [INPUTS[i] for i in (0, 2, 3, 5, 7)] + [("hello", 3.0)])
def test_log(tmp_path, module, given):
    """The gradient of another tool passes, under its name; one that is off is wrong."""
    output = evaluate(module, EVALS[module].gradient, given)["output"]
    right = run("check", "--gradbench", logged(tmp_path / "right.jsonl", module, given, output), "--format", "json")
    assert 0 == right.exit_code, right.output
    assert {"other"} == {f["method"] for f in json.loads(right.stdout)["findings"]}
    wrong = run(
        "check", "--gradbench", logged(tmp_path / "wrong.jsonl", module, given, bent(output)), "--format", "json"
    )
    findings = json.loads(wrong.stdout)["findings"]
    assert 1 == wrong.exit_code and 1 == sum(f["verdict"] == "wrong" for f in findings)
    told = next(f["blame"]["reproduce"] for f in findings if f["verdict"] == "wrong")
    assert told == f"bp check --gradbench {tmp_path / 'wrong.jsonl'}"


def test_log_without_gradients(tmp_path):
    """Failures are noted; a log without a gradient is nothing checked."""
    result = run("check", "--gradbench", logged(tmp_path / "a.jsonl", "hello", 1.0, None, success=False))
    assert 5 == result.exit_code and "failed 1 time" in result.output


@pytest.mark.parametrize(
    ("output", "told"), [([1.0], 'log.jsonl:4:1'), ("text", "log.jsonl:4:1"), ([[1.0, 2.0]], "3 numbers")]
)  # fmt: skip
def test_log_with_an_output_that_does_not_fit(tmp_path, output, told):
    """At the line of the response."""
    result = run("check", "--gradbench", logged(tmp_path / "log.jsonl", "llsq", INPUTS[0][1], output))
    assert 2 == result.exit_code and told in result.stderr


def test_input_is_read_line_by_line():
    """An eval waits for each response before it sends the next message."""

    class Slow(io.BytesIO):
        def read(self, size: int = -1) -> bytes:
            assert size != -1, "the whole input is asked for at once"
            return super().read(size)

    result = run("gradbench", input=Slow(b'{"id": 0, "kind": "start"}\n'))
    assert 0 == result.exit_code
