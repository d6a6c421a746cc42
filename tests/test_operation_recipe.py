"""The recipe for an operation in CONTRIBUTING.md: a copy of the package learns arctan, and checks its gradients."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]
GUIDE = (HOME / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPE = GUIDE[GUIDE.index("**An operation.**") : GUIDE.index("**A method.**")]
# File, a line of it or the beginning of one, and the lines that follow it (or, where they begin with "^", precede it).
EDITS = (
    (
        "bpcli/graph/operations.py",
        '    Operation("step"',
        '    Operation("atan", _same, TEN, ARGS, "arc tangent", math.atan),\n',
    ),
    ("bpcli/spec/language.py", '    dict.fromkeys(("tanh"', '    | {"atan": 1}\n'),
    ("bpcli/tape/instructions.py", "MATMUL,", '^ATAN = OPERATIONS["atan"].opcode\n'),
    (
        "bpcli/kernels/scalar_functions.py",
        "tanh = ",
        """^def atan_real(x):
    return np.arctan(x)


def atan_complex(x):
    return complex(np.arctan(x.real), _first_order(1.0 / (1.0 + x.real * x.real), x.imag))


def atan_slope(x):
    return {slope}


atan = _by_type(atan_real, atan_complex)
""",
    ),
    ("bpcli/kernels/elementwise.py", "    TANH,", "^    ATAN,\n"),
    (
        "bpcli/kernels/elementwise.py",
        "_pull_tanh = ",
        "^atan_into, _pull_atan = entrywise(scalar.atan), pull_by_slope(entrywise(scalar.atan_slope))\n",
    ),
    ("bpcli/kernels/elementwise.py", "        tanh_into(", "    elif op == ATAN:\n        atan_into(x, y, number)\n"),
    (
        "bpcli/kernels/elementwise.py",
        "        _pull_tanh(",
        "    elif op == ATAN:\n        _pull_atan(x, y, g, c, add, number, rounding)\n",
    ),
    ("bpcli/checking/rules.py", '    "tanh": lambda a, n', '    "atan": lambda a, n: np.arctan(a[0]),\n'),
    ("bpcli/checking/rules.py", '    "tanh": lambda v, y, n', '    "atan": lambda v, y, n: 1.0 / (1.0 + v * v),\n'),
    (
        "bpcli/lecture/linear_maps.py",
        '    "tanh": _unary',
        '    "atan": _unary(lambda v, y, n: divide(ONE, add(ONE, _square(v))), RESCALE + "1/(1 + v²)"),\n',
    ),
    ("bpcli/backends/array_graph.py", '    "leaky_relu": ', '    "atan": _of_one,\n'),
    ("tests/naive_dual.py", '    "tanh": ', '    "atan": lambda x: (_lib(x).atan(x), 1.0 / (1.0 + x * x)),\n'),
)
SPEC = """bp = 1
[inputs]
x = [2]
[params]
W = [2, 2]
b = [2]
[state]
a = [2]
[equations]
a = "atan(W @ a[t-1] + b) + x * atan(0.5)"
loss = "sum(a**2)"
[data]
T = 3
batch = 2
"""
CODE = """
import sys
from pathlib import Path
from kernel_cases import distance, expected, gradient, problem_of
from bpcli.cli import main
problem = problem_of(Path(sys.argv[1]))
print(*(distance(gradient(problem, m).arrays, expected(problem, m)) for m in ("bptt", "rtrl")))
assert 0 == main(["explain", sys.argv[1], "--numbers"], standalone_mode=False)
main(["check", sys.argv[1], "-m", "bptt", "--reference", "complex-step", "--quiet"])
"""


def learn(folder: Path, slope: str) -> None:
    """Follow the recipe in a copy of the package and of the tests' twins."""
    shutil.copytree(HOME / "bpcli", folder / "bpcli")  # with its bytecode, which takes longer to compile than to run
    shutil.copytree(HOME / "specs", folder / "specs")
    (folder / "tests").mkdir()
    for path in (HOME / "tests").glob("*.py"):
        if path.name.startswith(("naive", "kernel_cases")):
            shutil.copy(path, folder / "tests")
    for name, beginning, lines in EDITS:
        text = (folder / name).read_text(encoding="utf-8")
        found = [line for line in text.splitlines(keepends=True) if line.startswith(beginning)]
        assert 1 == len(found), (name, beginning)
        new = lines.replace("{slope}", slope)
        new = new[1:] + found[0] if new.startswith("^") else found[0] + new
        (folder / name).write_text(text.replace(found[0], new), encoding="utf-8")


@pytest.mark.parametrize(("slope", "right"), [("1.0 / (1.0 + x * x)", True), ("1.0 / (1.0 + x)", False)])
def test_a_copy_learns_a_function(tmp_path: Path, slope: str, right: bool) -> None:
    """BPTT and RTRL equal the loop-only twin, and the check agrees; not so with a wrong slope."""
    learn(tmp_path, slope)
    (tmp_path / "spec.toml").write_text(SPEC, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), str(tmp_path / "tests")])
    run = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "spec.toml")],
        env={**os.environ, "PYTHONPATH": paths, "NUMBA_DISABLE_JIT": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert int(not right) == run.returncode, run.stderr
    distances = [float(word) for word in run.stdout.splitlines()[0].split()]
    assert all((d < 1e-12) == right for d in distances), distances


def test_the_recipe_names_every_file() -> None:
    """The files of the edits above, and that of the table of kernel tests."""
    files = {name for name, *_ in EDITS} | {"tests/test_kernels_operations.py"}
    assert [] == [name for name in sorted(files) if name not in RECIPE]
