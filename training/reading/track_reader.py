"""Track stores as training reads them: which videos there are, and the trajectories of a few start rows at once.

`data_specs/track_store.py` is the plain reader that this one is held against.
"""

import dataclasses
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_specs.encoding import decode_flow
from data_specs.failures import Failure, read_failures
from data_specs.track_store import StoreError, TrackStore
from training.reading.shard_reader import OpenFiles, Runs, ShardReader
from training.reading.stored_rows import StoredRows, compile_steps
from training.reading.video_table import VideoRecord, VideoTable, join_tables, shard_table

__all__ = ["TrackField", "TrackReader", "VideoRecord", "VideoTable"]


@dataclasses.dataclass(frozen=True)
class TrackField:
    """The trajectories that begin in one frame, on their grid (rows, columns). L steps, C colour channels of HOG.

    Histograms stay coded: value = (code / 254)² * scale. What the caller did not ask for is None.
    """

    displacement: NDArray[np.float32]
    """(rows, columns, L, 2), x and y in pixels of the tracked frame per step; 0 where the step is not valid."""
    valid: NDArray[np.bool_]
    """(rows, columns, L + 1). Step k has a meaning where positions k and k + 1 are valid."""
    hog_codes: NDArray[np.uint8] | None = None
    """(rows, columns, L, 9 C): shape around position k, for k = 0 … L − 1; no meaning where that is not valid."""
    hog_scale: float | None = None
    cell_measured: NDArray[np.bool_] | None = None
    """(rows, columns): where `flow`, `hof` and `mbh` have a meaning."""
    flow: NDArray[np.float32] | None = None
    """(rows, columns, 2), x and y in pixels of the tracked frame per frame step."""
    hof_codes: NDArray[np.uint8] | None = None
    """(rows, columns, 9)."""
    hof_scale: float | None = None
    mbh_codes: NDArray[np.uint8] | None = None
    """(rows, columns, 2, 8)."""
    mbh_scale: float | None = None


