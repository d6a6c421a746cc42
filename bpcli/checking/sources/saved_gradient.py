"""A gradient that another program saved: `d_<name>` in an .npz as `bp grad` writes it, and `loss` if it is there."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from bpcli.checking.sources.gradient_source import Answer, Foreign
from bpcli.checking.sources.validate_gradient import LOSS, take
from bpcli.errors import fail, printable
from bpcli.problem.array_files import ArrayFile, FileErrors, open_arrays
from bpcli.problem.definition import Array, Problem

_MARK = "d_"


@dataclass(frozen=True, eq=False)
class Captured(Foreign):
    """The file at `path`, called `text` in reports. Its arrays are read when it is known what shapes they must have."""

    anywhere: ClassVar[bool] = False
    text: str
    path: Path
    file: ArrayFile

    def answer(self, problem: Problem) -> Answer:
        """See `Foreign`; `BpError` for a damaged file."""
        setup = problem.setup
        names = {*problem.params, *problem.inputs, *problem.state}
        held = {name: self._array(name) for name in self.file.names() if name == LOSS or name.startswith(_MARK)}
        gradients = {name.removeprefix(_MARK): array for name, array in held.items() if name != LOSS}
        given = (held[LOSS], gradients) if LOSS in held else gradients
        where = f" ({printable(str(self.path))})"
        shapes = {tensor.name: tensor.shape for tensor in setup.wrt}
        returned = take(given, shapes, names, [setup.dtype]).located(where)
        return Answer(returned.loss, returned.arrays, frozenset(), (), returned.faults, where)

    def _array(self, name: str) -> Array:
        """As it is saved, finite or not. Its header was compared with its size before anything is allocated."""
        self.file.shape(name)
        guard = FileErrors(self.path.name, None).guard(f'array "{printable(name)}" is damaged')
        with guard, zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as member:
            array: Array = np.lib.format.read_array(member, allow_pickle=False)
        return array


def captured(path: Path, text: str) -> Captured:
    """The gradient in a file; `BpError` where it is no readable .npz, or holds no gradient at all."""
    if not path.exists():
        fail("no-such-file", f'no file "{printable(str(path))}"', help="bp grad writes such files")
    if path.suffix.lower() != ".npz":
        fail("unknown-format", f"{printable(str(path))}: not an .npz file", help="numpy.savez writes them")
    file = open_arrays(path, None)
    if not any(name.startswith(_MARK) for name in file.names()):
        held = ", ".join(printable(n) for n in file.names()[:20]) or "nothing"
        advice = f"d_W is the gradient with respect to W; the file holds {held}"
        fail("missing-array", f"{printable(str(path))}: no array d_NAME", help=advice)
    return Captured(text, path, file)
