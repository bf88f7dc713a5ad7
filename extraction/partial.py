"""A finished video of an unfinished shard: one zip file, written while the video streams through.

Members are `video.json` (the `VideoMeta`) and, for each block of start rows, `<array>/<block>`: an .npy file in a blosc
frame. Zip's own checksums find a damaged one. Nothing reads these files but the assembly of their shard, which
removes them.
"""

import dataclasses
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from data_specs.schema import VideoMeta
from extraction.process_video import EncodedRow

_ANY_TIME = (1980, 1, 1, 0, 0, 0)
_BLOCK_BYTES = 16 << 20
_BLOSC = numcodecs.blosc.Blosc(cname="zstd", clevel=1, shuffle=numcodecs.blosc.Blosc.BITSHUFFLE)


class PartialError(Exception):
    """A partial file, at `path`, that is damaged."""

    def __init__(self, path: Path, problem: object) -> None:
        super().__init__(f"{path}: is damaged: {problem}")
        self.path = path


class PartialWriter:
    """Writes a partial file to `path`, block by block. `num_rows` and `num_bytes` (before compression) count up."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._pending: list[EncodedRow] = []
        self._pending_bytes = 0
        self._blocks = 0
        self.num_rows = 0
        self.num_bytes = 0

    def __enter__(self) -> "PartialWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def append(self, row: EncodedRow) -> None:
        """Add one start row."""
        self._pending.append(row)
        self._pending_bytes += sum(array.nbytes for array in row.values())
        self.num_rows += 1
        if self._pending_bytes >= _BLOCK_BYTES:
            self._flush()

    def finish(self, meta: VideoMeta) -> None:
        """Write what is pending, and the video's metadata as the last member."""
        self._flush()
        self._write("video.json", json.dumps(dataclasses.asdict(meta)).encode())

    def _flush(self) -> None:
        if not self._pending:
            return
        for name in self._pending[0]:
            buffer = io.BytesIO()
            np.save(buffer, np.concatenate([row[name] for row in self._pending]), allow_pickle=False)
            self._write(f"{name}/{self._blocks:06d}", _BLOSC.encode(buffer.getvalue()))
        self.num_bytes += self._pending_bytes
        self._blocks += 1
        self._pending, self._pending_bytes = [], 0

    def _write(self, name: str, data: bytes) -> None:
        # not the clock's time: zip holds none before 1980, where a machine without a battery begins
        self._zip.writestr(zipfile.ZipInfo(name, _ANY_TIME), data)


class PartialFile:
    """Reads a partial file. Raises PartialError where it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self.meta = VideoMeta.from_json(json.loads(archive.read("video.json")))
                self._members = sorted(archive.namelist())
        except Exception as error:
            raise PartialError(path, error) from error

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """The array's blocks in order, to be joined along the first axis."""
        rows = 0
        try:
            with zipfile.ZipFile(self.path) as archive:
                for member in self._members:
                    if member.rpartition("/")[0] == name:
                        block = np.load(io.BytesIO(_BLOSC.decode(archive.read(member))), allow_pickle=False)
                        rows += len(block)
                        yield block
        except Exception as error:
            raise PartialError(self.path, f"{name}: {error}") from error
        per_start = {self.meta.num_starts, self.meta.num_starts * self.meta.points_per_start}
        if rows not in per_start:
            raise PartialError(self.path, f"{name}: holds {rows} rows, the video has {self.meta.num_starts} start rows")
