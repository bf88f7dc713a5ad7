"""Videos that failed: one JSON line for each, in `failures/<shard>.jsonl` of a store."""

import dataclasses
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_specs.shard_files import size_and_crc32
from data_specs.untrusted_files import parse_json, read_bounded

MOST_BYTES = 256 << 20
"""Of a shard's failures: half a million lines and more."""
# json leaves these as they are: control characters steer terminals, the separators end lines for some, the surrogates
# cannot be written
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a video is not in the store."""

    index: int
    """Its position in the list."""
    id: str
    path: str
    """Path relative to the data set's root."""
    stage: str
    """What was being done: `decode`, `flow`, `hog` and so on, or `worker` where the process itself was lost."""
    error: str
    """Class of the error; failures are counted by it."""
    message: str
    attempts: int
    """How often the video was tried."""

    def to_line(self) -> str:
        """One line of JSON, without its newline."""
        line = json.dumps(dataclasses.asdict(self), ensure_ascii=False)
        return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", line)

    @classmethod
    def from_line(cls, line: str, where: str) -> "Failure":
        """Parse a line; raises ValueError naming `where` if a field is missing, unknown or of a wrong type."""
        try:
            fields = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where}: is not a failure record: {error}") from error
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, dict) or sorted(fields) != sorted(names):
            raise ValueError(f"{where}: is not a failure record: its fields must be {', '.join(names)}")
        for name in names:
            cls._check(name, fields[name], where)
        return cls(**fields)

    @classmethod
    def _check(cls, name: str, value: Any, where: str) -> None:
        is_number = cls.__dataclass_fields__[name].type in (int, "int")
        sound = type(value) is int and 0 <= value < 1 << 48 if is_number else type(value) is str
        if not sound:
            raise ValueError(f"{where}: {name} is {ascii(value)[:200]}")


def failures_path(store: Path, shard: int) -> Path:
    """Where the failures of a complete shard are; there is no file when there are none."""
    return store / "failures" / f"{shard:05d}.jsonl"


def read_failures(store: Path, shard: int) -> list[Failure]:
    """The failures of a complete shard, in list order. Raises OSError, ValueError."""
    path = failures_path(store, shard)
    try:
        text = read_bounded(path, MOST_BYTES, links=False).decode()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    lines = text.split("\n")[:-1]
    return [Failure.from_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def to_lines(failures: Iterable[Failure]) -> bytes:
    """The contents of a shard's file of failures."""
    return "".join(failure.to_line() + "\n" for failure in failures).encode()


def failures_seal(failures: Iterable[Failure]) -> list[int]:
    """[bytes, CRC-32] of a shard's file of failures, [0, 0] where there is none: the shard's attribute `failures`."""
    lines = to_lines(failures)
    return [len(lines), zlib.crc32(lines)]


def failures_problems(store: Path, shard: int, attributes: Mapping[str, Any], *, contents: bool) -> Iterator[str]:
    """Whether a complete shard's file of failures has the size, or with `contents` the bytes, that it was written with.

    attributes: the shard's; from before 0.5 they do not say, and there is nothing to find.
    """
    sealed = attributes.get("failures")
    if sealed is None:
        return
    path = failures_path(store, shard)
    size, checksum = (0, 0) if not path.exists() else size_and_crc32(path) if contents else (path.stat().st_size, None)
    if [size, sealed[1] if checksum is None else checksum] != list(sealed):
        yield f"{path}: has {size} bytes{'' if checksum is None else f', CRC-32 {checksum}'}; must have {sealed}"
