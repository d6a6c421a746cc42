"""Networks as data: expression trees, arrays and sizes, and the spec that they write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

Number = int | float | str


@dataclass(frozen=True)
class Term:
    """An expression: `form` with the texts of `args` and then `numbers` in its braces; a name or a number has none."""

    form: str
    args: tuple[Term, ...] = ()
    numbers: tuple[Number, ...] = ()

    def __str__(self) -> str:
        return self.form.format(*self.args, *self.numbers)

    def walk(self) -> Iterator[tuple[tuple[int, ...], Term]]:
        """Every subterm with its path, the whole first."""
        yield (), self
        for i, arg in enumerate(self.args):
            for path, inner in arg.walk():
                yield (i, *path), inner

    def put(self, path: tuple[int, ...], term: Term) -> Term:
        """The same with another subterm at a path."""
        if not path:
            return term
        args = list(self.args)
        args[path[0]] = args[path[0]].put(path[1:], term)
        return replace(self, args=tuple(args))


@dataclass(frozen=True)
class Array:
    """An input, parameter or state: sizes are names of dims or numbers.

    `options` are the keys of its table in a spec beside shape and value; `values` fill it, over and over in C order.
    """

    shape: tuple[str | int, ...]
    options: Mapping[str, object] = field(default_factory=dict)
    values: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Network:
    """A spec before it is written; inputs are drawn unless all have values.

    `scales` is the class of its numbers, for reports alone.
    """

    dims: Mapping[str, int]
    constants: Mapping[str, float]
    inputs: Mapping[str, Array]
    params: Mapping[str, Array]
    state: Mapping[str, Array]
    equations: Mapping[str, Term]
    loss: str = "loss"
    over_time: str = "sum"
    over_batch: str = "mean"
    wrt: tuple[str, ...] = ("params",)
    dtype: str = "float64"
    T: int = 1
    batch: int = 1
    seed: int = 0
    scales: str = "ordinary"

    def text(self) -> str:
        """The spec."""
        lines = ["bp = 1", f'dtype = "{self.dtype}"']
        for table in ("dims", "constants", "inputs", "params", "state"):
            entries = getattr(self, table)
            if entries:
                lines += [f"[{table}]", *(f"{n} = {self._written(table, entry)}" for n, entry in entries.items())]
        lines += ["[equations]", *(f'{name} = "{term}"' for name, term in self.equations.items())]
        over_time = [f'over_time = "{self.over_time}"'] if self.state else []
        lines += ["[objective]", f'loss = "{self.loss}"', *over_time, f'over_batch = "{self.over_batch}"']
        lines += ["[data]", f"batch = {self.batch}", f"seed = {self.seed}", *([f"T = {self.T}"] if self.state else [])]
        if self.inputs and all(array.values is not None for array in self.inputs.values()):
            inline = (f"{name} = {self._filled(array)}" for name, array in self.inputs.items())
            lines.append(f"values = {{ {', '.join(inline)} }}")
        wrt = ", ".join(f'"{word}"' for word in self.wrt if getattr(self, word))
        return "\n".join([*lines, "[check]", f"wrt = [{wrt}]", ""])

    def _written(self, table: str, entry: Array | float) -> str:
        if not isinstance(entry, Array):
            return repr(entry)
        shape = "[" + ", ".join(f'"{d}"' if isinstance(d, str) else str(d) for d in entry.shape) + "]"
        options = {key: f'"{v}"' if isinstance(v, str) else str(v).lower() for key, v in entry.options.items()}
        if entry.values is not None and table != "inputs":
            options["value"] = self._filled(entry)
        given = "".join(f", {key} = {value}" for key, value in options.items())
        return f"{{ shape = {shape}{given} }}" if given else shape

    def _filled(self, array: Array) -> str:
        """The array's values as nested lists."""
        assert array.values is not None
        shape = [self.dims[d] if isinstance(d, str) else d for d in array.shape]
        flat: list[str] = [repr(float(array.values[i % len(array.values)])) for i in range(prod(shape))]
        for length in reversed(shape):
            flat = [f"[{', '.join(flat[i : i + length])}]" for i in range(0, len(flat), length)]
        return flat[0]
