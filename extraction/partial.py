"""A finished video of an unfinished shard: one zip file, written while the video streams through.

Members are `video.json` (the `VideoMeta`) and, for each block of start rows, `<array>/<block>`: an .npy file in a blosc
frame. Zip's own checksums find a damaged one, and one that is made up is refused. Nothing reads these files but the
assembly of their shard, which removes them.
"""

import dataclasses
import io
import json
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from data_specs.checked_blosc import HEADER, frame_problem
from data_specs.list_names import path_problem, text_problem
from data_specs.recipe import Recipe
from data_specs.schema import VideoMeta, array_specs
from data_specs.store_metadata import MOST_EXPANSION
from data_specs.untrusted_files import open_regular, parse_json
from extraction.process_video import EncodedRow

_ANY_TIME = (1980, 1, 1, 0, 0, 0)
_BLOCK_BYTES = 16 << 20
_MOST_BLOCK_BYTES = 1 << 30  # a block is one start row, if that is larger
_MOST_META_BYTES = 64 << 20
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
    """Reads a partial file. Raises PartialError where it is damaged, or not what `PartialWriter` writes.

    recipe: that of its store; with it, blocks are held against the types and shapes of its arrays.
    """

    def __init__(self, path: Path, recipe: Recipe | None = None) -> None:
        self.path = path
        self._specs = None if recipe is None else array_specs(recipe)
        try:
            with self._open() as archive:
                fields = parse_json(_member(archive, "video.json", _MOST_META_BYTES))
                self.meta = VideoMeta.from_json(fields)
                if problem := text_problem(self.meta.id) or path_problem(self.meta.path):
                    raise ValueError(f"its id or path {problem}")
                self._members = sorted(archive.namelist())
        except Exception as error:
            raise PartialError(path, error) from error

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """The array's blocks in order, to be joined along the first axis."""
        rows = 0
        try:
            with self._open() as archive:
                for member in self._members:
                    if member.rpartition("/")[0] == name:
                        block = _decoded_array(_member(archive, member, _MOST_BLOCK_BYTES))
                        self._check(name, block)
                        rows += len(block)
                        yield block
        except Exception as error:
            raise PartialError(self.path, f"{name}: {error}") from error
        per_start = {self.meta.num_starts, self.meta.num_starts * self.meta.points_per_start}
        if rows not in per_start:
            raise PartialError(self.path, f"{name}: holds {rows} rows, the video has {self.meta.num_starts} start rows")

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        with os.fdopen(open_regular(self.path), "rb") as stream, zipfile.ZipFile(stream) as archive:
            yield archive

    def _check(self, name: str, block: NDArray[Any]) -> None:
        if self._specs is None:
            return
        spec = self._specs[name]
        if (block.dtype.name, block.shape[1:]) != (spec.dtype, spec.inner):
            raise ValueError(
                f"a block is of {block.dtype.name} {block.shape[1:]}, rows are of {spec.dtype} {spec.inner}"
            )


def _member(archive: zipfile.ZipFile, name: str, most_bytes: int) -> bytes:
    """A member's bytes, of at most so many. Members are stored, not packed: what is packed may be any size."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"{ascii(name)[:200]} is packed")
    if info.file_size > most_bytes:
        raise ValueError(f"{ascii(name)[:200]} has {info.file_size} bytes, more than {most_bytes}")
    return archive.read(info)


def _decoded_array(frame: bytes) -> NDArray[Any]:
    """The array of numbers in a blosc frame of an .npy file; what both say of sizes is checked first."""
    if len(frame) < HEADER.size:
        raise ValueError(f"a block of {len(frame)} bytes")
    decoded_bytes = HEADER.unpack_from(frame)[4]
    if decoded_bytes > min(_MOST_BLOCK_BYTES, len(frame) * MOST_EXPANSION):
        raise ValueError(f"a block of {len(frame)} bytes says that it makes {decoded_bytes}")
    if problem := frame_problem(frame, decoded_bytes):
        raise ValueError(problem)
    stream = io.BytesIO(_BLOSC.decode(frame))
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an .npy file of another version")
    shape, in_columns, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=1000)
    data = stream.getbuffer()[stream.tell() :]
    if in_columns or dtype.kind not in "iuf" or not shape or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an .npy file of {dtype}, {str(shape)[:100]}, with {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)
