"""Reads arrays of one complete shard of a track store, fast: pread, a cached index of chunks, blosc, crc32c.

zarr-python takes about a millisecond for each chunk, and a clip needs dozens. Every array of a store is coded in one
way, which `data_specs/store_metadata.py` checks; sizes of chunks and files come from its `zarr.json`.
Nothing that is missing is taken for its fill value. What an array says of itself is checked once, as it is opened, what
a file says, as that is.
"""

import errno
import functools
import itertools
import os
import stat
import struct
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from data_specs.recipe import Recipe
from data_specs.schema import ArraySpec, array_specs
from data_specs.shard_files import has_array
from data_specs.store_metadata import (
    MOST_CHUNK_ROWS,
    MOST_EXPANSION,
    StoreError,
    check_no_links,
    check_sealed,
    read_layout,
    read_root,
    read_texts,
)
from data_specs.untrusted_files import kind_problem

# One thread in each worker, as zarr sets it: threads of blosc's own lose more than they win on chunks this small.
blosc.use_threads = False

OPEN_FILES = 256
"""Files that a process keeps open, each with its index of chunks (about 15 kB for one of 64 MiB)."""
_GAP = 128 << 10
"""Bytes between two chunks that are read along rather than asked for twice: round trips cost more on a network."""
_INDEX_ENTRY = struct.Struct("<QQ")
"""Offset and length of a chunk in its file, in bytes."""
_NUMBER = struct.Struct("<I")
_CRC, _BLOSC_HEADER, _DECODED_SIZE_AT, _CODED_SIZE_AT = 4, 16, 4, 12
_MISSING = (1 << 64) - 1

_specs = functools.cache(array_specs)


