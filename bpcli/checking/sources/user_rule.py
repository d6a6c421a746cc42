"""A user's online rule, `FILE.py:RULE`: the three functions of `OnlineRule`, run at the host of user code.

RULE is an object, or a class that takes no arguments. Its functions may return `StepGradient(influence, direct)` or
that pair, so that the file needs NumPy alone. Its `definition`, if it has one, is what it is judged against: the text
of a method, or a function of the setup and the options that gives such a text, `Exact()` or `Windows(…)`. A rule
without a definition is compared with itself on measured local derivatives, as the approximate methods of bp are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from bpcli.checking.sources.gradient_source import Answer, GradientSource, differing
from bpcli.checking.sources.rule_child import FUNCTIONS, pickled, sent
from bpcli.checking.sources.user_child import UserCodeRunner
from bpcli.checking.sources.user_file import IN_FILE, UserFile, load
from bpcli.checking.sources.user_process import EndedError, Process
from bpcli.checking.sources.user_protocol import Array, Message
from bpcli.errors import BpError, Diagnostic, Place, fail, printable
from bpcli.methods import MethodCall, parse
from bpcli.methods._online import Online
from bpcli.methods.base import Cost, Definition, Exact, Method, NoOptions, Recursion, StepGradient, Windows
from bpcli.problem.definition import Problem, Setup
from bpcli.runtime.local_derivatives import InfluenceLayout, LocalDerivatives
from bpcli.runtime.reverse_mode import Window

_WRITE = "write start(setup, options, rng), step(state, local) and credit(state, local)"


class RuleFaultError(BpError):
    """A rule raised, ended its process or returned a value that cannot be used; `cause` says so, and where."""

    def __init__(self, file: UserFile, name: str, cause: str) -> None:
        what = f"{printable(file.shown)}:{printable(name)} {cause}"
        super().__init__([Diagnostic("user-code", what, help="`bp check SPEC -m FILE.py:RULE` judges a rule")])
        self.cause = cause


@dataclass(frozen=True)
class Started:
    """A run of a rule at its host, which keeps the state; `found` is the gradient of the step that it has taken."""

    setup: Setup
    found: StepGradient | None = None


@dataclass(frozen=True, eq=False)
class FileRule:
    """The rule `name` of a file, an `OnlineRule`. Its functions raise RuleFaultError."""

    file: UserFile
    name: str

    def start(self, setup: Setup, options: NoOptions, rng: np.random.Generator) -> Started:
        """Begin a run; another that has begun before can't be continued. Raises BpError where this is no rule."""
        assert self.about
        self._ask("rule_start", pickled(setup, rng), "start")
        return Started(setup)

    def step(self, state: Started, local: LocalDerivatives) -> Started:
        """Take a step, and what the rule credits to it."""
        message, arrays = sent(local)
        answer, found = self._ask("rule_advance", arrays, "step", **message)
        influence, *direct = (np.array(a) for a in found)
        return Started(state.setup, StepGradient(influence, dict(zip(answer["names"], direct, strict=True))))

    def credit(self, state: Started, local: LocalDerivatives) -> StepGradient:
        """The gradient of the losses of the step."""
        assert state.found is not None
        return state.found

    @cached_property
    def about(self) -> Message:
        """See `RuleRun.describe`. Raises BpError at the rule's line where it is none."""
        self.file.seek(self.name)
        about, place = self._ask("rule", (), "")[0], self.file.place(self.line_of(""))
        shown = f"{printable(self.file.shown)}:{printable(self.name)}"
        if lacking := [part for part in FUNCTIONS if part not in about["has"]]:
            fail("usage", f"{shown} is not an online rule: it lacks {', '.join(lacking)}", place, help=_WRITE)
        if not (about["none"] or about["function"] or about["text"] is not None):
            advice = 'for example definition = "snap:k=1"'
            fail("usage", f"the definition of {shown} is neither a text nor a function", place, help=advice)
        if about["text"] is not None:
            _meant(about["text"], place)
        return about

    @property
    def meant(self) -> MethodCall | None:
        """The method that its definition names."""
        return None if self.about["text"] is None else _meant(self.about["text"], self.file.place(self.line_of("")))

    def definition(self, setup: Setup) -> Message:
        """See `RuleRun.define`. Raises RuleFaultError."""
        return self._ask("rule_define", pickled(setup), "definition")[0]

    def line_of(self, part: str) -> int:
        """The line of a function of the rule's class, else that of the rule."""
        return self.file.line_of(f"{self.name}.{part}" if part else self.name)

    def _ask(self, do: str, arrays: Sequence[Array], part: str, **more: Any) -> tuple[Message, list[Array]]:
        line = self.line_of(part)
        try:
            answer, found = self.file.ask(do, self.name, arrays, **more)
        except EndedError as error:
            raise RuleFaultError(self.file, self.name, self.file.ended(error, line)) from None
        if "raised" in answer:
            raise RuleFaultError(self.file, self.name, self.file.raised(answer, line))
        if "flaw" in answer:
            line = self.line_of("credit") if part == "step" else line
            raise RuleFaultError(self.file, self.name, f"cannot be used: {answer['flaw']} ({self.file.at(line)})")
        return answer, found


def is_rule(text: str) -> bool:
    """Whether a method is written `FILE.py:RULE`."""
    return IN_FILE.fullmatch(text.strip()) is not None


