"""The camera's motion along a row of tracks, step by step: from features matched between its frames, and the tracks.

As `flow_tracker` does for a pair of frames (MME, appendix A), but what carries points from one frame to the next is the
row's own tracks, not a flow. Where most of them lie on the background they outvote what moves.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_specs.recipe import CameraFeature, Recipe
from extraction.camera import CameraMotion, Points, estimate_camera, match_features
from extraction.motion.flow_tracker import TrackedFrame


class RowCamera:
    """Holds the frames that rows step on; each frame's features and each pair's matches are found once."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._kinds: list[CameraFeature] = [kind for kind in recipe.camera_features if kind != "tracks"]
        self._frames: dict[int, TrackedFrame] = {}
        self._matches: dict[tuple[int, int], list[tuple[Points, Points]]] = {}

    def put(self, index: int, frame: TrackedFrame) -> None:
        """Keep a frame."""
        self._frames[index] = frame

    def drop_before(self, index: int) -> None:
        """Forget what no row needs any more."""
        self._frames = {f: frame for f, frame in self._frames.items() if f >= index}
        self._matches = {pair: found for pair, found in self._matches.items() if pair[0] >= index}

    def motions(
        self, frames: Sequence[int], positions: NDArray[np.float64], valid: NDArray[np.bool_]
    ) -> list[CameraMotion]:
        """G of each step of a row. frames: of its L + 1 positions (N, L + 1, 2), of which `valid` (N, L + 1) count."""
        found = []
        for k, (a, b) in enumerate(itertools.pairwise(frames)):
            pairs = list(self._matched(a, b))
            if "tracks" in self._recipe.camera_features:
                both = valid[:, k] & valid[:, k + 1]
                pairs.append((positions[both, k].astype(np.float32), positions[both, k + 1].astype(np.float32)))
            height, width = self._frames[a].gray.shape
            found.append(estimate_camera(pairs, (height, width), self._recipe))
        return found

    def _matched(self, a: int, b: int) -> list[tuple[Points, Points]]:
        if (a, b) not in self._matches:
            first, second = self._frames[a], self._frames[b]
            self._matches[a, b] = [match_features(first.features(k), second.features(k)) for k in self._kinds]
        return self._matches[a, b]
