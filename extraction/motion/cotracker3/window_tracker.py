"""A `Tracker` by CoTracker3: every start row is a window of frames whose grid points the network tracks together."""

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray

from data_specs.geometry import grid_points, inside_frame
from data_specs.recipe import Recipe
from data_specs.video import Frame
from extraction.motion.cotracker3.network import CoTracker3, FrameFeatures, WindowTracks, to_network
from extraction.motion.cotracker3.row_camera import RowCamera
from extraction.motion.flow_tracker import TrackedFrame
from extraction.motion.gpu.device import device_errors
from extraction.motion.tracker import RowTracks, is_kept_short
from extraction.stages import Stage

POINTS_AT_A_TIME = 4096
"""Points of all windows of a batch, on a device that needs many to be busy."""
_FRAMES_AT_A_TIME = 16


class WindowTracker:
    """A `Tracker`. One for each video; `stage` times its parts.

    A window has the frames start + k * frame_step, k = 0 … L. A frame's features are computed once, however many
    windows it is in. windows: so many are tracked at a time, and rows come back up to windows - 1 start strides later;
    None for `windows_at_a_time`.
    """

    def __init__(self, recipe: Recipe, network: CoTracker3, stage: Stage, windows: int | None = None) -> None:
        if recipe.start_stride is None:
            raise ValueError("the recipe's start_stride is not resolved")
        self._recipe, self._stride, self._network, self._stage = recipe, recipe.start_stride, network, stage
        self._batch = windows or windows_at_a_time(recipe, network.device.type)
        self._count = 0
        self._cuts: list[int] = []
        self._ready: deque[int] = deque()
        self._without_features: dict[int, Frame] = {}
        self._camera = RowCamera(recipe)
        self._features: FrameFeatures | None = None
        self._frame_size = (0, 0)
        self._grid: NDArray[np.float64] = np.zeros((0, 2))
        self._queries = torch.zeros((0, 3))

    @property
    def lookback(self) -> int:
        """A row is returned when the batch is tracked that its window is in."""
        return self._recipe.span + (self._batch - 1) * self._stride

    def push(self, frame: Frame, begins_shot: bool = False) -> list[RowTracks]:
        """See `Tracker`. Frames on which no row steps are passed over."""
        index = self._count
        self._count += 1
        if index == 0:
            self._begin((frame.shape[0], frame.shape[1]))
        if begins_shot:
            self._cuts.append(index)
        if self._steps_on(index):
            self._without_features[index] = frame
            if self._recipe.remove_camera:
                self._camera.put(index, TrackedFrame(frame))
            if len(self._without_features) >= (1 if self._network.device.type == "cpu" else _FRAMES_AT_A_TIME):
                self._compute_features()
        start = index - self._recipe.span
        if start >= 0 and start % self._stride == 0:
            self._ready.append(start)
        return self._track() if len(self._ready) >= self._batch else []

    def finish(self) -> list[RowTracks]:
        """See `Tracker`: what is left are the windows of a batch that did not become full, or that of a short video."""
        if is_kept_short(self._recipe, self._count):
            self._ready.append(0)
        return self._track() if self._ready else []

    def _begin(self, frame_size: tuple[int, int]) -> None:
        self._frame_size = frame_size
        self._grid = grid_points(frame_size, self._recipe.grid_stride)
        points = self._grid * to_network(frame_size, self._network.resolution)
        points = np.concatenate([points, support_points(self._recipe.support_grid, self._network.resolution)])
        at_start = np.zeros((len(points), 1))
        self._queries = torch.from_numpy(np.concatenate([at_start, points], axis=1).astype(np.float32))
        first = -(-self._recipe.span // self._stride) * self._stride  # from here on it repeats
        held = sum(self._steps_on(frame) for frame in range(first, first + self.lookback + 1))
        self._features = self._network.new_features(held)

    def _steps_on(self, frame: int) -> bool:
        starts = (frame - k * self._recipe.frame_step for k in range(self._recipe.length + 1))
        return any(start >= 0 and start % self._stride == 0 for start in starts)

    def _compute_features(self) -> None:
        frames, self._without_features = self._without_features, {}
        if frames:
            with self._stage("features"), device_errors(self._network.device, f"features of {len(frames)} frames"):
                pictures = torch.from_numpy(np.stack(list(frames.values())))
                self._features_held.put(list(frames), self._network.pyramid(pictures))

    @property
    def _features_held(self) -> FrameFeatures:
        assert self._features is not None  # since the first frame
        return self._features

    def _track(self) -> list[RowTracks]:
        self._compute_features()
        starts = list(self._ready)
        self._ready.clear()
        frames = [self._frames_of(start) for start in starts]
        places = torch.tensor([self._features_held.places(of_window) for of_window in frames])
        over = f"{len(starts)} windows of {places.shape[1]} frames and {len(self._queries)} points"
        with self._stage("track"), device_errors(self._network.device, over):
            found = self._network.track(self._features_held, places, self._queries.expand(len(starts), -1, -1))
            points, visibility, confidence = (values.cpu().numpy() for values in _of_grid(found, len(self._grid)))
        rows = [
            self._row(start, of_window, points[b], visibility[b], confidence[b])
            for b, (start, of_window) in enumerate(zip(starts, frames, strict=True))
        ]
        coming = starts[-1] + self._stride
        self._features_held.drop_before(coming)
        self._camera.drop_before(coming)
        return rows

    def _frames_of(self, start: int) -> list[int]:
        """A window's frames; behind a cut or the video's end, with nothing to track, the last one before it again."""
        frames = [start + k * self._recipe.frame_step for k in range(self._recipe.length + 1)]
        cut = next((cut for cut in self._cuts if cut > start), self._count)
        last = max(frame for frame in frames if frame < cut)
        return [min(frame, last) for frame in frames]

    def _row(
        self,
        start: int,
        frames: list[int],
        points: NDArray[np.float32],
        visibility: NDArray[np.float32],
        confidence: NDArray[np.float32],
    ) -> RowTracks:
        recipe = self._recipe
        in_shot = np.array(frames) == start + recipe.frame_step * np.arange(len(frames))
        positions = points.astype(np.float64) / to_network(self._frame_size, self._network.resolution)
        positions[:, 0] = self._grid
        last = int(in_shot.nonzero()[0][-1])
        positions[:, last + 1 :] = positions[:, last, None]
        visibility, confidence = visibility * in_shot, confidence * in_shot
        valid = inside_frame(positions, self._frame_size) & in_shot
        valid &= visibility * confidence > recipe.visible_above
        valid[:, 0] = True
        homographies, estimated = np.tile(np.eye(3), (recipe.length, 1, 1)), np.zeros(recipe.length, np.bool_)
        if recipe.remove_camera and last:
            with self._stage("camera"):
                motions = self._camera.motions(frames[: last + 1], positions, valid)
            for k, motion in enumerate(motions):
                homographies[k], estimated[k] = motion.homography, motion.estimated
        return RowTracks(start, positions, valid, homographies, estimated, visibility=visibility, confidence=confidence)


def windows_at_a_time(recipe: Recipe, device: str) -> int:
    """Windows of a batch: on the CPU, which gains nothing by more, one; else what keeps a device busy."""
    points = round(4 / 3 * (recipe.short_side / recipe.grid_stride) ** 2)  # of a frame of 4:3
    return 1 if device == "cpu" else max(1, POINTS_AT_A_TIME // max(points, 1))


def support_points(side: int, extent: tuple[int, int]) -> NDArray[np.float64]:
    """CoTracker's support points over (height, width), its resolution for one: (side * side, 2), x and y, row-major.

    A regular grid, a 64th of the width away from the edges, as the package's predictor adds it to given points; it is
    tracked with them and then forgotten.
    """
    height, width = extent
    margin = width / 64
    if side == 1:
        return np.array([[width / 2, height / 2]])
    y, x = np.meshgrid(
        np.linspace(margin, height - margin, side), np.linspace(margin, width - margin, side), indexing="ij"
    )
    return np.stack([x.ravel(), y.ravel()], axis=-1)


def _of_grid(found: WindowTracks, points: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return found.points[:, :points], found.visibility[:, :points], found.confidence[:, :points]
