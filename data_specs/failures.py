"""Videos that failed: one JSON line for each, in `failures/<shard>.jsonl` of a store."""

import dataclasses
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_specs.shard_files import size_and_crc32


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
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str, where: str) -> "Failure":
        """Parse a line; raises ValueError naming `where` if a field is missing, unknown or of a wrong type."""
        try:
            failure = cls(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: is not a failure record: {error}") from error
        for field in dataclasses.fields(cls):
            if not isinstance(getattr(failure, field.name), int if field.type in (int, "int") else str):
                raise ValueError(f"{where}: {field.name} is {getattr(failure, field.name)!r}")
        return failure


def failures_path(store: Path, shard: int) -> Path:
    """Where the failures of a complete shard are; there is no file when there are none."""
    return store / "failures" / f"{shard:05d}.jsonl"


def read_failures(store: Path, shard: int) -> list[Failure]:
    """The failures of a complete shard, in list order."""
    path = failures_path(store, shard)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
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

    attributes: the shard's; from before 0.4 they do not say, and there is nothing to find.
    """
    sealed = attributes.get("failures")
    if sealed is None:
        return
    path = failures_path(store, shard)
    size, checksum = (0, 0) if not path.exists() else size_and_crc32(path) if contents else (path.stat().st_size, None)
    if [size, sealed[1] if checksum is None else checksum] != list(sealed):
        yield f"{path}: has {size} bytes{'' if checksum is None else f', CRC-32 {checksum}'}; must have {sealed}"
