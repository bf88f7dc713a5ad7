"""Lists of videos, in the three usual formats:

    path_label   `some/path.mp4 17`: VideoMAE's; the label may also follow a comma or a tab; paths may hold spaces
    csv          comma-separated with a header that names a path column, or columns that the spec's `path_template` uses
    paths        one path per line

Lines end with a line feed, or a carriage return and a line feed. A list need not be trusted.
"""

import csv
import dataclasses
import functools
import io
import re
import string
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from data_specs.list_names import path_problem, text_problem

ListFormat = Literal["auto", "path_label", "csv", "paths"]
PATH_COLUMNS = ("path", "video_path", "video", "filename", "file")
_BLANKS = " \t\r"
_NUMBER_FORMAT = re.compile(r"0?[1-9]?[0-9]?d")
_NUMBER = re.compile(r"-?[0-9]{1,18}")


class DatasetError(ValueError):
    """A spec, list or root that cannot be used; the message names the file, the line and the way out."""


class ListOptions(Protocol):
    """What of a data set's spec says how its lists are read."""

    @property
    def format(self) -> ListFormat: ...

    @property
    def path_template(self) -> str | None: ...

    @property
    def id_column(self) -> str | None: ...


@dataclasses.dataclass(frozen=True)
class VideoEntry:
    """One line of a list."""

    index: int
    """Position in the list, from 0."""
    id: str
    """The list's id of the video; its path where the list has none."""
    path: str
    """Path relative to the data set's root, with forward slashes."""


def parse_list(text: str, spec: ListOptions, where: str, root: Path) -> tuple[VideoEntry, ...]:
    """Parse a list's text; `where` names it in an error. All problems are reported at once."""
    # not splitlines(): it takes form feeds and Unicode's separators for ends of lines as well
    lines = [(number, line.strip(_BLANKS)) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise DatasetError(f"{where}: is empty")
    list_format = spec.format if spec.format != "auto" else _detect_format([line for _, line in lines], spec)
    problems = _Problems()
    rows: list[tuple[int, str | None, str]] = []
    if list_format == "csv":
        rows = _csv_rows(text, spec, where, problems)
    else:
        for number, line in lines:
            path = _labelled_path(line) if list_format == "path_label" else line
            if path is None:
                problems.add(number, f"no label after the path: {_shown(line)}")
                continue
            rows.append((number, None, path))
    entries: list[VideoEntry] = []
    lines_of_ids: dict[str, int] = {}
    lines_of_paths: dict[str, int] = {}
    for number, listed_id, path in rows:
        relative = _relative_path(path, root)
        if relative is None:
            problems.add(number, f"{_shown(path)} is not below the root {root}")
            continue
        video_id = relative if listed_id is None else listed_id
        wrong = path_problem(relative) or text_problem(video_id)
        if wrong:
            problems.add(number, f"{_shown(relative if path_problem(relative) else video_id)} {wrong}")
        elif video_id in lines_of_ids:
            problems.add(number, f"{_shown(video_id)} is already on line {lines_of_ids[video_id]}")
        elif relative in lines_of_paths:
            problems.add(number, f"the file {_shown(relative)} is already that of line {lines_of_paths[relative]}")
        else:
            lines_of_ids[video_id] = lines_of_paths[relative] = number
            entries.append(VideoEntry(len(entries), video_id, relative))
    problems.check(where)
    return tuple(entries)


class _Problems:
    """What is wrong with a list: all of it counted, the first few kept."""

    def __init__(self) -> None:
        self._count = 0
        self._first: list[str] = []

    def add(self, line: int, problem: str) -> None:
        self._count += 1
        if len(self._first) < 20:
            self._first.append(f"line {line}: {problem}")

    def check(self, where: str) -> None:
        """Raise DatasetError if there are any."""
        if self._count:
            shown, more = "\n  ".join(self._first), self._count - len(self._first)
            raise DatasetError(
                f"{where}: {self._count} problem(s)\n  {shown}" + (f"\n  and {more} more" if more else "")
            )


def _shown(text: str) -> str:
    """A text of a list as it can be shown: in one line, and not a long one."""
    return repr(text if len(text) <= 200 else text[:200] + "…")


def _labelled_path(line: str) -> str | None:
    """The path of `path label`, where a blank or a comma parts them, or None. In linear time, however odd the line."""
    head = line.rstrip("0123456789")
    if len(head) == len(line):
        return None
    head = head.removesuffix("-")
    path = head.rstrip(_BLANKS)
    if path.endswith(","):
        path = path[:-1].rstrip(_BLANKS)
    return path if path and len(path) < len(head) and not path.endswith(",") else None


def _detect_format(lines: list[str], spec: ListOptions) -> ListFormat:
    header = [column.strip().lower() for column in lines[0].split(",")]
    if spec.path_template or set(header) & set(PATH_COLUMNS):
        return "csv"
    return "path_label" if all(_labelled_path(line) for line in lines) else "paths"


def _csv_rows(text: str, spec: ListOptions, where: str, problems: _Problems) -> list[tuple[int, str | None, str]]:
    # strict: a quote that nothing closes would take the rest of the list for one field
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True)
    rows: list[tuple[int, str | None, str]] = []
    try:
        columns = [str(column).strip() for column in reader.fieldnames or []]
        reader.fieldnames = columns
        path_column = _path_column(columns, spec, where)
        for row in reader:
            number = reader.line_num
            if None in row or None in row.values():
                problems.add(number, f"has not the {len(columns)} columns of the header")
                continue
            try:
                path = _fill_template(spec.path_template, row) if spec.path_template else row[path_column].strip()
            except (KeyError, ValueError) as error:
                what = f"no column {error}" if isinstance(error, KeyError) else str(error)
                problems.add(number, f"path_template {spec.path_template!r} does not fit: {what}")
                continue
            if not path:
                problems.add(number, f"the column {path_column} is empty")
                continue
            rows.append((number, row[spec.id_column].strip() if spec.id_column else None, path))
    except csv.Error as error:
        raise DatasetError(
            f"{where}: line {reader.reader.line_num}: is not comma-separated text: {error}; "
            "a quote that opens a field must be closed, and quotes within are doubled"
        ) from error
    return rows


