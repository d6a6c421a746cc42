"""Compiled code, and what drives it; the only room that imports Numba."""

import os

import numba

from bpcli.kernels.folder import cache_folder

# A thread that waits sleeps: where cores are shared, with other programs or with their waiting threads, spinning at a
# barrier keeps the thread that it waits for from running.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
numba.config.CACHE_DIR = str(cache_folder())  # before any function of this package is decorated
