"""What a store's files may say of themselves, checked before anything is read by it: a store need not be trusted.

Every array of a store is coded in one way (`track_store.md`, Encoding): a zarr v3 `sharding_indexed` array, split along
its first axis alone, whose chunks are bytes, blosc, crc32c. What is coded in another way is refused, and so are sizes
that the writer cannot have made; both readers build on that.
"""

import dataclasses
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_specs.list_names import columns_problem
from data_specs.schema import FORMAT, VERSION, ArraySpec
from data_specs.shard_files import attribute_problems, metadata_problems
from data_specs.untrusted_files import (
    MOST_METADATA_BYTES,
    MOST_TEXTS_BYTES,
    kind_problem,
    parse_json,
    read_bounded,
)

MOST_CHUNK_BYTES = 256 << 20
"""Of a decoded chunk. One is about one start row: 0.3 MB for HOG of a video of 16:9."""
MOST_CHUNK_ROWS = 4096
"""Of a chunk, or as many as the array has."""
MOST_EXPANSION = 1 << 16
"""Times that what is decoded is larger than what is stored. lz4 makes at most 255 of one byte."""
_MOST = {"videos": 10_000_000, "starts": 100_000_000, "points": 1 << 40, "cuts": 100_000_000}
"""Of a shard."""


class StoreError(ValueError):
    """A store that cannot be read; the message names the file and what is wrong with it."""


class Counts(NamedTuple):
    """How many videos, start rows, points and cuts a shard has."""

    videos: int
    starts: int
    points: int
    cuts: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array lies in files. Lengths count along the first axis; the others are never split."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: int
    chunks_per_file: int

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return self.chunk * _product(self.shape[1:]) * self.dtype.itemsize


def read_metadata(folder: Path, node_type: str, most_bytes: int = MOST_METADATA_BYTES) -> dict[str, Any]:
    """The fields of a folder's zarr.json. Raises StoreError."""
    file = folder / "zarr.json"
    try:
        fields = parse_json(read_bounded(file, most_bytes, links=False))
    except OSError as error:
        raise StoreError(f"{file}: cannot be opened: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{file}: is not JSON: {error}") from error
    if not isinstance(fields, dict) or (fields.get("zarr_format"), fields.get("node_type")) != (3, node_type):
        raise StoreError(f"{file}: is not the metadata of a zarr v3 {node_type}")
    if not isinstance(fields.get("attributes", {}), dict):
        raise StoreError(f"{file}: attributes is not a mapping")
    return fields


def read_attributes(group: Path, most_bytes: int = MOST_METADATA_BYTES) -> dict[str, Any]:
    """The attributes of a group. Raises StoreError."""
    attributes: dict[str, Any] = read_metadata(group, "group", most_bytes).get("attributes", {})
    return attributes


def read_root(shard: Path) -> tuple[Counts, dict[str, Any]]:
    """A complete shard's counts, and all the attributes of its root.

    Raises StoreError where it is of another version, not complete, or not what was written.
    """
    check_no_links(shard, "")
    attributes = read_attributes(shard)
    if (attributes.get("format"), attributes.get("version")) != (FORMAT, VERSION):
        raise StoreError(
            f"{shard}: format {_short(attributes.get('format'))}, version {_short(attributes.get('version'))}; "
            f"this software reads {FORMAT}, version {VERSION}"
        )
    # a store from before cuts were looked for has no num_cuts
    counts: list[Any] = [{"num_cuts": 0, **attributes}.get(f"num_{of}") for of in _MOST]
    if any(type(count) is not int or not 0 <= count <= _MOST[of] for of, count in zip(_MOST, counts, strict=True)):
        raise StoreError(f"{shard}: its counts of videos, start rows, points and cuts are {_short(counts)}")
    for key, form in (("files", _is_files), ("failures", _is_seal)):
        if key in attributes and not form(attributes[key]):
            raise StoreError(f"{shard}: attribute {key} is {_short(attributes[key])}")
    if problems := list(attribute_problems(shard, attributes)):
        raise StoreError(problems[0])
    return Counts(*counts), attributes


def check_sealed(shard: Path, attributes: Mapping[str, Any], name: str) -> None:
    """Raise StoreError where the metadata of the group or array `name` is not what the shard's attributes say."""
    if problems := list(metadata_problems(shard, attributes, name)):
        raise StoreError(problems[0])


def _is_seal(value: Any) -> bool:
    return isinstance(value, list) and [type(v) for v in value] == [int, int]


def _is_files(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_seal(seal) for seal in value.values())


def read_texts(shard: Path, num_videos: int) -> tuple[list[str], list[str]]:
    """(ids, paths) of a shard's videos, `num_videos` of each; the paths stay below their root. Raises StoreError."""
    attributes = read_attributes(shard / "video", MOST_TEXTS_BYTES)
    found: list[list[str]] = []
    for key in ("id", "path"):
        texts = attributes.get(key)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise StoreError(f"{shard}/video: attribute {key} is missing, or not a list of texts")
        if len(texts) != num_videos:
            raise StoreError(f"{shard}/video: attribute {key} has {len(texts)} entries, num_videos is {num_videos}")
        found.append(texts)
    if problem := columns_problem(*found):
        raise StoreError(f"{shard}/video: {problem}")
    return found[0], found[1]


