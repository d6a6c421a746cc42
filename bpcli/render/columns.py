"""The meaning of each column, for the legend under a table, the headers of a page and `bp list columns`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Meaning(NamedTuple):
    """The unit of a column, "" for none, and its meaning."""

    unit: str
    text: str


COLUMNS: Mapping[str, Meaning] = {
    "spec": Meaning("", "name of the spec"),
    "method": Meaning("", "method or function that computed the gradient"),
    "backend": Meaning("", "program that computed it: bp, jax, torch, or your own function"),
    "tensor": Meaning("", "array that the loss is differentiated with respect to"),
    "verdict": Meaning("", "pass, wrong, or inconclusive, which never counts as a pass"),
    "cause": Meaning("", "likely cause of a wrong or inconclusive verdict, or a remark on a pass"),
    "shape": Meaning("", "shape of the tensor"),
    "checked": Meaning("", "number of entries, or directions, compared with a reference"),
    "index": Meaning("", "index of the worst entry, the one with the largest z"),
    "value": Meaning("", "gradient at the worst entry"),
    "reference": Meaning("", "reference derivative at the worst entry"),
    "bound": Meaning("", "error bound of the comparison: error of the reference plus rounding of the gradient"),
    "z": Meaning("", "largest difference from the reference, divided by its error bound (at most 1 passes)"),
    "kernel_error": Meaning("", "relative error, measured against the gradient that the method is defined to compute"),
    "bias": Meaning("", "relative error, measured against the true gradient"),
    "cosine": Meaning("", "cosine similarity with the true gradient"),
    "blame": Meaning("", "where the error arises (node, step, sample), and a command that reproduces it"),
    "T": Meaning("steps", "sequence length"),
    "batch": Meaning("", "batch size"),
    "dtype": Meaning("", "float64 or float32"),
    "threads": Meaning("", "number of threads"),
    "time_s": Meaning("s", "time of one gradient, the median over blocks of calls"),
    "time_low_s": Meaning("s", "lower end of the 95% confidence interval of the time"),
    "time_high_s": Meaning("s", "upper end of the 95% confidence interval of the time"),
    "spread": Meaning("", "half-width of the 95% confidence interval of the time"),
    "ratio": Meaning("", "time divided by that of bp, both timed in turn"),
    "compile_s": Meaning("s", "time to compile or load kernels before the first call"),
    "predicted_bytes": Meaning("bytes", "memory predicted by the method's formula"),
    "total_bytes": Meaning("bytes", "predicted memory, including the arrays of the spec"),
    "predicted_s": Meaning("s", "predicted time of one gradient, or of the check, at a typical rate of operations"),
    "allocated_bytes": Meaning("bytes", "peak memory allocated for one gradient"),
    "peak_bytes": Meaning("bytes", "growth of the process's memory"),
    "forward_steps": Meaning("", "time steps run forwards, including recomputed ones"),
    "flops": Meaning("", "floating-point operations, by the method's formula"),
    "gemm_fraction": Meaning("", "operations per second, relative to matrix products on this machine"),
    "limit": Meaning("", "what limits the speed: gemm (arithmetic), memory (bandwidth) or overhead"),
    "kind": Meaning("", "what the method is designed to compute: exact, truncated, approximate, or unbiased (random)"),
    "variance": Meaning("", "variance of a random method, relative to the squared norm of the true gradient"),
    "draws": Meaning("", "number of draws of a random method; bias and cosine are those of their mean"),
    "seeds": Meaning("", "number of seeds combined in the row"),
    "range": Meaning("", "lowest and highest cosine over the seeds"),
    "pareto": Meaning("", "* where no other row is better in time, memory and bias"),
    "check": Meaning("", "how the gradient was checked before it was timed"),
}
"""By the key of a column, which is its name in CSV files where it is there."""


def legend(headings: Mapping[str, str], keys: Iterable[str]) -> str:
    """A paragraph on the columns `keys` of a table that has them, by their headings."""
    told = [f"{headings[key]}: {COLUMNS[key].text}" for key in keys if key in headings]
    return f"{'; '.join(told)}. `bp list columns` describes all columns." if told else ""
