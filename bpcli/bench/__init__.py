"""Benchmarks: sweeps planned, cells measured in worker processes, runs compared."""