def read_layout(path: Path, spec: ArraySpec) -> Layout:
    """Read and check an array's zarr.json; everything that readers build on is looked at. Raises StoreError."""
    fields = read_metadata(path, "array")
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
            [_whole(size) for size in sizes]
            for sizes in (fields["shape"], fields["chunk_grid"]["configuration"]["chunk_shape"], inside["chunk_shape"])
        )
        for name, sizes in [("shape", shape), ("chunk_shape", per_file), ("chunk_shape of the codec", per_chunk)]:
            facts.append((f"{name} after the first axis", sizes[1:], list(spec.inner)))
        facts.append(("length of a file by that of a chunk", per_file[0] % per_chunk[0], 0))
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError) as error:
        raise StoreError(f"{path}/zarr.json: a field is missing or wrong: {_short(error)}") from error
    for what, found, expected in facts:
        if found != expected:
            raise StoreError(f"{path}/zarr.json: {what} is {_short(found)}; this reader knows {expected!r} alone")
    if min(shape[0], per_file[0] - 1, per_chunk[0] - 1) < 0:
        raise StoreError(f"{path}/zarr.json: shape {shape}, chunks {per_file} of {per_chunk}")
    layout = Layout(tuple(shape), np.dtype(spec.dtype).newbyteorder("<"), per_chunk[0], per_file[0] // per_chunk[0])
    if layout.chunk > max(MOST_CHUNK_ROWS, shape[0]) or layout.chunk_bytes > MOST_CHUNK_BYTES:
        raise StoreError(
            f"{path}/zarr.json: chunks of {layout.chunk} rows, {layout.chunk_bytes} bytes, of {shape[0]} rows in all; "
            f"no more are taken than {MOST_CHUNK_ROWS} rows or the array's, and {MOST_CHUNK_BYTES} bytes"
        )
    if layout.chunks_per_file > max(1, -(-shape[0] // layout.chunk)):
        raise StoreError(f"{path}/zarr.json: files of {per_file[0]} rows, of {shape[0]} in all")
    return layout


def check_no_links(shard: Path, name: str) -> None:
    """Raise StoreError where a shard's folder, one below it on the way to an array, or that of its chunks is a link."""
    place = shard
    for part in ("", *name.split("/"), *(["c"] if name else [])):
        place = place / part
        try:
            mode = place.lstat().st_mode
        except OSError:
            return  # to be reported by who opens it
        if stat.S_ISLNK(mode):
            raise StoreError(f"{place}: is a symbolic link; a store has none: put what it leads to in its place")


def check_tree(shard: Path) -> dict[str, int]:
    """Look at all that lies below a shard's folder: bytes by array. For readers that open files without a question.

    Raises StoreError for what is neither a file nor a folder: links, pipes, devices.
    """
    sizes: dict[str, int] = {}
    check_no_links(shard, "")
    folders = [shard]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise StoreError(f"{folder}: cannot be opened: {error.strerror}") from error
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError as error:
                raise StoreError(f"{entry.path}: cannot be opened: {error.strerror}") from error
            if stat.S_ISDIR(found.st_mode):
                folders.append(Path(entry.path))
            elif problem := kind_problem(found.st_mode):
                raise StoreError(f"{entry.path}: {problem}; a store has only files and folders")
            else:
                array = str(Path(entry.path).relative_to(shard).parent).split("/c/")[0].removesuffix("/c")
                sizes[array] = sizes.get(array, 0) + found.st_size
    return sizes


def check_expansion(path: Path, layout: Layout, stored_bytes: int) -> None:
    """Raise StoreError where an array says that it is far larger than its files can make it."""
    decoded = layout.shape[0] * _product(layout.shape[1:]) * layout.dtype.itemsize
    if decoded > stored_bytes * MOST_EXPANSION:
        raise StoreError(f"{path}/zarr.json: {decoded} bytes of data, its files have {stored_bytes}")


def _plain(named: Any) -> tuple[str, dict[str, Any]]:
    return named["name"], named.get("configuration", {})


def _codec(codec: Any) -> str:
    """A codec's name, with its byte order where that is not little-endian. blosc's options stand in its data."""
    name, options = _plain(codec)
    big = name == "bytes" and options.get("endian", "little") != "little"
    return f"{name} ({options['endian']}-endian)" if big else name


def _whole(size: Any) -> int:
    if type(size) is not int or abs(size) > 1 << 48:
        raise ValueError(f"{_short(size)} is no size")
    return size


def _product(sizes: tuple[int, ...]) -> int:
    return int(np.prod(sizes, dtype=object)) if sizes else 1


def _short(value: Any) -> str:
    """A value as it can be shown in one line."""
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
