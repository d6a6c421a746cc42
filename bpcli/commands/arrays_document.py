"""Arrays as rows: what each is called, how large it is and what its values are like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bpcli.render.document import Column, Document


def arrays_document(
    title: str, arrays: Mapping[str, tuple[str, Any]], context: Mapping[str, Any], sentences: Sequence[str]
) -> Document:
    """A row for each array of `arrays`, which takes a name to a kind (param, input, state) and the array."""
    return Document(
        title=title,
        rows_key="arrays",
        columns=COLUMNS,
        rows=[_row(name, kind, array) for name, (kind, array) in arrays.items()],
        context=context,
        sentences=sentences,
    )


def _row(name: str, kind: str, array: Any) -> Mapping[str, Any]:
    """Figures in float64; an array is never empty."""
    import numpy as np

    wide = np.asarray(array, dtype=np.float64)
    largest = float(np.max(np.abs(wide)))
    # Scaled first: the square of a large finite entry may not be finite.
    scale = largest if 0.0 < largest < np.inf else 1.0
    return {
        "name": name,
        "kind": kind,
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "norm": float(np.sqrt(np.sum((wide / scale) ** 2))) * scale,
        "max_abs": largest,
        "mean": float(np.mean(wide)),
        "zeros": int(np.sum(wide == 0.0)),
    }


def _column(key: str, heading: str, show: Any, right: bool = True, wide: bool = False) -> Column:
    return Column(key, heading, lambda row: row[key], show, right, wide)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _figure(value: float) -> str:
    return f"{value:.6g}"


COLUMNS = (
    _column("name", "name", str, right=False),
    _column("kind", "kind", str, right=False),
    _column("shape", "shape", _shape),
    _column("dtype", "dtype", str, right=False, wide=True),
    _column("norm", "norm", _figure),
    _column("max_abs", "max |.|", _figure),
    _column("mean", "mean", _figure, wide=True),
    _column("zeros", "zeros", str, wide=True),
)
