"""The variance of forward gradients (Baydin et al., "Gradients without backpropagation", 2022)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bpcli.api.loaded import load
from bpcli.methods import parse
from bpcli.papers import Paper, PaperFigure, near
from bpcli.problem.draw import draw, redrawn
from bpcli.runtime.evaluation import loss_along
from bpcli.training.optimizers import length
from bpcli.training.parameters import packed

DRAWS = 4000
ROUNDING = 1e-12


def _figures(spec: Path) -> Iterator[PaperFigure]:
    net = load(spec)
    setup, problem = net.setup, draw(net.setup)
    exact = packed(setup, net.gradient("bptt").arrays)
    size = length(exact)
    P = len(exact)

    total, square = np.zeros(P), 0.0
    for signs in itertools.product((-1.0, 1.0), repeat=P):
        v, ends = np.array(signs), np.cumsum([x.entries for x in setup.wrt])[:-1]
        parts = zip(setup.wrt, np.split(v, ends), strict=True)
        g = loss_along(problem, {x.name: part.reshape(x.shape) for x, part in parts})[1] * v
        total += g / 2**P
        square += float(((g - exact) ** 2).sum()) / 2**P
    off = length(total - exact) / size
    yield PaperFigure(f"bias of the mean over all 2^{P} directions", 0.0, off, f"{ROUNDING:g}", off <= ROUNDING)
    yield near(f"E‖g̃ - g‖² / ‖g‖² over all directions, P={P}", P - 1, square / size**2, ROUNDING)

    for k in (1, 4):
        call = parse(f"forward:k={k}")
        errors = (packed(setup, call.gradient(redrawn(problem, i)).arrays) - exact for i in range(DRAWS // k))
        mean = float(np.mean([float(e @ e) for e in errors])) / size**2
        yield near(f"the same over {DRAWS // k} draws of forward:k={k}", (P - 1) / k, mean, 0.1)


PAPER = Paper(
    name="forward-variance",
    title="The variance of forward gradients",
    source="Baydin et al. 2022",
    spec="forward_variance",
    seconds=5,
    by_hand="bp bench SPEC -m forward:k=1 -m forward:k=4 --draws 256",
    figures=_figures,
)
