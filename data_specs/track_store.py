"""Reading a track store with zarr: what is there, and one start row at a time. The spec is `track_store.md`.

This reader is plain and complete; it serves inspection, rendering and tests.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray

from data_specs.encoding import decode_flow, decode_histograms, decode_positions
from data_specs.geometry import compensated_displacements, grid_points
from data_specs.recipe import Recipe, RecipeError
from data_specs.schema import FORMAT, VERSION, VideoMeta, array_specs
from data_specs.shard_files import attribute_problems, metadata_problems

T = TypeVar("T")

_SHARD_NAME = re.compile(r"(\d{5,})\.zarr")


class StoreError(ValueError):
    """A store that cannot be read; the message names the file and what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class StoreInfo:
    """The contents of store.json."""

    dataset: str
    split: str
    recipe: Recipe
    list_sha256: str
    num_videos: int
    num_shards: int
    software: dict[str, str]
    clip_stride: int | None = None
    """The data set's: frames from one frame of a training clip to the next. None in stores from before 0.3."""
    flip: bool | None = None
    """The data set's: whether a mirrored video is as good a training sample. None in stores from before 0.3."""
    weights_sha256: str | None = None
    """SHA-256 of the file of weights that a tracker's network was given, in hexadecimal. None where it has none."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "dataset": {
                "name": self.dataset,
                "split": self.split,
                **({} if self.clip_stride is None else {"clip_stride": self.clip_stride}),
                **({} if self.flip is None else {"flip": self.flip}),
            },
            "list": {"sha256": self.list_sha256, "videos": self.num_videos},
            "shards": self.num_shards,
            "positions_in": self.recipe.positions_in,
            "recipe": self.recipe.to_json(),
            **({} if self.weights_sha256 is None else {"weights": {"sha256": self.weights_sha256}}),
            "software": self.software,
        }

    @property
    def settings_sha256(self) -> str:
        """SHA-256 of all that two runs on one store must agree in, as compact JSON with sorted keys: `software` is not.

        Each shard has it among its attributes, so that a lost store.json can be written again.
        """
        fields = {key: value for key, value in self.to_json().items() if key != "software"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @classmethod
    def from_json(cls, fields: Any, where: str) -> "StoreInfo":
        """Check and take over the fields; raises StoreError naming `where`."""
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise StoreError(f"{where}: is not a track store's ({FORMAT})")
        if fields.get("version") != VERSION:
            raise StoreError(f"{where}: version {fields.get('version')!r}; this software reads version {VERSION}")
        weights = fields.get("weights")
        try:
            info = cls(
                dataset=str(fields["dataset"]["name"]),
                split=str(fields["dataset"]["split"]),
                recipe=Recipe.from_json(_present_fields(fields["recipe"]), where),
                list_sha256=str(fields["list"]["sha256"]),
                num_videos=int(fields["list"]["videos"]),
                num_shards=int(fields["shards"]),
                software={str(k): str(v) for k, v in fields["software"].items()},
                clip_stride=_optional(fields["dataset"].get("clip_stride"), int),
                flip=_optional(fields["dataset"].get("flip"), bool),
                weights_sha256=None if weights is None else _optional(weights["sha256"], str),
            )
        except (KeyError, TypeError, AttributeError, RecipeError) as error:
            raise StoreError(f"{where}: a field is missing or wrong: {error}") from error
        if info.recipe.start_stride is None:
            raise StoreError(f"{where}: recipe.start_stride is null; a store's recipe must give it")
        return info


def _optional(value: Any, kind: type[T]) -> T | None:
    """The value, where it is there; TypeError where it is of another type."""
    if value is not None and type(value) is not kind:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def _present_fields(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's fields in today's terms.

    A store without `detect_cuts` is from before cuts were looked for, one without `forward_backward` from when `tvl1`
    was OpenCV's.
    """
    present = {"detect_cuts": False, **recipe}
    if "forward_backward" not in recipe and recipe.get("flow") == "tvl1":
        present["flow"] = "tvl1-opencv"
    return present


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
        try:
            self.group = zarr.open_group(path, mode="r", zarr_format=3)
        except (OSError, ValueError, TypeError, KeyError, zarr.errors.BaseZarrError) as error:
            raise StoreError(f"{path}: cannot be opened as a zarr group: {error}") from error
        attributes = dict(self.group.attrs)
        self._attributes, self._sound_metadata = attributes, set[str]()
        self._specs = array_specs(recipe)
        if problems := list(attribute_problems(path, attributes)):
            raise StoreError(problems[0])
        if attributes.get("version") != VERSION or attributes.get("format") != FORMAT:
            raise StoreError(
                f"{path}: format {attributes.get('format')!r}, version {attributes.get('version')!r}; "
                f"this software reads {FORMAT}, version {VERSION}"
            )
        self._check_metadata("video")
        try:
            self.num_videos, self.num_starts, self.num_points = (
                int(cast(int, attributes[key])) for key in ("num_videos", "num_starts", "num_points")
            )
            self.num_cuts = int(cast(int, attributes.get("num_cuts", 0)))
            texts = self.group["video"].attrs
            self.ids, self.paths = ([str(t) for t in cast(list[str], texts[key])] for key in ("id", "path"))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: a count, id or path is missing or wrong: {error}") from error

    def _check_metadata(self, name: str) -> None:
        if name not in self._sound_metadata:
            if problems := list(metadata_problems(self.path, self._attributes, name)):
                raise StoreError(problems[0])
            self._sound_metadata.add(name)

    def __contains__(self, name: str) -> bool:
        """Whether there is such an array; one that is lost is there, and raises StoreError when it is read."""
        files = self._attributes.get("files")
        if isinstance(files, dict):
            return f"{name}/zarr.json" in files
        return (self.path / name / "zarr.json").exists()

    def array(self, name: str) -> zarr.Array[Any]:
        """The array of that name, opened; nothing is read yet."""
        self._check_metadata(name)
        try:
            array = self.group[name]
        except KeyError:
            raise StoreError(f"{self.path}/{name}: no such array") from None
        except (OSError, ValueError, TypeError, zarr.errors.BaseZarrError) as error:
            raise StoreError(f"{self.path}/{name}: its metadata cannot be read: {error}") from error
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{self.path}/{name}: is a group, not an array")
        return array

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start:stop of an array's first axis."""
        try:
            values = np.asarray(self.array(name)[start:stop])
        except StoreError:
            raise
        except (OSError, ValueError, RuntimeError, zarr.errors.BaseZarrError) as error:
            raise StoreError(f"{self.path}/{name}[{start}:{stop}]: cannot be read: {error}") from error
        if (spec := self._specs.get(name)) is not None and (unwritten := spec.is_fill(values)).any():
            # what zarr gives for a file that is not there
            place = start + int(np.argwhere(unwritten)[0][0])
            raise StoreError(f"{self.path}/{name}[{place}]: holds the fill value: it was not written")
        return values

    @cached_property
    def first_start(self) -> NDArray[np.int64]:
        """Offsets (V + 1,) of the videos' start rows."""
        return self.read("video/first_start", 0, self.num_videos + 1)

    @cached_property
    def cuts(self) -> list[tuple[int, ...]]:
        """For each video the indices of the frames at which a shot begins, ascending, without frame 0.

        None for any where the recipe does not look for cuts.
        """
        if not self.recipe.detect_cuts:
            return [()] * self.num_videos
        first_cut = self.read("video/first_cut", 0, self.num_videos + 1).tolist()
        frames = self.read("cut/frame", 0, self.num_cuts).tolist()
        return [tuple(frames[first:last]) for first, last in pairwise(first_cut)]

    @cached_property
    def first_point(self) -> NDArray[np.int64]:
        """Offsets (S + 1,) of the start rows' points."""
        return self.read("start/first_point", 0, self.num_starts + 1)

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
        grid = grid_points(self.metas[video].frame_size, self.recipe.grid_stride)
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
            fields = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise StoreError(f"{self.path}: is not a track store: {file}: {error.strerror}") from error
        except ValueError as error:
            raise StoreError(f"{file}: is not JSON: {error}") from error
        self.info = StoreInfo.from_json(fields, str(file))

    def shard_path(self, shard: int) -> Path:
        """Where shard `shard` is when it is complete."""
        return self.path / "shards" / f"{shard:05d}.zarr"

    @property
    def complete_shards(self) -> list[int]:
        """Numbers of the complete shards, ascending."""
        folder = self.path / "shards"
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := _SHARD_NAME.fullmatch(name)))

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
