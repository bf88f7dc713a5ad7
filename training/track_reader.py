"""Track stores as training reads them: which videos there are, and the trajectories of a few start rows at once.

`data_specs/track_store.py` is the plain reader that this one is held against.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from data_specs.encoding import decode_flow
from data_specs.failures import Failure, read_failures
from data_specs.schema import UNIT_PX
from data_specs.track_store import StoreError, TrackStore
from training.shard_reader import OpenFiles, ShardReader
from training.video_table import VideoRecord, VideoTable, join_tables, shard_table

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
        self.path, self.info = opened.path, opened.info
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
            if listed != list(range(shard, self.info.num_videos, count)):
                raise StoreError(f"{reader.path}: its videos and failures are not those that the list has for it")
            self._counts[shard] = (reader.num_videos, reader.num_starts, reader.num_points)
            tables.append(table)
            self.failed += failed
        self.failed.sort(key=lambda failure: failure.index)
        self.videos: VideoTable = join_tables(tables)
        # compiles here, once, what the workers would all compile at the same time
        _steps(np.zeros((0, 1, 1, 2), np.int16), np.zeros((0, 1, 2), np.bool_), np.zeros((0, 1, 3, 3)), 1, 1, 1)

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
        recipe = self.info.recipe
        steps = recipe.length if length is None else length
        self._check_request(hog, descriptors, remove_camera, steps)
        place = self.videos.find(video)
        stride = self._start_stride
        found = [f // stride if f % stride == 0 and 0 <= f // stride < video.num_starts else -1 for f in frames]
        present = sorted({row for row in found if row >= 0})
        if not present:
            return [None] * len(found)
        first_start, first_point = int(self.videos.first_start[place]), int(self.videos.first_point[place])
        rows, columns = self.videos.grid_size[place].tolist()
        reader, points = self._shard(video.shard), rows * columns

        def of_points(name: str) -> NDArray[Any]:
            return reader.array(name).read_blocks([first_point + row * points for row in present], points)

        def of_rows(name: str) -> NDArray[Any]:
            low = first_start + present[0]
            picked: NDArray[Any] = reader.read(name, low, first_start + present[-1] + 1)[np.array(present) - present[0]]
            return picked

        valid = _flags(of_points("valid"), reader, "valid")
        inverse = None
        if remove_camera and recipe.positions_in == "image":
            try:
                inverse = np.linalg.inv(of_rows("camera/homography")[:, :steps].astype(np.float64))
            except np.linalg.LinAlgError as error:
                raise StoreError(f"{reader.path}/camera/homography: of {video.path}: {error}") from error
        moved = _steps(of_points("displacement"), valid, inverse, columns, recipe.grid_stride, steps)
        grid = (len(present), rows, columns)
        fields: dict[str, Any] = {
            "displacement": moved.reshape(*grid, steps, 2),
            "valid": valid.reshape(*grid, -1)[..., : steps + 1],
        }
        if hog:
            fields["hog_codes"] = of_points("hog").reshape(*grid, recipe.length, -1)[..., :steps, :]
            fields["hog_scale"] = of_rows("start/hog_scale").tolist()
        if descriptors:
            fields["cell_measured"] = _flags(of_points("cell_measured"), reader, "cell_measured").reshape(grid)
        if "flow" in descriptors:
            fields["flow"] = decode_flow(of_points("flow")).reshape(*grid, 2)
        for name, shape in (("hof", (9,)), ("mbh", (2, 8))):
            if name in descriptors:
                fields[f"{name}_codes"] = of_points(name).reshape(*grid, *shape)
                fields[f"{name}_scale"] = of_rows(f"start/{name}_scale").tolist()
        made = {
            row: TrackField(**{name: values[i] for name, values in fields.items()}) for i, row in enumerate(present)
        }
        return [made.get(row) for row in found]

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
            found = ShardReader(self.path / "shards" / f"{shard:05d}.zarr", self.info.recipe, self._files)
            counts = (found.num_videos, found.num_starts, found.num_points)
            if counts != self._counts[shard]:
                raise StoreError(f"{found.path}: has changed since the store was opened")
            mine = np.flatnonzero(self.videos.shard == shard)
            mine = mine[np.argsort(self.videos.number[mine])]
            num_starts, first_start = self.videos.num_starts[mine], self.videos.first_start[mine]
            row = np.arange(found.num_starts) - np.repeat(first_start, num_starts)  # of its video
            points = np.repeat(self.videos.grid_size[mine].prod(axis=1), num_starts)
            expected = {
                "start/frame": row * self._start_stride,
                "start/first_point": np.concatenate([[0], np.cumsum(points)]),
            }
            for name, values in expected.items():
                if not np.array_equal(found.read(name, 0, len(values)), values):
                    raise StoreError(f"{found.path}/{name}: contradicts the videos' numbers of frames and grids")
            self._shards[shard] = found
        return found


def _flags(values: NDArray[np.uint8], reader: ShardReader, name: str) -> NDArray[np.bool_]:
    """The same bytes as truth values."""
    if values.max(initial=0) > 1:
        raise StoreError(f"{reader.path}/{name}: holds {values.max()}, must be 0 or 1")
    return values.view(np.bool_)


def _steps(
    displacement: NDArray[np.int16],
    valid: NDArray[np.bool_],
    inverse: NDArray[np.float64] | None,
    columns: int,
    stride: int,
    steps: int,
) -> NDArray[np.float32]:
    """Displacements in pixels, float32 (R, N, steps, 2), of R start rows of N points, row-major on the same grid.

    displacement: (R, N, L, 2) in stored units. valid: (R, N, L + 1). inverse: G⁻¹ of each step, (R, steps, 3, 3), to
    take the camera out, or None to leave the steps as they are.
    """
    if inverse is None:
        inverse = np.zeros((0, 0, 3, 3))
    moved = np.empty((*displacement.shape[:2], steps, 2), np.float32)
    _fill_steps(displacement, valid, inverse, columns, stride, moved)
    return moved


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fill_steps(
    displacement: NDArray[np.int16],
    valid: NDArray[np.bool_],
    inverse: NDArray[np.float64],
    columns: int,
    stride: int,
    moved: NDArray[np.float32],
) -> None:
    """Fill `moved`; see `_steps`. In double precision: a position is far larger than what a still point moves by."""
    rows, points, steps, _ = moved.shape
    compensate = len(inverse) > 0
    for r in range(rows):
        for n in range(points):
            x = stride * (n % columns) + (stride - 1) / 2
            y = stride * (n // columns) + (stride - 1) / 2
            for k in range(steps):
                dx, dy = displacement[r, n, k, 0] * UNIT_PX, displacement[r, n, k, 1] * UNIT_PX
                next_x, next_y = x + dx, y + dy
                if not (valid[r, n, k] and valid[r, n, k + 1]):
                    dx, dy = 0.0, 0.0
                elif compensate:
                    g = inverse[r, k]
                    scale = 1 / (g[2, 0] * next_x + g[2, 1] * next_y + g[2, 2])
                    dx = (g[0, 0] * next_x + g[0, 1] * next_y + g[0, 2]) * scale - x
                    dy = (g[1, 0] * next_x + g[1, 1] * next_y + g[1, 2]) * scale - y
                moved[r, n, k, 0], moved[r, n, k, 1] = dx, dy
                x, y = next_x, next_y
