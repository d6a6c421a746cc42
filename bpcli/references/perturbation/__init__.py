"""Perturbed networks: losses of perturbed copies, one-step sensitivities, tangents and kinks."""

STEP = 1.0
"""Imaginary step of single entries. Kernels drop products of imaginary parts, so that a step of any size is exact; 1
leaves derivatives the whole range of floats."""
ALONG = 2.0**-540
"""Factor on the imaginary step of whole arrays. Matrix products from BLAS drop nothing: with this factor, products of
imaginary parts underflow to zero."""
