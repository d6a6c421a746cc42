"""Checkpoints of a training: one `.npz` that replaces the one before it whole, from which a run goes on bit by bit.

Random numbers and data follow from the seed and the number of the step, so that parameters, what the optimizers
remember, and the curves are all there is to keep. Online training begins every sequence with a fresh state and
influence, and checkpoints stand between sequences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.errors import fail, printable
from bpcli.problem.array_files import ArrayFile, open_arrays, write_npz
from bpcli.problem.definition import Array
from bpcli.training.descent import Learner, Training

_OUTCOMES = ("", "reached", "not finite")
_CALL = "call"
_DOUBLE = np.dtype(np.float64)


def write_checkpoint(path: str | Path, training: Training, call: Mapping[str, Any]) -> None:
    """Write all learners, and the `call` that they belong to, a mapping of plain values."""
    arrays: dict[str, Any] = {_CALL: np.frombuffer(json.dumps(call, sort_keys=True).encode(), np.uint8)}
    for number, learner in enumerate(training.learners):
        arrays |= {f"{number}/{name}": _bits(array) for name, array in _held(learner).items()}
    write_npz(path, arrays)


def _bits(array: Array) -> NDArray[np.uint32]:
    """An array as integers: files of arrays hold no number that is not finite."""
    return np.ascontiguousarray(array).view(np.uint32)


def _numbers(file: ArrayFile, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The inverse of `_bits`."""
    return file.read(name, _DOUBLE).astype(np.uint32).view(dtype)


def read_checkpoint(path: str, training: Training, call: Mapping[str, Any]) -> None:
    """Put the learners where the checkpoint left them.

    Raises BpError for a file that is not a checkpoint, and for one of another call, naming what differs.
    """
    file = open_arrays(Path(path), None)
    if _CALL not in file.names():
        fail("usage", f'"{printable(path)}" is not a checkpoint', help="name a file that bp train --checkpoint wrote")
    written = json.loads(file.read(_CALL, _DOUBLE).astype(np.uint8).tobytes())
    differing = [key for key in call if written.get(key) != call[key]]
    if differing:
        key = differing[0]
        what = f'the checkpoint "{printable(path)}" is of another call: {key} is {written.get(key)} there'
        fail("usage", f"{what}, here {call[key]}", help="repeat the call, or start anew without --resume")
    for number, learner in enumerate(training.learners):
        _restore(learner, file, f"{number}/", path)


def _held(learner: Learner) -> dict[str, Any]:
    """All that a learner is made of, by name."""
    status = [learner.done, _OUTCOMES.index(learner.outcome), learner.optimizer.count]
    found: dict[str, Any] = {"theta": learner.parameters.theta, "status": np.array(status, np.int64)}
    found |= {f"memory/{name}": array for name, array in learner.optimizer.memory.items()}
    return found | {f"curve/{name}": values[: learner.done] for name, values in learner.curve.items()}


def _restore(learner: Learner, file: ArrayFile, prefix: str, path: str) -> None:
    theta = learner.parameters.theta
    done, outcome, count = (int(n) for n in _numbers(file, f"{prefix}status", np.dtype(np.int64)))
    if done > len(learner.curve["loss"]):
        what = f'the checkpoint "{printable(path)}" has {done} steps, more than --steps {len(learner.curve["loss"])}'
        fail("usage", what, help=f"give --steps {done} or more")
    learner.done, learner.outcome, learner.optimizer.count = done, _OUTCOMES[outcome], count
    theta[:] = _numbers(file, f"{prefix}theta", theta.dtype)
    memory = f"{prefix}memory/"
    names = [name for name in file.names() if name.startswith(memory)]
    learner.optimizer.memory = {name.removeprefix(memory): _numbers(file, name, theta.dtype) for name in names}
    for name, values in learner.curve.items():
        values[:done] = _numbers(file, f"{prefix}curve/{name}", _DOUBLE)
