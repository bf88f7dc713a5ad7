"""Paths made of columns of lists, as `{label}/{youtube_id}_{time_start:06d}.mp4`: column names and whole numbers."""

import functools
import re
import string
from collections.abc import Mapping

from data_specs.list_problems import DatasetError, shown

_NUMBER_FORMAT = re.compile(r"0?[1-9]?[0-9]?d")
_NUMBER = re.compile(r"-?[0-9]{1,18}")


@functools.cache
def template_fields(template: str) -> dict[str, bool]:
    """The columns that a path_template names, and whether each is formatted as a number. Raises DatasetError."""
    fields: dict[str, bool] = {}
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DatasetError(f"path_template {template!r}: {error}") from error
    for _, field, form, conversion in parsed:
        if field is None:
            continue
        if not field.isidentifier() or conversion:
            raise DatasetError(f"path_template may only name columns, has {{{field}{'!' if conversion else ''}…}}")
        if form and not _NUMBER_FORMAT.fullmatch(form):
            raise DatasetError(f"path_template may format numbers only, as in {{{field}:06d}}, has {{{field}:{form}}}")
        fields[field] = fields.get(field, False) or bool(form)
    return fields


def fill_template(template: str, row: Mapping[str, str]) -> str:
    """The template with the row's values; a field with a format such as `:06d` takes its value as a number.

    Raises ValueError that says why it does not fit.
    """
    values: dict[str, str | int] = {}
    for field, is_number in template_fields(template).items():
        if field not in row:
            raise ValueError(f"path_template {template!r} does not fit: no column {field!r}")
        text = row[field].strip()
        if is_number and not _NUMBER.fullmatch(text):
            raise ValueError(f"path_template {template!r} does not fit: {field} is {shown(text)}, not a whole number")
        values[field] = int(text) if is_number else row[field]
    return template.format(**values)
