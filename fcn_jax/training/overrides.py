"""The config of a command: a config file, and fields that the command line sets."""

import ast
import difflib
import inspect
import re
import runpy
import textwrap
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from fcn_jax.training.config import Config, as_tuple, flat

CONFIGS = Path(__file__).parents[1] / "configs"  # Of the project, which come along.
_START = "--config."
_INDENT = {"initial_indent": "    ", "subsequent_indent": "    "}
_EXAMPLES = {bool: ": true or false", tuple: ', such as "(1, 2)"'}


def read_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Run a config file and set fields of its config.

    Args:
        path: a Python file with a function ``get_config()``, which returns a `Config`;
            or the name of one of `CONFIGS`, such as "quickstart".
        overrides: ``--config.field=value`` each.

    Raises:
        ValueError: if there is no such file, it raises an error or gives something
            else, a field does not exist, or a value is not of the field's type.
    """
    try:
        config = runpy.run_path(str(_file_of(path)))["get_config"]()
    except Exception as error:  # The file is code and may raise anything.
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"--config={path}: {reason}") from error
    if not isinstance(config, Config):
        raise ValueError(
            f"--config={path}: get_config() returns a {type(config).__name__}, want a "
            "fcn_jax.training.config.Config"
        )
    kinds = {name: kind for name, kind, _ in flat(config)}
    for override in overrides:
        name, equals, text = override.removeprefix(_START).partition("=")
        _check_name(name, kinds)
        if not equals:
            raise ValueError(f"{override} has no value: write {override}=VALUE")
        part, _, field = name.rpartition(".")
        owner = getattr(config, part) if part else config
        setattr(owner, field, _parsed(name, text, kinds[name]))
    return config


def _file_of(path: str) -> Path:
    """Return the file that ``--config`` means.

    Raises:
        ValueError: if there is none.
    """
    if Path(path).is_file():
        return Path(path)
    names = sorted(file.stem for file in CONFIGS.glob("*.py"))
    if path not in names:
        raise ValueError(
            f"--config={path}: there is no such file, and the configs that come along "
            f"are {', '.join(names)}"
        )
    return CONFIGS / f"{path}.py"


def config_help() -> str:
    """Return a text that lists all fields of a config.

    Types and defaults are those of the dataclasses, meanings those of their docstrings.
    """
    meanings = {"": _meanings(Config)}
    for name, kind in get_type_hints(Config).items():
        if is_dataclass(kind):
            meanings[name] = _meanings(kind)
    lines = ["Fields of a config with their defaults, for --config.FIELD=VALUE:"]
    for name, kind, default in flat(Config()):
        part, _, field = name.rpartition(".")
        lines.append(f"\n{name} ({kind.__name__}) = {default!r}")
        lines += textwrap.wrap(meanings[part][field], 76, **_INDENT)
    return "\n".join(lines)


def _meanings(kind: type) -> dict[str, str]:
    """Return the "Attributes" of a docstring by name."""
    text = inspect.getdoc(kind).partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.M)
    return {name: re.sub(r"\s+", " ", meaning) for name, meaning in entries}


def _check_name(name: str, types: dict[str, type]) -> None:
    if name in types:
        return
    # A name may be near as a whole, or right in another part of the config.
    near = [n for n in types if n.rpartition(".")[2] == name.rpartition(".")[2]]
    near += difflib.get_close_matches(name, types, 3)
    near = ", ".join(f"config.{n}" for n in dict.fromkeys(near))
    raise ValueError(
        f"config.{name} is not a field of a config"
        + (f"; the nearest are {near}" if near else "")
        + "; --helpconfig lists all"
    )


def _parsed(name: str, text: str, kind: type) -> Any:
    """Return the value that a text stands for."""
    try:
        if kind is str:
            return text
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is tuple:
            value = ast.literal_eval(text)
            return as_tuple(value) if isinstance(value, list | tuple) else (value,)
        return kind(text)
    except (ValueError, KeyError, SyntaxError) as error:
        wanted = kind.__name__ + _EXAMPLES.get(kind, "")
        raise ValueError(f"config.{name} = {text} must be of type {wanted}") from error
