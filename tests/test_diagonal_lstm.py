"""Hand-written C++ as an outside witness of a gradient: the diagonal LSTM."""

from __future__ import annotations

import shutil

import pytest
from diagonal_lstm import CLOSE, apart, by_hand, compiled, opened

from bpcli.methods import parse
from bpcli.methods.base import Gradient


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_the_gradient_is_that_of_hand_written_code(tmp_path):
    """To 1e-10 in loss and all 336 entries; and one entry that is off by 1e-9 of the largest is seen."""
    problem = opened(30)
    hand, ours = by_hand(compiled(tmp_path), problem)(), parse("bptt").gradient(problem)
    assert apart(ours, hand) <= CLOSE
    wrong = {name: array.copy() for name, array in ours.arrays.items()}
    wrong["ug1"][3] += 1e-9 * max(abs(array).max() for array in wrong.values())
    assert apart(Gradient(ours.loss, wrong), hand) > CLOSE
