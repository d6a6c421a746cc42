"""The files that `bp new` writes: a commented spec, a gradient function for it, and a test of that.

A cell is a file of `bpcli/scaffold/cells`: its parameters and equations as in a spec, a step forwards in Python, and
backwards in NumPy. A task is its spec in `specs/tasks`, of which sizes, loss and data are taken. The files beside the
folder of cells are templates.
"""

from __future__ import annotations

import keyword
import re
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "scaffold"
SCHEMA = "bp.schema.json"
PLAIN_TASK = "random"
KINDS = ("numpy-kernel", "torch-kernel", "jax-kernel", "spec")
"""The kinds of output: the library of the gradient function, or none."""
_SQUARED, _ENTROPY = "0.5 * sum((y - y_star)**2)", "cross_entropy(y, y_star)"
_NO_TASK = {
    "dims": {"n_in": 2, "n_out": 2},
    "equations": {"loss": _SQUARED},
    "objective": {"over_time": "sum"},
    "data": {"task": PLAIN_TASK, "T": 10},
}
_BATCH = 4

# Functions of a step forwards, as each library calls them.
_NUMPY = {f: f"np.{f}(" for f in ("tanh", "exp", "sin", "cos", "sqrt", "concatenate")}
_NUMPY |= {"softplus": "np.logaddexp(0, ", "sigmoid": "sigmoid("}
_TORCH = {f: f"torch.{f}(" for f in ("tanh", "exp", "sin", "cos", "sqrt", "concatenate", "sigmoid")}
_TORCH |= {"softplus": "torch.nn.functional.softplus("}
_JAX = {f: f"jnp.{f}(" for f in ("tanh", "exp", "sin", "cos", "sqrt", "concatenate")}
_JAX |= {"softplus": "jax.nn.softplus(", "sigmoid": "jax.nn.sigmoid("}
_CALLS: Mapping[str, Mapping[str, str]] = {"numpy": _NUMPY, "torch": _TORCH, "jax": _JAX}

_SIGMOID = '''
def sigmoid(v):
    """1 / (1 + e^-v)."""
    return 1 / (1 + np.exp(-v))
'''
_OF_SAMPLES = '"""The sum of the samples\' losses{}."""'
_SQUARE = "0.5 * {}sum((y - y_star) ** 2)"
_LOSSES: Mapping[tuple[str, str], str] = {
    ("numpy", _SQUARED): f"return {_SQUARE.format('np.')}, y - y_star",
    ("torch", _SQUARED): f"return {_SQUARE.format('torch.')}",
    ("jax", _SQUARED): f"return {_SQUARE.format('jnp.')}",
    ("numpy", _ENTROPY): "y = y - y.max(axis=-1, keepdims=True)\n"
    "log_p = y - np.log(np.exp(y).sum(axis=-1, keepdims=True))\n"
    "return -np.sum(y_star * log_p), np.exp(log_p) - y_star  # for targets that add up to 1",
    ("torch", _ENTROPY): "return -torch.sum(y_star * torch.log_softmax(y, dim=-1))",
    ("jax", _ENTROPY): "return -jnp.sum(y_star * jax.nn.log_softmax(y))",
}
_WEIGHTS = {"sum": "[1 / batch] * T", "mean": "[1 / (T * batch)] * T", "last": "[0.0] * (T - 1) + [1 / batch]"}
_TOTALS = {"sum": "losses.sum() / batch", "mean": "losses.mean() / batch", "last": "losses[-1] / batch"}


@dataclass(frozen=True)
class Scaffold:
    """What to write: the name of the spec's file without its suffix, a cell, a task and one of `KINDS`.

    `target` names the spec on the command line, from the folder that it is called in.
    """

    stem: str
    cell: str
    task: str
    kind: str
    target: str


def known_cells() -> tuple[str, ...]:
    """The names of the cells."""
    return tuple(sorted(path.stem for path in (FOLDER / "cells").glob("*.toml")))


def read_cell(name: str) -> dict[str, Any]:
    """The file of a cell, as a table."""
    return tomllib.loads((FOLDER / "cells" / f"{name}.toml").read_text(encoding="utf-8"))


def recurrent(cell: str) -> bool:
    """Whether a cell has a state."""
    return bool(read_cell(cell)["states"])


def module_name(stem: str) -> str:
    """A name for Python files that belong to the spec `stem`."""
    name = re.sub(r"\W", "_", stem)
    return name if name.isidentifier() and not keyword.iskeyword(name) else f"net_{name}"


def files(plan: Scaffold) -> dict[str, str]:
    """The text of each file, by its name: the spec, its schema, the gradient function and the test."""
    from bpcli.commands.json_schema import schema_text

    cell, task = read_cell(plan.cell), _task(plan.task)
    words = _words(plan, cell, task)
    texts = {f"{plan.stem}.toml": _spec(words, cell, plan), SCHEMA: schema_text()}
    if plan.kind == "spec":
        return {**texts, f"test_{module_name(plan.stem)}.py": _filled("test_spec", words)}
    library = plan.kind.removesuffix("-kernel")
    code = _code(library, cell, task)
    texts[words["kernel_file"]] = _filled(library if cell["states"] else f"{library}_once", {**words, **code})
    return {**texts, f"test_{module_name(plan.stem)}.py": _filled("test", words)}


def _task(name: str) -> Mapping[str, Any]:
    """The spec that shows a task."""
    from bpcli.commands.specs import packaged_spec

    if name == PLAIN_TASK:
        return _NO_TASK
    return tomllib.loads(packaged_spec(f"tasks/{name.replace('-', '_')}").read_text(encoding="utf-8"))


