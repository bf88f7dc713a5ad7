"""Reads one shard back against its spec: what is wrong, and which of its videos that concerns."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from data_specs.encoding import MOST_UNITS, decode_positions
from data_specs.failures import failures_problems, read_failures
from data_specs.geometry import grid_points, grid_size, start_frames, tracked_size
from data_specs.schema import UNIT_PX, ArraySpec, VideoMeta, array_specs
from data_specs.shard_files import file_problems, size_and_crc32
from data_specs.track_store import StoreError, TrackShard, TrackStore
from data_specs.validate_estimates import estimate_problems

_ROWS_AT_A_TIME = 64
_CODECS = ["bytes", "blosc", "crc32c"]


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is wrong with a shard. Nothing is, where `problems` is empty."""

    problems: list[str]
    """Each as `place: what is wrong`."""
    videos: frozenset[int] | None
    """Indices in the list of those that are there and cannot be relied on; None for all of the shard. Where the damaged
    bytes belong to no video, there are problems and this is empty."""
    listed: tuple[tuple[int, str, str], ...] = ()
    """(index, id, path) of the videos and failures that are there."""


def shard_damage(store: TrackStore, number: int, root: Path | None = None) -> Damage:
    """Read a complete shard back.

    root: folder of the videos, to compare them with those that the shard was made from; None leaves that out.
    """
    where = store.shard_path(number)
    try:
        shard = store.shard(number)
        found = list(_ShardCheck(shard, number, store).problems())
        listed = [] if any(video is None for video, _ in found) else [(m.index, m.id, m.path) for m in shard.metas]
    except StoreError as error:
        return Damage([str(error)], None)
    problems, attributes = [text for _, text in found], dict(shard.group.attrs)
    if any(video is None for video, _ in found):
        return Damage(problems, None)
    damaged = {listed[video][0] for video, _ in found if video is not None}
    failures: list[tuple[int, str, str]] = []
    changed = list(failures_problems(store.path, number, attributes, contents=True))
    problems += changed
    if not changed:
        try:
            failures = [(f.index, f.id, f.path) for f in read_failures(store.path, number)]
        except (ValueError, OSError) as error:
            problems.append(str(error))
    there = Counter(index for index, _, _ in (*listed, *failures))
    places = range(number, store.info.num_videos, store.info.num_shards)  # may be more than fit into memory
    missing = list(itertools.islice((place for place in places if place not in there), 10))
    foreign = sorted(index for index in there if index not in places)
    twice = sorted(index for index, times in there.items() if times > 1)
    if missing or foreign or twice:
        problems.append(
            f"{where}: its videos and failures are not the list's: places missing {missing}, "
            f"foreign {foreign[:10]}, twice {twice[:10]}"
        )
    if not problems:  # bytes that no array is made of
        problems += file_problems(where, attributes, contents=True)
    if root is not None:
        for meta in shard.metas:
            if change := video_change(root / meta.path, meta):
                problems.append(change)
                damaged.add(meta.index)
    return Damage(problems, None if foreign or twice else frozenset(damaged), (*listed, *failures))


def video_change(path: Path, meta: VideoMeta) -> str | None:
    """How the video differs from the file that was extracted; None where it does not, is gone, or nothing is known."""
    if not meta.file_bytes or not path.is_file():
        return None
    size = path.stat().st_size
    if size != meta.file_bytes:
        return f"{path}: has {size} bytes; when it was extracted it had {meta.file_bytes}"
    checksum = size_and_crc32(path)[1]
    if checksum != meta.file_crc32:
        return f"{path}: its CRC-32 is {checksum}; when it was extracted it was {meta.file_crc32}"
    return None


