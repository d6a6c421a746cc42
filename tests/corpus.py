"""A corpus of right gradients: every spec, tiny and huge numbers, saturated, nearly flat, under losses that dwarf them.

What is right is what the exact methods of the kernels compute; that they are right in the first place is tested
elsewhere, against loops in Python and against JAX. Cases are made from the shipped specs by scaling what was drawn and
by rewriting the loss, never by touching a gradient.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from bpcli.graph.nodes import Graph
from bpcli.methods import MethodCall, built_in, parse
from bpcli.problem.definition import Array, Problem
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup

ROOT = Path(__file__).parents[1]
LIMITS = Limits(max_memory=2 << 30)
KINKED = ("relu", "kink", "kinked_mlp", "leaky_kinked_rnn", "abs_rnn", "zero_mlp", "zero_rnn")
OWN = {name: ROOT / "tests" / f"checking_{name}.toml" for name in KINKED}
SPECS = {**{path.stem: path for path in sorted((ROOT / "specs").glob("*.toml"))}, **OWN}
DTYPES = ("float64", "float32")
SCALES = (1e-6, 1e-4, 1e-2, 1e2, 1e4, 1e6)
SIZES = (1, 2, 3, 5, 8, 16, 32, 64)
WIDTHS = ("n", "m", "n1", "n2", "n_hidden", "n_mid", "n_code")
ALL = ("params", "inputs", "state")
# Options that make a method of the catalogue differ from others in four steps, where it has options.
SETTINGS = {
    "artbp": "artbp:p=0.3", "dni": "dni:rate=0.5", "ebptt": "ebptt:tau=3", "fbptt": "fbptt:tau=2",
    "forward": "forward:k=1", "kernl": "kernl:rate=0.5", "ok": "ok:r=1", "revolve": "revolve:s=2",
    "rtrl-block": "rtrl-block:h=3", "snap": "snap:k=1", "tbptt": "tbptt:k1=2,k2=3",
}  # fmt: skip
# Rewritten losses: a large constant beside a small part of it, and all of it large or small.
LOSSES = {
    "ordinary": "",
    "offset": "1e6 + 1e-3 * {loss}",
    "huge loss": "1e12 * {loss}",
    "tiny loss": "1e-12 * {loss}",
}


@dataclass(frozen=True)
class Case:
    """One problem of the corpus; `scales` multiply what was drawn, by kind of array."""

    spec: str
    dtype: str
    group: str
    seed: int = 0
    sizes: tuple[tuple[str, int], ...] = ()
    params: float = 1.0
    inputs: float = 1.0
    loss: str = "ordinary"
    reference: Literal["auto", "central", "ladder"] = "auto"
    mode: Literal["auto", "directional"] = "auto"
    every_method: bool = False

    def __str__(self) -> str:
        """All of it, in one line: it names the case in a journal."""
        sizes = ",".join(f"{name}={size}" for name, size in self.sizes)
        scales = f"params×{self.params:g} inputs×{self.inputs:g}"
        where = f"{self.group}: {self.spec} {self.dtype} seed={self.seed} {sizes or 'as it is'}"
        return f"{where} {scales} {self.loss} {self.reference} {self.mode}{' every method' * self.every_method}"


def cases() -> Iterator[Case]:
    """All of them, always in the same order."""
    for dtype in DTYPES:
        for name in SPECS:
            yield from (Case(name, dtype, "ordinary", seed) for seed in range(6))
            yield from (Case(name, dtype, "scaled parameters", params=scale) for scale in SCALES)
            yield from (Case(name, dtype, "scaled inputs", inputs=scale) for scale in SCALES)
            # Where biases are zero as well, arguments of relu are: kinks that an entry meets on both sides.
            yield from (Case(name, dtype, "zero inputs", seed, inputs=0.0) for seed in (5, 6))
            yield Case(name, dtype, "zero inputs", 5, inputs=0.0, mode="directional")
            yield from (Case(name, dtype, "saturated", seed, params=scale) for scale in (8.0, 30.0) for seed in (1, 2))
            yield from (
                Case(name, dtype, loss, seed, loss=loss) for loss in LOSSES if loss != "ordinary" for seed in (3, 4)
            )
            yield from (Case(name, dtype, "directions", seed, mode="directional") for seed in (7, 8))
            yield from (Case(name, dtype, "central alone", seed, reference="central") for seed in (9, 10))
            yield from (Case(name, dtype, "ladder alone", seed, reference="ladder") for seed in (11, 12))
            widths = _widths(name)
            for size in SIZES if widths else ():
                seeds = range(20, 23 if size >= 32 else 21)
                yield from (Case(name, dtype, "sizes", s, tuple((w, size) for w in widths)) for s in seeds)
    for dtype in DTYPES:
        for name in SPECS:
            if "[state]" in SPECS[name].read_text(encoding="utf-8"):
                yield from _of_every_method(name, dtype)


def _of_every_method(name: str, dtype: str) -> Iterator[Case]:
    """A recurrent spec by all methods that apply to it, in four steps of three units."""
    case = Case(name, dtype, "every method", sizes=(*((w, 3) for w in _widths(name)), ("T", 4), ("batch", 2)))
    case = replace(case, every_method=True)
    if name in KINKED:
        yield from (replace(case, group="every method, kinks", seed=seed) for seed in (0, 1))
        return
    yield from (replace(case, seed=seed) for seed in (0, 1))
    scaled = replace(case, group="every method, scaled", seed=2)
    yield from (replace(scaled, params=scale) for scale in (1e-4, 1e-2, 8.0, 1e2))
    yield from (replace(scaled, inputs=scale) for scale in (0.0, 1e-4, 1e4))
    yield from (replace(scaled, loss=loss) for loss in LOSSES if loss != "ordinary")


def problem(case: Case) -> Problem:
    """The arrays of a case; `BpError` where the spec doesn't take its sizes or numbers leave the dtype's range."""
    overrides: dict[str, object] = {"dtype": case.dtype, "seed": case.seed, **dict(case.sizes)}
    with tempfile.TemporaryDirectory() as folder:
        path = _written(case, Path(folder)) if LOSSES[case.loss] else SPECS[case.spec]
        setup = open_setup(path, overrides, _kinds(case.spec), LIMITS)
    drawn = draw(setup)
    with np.errstate(over="ignore"):
        return Problem(setup, _scaled(drawn.params, case.params), _scaled(drawn.inputs, case.inputs), dict(drawn.state))


def exact_methods(graph: Graph) -> list[MethodCall]:
    """The methods that give the true gradient."""
    return [parse(text) for text in (("bptt", "rtrl") if graph.recurrent else ("backprop",))]


def every_method(graph: Graph) -> list[MethodCall]:
    """The methods of the catalogue that apply to a graph."""
    calls = (parse(SETTINGS.get(name, name)) for name in built_in())
    return [call for call in calls if call.refusal(graph) is None]


def _kinds(name: str) -> tuple[str, ...]:
    text = SPECS[name].read_text(encoding="utf-8")
    return tuple(kind for kind in ALL if kind == "params" or f"[{kind}]" in text)


def _widths(name: str) -> list[str]:
    text = SPECS[name].read_text(encoding="utf-8")
    return [width for width in WIDTHS if re.search(rf"^{width} += +[0-9]", text, re.MULTILINE)]


def _scaled(group: Mapping[str, Array], scale: float) -> dict[str, Array]:
    return {name: np.asarray(array * array.dtype.type(scale)) for name, array in group.items()}


def _written(case: Case, folder: Path) -> Path:
    """The spec in another file with its loss rewritten: what was the loss is an equation of another name."""
    head, equations = SPECS[case.spec].read_text(encoding="utf-8").split("[equations]\n")
    name = "f" if equations.startswith("f =") else "loss"
    form = LOSSES[case.loss].format(loss="inner_loss")
    equations, count = re.subn(
        rf"^{name} +=", f'{name} = "{form}"\ninner_loss =', equations, count=1, flags=re.MULTILINE
    )
    assert count == 1, case.spec
    path = folder / f"{case.spec}.toml"
    path.write_text(f"{head}[equations]\n{equations}", encoding="utf-8")
    return path
