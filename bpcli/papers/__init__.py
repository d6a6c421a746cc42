"""Published results beside those of bp: every module of this package but this one holds a paper, as `PAPER`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from bpcli.errors import fail, nearest, printable


@dataclass(frozen=True)
class PaperFigure:
    """A published figure, ours, and the difference that is `allowed`, in words; whether it `agrees`, and a note."""

    figure: str
    published: float | str
    ours: float | str
    allowed: str
    agrees: bool
    note: str = ""


@dataclass(frozen=True)
class Paper:
    """A named result: its `source`, the spec of its setting, and `figures`, which computes them on that spec.

    `seconds` are about what it takes on one core; `by_hand` is a command that shows the same.
    """

    name: str
    title: str
    source: str
    spec: str
    seconds: float
    by_hand: str
    figures: Callable[[Path], Iterator[PaperFigure]]


def known_papers() -> tuple[str, ...]:
    """The names of all papers; imports none of them."""
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


def find_paper(name: str) -> Paper:
    """The paper of that name; `BpError` where there is none."""
    if name not in known_papers():
        fail("unknown-paper", f'unknown result "{printable(name)}"', help=nearest(name, known_papers()))
    return cast(Paper, importlib.import_module(f"{__name__}.{name.replace('-', '_')}").PAPER)


def near(
    figure: str, published: float, ours: float, relative: float = 0.0, absolute: float = 0.0, note: str = ""
) -> PaperFigure:
    """A figure that agrees within a relative or an absolute error; exactly, where neither is given."""
    allowed = f"{relative:.3g} of it" if relative else f"{absolute:.3g}" if absolute else "none"
    agrees = abs(ours - published) <= relative * abs(published) + absolute
    return PaperFigure(figure, published, ours, allowed, agrees, note)


def slope(x: list[float], y: list[float]) -> float:
    """The exponent p of y ~ x^p by least squares."""
    import numpy as np

    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
