"""A video with true tracks, and the queries that TAP-Vid samples from them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_specs.video import Frame
from extraction.evaluation.tapvid_metrics import RASTER, QueryMode

QUERY_STRIDE = 5
"""Frames from one query frame to the next in mode `strided`."""


@dataclasses.dataclass(frozen=True)
class AnnotatedVideo:
    """N points followed through T frames.

    `frames`: T frames, RGB uint8 (height, width, 3), of one size. `positions`: float64 (N, T, 2), x and y in pixels of
    these frames, (0, 0) the centre of the top-left one; where a point is not visible they may be anything.
    `visible`: bool (N, T).
    """

    name: str
    frames: Sequence[Frame]
    positions: NDArray[np.float64]
    visible: NDArray[np.bool_]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        return self.frames[0].shape[0], self.frames[0].shape[1]

    def resized(self, size: tuple[int, int]) -> "AnnotatedVideo":
        """The video at `size` (height, width), by Pillow's Lanczos filter, which TAP-Vid's readers resize with."""
        if size == self.size:
            return self
        frames = [
            np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.LANCZOS))
            for frame in self.frames
        ]
        scale = np.array([size[1] / self.size[1], size[0] / self.size[0]])
        return dataclasses.replace(self, frames=frames, positions=(self.positions + 0.5) * scale - 0.5)


def raster_scale(size: tuple[int, int]) -> NDArray[np.float64]:
    """What x and y of a distance in frames of `size` (height, width) are multiplied by to be those of 256 x 256."""
    return np.array([RASTER / size[1], RASTER / size[0]])


@dataclasses.dataclass(frozen=True)
class Queries:
    """What a tracker is asked: `points`, float64 (Q, 3), are t (the frame), x and y; `tracks`, int64 (Q,), which of
    the video's points each is.
    """

    points: NDArray[np.float64]
    tracks: NDArray[np.int64]

    @property
    def frames(self) -> NDArray[np.int64]:
        """The frame of each query, (Q,)."""
        return self.points[:, 0].astype(np.int64)


def sample_queries(positions: NDArray[np.float64], visible: NDArray[np.bool_], mode: QueryMode) -> Queries:
    """TAP-Vid's queries. `first`: each point once, in the first frame in which it is visible. `strided`: each point in
    every fifth frame, 0, 5, 10, ..., in which it is visible. Points that are never visible there are not asked for.

    positions: (N, T, 2). visible: bool (N, T). In TAP-Vid's order: by point, and strided by frame, then point.
    """
    if mode == "first":
        tracks = np.flatnonzero(visible.any(axis=1))
        frames = visible[tracks].argmax(axis=1)
    elif mode == "strided":
        asked, tracks = np.nonzero(visible[:, ::QUERY_STRIDE].T)
        frames = asked * QUERY_STRIDE
    else:
        raise ValueError(f"query mode {mode!r}: must be first or strided")
    points = np.concatenate([frames[:, None], positions[tracks, frames]], axis=1)
    return Queries(points.astype(np.float64), tracks.astype(np.int64))
