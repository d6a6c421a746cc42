"""`bp completion`: the script by which a shell completes bp, and what it completes."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ZshComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from bpcli.commands.shared_options import DTYPES, Common, one_of
from bpcli.render import FORMATS

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_BP_COMPLETE"
"""The variable by which a shell asks for completions."""
MODES = ("auto", "full", "directional")
_WRT = ("params", "inputs", "state")
_SETTINGS = ("T", "batch", "dtype", "seed")
_OPEN = ("=", ":")  # something follows: no space after it
_FILE = CompletionItem("", type="file")
_MOST_SPECS = 20
Complete = Callable[[click.Context, str], Iterator[str | CompletionItem]]

_BASH = r"""
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" breaks="${COMP_WORDBREAKS//[^:=]/}" cut="" type value
    local word="${line##*[[:space:]]}"
    # Readline replaces what follows the last of its word breaks alone.
    if [[ -n $breaks && $word == *[$breaks]* ]]; then cut="${word%%"${word##*[$breaks]}"}"; fi
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            plain) COMPREPLY+=("${value#"$cut"}") ;;
            file) compopt -o default ;;
        esac
    done < <(COMP_LINE="$line" %(complete_var)s=bash_complete "$1")
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[:=] ]]; then compopt -o nospace; fi
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""
_ZSH = r"""
#compdef %(prog_name)s

%(complete_func)s() {
    local -a closed open response described
    (( ! $+commands[%(prog_name)s] )) && return 1
    local -x COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1))
    response=("${(@f)$(%(complete_var)s=zsh_complete %(prog_name)s)}")
    for type key descr in ${response}; do
        if [[ "$type" == "file" ]]; then
            _path_files -f
        elif [[ "$type" != "plain" ]]; then
            continue
        elif [[ "$key" == *[:=] ]]; then
            open+=("$key")
        elif [[ "$descr" == "_" ]]; then
            closed+=("$key")
        else
            described+=("$key":"$descr")
        fi
    done
    if [ -n "$described" ]; then _describe -V unsorted described -U; fi
    if [ -n "$closed" ]; then compadd -U -V unsorted -a closed; fi
    if [ -n "$open" ]; then compadd -U -V unsorted -S '' -a open; fi
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


class LineBash(BashComplete):
    """Completion for Bash by the line up to the cursor, as its words are cut at `:` and `=`."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The complete words before the cursor, and the one that it is in."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)[1:]
        return (words, "") if not words or line[-1:].isspace() else (words[:-1], words[-1])


class OpenZsh(ZshComplete):
    """Completion for Zsh, without a space after `=` and `:`."""

    source_template = _ZSH


class Completed(click.types.StringParamType):
    """A string with completions."""

    def __init__(self, complete: Complete) -> None:
        self.complete = complete

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """What `incomplete` may become."""
        found = self.complete(ctx, incomplete)
        items = [CompletionItem(item) if isinstance(item, str) else item for item in found]
        return [item for item in items if item.type != "plain" or item.value.startswith(incomplete)]


def register() -> None:
    """Make bp's own scripts for Bash and Zsh known to click."""
    add_completion_class(LineBash)
    add_completion_class(OpenZsh)


def attach(command: click.Command) -> None:
    """Give the parameters of a command their completions."""
    for parameter in command.params:
        complete = COMPLETIONS.get(str(parameter.name))
        if complete is not None and isinstance(parameter.type, click.types.StringParamType):
            parameter.type = Completed(complete)


def _words(known: Callable[[], Sequence[str]]) -> Complete:
    return lambda context, incomplete: iter(known())


def _files(context: click.Context, incomplete: str) -> Iterator[CompletionItem]:
    yield _FILE


def _methods(context: click.Context, incomplete: str) -> Iterator[str | CompletionItem]:
    """The names of methods; behind a name and a colon, the options that are not given yet."""
    from bpcli.methods import known_names, load, options_of

    name, colon, tail = incomplete.partition(":")
    if colon and name in known_names():
        before, comma, _ = tail.rpartition(",")
        given = {part.partition("=")[0].strip() for part in before.split(",")}
        options = [text.partition("=")[0] for text in options_of(load(name))]
        yield from (f"{name}:{before}{comma}{option}=" for option in options if option not in given)
        return
    yield from known_names()
    yield _FILE


def _references(context: click.Context, incomplete: str) -> Iterator[str]:
    from bpcli import backends, references

    yield from ("auto", *references.known(), *backends.known_names())


def _peers(context: click.Context, incomplete: str) -> Iterator[str]:
    from bpcli.backends import known_names

    yield from known_names()


