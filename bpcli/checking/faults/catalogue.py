"""The catalogue of planted faults: real programs for the gradient of any graph, each wrong in one way."""

from __future__ import annotations

from bpcli.checking.faults import answers, products, slopes, time
from bpcli.checking.faults.model import Fault

CATALOGUE: tuple[Fault, ...] = (*answers.FAULTS, *time.FAULTS, *products.FAULTS, *slopes.FAULTS)
