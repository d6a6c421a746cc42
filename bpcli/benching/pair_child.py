"""A process that runs cells for another: it answers requests, a JSON object a line, until its input ends.

`python -P -m bpcli.benching.pair_child` first says who it is. Then `describe` judges a cell's gradient and gives its
row, `load` makes it the one that runs, `calibrate` tells how many calls make a block, and `run` how long calls take.
What goes wrong is answered as `{"error": …}`.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

PROTOCOL = 1


def _idle() -> None:
    """What runs before anything is loaded."""


@dataclass
class Server:
    """The cell that is loaded, as a function without arguments."""

    work: Any = _idle

    def describe(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """The cell's row: the check of its gradient, and what is deterministic."""
        from bpcli.benching.measure import Order, Session
        from bpcli.benching.store import OURS
        from bpcli.benching.target import digest

        target = _target(cell)
        sha256 = digest(target.open(cell["settings"]), target.path)
        order = Order(target, sha256, cell["settings"], cell["method"], OURS, int(cell["threads"]))
        report = Session().answer({"do": "prepare", "order": order.plain()})
        names = {"spec": cell["name"], "method": cell["method"], "backend": OURS}
        return {"row": {**names, "grid": cell["grid"], "settings": cell["settings"], **report}}

    def load(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Make the cell, or a kernel with none of bp's code, the one that runs; one call warms it up."""
        if "control" in cell:
            self.work = _control(str(cell["control"]))
        else:
            problem, call = _open(cell)
            self.work = lambda: call.gradient(problem)
        self.work()
        gc.collect()
        return {}

    def calibrate(self) -> dict[str, Any]:
        """How many calls make a block."""
        from bpcli.benching import clock

        return {"calls": clock.calibrate(self.work)}

    def run(self, calls: int) -> dict[str, Any]:
        """Seconds that the calls take, after one that is not timed."""
        from bpcli.benching import clock

        self.work()
        return {"seconds": clock.block(self.work, calls)}


def _open(cell: Mapping[str, Any]) -> Any:
    """The problem of a cell and the method's call."""
    from bpcli.benching import checks
    from bpcli.problem.draw import draw

    return draw(_target(cell).open(cell["settings"])), checks.parse(cell["method"])


def _target(cell: Mapping[str, Any]) -> Any:
    from bpcli.benching.target import Target
    from bpcli.problem.limits import Limits

    limits = Limits(**cell["limits"])
    return Target(cell["path"], cell["name"], cell["overrides"], tuple(cell["wrt"]), limits)


def _control(name: str) -> Any:
    """A product of matrices or a copy, by NumPy alone."""
    import numpy as np

    if name == "gemm":
        a = np.random.default_rng(0).standard_normal((192, 192))
        out = np.empty_like(a)
        return lambda: np.dot(a, a, out)
    source = np.zeros(1 << 22, dtype=np.uint8)
    target = np.empty_like(source)
    return lambda: np.copyto(target, source)


def _hello() -> dict[str, Any]:
    import bpcli
    from bpcli.benching.machine import describe

    return {"protocol": PROTOCOL, "package": str(Path(bpcli.__file__).parent), **dataclasses.asdict(describe())}


def _answer(server: Server, line: str) -> dict[str, Any]:
    """The answer to one request; whatever goes wrong is part of it."""
    from bpcli.errors import BpError

    known: dict[str, Callable[..., dict[str, Any]]] = {
        "describe": server.describe,
        "load": server.load,
        "calibrate": server.calibrate,
        "run": server.run,
    }
    try:
        request = json.loads(line)
        return known[request.pop("do")](**request)
    except BpError as error:
        return {"error": error.diagnostics[0].what, "help": error.diagnostics[0].help}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer until the requests end."""
    gc.disable()  # `load` collects; the clock runs in between
    server = Server()
    answers.write(json.dumps(_hello()) + "\n")
    answers.flush()
    for line in requests:
        answers.write(json.dumps(_answer(server, line)) + "\n")
        answers.flush()


def main() -> None:
    """Serve on stdin and stdout; what anything else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
