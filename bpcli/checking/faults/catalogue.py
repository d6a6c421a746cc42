"""The catalogue of planted faults: real programs for the gradient of any graph, each wrong in one way."""

from __future__ import annotations

from bpcli.checking.faults import local, result, time
from bpcli.checking.faults.fault import Fault

CATALOGUE: tuple[Fault, ...] = (*result.FAULTS, *time.FAULTS, *local.PRODUCT_FAULTS, *local.SLOPE_FAULTS)
