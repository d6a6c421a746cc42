"""Tensors of PyTorch checkpoints, `.pt` and `.pth` files of `torch.save`.

PyTorch unpickles weights alone: a file that holds other objects, which could run code, is refused. Tensors stay on disk
until they are read.
"""

from __future__ import annotations

import importlib.util
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

SUFFIXES = (".pt", ".pth")
Refuse = Callable[[str, str, str], NoReturn]
"""Refuses the file: what is wrong with it, a remedy, and the code of the error."""
_SAVE = 'save the weights alone: torch.save(model.state_dict(), "weights.pt")'


def stored_tensors(path: Path, refuse: Refuse) -> dict[str, Any]:
    """The tensors of a checkpoint, on the CPU, by their names: keys of nested dicts and lists joined by dots."""
    if importlib.util.find_spec("torch") is None:
        install = 'pip install "bp-check[torch]", or save an .npz: numpy.savez("weights.npz", W=W.numpy())'
        refuse("reading it takes PyTorch, which is not installed", install, "missing-extra")
    import torch

    if not zipfile.is_zipfile(path):
        refuse("not a file of torch.save, or of one before PyTorch 1.6", _SAVE, "bad-file")
    if any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
        refuse("holds a program of TorchScript, not weights", _SAVE, "bad-file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        refuse("holds more than weights, which bp does not unpickle", _SAVE, "bad-file")
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:120]
        refuse(f"not a checkpoint of weights: {reason}", _SAVE, "bad-file")
    found: dict[str, Any] = {}
    for name, tensor in _tensors("", content):
        if name in found:
            refuse(f'two tensors are called "{name}"', "save each under a name of its own", "bad-file")
        found[name] = tensor.detach()
    return found


def _tensors(name: str, content: object) -> Iterator[tuple[str, Any]]:
    """The tensors in nested containers; what else is there, such as the number of an epoch, is ignored."""
    import torch

    if isinstance(content, torch.Tensor):
        yield name or "tensor", content
        return
    items: list[tuple[object, object]] = []
    if isinstance(content, Mapping):
        items = list(content.items())
    elif isinstance(content, list | tuple):
        items = list(enumerate(content))
    for key, value in items:
        yield from _tensors(f"{name}.{key}" if name else str(key), value)


def entry_type(tensor: Any) -> str:
    """The type of a tensor's entries, as "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def tensor_bytes(tensor: Any) -> bytes:
    """The entries of a tensor in C order; those of a sparse one, dense."""
    import torch

    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    # As bytes, since NumPy has no bfloat16.
    data: bytes = dense.resolve_neg().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return data
