"""The arrays of a track store, version 1: names, types, axes, fill values. `track_store.md` explains them.

Axis legend: V videos, S start rows, P points (all rows' points, one after the other), K cuts,
L steps, C colour channels.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_specs.recipe import Recipe

FORMAT = "motion-targets/track-store"
VERSION = 1
UNIT_PX = 1 / 64
"""Displacements are integers in this unit."""
HOG_BINS = 9
FLOW_BINS = 8
"""Orientations of HOF and MBH; HOF has one bin more, for pixels that are still."""

Axis = Literal["video", "video_offset", "start", "start_offset", "point", "cut"]


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of a shard. `inner` are the sizes of the axes after the first, `inner_names` their names."""

    name: str
    dtype: str
    axis: Axis
    fill: float
    inner: tuple[int, ...] = ()
    inner_names: tuple[str, ...] = ()
    attributes: tuple[tuple[str, Any], ...] = ()
    is_optional: bool = False
    """Whether a store may lack it: one from before it was thought of."""

    def is_fill(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of the values are the fill value, which is never written."""
        return np.isnan(values) if np.isnan(self.fill) else np.asarray(values == self.fill)

    def length(self, num_videos: int, num_starts: int, num_points: int, num_cuts: int) -> int:
        """Size of the first axis in a shard of so many videos, start rows, points and cuts."""
        return {
            "video": num_videos,
            "video_offset": num_videos + 1,
            "start": num_starts,
            "start_offset": num_starts + 1,
            "point": num_points,
            "cut": num_cuts,
        }[self.axis]


@dataclasses.dataclass(frozen=True)
class VideoMeta:
    """What a store holds of one video besides its tracks. Sizes are (height, width).

    `cuts`: indices of the frames at which a shot begins, ascending, without frame 0; () where they were not looked for.
    """

    index: int
    id: str
    path: str
    num_frames: int
    fps: float
    frame_size: tuple[int, int]
    source_size: tuple[int, int]
    grid_size: tuple[int, int]
    num_starts: int
    cuts: tuple[int, ...] = ()
    file_bytes: int = 0
    """Size of the file; 0 where it is not known, as in stores from before 0.5."""
    file_crc32: int = 0

    @property
    def points_per_start(self) -> int:
        """Points of each start row: the grid's."""
        return self.grid_size[0] * self.grid_size[1]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "VideoMeta":
        """The inverse of `dataclasses.asdict` after a trip through JSON, which makes lists of tuples.

        Raises ValueError or TypeError for fields that are missing, unknown, of a wrong type, or negative.
        """
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        for key, value in values.items():
            is_size, is_text = key.endswith("_size"), key in ("id", "path")
            numbers = value if is_size or key == "cuts" else (value,)
            sound = isinstance(numbers, tuple) and (not is_size or len(numbers) == 2)
            bits = 63 if key.startswith("file_") else 31
            if not sound or not all(type(n) is str if is_text else _is_count(n, bits, key == "fps") for n in numbers):
                raise ValueError(f"{key} is {ascii(value)[:200]}")
        return cls(**values)


def _is_count(value: Any, bits: int, fraction: bool) -> bool:
    """Whether a number is one that the arrays of a video take."""
    return (type(value) is int or (fraction and type(value) is float)) and 0 <= value < 1 << bits


def array_specs(recipe: Recipe) -> dict[str, ArraySpec]:
    """The arrays that a shard of this recipe holds, by name. Fill values cannot occur as data."""
    length, is_tracked = recipe.length, recipe.tracker != "flow"
    specs = [
        ArraySpec("video/index", "int64", "video", -1),
        ArraySpec("video/num_frames", "int32", "video", -1),
        ArraySpec("video/fps", "float32", "video", float("nan")),
        ArraySpec("video/frame_size", "int32", "video", -1, (2,), ("height_width",)),
        ArraySpec("video/source_size", "int32", "video", -1, (2,), ("height_width",)),
        ArraySpec("video/grid_size", "int32", "video", -1, (2,), ("height_width",)),
        ArraySpec("video/file_bytes", "int64", "video", -1, is_optional=True),
        ArraySpec("video/file_crc32", "int64", "video", -1, is_optional=True),
        ArraySpec("video/first_start", "int64", "video_offset", -1),
        ArraySpec("start/frame", "int32", "start", -1),
        ArraySpec("start/first_point", "int64", "start_offset", -1),
        ArraySpec("camera/homography", "float32", "start", float("nan"), (length, 3, 3), ("step", "row", "column")),
        ArraySpec("camera/estimated", "uint8", "start", 255, (length,), ("step",)),
        ArraySpec("displacement", "int16", "point", -32768, (length, 2), ("step", "xy"), (("unit_px", UNIT_PX),)),
        ArraySpec("valid", "uint8", "point", 255, (length + 1,), ("position",), (("valid_returns", is_tracked),)),
    ]
    if is_tracked:
        specs += [
            ArraySpec(name, "float16", "point", float("nan"), (length + 1,), ("position",))
            for name in ("visibility", "confidence")
        ]
    if recipe.detect_cuts:
        specs += [
            ArraySpec("video/first_cut", "int64", "video_offset", -1),
            ArraySpec("cut/frame", "int32", "cut", -1),
        ]
    if recipe.hog:
        bins = HOG_BINS * recipe.hog_channels
        specs += [
            ArraySpec("start/hog_scale", "float32", "start", float("nan")),
            ArraySpec("hog", "uint8", "point", 255, (length, bins), ("step", "bin"), (("coding", "sqrt"),)),
        ]
    if recipe.descriptors:
        specs.append(ArraySpec("cell_measured", "uint8", "point", 255))
    if "flow" in recipe.descriptors:
        specs.append(ArraySpec("flow", "int16", "point", -32768, (2,), ("xy",), (("unit_px", UNIT_PX),)))
    for name, inner, inner_names in [
        ("hof", (FLOW_BINS + 1,), ("bin",)),
        ("mbh", (2, FLOW_BINS), ("component", "bin")),
    ]:
        if name in recipe.descriptors:
            specs += [
                ArraySpec(f"start/{name}_scale", "float32", "start", float("nan")),
                ArraySpec(name, "uint8", "point", 255, inner, inner_names, (("coding", "sqrt"),)),
            ]
    return {spec.name: spec for spec in specs}


STREAMED = (
    "start/frame",
    "start/hog_scale",
    "camera/homography",
    "camera/estimated",
    "displacement",
    "valid",
    "visibility",
    "confidence",
    "hog",
    "cell_measured",
    "flow",
    "start/hof_scale",
    "hof",
    "start/mbh_scale",
    "mbh",
)
"""The arrays that a video's extraction fills row by row; the rest follows from its `VideoMeta`."""
