"""Advances of the binomial schedule (Griewank & Walther, "Algorithm 799: revolve", TOMS 26, 2000)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bpcli.api.loaded import load
from bpcli.methods.revolve import METHOD
from bpcli.papers import Paper, PaperFigure, near
from bpcli.training.optimizers import length
from bpcli.training.parameters import packed

PUBLISHED = {(14, 3): 27, (100, 10): 222, (1000, 50): 1948}
"""Advances by steps and snapshots."""
ROUNDING = 1e-12


def _figures(spec: Path) -> Iterator[PaperFigure]:
    for (T, s), published in PUBLISHED.items():
        taken = sum(action == "advance" for action, _ in METHOD.schedule(T, METHOD.Options(s, 1)))
        yield near(f"advances over T={T} steps with s={s} snapshots", published, taken)
        net = load(spec, T=T)
        exact, found = (packed(net.setup, net.gradient(m).arrays) for m in ("bptt", f"revolve:s={s},steps=1"))
        off = length(found - exact) / length(exact)
        yield PaperFigure(f"its gradient against bptt, T={T}", 0.0, off, f"{ROUNDING:g}", off <= ROUNDING)


PAPER = Paper(
    name="revolve-advances",
    title="Snapshots by the binomial schedule",
    source="Griewank & Walther, TOMS 26, 2000",
    spec="revolve",
    seconds=2,
    by_hand="bp bench SPEC -m bptt -m revolve:s=3,steps=1 -g T=14",
    figures=_figures,
)
