"""The README and the pages of `bp help`: what is in them runs as it stands; right gradients pass, wrong ones fail."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "bpcli" / "help").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def blocks(kind: str) -> list[str]:
    """The fenced blocks of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


FILES = {text.split()[1]: text for text in blocks("python") if text.startswith("# ")}
SNIPPETS = [text for text in blocks("python") if text.startswith("import bpcli")]
SHELL = [
    *(line.removeprefix("> ") for text in blocks("text") for line in text.splitlines() if line.startswith("> ")),
    *(line.partition("  #")[0].strip() for text in blocks("sh") for line in text.splitlines()),
]
COMMANDS = list(dict.fromkeys(SHELL))
# Requirements of commands beside bp, by a word in them. The `console` lines install bp: `.ci/run` runs these.
TAKES = {
    "torch_rnn.py": "torch",
    "ops.py": "torch",
    "jax": "jax",
    "torch": "torch",
    "tcp://HOST:8786": "a cluster",
    "dask": "a cluster",
}
TAKES["--local-cluster"] = "distributed"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the README, and specs that are benched at one point each."""
    home = tmp_path / "new"
    for path in (home / "specs", home / "reports"):
        path.mkdir(parents=True)
    for name in ("vanilla_rnn", "leaky_rnn", "gru", "exercise"):
        text = (ROOT / "specs" / f"{name}.toml").read_text(encoding="utf-8")
        points = re.sub(r"^\[bench[^]]*\]\n(?:[^\[\n].*\n|\n)*", "", text, flags=re.MULTILINE)
        (home / "specs" / f"{name}.toml").write_text(points, encoding="utf-8")
    for name, text in FILES.items():
        (home / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(home)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("BP_BUDGET", "0.001")
    monkeypatch.setenv("BP_ROUNDS", "2")
    return home


@pytest.fixture
def checkouts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder as a checkout, and an older one beside it."""
    for checkout in (folder, folder.parent / "old"):
        shutil.copytree(ROOT / "bpcli", checkout / "bpcli")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def bp(*args: str) -> subprocess.CompletedProcess[str]:
    """`bp` in a process of its own: frameworks warn and change settings."""
    command = [sys.executable, "-m", "bpcli", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def test_the_readme_is_short_and_names_every_page() -> None:
    """It links to all pages of `bp help`, and no link in any page leads nowhere."""
    readme = PAGES[0].read_text(encoding="utf-8")
    assert readme.count("\n") <= 200
    assert {page.stem for page in PAGES[1:]} == set(re.findall(r"\[`(\w+)`\]\(bpcli/help/\1\.md\)", readme))
    for page in PAGES:
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
        assert [] == [link for link in links if not (page.parent / link).exists()]


def test_nothing_is_left_out() -> None:
    """Every block of Python is a file that a command names, a snippet, or the example of the plugin's own test."""
    rest = [text for text in blocks("python") if text not in (*FILES.values(), *SNIPPETS)]
    assert ["bp_check"] == [word for text in rest for word in re.findall(r"def test_\w+\((\w+)\)", text)]
    assert [] == [name for name in FILES if name != "jax_rnn.py" and not any(name in c for c in COMMANDS)]
    assert len(SNIPPETS) > 2 and len(COMMANDS) > 12
    assert [] == [c for c in COMMANDS if c.split()[0] not in ("bp", "dask")]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets(snippet: str, folder: Path) -> None:
    """Each runs as a program; a wrong gradient in it ends it with an error."""
    programs = {snippet: 0, snippet.replace("assert report", "report.raise_for_wrong()  #").replace("2 * y", "y"): 1}
    programs[snippet] = 0  # where there is no gradient in it
    for program, end in programs.items():
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert end == done.returncode, done.stderr
        assert (end == 1) == ("GradientError" in done.stderr)


def steps() -> list[tuple[str, ...]]:
    """The commands, those that read what another one wrote in one step with it."""
    found: list[tuple[str, ...]] = []
    for command in COMMANDS:
        if command.startswith(("bp compare", "bp check net ")) and found:
            found[-1] = (*found[-1], command)
        else:
            found.append((command,))
    return found


def slow(step: tuple[str, ...]) -> bool:
    """Whether it times two installations, large networks, or all methods."""
    return "bp ab" in step[0] or "n=16,32,64" in step[0] or "T=200" in step[0] or "-m all" in step[0]


@pytest.mark.parametrize(
    "step", [pytest.param(s, id=s[0], marks=[pytest.mark.slow] if slow(s) else []) for s in steps()]
)
def test_commands(step: tuple[str, ...], request: pytest.FixtureRequest) -> None:
    """Each ends well."""
    request.getfixturevalue("checkouts" if step[0].startswith("bp ab") else "folder")
    for command in step:
        words = shlex.split(command)
        for need in (needs for word, needs in TAKES.items() if any(word in w for w in words)):
            if importlib.util.find_spec(need.replace(" ", "_")) is None:
                pytest.skip(f"takes {need}")
        done = bp(*words[1:])
        # Noise between copies of one program may be called a change, and a check of times is no test.
        assert done.returncode in ((0, 3) if words[1] == "ab" else (0,)), done.stderr


def check(*args: str) -> tuple[int, dict[str, set[str]]]:
    """Exit code and verdicts by method of `bp check`."""
    done = bp("check", *args, "--format", "json")
    found: dict[str, set[str]] = {}
    for row in json.loads(done.stdout)["findings"]:
        found.setdefault(row["method"], set()).add(row["verdict"])
    return done.returncode, found


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_gradient_of_a_framework(name: str, tmp_path: Path) -> None:
    """It passes on the lecture's network, and with another nonlinearity it is wrong."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    right, wrong = tmp_path / f"{name}_rnn.py", tmp_path / "other.py"
    right.write_text(FILES[right.name], encoding="utf-8")
    wrong.write_text(FILES[right.name].replace("tanh(", "sin("), encoding="utf-8")
    kernels = [f"{file}:gradient" for file in (right, wrong)]
    spec = str(ROOT / "specs" / "vanilla_rnn.toml")
    code, found = check(spec, "--kernel", kernels[0], "--kernel", kernels[1])
    assert 1 == code and {"pass"} == found[f"kernel:{kernels[0]}"]
    assert "wrong" in found[f"kernel:{kernels[1]}"]


def test_a_black_box(tmp_path: Path) -> None:
    """It passes, and with a wrong factor it is wrong."""
    file = tmp_path / "box.py"
    codes = []
    for text in (FILES["box.py"], FILES["box.py"].replace("2 *", "2.01 *")):
        file.write_text(text, encoding="utf-8")
        codes.append(check(f"{file}:Ridge")[0])
    assert [0, 1] == codes
