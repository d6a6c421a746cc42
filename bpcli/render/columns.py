"""The meaning of each column, for the legend under a table, the headers of a page and `bp list columns`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Meaning(NamedTuple):
    """The unit of a column, "" for none, and its meaning."""

    unit: str
    text: str


COLUMNS: Mapping[str, Meaning] = {
    "spec": Meaning("", "the network"),
    "method": Meaning("", "how the gradient was computed, or whose it is"),
    "backend": Meaning("", "who computed it: bp, jax, torch, or a function of yours"),
    "tensor": Meaning("", "what the loss is differentiated with respect to"),
    "shape": Meaning("", "its shape"),
    "checked": Meaning("", "entries, or directions, that were compared with a reference"),
    "index": Meaning("", "the worst entry, with the largest z"),
    "value": Meaning("", "its value in the gradient"),
    "reference": Meaning("", "its value by the reference"),
    "bound": Meaning("", "the bound of the reference and of rounding"),
    "z": Meaning("", "largest distance from the reference, relative to its bound: up to 1 passes"),
    "kernel_error": Meaning("", "distance from what the method is meant to compute, relative to it"),
    "bias": Meaning("", "distance from the true gradient, relative to it"),
    "cosine": Meaning("", "of the angle between the gradient and the true one"),
    "verdict": Meaning("", "pass, wrong, or inconclusive, which never counts as passed"),
    "cause": Meaning("", "why it is wrong or inconclusive, or what is to be known of a pass"),
    "blame": Meaning("", "the step, sample and node of an error, with a command that shows it"),
    "T": Meaning("steps", "length of a sequence"),
    "batch": Meaning("", "number of samples"),
    "dtype": Meaning("", "float64 or float32"),
    "threads": Meaning("", "threads that ran kernels"),
    "time_s": Meaning("s", "time of one gradient, the median of blocks of calls"),
    "time_low_s": Meaning("s", "lower end of the time's 95% interval"),
    "time_high_s": Meaning("s", "upper end of the time's 95% interval"),
    "spread": Meaning("", "half of the time's 95% interval, relative to the median"),
    "ratio": Meaning("", "time relative to that of bp, measured in turn"),
    "compile_s": Meaning("s", "time to compile or load kernels before the first call"),
    "predicted_bytes": Meaning("bytes", "memory that the method holds, by its formula"),
    "total_bytes": Meaning("bytes", "that memory, and the arrays of the spec"),
    "predicted_s": Meaning("s", "time of one gradient, or of the whole check, at a usual rate of operations"),
    "allocated_bytes": Meaning("bytes", "memory that one gradient allocated, at its peak"),
    "peak_bytes": Meaning("bytes", "by how much the process grew"),
    "forward_steps": Meaning("", "steps that are run forwards, replays included"),
    "flops": Meaning("", "floating-point operations, by the method's formula"),
    "gemm_fraction": Meaning("", "rate of operations relative to that of matrix products on this machine"),
    "limit": Meaning("", "what bounds the time: gemm, memory, or overhead"),
    "kind": Meaning("", "what the method is meant to be: exact, truncated, approximate, or unbiased (random)"),
    "variance": Meaning(
        "", "of a random method: mean square distance from its mean, relative to the true gradient squared"
    ),
    "draws": Meaning("", "draws of a random method, whose mean has the bias and cosine"),
    "seeds": Meaning("", "seeds that are together in a row"),
    "range": Meaning("", "range of the cosine over seeds"),
    "pareto": Meaning("", "a star where no other row is better in time, memory and bias"),
    "check": Meaning("", "how the gradient was checked before it was timed"),
}
"""By the key of a column, which is its name in CSV files where it is there."""


def legend(headings: Mapping[str, str], keys: Iterable[str]) -> str:
    """One line on the columns `keys` of a table that has them, by their headings."""
    told = [f"{headings[key]}: {COLUMNS[key].text}" for key in keys if key in headings]
    return f"{'; '.join(told)}. `bp list columns` explains all." if told else ""
