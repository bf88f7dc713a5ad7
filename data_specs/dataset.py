"""Data sets: where the videos are and which of them, in which order.

A data set is a YAML spec (shipped by name, or a file) or simply a list file. Lists come in the three usual formats:

    path_label   `some/path.mp4 17`: VideoMAE's; the label may also follow a comma or a tab; paths may hold spaces
    csv          comma-separated with a header that names a path column, or columns that the spec's `path_template` uses
    paths        one path per line

Lines end with a line feed, or a carriage return and a line feed. The order of the list decides which video is in which
shard, so a store remembers the list's digest. Specs and lists need not be trusted: docs/security.md says what of them is
refused.
"""

import csv
import dataclasses
import functools
import hashlib
import io
import os
import re
import string
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import jsonargparse

from data_specs.demo_clips import render_demo_clips
from data_specs.list_names import path_problem, text_problem
from data_specs.plain_yaml import PlainYamlError, parse_yaml, read_yaml
from data_specs.untrusted_files import read_bounded
from data_specs.yaml_recipes import checked_fields, name_problem

ListFormat = Literal["auto", "path_label", "csv", "paths"]
PATH_COLUMNS = ("path", "video_path", "video", "filename", "file")
MOST_LIST_BYTES = 16 << 30
"""Of a list, which is read as a whole: 100 million videos."""
_MOST_FRAMES = 100_000
_BLANKS = " \t\r"
_NUMBER_FORMAT = re.compile(r"0?[1-9]?[0-9]?d")
_NUMBER = re.compile(r"-?[0-9]{1,18}")


class DatasetError(ValueError):
    """A spec, list or root that cannot be used; the message names the file, the line and the way out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Where a data set's videos and lists are."""

    name: str
    """Name under which the data set is written into the store."""
    lists: dict[str, str]
    """List file of each split, relative to the root."""
    split: str = "train"
    """The split that is taken where none is asked for."""
    format: ListFormat = "auto"
    """Format of the lists; `auto` tells them apart by their lines."""
    root_env: str | None = None
    """Environment variable that holds the root folder where `--root` is not given."""
    root: str | None = None
    """Root folder where neither `--root` nor the environment variable is given."""
    path_template: str | None = None
    """For csv lists without a path column: the path from the other columns, e.g. `{label}/{youtube_id}.mp4`;
    numbers may be formatted, e.g. `{time_start:06d}`."""
    id_column: str | None = None
    """For csv lists: the column that holds the video's id; otherwise the path is the id."""
    start_stride: int = 4
    """Start stride for recipes that leave it to the data set: it must divide the training clip's tubelet size times
    its frame stride (2 x 4 for Kinetics, 2 x 3 for Something-Something V2)."""
    clip_stride: int = 4
    """Frames from one frame of a training clip to the next, for recipes that leave it to the data set."""
    flip: bool = True
    """Whether a video's mirror image is as good a training sample: not where labels tell left from right."""
    rendered: bool = False
    """The videos are rendered into the root folder when they are not there (the demo)."""

    def __post_init__(self) -> None:
        if problem := name_problem(self.name):
            raise DatasetError(f"name {problem}")
        for name in ("start_stride", "clip_stride"):
            if not 1 <= getattr(self, name) <= _MOST_FRAMES:
                raise DatasetError(f"{name} is {getattr(self, name)}, must be 1 or more, at most {_MOST_FRAMES}")
        if self.split not in self.lists:
            raise DatasetError(f"split {self.split} has no list; lists has {', '.join(self.lists) or 'none'}")
        _template_fields(self.path_template or "")


@dataclasses.dataclass(frozen=True)
class VideoEntry:
    """One line of a list."""

    index: int
    """Position in the list, from 0."""
    id: str
    """The list's id of the video; its path where the list has none."""
    path: str
    """Path relative to the data set's root, with forward slashes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoList:
    """The videos of one split, in list order, and where they are."""

    dataset: str
    split: str
    root: Path
    entries: tuple[VideoEntry, ...]
    start_stride: int
    clip_stride: int = 4
    flip: bool = True

    @property
    def digest(self) -> str:
        """SHA-256 of the ids and paths in list order: two lists with one digest shard the same way."""
        return list_digest([(e.id, e.path) for e in self.entries])

    def shard(self, shard: int, num_shards: int) -> tuple[VideoEntry, ...]:
        """The videos of shard `shard` of `num_shards`: every num_shards-th entry, in list order."""
        return self.entries[shard::num_shards]

    def limited(self, limit: int) -> "VideoList":
        """The list's first `limit` videos."""
        return dataclasses.replace(self, entries=self.entries[:limit])


def list_digest(ids_and_paths: Sequence[tuple[str, str]]) -> str:
    """SHA-256, in hex, of `id<TAB>path<NEWLINE>` for each video in list order, in UTF-8."""
    digest = hashlib.sha256()
    for video_id, path in ids_and_paths:
        digest.update(f"{video_id}\t{path}\n".encode())
    return digest.hexdigest()


def dataset_names() -> list[str]:
    """Names of the data set specs that ship with the project."""
    return sorted(p.name.removesuffix(".yaml") for p in _shipped().iterdir() if p.name.endswith(".yaml"))


