"""Recipe files: YAML mappings that ship with a package or lie anywhere, and may `extend` one another.

A recipe file need not be trusted: what it may extend are shipped recipes and files in its own folder.
"""

import math
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonargparse

from data_specs.plain_yaml import PlainYamlError, parse_yaml, read_yaml

_MOST_PARENTS = 16
_MOST_NAME = 100
# a number that YAML takes for a text, such as 1e-3, or a choice; jsonargparse would read any YAML in its place
_WORD = re.compile(r"[\w.+-]{0,100}")


class RecipeError(ValueError):
    """A recipe that does not exist or does not make sense; the message names the file, field and value."""


def shipped_names(package: str) -> list[str]:
    """Names of the recipes in the folder `recipes` of a package."""
    return sorted(p.name.removesuffix(".yaml") for p in _folder(package).iterdir() if p.name.endswith(".yaml"))


def recipe_fields(name_or_file: str, package: str) -> dict[str, Any]:
    """Fields of a shipped recipe by name, or of a YAML file by path, over those of the one that it `extends`.

    Raises RecipeError for an unknown name, a missing file, text that is not a YAML mapping, a circle of `extends`.
    """
    return _fields(name_or_file, package, seen=())


def checked_fields(cls: type, fields: dict[str, Any], skip: set[str] | None = None) -> dict[str, Any]:
    """The fields of the dataclass `cls` but for those to `skip`, of the right types, and defaults for the others.

    Raises jsonargparse.ArgumentError for an unknown field, a wrong type, a number that is not finite, or null where
    the type has none.
    """
    hints = get_type_hints(cls)
    for name, value in fields.items():
        if not isinstance(name, str) or not _WORD.fullmatch(name):
            raise jsonargparse.ArgumentError(None, f"a field is called {str(name)[:_MOST_NAME]!a}")
        _check_plain(name, value, texts=name not in hints or str in (hints[name], *get_args(hints[name])))
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, skip=skip or set())
    try:
        checked = dict(vars(parser.parse_object(fields)))
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError) as error:
        raise jsonargparse.ArgumentError(None, f"is not understood: {error}") from error
    # the parser lets these pass
    nulls = [name for name, value in checked.items() if value is None and type(None) not in get_args(hints[name])]
    if nulls:
        raise jsonargparse.ArgumentError(None, f"{', '.join(nulls)}: must not be null")
    for name, value in checked.items():
        _check_finite(name, value)
    return checked


def name_problem(name: str) -> str | None:
    """Why a text cannot be the name of a recipe or a data set, which also names files: None, or words to follow it."""
    if not 0 < len(name) <= _MOST_NAME or not name.isprintable() or "/" in name:
        return f"is {name[:_MOST_NAME]!a}, must be 1 to {_MOST_NAME} printable characters without a slash"
    return None


def _check_plain(name: str, value: Any, *, texts: bool) -> None:
    """Raise ArgumentError for what no field is: a text where none belongs, bytes, sets and the like."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise jsonargparse.ArgumentError(None, f"{name}: has the key {str(key)[:_MOST_NAME]!a}")
            _check_plain(name, inner, texts=texts)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_plain(name, inner, texts=texts)
    elif isinstance(value, str):
        if not texts and not _WORD.fullmatch(value):
            raise jsonargparse.ArgumentError(None, f"{name}: is {value[:_MOST_NAME]!a}")
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        raise jsonargparse.ArgumentError(None, f"{name}: is a number of more than 63 bits")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise jsonargparse.ArgumentError(None, f"{name}: is a {type(value).__name__}")


def _check_finite(name: str, value: Any) -> None:
    if isinstance(value, (list, tuple)):
        for inner in value:
            _check_finite(name, inner)
    elif isinstance(value, float) and math.isinf(value):
        raise jsonargparse.ArgumentError(None, f"{name}: is {value}, must be finite")


def _fields(name_or_file: str, package: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name_or_file in seen:
        raise RecipeError(f"recipe {name_or_file} extends itself: {' -> '.join((*seen, name_or_file))}")
    if len(seen) > _MOST_PARENTS:
        raise RecipeError(f"recipe {seen[0]}: more than {_MOST_PARENTS} recipes extend one another")
    try:
        if _is_file(name_or_file):
            fields = read_yaml(name_or_file)
        elif name_or_file in shipped_names(package):
            fields = parse_yaml((_folder(package) / f"{name_or_file}.yaml").read_text(encoding="utf-8"))
        else:
            raise RecipeError(
                f"recipe {name_or_file}: unknown; shipped are {', '.join(shipped_names(package))}, "
                "any other is given as a .yaml file"
            )
    except FileNotFoundError as error:
        raise RecipeError(f"recipe {name_or_file}: no such file") from error
    except OSError as error:
        raise RecipeError(f"recipe {name_or_file}: cannot be read: {error.strerror}") from error
    except PlainYamlError as error:
        raise RecipeError(f"recipe {name_or_file}: {error}") from error
    if not isinstance(fields, dict):
        raise RecipeError(f"recipe {name_or_file}: must be a mapping of fields, is {type(fields).__name__}")
    parent = fields.pop("extends", None)
    if parent is None:
        return fields
    if not isinstance(parent, str) or name_problem(parent.rpartition("/")[2]):
        raise RecipeError(f"recipe {name_or_file}: extends is {str(parent)[:_MOST_NAME]!a}, must name a recipe")
    if _is_file(parent):
        parent = _beside(name_or_file, parent)
    return {**_fields(parent, package, (*seen, name_or_file)), **fields}


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _beside(file: str, parent: str) -> str:
    """The file that `file` extends, given from its folder; it must be in that folder, or below."""
    folder = Path(file).parent
    path = folder / parent
    if not _is_file(file) or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise RecipeError(
            f"recipe {file}: extends {parent}, which is not in its own folder, {folder}; a recipe may extend a shipped "
            "one or a file beside it: copy that one there"
        )
    return str(path)


def _folder(package: str) -> Any:
    return resources.files(package) / "recipes"
