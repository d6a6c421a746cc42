"""Defaults of options in `[tool.bp]` of the nearest `pyproject.toml`, and the source of an option's value."""

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

# Options of a single run, like required ones; a default for them would surprise.
_PERSONAL = frozenset({"set", "out", "help", "version", "save", "checkpoint", "resume", "force", "dry_run"})
_TABLE = ("tool", "bp")


def defaults(command: click.Command) -> dict[str, Any]:
    """The values in `[tool.bp]` for the options of `command`, by parameter name.

    Raises BpError if the file is invalid TOML, `[tool.bp]` is not a table, a key is not an option of any command, or a
    value has the wrong type.
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
            advice = nearest(key, [name.replace("_", "-") for name in others])
            collector.add("unknown-key", f'unknown key "{key}" in [tool.bp]', _place(path, key), help=advice)
        option = own.get(key.replace("-", "_"))
        if option and (wanted := _misfit(option, table[key])):
            advice = (option.help or "").rstrip(".")
            collector.add("wrong-type", f"{key} must be {wanted}", _place(path, key), help=advice)
    collector.finish()
    given = {own[k.replace("-", "_")]: v for k, v in table.items() if k.replace("-", "_") in own}
    return {str(o.name): [v] if o.multiple and not isinstance(v, list) else v for o, v in given.items()}


def _misfit(option: click.Option, value: object) -> str:
    """The type that a TOML value should have, "" if it has it; click itself would convert some wrong types."""
    if option.is_flag:
        return "" if isinstance(value, bool) else "true or false"
    kinds, wanted = _KINDS.get(option.type.name, ((str, int, float), "a string"))
    items = value if option.multiple and isinstance(value, list) else [value]
    if not items:
        return f"{wanted} or a non-empty list of such"
    if all(isinstance(i, kinds) and not isinstance(i, bool) for i in items):
        return ""
    return f"{wanted} or a list of such" if option.multiple else wanted


_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "integer": ((int,), "an integer"),
    "integer range": ((int,), "an integer"),
    "float": ((int, float), "a number"),
}


def default_format() -> str:
    """The `format` of `[tool.bp]`; "table" without one, or if the file cannot be read."""
    path = _nearest_project()
    try:
        return str(_table(path).get("format", "table")) if path else "table"
    except BpError:
        return "table"


def came_from(context: click.Context | None, parameter: click.Parameter | None) -> str:
    """The variable or table that a value came from; "" if it was given on the command line."""
    if context is None or parameter is None:
        return ""
    source = context.get_parameter_source(str(parameter.name))
    if source is ParameterSource.ENVIRONMENT:
        return str(parameter.envvar)
    return "[tool.bp]" if source is ParameterSource.DEFAULT_MAP else ""


def place_of(context: click.Context | None, parameter: click.Parameter | None) -> Place | None:
    """The place of a parameter's value in `[tool.bp]`, None if it came from elsewhere."""
    path = _nearest_project()
    if path is None or parameter is None or came_from(context, parameter) != "[tool.bp]":
        return None
    name = next(k for k, option in _options(context.command if context else None).items() if option is parameter)
    return _place(path, name)


def _options(command: click.Command | None) -> dict[str, click.Option]:
    from bpcli.commands import option_name

    options = [p for p in command.params if isinstance(p, click.Option)] if command else []
    return {option_name(o): o for o in options if not o.required and option_name(o) not in _PERSONAL}


def _all_options() -> set[str]:
    """The options of all commands, which are imported for this; needed only for keys that one command lacks."""
    from bpcli.commands import COMMANDS

    modules = {name: importlib.import_module(entry.module) for name, entry in COMMANDS.items()}
    return {option for name, module in modules.items() for option in _options(getattr(module, name))}


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
        advice = "make it readable, or work in another folder"
        fail("unreadable-file", f"can't read {path}: {error.strerror}", help=advice)


def _table(path: Path) -> Mapping[str, Any]:
    text = _read(path)
    try:
        tool = tomllib.loads(text.content).get("tool", {})
    except (ValueError, RecursionError):
        _refuse(text)
    table = tool.get("bp", {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        fail("wrong-type", "[tool.bp] must be a table", _place(path), help="write [tool.bp] and the options below it")
    return table


def _refuse(text: Text) -> NoReturn:
    """Raise BpError with the place of the syntax error in a TOML file."""
    from bpcli.spec.toml import outline, tables

    collector = Collector()
    tables(text, outline(text.content), collector)
    collector.finish()
    fail("toml-syntax", f"{text.path} is not valid TOML", text.at(1, 1), help="correct it, or work in another folder")


def _place(path: Path, *key: str) -> Place:
    """The place of `[tool.bp]` or of a key in it, which may be written with dashes or underscores."""
    from bpcli.spec.toml import outline

    text = _read(path)
    keys = outline(text.content).keys
    for name in (*key, *(k.replace("_", "-") for k in key), *(k.replace("-", "_") for k in key)):
        if (*_TABLE, name) in keys:
            return text.place(*keys[*_TABLE, name])
    return text.place(*keys.get(_TABLE, (0, 1)))
