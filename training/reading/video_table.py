"""Which videos a track store has: one table in list order, small enough to send to every worker."""

import dataclasses
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from data_specs.geometry import grid_size, start_frames, tracked_size
from data_specs.track_store import StoreError
from training.reading.shard_reader import ShardReader

_LONGEST_SIDE = 1 << 16
"""Of a frame, in pixels: AV1's."""


@dataclasses.dataclass(frozen=True)
class VideoRecord:
    """A video of a store. Sizes are (height, width) in pixels."""

    index: int
    """Its position in the list."""
    id: str
    path: str
    """Path relative to the data set's root."""
    shard: int
    number: int
    """Its place among the shard's videos."""
    num_frames: int
    fps: float
    """Frames per second as the container says; 0 where it does not."""
    frame_size: tuple[int, int]
    """Size of the tracked frames, in whose pixels trajectories are."""
    source_size: tuple[int, int]
    file_bytes: int
    """Size of the file that was extracted; 0 where the store does not say."""
    num_starts: int
    """Start rows; row r begins in frame r * start_stride."""


@dataclasses.dataclass(frozen=True)
class VideoTable(Sequence[VideoRecord]):
    """The videos of a store in list order. Columns are arrays, so that 240,000 videos are quickly pickled.

    (V,) each, sizes (V, 2). `places` are positions in the list; `first_start` and `first_point` are the video's first
    start row and point in its shard.
    """

    places: NDArray[np.int64]
    shard: NDArray[np.int32]
    number: NDArray[np.int32]
    num_frames: NDArray[np.int32]
    fps: NDArray[np.float32]
    frame_size: NDArray[np.int32]
    source_size: NDArray[np.int32]
    grid_size: NDArray[np.int32]
    file_bytes: NDArray[np.int64]
    num_starts: NDArray[np.int64]
    first_start: NDArray[np.int64]
    first_point: NDArray[np.int64]
    ids: list[str]
    paths: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, key: int) -> VideoRecord: ...

    @overload
    def __getitem__(self, key: slice) -> list[VideoRecord]: ...

    def __getitem__(self, key: int | slice) -> VideoRecord | list[VideoRecord]:
        if isinstance(key, slice):
            return [self[i] for i in range(*key.indices(len(self)))]
        height, width = self.frame_size[key].tolist()
        source_height, source_width = self.source_size[key].tolist()
        return VideoRecord(
            index=int(self.places[key]),
            id=self.ids[key],
            path=self.paths[key],
            shard=int(self.shard[key]),
            number=int(self.number[key]),
            num_frames=int(self.num_frames[key]),
            fps=float(self.fps[key]),
            frame_size=(height, width),
            source_size=(source_height, source_width),
            file_bytes=int(self.file_bytes[key]),
            num_starts=int(self.num_starts[key]),
        )

    def find(self, video: VideoRecord) -> int:
        """Where in the table a video stands. ValueError for one of another store."""
        place = int(np.searchsorted(self.places, video.index))
        if place == len(self) or (self.shard[place], self.number[place]) != (video.shard, video.number):
            raise ValueError(f"video {video.index} ({video.path}) is not of this store")
        return place


def shard_table(reader: ShardReader, shard: int) -> dict[str, Any]:
    """The columns of `VideoTable` for one shard."""
    count = reader.num_videos
    names = ("num_frames", "fps", "frame_size", "source_size", "grid_size")
    table: dict[str, Any] = {name: reader.read(f"video/{name}", 0, count) for name in names}
    sizes = np.concatenate([table[name].ravel() for name in names if name.endswith("_size")])
    if count and (sizes.min() < 0 or sizes.max() > _LONGEST_SIDE):
        raise StoreError(
            f"{reader.path}/video: sizes from {sizes.min()} to {sizes.max()}, no frame has {_LONGEST_SIDE}"
        )
    first = reader.read("video/first_start", 0, count + 1)
    num_starts = np.diff(first)
    if first[0] != 0 or first[-1] != reader.num_starts or (num_starts < 0).any():
        raise StoreError(f"{reader.path}/video/first_start: must rise from 0 to {reader.num_starts}")
    points = np.concatenate([[0], np.cumsum(num_starts * table["grid_size"].astype(np.int64).prod(axis=1))])
    if points[-1] != reader.num_points:
        raise StoreError(f"{reader.path}/video/grid_size: makes {points[-1]} points, the shard has {reader.num_points}")
    table["places"] = reader.read("video/index", 0, count)
    sizes_known = "video/file_bytes" in reader
    table["file_bytes"] = reader.read("video/file_bytes", 0, count) if sizes_known else np.zeros(count, np.int64)
    ids, paths = reader.texts()
    # most lists have no ids of their own: one text for both, in memory and pickled
    table["ids"], table["paths"] = [path if own == path else own for own, path in zip(ids, paths, strict=True)], paths
    _check_geometry(reader, table, num_starts)
    return table | {
        "shard": np.full(count, shard, np.int32),
        "number": np.arange(count, dtype=np.int32),
        "num_starts": num_starts,
        "first_start": first[:-1],
        "first_point": points[:-1],
    }


def _check_geometry(reader: ShardReader, table: dict[str, Any], num_starts: NDArray[np.int64]) -> None:
    """Raise StoreError where a video's sizes and counts do not follow from one another: fields are read by them."""
    recipe = reader.recipe
    columns = np.column_stack(
        [table["source_size"], table["frame_size"], table["grid_size"], table["num_frames"], num_starts]
    )
    distinct, first = np.unique(columns, axis=0, return_index=True)
    for video, (*sizes, frames, starts) in zip(first.tolist(), distinct.tolist(), strict=True):
        source, frame, grid = ((sizes[i], sizes[i + 1]) for i in (0, 2, 4))
        tracked = tracked_size(source, recipe.short_side) if min(source) > 0 and recipe.short_side else source
        points = grid_size(frame, recipe.grid_stride)
        stride, keep_short = recipe.start_stride or 1, recipe.keep_short
        expected = len(start_frames(frames, recipe.length, recipe.frame_step, stride, keep_short=keep_short))
        for name, problem in [
            ("num_frames", f"is {frames}" if frames < 1 else ""),
            ("source_size", f"is {_by(source)}" if min(source) < 1 else ""),
            (
                "frame_size",
                f"is {_by(frame)}, a video of {_by(source)} is tracked at {_by(tracked)}" if frame != tracked else "",
            ),
            ("grid_size", f"is {_by(grid)}, a frame of {_by(frame)} has {_by(points)}" if grid != points else ""),
            ("first_start", f"{starts} start rows, {frames} frames have {expected}" if starts != expected else ""),
        ]:
            if problem:
                raise StoreError(f"{reader.path}/video/{name}: of {table['paths'][video]}: {problem}")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def join_tables(tables: Sequence[dict[str, Any]]) -> VideoTable:
    """The shards' tables as one, in list order."""
    columns: dict[str, Any] = {}
    order = np.argsort(np.concatenate([np.zeros(0, np.int64), *(table["places"] for table in tables)]), kind="stable")
    for field in dataclasses.fields(VideoTable):
        if field.name in ("ids", "paths"):
            texts = [text for table in tables for text in table[field.name]]
            columns[field.name] = [texts[i] for i in order.tolist()]
        elif tables:
            columns[field.name] = np.concatenate([table[field.name] for table in tables])[order]
        else:
            columns[field.name] = np.zeros((0, 2) if field.name.endswith("_size") else 0, np.int64)
    return VideoTable(**columns)
