"""The mean of UORO over draws against BPTT (Tallec & Ollivier, ICLR 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bpcli.api.loaded import load
from bpcli.methods._online import credited
from bpcli.methods.base import NoOptions, OnlineRule
from bpcli.methods.rtrl_dense import DenseRTRL
from bpcli.methods.snap import METHOD as SNAP
from bpcli.methods.uoro import UORO
from bpcli.papers import Paper, PaperFigure, near, slope
from bpcli.problem.definition import Array, Problem
from bpcli.problem.draw import draw
from bpcli.runtime.local_derivatives import LocalSteps

COUNTS = (1, 4, 16, 64, 256, 1024)
DRAWS = 16384


def _figures(spec: Path) -> Iterator[PaperFigure]:
    problem = draw(load(spec, batch=DRAWS).setup)
    problem = replace(problem, inputs={n: x[:, :1].repeat(DRAWS, axis=1) for n, x in problem.inputs.items()})
    exact = _by_sample(problem, DenseRTRL(), NoOptions())[0]
    size, errors = np.linalg.norm(exact), []
    draws = _by_sample(problem, UORO(), NoOptions())
    for count in COUNTS:
        means = draws.reshape(-1, count, len(exact)).mean(axis=1)
        errors.append(float(np.sqrt(((means - exact) ** 2).sum(axis=1).mean()) / size))
    note = ", ".join(f"{error:.2g} at N={count}" for count, error in zip(COUNTS, errors, strict=True))
    exponent = slope([float(c) for c in COUNTS], errors)
    yield near("exponent of N in the error of the mean of N draws", -0.5, exponent, absolute=0.05, note=note)
    bias = float(np.linalg.norm(_by_sample(problem, SNAP.rule, SNAP.Options(1))[0] - exact) / size)
    note = f"the same for any number of draws; that of uoro at N={COUNTS[-1]} is {errors[-1]:.2g}"
    yield PaperFigure("error of snap:k=1, a block-diagonal influence", "stays", bias, "order", bias > errors[-1], note)


def _by_sample(problem: Problem, rule: OnlineRule[Any], options: object) -> Array:
    """The gradient of each sample by itself, (batch, P); a random rule draws anew for each."""
    total = np.zeros(())
    for _, step in credited(rule, LocalSteps(problem), options, "uoro"):
        total = total + step.influence
    return total * problem.setup.batch


PAPER = Paper(
    name="uoro-draws",
    title="The mean of UORO",
    source="Tallec & Ollivier, ICLR 2018",
    spec="uoro_draws",
    seconds=2,
    by_hand="bp bench SPEC -m uoro -m snap:k=1 --draws 64",
    figures=_figures,
)
