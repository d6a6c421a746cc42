"""Defaults of options from `[tool.bp]` of the nearest `pyproject.toml`, and where an option's value came from."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from bpcli.errors import BpError, Collector, Place, fail, nearest

if TYPE_CHECKING:
    from bpcli.spec.source import Text

# What belongs to one run alone, as required options do: a default for these would surprise.
_PERSONAL = frozenset({"set", "out", "help", "version"})
_TABLE = ("tool", "bp")


def defaults(command: click.Command) -> dict[str, Any]:
    """The values that `[tool.bp]` gives to the options of `command`, by parameter name.

    Raises BpError where the file is no TOML, `[tool.bp]` no table, or a key no option of any command.
    """
    path = _nearest_project()
    if path is None:
        return {}
    table = _table(path)
    if not table:
        return {}
    own = _options(command)
    collector = Collector()
    for key in table:
        if key.replace("-", "_") not in own and (others := _all_options()) and key.replace("-", "_") not in others:
            place = _place(path, key)
            collector.add(
                "unknown-key", f'unknown key "{key}" in [tool.bp]', place, help=nearest(key, _written(others))
            )
        option = own.get(key.replace("-", "_"))
        if option and (wanted := _misfit(option, table[key])):
            collector.add("wrong-type", f"{key} must be {wanted}", _place(path, key), help=_remedy(option))
    collector.finish()
    given = {own[k.replace("-", "_")]: v for k, v in table.items() if k.replace("-", "_") in own}
    return {str(o.name): [v] if o.multiple and not isinstance(v, list) else v for o, v in given.items()}


def _remedy(option: click.Option) -> str:
    """The option's own description, or where it is to be found."""
    return (option.help or "").rstrip(".") or "`bp COMMAND --help` lists what options take"


def _misfit(option: click.Option, value: object) -> str:
    """What a value of TOML would have to be, where it is something else: click converts more than it should."""
    if option.is_flag:
        return "" if isinstance(value, bool) else "true or false"
    kinds, wanted = _KINDS.get(option.type.name, ((str, int, float), "a string"))
    items = value if option.multiple and isinstance(value, list) else [value]
    if not items:
        return f"{wanted} or a list of such, which is not empty"
    if all(isinstance(i, kinds) and not isinstance(i, bool) for i in items):
        return ""
    return f"{wanted} or a list of such" if option.multiple else wanted


_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "integer": ((int,), "an integer"),
    "integer range": ((int,), "an integer"),
    "float": ((int, float), "a number"),
}


def default_format() -> str:
    """The `format` of `[tool.bp]`, or "table" where there is none or the file can't be read."""
    path = _nearest_project()
    try:
        return str(_table(path).get("format", "table")) if path else "table"
    except BpError:
        return "table"


def came_from(context: click.Context | None, parameter: click.Parameter | None) -> str:
    """Words for a value that was not given on the command line: the variable or the table it came from, else ""."""
    if context is None or parameter is None:
        return ""
    source = context.get_parameter_source(str(parameter.name))
    if source is ParameterSource.ENVIRONMENT:
        return str(parameter.envvar)
    return "[tool.bp]" if source is ParameterSource.DEFAULT_MAP else ""


def place_of(context: click.Context | None, parameter: click.Parameter | None) -> Place | None:
    """Where `[tool.bp]` gives the parameter its value, None where the value came from elsewhere."""
    path = _nearest_project()
    if path is None or parameter is None or came_from(context, parameter) != "[tool.bp]":
        return None
    name = next(k for k, option in _options(context.command if context else None).items() if option is parameter)
    return _place(path, name)


def _options(command: click.Command | None) -> dict[str, click.Option]:
    from bpcli.commands.registry import option_name

    options = [p for p in command.params if isinstance(p, click.Option)] if command else []
    return {option_name(o): o for o in options if not o.required and option_name(o) not in _PERSONAL}


def _all_options() -> set[str]:
    """The options of every command; imports them all, so asked for only when a key is none of the command's own."""
    from bpcli.commands.registry import COMMANDS

    modules = {name: importlib.import_module(entry.module) for name, entry in COMMANDS.items()}
    return {option for name, module in modules.items() for option in _options(getattr(module, name))}


def _written(names: set[str]) -> list[str]:
    return [n.replace("_", "-") for n in names]


def _nearest_project() -> Path | None:
    """The `pyproject.toml` of the current folder, or of the nearest folder above it that has one."""
    try:
        here = Path.cwd()
    except OSError:
        return None
    return next((f / "pyproject.toml" for f in (here, *here.parents) if (f / "pyproject.toml").is_file()), None)


def _read(path: Path) -> Text:
    from bpcli.spec.source import Text

    try:
        return Text(str(path), path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        fail("not-utf-8", f"{path} is not UTF-8", Place(str(path), 1, 1), help="save the file as UTF-8")
    except OSError as error:
        fail(
            "unreadable-file",
            f"can't read {path}: {error.strerror}",
            help="make it readable, or work in another folder",
        )


def _table(path: Path) -> Mapping[str, Any]:
    text = _read(path)
    try:
        tool = tomllib.loads(text.content).get("tool", {})
    except (ValueError, RecursionError):
        _refuse(text)
    table = tool.get("bp", {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        fail("wrong-type", "[tool.bp] must be a table", _place(path), help="write [tool.bp] and options below it")
    return table


def _refuse(text: Text) -> NoReturn:
    """Say what is wrong with a text that is no TOML, and where."""
    from bpcli.spec.toml import outline, tables

    collector = Collector()
    tables(text, outline(text.content), collector)
    collector.finish()
    fail("toml-syntax", f"{text.path} is not TOML", text.at(1, 1), help="mend it, or work in another folder")


def _place(path: Path, *key: str) -> Place:
    """The place of `[tool.bp]`, or of a key in it, written with dashes or underscores."""
    from bpcli.spec.toml import outline

    text = _read(path)
    keys = outline(text.content).keys
    for name in (*key, *(k.replace("_", "-") for k in key), *(k.replace("-", "_") for k in key)):
        if (*_TABLE, name) in keys:
            return text.place(*keys[*_TABLE, name])
    return text.place(*keys.get(_TABLE, (0, 1)))
