"""Simulated rounding: results multiplied by random factors near 1 (Parker, "Monte Carlo arithmetic", 1997)."""

from __future__ import annotations

import numpy as np

from bpcli.kernels.jit import inner, vector_at


@inner
def disturb_rows(values, size, seed, X, p, outer, stride, no, ni, n):
    """Multiply rows (no, ni, n) of X by 1 + e, with e uniform in ± the number at the address `size`.

    The factors are hashes of the seed and the place in X (Steele, Lea, Flood, "SplitMix64", 2014), so that they are the
    same for any number of threads. Rows that coincide are one row.
    """
    most = vector_at(values, size, 1)[0].real
    for o in range(no if outer else 1):
        for i in range(ni if stride else 1):
            first = p + o * outer + i * stride
            for k in range(first, first + n):
                h = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(k)
                h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                h ^= h >> np.uint64(31)
                X[k] *= 1 + most * (np.int64(h >> np.uint64(11)) * 2.0**-52 - 1)
