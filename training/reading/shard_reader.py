"""Reads arrays of one complete shard of a track store, fast: pread, a cached index of chunks, blosc, crc32c.

zarr-python takes about a millisecond for each chunk, and a clip needs dozens. Every array of a store is coded in one
way (`track_store.md`, Encoding): a zarr v3 `sharding_indexed` array, split along its first axis alone, whose chunks
are bytes, blosc, crc32c. What is coded in another way is refused; sizes of chunks and files come from its `zarr.json`.
Nothing that is missing is taken for its fill value.
"""

import dataclasses
import functools
import itertools
import json
import os
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
from data_specs.schema import FORMAT, VERSION, ArraySpec, array_specs
from data_specs.shard_files import attribute_problems, metadata_problems
from data_specs.track_store import StoreError

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

    def __init__(self, path: str, chunks: int) -> None:
        try:
            self.fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened: {error.strerror}") from error
        weakref.finalize(self, os.close, self.fd)
        self.path = path
        length = chunks * _INDEX_ENTRY.size + _CRC
        size = os.fstat(self.fd).st_size
        if size < length:
            raise StoreError(f"{path}: has {size} bytes, its index of {chunks} chunks alone has {length}: truncated?")
        self.data_bytes = size - length
        index = self.read(self.data_bytes, length)
        if not _sound(index):
            raise StoreError(f"{path}: the checksum of its index of chunks is wrong: damaged or truncated")
        self.index = index.tobytes()

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


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How an array lies in files. Lengths count along the first axis; the others are never split."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: int
    chunks_per_file: int


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
        self.layout = _layout(path, spec)
        self.shape, self.dtype = self.layout.shape, self.layout.dtype
        self._fill = spec.fill
        self._inner = "/0" * (len(self.shape) - 1)
        self._chunk_bytes = self.layout.chunk * int(np.prod(self.shape[1:])) * self.dtype.itemsize

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
            file = self._files.open(f"{self.path}/c/{number}{self._inner}", per_file)
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
        self._sealed = attributes = _attributes(self.path)
        if problems := list(attribute_problems(self.path, attributes)):
            raise StoreError(problems[0])
        if (attributes.get("format"), attributes.get("version")) != (FORMAT, VERSION):
            raise StoreError(
                f"{path}: format {attributes.get('format')!r}, version {attributes.get('version')!r}; "
                f"this software reads {FORMAT}, version {VERSION}"
            )
        # a store from before cuts were looked for has no num_cuts
        counts = [{"num_cuts": 0, **attributes}.get(f"num_{of}") for of in ("videos", "starts", "points", "cuts")]
        self.num_videos, self.num_starts, self.num_points, self.num_cuts = (
            count if isinstance(count, int) else -1 for count in counts
        )
        if min(self.num_videos, self.num_starts, self.num_points, self.num_cuts) < 0:
            raise StoreError(f"{path}: its counts of videos, start rows, points and cuts are {counts}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

    def _check_metadata(self, name: str) -> None:
        if problems := list(metadata_problems(self.path, self._sealed, name)):
            raise StoreError(problems[0])

    def texts(self) -> tuple[list[str], list[str]]:
        """(ids, paths) of the videos, num_videos of each."""
        self._check_metadata("video")
        attributes = _attributes(self.path / "video")
        found = []
        for key in ("id", "path"):
            texts = attributes.get(key)
            if not isinstance(texts, list) or len(texts) != self.num_videos:
                raise StoreError(f"{self.path}/video: attribute {key} does not have {self.num_videos} entries")
            found.append([str(text) for text in texts])
        return found[0], found[1]

    def array(self, name: str) -> ArrayReader:
        """An array by its name in the store's spec. StoreError where the recipe has none of that name."""
        found = self._arrays.get(name)
        if found is None:
            spec = _specs(self.recipe).get(name)
            if spec is None:
                raise StoreError(f"{self.path}/{name}: a store of recipe {self.recipe.name} has no such array")
            self._check_metadata(name)
            found = ArrayReader(self.path / name, spec, self._files)
            length = spec.length(self.num_videos, self.num_starts, self.num_points, self.num_cuts)
            if found.shape[0] != length:
                raise StoreError(f"{found.path}: has {found.shape[0]} rows, by the shard's counts {length}")
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


def _metadata(folder: Path, node_type: str) -> dict[str, Any]:
    """The fields of a folder's zarr.json."""
    file = folder / "zarr.json"
    try:
        fields = json.loads(file.read_bytes())
    except OSError as error:
        raise StoreError(f"{file}: cannot be opened: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{file}: is not JSON: {error}") from error
    if not isinstance(fields, dict) or (fields.get("zarr_format"), fields.get("node_type")) != (3, node_type):
        raise StoreError(f"{file}: is not the metadata of a zarr v3 {node_type}")
    return fields


def _attributes(group: Path) -> dict[str, Any]:
    attributes = _metadata(group, "group").get("attributes", {})
    if not isinstance(attributes, dict):
        raise StoreError(f"{group}/zarr.json: attributes is {attributes!r}")
    return attributes


def _layout(path: Path, spec: ArraySpec) -> _Layout:
    """Read and check an array's zarr.json; everything that this reader builds on is looked at."""
    fields = _metadata(path, "array")
    try:
        (sharding,) = fields["codecs"]
        inside = sharding["configuration"]
        facts: list[tuple[str, Any, Any]] = [
            ("data_type", fields["data_type"], spec.dtype),
            ("fill_value", fields["fill_value"], "NaN" if np.isnan(spec.fill) else spec.fill),
            ("chunk_grid", fields["chunk_grid"]["name"], "regular"),
            ("chunk_key_encoding", _plain(fields["chunk_key_encoding"]), ("default", {"separator": "/"})),
            ("storage_transformers", fields.get("storage_transformers", []), []),
            ("codecs", sharding["name"], "sharding_indexed"),
            ("codecs of a chunk", [_codec(c) for c in inside["codecs"]], ["bytes", "blosc", "crc32c"]),
            ("codecs of the index", [_codec(c) for c in inside["index_codecs"]], ["bytes", "crc32c"]),
            ("index_location", inside.get("index_location", "end"), "end"),
        ]
        facts += [(f"attribute {key}", fields["attributes"][key], value) for key, value in spec.attributes]
        shape, per_file, per_chunk = (
            [int(size) for size in sizes]
            for sizes in (fields["shape"], fields["chunk_grid"]["configuration"]["chunk_shape"], inside["chunk_shape"])
        )
        for name, sizes in [("shape", shape), ("chunk_shape", per_file), ("chunk_shape of the codec", per_chunk)]:
            facts.append((f"{name} after the first axis", sizes[1:], list(spec.inner)))
        facts.append(("length of a file by that of a chunk", per_file[0] % per_chunk[0], 0))
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise StoreError(f"{path}/zarr.json: a field is missing or wrong: {error!r}") from error
    for what, found, expected in facts:
        if found != expected:
            raise StoreError(f"{path}/zarr.json: {what} is {found!r}; this reader knows {expected!r} alone")
    if min(shape[0], per_file[0] - 1, per_chunk[0] - 1) < 0:
        raise StoreError(f"{path}/zarr.json: shape {shape}, chunks {per_file} of {per_chunk}")
    return _Layout(tuple(shape), np.dtype(spec.dtype).newbyteorder("<"), per_chunk[0], per_file[0] // per_chunk[0])


def _plain(named: Any) -> tuple[str, dict[str, Any]]:
    return named["name"], named.get("configuration", {})


def _codec(codec: Any) -> str:
    """A codec's name, with its byte order where that is not little-endian. blosc's options stand in its data."""
    name, options = _plain(codec)
    big = name == "bytes" and options.get("endian", "little") != "little"
    return f"{name} ({options['endian']}-endian)" if big else name
