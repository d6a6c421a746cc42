"""The smallest network that still fails: parts dropped, sizes lowered and numbers made plain as long as it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from network_terms import Array, Network, Number, Term

Move = Callable[[Network], Iterator[Network]]
PLAIN = ("1", "0")
GENERIC = (0.5, -0.7, 1.3)


def shrink(network: Network, fails: Callable[[Network], bool], most: int = 1000) -> Network:
    """`network`, which fails, made as small as single moves can; `fails` is asked at most so often.

    A move that leaves no lawful spec is tried like any other: `fails` is to be false of it.
    """
    seen = {network.text()}
    found = True
    while found:
        found = False
        for move in MOVES:
            smaller = True
            while smaller:
                smaller = False
                for candidate in move(network):
                    text = candidate.text()
                    if text in seen or len(seen) > most:
                        continue
                    seen.add(text)
                    if fails(candidate):
                        network, found, smaller = candidate, True, True
                        break
    return network


def sizes(network: Network) -> Iterator[Network]:
    """Fewer steps and samples, lower dims."""
    for key in ("T", "batch"):
        yield from (replace(network, **{key: size}) for size in _lower(getattr(network, key)))
    for name, size in network.dims.items():
        yield from (replace(network, dims={**network.dims, name: lower}) for lower in _lower(size))


def _lower(size: int) -> list[int]:
    return sorted({1, size // 2, size - 1} & set(range(1, size)))


def settings(network: Network) -> Iterator[Network]:
    """What a spec that says nothing has."""
    defaults: dict[str, Any] = {"dtype": "float64", "over_time": "sum", "over_batch": "sum", "seed": 0}
    for key, value in defaults.items():
        if getattr(network, key) != value:
            yield replace(network, **{key: value})
    yield from (replace(network, wrt=(word,)) for word in network.wrt if len(network.wrt) > 1)


def drops(network: Network) -> Iterator[Network]:
    """Without an equation (and its state), an array, a dim or a constant, or with equations put where they are used."""
    for name in network.equations:
        state = _without(network.state, name)
        yield replace(network, equations=_without(network.equations, name), state=state)
        if name != network.loss and name not in network.state:
            yield _inlined(network, name)
    for name in network.state:
        yield replace(network, state=_without(network.state, name))
    for table in ("params", "inputs", "constants"):
        entries = getattr(network, table)
        yield from (replace(network, **{table: _without(entries, name)}) for name in entries)
    used = {
        d for table in ("params", "inputs", "state") for array in getattr(network, table).values() for d in array.shape
    }
    yield from (replace(network, dims=_without(network.dims, name)) for name in network.dims if name not in used)


def _without(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if key != name}


def _inlined(network: Network, name: str) -> Network:
    """The equation's term in brackets in place of its name."""
    term, equations = network.equations[name], _without(network.equations, name)
    put = term if not term.args else Term("({})", (term,))
    for key, other in equations.items():
        for path, inner in list(other.walk()):
            if inner == Term(name):
                equations[key] = equations[key].put(path, put)
    return replace(network, equations=equations)


def terms(network: Network) -> Iterator[Network]:
    """With an argument, a plain number or a name in place of a term."""
    for name, whole in network.equations.items():
        for path, term in whole.walk():
            others = [*term.args, *(Term(word) for word in PLAIN if term.form not in PLAIN)]
            if term.args and len(term.args) > 1 and " + " in term.form and term.form.count("{}") == len(term.args) > 2:
                parts = [term.args[:i] + term.args[i + 1 :] for i in range(len(term.args))]
                others += [Term(" + ".join(["{}"] * len(part)), part) for part in parts]
            if term.args:
                others += [Term(leaf) for leaf in _leaves(network)]
            for other in others:
                yield replace(network, equations={**network.equations, name: whole.put(path, other)})


def _leaves(network: Network) -> list[str]:
    return [*network.params, *network.inputs, *(f"{name}[t-1]" for name in network.state)]


def numbers(network: Network) -> Iterator[Network]:
    """Plain numbers in terms and constants."""
    for name, whole in network.equations.items():
        for path, term in whole.walk():
            for i, number in enumerate(term.numbers):
                for plain in _plain(number):
                    given = (*term.numbers[:i], plain, *term.numbers[i + 1 :])
                    put = whole.put(path, replace(term, numbers=given))
                    yield replace(network, equations={**network.equations, name: put})
    for name, value in network.constants.items():
        if value != 1.0:
            yield replace(network, constants={**network.constants, name: 1.0})


def _plain(number: Number) -> list[Number]:
    if isinstance(number, int):
        return [n for n in (0, 1, 2, number - 1) if 0 <= n < number]
    return [2, 1] if number not in (1, 2) else []


def arrays(network: Network) -> Iterator[Network]:
    """Arrays without options, of plain numbers."""
    for table in ("params", "state", "inputs"):
        entries: Mapping[str, Array] = getattr(network, table)
        for name, array in entries.items():
            for plain in _plain_arrays(array):
                yield replace(network, **{table: {**entries, name: plain}})
        if len(entries) > 0 and table == "inputs" and any(a.values is None for a in entries.values()):
            yield replace(network, inputs={name: replace(a, values=(1.0,)) for name, a in entries.items()})


def _plain_arrays(array: Array) -> Iterator[Array]:
    for key in array.options:
        yield replace(array, options=_without(array.options, key))
    drawn = {"init", "scale", "density"} & set(array.options)
    if array.values is None:
        rest = {key: value for key, value in array.options.items() if key not in drawn}
        yield from (Array(array.shape, rest, values) for values in ((1.0,), (0.0,), GENERIC))
        return
    if len(array.values) > 1:
        yield from (replace(array, values=(value,)) for value in dict.fromkeys(array.values))
    for i, value in enumerate(array.values):
        for plain in dict.fromkeys((1.0, 0.0, float(f"{value:.1g}"))):
            if value not in (0.0, 1.0) and plain != value:
                yield replace(array, values=(*array.values[:i], plain, *array.values[i + 1 :]))


MOVES: tuple[Move, ...] = (drops, sizes, terms, settings, arrays, numbers)
