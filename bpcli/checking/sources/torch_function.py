"""Functions of PyTorch tensors, and modules: values by copies in float64, gradients by `torch.autograd`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from numpy import asarray

from bpcli.checking.sources.differentiable import (
    Arguments,
    Arrays,
    Differentiable,
    Given,
    LackingError,
    UnusableError,
    kind_name,
    lacking,
    refuse_type,
)
from bpcli.checking.sources.pytree import flatten, unused
from bpcli.checking.sources.user_protocol import Array


class TorchFunction(Differentiable):
    """A function of tensors, a `torch.autograd.Function`, or a module, whose parameters are differentiated too.

    If an input requires gradients, those that do not are fixed.
    """

    def __init__(self, given: Given) -> None:
        import torch

        function: Any = given.function
        self._torch = torch
        self._module = function if isinstance(function, torch.nn.Module) else None
        self._function = function
        if isinstance(given.function, type):  # a `torch.autograd.Function`
            self._function = function.apply
        self._arguments = Arguments(given.function, given.inputs)
        self._wide_module: Any = None
        self._threads: int | None = None
        leaves, module = self._arguments.leaves, self._module
        some = any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves.values())
        held = {} if module is None else {unused(n, leaves): p for n, p in module.named_parameters()}
        self._parameters = dict(zip(held, dict(module.named_parameters()), strict=True)) if module is not None else {}
        self.points, self.fixed, self._like = {}, {}, {}
        for name, leaf in {**held, **leaves}.items():
            tensor = isinstance(leaf, torch.Tensor)
            wanted = leaf.requires_grad if tensor and (some or name in held) else tensor
            if tensor:
                refuse_type(name, str(leaf.dtype))
            if tensor and leaf.is_floating_point() and wanted:
                if leaf.layout != torch.strided:
                    raise UnusableError(f"has a sparse input {name}", "judge it with dense tensors")
                self.points[name], self._like[name] = leaf.detach().cpu().numpy().copy(), leaf.detach()
            else:
                self.fixed[name] = kind_name(leaf).removeprefix("torch.")

    def close(self) -> None:
        """Nothing is left behind."""

    def run(self, point: Arrays, wide: bool) -> dict[str, Array]:
        """See `Differentiable`."""
        if self._threads is None and wide:
            self._threads = self._faster(point)
        with self._torch.no_grad(), self._with_threads(self._threads):
            return {name: _of_tensor(t) for name, t in self._values(self._tensors(point, wide), wide).items()}

    def vjp(self, point: Arrays, cotangents: Arrays, wide: bool) -> dict[str, Any]:
        """See `Differentiable`; where nothing flows back, the gradient is zero."""
        tensors = self._tensors(point, wide, requires=True)
        with self._torch.enable_grad():
            values = self._values(tensors, wide)
            into = {name: self._as(cotangents[name], value) for name, value in values.items()}
            return {n: _of_tensor(g) for n, g in self._pulled(tensors, values, into, create=False).items()}

    def jvp(self, point: Arrays, tangents: Arrays, wide: bool) -> dict[str, Array]:
        """See `Differentiable`."""
        forward = self._torch.autograd.forward_ad
        tensors = self._tensors(point, wide)
        with forward.dual_level():
            with warnings.catch_warnings():  # of modules that PyTorch imports now
                warnings.simplefilter("ignore", DeprecationWarning)
                forward.make_dual(self._torch.zeros(()), self._torch.zeros(()))
            duals = {name: forward.make_dual(t, self._as(tangents[name], t)) for name, t in tensors.items()}
            with lacking("forward mode AD", "forward AD"):
                values = self._values(duals, wide)
            found = {name: (value, forward.unpack_dual(value).tangent) for name, value in values.items()}
        return {name: _of_tensor(self._torch.zeros_like(v) if t is None else t) for name, (v, t) in found.items()}

    def second(
        self, point: Arrays, cotangents: Arrays, tangents: Arrays, wide: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Differentiable`."""
        tensors = self._tensors(point, wide, requires=True)
        with self._torch.enable_grad():
            values = self._values(tensors, wide)
            into = {name: self._as(cotangents[name], value).requires_grad_() for name, value in values.items()}
            first = self._pulled(tensors, values, into, create=True)
            parts = [(first[n] * self._as(tangents[n], t)).sum() for n, t in tensors.items()]
            total = {"": self._torch.stack([part.to(self._torch.float64) for part in parts]).sum()}
            _refuse_once(total[""])
            both = {**{f"x{n}": t for n, t in tensors.items()}, **{f"u{n}": t for n, t in into.items()}}
            found = self._pulled(both, total, {"": self._torch.ones_like(total[""])}, create=False)
        each = {name: _of_tensor(gradient) for name, gradient in found.items()}
        return {n: each[f"x{n}"] for n in tensors}, {n: each[f"u{n}"] for n in into}

    def _pulled(self, tensors: dict[str, Any], values: dict[str, Any], into: dict[str, Any], create: bool) -> Any:
        """The gradients by `tensors`, zero where `values` do not depend on them."""
        live = [name for name, value in values.items() if value.requires_grad]
        found: Sequence[Any] = [None] * len(tensors)
        if live:
            outputs, weights = [values[n] for n in live], [into[n] for n in live]
            more = {"create_graph": create, "allow_unused": True}
            found = self._torch.autograd.grad(outputs, list(tensors.values()), weights, **more)
        pairs = zip(tensors.items(), found, strict=True)
        return {name: self._torch.zeros_like(t) if g is None else g for (name, t), g in pairs}

    def _faster(self, point: Arrays) -> int:
        """The number of threads, one or all, with which the function is faster; one where the machine is busy."""
        every, seconds = self._torch.get_num_threads(), {}
        for count in (every, 1):
            with self._torch.no_grad(), self._with_threads(count):
                self._values(self._tensors(point, wide=True), wide=True)  # may compile
                start = perf_counter()
                self._values(self._tensors(point, wide=True), wide=True)
                seconds[count] = perf_counter() - start
        return min(seconds, key=seconds.__getitem__)

    @contextmanager
    def _with_threads(self, count: int | None) -> Iterator[None]:
        every = self._torch.get_num_threads()
        if count in (None, every):
            yield
            return
        self._torch.set_num_threads(count)
        try:
            yield
        finally:
            self._torch.set_num_threads(every)

    def _values(self, tensors: Mapping[str, Any], wide: bool) -> dict[str, Any]:
        torch, module = self._torch, self._module
        rest = {name: self._fixed(leaf, wide) for name, leaf in self._arguments.leaves.items() if name not in tensors}
        inputs = self._arguments.filled({**rest, **{n: t for n, t in tensors.items() if n not in self._parameters}})
        if module is None:
            found = self._function(*inputs)
        else:
            own = self._in_double() if wide else module
            state = {name: buffer.clone() for name, buffer in own.named_buffers()}
            state |= {own_name: tensors[name] for name, own_name in self._parameters.items() if name in tensors}
            found = torch.func.functional_call(own, state, tuple(inputs))
        floats = {n: v for n, v in flatten(found).items() if isinstance(v, torch.Tensor) and v.dtype.is_floating_point}
        for name, value in floats.items():
            if value.dtype not in (torch.float32, torch.float64):
                raise UnusableError(f"returns {name or 'values'} of type {value.dtype}", "return float64 or float32")
        return floats

    def _in_double(self) -> Any:
        if self._wide_module is None and self._module is not None:
            self._wide_module = copy.deepcopy(self._module).double()
        return self._wide_module

    def _tensors(self, point: Arrays, wide: bool, requires: bool = False) -> dict[str, Any]:
        return {n: self._as(point[n], like, wide).requires_grad_(requires) for n, like in self._like.items()}

    def _as(self, values: Array, like: Any, wide: bool = False) -> Any:
        """A tensor on the device, of the type and in the layout of another one; it shares the memory if it can."""
        kind = self._torch.float64 if wide else like.dtype
        found = self._torch.from_numpy(asarray(values, order="C")).to(like.device, kind)
        if like.is_contiguous():
            return found
        shaped = self._torch.empty_like(like, dtype=kind, memory_format=self._torch.preserve_format)
        return shaped.copy_(found)

    def _fixed(self, leaf: Any, wide: bool) -> Any:
        """A leaf that is not differentiated, copied if it is a tensor."""
        if not isinstance(leaf, self._torch.Tensor):
            return leaf
        return leaf.detach().double() if wide and leaf.is_floating_point() else leaf.detach().clone()


def _refuse_once(value: Any) -> None:
    """Raise LackingError if a value was computed by a backward pass that can be differentiated only once.

    PyTorch puts a node there that raises when it is run, and does not run it if nothing depends on it.
    """
    left, seen = [value.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name().endswith("Error"):
            raise LackingError("has no double backward, as it is marked with @once_differentiable")
        seen.add(node)
        left += [following for following, _ in node.next_functions]


def _of_tensor(tensor: Any) -> Array:
    found: Array = tensor.detach().cpu().numpy()
    return found
