"""What foreign code gave back for a gradient: taken apart, and every fault of its form named."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy import array as array_of
from numpy import asarray, dtype, float32, float64, zeros_like

from bpcli.errors import nearest, printable

if TYPE_CHECKING:  # the process that runs user code does without
    from bpcli.problem.definition import Array, Tensor


# Bound here: where user code runs, it may rebind what `numpy` holds.


LOSS = "loss"
FLOATS = (dtype(float64), dtype(float32))


@dataclass(frozen=True, eq=False)
class Returned:
    """`arrays` can be compared; `faults` says why others cannot, by the name of the tensor, of the key, or "loss".

    `loss` is None where none came.
    """

    loss: float | None = None
    arrays: Mapping[str, Array] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)

    def located(self, where: str) -> Returned:
        """The same, with the user's file and line after each fault."""
        return Returned(self.loss, self.arrays, {name: fault + where for name, fault in self.faults.items()})


class FlawError(Exception):
    """What is wrong with one array or number, in a few words."""


def all_faulty(names: Iterable[str], cause: str) -> Returned:
    """No gradient at all, for one cause."""
    return Returned(faults=dict.fromkeys(names, cause))


def take(
    given: Any, shapes: Mapping[str, tuple[int, ...]], known: Collection[str], dtypes: Sequence[dtype[Any]]
) -> Returned:
    """Take apart a dict of gradients, or `(loss, dict)`.

    `shapes` says which gradients were asked for; those of other `known` names are passed over. Their type has to be
    one of `dtypes`. What the objects inside raise, they raise here.
    """
    loss, faults = None, {}
    if isinstance(given, tuple | list) and len(given) == 2:
        number, given = given
        try:
            loss = scalar(number)
        except FlawError as flaw:
            faults[LOSS] = str(flaw)
    if not isinstance(given, Mapping):
        return all_faulty(shapes, f"wrong type: returns {_kind(given)}, not a dict of gradients by name")
    arrays = {}
    for name, shape in shapes.items():
        try:
            arrays[name] = entry(given, name, shape, dtypes)
        except FlawError as flaw:
            faults[name] = str(flaw)
    faults |= {_key(key): _unknown(key, known) for key in given if not (isinstance(key, str) and key in known)}
    return Returned(loss, arrays, faults)


def entry(given: Mapping[Any, Any], name: str, shape: tuple[int, ...], dtypes: Sequence[dtype[Any]]) -> Array:
    """The gradient of one tensor, which may be the caller's own array; raises FlawError."""
    if name not in given:
        raise FlawError("missing")
    value = given[name]
    if isinstance(value, int | float) and not isinstance(value, bool) and shape == ():
        return array_of(value, dtype=dtypes[0])  # as in NumPy, a number of Python's takes the type of its company
    if getattr(type(value), "__array__", None) is None:
        raise FlawError(f"wrong type: {_kind(value)}, not an array")
    try:
        array = asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FlawError(f"wrong type: {_kind(value)} that NumPy can't read ({printable(str(error))})") from error
    if array.dtype.newbyteorder("=") not in dtypes:
        raise FlawError(f"wrong type: {array.dtype}, not {' or '.join(map(str, dtypes))}")
    if array.shape != shape:
        raise FlawError(f"wrong shape: {array.shape}, not {shape}")
    return asarray(array, dtype=array.dtype.newbyteorder("="))


def scalar(value: Any) -> float:
    """A loss as a float, of whatever library it is; raises FlawError."""
    if getattr(value, "shape", ()) not in ((), None):
        raise FlawError(f"wrong shape: {tuple(value.shape)}, not a scalar")
    if isinstance(value, bool | str | bytes | bytearray | None):
        raise FlawError(f"wrong type: {_kind(value)}, not a number")
    if isinstance(value, complex) or getattr(getattr(value, "dtype", None), "kind", "") == "c":
        raise FlawError("wrong type: complex, not a real number")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise FlawError(f"wrong type: {_kind(value)}, not a number") from error


def on_pattern(value: Array, tensor: Tensor) -> Array:
    """Zero where a density leaves entries out: what stands there is ignored."""
    if tensor.pattern is None:
        return value
    kept = zeros_like(value)
    kept.reshape(-1)[tensor.pattern] = value.reshape(-1)[tensor.pattern]
    return kept


def same(left: Array | float64, right: Array | float64 | None) -> bool:
    """Bitwise equality: a NaN equals itself, and zeros of either sign differ."""
    if right is None:
        return False
    a, b = asarray(left), asarray(right)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.hasobject:
        return a.tobytes() == b.tobytes()
    unit = f"u{8 if a.itemsize % 8 == 0 else 4 if a.itemsize % 4 == 0 else 1}"  # no copies, as bytes would be
    return bool((a.reshape(-1).view(unit) == b.reshape(-1).view(unit)).all())


def _unknown(key: object, known: Collection[str]) -> str:
    if key == LOSS:
        return "unknown key: a loss goes beside the dict, as in (loss, gradients)"
    if not isinstance(key, str):
        return f"unknown key: {_kind(key)}, not a name"
    return f"unknown key: {nearest(key, known)}"


def _key(key: object) -> str:
    return printable(key if isinstance(key, str) else reprlib.repr(key), 60)


def _kind(value: object) -> str:
    """A value's type, in the words of an error."""
    return "None" if value is None else printable(type(value).__name__, 60)
