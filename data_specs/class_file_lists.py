"""Lists that are one file for each class, as HMDB51's are published: `brush_hair_test_split1.txt`, with lines
`video.avi 1`, where 1 marks the videos of training, 2 those of the test and 0 the others.

A spec, or `--list`, names them all at once, with the mark that is asked for behind a colon:
`testTrainMulti_7030_splits/*_test_split1.txt:1`. What the asterisk stands for is the class, which is also the folder of
its videos. The files need not be trusted.
"""

import os
import re
from pathlib import Path

from data_specs.list_problems import DatasetError, Problems, shown
from data_specs.list_rows import ListRow
from data_specs.untrusted_files import read_bounded

_PATTERN = re.compile(r"([^/*]*)\*([^/*]*):([0-9]{1,9})")
_MOST_FILES = 10_000
_MOST_BYTES = 64 << 20


def names_class_files(path: Path) -> bool:
    """Whether a list's path stands for one file of each class."""
    return _PATTERN.fullmatch(path.name) is not None


def class_file_rows(path: Path, problems: Problems) -> list[ListRow]:
    """The rows of the videos with the mark that `path` asks for, by class and in the order of its file.

    Raises DatasetError where a file cannot be read, or where there is none.
    """
    found = _PATTERN.fullmatch(path.name)
    assert found is not None
    prefix, suffix, mark = found.groups()
    try:
        with os.scandir(path.parent) as folder:
            names = sorted(entry.name for entry in folder)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DatasetError(f"lists {path}: the folder cannot be read: {reason}") from error
    names = [n for n in names if n.startswith(prefix) and n.endswith(suffix) and len(n) > len(prefix) + len(suffix)]
    if not names:
        raise DatasetError(f"lists {path}: {path.parent} has no file {path.name.rpartition(':')[0]}")
    if len(names) > _MOST_FILES:
        raise DatasetError(f"lists {path}: {len(names)} files, more than the {_MOST_FILES} that are read")
    rows: list[ListRow] = []
    for name in names:
        label = name[len(prefix) : len(name) - len(suffix)]
        rows += _rows_of(path.parent / name, label, mark, problems)
    if not rows:
        problems.add(f"its {len(names)} files", f"have no video with the mark {mark}")
    return rows


def _rows_of(file: Path, label: str, mark: str, problems: Problems) -> list[ListRow]:
    try:
        text = read_bounded(file, _MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"list {file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"list {file}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    rows: list[ListRow] = []
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip(" \t\r")
        if not stripped:
            continue
        place = f"{file.name} line {number}"
        video, _, listed_mark = stripped.replace("\t", " ").rpartition(" ")
        if not video or not (listed_mark.isascii() and listed_mark.isdigit()):
            problems.add(place, f"no mark after the video: {shown(stripped)}")
        elif listed_mark == mark:
            rows.append(ListRow(place, None, f"{label}/{video.rstrip()}", label))
    return rows
