"""Every refusal of the sources: a call that makes it, and its code, place, quoted line and help."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from refusal_cases import ANSWERS, CASES, answer
from refusal_sites import PACKAGE, Site, sites, watched
from spec_cases import RECURRENT, changed, load_text, unmarked
from test_spec_refusals import ONE_CHANGE

from bpcli.errors import Diagnostic, nearest

HERE = Path(__file__).parent
GUARD = "a guard: whatever leads there is refused before"
CLUSTER, PAIR, JOURNAL = "test_cluster.py", "test_cli_ab.py", "test_bench_journal.py"
TORCH, GRADBENCH = "test_torch_checkpoints.py", "test_gradbench.py"
KERNEL = "test_bench_run.py, in a process that measures"
ELSEWHERE: dict[Site, str] = {
    ("bench.journal.Journal.__init__", "unwritable"): "root may write everywhere",
    ("bench.journal.Journal._reopened", "other-run"): JOURNAL,
    ("bench.journal.Journal._parsed", "damaged"): JOURNAL,
    ("bench.worker.Session.run", "unsteady"): GUARD,
    ("bench.user_kernel.UserKernel.gradient_function.gradient", "user-code"): KERNEL,
    ("bench.worker._open", "changed"): "test_bench_run.py, in a process that measures",
    ("bench.worker_process.Worker.__init__", "no-environment"): "takes an interpreter that goes while it is started",
    ("bench.worker_process.Worker._refuse", "environment"): PAIR,
    ("bench.worker_process.Worker.ask", ""): "what a process that measures refuses",
    ("bench.worker_process.Worker._lost", "process-lost"): JOURNAL,
    ("bench.saved_runs._text", "too-large"): "takes a file of 1 GiB",
    ("problem.setup._content", "unreadable-file"): "takes a file that goes while it is read",
    ("checking.sources.user_process.Process._greet", "process-lost"): "takes a Python that does not start",
    ("checking.sources.user_process.Process.start", "unsupported"): "takes Windows",
    ("checking.sources.user_file.load", "bad-file"): GUARD,
    (
        "checking.sources.user_file.read_source",
        "unreadable-file 3",
    ): "root may read everything, other causes depend on Python",
    ("cluster.connect.Cluster.require", ""): CLUSTER,
    ("cluster.connect.Cluster.results", "no-workers"): CLUSTER,
    ("cluster.connect.Cluster._answer", "worker-lost"): CLUSTER,
    ("cluster.connect.Cluster._answer", "internal"): CLUSTER,
    ("cluster.connect.Cluster._answer", "cluster-lost"): CLUSTER,
    ("cluster.connect.connect", "no-scheduler"): CLUSTER,
    ("cluster.connect._ready", "no-workers"): CLUSTER,
    ("cluster.connect._refuse_unfit", "wrong-versions"): CLUSTER,
    ("cluster.connect._refuse_unfit", "wrong-versions 2"): CLUSTER,
    ("cluster.connect.require_same", "other-files"): CLUSTER,
    ("cluster.connect.require_same", "other-files 2"): CLUSTER,
    ("cluster.connect.answered", "memory"): CLUSTER,
    ("cluster.connect.answered", "internal"): CLUSTER,
    ("api.arguments.validated.call", "usage"): "test_api.py",
    ("methods._online.credited", "bad-step-gradient"): "test_recursions.py",
    ("api.benchmark._listed", "usage"): "test_api.py",
    ("api.check_functions._report", "usage"): "test_checking_functions.py",
    ("api.loaded.plain_setting", "usage"): "test_api.py",
    ("api.loaded.LoadedProblem.forward", "unknown-name"): "test_api.py",
    ("api.loaded.LoadedProblem.local_derivatives", "no-state"): "test_api.py",
    ("api.loaded.LoadedProblem.local_derivatives", "out-of-range"): "test_api.py",
    ("api.method_selection.check_options", "usage"): "test_api.py",
    ("api.check_runner._chosen", "reference-refused"): "test_backends_oracle.py",
    ("api.method_selection.judged", "reference-refused"): "test_backends_oracle.py",
    ("commands.check._reference", ""): "test_backends_oracle.py",
    ("commands.shared_options.opened_cluster", "missing-extra"): CLUSTER,
    ("commands.compare.compare", "incomparable"): "test_cli_compare.py",
    ("commands.failures.translate", "interrupted"): "test_cli_main.py",
    ("commands.failures.translate", "usage"): GUARD,
    ("commands.failures.translate", "memory"): "test_cli_main.py",
    ("commands.failures.translate", "system"): "test_cli_main.py",
    ("commands.failures._internal", "internal"): "test_cli_main.py",
    ("commands.specs.packaged_spec", "no-such-file"): "test_cli_files.py",
    ("commands.report.read_run", "not-a-run"): "takes rows of another version of bp",
    ("commands.report._diagnostic", ""): "test_report.py",
    ("commands.settings._read", "unreadable-file"): "root may read everything",
    ("commands.settings._refuse", "toml-syntax"): GUARD,
    ("commands.specs.find", "unreadable-file"): "the cause depends on Python",
    ("runtime.kernel_loader.prepare", "kernels"): "test_kernels_library.py",
    ("kernels.simd.chosen_path", "vectors"): "test_kernels_library.py",
    ("runtime.kernel_loader.ThreadSettings.__init__", "threads"): "test_kernels_library.py",
    ("spec.options._value", "bad-option"): "methods of other packages: test_cli_methods.py",
    ("methods._installed.load", "plug-in"): "test_methods_installed.py",
    ("methods._installed._refuse", "plug-in"): "test_methods_installed.py",
    ("backends.__init__.get", "peer-missing"): "test_backends.py",
    ("backends.torch._gradcheck.gradient", "gradcheck"): "takes PyTorch",
    ("problem.draw._by_task", "unknown-name"): "test_problem_draw.py",
    ("problem.draw._by_task", "shape-mismatch"): "test_problem_draw.py",
    ("tasks.__init__.role_shape", "unknown-name"): "test_tasks.py",
    ("api.train_runner.open_training", "usage"): "the API: test_training.py",
    ("training.checkpoint.read_checkpoint", "usage 2"): "test_cli_train.py",
    ("training.checkpoint._restore", "usage"): "test_cli_train.py",
    ("problem.torch_checkpoint.stored_tensors", "missing-extra"): TORCH,
    ("problem.torch_checkpoint.stored_tensors", "bad-file"): TORCH,
    ("problem.torch_checkpoint.stored_tensors", "bad-file 2"): TORCH,
    ("problem.torch_checkpoint.stored_tensors", "bad-file 3"): TORCH,
    ("problem.torch_checkpoint.stored_tensors", "bad-file 4"): TORCH,
    ("problem.torch_checkpoint.stored_tensors", "bad-file 5"): TORCH,
    ("problem.array_files._TorchFile._open", ""): TORCH,
    ("problem.array_files._TorchFile._open", "bad-dtype"): TORCH,
    ("api.gradbench_evals.eval_of", "unknown-module"): GRADBENCH,
    ("commands.gradbench._evaluated", "unknown-function"): GRADBENCH,
    ("commands.gradbench._function", "method-refused"): GRADBENCH,
    ("problem.array_files.FileErrors.guard", "unreadable-file"): "root may read everything",
    ("problem.array_files.read_as", "shape-mismatch"): "takes a file that changes: test_problem_draw.py",
    ("runtime.evaluation._refuse", "not-finite 2"): GUARD,
    ("references.__init__.get", "unknown-reference"): "test_references_registry.py",
    ("render.page.figure.need_matplotlib", "missing-extra"): "test_report.py",
    ("spec.equations._Reader.too_deep", "too-deep"): GUARD,
    ("spec.equations.evaluate", "not-whole"): GUARD,
}
"""Places that no call in a folder with a few files reaches, with the test that does or the reason why none can."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], set[Site]]:
    """The answer to every call by its title, and the places that these and the mistakes in specs came through."""
    with pytest.MonkeyPatch.context() as patch, watched(patch) as hit:
        for old, new, *_ in ONE_CHANGE:
            load_text(tmp_path_factory.mktemp("spec"), unmarked(changed(RECURRENT, old, new))[0])
        answers = {
            f"{title} {number}": answer(case, tmp_path_factory.mktemp("call"))
            for title, cases in CASES.items()
            for number, case in enumerate(cases, 1)
        }
    return answers, hit