class _ChunkFile:
    """One open file of an array, a zarr shard. `index`: an entry for each of its chunks.

    Closed when it is garbage. pread leaves no position behind, so a fork may share it.
    """

    def __init__(self, path: str, chunks: int, chunk_bytes: int) -> None:
        try:
            # a pipe is not waited for
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise StoreError(f"{path}: cannot be opened: {reason}") from error
        weakref.finalize(self, os.close, self.fd)
        self.path = path
        length = chunks * _INDEX_ENTRY.size + _CRC
        found = os.fstat(self.fd)
        size = found.st_size
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(f"{path}: cannot be opened: {kind_problem(found.st_mode)}")
        if size < length:
            raise StoreError(f"{path}: has {size} bytes, its index of {chunks} chunks alone has {length}: truncated?")
        self.data_bytes = size - length
        index = self.read(self.data_bytes, length)
        if not _sound(index):
            raise StoreError(f"{path}: the checksum of its index of chunks is wrong: damaged or truncated")
        self.index = index.tobytes()
        if chunks * chunk_bytes > size * MOST_EXPANSION:
            offsets = np.frombuffer(self.index, "<u8", 2 * chunks).reshape(-1, 2)
            written = int((offsets != _MISSING).any(axis=1).sum())
            if written * chunk_bytes > size * MOST_EXPANSION:
                raise StoreError(f"{path}: has {size} bytes, and says that it makes {written * chunk_bytes} of them")

    def read(self, offset: int, length: int) -> NDArray[np.uint8]:
        """Exactly so many bytes, of which parts can be taken without a copy; raises StoreError."""
        try:
            data = os.pread(self.fd, length, offset)
            while 0 < len(data) < length and (more := os.pread(self.fd, length - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be read: {error.strerror}") from error
        if len(data) < length:
            raise StoreError(f"{self.path}: ends within bytes {offset}:{offset + length}: truncated")
        return np.frombuffer(data, np.uint8)


class OpenFiles:
    """Files kept open, at most `limit`, the least recently used closed first. Pickled, it is empty."""

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self.limit = limit
        self.open = functools.lru_cache(maxsize=limit)(_ChunkFile)

    def __reduce__(self) -> tuple[type["OpenFiles"], tuple[int]]:
        return OpenFiles, (self.limit,)


class Runs(NamedTuple):
    """Equally many rows from several places of an array: run r is values[first[r] : first[r] + count].

    values (P, ...); first int64 (R,). What else is in `values` is the rest of chunks, and has no meaning.
    """

    values: NDArray[Any]
    first: NDArray[np.int64]


class ArrayReader:
    """One array of a shard. Raises StoreError, with the array's path, for what is missing, damaged or unknown."""

    def __init__(self, path: Path, spec: ArraySpec, files: OpenFiles) -> None:
        self.path, self._files = str(path), files
        check_no_links(path, ".")
        self.layout = read_layout(path, spec)
        self.shape, self.dtype = self.layout.shape, self.layout.dtype
        self._fill = spec.fill
        self._inner = "/0" * (len(self.shape) - 1)
        self._chunk_bytes = self.layout.chunk_bytes

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start:stop of the first axis, (stop - start, ...) in the array's type. IndexError outside it."""
        runs = self.read_runs([start], stop - start)
        first = int(runs.first[0])
        return runs.values[first : first + stop - start]

    def read_runs(self, starts: Sequence[int], count: int) -> Runs:
        """Rows start:start + count for each of `starts`. Each chunk is decoded once, into where it stays."""
        rows = self.layout.chunk
        if count < 0 or (starts and (min(starts) < 0 or max(starts) + count > self.shape[0])):
            raise IndexError(f"{self.path}: {count} rows from {list(starts)}; it has {self.shape[0]}")
        wanted = {chunk for start in starts for chunk in range(start // rows, -(-(start + count) // rows))}
        if not count or not wanted:
            return Runs(np.empty((0, *self.shape[1:]), self.dtype), np.zeros(len(starts), np.int64))
        chunks = sorted(wanted)  # the chunks of a run follow each other here as well
        values = np.empty((len(chunks), rows, *self.shape[1:]), self.dtype)
        for chunk, coded, out in zip(chunks, self._coded(chunks), values, strict=True):
            try:
                blosc.decompress(coded, out)
            except (RuntimeError, ValueError) as error:
                raise StoreError(f"{self._where(chunk)}: cannot be decompressed: {error}") from error
        places = {chunk: place for place, chunk in enumerate(chunks)}
        first = [places[start // rows] * rows + start % rows for start in starts]
        runs = Runs(values.reshape(-1, *self.shape[1:]), np.array(first))
        if _holds(values, self._fill):
            self._check_written(runs, starts, count)
        return runs

    def _check_written(self, runs: Runs, starts: Sequence[int], count: int) -> None:
        """Beyond the array's end, chunks hold the fill value; the runs themselves must not."""
        for start, first in zip(starts, runs.first.tolist(), strict=True):
            run = runs.values[first : first + count]
            unwritten = np.isnan(run) if np.isnan(self._fill) else run == self._fill
            if unwritten.any():
                row = start + int(np.argwhere(unwritten)[0][0])
                raise StoreError(f"{self.path}[{row}]: holds the fill value: it was not written")

    def _where(self, chunk: int) -> str:
        rows = self.layout.chunk
        return f"{self.path}[{chunk * rows}:{min((chunk + 1) * rows, self.shape[0])}]"

    def _coded(self, chunks: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """The chunks' coded bytes, checked, without their checksums; neighbours in a file are read in one go."""
        per_file = self.layout.chunks_per_file
        places: list[tuple[_ChunkFile, int, int, int]] = []  # file, offset, end, chunk
        for number, of_file in itertools.groupby(chunks, lambda chunk: chunk // per_file):
            file = self._files.open(f"{self.path}/c/{number}{self._inner}", per_file, self._chunk_bytes)
            for chunk in of_file:
                offset, length = _INDEX_ENTRY.unpack_from(file.index, chunk % per_file * _INDEX_ENTRY.size)
                if offset == length == _MISSING:
                    raise StoreError(f"{self._where(chunk)}: is missing: it was not written")
                if length < _BLOSC_HEADER + _CRC or offset + length > file.data_bytes:
                    end = offset + length
                    raise StoreError(f"{self._where(chunk)}: lies at bytes {offset}:{end}, outside {file.path}")
                places.append((file, offset, offset + length, chunk))
        first = 0
        while first < len(places):
            file, begin, end, _ = places[first]
            last = first + 1
            while last < len(places) and places[last][0] is file and 0 <= places[last][1] - end <= _GAP:
                end = places[last][2]
                last += 1
            data = file.read(begin, end - begin)
            for _, low, high, chunk in places[first:last]:
                coded = data[low - begin : high - begin]
                if not _sound(coded):
                    raise StoreError(f"{self._where(chunk)}: its checksum is wrong: {file.path} is damaged")
                (size,) = _NUMBER.unpack_from(coded.data, _DECODED_SIZE_AT)
                if size != self._chunk_bytes:
                    raise StoreError(f"{self._where(chunk)}: holds {size} bytes, must hold {self._chunk_bytes}")
                (claimed,) = _NUMBER.unpack_from(coded.data, _CODED_SIZE_AT)
                if claimed != len(coded) - _CRC:  # blosc would read on behind them
                    said = f"has {len(coded) - _CRC} coded bytes, its header says {claimed}"
                    raise StoreError(f"{self._where(chunk)}: {said}")
                yield coded[:-_CRC]
            first = last


class ShardReader:
    """One complete shard: the folder `path` of a store of that recipe.

    `num_videos`, `num_starts`, `num_points`: its counts. Arrays are opened when they are first read; a pickled reader
    takes no open file along. `files` may be shared among the shards of a process.
    Raises StoreError where the shard is incomplete, of another version, or not readable.
    """

    def __init__(self, path: str | Path, recipe: Recipe, files: OpenFiles | None = None) -> None:
        self.path, self.recipe = Path(path), recipe
        self._files = OpenFiles() if files is None else files
        self._arrays: dict[str, ArrayReader] = {}
        self.counts, self._sealed = read_root(self.path)
        self.num_videos, self.num_starts, self.num_points, self.num_cuts = self.counts
        self.largest_row: int | None = None
        """Points of the largest start row, once they are known: no chunk is larger."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

    def __contains__(self, name: str) -> bool:
        """Whether there is such an array, in stores that may lack it."""
        return has_array(self.path, self._sealed, name)

    def texts(self) -> tuple[list[str], list[str]]:
        """(ids, paths) of the videos, num_videos of each."""
        check_sealed(self.path, self._sealed, "video")
        return read_texts(self.path, self.num_videos)

    def array(self, name: str) -> ArrayReader:
        """An array by its name in the store's spec. StoreError where the recipe has none of that name."""
        found = self._arrays.get(name)
        if found is None:
            spec = _specs(self.recipe).get(name)
            if spec is None:
                raise StoreError(f"{self.path}/{name}: a store of recipe {self.recipe.name} has no such array")
            check_no_links(self.path, name)
            check_sealed(self.path, self._sealed, name)
            found = ArrayReader(self.path / name, spec, self._files)
            length = spec.length(*self.counts)
            if found.shape[0] != length:
                raise StoreError(f"{found.path}: has {found.shape[0]} rows, by the shard's counts {length}")
            rows, largest = found.layout.chunk, self.largest_row
            if spec.axis == "point" and largest is not None and rows > max(MOST_CHUNK_ROWS, largest):
                raise StoreError(f"{found.path}/zarr.json: chunks of {rows} rows, the largest start row has {largest}")
            self._arrays[name] = found
        return found

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start:stop of an array's first axis; see `ArrayReader.read`."""
        return self.array(name).read(start, stop)


def _holds(values: NDArray[Any], fill: float) -> bool:
    """Whether a fill value is among them. It lies beyond all that can occur, so their extremes tell, quickly."""
    if np.isnan(fill):
        return bool(np.isnan(values.min()))
    return bool(values.max() == fill if fill > 0 else values.min() == fill)


def _sound(data: NDArray[np.uint8]) -> bool:
    """Whether data ends with the crc32c of the rest."""
    (crc,) = _NUMBER.unpack_from(data.data, len(data) - _CRC)
    return bool(google_crc32c.value(data[:-_CRC]) == crc)
