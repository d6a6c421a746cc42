"""The catalogue of planted faults: real programs for the gradient of any graph, each wrong in one way."""

from __future__ import annotations

from bpcli.checking.faults import local as products
from bpcli.checking.faults import local as slopes
from bpcli.checking.faults import result as answers
from bpcli.checking.faults import time
from bpcli.checking.faults.fault import Fault

CATALOGUE: tuple[Fault, ...] = (*answers.FAULTS, *time.FAULTS, *products.FAULTS, *slopes.FAULTS)
