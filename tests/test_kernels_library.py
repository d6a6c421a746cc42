"""The library of compiled kernels: where they are kept, what is compiled when, and the same kernels as plain Python."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import SMALL, SPECS, by_copies, distance, expected, gradient, problem_of

from bpcli.errors import BpError
from bpcli.kernels import blas, simd
from bpcli.runtime import kernel_cache as folder
from bpcli.runtime import kernel_loader as library

PACKAGE = Path(folder.__file__).parents[1]
CODE = """
import sys
from pathlib import Path
import numpy as np
from kernel_cases import SMALL, SPECS, by_copies, gradient, problem_of
from bpcli.runtime import kernel_loader as library
library.announce = lambda text: print(text)
found = {}
for name, methods in %r:
    problem = problem_of(SPECS / f"{name}.toml", {**SMALL, "n": 2, "T": 3, "batch": 2})
    for method in methods:
        found |= {f"{name} {method} {x}": v for x, v in gradient(problem, method).arrays.items()}
        found |= {f"{name} {method} {x} by copies": v for x, v in by_copies(problem, method, 1e-40j).items()}
np.savez(sys.argv[1], **found)
"""
WORK = (("gru", ("bptt", "rtrl", "tbptt:k1=1,k2=2")), ("tied_autoencoder", ("backprop",)))


def started(out: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A process that takes some gradients, writes them to `out`, and prints what is announced."""
    paths = os.pathsep.join([str(PACKAGE.parent), str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-c", CODE % (WORK,), str(out)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str], out: Path) -> tuple[str, dict[str, np.ndarray]]:
    """What it announced, and its gradients."""
    announced, errors = process.communicate(timeout=600)
    assert 0 == process.returncode, errors
    with np.load(out) as arrays:
        return announced, dict(arrays)


def ours() -> dict[str, np.ndarray]:
    """The same gradients by this process."""
    found = {}
    for name, methods in WORK:
        problem = problem_of(SPECS / f"{name}.toml", {**SMALL, "n": 2, "T": 3, "batch": 2})
        for method in methods:
            assert distance(gradient(problem, method).arrays, expected(problem, method)) < 1e-12
            found |= {f"{name} {method} {x}": v for x, v in gradient(problem, method).arrays.items()}
            found |= {f"{name} {method} {x} by copies": v for x, v in by_copies(problem, method, 1e-40j).items()}
    return found


def test_kernels_as_plain_python(tmp_path: Path) -> None:
    """Without a compiler the same sources give the same numbers to rounding, complex ones too; nothing is kept."""
    environment = {"NUMBA_DISABLE_JIT": "1", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    out = tmp_path / "plain.npz"
    announced, plain = finished(started(out, environment), out)
    assert distance(plain, ours()) < 1e-12
    assert ("", []) == (announced, list(tmp_path.rglob("*.o")))


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    """What is on disk is used as it is, and gives the same bits."""
    first = ours()
    before = files(folder.cache_folder())
    out = tmp_path / "second.npz"
    announced, second = finished(started(out, {"NUMBA_CACHE_DIR": str(folder.cache_folder().parents[1])}), out)
    assert "" == announced
    assert before == files(folder.cache_folder())
    assert all(np.array_equal(values, second[name]) for name, values in first.items())


def files(top: Path) -> dict[str, int]:
    """Every file of compiled code, with when it was written."""
    return {str(path): path.stat().st_mtime_ns for path in top.rglob("*.o")}


@pytest.mark.slow
def test_two_processes_start_from_nothing(tmp_path: Path) -> None:
    """Both compile into the same empty folder at the same time, and both get it right; a third finds all of it."""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    outs = [tmp_path / "0.npz", tmp_path / "1.npz", tmp_path / "2.npz"]
    running = [started(out, environment) for out in outs[:2]]
    answers = [finished(process, out) for process, out in zip(running, outs, strict=False)]
    assert all("compiling" in announced for announced, _ in answers)
    answers.append(finished(started(outs[2], environment), outs[2]))
    assert "" == answers[2][0]
    want = ours()
    assert all(distance(arrays, want) == 0 for _, arrays in answers)


def imports(module: str) -> set[str]:
    """The modules of the package that a module imports, those in rooms' __init__ apart."""
    syntax = ast.parse((PACKAGE.parent / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8"))
    froms = [node for node in ast.walk(syntax) if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{alias.name}" for node in froms for alias in node.names} | {str(n.module) for n in froms}
    return {
        n
        for n in names
        if n.startswith("bpcli.") and (PACKAGE.parent / Path(*n.split("."))).with_suffix(".py").exists()
    }


def test_the_passes_left_out_are_there() -> None:
    """A pass of another name, in another Numba, would be run again for nothing."""
    inside = "import bpcli.runtime.compiling as c; from numba.core import typed_passes as t, untyped_passes as u; "
    run = [sys.executable, "-c", inside + "print([n for n in c._NEEDLESS if not (hasattr(t, n) or hasattr(u, n))])"]
    assert "[]" == subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()


def test_the_folder_knows_all_sources() -> None:
    """Everything that compiled code is made of counts in the folder's name, and nothing else does."""
    todo = [place.split(":")[0] for place in library.KERNELS.values()]
    found = {*todo, "bpcli.runtime.compiling"}
    while todo:
        new = imports(todo.pop()) - found
        found |= new
        todo += new
    listed = {path.relative_to(PACKAGE.parent).with_suffix("") for path in folder.sources(PACKAGE)}
    assert sorted({*found, "bpcli.kernels.__init__"}) == sorted(".".join(path.parts) for path in listed)


@pytest.mark.parametrize("source", ["kernels/reverse.py", "kernels/scalar_functions.py", "graph/operations.py", ""])
def test_the_folder_changes_with_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Another line in any source is another folder; the same sources elsewhere are the same."""
    for room in ("kernels", "graph", "tape", "runtime"):
        shutil.copytree(PACKAGE / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACKAGE / "errors.py", tmp_path)
    if source:
        with (tmp_path / source).open("a", encoding="utf-8") as file:
            file.write("# changed\n")
    before = folder.cache_folder.__wrapped__().name
    monkeypatch.setattr(folder, "__file__", str(tmp_path / "runtime" / "kernel_cache.py"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    found = folder.cache_folder.__wrapped__()
    assert (source == "") == (before == found.name)
    assert tmp_path / "cache" / "bp" == found.parent


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next place is taken, in the end one for this run alone."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(blocked))
    monkeypatch.setattr(folder.tempfile, "mkdtemp", lambda prefix: str(tmp_path / prefix))
    found = folder.cache_folder.__wrapped__()
    assert found.is_dir()
    assert (tmp_path / "bp-kernels-", "bp") == (found.parents[1], found.parent.name)
    assert str(tmp_path / "bp-kernels-") == os.environ["NUMBA_CACHE_DIR"]
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(blocked))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tmp_path / "xdg" == folder.cache_folder.__wrapped__().parents[1]


OTHER = 12345
"""A user that is neither this one nor root."""


def _world_writable(root: Path) -> None:
    root.chmod(0o777)


def _group_writable_above(root: Path) -> None:
    root.parent.chmod(0o775)


def _files_of_another(root: Path) -> None:
    (root / "bp").mkdir()
    os.chown(root / "bp", OTHER, OTHER)


def _link_in_an_open_folder(root: Path) -> None:
    target = root.parent / "target"
    target.mkdir()
    root.rmdir()
    (root.parent / "open").mkdir()
    (root.parent / "open" / "link").symlink_to(target)
    root.symlink_to(root.parent / "open" / "link")
    (root.parent / "open").chmod(0o777)


def _link_of_another(root: Path) -> None:
    target = root.parent / "target"
    target.mkdir()
    root.rmdir()
    root.symlink_to(target)
    os.lchown(root, OTHER, OTHER)


def _private(root: Path) -> None:
    root.chmod(0o700)


def _in_a_sticky_folder(root: Path) -> None:
    root.parent.chmod(0o1777)


def _own_link(root: Path) -> None:
    target = root.parent / "target"
    target.mkdir()
    root.rmdir()
    root.symlink_to(Path("..", root.parent.name, "target"))


def _not_there(root: Path) -> None:
    root.rmdir()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root alone gives files to others")
@pytest.mark.parametrize(
    ("arrange", "words"),
    [
        (_world_writable, "others may write to"),
        (_group_writable_above, "others may write to"),
        (_files_of_another, "belongs to another user"),
        (_link_in_an_open_folder, "others may write to"),
        (_link_of_another, "belongs to another user"),
        (_private, ""),
        (_in_a_sticky_folder, ""),
        (_own_link, ""),
        (_not_there, ""),
    ],
)
def test_a_folder_that_others_may_write_to(tmp_path, monkeypatch, capsys, arrange, words) -> None:
    """Is left for the next one, with a note, and nothing is put there; one that is the user's own is taken."""
    shared, own = tmp_path / "above" / "shared", tmp_path / "own"
    shared.mkdir(parents=True)
    own.mkdir()
    arrange(shared)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(shared))
    monkeypatch.setenv("XDG_CACHE_HOME", str(own))
    umask = os.umask(0o002)
    try:
        found = folder.cache_folder.__wrapped__()
        again = folder.cache_folder.__wrapped__()
    finally:
        os.umask(umask)
    said = capsys.readouterr().err
    assert (own if words else shared) == found.parents[1]
    assert found == again
    assert (words in said and str(shared) in said) if words else said == ""
    assert "" == folder.exposed(found)
    assert 0o700 == found.stat().st_mode & 0o777
    if words:
        assert [] == list(shared.rglob("*.o"))
        assert 1 == said.count("NUMBA_CACHE_DIR names another"), "the second time it is known"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights are other ones there")
def test_without_a_folder_of_ones_own(tmp_path, monkeypatch, capsys) -> None:
    """Kernels are kept in a private folder for this run, which its end removes."""
    tmp_path.chmod(0o777)
    code = "from bpcli.runtime.kernel_cache import cache_folder; print(cache_folder())"
    paths = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))
    places = dict.fromkeys(("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"), str(tmp_path))
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, env={**os.environ, "PYTHONPATH": paths, **places}, capture_output=True, text=True, check=True
    )
    home = Path(done.stdout.strip()).parents[1]
    assert home.name.startswith("bp-kernels-")
    assert not home.exists()
    assert f"others may write to {tmp_path}" in done.stderr
    assert [] == list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root alone gives files to others")
@pytest.mark.parametrize("case", ["open", "group", "another's", "link", "own"])
def test_a_file_that_others_may_have_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Is no kernel, and is replaced; what was written under any umask is one."""
    monkeypatch.setattr(folder, "cache_folder", lambda: tmp_path)
    request = ("forward", np.dtype(np.float64))
    umask = os.umask(0)
    try:
        folder.write_object(request, b"code")
    finally:
        os.umask(umask)
    path = folder.object_file(request)
    match case:
        case "open" | "group":
            path.chmod(0o646 if case == "open" else 0o664)
        case "another's":
            os.chown(path, OTHER, OTHER)
        case "link":
            target = tmp_path / "elsewhere"
            target.mkdir()
            path.rename(target / "code")
            path.symlink_to(target / "code")
            target.chmod(0o777)
    assert ([] if case == "own" else [request]) == library.missing([request])
    folder.write_object(request, b"code")
    assert b"code" == folder.read_object(request)


def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel counts as compiled where its object file stands; nothing else is compiled."""
    monkeypatch.setattr(folder, "cache_folder", lambda: tmp_path)
    said: list[str] = []
    monkeypatch.setattr(library, "announce", said.append)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("nothing is to be compiled"))
    requests = [("forward", np.dtype(np.float64)), ("reverse", np.dtype(np.float64)), ("forward", np.dtype(np.float64))]
    assert requests[:2] == library.missing(requests)
    folder.write_object(requests[0], b"code")
    assert b"code" == folder.read_object(requests[0])
    assert requests[1:2] == library.missing(requests)
    library.prepare(requests[:1])
    assert ([], ["forward-float64.o"]) == (said, [path.name for path in tmp_path.iterdir()])


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_damaged_file_is_no_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    """What was cut short by a full disk or a power loss is compiled again, not run."""
    monkeypatch.setattr(folder, "cache_folder", lambda: tmp_path)
    request = ("forward", np.dtype(np.float64))
    folder.write_object(request, b"code")
    path = folder.object_file(request)
    path.write_bytes(path.read_bytes()[:keep])
    assert [request] == library.missing([request])


def test_another_order_of_jobs() -> None:
    """Jobs that share nothing give the same bits, whichever comes first."""
    problem = problem_of(SPECS / "gru.toml", {"n": 20, "T": 30, "batch": 40})
    first = gradient(problem, "bptt").arrays
    with library.reordered():
        second = gradient(problem, "bptt").arrays
    assert all(np.array_equal(values, second[name]) for name, values in first.items())


@pytest.mark.parametrize(("wish", "count"), [("3", 3), ("0", None), ("-1", None), ("many", None)])
def test_how_many_threads(monkeypatch: pytest.MonkeyPatch, wish: str, count: int | None) -> None:
    """NUMBA_NUM_THREADS counts, and has to be a number."""
    monkeypatch.setenv("NUMBA_NUM_THREADS", wish)
    if count is None:
        with pytest.raises(BpError, match="must be a number of threads"):
            library.ThreadSettings()
    else:
        assert count == library.ThreadSettings().count


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is one clear error with the compiler's last words; no file is left."""
    monkeypatch.setattr(folder, "cache_folder", lambda: tmp_path)
    with pytest.raises(BpError, match="could not be compiled: KeyError: 'unheard-of'"):
        library.prepare([("unheard-of", np.dtype(np.float64))])
    assert [] == list(tmp_path.iterdir())


PRODUCTS = [(m, n, k) for m in (1, 2, 5) for n in (1, 3) for k in (1, 4)]


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128"])
@pytest.mark.parametrize(("m", "n", "k"), PRODUCTS)
def test_the_numpy_product_at_offsets(m: int, n: int, k: int, dtype: str) -> None:
    """The stand-in for BLAS: all transpositions, rows apart, offsets, with and without adding."""
    rng = np.random.default_rng(3)
    flat = [rng.normal(size=200).astype(dtype) for _ in range(3)]
    for ta, tb, add in np.ndindex(2, 2, 2):
        A, B, C = (x.copy() for x in flat)
        shape_a, shape_b = ((k, m) if ta else (m, k)), ((n, k) if tb else (k, n))
        left = A[3 : 3 + shape_a[0] * 7].reshape(-1, 7)[:, : shape_a[1]]
        right = B[5 : 5 + shape_b[0] * 6].reshape(-1, 6)[:, : shape_b[1]]
        want = (left.T if ta else left) @ (right.T if tb else right)
        want = want + (C[2 : 2 + m * 8].reshape(-1, 8)[:, :n] if add else 0)
        blas.numpy_gemm(bool(ta), bool(tb), m, n, k, A, 3, 7, B, 5, 6, bool(add), C, 2, 8)
        got = C[2 : 2 + m * 8].reshape(-1, 8)
        assert np.allclose(want, got[:, :n], rtol=1e-5, atol=1e-6)
        assert np.array_equal(flat[2][2 : 2 + m * 8].reshape(-1, 8)[:, n:], got[:, n:])


AVX512 = {"avx512f": True, "avx512vl": True, "avx2": True, "fma": True, "sse2": True, "evex512": False}
AVX2 = {"avx512f": False, "avx2": True, "fma": True, "sse2": True}


@pytest.mark.parametrize(
    ("features", "wish", "path"),
    [
        (AVX512, "", "avx512"),
        (AVX512, "avx2", "avx2"),
        (AVX512, "sse2", "sse2"),
        (AVX2, "", "avx2"),
        ({"sse2": True}, "", "sse2"),
        ({"neon": True}, "", "native"),
    ],
)
def test_the_vector_path(features: dict[str, bool], wish: str, path: str) -> None:
    """The widest, or that of BP_VECTORS."""
    assert path == simd.chosen_path(features, wish)


@pytest.mark.parametrize(("features", "wish"), [(AVX2, "avx512"), ({"neon": True}, "avx2"), (AVX512, "AVX2")])
def test_a_path_that_the_processor_lacks(features: dict[str, bool], wish: str) -> None:
    """Is refused, with those that it has."""
    with pytest.raises(BpError, match="which this processor does not support") as refused:
        simd.chosen_path(features, wish)
    assert all(path in (refused.value.diagnostics[0].help or "") for path in simd.vector_paths(features))


def test_code_of_a_path_has_no_wider_vectors() -> None:
    """The features that it is compiled for leave them out, and keep what else there is."""
    has = simd.target("avx2", AVX512)[1].split(",")
    assert {"+avx2", "+fma", "-avx512f", "-avx512vl", "-evex512"} <= {*has}
    assert not any(name.startswith("+avx512") for name in has)
    assert "+avx512f" in simd.target("avx512", AVX512)[1].split(",")
    assert ("x86-64", "+sse2") == simd.target("sse2", AVX512)


def test_each_path_has_a_folder_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of one is not loaded for another."""
    own = folder._digest()
    monkeypatch.setattr(simd, "VECTOR_PATH", "another")
    assert own != folder._digest()