def _kept() -> dict[str, str]:
    """The answers in the file, by title."""
    parts = ANSWERS.read_text(encoding="utf-8").split("## ")[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts}


def test_what_every_call_is_answered(told):
    """Code, place, line and help are those of `refusals.txt`, which `python tests/refusal_cases.py` writes."""
    kept = _kept()
    answers = {title: text.strip() for title, text in told[0].items()}
    assert kept.keys() == answers.keys()
    assert [] == [(title, kept[title], text) for title, text in answers.items() if kept[title] != text]


def test_every_refusal_says_what_to_do(told):
    """As many lines of help as errors, none of them empty."""
    for title, text in told[0].items():
        assert len(re.findall(r"(?m)^error\[[a-z0-9-]+\]$", text)) == len(re.findall(r"(?m)^help: \S", text)), title


def test_every_place_that_refuses_is_here(told):
    """All of them are in the table of calls, in that of mistakes in specs, or in that of places tested elsewhere."""
    missing = set(sites()) - told[1] - set(ELSEWHERE)
    assert set() == missing, "add a call to tests/refusal_cases.py"
    assert set() == set(ELSEWHERE) - set(sites()), "these places are gone"
    assert set() == set(ELSEWHERE) & told[1], "these are in the table of calls now"
    named = {name for why in ELSEWHERE.values() for name in re.findall(r"test_\w+\.py", why)}
    assert [] == [name for name in named if not (HERE / name).exists()]


def test_no_place_leaves_the_help_out():
    """The field is required, none is written as empty text, and `nearest` has help for a name without neighbours."""
    with pytest.raises(TypeError, match="help"):
        Diagnostic("code", "what")
    calls = [
        (f"{path.relative_to(PACKAGE)}:{call.lineno}", call)
        for path in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
    ]
    words = ("help", "remedy")
    empty = [w for w, call in calls for k in call.keywords if k.arg in words and not _words(k.value)]
    # mypy sees a call without help, but not in kernels.
    without = [w for w, call in calls if _takes_help(call) and "help" not in [k.arg for k in call.keywords]]
    assert [] == without
    assert [] == empty
    assert nearest("x", [])
    assert not _words(ast.parse("a if b else ''", mode="eval").body)


def _takes_help(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr == "add" and ast.unparse(call.func).endswith("collector.add")
    return isinstance(call.func, ast.Name) and call.func.id in ("fail", "Diagnostic")


def _words(value: ast.expr) -> bool:
    """Whether an expression is non-empty text in each of its branches."""
    if isinstance(value, ast.IfExp):
        return _words(value.body) and _words(value.orelse)
    if isinstance(value, ast.BoolOp):
        return _words(value.values[-1])
    return not (isinstance(value, ast.Constant) and not value.value)
