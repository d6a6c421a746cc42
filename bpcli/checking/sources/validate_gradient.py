"""Validation of gradients that user code returns: their structure, names, types and shapes.

The process that runs user code imports this module, so it imports NumPy and the standard library alone, and by name:
user code may rebind what `numpy` holds.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy import array as array_of
from numpy import asarray, dtype, float32, float64, zeros

from bpcli.errors import nearest, printable

if TYPE_CHECKING:
    from bpcli.problem.definition import Array, Tensor

LOSS = "loss"
FLOATS = (dtype(float64), dtype(float32))


@dataclass(frozen=True, eq=False)
class ReturnedGradient:
    """`arrays` that can be compared, and `faults`, why others cannot, by the name of a tensor, a key, or "loss".

    `loss` is None where none was returned.
    """

    loss: float | None = None
    arrays: Mapping[str, Array] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)

    def located(self, where: str) -> ReturnedGradient:
        """The same, with the user's file and line after each fault."""
        return ReturnedGradient(self.loss, self.arrays, {name: fault + where for name, fault in self.faults.items()})


class InvalidValueError(Exception):
    """An array or number cannot be used; the message says why in a few words."""


def all_faulty(names: Iterable[str], cause: str) -> ReturnedGradient:
    """No gradient at all, for one cause."""
    return ReturnedGradient(faults=dict.fromkeys(names, cause))


def parse_gradient(
    given: Any, shapes: Mapping[str, tuple[int, ...]], known: Collection[str], dtypes: Sequence[dtype[Any]]
) -> ReturnedGradient:
    """Validate a dict of gradients, or `(loss, dict)`.

    `shapes` names the gradients that were asked for; those of other `known` names are ignored. Their type must be one
    of `dtypes`. Exceptions of the objects inside are not caught.
    """
    loss, faults, arrays = None, {}, {}
    if isinstance(given, tuple | list) and len(given) == 2:
        number, given = given
        try:
            loss = scalar(number)
        except InvalidValueError as error:
            faults[LOSS] = str(error)
    if not isinstance(given, Mapping):
        return all_faulty(shapes, f"wrong type: returns {_kind(given)}, not a dict of gradients by name")
    for name, shape in shapes.items():
        try:
            arrays[name] = entry(given, name, shape, dtypes)
        except InvalidValueError as error:
            faults[name] = str(error)
    for key in given:
        if not (isinstance(key, str) and key in known):
            faults[printable(key if isinstance(key, str) else reprlib.repr(key), 60)] = _unknown(key, known)
    return ReturnedGradient(loss, arrays, faults)


def entry(given: Mapping[Any, Any], name: str, shape: tuple[int, ...], dtypes: Sequence[dtype[Any]]) -> Array:
    """The gradient of one tensor, which may be the caller's own array. Raises InvalidValueError."""
    if name not in given:
        raise InvalidValueError("missing")
    value = given[name]
    if isinstance(value, int | float) and not isinstance(value, bool) and shape == ():
        return array_of(value, dtype=dtypes[0])  # as in NumPy, a Python number has no dtype of its own
    if getattr(type(value), "__array__", None) is None:
        raise InvalidValueError(f"wrong type: {_kind(value)}, not an array")
    try:
        array = asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidValueError(
            f"wrong type: {_kind(value)} that NumPy can't read ({printable(str(error))})"
        ) from error
    if array.dtype.newbyteorder("=") not in dtypes:
        raise InvalidValueError(f"wrong type: {array.dtype}, not {' or '.join(map(str, dtypes))}")
    if array.shape != shape:
        raise InvalidValueError(f"wrong shape: {array.shape}, not {shape}")
    return asarray(array, dtype=array.dtype.newbyteorder("="))


def scalar(value: Any) -> float:
    """A loss as a float, from any array library. Raises InvalidValueError."""
    if getattr(value, "shape", ()) not in ((), None):
        raise InvalidValueError(f"wrong shape: {tuple(value.shape)}, not a scalar")
    if isinstance(value, bool | str | bytes | bytearray | None):
        raise InvalidValueError(f"wrong type: {_kind(value)}, not a number")
    if isinstance(value, complex) or getattr(getattr(value, "dtype", None), "kind", "") == "c":
        raise InvalidValueError("wrong type: complex, not a real number")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"wrong type: {_kind(value)}, not a number") from error


def on_pattern(value: Array, tensor: Tensor) -> Array:
    """The value with zeros outside the tensor's pattern, where a density leaves entries out."""
    if tensor.pattern is None:
        return value
    kept = zeros(value.shape, value.dtype)  # in C order, so that it can be indexed flat
    kept.reshape(-1)[tensor.pattern] = value.reshape(-1)[tensor.pattern]
    return kept


def same(left: Array | float64, right: Array | float64 | None) -> bool:
    """Bitwise equality, by which a NaN equals itself and zeros of opposite sign differ."""
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


def _kind(value: object) -> str:
    """The name of a value's type."""
    return "None" if value is None else printable(type(value).__name__, 60)
