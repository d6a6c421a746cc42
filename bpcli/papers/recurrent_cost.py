"""Cost of a step of exact online gradients: n⁴ (Williams & Zipser 1989) against n³ (Schmidhuber 1992)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from bpcli.api.loaded import load
from bpcli.methods import parse
from bpcli.papers import Paper, PaperFigure, near, slope

SIZES = (64, 96, 128)
PUBLISHED = {"rtrl": 4, "rtrl-block": 3}
REPEATS = 3
COUNTED, TIMED = 0.1, 0.6
"""Errors of exponents: of operations, and of processor time, to which overhead, caches and a busy machine add."""


def _figures(spec: Path) -> Iterator[PaperFigure]:
    sizes = [float(n) for n in SIZES]
    for name, published in PUBLISHED.items():
        flops, times = [], []
        for n in SIZES:
            net = load(spec, n=n, T=2 * n)
            method = f"{name}:h={n}" if name == "rtrl-block" else name
            flops.append(parse(method).cost(net.setup).flops / net.setup.T)
            times.append(min(_seconds(net.gradient, method) for _ in range(REPEATS)) / net.setup.T)
        yield near(f"exponent of n in operations a step, {name}", published, slope(sizes, flops), absolute=COUNTED)
        note = ", ".join(f"{1e6 * t:.3g} us at n={n}" for n, t in zip(SIZES, times, strict=True))
        figure = f"exponent of n in processor time a step, {name}"
        yield near(figure, published, slope(sizes, times), absolute=TIMED, note=note)


def _seconds(gradient: object, method: str) -> float:
    """Processor time of one gradient."""
    assert callable(gradient)
    start = time.process_time()
    gradient(method)
    return time.process_time() - start


PAPER = Paper(
    name="recurrent-cost",
    title="RTRL by steps and by blocks",
    source="Williams & Zipser 1989; Schmidhuber 1992",
    spec="recurrent_cost",
    seconds=20,
    by_hand="bp bench SPEC -m rtrl -m rtrl-block:h=64 -g n=64,96,128",
    figures=_figures,
)
