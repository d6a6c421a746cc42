"""Influence balancing (Tallec & Ollivier, "Unbiased online recurrent optimization", ICLR 2018, section 6)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bpcli.api.loaded import load
from bpcli.papers import Paper, PaperFigure, near

STEADY = 200
"""Steps after which the state and its influence stand still, to rounding."""
WINDOWS = 60
"""Windows up to this length are tried."""
RUN, DRAWS = 1000, 512
"""Steps of a sequence on the way to θ, and draws of UORO whose mean moves it."""
METHODS = ("rtrl", "tbptt:k1=1,k2=100", "tbptt:k1=1,k2=10")


def _figures(spec: Path) -> Iterator[PaperFigure]:
    net = load(spec, T=STEADY)
    steps = net.step_gradients("rtrl")
    from_one = -np.sqrt(2 * steps.losses[-1])  # s₁ - 1, as the state is below
    yield near("steady ∂s₁/∂θ", -6, float(steps.arrays["theta"][-1] / from_one), 1e-9)
    wrong = 0
    while wrong < WINDOWS:
        truncated = net.step_gradients(f"tbptt:k1=1,k2={wrong + 1}").arrays["theta"][-1] / from_one
        if truncated < 0:
            break
        wrong += 1
    yield near("largest K of tbptt:k1=1,k2=K with the wrong sign", 40, wrong)

    descent = {"steps": 2, "online": True, "optimizer": "sgd", "lr": 1e-4}
    found = load(spec, T=RUN).train(METHODS, **descent).params  # type: ignore[arg-type]
    for method in METHODS[:2]:
        yield near(f"θ by {method}", -1 / 6, float(found[method]["theta"]), 0.01)
    fled = float(found[METHODS[2]]["theta"])
    yield PaperFigure(f"θ by {METHODS[2]}, from 0.5", "away from -1/6", fled, "sign", not fled < 0.5)
    mean = load(spec, T=RUN, batch=DRAWS).train("uoro", **descent).params["uoro"]["theta"]  # type: ignore[arg-type]
    note = f"θ moves by the mean of {DRAWS} draws, which are samples of a batch"
    yield near("θ by the mean of uoro", -1 / 6, float(mean), 0.01, note=note)


PAPER = Paper(
    name="influence-balancing",
    title="Influence balancing",
    source="Tallec & Ollivier, ICLR 2018",
    spec="influence_balancing",
    seconds=15,
    by_hand="bp train SPEC -m rtrl -m tbptt:k1=1,k2=10 --online --optimizer sgd --lr 0.0001 --steps 5",
    figures=_figures,
)
