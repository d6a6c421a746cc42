"""Calls that are refused, one or more for every place in the sources that refuses something.

`python tests/refusal_cases.py` writes what they are answered with to `tests/refusals.txt`: to be read, then committed.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from spec_cases import FEED_FORWARD, RECURRENT, changed

from bpcli.cli import main

ANSWERS = Path(__file__).with_name("refusals.txt")
Content = str | bytes | Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A call in a folder with some files; a text in `files` is a spec or what else it says, a mapping an .npz."""

    call: str
    files: Mapping[str, Content] = field(default_factory=dict)
    arrange: Callable[[], object] = lambda: None


def answer(case: Case, folder: Path) -> str:
    """Code, place, quoted line and help of every refusal: all but what is said of the value, which Python and the
    system have their own words for."""
    before = Path.cwd()
    try:
        os.chdir(folder)
        for name, content in case.files.items():
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Mapping):
                np.savez(path, **content)
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        case.arrange()
        done = CliRunner().invoke(main, case.call.split(), prog_name="bp", env={"BP_TRACEBACK": "0"})
    finally:
        os.chdir(before)
    assert done.exit_code == 2, (case, done.output)
    lines = done.stderr.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("error["))
    told = "\n".join(lines[first:]).replace(f"{folder.resolve()}{os.sep}", "")
    return re.sub(r"(?m)^(error\[[^]]*\]).*", r"\1", told)


def net(new: str, old: str = "(sum(a) - y_star)**2") -> dict[str, Content]:
    """The recurrent network with something else for its loss, or for another part."""
    return {"net.toml": changed(RECURRENT, old, new)}


def _data(**arrays: np.ndarray) -> dict[str, Content]:
    text = changed(RECURRENT, "T = 7\nbatch = 3", 'file = "d.npz"')
    whole = {"x": np.ones((7, 3, 2)), "y_star": np.ones((7, 3))}
    return {"net.toml": text, "d.npz": {**whole, **arrays}}


def _weights(more: str = "", name: str = "w.npz", **arrays: np.ndarray) -> dict[str, Content]:
    text = changed(RECURRENT, "[data]", f'[weights]\nfile = "{name}"\n{more}[data]')
    whole = {"W": np.ones((4, 4)), "V": np.ones((4, 2)), "b": np.ones(4)}
    return {"net.toml": text, name: {**whole, **arrays}}


def _safetensors(dtype: str) -> bytes:
    header = json.dumps({n: {"dtype": dtype, "shape": [1], "data_offsets": [0, 1]} for n in "WVb"}).encode()
    return len(header).to_bytes(8, "little") + header + b"\0"


