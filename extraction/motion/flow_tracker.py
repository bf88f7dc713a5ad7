"""Trajectories from dense flow in two passes: measure, take the camera out, measure again, integrate.

For frames a and b: flow a -> b; the camera's homography G from features of these two frames and from corners carried
by that flow; b rectified, b~(x) = b(G x); flow again a -> b~, the residual r (MME appendix A; Wang & Schmid 2013).
Recipe option `positions_in`: `image` moves a point with its object, p' = G (p + r(p)); `stabilised` by the residual
alone, p' = p + r(p).
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from data_specs.geometry import grid_points
from data_specs.recipe import CameraFeature, Recipe
from data_specs.video import Frame
from extraction.camera import (
    CameraMotion,
    Features,
    carry_corners,
    detect_features,
    estimate_camera,
    match_features,
)
from extraction.flow_descriptors import FlowDescriptors, describe_flow
from extraction.motion.dense_flow import make_flow, median_filter
from extraction.motion.fields import FlowField
from extraction.motion.occlusion import returns
from extraction.motion.rectification import expected_residual, rectify
from extraction.motion.tracker import RowTracks, is_kept_short
from extraction.stages import Stage
from extraction.trajectories import advance


class TrackedFrame:
    """A grey frame whose features are computed once, though two pairs need them."""

    def __init__(self, frame: Frame) -> None:
        self.gray: NDArray[np.uint8] = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
        self._features: dict[CameraFeature, Features] = {}

    def features(self, kind: CameraFeature) -> Features:
        """The frame's interest points of that kind."""
        if kind not in self._features:
            self._features[kind] = detect_features(self.gray, kind)
        return self._features[kind]


@dataclasses.dataclass(frozen=True)
class PairMotion:
    """The motion from frame a to frame b.

    `flow`: float32 (H, W, 2), median-filtered: the residual where the camera was estimated, else the full flow.
    `measured`: bool (H, W), false where the rectified b has no pixel.
    `visible`: bool (H, W), false where something covers the pixel in b: the flow does not lead back.
    `first_flow`: float32 (H, W, 2), the first pass's a -> b as it was measured, camera included and not filtered.
    """

    flow: FlowField
    measured: NDArray[np.bool_]
    visible: NDArray[np.bool_]
    camera: CameraMotion
    first_flow: FlowField


MeasurePairs = Callable[[Sequence[tuple[TrackedFrame, TrackedFrame]]], list[PairMotion]]
"""The motion of each of a few pairs of frames of one size."""


@dataclasses.dataclass(frozen=True)
class _QueuedStep:
    """The step from frame `first`. `frames`: the pair it crosses; None where every row on it has crossed a cut."""

    first: int
    shot_start: int
    frames: tuple[TrackedFrame, TrackedFrame] | None


@dataclasses.dataclass
class _Row:
    start: int
    positions: NDArray[np.float64]
    valid: NDArray[np.bool_]
    homographies: NDArray[np.float64]
    estimated: NDArray[np.bool_]
    steps_done: int = 0
    descriptors: FlowDescriptors | None = None


