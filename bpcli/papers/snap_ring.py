"""SnAp-n on a ring of six units (Menick et al., "Practical real time recurrent learning", ICLR 2021).

n counts steps beyond the first, in which a parameter reaches its own unit: SnAp-n there is `snap:k=n+1` here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bpcli.api.loaded import load
from bpcli.papers import Paper, PaperFigure
from bpcli.training.optimizers import length
from bpcli.training.parameters import packed

LAST = 5
NETWORKS = 20
ROUNDING = 1e-14


def _figures(spec: Path) -> Iterator[PaperFigure]:
    networks = [_deviations(spec, seed) for seed in range(NETWORKS)]
    means = [sum(each) / NETWORKS for each in zip(*networks, strict=True)]
    for n, off in enumerate(means[:-1]):
        figure, published = f"deviation of n={n} from RTRL", "less, above zero" if n else "above zero"
        yield PaperFigure(figure, published, off, "order", ROUNDING < off < means[n - 1] if n else off > ROUNDING)
    falling = sum(sorted(each, reverse=True) == each for each in networks)
    note = f"means of {NETWORKS} networks, of which {falling} fall at every n: terms that are left out may cancel"
    yield PaperFigure(f"deviation of n={LAST}", 0.0, means[-1], f"{ROUNDING:g}", means[-1] <= ROUNDING, note)


def _deviations(spec: Path, seed: int) -> list[float]:
    """By n, relative to the exact gradient."""
    net = load(spec, seed=seed)
    exact = packed(net.setup, net.gradient("rtrl").arrays)
    found = (packed(net.setup, net.gradient(f"snap:k={n + 1}").arrays) for n in range(LAST + 1))
    return [length(g - exact) / length(exact) for g in found]


PAPER = Paper(
    name="snap-ring",
    title="SnAp-n on a ring",
    source="Menick et al., ICLR 2021",
    spec="snap_ring",
    seconds=1,
    by_hand="bp check SPEC -m snap:k=1 -m snap:k=3 -m snap:k=6",
    figures=_figures,
)
