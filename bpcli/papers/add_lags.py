"""Which rules learn which lag of the task add (Marschall, Cho & Savin, JMLR 21, 2020, section 5).

Of the paper's ten rules KeRNL and DNI are not methods of bp; fixed recurrent weights, its baseline, are the spec with
`learn` = 0. Training is shorter than the paper's, by Adam at one learning rate, and at α = ½ lags are of steps
that are not stretched. The paper gives curves, not numbers: what is compared is their order. Exact gradients learn both
lags, and no approximation does better than they or worse than the baseline.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bpcli.api.loaded import load
from bpcli.papers import Paper, PaperFigure

LAGS = {1.0: (6, 10), 0.5: (3, 5)}
"""By leak α."""
EXACT = ("rtrl", "fbptt:tau=15")
APPROXIMATE = ("ebptt:tau=15", "kf-rtrl", "rkf-rtrl", "uoro", "rflo")
FIXED = "fixed weights"
STEPS, SEQUENCES = 2000, 5
BOTH, ONE = 0.485, 0.6
"""Losses below which both lags are known (their entropy is 0.45), or the first (0.52); 0.66 is chance."""
SLACK = 0.01
"""Of a mean loss over a sequence."""


def _figures(spec: Path) -> Iterator[PaperFigure]:
    for alpha in LAGS:
        exact = []
        for method in EXACT:
            loss = _last_loss(spec, alpha, method)
            exact.append(loss)
            figure = f"loss of {method} at α={alpha:g}"
            yield PaperFigure(figure, "both lags", loss, f"below {BOTH:g}", loss < BOTH, _learned(loss))
        fixed = _last_loss(spec, alpha, FIXED)
        worse = fixed > max(exact) + SLACK
        yield PaperFigure(f"loss of {FIXED} at α={alpha:g}", "the worst", fixed, "order", worse, _learned(fixed))
        for method in APPROXIMATE:
            loss = _last_loss(spec, alpha, method)
            between = min(exact) - SLACK < loss < fixed + SLACK
            yield PaperFigure(
                f"loss of {method} at α={alpha:g}", "between these", loss, "order", between, _learned(loss)
            )


def _last_loss(spec: Path, alpha: float, method: str) -> float:
    """The mean loss over the last sequence, trained online."""
    lag1, lag2 = LAGS[alpha]
    net = load(spec, T=STEPS, alpha=alpha, learn=float(method != FIXED), task=f"add:lag1={lag1},lag2={lag2}")
    called = "tbptt:k1=1,k2=1" if method == FIXED else method
    return net.train(called, steps=SEQUENCES, online=True, lr=1e-3).rows()[-1]["loss"]  # type: ignore[no-any-return]


def _learned(loss: float) -> str:
    return "both lags are known" if loss < BOTH else "the first lag is known" if loss < ONE else "little is known"


PAPER = Paper(
    name="add-lags",
    title="Online rules on the task add",
    source="Marschall, Cho & Savin, JMLR 2020",
    spec="add_lags",
    seconds=120,
    by_hand="bp train SPEC -m rtrl -m uoro -m rflo --online --lr 0.001 --steps 5 --set T=2000",
    figures=_figures,
)