class _ShardCheck:
    """The checks of one shard."""

    def __init__(self, shard: TrackShard, number: int, store: TrackStore) -> None:
        self.shard, self.number, self.store = shard, number, store
        self.recipe = store.info.recipe
        self.specs = array_specs(self.recipe)

    def problems(self) -> Iterator[tuple[int | None, str]]:
        """All of them, each with the number in the shard of the video that it concerns; None for every one.

        Values are only looked at where the metadata is right.
        """
        for check in (self._metadata, self._small_arrays):
            found = list(check())
            yield from ((None, problem) for problem in found)
            if found:
                return
        for video in range(self.shard.num_videos):
            yield from ((video, problem) for problem in self._video(video))

    def _metadata(self) -> Iterator[str]:
        shard, attributes = self.shard, dict(self.shard.group.attrs)
        for key, expected in [("shard", self.number), ("positions_in", self.recipe.positions_in)]:
            if attributes.get(key) != expected:
                yield f"{shard.path}: attribute {key} is {attributes.get(key)!r}, must be {expected!r}"
        for key, texts in [("id", shard.ids), ("path", shard.paths)]:
            if len(texts) != shard.num_videos:
                yield f"{shard.path}/video: attribute {key} has {len(texts)} entries, num_videos is {shard.num_videos}"
        for spec in list(self.specs.values()):
            if spec.is_optional and spec.name not in shard:
                del self.specs[spec.name]
                continue
            try:
                yield from self._array_metadata(spec)
            except StoreError as error:
                yield str(error)

    def _array_metadata(self, spec: ArraySpec) -> Iterator[str]:
        shard = self.shard
        array, where = shard.array(spec.name), f"{shard.path}/{spec.name}"
        counts = (shard.num_videos, shard.num_starts, shard.num_points, shard.num_cuts)
        shape = (spec.length(*counts), *spec.inner)
        if array.shape != shape:
            yield f"{where}: shape is {array.shape}, must be {shape}"
        if array.dtype != np.dtype(spec.dtype):
            yield f"{where}: data type is {array.dtype}, must be {spec.dtype}"
        elif not spec.is_fill(np.asarray(array.fill_value, dtype=spec.dtype)):
            yield f"{where}: fill value is {array.fill_value}, must be {spec.fill}"
        for key, value in spec.attributes:
            if array.attrs.get(key) != value:
                yield f"{where}: attribute {key} is {array.attrs.get(key)!r}, must be {value!r}"
        codecs = _chunk_codecs(array)
        if codecs != _CODECS:
            yield f"{where}: a chunk's codecs are {codecs}, must be {_CODECS}"

    def _small_arrays(self) -> Iterator[str]:
        shard = self.shard
        totals = {
            "video/first_start": shard.num_starts,
            "start/first_point": shard.num_points,
            "video/first_cut": shard.num_cuts,
        }
        for name, total in totals.items():
            if name not in self.specs:
                continue
            try:
                offsets = shard.read(name, 0, shard.array(name).shape[0])
            except StoreError as error:
                yield str(error)
                continue
            if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
                yield f"{shard.path}/{name}: must rise from 0 to {total}, is {offsets[:5].tolist()} ... {offsets[-1]}"
        for spec in self.specs.values():
            if spec.axis in ("video", "cut"):
                try:
                    values = shard.read(spec.name, 0, shard.num_videos if spec.axis == "video" else shard.num_cuts)
                except StoreError as error:
                    yield str(error)
                    continue
                for place in np.flatnonzero(spec.is_fill(values).any(axis=tuple(range(1, values.ndim)))):
                    yield f"{shard.path}/{spec.name}[{place}]: holds the fill value: it was not written"

    def _video(self, video: int) -> Iterator[str]:
        shard, recipe = self.shard, self.recipe
        meta, rows = shard.metas[video], shard.rows(video)
        where = f"{shard.path}: video {video} ({meta.path})"
        size = tracked_size(meta.source_size, recipe.short_side)
        if meta.frame_size != size:
            yield f"{where}: frame_size is {meta.frame_size}, must be {size} for source_size {meta.source_size}"
            return
        grid = grid_size(size, recipe.grid_stride)
        if meta.grid_size != grid:
            yield f"{where}: grid_size is {meta.grid_size}, must be {grid}"
            return
        assert recipe.start_stride is not None
        times = (meta.num_frames, recipe.length, recipe.frame_step, recipe.start_stride)
        starts = start_frames(*times, keep_short=recipe.keep_short)
        if len(rows) != len(starts):
            yield f"{where}: has {len(rows)} start rows, must have {len(starts)} for {meta.num_frames} frames"
            return
        if any(b <= a for a, b in pairwise([0, *meta.cuts, meta.num_frames])):
            yield (
                f"{where}: cut/frame is {list(meta.cuts)}, must rise strictly within 1 ... {meta.num_frames - 1}, the "
                "frames at which a shot can begin"
            )
        points = shard.first_point[rows.start : rows.stop + 1]
        if (np.diff(points) != meta.points_per_start).any():
            yield f"{where}: its start rows do not all have {meta.points_per_start} points"
            return
        for first in range(rows.start, rows.stop, _ROWS_AT_A_TIME):
            last = min(first + _ROWS_AT_A_TIME, rows.stop)
            yield from self._rows(video, first, last, list(starts[first - rows.start : last - rows.start]))

    def _rows(self, video: int, first: int, last: int, starts: list[int]) -> Iterator[str]:
        """Check start rows first:last, all of one video; they begin at frames `starts`."""
        shard, meta = self.shard, self.shard.metas[video]
        where = f"{shard.path}: video {video} ({meta.path}), start rows {first}:{last}"
        low, high = int(shard.first_point[first]), int(shard.first_point[last])
        data: dict[str, NDArray[Any]] = {}
        incomplete = False
        for spec in self.specs.values():
            if spec.axis not in ("start", "point"):
                continue
            begin, end = (first, last) if spec.axis == "start" else (low, high)
            try:
                data[spec.name] = shard.read(spec.name, begin, end)
            except StoreError as error:
                incomplete = True
                yield str(error)
                continue
            fills = spec.is_fill(data[spec.name])
            if fills.any():
                incomplete = True
                place = begin + int(np.argwhere(fills)[0][0])
                yield f"{shard.path}/{spec.name}[{place}]: holds the fill value: it was not written"
        if incomplete:
            return
        if data["start/frame"].tolist() != starts:
            yield f"{where}: start at frames {data['start/frame'].tolist()}, must be {starts}"
        else:
            yield from self._check_cuts(data, meta, where)
            yield from self._check_end(data, meta, where)
        yield from self._check_camera(data, where)
        yield from self._check_tracks(data, meta, where)
        yield from self._check_descriptors(data, where)

    def _check_cuts(self, data: dict[str, NDArray[Any]], meta: VideoMeta, where: str) -> Iterator[str]:
        """Whether nothing is measured between frames of two shots."""
        length, step = self.recipe.length, self.recipe.frame_step
        shots = self._shots(data, meta)
        crosses = shots[:, 1:] != shots[:, :-1]
        valid = data["valid"].reshape(len(shots), -1, length + 1)
        for name, measured in [
            ("valid", (valid[:, :, 1:] & valid[:, :, :-1]).any(axis=1)),
            ("camera/estimated", data["camera/estimated"] == 1),
        ]:
            for row, k in np.argwhere(crosses & measured)[:1]:
                frames = data["start/frame"][row] + step * np.array([k, k + 1])
                cut = meta.cuts[shots[row, k]]
                yield (
                    f"{where}: {name} is 1 for the step from frame {frames[0]} to frame {frames[1]}, across the cut at "
                    f"frame {cut}"
                )

    def _check_end(self, data: dict[str, NDArray[Any]], meta: VideoMeta, where: str) -> Iterator[str]:
        """Whether there is nothing past the last frame of a video that is kept though it is short."""
        past = self._past_end(data, meta)
        if not past.any():
            return
        of_point = np.repeat(past, meta.points_per_start, axis=0)  # (P, L + 1)
        longest = np.abs(data["displacement"].astype(np.int32)).max(axis=-1)
        lacking = np.zeros(longest.shape, np.bool_)
        lacking[:, 1:] = longest[:, :-1] >= MOST_UNITS  # what such a step lacks is in the next one
        checks = [
            ("valid", data["valid"] == 1, of_point),
            ("camera/estimated", data["camera/estimated"] == 1, past[:, 1:]),
            ("displacement", (longest > 0) & ~lacking, of_point[:, 1:]),
            *((name, data[name] != 0, of_point) for name in ("visibility", "confidence") if name in data),
            *((name, data[name].any(axis=-1), of_point[:, :-1]) for name in ("hog",) if name in data),
        ]
        for name, something, past_end in checks:
            if (wrong := something & past_end).any():
                place, k = np.argwhere(wrong)[0]
                yield f"{where}: {name} of {place} at step {k} is not 0, past the last of {meta.num_frames} frames"

    def _past_end(self, data: dict[str, NDArray[Any]], meta: VideoMeta) -> NDArray[np.bool_]:
        """(S, L + 1): which positions of each row lie past the video's last frame."""
        return np.asarray(self._frames(data) >= meta.num_frames)

    def _frames(self, data: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
        """(S, L + 1): the frame of each position of each row."""
        return np.asarray(data["start/frame"][:, None] + self.recipe.frame_step * np.arange(self.recipe.length + 1))

    def _shots(self, data: dict[str, NDArray[Any]], meta: VideoMeta) -> NDArray[np.int64]:
        """(S, L + 1): how many cuts lie before each position of each row, or at it."""
        return np.searchsorted(meta.cuts, self._frames(data), side="right")

    def _check_camera(self, data: dict[str, NDArray[Any]], where: str) -> Iterator[str]:
        estimated, homography = data["camera/estimated"], data["camera/homography"]
        if (estimated > 1).any():
            yield f"{where}: camera/estimated holds {estimated.max()}, must be 0 or 1"
        if not np.isfinite(homography).all():
            yield f"{where}: camera/homography holds a value that is not finite"
        elif (homography[estimated == 0] != np.eye(3)).any():
            yield f"{where}: camera/homography is not the identity where it was not estimated"

    def _check_tracks(self, data: dict[str, NDArray[Any]], meta: VideoMeta, where: str) -> Iterator[str]:
        valid = data["valid"]
        if (valid > 1).any():
            yield f"{where}: valid holds {valid.max()}, must be 0 or 1"
            return
        if (valid[:, 0] == 0).any():
            yield f"{where}: a grid point is not valid in the frame in which it starts"
        if "hog" in data and not (np.isfinite(data["start/hog_scale"]) & (data["start/hog_scale"] >= 0)).all():
            yield f"{where}: start/hog_scale holds {data['start/hog_scale'].min()}, must be 0 or more and finite"
        grid = grid_points(meta.frame_size, self.recipe.grid_stride)
        positions = decode_positions(data["displacement"], np.tile(grid, (len(valid) // len(grid), 1)))
        # positions were rounded by up to half a unit after they were found to be inside, or outside
        maybe_inside, inside = (_within(positions, meta.frame_size, by) for by in (UNIT_PX / 2, -UNIT_PX / 2))
        if (~maybe_inside & (valid == 1)).any():
            point, k = np.argwhere(~maybe_inside & (valid == 1))[0]
            yield f"{where}: point {point} is valid at step {k} at {positions[point, k].tolist()}, outside the frame"
        if self.recipe.tracker == "flow":
            yield from self._check_lost(data, where)
        else:
            shots = self._shots(data, meta)
            unseen = np.repeat((shots > shots[:, :1]) | self._past_end(data, meta), len(grid), axis=0)
            for problem in estimate_problems(data, self.recipe, inside, unseen):
                yield f"{where}: {problem}"
            if "hog" in data and data["hog"][~maybe_inside[:, :-1]].any():
                yield f"{where}: a histogram is not 0 where its point is outside the frame"

    def _check_lost(self, data: dict[str, NDArray[Any]], where: str) -> Iterator[str]:
        """With flow, a point that is lost stays lost, and has nothing any more."""
        valid = data["valid"]
        if (np.diff(valid.astype(np.int8), axis=1) > 0).any():
            yield f"{where}: valid comes back after it was lost, and valid_returns is false"
        if data["displacement"][valid[:, 1:] == 0].any():
            yield f"{where}: a displacement is not 0 where its step is not valid"
        if "hog" in data and data["hog"][valid[:, :-1] == 0].any():
            yield f"{where}: a histogram is not 0 where its point is not valid"

    def _check_descriptors(self, data: dict[str, NDArray[Any]], where: str) -> Iterator[str]:
        if "cell_measured" not in data:
            return
        measured = data["cell_measured"]
        if (measured > 1).any():
            yield f"{where}: cell_measured holds {measured.max()}, must be 0 or 1"
        for name in self.recipe.descriptors:
            if data[name][measured == 0].any():
                yield f"{where}: {name} is not 0 where its cell is not measured"
            scale = data.get(f"start/{name}_scale")
            if scale is not None and not (np.isfinite(scale) & (scale >= 0)).all():
                yield f"{where}: start/{name}_scale holds {scale.min()}, must be 0 or more and finite"


def _within(positions: NDArray[np.float64], frame_size: tuple[int, int], px: float) -> NDArray[np.bool_]:
    """Which positions lie in the frame, made wider by so much on each side."""
    height, width = frame_size
    return np.asarray(((positions >= -px) & (positions <= np.array([width - 1, height - 1]) + px)).all(axis=-1))


def _chunk_codecs(array: zarr.Array[Any]) -> list[str]:
    """Names of the codecs that a chunk goes through inside its zarr shard; [] where there are no zarr shards."""
    codecs = array.metadata.to_dict()["codecs"]
    sharding = json.loads(json.dumps(codecs, default=lambda codec: codec.to_dict()))[0]
    if sharding["name"] != "sharding_indexed":
        return []
    return [codec["name"] for codec in sharding["configuration"]["codecs"]]
