"""What every source of motion looks like: frames in, trajectories out."""

import dataclasses
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_specs.geometry import start_frames
from data_specs.recipe import Recipe
from data_specs.video import Frame
from extraction.flow_descriptors import FlowDescriptors


@dataclasses.dataclass(frozen=True)
class RowTracks:
    """The trajectories that begin in one frame. N grid points, row-major; L steps.

    `start`: the frame in which they begin.
    `positions`: float64 (N, L + 1, 2), x and y in pixels of the tracked frame.
    `valid`: bool (N, L + 1), where the point is inside the frame, measured and not found to be covered. By flow, a
    point that is lost stays lost, where it was; with any other tracker it may come back, and its positions meanwhile
    are the tracker's estimate.
    `homographies`: float64 (L, 3, 3), the camera's G of each step: a still point at x in the frame of step k is at
    G x in the frame of step k + 1. `estimated`: bool (L,), false where G is the identity for want of an estimate.
    `descriptors`: those of the flow across the first step, where the recipe asks for them; None where there is no flow.
    `visibility`, `confidence`: float32 (N, L + 1), each within [0, 1], as the tracker gives them, before any threshold:
    whether the point is seen, and whether its position is right. None with flow, which has neither.
    """

    start: int
    positions: NDArray[np.float64]
    valid: NDArray[np.bool_]
    homographies: NDArray[np.float64]
    estimated: NDArray[np.bool_]
    descriptors: FlowDescriptors | None = None
    visibility: NDArray[np.float32] | None = None
    confidence: NDArray[np.float32] | None = None


class Tracker(Protocol):
    """Tracks one video. Frames are pushed in order, each once; rows come back in order, as they become complete."""

    @property
    def lookback(self) -> int:
        """How many frames before the last one pushed a returned row may have begun, at most."""

    def push(self, frame: Frame, begins_shot: bool = False) -> list[RowTracks]:
        """Take the next frame, RGB uint8 (height, width, 3), and return the rows that it completes.

        begins_shot: a cut lies before this frame; no point is valid on both sides of it.
        """

    def finish(self) -> list[RowTracks]:
        """Return the rows that are still held and complete. Rows that the video's end cuts short are not rows.

        But for the one at frame 0 of a video that `is_kept_short`: nothing is valid past the video's last frame, where
        points stay, no camera is estimated, and visibility and confidence are 0.
        """


def is_kept_short(recipe: Recipe, num_frames: int) -> bool:
    """Whether so many frames are too few for a trajectory, and the recipe keeps such a video (`keep_short`)."""
    starts = start_frames(num_frames, recipe.length, recipe.frame_step, 1, keep_short=recipe.keep_short)
    return num_frames <= recipe.span and len(starts) == 1
