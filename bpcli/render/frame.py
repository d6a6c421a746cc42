"""A document as a DataFrame, for notebooks and for CSV."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from bpcli.render.document import Document


def frame(document: Document, field: Callable[[Any], Any] = lambda value: value, dtype: Any = None) -> pd.DataFrame:
    """Every row and column of `document`, by the keys of the columns, with `field` of each value.

    A figure that a row does not have is NaN, but for the `dtype` object, which keeps None, and integers beside it.
    """
    columns = {c.key: [field(c.get(row)) for row in document.rows] for c in document.columns}
    return pd.DataFrame(columns, dtype=dtype)
