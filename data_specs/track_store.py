"""Reading a track store with zarr: what is there, and one start row at a time. The spec is `track_store.md`.

This reader is plain and complete; it serves inspection, rendering and tests.
"""

import dataclasses
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray

from data_specs.checked_blosc import checked_blosc
from data_specs.encoding import decode_flow, decode_histograms, decode_positions
from data_specs.geometry import compensated_displacements, grid_points, grid_size
from data_specs.recipe import Recipe
from data_specs.schema import VideoMeta, array_specs
from data_specs.shard_files import has_array
from data_specs.store_info import StoreInfo
from data_specs.store_metadata import (
    StoreError,
    check_expansion,
    check_sealed,
    check_tree,
    read_layout,
    read_metadata,
    read_root,
    read_texts,
)
from data_specs.untrusted_files import MOST_METADATA_BYTES, parse_json, read_bounded

__all__ = ["StoreError", "StoreInfo", "TrackRow", "TrackShard", "TrackStore"]

_SHARD_NAME = re.compile(r"([0-9]{5,7})\.zarr")
_NUMBERS = re.compile(r"u?int(8|16|32|64)|float(16|32|64)")


@dataclasses.dataclass(frozen=True)
class TrackRow:
    """One start row: the trajectories that begin in one frame of one video. N grid points, row-major; L steps.

    `frame`: the first frame, an index into the video's frames.
    `positions`: float64 (N, L + 1, 2), x and y in pixels of the tracked frame.
    `valid`: bool (N, L + 1). By a tracker, a point may come back, and positions meanwhile are its estimate.
    `homographies`: float64 (L, 3, 3), G of each step; `estimated`: bool (L,), whether it was measured.
    `hog`: float32 (N, L, 9 C), or None where the store has none.
    `cell_measured`: bool (N,), `flow`: float32 (N, 2) in pixels, `hof`: float32 (N, 9), `mbh`: float32 (N, 2, 8):
    descriptors of the flow across the first step in each point's cell; None where the store has none. Where
    `cell_measured` is false they have no meaning.
    `visibility`, `confidence`: float32 (N, L + 1) within [0, 1], as the tracker gave them; None where flow did not.
    """

    frame: int
    positions: NDArray[np.float64]
    valid: NDArray[np.bool_]
    homographies: NDArray[np.float64]
    estimated: NDArray[np.bool_]
    positions_in: str
    hog: NDArray[np.float32] | None
    cell_measured: NDArray[np.bool_] | None = None
    flow: NDArray[np.float32] | None = None
    hof: NDArray[np.float32] | None = None
    mbh: NDArray[np.float32] | None = None
    visibility: NDArray[np.float32] | None = None
    confidence: NDArray[np.float32] | None = None

    @property
    def displacements(self) -> NDArray[np.float64]:
        """Steps of the positions, float64 (N, L, 2), in pixels per step."""
        return np.diff(self.positions, axis=1)

    @property
    def compensated(self) -> NDArray[np.float64]:
        """Steps without the camera's part, float64 (N, L, 2), in pixels per step."""
        if self.positions_in == "stabilised":
            return self.displacements
        return compensated_displacements(self.positions, self.homographies)

    @property
    def step_valid(self) -> NDArray[np.bool_]:
        """bool (N, L): whether step k has a meaning, that is, both of its ends are valid."""
        return np.asarray(self.valid[:, :-1] & self.valid[:, 1:])


