"""Scores of motion against the truth of a rendered scene. All lengths in pixels of the frame.

Everything is binned by *true* displacement: flow by each pixel's, trajectories by the point's mean true step over its
L steps, the camera by the pair's mean true displacement of the grid.

Means are over the *common* set unless the figure's name says "own": what every method of the run measured (flow) or
kept valid for all of its L steps (trajectories), and what is truly visible. On a set of its own, a method that drops
hard points looks better than it is.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from published import integrate as integrate_published

from data_specs.geometry import apply_homography, compensated_displacements, grid_points
from data_specs.scene import Scene
from extraction.motion.flow_tracker import PairMotion
from extraction.trajectories import advance

LENGTH = 6
"""L, steps of a trajectory."""
GRID_STRIDE = 8
BINS: dict[str, tuple[float, float]] = {
    "≤ 2": (0.0, 2.0),
    "4–8": (4.0, 8.0),
    "14–20": (14.0, 20.0),
    "all": (0.0, np.inf),
}
"""True displacement in px per frame, both ends included."""


class Figures:
    """Running means by name and bin."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], tuple[float, int]] = {}

    def add(self, name: str, values: NDArray[np.floating] | NDArray[np.bool_], speeds: NDArray[np.floating]) -> None:
        """Add values (...) of points that truly move by speeds (...), px per frame."""
        for label, (low, high) in BINS.items():
            inside = (speeds >= low) & (speeds <= high)
            total, count = self._sums.get((name, label), (0.0, 0))
            count += int(inside.sum())
            self._sums[name, label] = (total + float(values[inside].sum(dtype=np.float64)), count)

    def mean(self, name: str, label: str) -> float:
        """The mean over a bin; NaN where nothing fell into it."""
        total, count = self._sums.get((name, label), (0.0, 0))
        return total / count if count else float("nan")

    def count(self, name: str, label: str) -> int:
        """How many values the mean is over."""
        return self._sums.get((name, label), (0.0, 0))[1]

    def to_json(self) -> dict[str, dict[str, dict[str, float | int | None]]]:
        """{bin: {name: {mean, count}}}; a mean of nothing is null."""
        return {
            label: {
                name: {"mean": total / count if count else None, "count": count}
                for (name, of_bin), (total, count) in self._sums.items()
                if of_bin == label
            }
            for label in BINS
        }


@dataclasses.dataclass(frozen=True)
class PairTruth:
    """What truly happens from frame a to frame b.

    `pixels`, `positions`: (H, W, 2), the pixels of a and where their surface is in b. `visible`: (H, W), seen in both
    frames. `camera`: (3, 3), the true G.
    """

    pixels: NDArray[np.float64]
    positions: NDArray[np.float64]
    visible: NDArray[np.bool_]
    camera: NDArray[np.float64]

    @classmethod
    def of(cls, scene: Scene, t: int) -> "PairTruth":
        """From frame t of the scene to frame t + 1."""
        height, width = scene.size
        y, x = np.mgrid[0:height, 0:width].astype(np.float64)
        pixels = np.stack([x, y], axis=-1)
        positions, visible = scene.track(pixels.reshape(-1, 2), t, 1)
        return cls(
            pixels,
            positions[:, 1].reshape(pixels.shape),
            visible.all(axis=1).reshape(height, width),
            scene.homography(t, t + 1),
        )


@dataclasses.dataclass(frozen=True)
class Tracks:
    """A method's trajectories: positions (N, L + 1, 2), valid (N, L + 1), homographies (L, 3, 3).

    `in_image`: positions are in the image; else they are without the camera, as recipe `mme` has them.
    """

    positions: NDArray[np.float64]
    valid: NDArray[np.bool_]
    homographies: NDArray[np.float64]
    in_image: bool

    @property
    def end_in_image(self) -> NDArray[np.float64]:
        """Where each point ends in the image (N, 2). What was moved without the camera is carried along by it."""
        if self.in_image:
            return self.positions[:, -1]
        whole = np.eye(3)
        for homography in self.homographies:
            whole = homography @ whole
        return apply_homography(whole, self.positions[:, -1])

    @property
    def without_camera(self) -> NDArray[np.float64]:
        """The sum of the steps without the camera's part (N, 2)."""
        if self.in_image:
            return np.asarray(compensated_displacements(self.positions, self.homographies).sum(axis=1))
        return self.positions[:, -1] - self.positions[:, 0]