def sha256(text: str) -> str:
    """The digest of a rule's file; "" where it cannot be read."""
    try:
        return hashlib.sha256(_path(text).read_bytes()).hexdigest()
    except OSError:
        return ""


def _path(text: str) -> Path:
    found = IN_FILE.fullmatch(text.strip())
    assert found is not None
    return Path(found["file"]).absolute()


def open_rule(text: str, process: Process) -> FileRule:
    """The rule `FILE.py:RULE`. Raises BpError where there is none."""
    name = text.strip().rpartition(":")[2]
    rule = FileRule(load(_path(text), text.strip().rpartition(":")[0], process), name)
    assert rule.about
    return rule


def _meant(text: str, place: Place) -> MethodCall:
    """The method that a rule's definition names. Raises BpError where it is unknown or random."""
    found = parse(text, place)
    if "random" in found.method.tags:
        what = f"{text} draws random numbers, which another program cannot repeat"
        fail("method-refused", what, place, help="leave the definition out")
    return found


def definition_of(rule: FileRule, setup: Setup, draws: str) -> Definition:
    """The rule's own definition, or the recursion itself. Raises BpError where its definition can't be used."""
    about = rule.about
    if about["none"]:
        return Recursion(setup, rule, NoOptions(), draws)
    place, text = rule.file.place(rule.line_of("definition")), about["text"]
    if text is None:
        found = rule.definition(setup)
        if "text" not in found:
            windows = found["windows"]
            return Exact() if windows is None else Windows(tuple(Window(*w) for w in windows))
        text = found["text"]
    meant = _meant(text, place)
    if reason := meant.refusal(setup.graph):
        fail("method-refused", f"{text}: {reason}", place, help="name a method that applies to the spec")
    return meant.definition(setup)


def method_of(rule: FileRule, text: str) -> MethodCall:
    """A rule as a method. Its cost is that of the local derivatives; what its own functions take is unknown."""

    def entries(layout: InfluenceLayout, options: NoOptions) -> int:
        return 2 * layout.local_entries + layout.P

    definitions: dict[int, tuple[Setup, Definition]] = {}

    def defined(setup: Setup, options: NoOptions) -> Definition:
        # Kept with its setup: a recursion is equal to itself alone, and its function is user code.
        if id(setup) not in definitions:
            definitions[id(setup)] = (setup, definition_of(rule, setup, text))
        return definitions[id(setup)][1]

    tags = frozenset({"online", "recurrent", "user"})
    method = Online(
        text, "a rule in a user's file", tags, NoOptions, rule, lambda layout, options: 0.0, entries, defined=defined
    )
    return MethodCall(text, cast("Method", method), NoOptions())  # the protocol has class variables


def parse_rule(text: str) -> MethodCall:
    """The rule `FILE.py:RULE` as a method that runs in this process, which measures it; its file is run when needed.

    Raises BpError where there is no such file.
    """
    path, (shown, _, name) = _path(text), text.strip().rpartition(":")
    if not path.is_file():
        fail("no-such-file", f'no file "{printable(shown)}"', help="-m takes FILE.py:RULE, a rule in a Python file")
    return method_of(FileRule(UserFile(path, shown, path.read_bytes(), _Here()), name), text.strip())


class _Here:
    """User code in this process: its file is loaded before the first message."""

    def __init__(self) -> None:
        self._runner: UserCodeRunner | None = None

    def ask(self, message: Message, arrays: Sequence[Array] = ()) -> tuple[Message, list[Array]]:
        """See `Host`."""
        if self._runner is None:
            self._runner = UserCodeRunner()
            answer, _ = self._runner.ask({**message, "do": "load"})
            if "raised" in answer:
                self._runner = None
                return answer, []
        return self._runner.ask(message, arrays)

    def restart(self, file: str, name: str = "") -> bool:
        """See `Host`: this process goes on as it is."""
        return False


@dataclass(eq=False)
class UserRule(GradientSource):
    """A rule to judge: run twice on the kernels' local derivatives, in `process`."""

    any_size: ClassVar[bool] = True
    text: str
    rule: FileRule
    process: Process
    meant: MethodCall | None = None
    crashed: bool = False

    def __post_init__(self) -> None:
        self.method = method_of(self.rule, self.text)

    @property
    def place(self) -> Place:
        """The line of the rule."""
        return self.rule.file.place(self.rule.line_of(""))

    def answer(self, problem: Problem) -> Answer:
        """See `GradientSource`."""
        where = f" ({self.rule.file.at(self.rule.line_of(''))})"
        self.crashed = False
        try:
            first = self.method.gradient(problem)
            second = self.method.gradient(problem)
        except RuleFaultError as error:
            self.crashed = True
            return Answer(None, {}, frozenset(), (), {x.name: error.cause for x in problem.setup.wrt}, where)
        unsteady = differing((first.loss, first.arrays), (second.loss, second.arrays))
        return Answer(first.loss, first.arrays, unsteady, (), {}, where)

    def restart(self) -> bool:
        """See `GradientSource`."""
        return self.process.restart(str(self.rule.file.path), self.rule.name)

    def definition(self, setup: Setup) -> Definition:
        """That of the method that is meant, else the rule's own."""
        return self.method.definition(setup) if self.meant is None else self.meant.definition(setup)

    def refusal(self, setup: Setup) -> str | None:
        """Why a spec has no local derivatives; None if it has."""
        return self.method.refusal(setup.graph)

    def cost(self, setup: Setup) -> Cost:
        """That of the local derivatives."""
        return self.method.cost(setup)