class TrackShard:
    """One complete shard. Raises StoreError where its root metadata or one of its arrays is missing or unreadable, or
    not what was written.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        self._stored_bytes = check_tree(path)  # zarr opens whatever is there
        self._specs = array_specs(recipe)
        self._checked, self._sealed = set[str](), set[str]()
        self.counts, self._attributes = read_root(path)
        self.num_videos, self.num_starts, self.num_points, self.num_cuts = self.counts
        check_sealed(path, self._attributes, "video")
        self.ids, self.paths = read_texts(path, self.num_videos)
        try:
            self.group = zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False)
        except Exception as error:
            raise StoreError(f"{path}: cannot be opened as a zarr group: {error}") from error

    def __contains__(self, name: str) -> bool:
        """Whether there is such an array; one that is lost is there, and raises StoreError when it is read."""
        return has_array(self.path, self._attributes, name)

    def array(self, name: str) -> zarr.Array[Any]:
        """The array of that name, opened; nothing is read yet."""
        if name not in self._sealed:
            check_sealed(self.path, self._attributes, name)
            self._sealed.add(name)
        self._check_present(name)
        data_type = read_metadata(self.path / name, "array").get("data_type")
        if not isinstance(data_type, str) or not _NUMBERS.fullmatch(data_type):
            raise StoreError(f"{self.path}/{name}: data type is {str(data_type)[:100]!r}, arrays hold numbers alone")
        try:
            with checked_blosc():
                array = self.group[name]
        except Exception as error:  # whatever zarr trips over in metadata that need not be trusted
            raise StoreError(f"{self.path}/{name}: its metadata cannot be read: {error}") from error
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{self.path}/{name}: is a group, not an array")
        return array

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start:stop of an array's first axis."""
        self._check_layout(name)
        try:
            values = np.asarray(self.array(name)[start:stop])
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"{self.path}/{name}[{start}:{stop}]: cannot be read: {error}") from error
        if (spec := self._specs.get(name)) is not None and (unwritten := spec.is_fill(values)).any():
            # what zarr gives for a file that is not there
            place = start + int(np.argwhere(unwritten)[0][0])
            raise StoreError(f"{self.path}/{name}[{place}]: holds the fill value: it was not written")
        return values

    def _check_present(self, name: str) -> None:
        if not (self.path / name / "zarr.json").exists():
            raise StoreError(f"{self.path}/{name}: no such array")

    def _check_layout(self, name: str) -> None:
        """Raise StoreError, once, where an array is not as the recipe and the counts say."""
        spec = self._specs.get(name)
        if name in self._checked:
            return
        if spec is None:
            raise StoreError(f"{self.path}/{name}: a store of recipe {self.recipe.name} has no such array")
        self._check_present(name)
        layout, length = read_layout(self.path / name, spec), spec.length(*self.counts)
        if layout.shape[0] != length:
            raise StoreError(f"{self.path}/{name}: has {layout.shape[0]} rows, by the shard's counts {length}")
        check_expansion(self.path / name, layout, self._stored_bytes.get(name, 0))
        self._checked.add(name)

    def _offsets(self, name: str, last: int) -> NDArray[np.int64]:
        """An array of offsets, which rise from 0 to `last`."""
        offsets = self.read(name, 0, self._specs[name].length(*self.counts))
        if offsets[0] != 0 or offsets[-1] != last or (np.diff(offsets) < 0).any():
            first = ", ".join(map(str, offsets[:5].tolist()))
            raise StoreError(f"{self.path}/{name}: must rise from 0 to {last}, is {first} ... {offsets[-1]}")
        return offsets

    @cached_property
    def first_start(self) -> NDArray[np.int64]:
        """Offsets (V + 1,) of the videos' start rows."""
        return self._offsets("video/first_start", self.num_starts)

    @cached_property
    def cuts(self) -> list[tuple[int, ...]]:
        """For each video the indices of the frames at which a shot begins, ascending, without frame 0.

        None for any where the recipe does not look for cuts.
        """
        if not self.recipe.detect_cuts:
            return [()] * self.num_videos
        first_cut = self._offsets("video/first_cut", self.num_cuts).tolist()
        frames = self.read("cut/frame", 0, self.num_cuts).tolist()
        return [tuple(frames[first:last]) for first, last in pairwise(first_cut)]

    @cached_property
    def first_point(self) -> NDArray[np.int64]:
        """Offsets (S + 1,) of the start rows' points."""
        return self._offsets("start/first_point", self.num_points)

    @cached_property
    def metas(self) -> list[VideoMeta]:
        """Every video's metadata, in list order."""
        n = self.num_videos
        index, num_frames, fps, frame_size, source_size, grid = (
            self.read(f"video/{name}", 0, n).tolist()
            for name in ("index", "num_frames", "fps", "frame_size", "source_size", "grid_size")
        )
        file_bytes, file_crc32 = (
            self.read(f"video/{name}", 0, n).tolist() if f"video/{name}" in self else [0] * n
            for name in ("file_bytes", "file_crc32")
        )
        return [
            VideoMeta(
                index=index[v],
                id=self.ids[v],
                path=self.paths[v],
                num_frames=num_frames[v],
                fps=fps[v],
                frame_size=tuple(frame_size[v]),
                source_size=tuple(source_size[v]),
                grid_size=tuple(grid[v]),
                num_starts=int(self.first_start[v + 1] - self.first_start[v]),
                cuts=self.cuts[v],
                file_bytes=file_bytes[v],
                file_crc32=file_crc32[v],
            )
            for v in range(n)
        ]

    def rows(self, video: int) -> range:
        """Numbers of the start rows of video `video` of this shard."""
        return range(int(self.first_start[video]), int(self.first_start[video + 1]))

    def read_row(self, video: int, row: int, *, hog: bool = True, descriptors: bool = True) -> TrackRow:
        """Read start row `row` (of the shard) of video `video` (of the shard), with or without HOG and descriptors."""
        if row not in self.rows(video):
            raise IndexError(f"start row {row} is not video {video}'s: it has {self.rows(video)}")
        first, last = int(self.first_point[row]), int(self.first_point[row + 1])
        meta = self.metas[video]
        if (
            meta.grid_size != grid_size(meta.frame_size, self.recipe.grid_stride)
            or meta.points_per_start != last - first
        ):
            raise StoreError(
                f"{self.path}: video {video} ({meta.path}): frame_size {meta.frame_size}, grid_size {meta.grid_size} "
                f"and its {last - first} points contradict each other; inspect-tracks --verify says more"
            )
        grid = grid_points(meta.frame_size, self.recipe.grid_stride)
        histograms = None
        if self.recipe.hog and hog:
            histograms = self._histograms("hog", row)
        return TrackRow(
            frame=int(self.read("start/frame", row, row + 1)[0]),
            positions=decode_positions(self.read("displacement", first, last), grid),
            valid=self.read("valid", first, last) == 1,
            homographies=self.read("camera/homography", row, row + 1)[0].astype(np.float64),
            estimated=self.read("camera/estimated", row, row + 1)[0] == 1,
            positions_in=self.recipe.positions_in,
            hog=histograms,
            visibility=self._estimate("visibility", first, last),
            confidence=self._estimate("confidence", first, last),
            **(self._descriptors(row) if descriptors else {}),
        )

    def _estimate(self, name: str, first: int, last: int) -> NDArray[np.float32] | None:
        """What a tracker says of the positions of points first:last; None where it is flow."""
        return None if self.recipe.tracker == "flow" else self.read(name, first, last).astype(np.float32)

    def _histograms(self, name: str, row: int) -> NDArray[np.float32]:
        scale = float(self.read(f"start/{name}_scale", row, row + 1)[0])
        codes = self.read(name, int(self.first_point[row]), int(self.first_point[row + 1]))
        return decode_histograms(codes, scale)

    def _descriptors(self, row: int) -> dict[str, Any]:
        """The descriptors of the recipe, as fields of `TrackRow`."""
        kinds = self.recipe.descriptors
        if not kinds:
            return {}
        first, last = int(self.first_point[row]), int(self.first_point[row + 1])
        found: dict[str, Any] = {"cell_measured": self.read("cell_measured", first, last) == 1}
        if "flow" in kinds:
            found["flow"] = decode_flow(self.read("flow", first, last))
        return found | {name: self._histograms(name, row) for name in ("hof", "mbh") if name in kinds}


