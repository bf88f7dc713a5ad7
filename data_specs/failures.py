"""Videos that failed: one JSON line for each, in `failures/<shard>.jsonl` of a store."""

import dataclasses
import json
from pathlib import Path


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