class TrackReader:
    """A track store's complete shards. Opening reads their tables; tracks are read when they are asked for.

    `info`: what store.json says. `videos`: those with tracks, in list order. `failed`: those that failed, in list
    order. `missing_shards`: numbers of the shards that are not there yet.

    It may be pickled and sent to workers, or forked: each process opens its own files, at most `open_files`.
    The store must stay as it is meanwhile. Raises StoreError, naming the file, where the store or what is read of it is
    missing, damaged or contradicts itself.
    """

    def __init__(self, store: str | Path, *, open_files: int | None = None) -> None:
        opened = TrackStore(store)
        assert opened.info.recipe.start_stride is not None  # a store's recipe gives it
        self._start_stride = opened.info.recipe.start_stride
        self._store, self.path, self.info = opened, opened.path, opened.info
        self._files = OpenFiles() if open_files is None else OpenFiles(open_files)
        self._shards: dict[int, ShardReader] = {}
        complete, count = opened.complete_shards, self.info.num_shards
        if complete and complete[-1] >= count:
            raise StoreError(f"{opened.shard_path(complete[-1])}: the store has {count} shards")
        self.missing_shards = sorted(set(range(count)) - set(complete))
        tables: list[dict[str, Any]] = []
        self.failed: list[Failure] = []
        self._counts: dict[int, tuple[int, int, int]] = {}
        for shard in complete:
            reader = ShardReader(opened.shard_path(shard), self.info.recipe)
            table = shard_table(reader, shard)
            try:
                failed = read_failures(self.path, shard)
            except (OSError, ValueError) as error:
                raise StoreError(str(error)) from error
            listed = sorted([*table["places"].tolist(), *(failure.index for failure in failed)])
            if not _same(listed, range(shard, self.info.num_videos, count)):
                raise StoreError(f"{reader.path}: its videos and failures are not those that the list has for it")
            self._counts[shard] = (reader.num_videos, reader.num_starts, reader.num_points)
            tables.append(table)
            self.failed += failed
        self.failed.sort(key=lambda failure: failure.index)
        self.videos: VideoTable = join_tables(tables)
        # compiles here, once, what the workers would all compile at the same time
        compile_steps()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}

    def rows(
        self,
        video: VideoRecord,
        frames: Sequence[int],
        *,
        hog: bool,
        descriptors: Sequence[str] = (),
        remove_camera: bool = True,
        length: int | None = None,
    ) -> list[TrackField | None]:
        """The trajectories that begin in each of `frames` of a video; None where none do.

        None do in frames that are not multiples of the store's start_stride, or lie too near the video's end or past
        it. `length`: only so many steps, from the first. `descriptors`: any of flow, hof, mbh. `remove_camera`:
        displacements without the camera's part, G⁻¹ p(k + 1) − p(k), or the positions' own, p(k + 1) − p(k).
        Raises ValueError for what the store does not have, StoreError for what of it cannot be read.
        """
        steps = self.info.recipe.length if length is None else length
        stored = self.stored_rows(
            video, frames, hog=hog, descriptors=descriptors, remove_camera=remove_camera, length=steps
        )
        fields: list[TrackField | None] = [None] * len(frames)
        if stored is None:
            return fields
        moved, _ = stored.steps(steps)
        points = stored.grid[0] * stored.grid[1]
        for row, asked in enumerate(stored.asked.tolist()):

            def of(runs: Runs, row: int = row) -> NDArray[Any]:
                first = int(runs.first[row])
                values = runs.values[first : first + points]
                return values.reshape(*stored.grid, *values.shape[1:])

            field: dict[str, Any] = {name: of(runs) for name, runs in stored.points.items()}
            for name in ("hog", "hof", "mbh"):
                if name in field:
                    field[f"{name}_codes"] = field.pop(name)
                    field[f"{name}_scale"] = float(stored.scales[name][row])
            if "hog_codes" in field:
                field["hog_codes"] = field["hog_codes"][:, :, :steps]
            if "flow" in field:
                field["flow"] = decode_flow(field["flow"])
            fields[asked] = TrackField(of(moved), of(stored.valid)[:, :, : steps + 1], **field)
        return fields

    def stored_rows(
        self,
        video: VideoRecord,
        frames: Sequence[int],
        *,
        hog: bool,
        descriptors: Sequence[str] = (),
        displacement: bool = True,
        remove_camera: bool = True,
        length: int | None = None,
    ) -> StoredRows | None:
        """What `rows` gives, in the store's own coding and in one piece, for whoever needs but a part of the grid.

        None where in none of `frames` a trajectory begins; arguments and errors are those of `rows`. Without
        `displacement` it has no steps, and neither they nor the camera are read.
        """
        recipe = self.info.recipe
        self._check_request(hog, descriptors, remove_camera, recipe.length if length is None else length)
        place = self.videos.find(video)
        stride, begins = self._start_stride, video.num_starts
        found = [(n, f // stride) for n, f in enumerate(frames) if f % stride == 0 and 0 <= f // stride < begins]
        if not found:
            return None
        first_start, first_point = int(self.videos.first_start[place]), int(self.videos.first_point[place])
        rows, columns = self.videos.grid_size[place].tolist()
        reader, count = self._shard(video.shard), rows * columns
        of_points = [first_point + row * count for _, row in found]
        of_rows = [first_start + row for _, row in found]

        def read(name: str) -> Runs:
            return reader.array(name).read_runs(of_points, count)

        def read_scales(name: str) -> NDArray[np.float32]:
            values, first = reader.array(f"start/{name}_scale").read_runs(of_rows, 1)
            return np.asarray(values[first])

        homography = None
        if displacement and remove_camera and recipe.positions_in == "image":
            homography = reader.array("camera/homography").read_runs(of_rows, 1)
        points = {name: read(name) for name in (*(["hog"] if hog else []), *descriptors)}
        if descriptors:
            points["cell_measured"] = _read_flags(reader, "cell_measured", of_points, count)
        return StoredRows(
            place=f"{reader.path}/camera/homography: of {video.path}",
            grid=(rows, columns),
            grid_stride=recipe.grid_stride,
            asked=np.array([n for n, _ in found]),
            displacement=read("displacement") if displacement else None,
            valid=_read_flags(reader, "valid", of_points, count),
            homography=homography,
            points=points,
            scales={name: read_scales(name) for name in points if name in ("hog", "hof", "mbh")},
        )

    def _check_request(self, hog: bool, descriptors: Sequence[str], remove_camera: bool, steps: int) -> None:
        recipe = self.info.recipe
        if not 1 <= steps <= recipe.length:
            raise ValueError(f"length {steps}: the trajectories of {self.path} have {recipe.length} steps")
        if hog and not recipe.hog:
            raise ValueError(f"{self.path} has no HOG (its recipe, {recipe.name}, says hog: false)")
        if lacking := [name for name in descriptors if name not in recipe.descriptors]:
            raise ValueError(
                f"{self.path} has no {', '.join(lacking)} (its recipe, {recipe.name}, does not ask for it)"
            )
        if not remove_camera and recipe.positions_in == "stabilised":
            raise ValueError(
                f"remove_camera false: the positions of {self.path} are stabilised, without the camera; "
                f"this needs a store of a recipe with positions_in image, such as mme-object"
            )

    def _shard(self, shard: int) -> ShardReader:
        """A shard, opened in this process, and checked where reading builds on what another array says as well."""
        found = self._shards.get(shard)
        if found is None:
            found = ShardReader(self._store.shard_path(shard), self.info.recipe, self._files)
            counts = (found.num_videos, found.num_starts, found.num_points)
            if counts != self._counts[shard]:
                raise StoreError(f"{found.path}: has changed since the store was opened")
            mine = np.flatnonzero(self.videos.shard == shard)
            mine = mine[np.argsort(self.videos.number[mine])]
            num_starts, first_start = self.videos.num_starts[mine], self.videos.first_start[mine]
            row = np.arange(found.num_starts) - np.repeat(first_start, num_starts)  # of its video
            points = np.repeat(self.videos.grid_size[mine].astype(np.int64).prod(axis=1), num_starts)
            found.largest_row = int(points.max(initial=0))
            expected = {
                "start/frame": row * self._start_stride,
                "start/first_point": np.concatenate([[0], np.cumsum(points)]),
            }
            for name, values in expected.items():
                if not np.array_equal(found.read(name, 0, len(values)), values):
                    raise StoreError(f"{found.path}/{name}: contradicts the videos' numbers of frames and grids")
            self._shards[shard] = found
        return found


def _same(listed: list[int], places: range) -> bool:
    """Whether they are the same numbers; a store can say that it has more than fit into memory."""
    return len(listed) == len(places) and all(map(operator.eq, listed, places))


def _read_flags(reader: ShardReader, name: str, starts: Sequence[int], count: int) -> Runs:
    """Runs of an array of truth values, which are stored as bytes."""
    values, first = reader.array(name).read_runs(starts, count)
    if values.max(initial=0) > 1:  # it may be the fill value that follows the array's end
        for run in (values[n : n + count] for n in first.tolist()):
            if run.max() > 1:
                raise StoreError(f"{reader.path}/{name}: holds {run.max()}, must be 0 or 1")
    return Runs(values.view(np.bool_), first)