def _path_column(columns: list[str], spec: ListOptions, where: str) -> str:
    """The column that holds the paths, empty where a template makes them of others."""
    names = ", ".join(map(_shown, columns[:20]))
    if len(set(columns)) < len(columns):
        twice = next(column for column, count in Counter(columns).items() if count > 1)
        raise DatasetError(f"{where}: its header names the column {_shown(twice)} twice")
    found = next((column for column in columns if column.lower() in PATH_COLUMNS), None)
    if found is None and spec.path_template is None:
        raise DatasetError(
            f"{where}: its header {names} names no path column ({', '.join(PATH_COLUMNS)}); "
            "give the spec a path_template"
        )
    if spec.id_column is not None and spec.id_column not in columns:
        raise DatasetError(f"{where}: no column {spec.id_column}; it has {names}")
    return found or ""


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


def _fill_template(template: str, row: dict[str, str]) -> str:
    """The template with the row's values; a field with a format such as `:06d` takes its value as a number."""
    values: dict[str, str | int] = {}
    for field, is_number in template_fields(template).items():
        text = row[field].strip()
        if is_number and not _NUMBER.fullmatch(text):
            raise ValueError(f"{field} is {_shown(text)}, not a whole number")
        values[field] = int(text) if is_number else row[field]
    return template.format(**values)


def _relative_path(path: str, root: Path) -> str | None:
    """`path` relative to `root` with forward slashes, in its shortest form, or None where it leaves the root."""
    if path.startswith("/"):
        try:
            path = str(PurePosixPath(path).relative_to(root))
        except ValueError:
            return None
    pure = PurePosixPath(path)
    return None if ".." in pure.parts or not pure.parts else str(pure)