class TrackStore:
    """A store's folder. Raises StoreError where there is none, or one of another version."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        file = self.path / "store.json"
        try:
            fields = parse_json(read_bounded(file, MOST_METADATA_BYTES, links=False))
        except OSError as error:
            raise StoreError(f"{self.path}: is not a track store: {file}: {error.strerror}") from error
        except ValueError as error:
            raise StoreError(f"{file}: is not JSON: {error}") from error
        self.info = StoreInfo.from_json(fields, str(file))
        if (self.path / "shards").is_symlink():
            raise StoreError(
                f"{self.path / 'shards'}: is a symbolic link; a store has none: put the folder in its place"
            )

    def shard_path(self, shard: int) -> Path:
        """Where shard `shard` is when it is complete."""
        return self.path / "shards" / f"{shard:05d}.zarr"

    @property
    def complete_shards(self) -> list[int]:
        """Numbers of the complete shards, ascending."""
        folder = self.path / "shards"
        names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        numbers = {int(match[1]) for name in names if (match := _SHARD_NAME.fullmatch(name))}
        return sorted(number for number in numbers if f"{number:05d}.zarr" in names)

    def shard(self, shard: int) -> TrackShard:
        """Open a complete shard."""
        return TrackShard(self.shard_path(shard), self.info.recipe)

    def shards(self) -> Iterator[tuple[int, TrackShard]]:
        """Open the complete shards, one after the other."""
        for shard in self.complete_shards:
            yield shard, self.shard(shard)

    def find(self, video: str) -> tuple[TrackShard, int]:
        """The shard and the number in it of the video with this id, path, or name at the end of its path."""
        matches = [
            (shard, number)
            for _, shard in self.shards()
            for number, (video_id, path) in enumerate(zip(shard.ids, shard.paths, strict=True))
            if video in (video_id, path) or Path(path).name == video
        ]
        if len(matches) != 1:
            problem = "no video" if not matches else f"{len(matches)} videos"
            raise StoreError(f"{self.path}: {problem} called {video!r} in its complete shards")
        return matches[0]
