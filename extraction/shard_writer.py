"""Writes one shard of the track store from its videos, in list order, in bounded memory.

Each array is written in whole zarr shards, by one writer, and the group's root metadata with the counts comes last.
"""

import asyncio
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.sync import sync

from data_specs.recipe import Recipe
from data_specs.schema import FORMAT, STREAMED, VERSION, ArraySpec, VideoMeta, array_specs
from data_specs.shard_files import sealed
from data_specs.track_store import TrackShard

logger = logging.getLogger(__name__)

# A zarr shard is one file and is held in memory while it is written.
_ZARR_SHARD_BYTES = 64 << 20
_START_CHUNKS = {"camera/homography": 64, "camera/estimated": 64}
_CHUNK = 4096


class VideoSource(Protocol):
    """A video whose rows are encoded already: a partial file, or a video of an older shard."""

    @property
    def meta(self) -> VideoMeta:
        """The video's metadata."""

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """A streamed array's blocks, in order."""


class ShardVideo:
    """Video `video` of a complete shard as a source for the shard that takes its place: nothing is coded again."""

    def __init__(self, shard: TrackShard, video: int) -> None:
        self._shard, self.meta = shard, shard.metas[video]
        self._rows = shard.rows(video)

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """See `VideoSource`; a few start rows at a time."""
        axis = array_specs(self._shard.recipe)[name].axis
        for first in range(self._rows.start, self._rows.stop, 64):
            last = min(first + 64, self._rows.stop)
            if axis == "point":
                points = self._shard.first_point
                yield self._shard.read(name, int(points[first]), int(points[last]))
            else:
                yield self._shard.read(name, first, last)


def write_shard(
    path: Path,
    shard: int,
    sources: Sequence[VideoSource],
    recipe: Recipe,
    software: dict[str, str],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write a shard to the folder `path`, which must not exist. sources: its videos, in list order.

    more: attributes besides those that follow from the videos. Where it fails, nothing goes on being written.
    """
    try:
        _write_shard(path, shard, sources, recipe, software, more or {})
    except Exception:
        sync(_others_end())
        raise


async def _others_end() -> None:
    """zarr writes some files at once. Where one fails the others go on after the error, and make folders again that
    were removed meanwhile.
    """
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others)


def _write_shard(
    path: Path,
    shard: int,
    sources: Sequence[VideoSource],
    recipe: Recipe,
    software: dict[str, str],
    more: Mapping[str, Any],
) -> None:
    metas = [source.meta for source in sources]
    rows_points = np.repeat(
        np.array([m.points_per_start for m in metas], dtype=np.int64), [m.num_starts for m in metas]
    )
    num_starts, num_points = len(rows_points), int(rows_points.sum())
    # a chunk is about one start row: exactly one where all videos have one size
    row_chunk = max(1, int(np.sort(rows_points)[num_starts // 2])) if num_starts else 1
    num_cuts = sum(len(m.cuts) for m in metas)
    derived = _derived(metas, rows_points)
    for name, spec in array_specs(recipe).items():
        length = spec.length(len(metas), num_starts, num_points, num_cuts)
        array = _create(path, spec, length, row_chunk)
        if name in STREAMED:
            _fill(array, itertools.chain.from_iterable(source.blocks(name) for source in sources))
        else:
            _fill(array, [derived[name]])
    group = zarr.open_group(path, mode="r+", zarr_format=3)
    texts = {"id": [m.id for m in metas], "path": [m.path for m in metas]}
    zarr.open_group(path / "video", mode="r+", zarr_format=3).update_attributes(texts)
    attributes = {
        "format": FORMAT,
        "version": VERSION,
        "shard": shard,
        "positions_in": recipe.positions_in,
        "num_videos": len(metas),
        "num_starts": num_starts,
        "num_points": num_points,
        "num_cuts": num_cuts,
        "software": software,
        **more,
    }
    group.update_attributes(sealed(path, attributes))


def _derived(metas: Sequence[VideoMeta], rows_points: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The arrays that follow from the videos' metadata."""
    pairs = {
        f"video/{name}": np.array([getattr(m, name) for m in metas], dtype=np.int32).reshape(-1, 2)
        for name in ("frame_size", "source_size", "grid_size")
    }
    return pairs | {
        "video/index": np.array([m.index for m in metas], dtype=np.int64),
        "video/num_frames": np.array([m.num_frames for m in metas], dtype=np.int32),
        "video/file_bytes": np.array([m.file_bytes for m in metas], dtype=np.int64),
        "video/file_crc32": np.array([m.file_crc32 for m in metas], dtype=np.int64),
        "video/fps": np.array([m.fps for m in metas], dtype=np.float32),
        "video/first_start": np.cumsum([0, *(m.num_starts for m in metas)], dtype=np.int64),
        "video/first_cut": np.cumsum([0, *(len(m.cuts) for m in metas)], dtype=np.int64),
        "cut/frame": np.array([frame for m in metas for frame in m.cuts], dtype=np.int32),
        "start/first_point": np.concatenate([[0], np.cumsum(rows_points)]).astype(np.int64),
    }


def chunk_lengths(spec: ArraySpec, length: int, row_chunk: int) -> tuple[int, int]:
    """(rows of a chunk, chunks of a file) of an array of `length` rows; row_chunk: points of a usual start row."""
    chunk = row_chunk if spec.axis == "point" else _START_CHUNKS.get(spec.name, _CHUNK)
    row_bytes = int(np.prod(spec.inner, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
    return chunk, max(1, min(-(-length // chunk), _ZARR_SHARD_BYTES // (chunk * row_bytes)))


def _create(path: Path, spec: ArraySpec, length: int, row_chunk: int) -> zarr.Array[Any]:
    chunk, per_file = chunk_lengths(spec, length, row_chunk)
    return zarr.create_array(
        path,
        name=spec.name,
        shape=(length, *spec.inner),
        chunks=(chunk, *spec.inner),
        shards=(chunk * per_file, *spec.inner),
        dtype=spec.dtype,
        fill_value=spec.fill,
        # a trainer decodes each chunk in every epoch: a tenth more bytes than zstd's, read in half the time
        compressors=[BloscCodec(cname="lz4hc", clevel=9, shuffle="bitshuffle"), Crc32cCodec()],
        dimension_names=(spec.axis, *spec.inner_names),
        attributes=dict(spec.attributes),
        config={"write_empty_chunks": True},
    )


def _fill(array: zarr.Array[Any], blocks: Iterable[NDArray[Any]]) -> None:
    """Write the blocks one after the other, a whole zarr shard at a time."""
    assert array.shards is not None
    per_file, written = array.shards[0], 0
    buffer: list[NDArray[Any]] = []
    buffered = 0
    for whole in blocks:
        block = whole
        while len(block):
            part = block[: per_file - buffered]
            block = block[len(part) :]
            buffer.append(part)
            buffered += len(part)
            if buffered == per_file:
                array[written : written + buffered] = np.concatenate(buffer)
                written, buffered, buffer = written + buffered, 0, []
    if buffer:
        array[written : written + buffered] = np.concatenate(buffer)
        written += buffered
    if written != array.shape[0]:
        raise AssertionError(f"{array.path}: {written} rows written, {array.shape[0]} announced")
