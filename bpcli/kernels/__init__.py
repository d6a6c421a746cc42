"""Compiled code, and what drives it; the only room that imports Numba, and only to compile."""

import os

# A thread that waits spins for some tenths of a millisecond, which bridges the gap between two kernels, and then
# sleeps: where cores are shared, spinning on would keep the thread that it waits for from running. (GNU's OpenMP.)
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