def _filled(template: str, words: Mapping[str, str]) -> str:
    text = (FOLDER / f"{template}.txt").read_text(encoding="utf-8")
    return re.sub(r"\n{4,}", "\n\n\n", Template(text).substitute(words)).strip("\n") + "\n"


def _words(plan: Scaffold, cell: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, str]:
    """What all templates are filled with."""
    module = f"{module_name(plan.stem)}_kernel"
    arguments = "params, inputs, state, sizes" if "constants" in cell else "params, inputs, state"
    return {
        "spec": f"{plan.stem}.toml",
        "target": plan.target,
        "module": module,
        "kernel_file": f"{module}.py",
        "arguments": arguments,
        "loss": task["equations"]["loss"],
        "read": cell["read"],
        "n_in": str(task["dims"]["n_in"]),
        "n_out": str(task["dims"]["n_out"]),
        "call": task["data"]["task"],
        "task": plan.task,
    }


def _spec(words: Mapping[str, str], cell: Mapping[str, Any], plan: Scaffold) -> str:
    """The text of the spec."""
    from bpcli.tasks import find_task

    task, own, steps = _task(plan.task), "[kernel.mine]", cell["states"]
    over_time = f'over_time = "{task["objective"]["over_time"]}"\n' if steps else ""
    exact = ["bptt", "rtrl"] if steps else ["backprop"]
    truncated = ["bptt", "tbptt:k1=1,k2=4", "rtrl"] if steps else ["backprop"]
    grid = ["n = [8, 16, 32]", *(["T = [50, 100]"] if steps else [])]
    kernel = f'\n{own}{" " * 27}# judged by `bp check {plan.target} --kernel mine`\nfile = "{words["kernel_file"]}"\n'
    flag = " --kernel mine"
    with_kernel = plan.kind != "spec"
    return _filled("spec", {
        **words,
        "title": cell["title"],
        "summary": cell["summary"][0].upper() + cell["summary"][1:],
        "comment": textwrap.indent(cell["comment"].strip(), "# "),
        "pad": " " * len(flag) if with_kernel else "",
        "kernel_line": f"#   bp check {plan.target}{flag}  judges {words['kernel_file']}\n" if with_kernel else "",
        "constants": _table("constants", "numbers, for equations", cell.get("constants", "")),
        "each": "a vector for each sample and step" if steps else "a vector for each sample",
        "params": cell["params"].lstrip(),
        "read_size": cell["read_size"],
        "state": _table("state", "zero before the first step", "".join(f'{name} = ["n"]\n' for name in steps)),
        "equations_note": f"of one step; {steps[0]}[t-1] is the step before" if steps else "in any order",
        "equations": cell["equations"].lstrip(),
        "objective": _table("objective", "sum, mean or last over steps", over_time),
        "about": textwrap.fill(find_task(plan.task, None).summary, 116, initial_indent="# ", subsequent_indent="# "),
        "steps": "\n".join([*([f"T = {task['data']['T']}"] if steps else []), f"batch = {_BATCH}"]),
        "check": _quoted(exact),
        "bench": _quoted(truncated),
        "grid": "\n".join(grid),
        "kernel": f'{kernel}function = "gradient"\n' if with_kernel else "",
    })  # fmt: skip


def _table(name: str, note: str, rows: str) -> str:
    """A table of a spec with a comment; "" without rows."""
    return f"\n{f'[{name}]':40}# {note}\n{rows.lstrip()}" if rows else ""


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _code(library: str, cell: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, str]:
    """What the template of a gradient function is filled with."""
    names, loss = cell["states"], task["equations"]["loss"]
    merge = "p = {**params, **sizes}" if "constants" in cell else "p = params"
    forward = _called(cell["forward"], _CALLS[library])
    helpers = _SIGMOID + "\n" if library == "numpy" and "sigmoid(" in forward else ""
    also = ", and its derivative with respect to y" if library == "numpy" else ""
    body = f"{_OF_SAMPLES.format(also)}\n{_LOSSES[library, loss]}"
    over_time = task["objective"]["over_time"]
    return {
        "helpers": f"{helpers}\ndef loss_of(y, y_star):\n{_indented(body)}\n\n",
        "forward": _indented(forward),
        "backward": _indented(cell["backward"]),
        "keep": ", ".join(cell["keep"]),
        "unpack": _tuple([f"{n}_before" for n in names]),
        "states": _returned(names),
        "names": _returned([f'"{n}"' for n in names]),
        "d_unpack": _tuple([f"d_{n}" for n in names]),
        "d_before": _tuple([f"d_{n}_before" for n in names]),
        "merge": f"    {merge}\n",
        "weight": f"{_WEIGHTS[over_time]}  # of the loss of each step",
        "total": _TOTALS[over_time],
    }


def _indented(text: str) -> str:
    return textwrap.indent(text.strip("\n"), " " * 4)


def _called(code: str, calls: Mapping[str, str]) -> str:
    """Code with functions called as a library calls them."""
    return re.sub(r"(?<![\w.])(\w+)\(", lambda found: calls.get(found[1], found[0]), code)


def _tuple(names: Sequence[str]) -> str:
    return f"({names[0]},)" if len(names) == 1 else ", ".join(names)


def _returned(names: Sequence[str]) -> str:
    return f"({', '.join(names)}{',' * (len(names) == 1)})"
