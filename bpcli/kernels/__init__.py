"""Compiled code, and what drives it; the only room that imports Numba."""

import numba

from bpcli.kernels.folder import cache_folder

numba.config.CACHE_DIR = str(cache_folder())  # before any function of this package is decorated
