"""Files that somebody else may have made: regular ones alone, of a bounded size, and the JSON in them.

A pipe would be waited for without an end, a device read without one; so they are never read, and never waited for.
"""

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MOST_METADATA_BYTES = 1 << 20
"""Of store.json, and of zarr.json but for that of a shard's ids and paths."""
MOST_TEXTS_BYTES = 256 << 20
"""Of the zarr.json that has the ids and paths of a shard's videos: room for a million and more."""

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class RefusedFileError(OSError):
    """A file that is not opened or not read; `strerror` says why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))


def kind_problem(mode: int) -> str | None:
    """Why a file with this `st_mode` is not read: None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return f"is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, not a file"


def open_regular(path: str | Path, *, links: bool = True) -> int:
    """A descriptor of a regular file, open for reading; never waits. links: whether `path` may be a symbolic link.

    Raises OSError; RefusedFileError for what is no regular file.
    """
    mode = Path(path).stat(follow_symlinks=links).st_mode  # a device may do something as it is opened
    if problem := kind_problem(mode):
        raise RefusedFileError(path, problem)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW))
    if problem := kind_problem(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RefusedFileError(path, problem)
    return descriptor


def read_bounded(path: str | Path, most_bytes: int, *, links: bool = True) -> bytes:
    """The bytes of a regular file of at most `most_bytes`.

    Raises OSError whose `strerror` says why not: RefusedFileError for another kind of file, or a larger one.
    """
    try:
        descriptor = open_regular(path, links=links)
    except ValueError as error:  # NUL in the path
        raise RefusedFileError(ascii(str(path)), str(error)) from error
    with os.fdopen(descriptor, "rb") as stream:
        size = os.fstat(descriptor).st_size
        if size <= most_bytes:
            data = stream.read(most_bytes + 1)
            size = max(size, len(data))
        if size > most_bytes:
            raise RefusedFileError(path, f"has {size} bytes, more than the {most_bytes} that are read of such a file")
    return data


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError for anything else, and for numbers that are not finite."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is too large a number")
    return value