class FlowTracker:
    """A `Tracker` by warped dense flow. One for each video; `stage` times its parts.

    batch: pairs of frames are measured so many at a time, and rows come back up to batch - 1 frames later.
    measure_pairs: measures them, by default one after the other by `pair_motion`.
    """

    def __init__(
        self, recipe: Recipe, stage: Stage, *, batch: int = 1, measure_pairs: MeasurePairs | None = None
    ) -> None:
        if recipe.start_stride is None:
            raise ValueError("the recipe's start_stride is not resolved")
        self._recipe, self._stride, self._stage = recipe, recipe.start_stride, stage
        self._flow = make_flow(recipe.flow)
        self._frames: deque[TrackedFrame] = deque(maxlen=recipe.frame_step + 1)
        self._count = 0
        self._shot_start = 0
        self._rows: deque[_Row] = deque()
        self._batch, self._measure_pairs = batch, measure_pairs
        self._queue: list[_QueuedStep] = []

    @property
    def lookback(self) -> int:
        """A row is returned when the batch is measured that its last frame is in."""
        return self._recipe.span + self._batch - 1

    def push(self, frame: Frame, begins_shot: bool = False) -> list[RowTracks]:
        """See `Tracker`. Flow is only computed between frames that a trajectory steps across."""
        recipe, index = self._recipe, self._count
        self._count += 1
        self._shot_start = index if begins_shot else self._shot_start
        self._frames.append(TrackedFrame(frame))
        frame_size = (frame.shape[0], frame.shape[1])
        previous = index - recipe.frame_step
        steps = [
            r
            for r in self._rows
            if 0 <= previous - r.start < recipe.span and (previous - r.start) % recipe.frame_step == 0
        ]
        if steps:
            goes_on = any(row.start >= self._shot_start for row in steps)
            frames = (self._frames[0], self._frames[-1]) if goes_on else None
            self._queue.append(_QueuedStep(previous, self._shot_start, frames))
        if index % self._stride == 0:
            self._rows.append(self._new_row(index, frame_size))
        # by age, not by number: where few pairs are crossed by a trajectory, nothing waits longer for it
        if self._queue and previous - self._queue[0].first >= self._batch - 1:
            self._measure_queue()
        return self._complete_rows()

    def finish(self) -> list[RowTracks]:
        """See `Tracker`: what is left are the rows that a batch not yet full completes, and that of a short video."""
        self._measure_queue()
        if is_kept_short(self._recipe, self._count):
            for _ in range(self._rows[0].steps_done, self._recipe.length):
                _lose([self._rows[0]])
        done = self._complete_rows()
        self._rows.clear()
        return done

    def _complete_rows(self) -> list[RowTracks]:
        done = []
        while self._rows and self._rows[0].steps_done == self._recipe.length:
            row = self._rows.popleft()
            done.append(
                RowTracks(row.start, row.positions, row.valid, row.homographies, row.estimated, row.descriptors)
            )
        return done

    def _measure_queue(self) -> None:
        queue, self._queue = self._queue, []
        motions = self._motions([step.frames for step in queue if step.frames is not None])
        for step in queue:
            unfinished = (r for r in self._rows if r.steps_done < self._recipe.length)
            stepping = [r for r in unfinished if r.start + r.steps_done * self._recipe.frame_step == step.first]
            _lose([row for row in stepping if row.start < step.shot_start])
            going_on = [row for row in stepping if row.start >= step.shot_start]
            if going_on:
                motion = next(motions)
                with self._stage("integrate"):
                    self._advance(going_on, motion)

    def _motions(self, pairs: list[tuple[TrackedFrame, TrackedFrame]]) -> Iterator[PairMotion]:
        if self._measure_pairs is None:
            return (self.pair_motion(*pair) for pair in pairs)
        if not pairs:
            return iter(())
        with self._stage("flow"):
            return iter(self._measure_pairs(pairs))

    def pair_motion(self, a: TrackedFrame, b: TrackedFrame) -> PairMotion:
        """The motion from frame a to frame b."""
        frame_size = (a.gray.shape[0], a.gray.shape[1])
        gray_a, gray_b = a.gray.astype(np.float32), b.gray.astype(np.float32)
        with self._stage("flow"):
            first_flow = self._flow.first(gray_a, gray_b)
        camera = CameraMotion(np.eye(3), estimated=False)
        if self._recipe.remove_camera:
            camera = self._camera(a, b, first_flow)
        measured = np.ones(frame_size, dtype=np.bool_)
        expected = first_flow
        if camera.estimated:
            with self._stage("warp"):
                gray_b, measured = rectify(gray_b, camera.homography)
                expected = expected_residual(first_flow, camera.homography)
        with self._stage("flow"):
            flow = self._flow.second(gray_a, gray_b, expected, rectified=camera.estimated)
        with self._stage("median"):
            flow = median_filter(flow)
        visible = np.ones(frame_size, dtype=np.bool_)
        if self._recipe.forward_backward:
            with self._stage("backward"):
                visible = returns(flow, median_filter(self._flow.backward(gray_a, gray_b, flow)))
        return PairMotion(flow, measured, visible, camera, first_flow)

    def _camera(self, a: TrackedFrame, b: TrackedFrame, flow: FlowField) -> CameraMotion:
        pairs = []
        for kind in self._recipe.camera_features:
            if kind == "corners":
                with self._stage("corners"):
                    pairs.append(carry_corners(a.gray, flow))
                continue
            with self._stage(kind):
                features_a, features_b = a.features(kind), b.features(kind)
            with self._stage("match"):
                pairs.append(match_features(features_a, features_b))
        with self._stage("ransac"):
            return estimate_camera(pairs, (a.gray.shape[0], a.gray.shape[1]), self._recipe)

    def _new_row(self, start: int, frame_size: tuple[int, int]) -> _Row:
        length = self._recipe.length
        points = grid_points(frame_size, self._recipe.grid_stride)
        positions = np.repeat(points[:, None], length + 1, axis=1)
        valid = np.zeros((len(points), length + 1), dtype=np.bool_)
        valid[:, 0] = True
        return _Row(start, positions, valid, np.tile(np.eye(3), (length, 1, 1)), np.zeros(length, np.bool_))

    def _advance(self, rows: list[_Row], motion: PairMotion) -> None:
        in_image = self._recipe.positions_in == "image"
        moves_by = motion.camera.homography if in_image else np.eye(3)
        points = np.concatenate([row.positions[:, row.steps_done] for row in rows])
        alive = np.concatenate([row.valid[:, row.steps_done] for row in rows])
        points, alive = advance(points, alive, motion.flow, motion.measured, motion.visible, moves_by)
        count = len(points) // len(rows)
        for number, row in enumerate(rows):
            own = slice(number * count, (number + 1) * count)
            row.homographies[row.steps_done] = motion.camera.homography
            row.estimated[row.steps_done] = motion.camera.estimated
            if row.steps_done == 0 and self._recipe.descriptors:
                row.descriptors = self._describe(motion)
            row.steps_done += 1
            row.positions[:, row.steps_done] = points[own]
            row.valid[:, row.steps_done] = alive[own]

    def _describe(self, motion: PairMotion) -> FlowDescriptors:
        recipe = self._recipe
        with self._stage("descriptors"):
            return describe_flow(
                motion.flow, motion.measured, recipe.grid_stride, recipe.descriptors, recipe.hof_still_px
            )


def _lose(rows: list[_Row]) -> None:
    """Step rows on that have crossed a cut, or the video's end: nothing more is measured, neither points nor camera."""
    for row in rows:
        row.positions[:, row.steps_done + 1] = row.positions[:, row.steps_done]
        row.steps_done += 1