def _outputs(context: click.Context, incomplete: str) -> Iterator[str | CompletionItem]:
    """`FORMAT=`, then a file."""
    if "=" in incomplete:
        yield _FILE
    else:
        yield from (f"{name}=" for name in FORMATS)


def _settings(context: click.Context, incomplete: str) -> Iterator[str]:
    """`KEY=` for dims and constants of the specs on the line, and for settings of data."""
    key, equals, _ = incomplete.partition("=")
    if equals:
        known = {"task": _tasks(), "dtype": DTYPES}.get(key, ())
        yield from (f"{key}={value}" for value in known)
        return
    dims = dict.fromkeys(name for table in _specs(context) for part in ("dims", "constants") for name in table[part])
    yield from (f"{name}=" for name in (*dims, *_SETTINGS, "task"))


def _grid(context: click.Context, incomplete: str) -> Iterator[str]:
    """`KEY=` for what can be swept: settings of the specs on the line, threads, and options of their methods."""
    if "=" in incomplete:
        return
    named = [str(m) for m in context.params.get("method") or ()]
    named += [m for table in _specs(context) for m in table["bench"].get("methods", ())]
    options = dict.fromkeys(o.strip().partition("=")[0] for m in named for o in m.partition(":")[2].split(","))
    yield from (key for key in _settings(context, "") if key != "task=")
    yield from (f"{name}=" for name in ("threads", *filter(None, options)))


def _wrt(context: click.Context, incomplete: str) -> Iterator[str]:
    yield from _WRT
    yield from dict.fromkeys(name for table in _specs(context) for part in _WRT for name in table[part])


def _specs(context: click.Context) -> list[dict[str, Any]]:
    """The specs on the command line as far as they are TOML, with all tables that completions look at."""
    from bpcli.commands.specs import find

    given = context.params.get("target") or context.params.get("spec") or context.args  # before an option without value
    paths, _ = find([given] if isinstance(given, str) else given, Common(quiet=True))
    tables = []
    for path in paths[:_MOST_SPECS]:
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError):
            continue
        whole = {name: table.get(name, {}) for name in ("dims", "constants", "bench", *_WRT)}
        tables += [whole] if all(isinstance(part, dict) for part in whole.values()) else []
    return tables


def _tasks() -> Sequence[str]:
    from bpcli.tasks import known_tasks

    return known_tasks()


def _cells() -> Sequence[str]:
    from bpcli.commands.scaffold import known_cells

    return known_cells()


def _kinds() -> Sequence[str]:
    from bpcli.commands.scaffold import KINDS

    return KINDS


def _catalogues() -> Sequence[str]:
    from bpcli.commands.list import CATALOGUES

    return tuple(CATALOGUES)


def _pages() -> Sequence[str]:
    from bpcli.commands import COMMANDS
    from bpcli.commands.help_page import topics

    return (*topics(), *COMMANDS)


def _optimizers() -> Sequence[str]:
    from bpcli.commands.train import OPTIMIZERS

    return OPTIMIZERS


def _sources() -> Sequence[str]:
    from bpcli.commands.train import SOURCES

    return SOURCES


_PATHS = (
    "target", "spec", "run", "base", "head", "kernel", "gradient", "out", "plot", "save", "checkpoint", "resume",
    "write_baseline",
)  # fmt: skip
COMPLETIONS: Mapping[str, Complete] = {
    **dict.fromkeys(_PATHS, _files),
    **dict.fromkeys(("method", "watch", "meant"), _methods),
    "reference": _references,
    "mode": _words(lambda: MODES),
    "order": _words(lambda: ("1", "2")),
    "format": _words(lambda: tuple(FORMATS)),
    "page": _words(lambda: ("text", "markdown", "latex", "html")),
    "output": _outputs,
    "dtype": _words(lambda: DTYPES),
    "set_": _settings,
    "grid": _grid,
    "wrt": _wrt,
    "peer": _peers,
    "task": _words(_tasks),
    "cell": _words(_cells),
    "kind": _words(_kinds),
    "what": _words(_catalogues),
    "topic": _words(_pages),
    "optimizer": _words(_optimizers),
    "data": _words(_sources),
    "shell": _words(lambda: SHELLS),
}
"""What completes a parameter, by its name in Python."""


@click.command()
@click.argument("shell", metavar=f"[{'|'.join(SHELLS)}]", callback=one_of(lambda: SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print the script by which SHELL completes bp: commands, options, methods, formats, sizes of a spec, files.

    \b
    bash, in ~/.bashrc:  eval "$(bp completion bash)"
    zsh, in ~/.zshrc:    eval "$(bp completion zsh)"
    fish, once:          bp completion fish > ~/.config/fish/completions/bp.fish
    """
    register()
    group = context.find_root().command
    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(group, {}, "bp", VARIABLE).source())
    return 0
