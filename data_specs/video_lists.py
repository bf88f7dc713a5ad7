"""Lists of videos, in the four usual formats:

    path_label   `some/path.mp4 17`: VideoMAE's; the label may also follow a comma or a tab; paths may hold spaces
    csv          comma-separated with a header that names a path column, or columns that the spec's `path_template` uses
    paths        one path per line
    json         a list of objects (Something-Something V2's), see `json_lists.py`

Lines end with a line feed, or a carriage return and a line feed. A list need not be trusted. What a list says of labels
is kept as it stands there; what it means is in `labels.py`.
"""

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from data_specs.json_lists import is_json_list, json_rows
from data_specs.list_names import path_problem, text_problem
from data_specs.list_problems import DatasetError, Problems, shown
from data_specs.list_rows import PATH_COLUMNS, ListFormat, ListOptions, ListRow, label_column, path_source
from data_specs.path_template import fill_template, template_fields

_BLANKS = " \t\r"


@dataclasses.dataclass(frozen=True, slots=True)
class VideoEntry:
    """One line of a list."""

    index: int
    """Position in the list, from 0."""
    id: str
    """The list's id of the video; its path where the list has none."""
    path: str
    """Path relative to the data set's root, with forward slashes."""
    label: str | None = None
    """The list's text for its label, or None where it has none; no part of the list's digest."""
    line: int | None = None
    """Of the list, from 1; None in lists that are not one file of lines."""


def parse_list(text: str, spec: ListOptions, where: str, root: Path) -> tuple[VideoEntry, ...]:
    """Parse a list's text; `where` names it in an error. All problems are reported at once."""
    problems = Problems()
    if spec.format == "json" or (spec.format == "auto" and is_json_list(text)):
        return entries_of(json_rows(text, spec, where, problems), problems, where, root)
    # not splitlines(): it takes form feeds and Unicode's separators for ends of lines as well
    lines = [(number, line.strip(_BLANKS)) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise DatasetError(f"{where}: is empty")
    list_format = spec.format if spec.format != "auto" else _detect_format([line for _, line in lines], spec)
    rows: list[ListRow] = []
    if list_format == "csv":
        rows = _csv_rows(text, spec, where, problems)
    else:
        for number, line in lines:
            parts = split_label(line) if list_format == "path_label" else (line, None)
            if parts is None:
                problems.add(number, f"no label after the path: {shown(line)}")
                continue
            rows.append(ListRow(number, None, *parts))
    return entries_of(rows, problems, where, root)


def entries_of(rows: Sequence[ListRow], problems: Problems, where: str, root: Path) -> tuple[VideoEntry, ...]:
    """The entries of a list's rows, in their order; raises DatasetError for their problems and those found before."""
    entries: list[VideoEntry] = []
    places_of_ids: dict[str, int | str] = {}
    places_of_paths: dict[str, int | str] = {}
    labels: dict[str, str] = {}  # each text once: a list has far fewer labels than videos
    for place, listed_id, path, label in rows:
        relative = _relative_path(path, root)
        if relative is None:
            problems.add(place, f"{shown(path)} is not below the root {root}")
            continue
        video_id = relative if listed_id is None else listed_id
        wrong = path_problem(relative) or text_problem(video_id)
        if wrong:
            problems.add(place, f"{shown(relative if path_problem(relative) else video_id)} {wrong}")
        elif video_id in places_of_ids:
            problems.add(place, f"{shown(video_id)} is already on {_on(places_of_ids[video_id])}")
        elif relative in places_of_paths:
            problems.add(place, f"the file {shown(relative)} is already that of {_on(places_of_paths[relative])}")
        else:
            places_of_ids[video_id] = places_of_paths[relative] = place
            kept = labels.setdefault(label, label) if label is not None else None
            line = place if isinstance(place, int) else None
            entries.append(VideoEntry(len(entries), video_id, relative, kept, line))
    problems.check(where)
    return tuple(entries)


def _on(place: int | str) -> str:
    return f"line {place}" if isinstance(place, int) else place


def split_label(line: str) -> tuple[str, str] | None:
    """Path and label of `path label`, where a blank or a comma parts them, or None. In linear time, however odd."""
    head = line.rstrip("0123456789")
    if len(head) == len(line):
        return None
    head = head.removesuffix("-")
    path = head.rstrip(_BLANKS)
    if path.endswith(","):
        path = path[:-1].rstrip(_BLANKS)
    return (path, line[len(head) :]) if path and len(path) < len(head) and not path.endswith(",") else None


def _detect_format(lines: list[str], spec: ListOptions) -> ListFormat:
    columns = [column.strip() for column in lines[0].split(",")]
    fields = set(template_fields(spec.path_template or ""))
    # a header with some of a template's columns alone is worth an error of its own
    if {column.lower() for column in columns} & set(PATH_COLUMNS) or (fields & set(columns) and len(columns) > 1):
        return "csv"
    return "path_label" if all(split_label(line) for line in lines) else "paths"


def _csv_rows(text: str, spec: ListOptions, where: str, problems: Problems) -> list[ListRow]:
    # strict: a quote that nothing closes would take the rest of the list for one field
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True)
    rows: list[ListRow] = []
    try:
        columns = [str(column).strip() for column in reader.fieldnames or []]
        reader.fieldnames = columns
        template, path_column = _path_source(columns, spec, where)
        label = label_column(columns, spec)
        for row in reader:
            number = reader.line_num
            if None in row or None in row.values():
                problems.add(number, f"has not the {len(columns)} columns of the header")
                continue
            try:
                path = fill_template(template, row) if template else row[path_column].strip()
            except ValueError as error:
                problems.add(number, str(error))
                continue
            if not path:
                problems.add(number, f"the column {path_column} is empty")
                continue
            listed_id = row[spec.id_column].strip() if spec.id_column else None
            rows.append(ListRow(number, listed_id, path, row[label].strip() or None if label else None))
    except csv.Error as error:
        raise DatasetError(
            f"{where}: line {reader.reader.line_num}: is not comma-separated text: {error}; "
            "a quote that opens a field must be closed, and quotes within are doubled"
        ) from error
    return rows


def _path_source(columns: list[str], spec: ListOptions, where: str) -> tuple[str | None, str]:
    """The template that makes the paths of columns, or the column that holds them."""
    names = ", ".join(map(shown, columns[:20]))
    if len(set(columns)) < len(columns):
        twice = next(column for column, count in Counter(columns).items() if count > 1)
        raise DatasetError(f"{where}: its header names the column {shown(twice)} twice")
    template, column = path_source(columns, spec)
    if not template and not column:
        raise DatasetError(
            f"{where}: its header {names} names no path column ({', '.join(PATH_COLUMNS)}); "
            "give the spec a path_template"
        )
    if spec.id_column is not None and spec.id_column not in columns:
        raise DatasetError(f"{where}: no column {spec.id_column}; it has {names}")
    return template, column


def _relative_path(path: str, root: Path) -> str | None:
    """`path` relative to `root` with forward slashes, in its shortest form, or None where it leaves the root."""
    if path.startswith("/"):
        try:
            path = str(PurePosixPath(path).relative_to(root))
        except ValueError:
            return None
    pure = PurePosixPath(path)
    return None if ".." in pure.parts or not pure.parts else str(pure)
