"""The catalogue of planted faults: gradient programs for any graph, each wrong in one way."""

from __future__ import annotations

from bpcli.checking.faults import assembly, local
from bpcli.checking.faults.fault import Fault

CATALOGUE: tuple[Fault, ...] = (*assembly.FAULTS, *local.FAULTS)
