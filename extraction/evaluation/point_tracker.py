"""Trackers of single points through whole videos, one interface for all that `evaluate-tracks` compares."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from data_specs.recipe import Flow, Recipe, load_recipe
from data_specs.video import Frame
from extraction.cuts import ShotFrames
from extraction.motion.cotracker3.weights import Weights
from extraction.motion.flow_tracker import FlowTracker, TrackedFrame
from extraction.stages import untimed
from extraction.trajectories import advance

FLOWS: tuple[str, ...] = get_args(Flow)


class PointTracker(Protocol):
    """Follows points through a video. What it says of a query does not depend on the other queries (TAP-Vid's rule)."""

    def track(
        self, frames: Sequence[Frame], queries: NDArray[np.float64], *, both_ways: bool = True
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Positions float64 (N, T, 2), x and y in pixels of the frames, and visibility bool (N, T), in every frame.

        frames: T, RGB uint8 (height, width, 3), of one size. queries: float64 (N, 3) as t (a frame's number), x, y; a
        point is visible in its own frame, where it is asked for. both_ways: also backward in time; where false, what is
        returned for the frames before a query's own has no meaning and is not visible.
        """


class FlowPointTracker:
    """Chains dense flow from frame to frame as recipe `mme-object` does: p' = G (p + r(p)), where G is the camera's
    homography and r the flow that remains without it.

    A point is lost where it leaves the frame, where the flow there and back do not cancel (something covers it), where
    nothing was measured, and at a shot cut. A lost point stays where it was lost and is not visible from there on: flow
    cannot find a point again. Each pair of neighbouring frames is measured once in each direction of time, for all
    queries together.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = dataclasses.replace(recipe, frame_step=1, hog=False, descriptors=()).resolved(1)

    def track(
        self, frames: Sequence[Frame], queries: NDArray[np.float64], *, both_ways: bool = True
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """See `PointTracker`."""
        starts = query_frames(queries, len(frames))
        height, width = frames[0].shape[:2]
        # Flow is known between pixel centres. The half pixel around them moves as its nearest one does.
        inner = np.clip(queries[:, 1:], 0, [width - 1, height - 1])
        positions = np.repeat(inner[:, None], len(frames), axis=1)
        visible = starts[:, None] == np.arange(len(frames))
        begins_shot = [begins for _, begins in ShotFrames(frames, self._recipe.detect_cuts, untimed)]
        forward = list(range(len(frames)))
        self._carry(frames, forward, begins_shot, starts, positions, visible)
        if both_ways:
            self._carry(frames, forward[::-1], begins_shot, starts, positions, visible)
        return positions + (queries[:, 1:] - inner)[:, None], visible

    def _carry(
        self,
        frames: Sequence[Frame],
        order: list[int],
        begins_shot: list[bool],
        starts: NDArray[np.int64],
        positions: NDArray[np.float64],
        visible: NDArray[np.bool_],
    ) -> None:
        """Step all points on in the frames' `order`, each from its own frame, writing into the last two."""
        flow = FlowTracker(self._recipe, untimed)
        direction = np.sign(order[-1] - order[0])
        tracked: dict[int, TrackedFrame] = {}
        for here, there in pairwise(order):
            begun = np.flatnonzero((here - starts) * direction >= 0)
            points, alive = positions[begun, here], visible[begun, here]
            positions[begun, there] = points
            if begins_shot[max(here, there)] or not alive.any():
                continue
            tracked = {t: tracked.get(t) or TrackedFrame(frames[t]) for t in (here, there)}
            motion = flow.pair_motion(tracked[here], tracked[there])
            positions[begun, there], visible[begun, there] = advance(
                points, alive, motion.flow, motion.measured, motion.visible, motion.camera.homography
            )


class StillPointTracker:
    """Leaves every point where it was asked for, always visible: what any tracker has to be better than."""

    def track(
        self, frames: Sequence[Frame], queries: NDArray[np.float64], *, both_ways: bool = True
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """See `PointTracker`."""
        starts = query_frames(queries, len(frames))
        visible = both_ways | (np.arange(len(frames)) >= starts[:, None])
        return np.repeat(queries[:, None, 1:], len(frames), axis=1), visible


def query_frames(queries: NDArray[np.float64], num_frames: int) -> NDArray[np.int64]:
    """The frames (N,) in which queries (N, 3) are given; ValueError for what are not queries of so many frames."""
    if queries.ndim != 2 or queries.shape[1] != 3 or not np.all(np.isfinite(queries)):
        raise ValueError(f"queries {queries.shape}: must be (N, 3), t, x and y, all of them finite")
    starts = queries[:, 0].astype(np.int64)
    if np.any(starts != queries[:, 0]) or np.any((starts < 0) | (starts >= num_frames)):
        raise ValueError(f"queries begin in frames that are not among 0 ... {num_frames - 1}")
    return starts


NETWORKS = ("cotracker3", "cotracker3-joint")


def point_tracker_names() -> list[str]:
    """What `make_point_tracker` knows."""
    return [*FLOWS, *NETWORKS, "still"]


def make_point_tracker(name: str, weights: Weights | None = None, device: str = "cpu") -> PointTracker:
    """The tracker of that name; a flow's is recipe `mme-object` with that flow.

    weights, device: of `cotracker3`, which tracks each query by itself, and `cotracker3-joint`, which does not. They
    have no meaning for the others.
    Raises ValueError where there is no such tracker or it lacks weights, OSError for a package or device that is not
    there.
    """
    if name in FLOWS:
        flow: Flow = name  # type: ignore[assignment]
        return FlowPointTracker(dataclasses.replace(load_recipe("mme-object"), flow=flow))
    if name in NETWORKS:
        # torch takes seconds to import
        from extraction.evaluation.cotracker_points import CoTrackerPoints  # noqa: PLC0415
        from extraction.motion.cotracker3.package import open_network  # noqa: PLC0415

        if weights is None:
            raise ValueError(f"--tracker {name} needs weights")
        network = open_network(weights, device, Recipe.refinements, Recipe.precision, Recipe.compiled)
        return CoTrackerPoints(network, together=name == "cotracker3-joint")
    if name == "still":
        return StillPointTracker()
    raise ValueError(f"--tracker {name}: unknown; known are {', '.join(point_tracker_names())}")