def score_flow(figures: Figures, truth: PairTruth, motion: PairMotion, common: NDArray[np.bool_]) -> None:
    """End-point errors of both passes and the camera's error. common: (H, W), measured by all and visible.

    The residual flow is measured on the frame that the *estimated* G rectifies, so its truth is G^-1 y - x with that
    G; errors of methods with different G compare by the full flow G (x + r) - y.
    """
    estimated = motion.camera.homography
    speeds = _norm(truth.positions - truth.pixels)
    own = truth.visible & motion.measured & motion.visible
    first = _norm(truth.pixels + motion.first_flow - truth.positions)
    moved = truth.pixels + motion.flow
    residual = _norm(moved - apply_homography(np.linalg.inv(estimated), truth.positions))
    full = _norm(apply_homography(estimated, moved) - truth.positions)
    figures.add("first pass", first[truth.visible], speeds[truth.visible])
    for name, values in [("residual flow", residual), ("full flow", full)]:
        figures.add(name, values[common], speeds[common])
        figures.add(f"{name}, own", values[own], speeds[own])
    figures.add("measured", (motion.measured & motion.visible)[truth.visible], speeds[truth.visible])
    points = grid_points((truth.visible.shape[0], truth.visible.shape[1]), GRID_STRIDE)
    still = apply_homography(truth.camera, points)
    speed = _norm(still - points).mean(keepdims=True)
    figures.add("camera", _norm(apply_homography(estimated, points) - still).mean(keepdims=True), speed)
    figures.add("camera estimated", np.array([motion.camera.estimated]), speed)


def integrate(motions: Sequence[PairMotion], points: NDArray[np.float64], in_image: bool) -> Tracks:
    """Trajectories of points (N, 2) through the pairs, as FlowTracker integrates them (MME eq. 6)."""
    positions, valid = [points], [np.ones(len(points), dtype=np.bool_)]
    for motion in motions:
        moves_by = motion.camera.homography if in_image else np.eye(3)
        moved, alive = advance(positions[-1], valid[-1], motion.flow, motion.measured, motion.visible, moves_by)
        positions.append(moved)
        valid.append(alive)
    homographies = np.stack([motion.camera.homography for motion in motions])
    return Tracks(np.stack(positions, axis=1), np.stack(valid, axis=1), homographies, in_image)


@dataclasses.dataclass(frozen=True)
class TrackTruth:
    """The true trajectories: `tracks`, with visibility as validity; `on_object`: (N,), not on the background."""

    tracks: Tracks
    on_object: NDArray[np.bool_]

    @classmethod
    def of(cls, scene: Scene, start: int, length: int = LENGTH) -> "TrackTruth":
        """Those of the grid's points, from frame `start` of the scene."""
        points = grid_points(scene.size, GRID_STRIDE)
        positions, visible = scene.track(points, start, length)
        cameras = np.stack([scene.homography(start + k, start + k + 1) for k in range(length)])
        return cls(Tracks(positions, visible, cameras, in_image=True), scene.layers(points, start) > 0)


def score_tracks(figures: Figures, truth: TrackTruth, tracks: Tracks, common: NDArray[np.bool_]) -> None:
    """Errors after the last step, on objects and background apart, and of validity. common: (N,), see the module.

    False valid: share of the valid steps whose point is truly hidden or outside at that step. Missed: share of the
    steps up to which the point is visible all along, but that are not valid.
    """
    true = truth.tracks
    speeds = _norm(np.diff(true.positions, axis=1)).mean(axis=1)
    own = tracks.valid[:, -1] & true.valid.all(axis=1)
    in_image = _norm(tracks.end_in_image - true.end_in_image)
    without_camera = _norm(tracks.without_camera - true.without_camera)
    for name, values in [("end point", in_image), ("end point without camera", without_camera)]:
        for suffix, chosen in [(", own", own), ("", common)]:
            figures.add(f"{name}{suffix}", values[chosen], speeds[chosen])
            for where, there in [("objects", truth.on_object), ("background", ~truth.on_object)]:
                figures.add(f"{name}, {where}{suffix}", values[chosen & there], speeds[chosen & there])
    steps = np.broadcast_to(speeds[:, None], true.valid[:, 1:].shape)
    valid, visible = tracks.valid[:, 1:], true.valid[:, 1:]
    figures.add("false valid", ~visible[valid], steps[valid])
    all_along = np.logical_and.accumulate(true.valid, axis=1)[:, 1:]
    figures.add("missed", ~valid[all_along], steps[all_along])


def score_published(
    figures: Figures, truth: TrackTruth, flows: Sequence[NDArray[np.float32]], common: NDArray[np.bool_]
) -> None:
    """The end points of the published integration of these flows, in the image, on the same points."""
    true = truth.tracks.positions
    ends = integrate_published(list(flows), true[:, 0])[:, -1]
    speeds = _norm(np.diff(true, axis=1)).mean(axis=1)
    figures.add("end point, published", _norm(ends - true[:, -1])[common], speeds[common])


def _norm(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(vectors, axis=-1))