def _twice() -> None:
    import warnings
    import zipfile

    with warnings.catch_warnings(), zipfile.ZipFile("w.npz", "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("W.npy", b"")


def _packed() -> None:
    import zipfile

    with zipfile.ZipFile("w.npz") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile("w.npz", "w", zipfile.ZIP_BZIP2) as archive:
        for name, content in held.items():
            archive.writestr(name, content)


def _box(params: str) -> dict[str, Content]:
    methods = "    def loss(self, p): return float(np.sum(p['a']))\n    def grad(self, p): return p\n"
    return {"box.py": f"import numpy as np\nclass B:\n    params = {params}\n{methods}"}


def _function(inputs: str) -> dict[str, Content]:
    rules = "def f(x): return x**2\ndef f_vjp(x, u): return 2 * x * u\n"
    return {"f.py": f"import numpy as np\n{rules}f_inputs = {inputs}\n"}


def _sparse(W: np.ndarray) -> dict[str, Content]:
    files = _weights(W=W)
    text = str(files["net.toml"]).replace('W = ["n", "n"]', 'W = { shape = ["n", "n"], density = "file" }')
    return {**files, "net.toml": text}


def _log(module: str, given: object, output: object) -> str:
    function = {"lstm": "jacobian"}.get(module, "gradient")
    asked = {"id": 1, "kind": "evaluate", "module": module, "function": function, "input": given}
    lines = [{"message": asked}, {"response": {"id": 1, "success": True, "output": output}}]
    return "\n".join(map(json.dumps, lines))


_LSTM = ("main_params", "extra_params", "state", "sequence")
CHECK = "check net.toml"
SPEC: dict[str, Content] = {"net.toml": RECURRENT}
BENCH = {"schema_version": 1, "context": {"command": "bench"}}
RUN = json.dumps({**BENCH, "cells": []})
CELL = {"spec": "a", "method": "b", "backend": "bp", "settings": {}, "grid": {}, "check": {"verdict": "pass"}}
MEASURED = json.dumps({**BENCH, "cells": [CELL]})
FOUND = {"spec": "a", "method": "b", "tensor": "W", "verdict": "pass"}
TWICE = json.dumps({"schema_version": 1, "context": {}, "findings": [FOUND, FOUND]})
JUDGED = json.dumps({"schema_version": 1, "context": {}, "findings": []})
RULE = "class R:\n    def start(self, *_): return 0\n    step = credit = start\n"
GOOD_RULE = (
    "class R:\n    def start(self, *_): return 0\n    def step(self, *_): return 0\n    def credit(self, s, l): "
)
GOOD_RULE += "return l.Mbar.sum(axis=1), l.direct\n"
KERNEL = changed(RECURRENT, "[data]", '[kernel.mine]\nfile = "k.py"\n[data]')
TRUNCATED = changed(KERNEL, 'file = "k.py"', 'file = "k.py"\nas = "tbptt:k1=4,k2=2"')

TRAIN = "train net.toml --steps 2"
CASES: Mapping[str, tuple[Case, ...]] = {
    "the language of equations": tuple(
        Case(CHECK, net(loss))
        for loss in (
            "sum(a) +",
            "sum(a",
            "sum(a))",
            "sum(a) sum(a)",
            "sum(a) + * 2",
            "(* sum(a))",
            "+sum(a)",
            "sum(*a)",
            "sum(a[0:1:2])",
            "sum(a[0:2, 0:1])",
            "sum(a[t])[t-1]",
            "(a + a)[t-1]",
            "a[t-1+1]",
            "a[n-1.5]",
            "sum(a[-1])",
            "sum(a[n/2])",
            "sum(a[n//0:1])",
            "sum(a[0:n**2])",
            "sum(a) // 2",
            "sum(a) if 1 else 2",
            "sum([1, 2])",
            "sum(a) : 2",
            "a.real",
            "a.T()",
            "(a)(2)",
            "sum",
            "t * sum(a)",
            "conv(a, a)",
            "smu(a)",
            "dot(a)",
            "sum(a), 1",
            "01 * sum(a)",
            "1__0 * sum(a)",
            "(a + a)(2)",
            "sum(,a)",
            "sum(a,)",
            "a[,0]",
            "a[0:1:2:3]",
            "1e999 * sum(a)",
            "lambda + sum(a)",
            "'a'",
            "sum(a) @ # 2",
            "(" * 101 + "sum(a)" + ")" * 101,
            "sum(a)" + " + sum(a)" * 1200,
            "sum(a[0:4611686018427387904*4])",
            "sum(a) $ 2",
            "sum(a[1:0])",
            "()",
            "sum()",
            "sum(max(a))",
            "sum(silu(a))",
            "sum(gelu(a))",
            "sum(embedding(W, a))",
            "sum(a(t-1))",
        )
    ),
    "the graph": (
        *(
            Case(CHECK, net(loss))
            for loss in (
                "sum(a) / 0",
                "sum(q)",
                "b[t-1]",
                "q[t-1]",
                "sum(a)**sum(b)",
                "sum(leaky_relu(a, sum(b)))",
                "sum(clip(a, 1, 0))",
                "sum(step(a, sum(b)))",
                "a + x",
                "W + b",
                "b @ a",
                "W @ sum(a)",
                "W @ x",
                "sum(a) @ a",
                "a @ W",
                "a.T",
                "softmax(W)",
                "dot(a, x)",
                "W[0:1]",
                "W[1]",
                "a[x]",
                "sum(a)[0]",
                "W * a",
                "W * a[t-1]",
                "sum(a[0:9])",
                "a",
                "log(0 - 1) * sum(a)",
                "1e200 * 1e200 * sum(a)",
                "1e308 + sum(a) + 1e308",
                "W * sum(a)",
                "h2",
            )
        ),
        Case(CHECK, net('h = "a + b"\na', 'h = "W @ a[t-1] + V @ x + b"\na')),
        Case(CHECK, net('b = ["n", 1]', 'b = ["n"]')),
        Case(CHECK, net('a = "b[0:2]"', 'a = "(1 - alpha) * a[t-1] + alpha * tanh(h)"')),
        Case(CHECK, net('loss = "los"', 'loss = "loss"')),
        Case(
            CHECK,
            {
                "net.toml": changed(FEED_FORWARD, 'x = ["n"]', "")
                .replace('W = ["n", "n"]', "W = { shape = [3, 3], trainable = false }")
                .replace('"W @ x"', '"W @ W"')
            },
        ),
        Case(f"{CHECK} --dtype float32", net("1e300 * sum(a)")),
        Case(CHECK, {"net.toml": changed(FEED_FORWARD, "[equations]", "[data]\nT = 3\n[equations]")}),
        Case(f"{CHECK} --dtype float32", net('b = { shape = ["n"], scale = 1e300 }', 'b = ["n"]')),
        Case(f"{CHECK} --set n=1099511627776", net("sum(a) + sum(concat(b, b))")),
    ),
    "spec files": (
        Case("check nowhere.toml"),
        Case("grad folder -m bptt -o g.npz", {"folder/x": ""}),
        Case("grad nowhere.toml -m bptt -o g.npz"),
        Case("check a.toml", {"a.toml": b"bp = 1\ntitle = '\xff'\n"}),
        Case("check a.toml", {"a.toml": "bp = 1\n" + "#" * (1 << 20)}),
        Case("check a.toml", {"a.toml": "bp = 1\nx = " + "[" * 60 + "]" * 60}),
        Case("check pipe.toml", arrange=lambda: os.mkfifo("pipe.toml")),
        Case("check"),
        Case("check link.toml", arrange=lambda: Path("link.toml").symlink_to("gone.toml")),
    ),
    "files that a spec names": (
        Case(CHECK, net('[weights]\nfile = "../w.npz"\n[data]', "[data]")),
        Case(CHECK, net('[weights]\nfile = "w.npz"\n[data]', "[data]")),
        Case(CHECK, net('[weights]\nfile = "w\\u0000.npz"\n[data]', "[data]")),
        Case(CHECK, net('[weights]\nfile = "w.txt"\n[data]', "[data]") | {"w.txt": ""}),
        Case(CHECK, net('[weights]\nfile = "w.npz"\n[data]', "[data]") | {"w.npz/x": ""}),
        Case(CHECK, net('[weights]\nfile = "w.npz"\n[data]', "[data]") | {"w.npz": "not a zip"}),
        Case(CHECK, net('[weights]\nfile = "w.npz"\n[data]', "[data]") | {"w.npz": {"W": np.ones((4, 4))}}),
        Case(CHECK, _weights(W=np.ones((4, 3)))),
        Case(CHECK, _weights(W=np.full((4, 4), np.nan))),
        Case(CHECK, _weights(W=np.full((4, 4), "text"))),
        Case(CHECK, _weights(W=np.full((4, 4), 1, dtype=object))),
        Case(CHECK, _weights(), arrange=_twice),
        Case(CHECK, _weights(), arrange=_packed),
        Case(
            CHECK,
            net('[weights]\nfile = "w.safetensors"\n[data]', "[data]") | {"w.safetensors": _safetensors("F8_E4M3")},
        ),
        Case(CHECK, net('[weights]\nfile = "w.safetensors"\n[data]', "[data]") | {"w.safetensors": b"\0" * 9}),
        Case(
            CHECK,
            {"net.toml": changed(RECURRENT, "T = 7\nbatch = 3", 'file = "d.npz"\nT = 9'), "d.npz": _data()["d.npz"]},
        ),
        Case(CHECK, _data(x=np.ones((7, 3)))),
        Case(CHECK, _data(x=np.ones((5, 3, 2)))),
        Case(CHECK, _data(y_star=np.full((7, 3), np.inf))),
        Case(CHECK, _data(a=np.ones((3, 3, 4)))),
        Case(CHECK, {"net.toml": changed(RECURRENT, "T = 7", 'task = "radnom"')}),
        Case(CHECK, net('W = { shape = ["n", "n"], scale = 1.7e308 }', 'W = ["n", "n"]')),
        Case(CHECK, net(f"W = {{ shape = [4, 4], density = 0.5, value = {[[1] * 4] * 4} }}", 'W = ["n", "n"]')),
        Case(CHECK, net("log(0 * sum(a))")),
    ),
    "what is differentiated, and limits": (
        Case(f"{CHECK} --wrt q", SPEC),
        Case(f"{CHECK} --wrt W", net('W = { shape = ["n", "n"], trainable = false }', 'W = ["n", "n"]')),
        Case(f"{CHECK} --wrt state", {"net.toml": FEED_FORWARD}),
        Case(f"{CHECK} --max-memory 100", SPEC),
        Case(f"{CHECK} --max-memory 4kB", SPEC),
        Case(f"{CHECK} --max-time 1e-9", SPEC),
        Case(f"{CHECK} --max-memory lots", SPEC),
        Case("bench net.toml --budget nan", SPEC),
        Case(f"{CHECK} --max-time -1", SPEC),
        Case(f"{CHECK} --set n", SPEC),
        Case(f"{CHECK} --set q=1", SPEC),
        Case(f"{CHECK} --set n=0", SPEC),
        Case(f"{CHECK} --set seed=1 --seed 2", SPEC),
        Case(f"{CHECK} --set T=3", {"net.toml": FEED_FORWARD}),
    ),
    "methods": (
        *(
            Case(f"{CHECK} -m {text}", SPEC)
            for text in (
                "bpt",
                "backprop",
                "tbptt:k1=1",
                "tbptt:k1=1,k1=2,k2=3",
                "tbptt:k1=x,k2=2",
                "tbptt:k1=3,k2=2",
                "tbptt:k=3",
                "tbptt:3",
                "ebptt:tau=0",
                "bptt:k=1",
                "central",
            )
        ),
        Case(f"{CHECK} --reference nothing", SPEC),
        Case(f"{CHECK} --mode some", SPEC),
        Case(f"{CHECK} --tolerance 2", SPEC),
    ),
    "options and outputs": (
        Case("chekc"),
        Case("check --no-such-option"),
        Case("grad"),
        Case("export net.toml other.toml -o a.npz", SPEC),
        Case(f"{CHECK} --threads many", SPEC),
        Case(f"{CHECK} --format tabel", SPEC),
        Case(f"{CHECK} --output csv", SPEC),
        Case(f"{CHECK} --output tabel=x", SPEC),
        Case(f"{CHECK} --output csv=-", SPEC),
        Case(f"{CHECK} --output csv=x --output json=x", SPEC),
        Case(f"{CHECK} --output csv=no/where/x", SPEC),
        Case(f"{CHECK} --output csv=net.toml", SPEC),
        Case("grad net.toml -m bptt -o net.toml", SPEC),
        Case("grad net.toml -m bptt -o a.npz --output json=a.npz", SPEC),
        Case("grad net.toml -m bptt -o a.csv", SPEC),
        Case("grad net.toml -m bptt --per-step", SPEC),
        Case("grad net.toml -m rtrl --per-step -o a.txt", SPEC),
        Case("list methods --set n=3"),
        Case("list tasks --for net.toml", SPEC),
        Case("advise net.toml", SPEC),
        Case("advise net.toml --memory 3bananas", SPEC),
        Case("advise net.toml --memory 1MB --bias -1", SPEC),
        Case("advise net.toml --memory 1MB --per-step-time soon", SPEC),
        Case(f"{CHECK} --scheduler tcp://x --local-cluster 2", SPEC),
    ),
    "settings of a project": (
        Case(CHECK, SPEC | {"pyproject.toml": '[tool.bp]\nmehtod = "bptt"\n'}),
        Case(CHECK, SPEC | {"pyproject.toml": "[tool.bp]\nmethod = 3\nthreads = []\n"}),
        Case(CHECK, SPEC | {"pyproject.toml": "[tool.bp]\nmethod = []\n"}),
        Case(CHECK, SPEC | {"pyproject.toml": '[tool.bp]\nmax-memory = "lots"\n'}),
        Case(CHECK, SPEC | {"pyproject.toml": "tool.bp = 3\n"}),
        Case(CHECK, SPEC | {"pyproject.toml": b"[tool.bp]\n# \xff\n"}),
        Case(CHECK, SPEC | {"pyproject.toml": "[tool.bp\n"}),
    ),
    "kernels, saved gradients and objects": (
        Case(f"{CHECK} --kernel k.py:f", SPEC),
        Case(f"{CHECK} --kernel k.py:f", SPEC | {"k.py": "def g(p, i, s): return p\n"}),
        Case(f"{CHECK} --kernel k.py:f", SPEC | {"k.py": "f = 3\n"}),
        Case(f"{CHECK} --kernel k.py:f", SPEC | {"k.py": "def f(:\n"}),
        Case(f"{CHECK} --kernel k.py:f", SPEC | {"k.py": "1 / 0\n"}),
        Case(f"{CHECK} --kernel k.py:f", SPEC | {"k.py/x": ""}),
        Case(f"{CHECK} --kernel k.py:f", SPEC, arrange=lambda: os.mkfifo("k.py")),
        Case(f"{CHECK} --kernel k.txt:f", SPEC | {"k.txt": ""}),
        Case(f"{CHECK} --kernel k.py", SPEC),
        Case(f"{CHECK} --kernel mine", SPEC),
        Case(f"{CHECK} --kernel mien", {"net.toml": KERNEL, "k.py": "def mine(p, i, s): return p\n"}),
        Case(f"{CHECK} --kernel mine", {"net.toml": KERNEL}),
        Case(f"{CHECK} --as bptt", SPEC),
        Case(f"{CHECK} --kernel k.py:f --as bttp", SPEC | {"k.py": "def f(p, i, s): return p\n"}),
        Case(f"{CHECK} --kernel k.py:f --as bptt", {"net.toml": FEED_FORWARD, "k.py": "def f(p, i, s): return p\n"}),
        Case(f"{CHECK} --kernel k.py:f --as uoro", SPEC | {"k.py": "def f(p, i, s): return p\n"}),
        Case(f"{CHECK} --kernel mine", {"net.toml": TRUNCATED, "k.py": "def mine(p, i, s): return p\n"}),
        Case("check box.py:B --as bptt", _box("{'a': np.ones(2)}")),
        Case(f"{CHECK} -m r.py:R", SPEC),
        Case(f"{CHECK} -m r.py:R", SPEC | {"r.py": "S = 1\n"}),
        Case(f"{CHECK} -m r.py:R", SPEC | {"r.py": "class R:\n    def start(self): pass\n"}),
        Case(f"{CHECK} -m r.py:R", SPEC | {"r.py": f"{RULE}    definition = 3\n"}),
        Case(f"{CHECK} -m r.py:R", SPEC | {"r.py": f"{RULE}    definition = 'bttp'\n"}),
        Case(f"{CHECK} -m r.py:R", SPEC | {"r.py": f"{RULE}    definition = 'uoro'\n"}),
        Case(f"{CHECK} -m r.py:R", SPEC | {"r.py": f"{RULE}    definition = 'backprop'\n"}),
        Case(
            "check net.toml -m r.py:R", SPEC | {"r.py": f"{GOOD_RULE}    def definition(self, *_): return 'backprop'\n"}
        ),
        Case("grad net.toml -m r.py:R", SPEC | {"r.py": RULE}),
        Case("bench net.toml -m r.py:R", SPEC),
        Case(f"{CHECK} -m r.py:R", {"net.toml": FEED_FORWARD, "r.py": RULE}),
        Case(f"{CHECK} --gradient g.npz", SPEC),
        Case(f"{CHECK} --gradient g.txt", SPEC | {"g.txt": ""}),
        Case(f"{CHECK} --gradient g.npz", SPEC | {"g.npz": {"W": np.ones(2)}}),
        Case(f"{CHECK} two.toml --gradient g.npz", SPEC | {"two.toml": RECURRENT, "g.npz": {"d_W": np.ones((4, 4))}}),
        Case(f"{CHECK} --power --kernel k.py:f", SPEC | {"k.py": "def f(p, i, s): return p\n"}),
        Case("check box.py", _box("{}")),
        Case("check box.py:C", _box("{}")),
        Case("check box.py:B", _box("3")),
        Case("check box.py:B", _box("{}")),
        Case("check box.py:B", _box("{1: np.ones(2)}")),
        Case("check box.py:B", _box("{'a': 'text'}")),
        Case("check box.py:B", _box("{'a': np.array([np.nan])}")),
        Case("check box.py:B --wrt b", _box("{'a': np.ones(2)}")),
        Case("check box.py:B --order 2", _box("{'a': np.ones(2)}")),
        Case("check box.py:B net.toml --forward", {**_box("{'a': np.ones(2)}"), **SPEC}),
        Case("check f.py:f", _function("(np.ones(3) * np.inf,)")),
        Case("check f.py:f --forward", _function("(np.ones(3),)")),
        Case("check f.py:f", _function("None")),
        Case("check box.py:B --max-time 1e-9", _box("{'a': np.ones(2)}")),
        Case("check box.py:B -m bptt", _box("{'a': np.ones(2)}")),
        Case("check box.py:B", {"box.py": "class B:\n    params = {}\n"}),
        Case("check box.py:B", _box("{'a': type('Bad', (), {'__array__': lambda *a, **k: 1 / 0})()}")),
        Case(f"{CHECK} --gradient g.npz", SPEC | {"g.npz/x": ""}),
    ),
    "sweeps": (
        Case("bench net.toml -g n", SPEC),
        Case("bench net.toml --kernel mine", SPEC),
        Case("bench net.toml --kernel mine.py:f --local-cluster 2", SPEC),
        Case("bench net.toml --kernel mine.py:f", SPEC),
        Case("bench net.toml -g q=1,2", SPEC),
        Case("bench net.toml", net("sum(q)")),
        Case("bench net.toml -g n=4,0", SPEC),
        Case("bench net.toml -g n=4 --set n=8", SPEC),
        Case("bench net.toml -g threads=0", SPEC),
        Case("bench net.toml -m backprop", SPEC),
        Case(
            "bench net.toml -g T="
            + ",".join(map(str, range(1, 400)))
            + " -g batch="
            + ",".join(map(str, range(1, 400))),
            SPEC,
        ),
        Case("bench net.toml --shard 1", SPEC),
        Case("bench net.toml --shard 3/2", SPEC),
        Case("bench net.toml --peer nothing", SPEC),
        Case("bench net.toml", SPEC | {"reports": ""}),
    ),
    "saved runs": (
        Case("merge a.json -o b.json"),
        Case(f"{TRAIN} --until x", SPEC),
        Case(f"{TRAIN} --until loss<nan", SPEC),
        Case(f"{TRAIN} --lr 0", SPEC),
        Case(f"{TRAIN} --clip inf", SPEC),
        Case(f"{TRAIN} --optimizer adan", SPEC),
        Case(f"{TRAIN} --data frech", SPEC),
        Case(f"{TRAIN} -m bptt -m rtrl --save w.npz", SPEC),
        Case(f"{TRAIN} --save w.txt", SPEC),
        Case(f"{TRAIN} --save c.npz --checkpoint c.npz", SPEC),
        Case(f"{TRAIN} --resume c.npz", SPEC),
        Case(f"{TRAIN} --resume c.npz", {**SPEC, "c.npz": {"W": np.ones(2)}}),
        Case(f"{TRAIN} --plot c.pdf", SPEC),
        Case(f"{TRAIN} --data fresh", _data()),
        Case(f"{TRAIN} --watch uoro --set T=1", SPEC),
        Case(f"{TRAIN} --watch backprop", SPEC),
        Case(f"{TRAIN} -m backprop", SPEC),
        Case(f"{TRAIN} --online -m sqrt", SPEC),
        Case(f"{TRAIN} --online", {"net.toml": FEED_FORWARD}),
        Case(f"{TRAIN} --steps 1000000 --max-time 1", SPEC),
        *(
            Case(f"{TRAIN} --set task={task}", SPEC)
            for task in ("cpoy", "copy:size=2", "copy:length=0", "copy:symbols=1", "flip-flop:2", "sine:low=3")
        ),
        Case(f"{TRAIN} --set task=lorenz:dt=1", SPEC),
        Case(f"{TRAIN} --set task=add:lag1=0", SPEC),
        Case(f"{TRAIN} --set task=mimic", {"net.toml": FEED_FORWARD}),
        Case(f"{TRAIN} --set task=copy:length=5", SPEC),
        Case("merge a.json -o b.json", {"a.json": "{"}),
        Case("merge a.json -o b.json", {"a.json": "{}"}),
        Case("merge a.json -o b.json", {"a.json": json.dumps({**BENCH, "cells": [{}]})}),
        Case("merge a.json -o b.json", {"a.json": JUDGED}),
        Case(
            "merge a.json -o b.json",
            {"a.json": json.dumps({**BENCH, "cells": [{k: v for k, v in CELL.items() if k != "grid"}]})},
        ),
        Case(
            "merge a.json b.json -o c.json",
            {"a.json": RUN, "b.json": RUN.replace('"bench"', '"bench", "version": "0"')},
        ),
        Case("merge a.json b.json -o c.json", {"a.json": MEASURED, "b.json": MEASURED}),
        Case("merge a.json -o b.json", {"a.json": json.dumps(json.loads(RUN) | {"errors": [{"code": "odd"}]})}),
        Case("merge a.json a.json -o b.json", {"a.json": RUN}),
        Case("merge a.json -o a.json", {"a.json": RUN}),
        Case("compare a.json b.json"),
        Case("compare a.json b.json", {"a.json": b"\xff"}),
        Case("compare a.json b.json", {"a.json": "{,}"}),
        Case("compare a.json b.json", {"a.json": "[" * 100_000}),
        Case("compare a.json b.json", {"a.json": "{}"}),
        Case("compare a.json b.json", {"a.json": json.dumps({"schema_version": 9, "cells": []})}),
        Case("compare a.json b.json", {"a.json": json.dumps({"schema_version": 1, "cells": [3]})}),
        Case("compare a.json b.json", {"a.json": json.dumps({"schema_version": 1, "steps": []})}),
        Case("compare a.json b.json", {"a.json": RUN, "b.json": JUDGED}),
        Case("compare a.json b.json", {"a.json": TWICE, "b.json": TWICE}),
        Case("compare a.json b.json --write-baseline b.json", {"a.json": RUN, "b.json": RUN}),
        Case("compare a.json b.json --write-baseline c.json --output json=c.json", {"a.json": RUN, "b.json": RUN}),
        Case("reproduce snap-rings"),
        Case("report a.json"),
        Case("report a.json -o p.html"),
        Case("report a.json -o p.html", {"a.json": "{,}"}),
        Case("report a.json -o p.html", {"a.json": b"\xff"}),
        Case("report a.json -o p.html", {"a.json": "{}"}),
        Case("report a.json -o p.html", {"a.json": json.dumps({"schema_version": 9, "cells": []})}),
        Case("report a.json -o p.html", {"a.json": json.dumps({"schema_version": 1, "cells": [{}]})}),
        Case("report a.json -o a.json", {"a.json": RUN}),
        Case("report a.json -o p.pdf", {"a.json": RUN}),
        Case("report a.json -o p.svg --plot p.svg", {"a.json": RUN}),
        Case("report a.json --plot p.gif", {"a.json": RUN}),
        Case("report a.json --plot p.svg", {"a.json": RUN}),
        Case("report net.toml -o p.html", net("0 * sum(b)")),
        Case("ab net.toml --base nowhere --head nowhere", SPEC),
        Case("ab net.toml --base . ", SPEC),
        Case("ab net.toml --aa -g threads=1,2", SPEC),
        Case("ab net.toml --aa --head .", SPEC),
    ),
    "notation of other tools": (Case(f"{CHECK} -m bptt,rtrl", SPEC),),
    "checkpoints and patterns": (
        Case(CHECK, net('W = { shape = ["n", "n"], density = "file" }', 'W = ["n", "n"]')),
        Case(CHECK, net('W = { shape = ["n", "n"], density = "flie" }', 'W = ["n", "n"]')),
        Case(CHECK, _sparse(np.zeros((4, 4)))),
        Case(CHECK, _weights(more='prefix = "rnn."\n')),
        Case(CHECK, _weights(more='map = { W = "W_hh" }\n', **{"rnn.W_hh": np.ones((4, 4))})),
        Case(CHECK, net('[weights]\nfile = "w.pt"\nprefix = 3\n[data]', "[data]")),
    ),
    "gradbench": (
        Case("check --gradbench a.jsonl"),
        Case("check net.toml --gradbench a.jsonl", SPEC),
        Case("check --gradbench a.jsonl", {"a.jsonl": "{"}),
        Case("check --gradbench a.jsonl", {"a.jsonl": "3"}),
        Case("check --gradbench a.jsonl", {"a.jsonl": "{}"}),
        Case("check --gradbench a.jsonl", {"a.jsonl": _log("lse", {"x": []}, [])}),
        Case("check --gradbench a.jsonl", {"a.jsonl": _log("lse", {"x": [1.0]}, [1.0, 2.0])}),
        Case("check --gradbench a.jsonl", {"a.jsonl": _log("lstm", {n: [[1.0]] for n in _LSTM}, [1.0])}),
    ),
    "derivations": (
        Case("explain nowhere.toml"),
        Case("explain net.toml --node aa", SPEC),
        Case("explain net.toml --wrt WW", SPEC),
        Case("explain net.toml -m bpt", SPEC),
        Case("explain net.toml -m backprop", SPEC),
        Case("explain net.toml -m uoro", SPEC),
        Case("explain net.toml -m tbptt:k1=1,k2=2 -m fbptt:3", SPEC),
        Case("explain net.toml --format pdf", SPEC),
        Case("explain net.toml --numbers --max-memory 1kB", SPEC),
    ),
    "new specs": (
        Case("new net.toml", SPEC),
        Case("new net --cell mlp --task copy"),
        Case("new net --cell gro"),
        Case("new net --output torch"),
        Case("new no+name"),
        Case("new net.toml/net", SPEC),
        Case("completion sh"),
    ),
}


def written() -> str:
    """All calls with their answers."""
    parts = []
    for title, cases in CASES.items():
        for number, case in enumerate(cases, 1):
            with tempfile.TemporaryDirectory() as folder:
                parts.append(f"## {title} {number}\n{answer(case, Path(folder))}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    ANSWERS.write_text(written(), encoding="utf-8")
