"""Recipe files: YAML mappings that ship with a package or lie anywhere, and may `extend` one another."""

from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonargparse
import yaml


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

    Raises jsonargparse.ArgumentError for an unknown field, a wrong type, or null where the type has none.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, skip=skip or set())
    checked = dict(vars(parser.parse_object(fields)))
    hints = get_type_hints(cls)
    # the parser lets these pass
    nulls = [name for name, value in checked.items() if value is None and type(None) not in get_args(hints[name])]
    if nulls:
        raise jsonargparse.ArgumentError(None, f"{', '.join(nulls)}: must not be null")
    return checked


def _fields(name_or_file: str, package: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name_or_file in seen:
        raise RecipeError(f"recipe {name_or_file} extends itself: {' -> '.join((*seen, name_or_file))}")
    is_file = name_or_file.endswith((".yaml", ".yml"))
    if is_file and not Path(name_or_file).is_file():
        raise RecipeError(f"recipe {name_or_file}: no such file")
    if not is_file and name_or_file not in shipped_names(package):
        raise RecipeError(
            f"recipe {name_or_file}: unknown; shipped are {', '.join(shipped_names(package))}, "
            "any other is given as a .yaml file"
        )
    text = (Path(name_or_file) if is_file else _folder(package) / f"{name_or_file}.yaml").read_text(encoding="utf-8")
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {name_or_file}: not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise RecipeError(f"recipe {name_or_file}: must be a mapping of fields, is {type(fields).__name__}")
    parent = fields.pop("extends", None)
    return {**(_fields(str(parent), package, (*seen, name_or_file)) if parent else {}), **fields}


def _folder(package: str) -> Any:
    return resources.files(package) / "recipes"
