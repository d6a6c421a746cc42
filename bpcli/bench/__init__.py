"""How cost is measured: what (`sweep`), with what (`clock`, `memory`, `machine`), cell by cell (`measure`, `run`)."""