def load_spec(file: str) -> DatasetSpec:
    """Load a shipped spec by name or a YAML file by path; raises DatasetError with every problem of the file."""
    where = f"data set {file}"
    try:
        if file in dataset_names():
            fields = parse_yaml((_shipped() / f"{file}.yaml").read_text(encoding="utf-8"))
        else:
            fields = read_yaml(file)
    except OSError as error:
        raise DatasetError(f"{where}: cannot be read: {error.strerror}") from error
    except PlainYamlError as error:
        raise DatasetError(f"{where}: {error}") from error
    if not isinstance(fields, dict):
        raise DatasetError(f"{where}: must be a mapping of fields, is {type(fields).__name__}")
    try:
        return DatasetSpec(**checked_fields(DatasetSpec, fields))
    except (jsonargparse.ArgumentError, DatasetError, TypeError) as error:
        raise DatasetError(f"{where}: {error}") from error


def load_videos(
    dataset: str, root: str | None = None, split: str | None = None, list_file: str | None = None
) -> VideoList:
    """Load the list of a data set given as NAME, SPEC.yaml or LIST.

    root: folder that the paths are relative to; without it the spec's environment variable, then the spec's own.
    list_file: takes the place of the spec's list of that split.
    Raises DatasetError for an unknown name, a missing root or list, a path outside the root, a duplicate id.
    """
    spec = _spec_of(dataset)
    split = split or spec.split
    if list_file is None and split not in spec.lists:
        raise DatasetError(f"data set {spec.name} has no split {split}: it has {', '.join(spec.lists)}")
    folder = root_folder(spec, root)
    if spec.rendered and not folder.exists():
        render_demo_clips(folder)
    if not folder.is_dir():
        raise DatasetError(f"root {folder} of data set {spec.name} is not a folder; give it with --root")
    path = Path(list_file) if list_file else folder / spec.lists[split]
    hint = "" if list_file else f" (the {split} list of {spec.name}; another one is given with --list)"
    entries = parse_list(_read(path, f"list {path}{hint}"), spec, where=f"list {path}", root=folder)
    return VideoList(
        dataset=spec.name,
        split=split,
        root=folder,
        entries=entries,
        start_stride=spec.start_stride,
        clip_stride=spec.clip_stride,
        flip=spec.flip,
    )


def root_folder(spec: DatasetSpec, root: str | None = None) -> Path:
    """The folder of a data set's videos: `root`, else its environment variable's, else its own; absolute.

    Raises DatasetError where none of them is given.
    """
    from_env = os.environ.get(spec.root_env) if spec.root_env else None
    chosen = root or from_env or spec.root
    if not chosen:
        variable = f" or set {spec.root_env}" if spec.root_env else ""
        raise DatasetError(f"data set {spec.name}: where are its videos? Give --root DIR{variable}")
    return Path(chosen).expanduser().absolute()


def parse_list(text: str, spec: DatasetSpec, where: str, root: Path) -> tuple[VideoEntry, ...]:
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


def _spec_of(dataset: str) -> DatasetSpec:
    if dataset in dataset_names() or dataset.endswith((".yaml", ".yml")):
        return load_spec(dataset)
    path = Path(dataset)
    if path.is_file():
        return DatasetSpec(name=path.stem, lists={"train": str(path.absolute())})
    raise DatasetError(
        f"data set {dataset}: neither a shipped name ({', '.join(dataset_names())}) nor a file; "
        "give a name, a SPEC.yaml or a list file"
    )


def _detect_format(lines: list[str], spec: DatasetSpec) -> ListFormat:
    header = [column.strip().lower() for column in lines[0].split(",")]
    if spec.path_template or set(header) & set(PATH_COLUMNS):
        return "csv"
    return "path_label" if all(_labelled_path(line) for line in lines) else "paths"


def _csv_rows(text: str, spec: DatasetSpec, where: str, problems: _Problems) -> list[tuple[int, str | None, str]]:
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
            f"{where}: line {reader.line_num}: is not comma-separated text: {error}; a quote that opens a field must be "
            "closed, and quotes within are doubled"
        ) from error
    return rows


def _path_column(columns: list[str], spec: DatasetSpec, where: str) -> str:
    """The column that holds the paths, empty where a template makes them of others."""
    names = ", ".join(map(_shown, columns[:20]))
    if len(set(columns)) < len(columns):
        twice = next(column for column, count in Counter(columns).items() if count > 1)
        raise DatasetError(f"{where}: its header names the column {_shown(twice)} twice")
    found = next((column for column in columns if column.lower() in PATH_COLUMNS), None)
    if found is None and spec.path_template is None:
        raise DatasetError(
            f"{where}: its header {names} names no path column ({', '.join(PATH_COLUMNS)}); give the spec a path_template"
        )
    if spec.id_column is not None and spec.id_column not in columns:
        raise DatasetError(f"{where}: no column {spec.id_column}; it has {names}")
    return found or ""


@functools.cache
def _template_fields(template: str) -> dict[str, bool]:
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
    for field, is_number in _template_fields(template).items():
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
    parts = PurePosixPath(path).parts
    return None if ".." in parts or not parts else str(PurePosixPath(*parts))


def _read(path: Path, where: str) -> str:
    try:
        return read_bounded(path, MOST_LIST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{where}: cannot be read: {error.strerror}: {path}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where}: is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _shipped() -> Any:
    return resources.files("data_specs") / "datasets"
