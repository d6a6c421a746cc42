"""The meaning of columns: each column of a check and of a bench has one, and the tables and pages say it."""

from __future__ import annotations

from bpcli.api.check_document import COLUMNS as OF_CHECKS
from bpcli.bench.measurement import HEAD, TAIL
from bpcli.commands.bench_document import BRIEF as OF_BENCHES
from bpcli.commands.planning import PREDICTED
from bpcli.render.columns import COLUMNS, legend


def test_every_column_has_a_meaning() -> None:
    """None is left out, and none is explained that no result has."""
    assert {*HEAD, *TAIL} | {c.key for c in (*OF_CHECKS, *OF_BENCHES)} | {*PREDICTED} == set(COLUMNS)
    assert [] == [name for name in COLUMNS if name.endswith("_s") and COLUMNS[name].unit != "s"]
    assert [] == [name for name in COLUMNS if name.endswith("_bytes") and COLUMNS[name].unit != "bytes"]


def test_a_legend_is_about_the_columns_that_are_shown() -> None:
    """By their headings; of a table without any of them it says nothing."""
    line = legend({"z": "worst z", "tensor": "tensor"}, ("z", "bias"))
    assert line.startswith(f"worst z: {COLUMNS['z'].text}. ") and "bias" not in line
    assert "" == legend({"tensor": "tensor"}, ("z", "bias"))
