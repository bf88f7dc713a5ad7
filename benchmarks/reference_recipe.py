"""The reference that speed and accuracy are compared with: warped TV-L1 put together from public libraries.

OpenCV's DualTVL1 with its defaults; mahotas' SURF matched between these two frames, and corners carried by the flow;
RANSAC at 1 px; the second frame rectified; DualTVL1 again (MME, appendix A; Wang & Schmid 2013). It uses none of the
project's own flows or detectors, so it stays what it is while those change.
"""

from weakref import WeakKeyDictionary

import cv2
import mahotas.features.surf as mahotas_surf
import numpy as np

from data_specs.recipe import load_recipe
from extraction.camera import CameraMotion, Features, carry_corners, estimate_camera, match_features
from extraction.motion.dense_flow import FlowField, Gray, median_filter
from extraction.motion.flow_tracker import PairMotion, TrackedFrame, rectify
from extraction.stages import Stage

_MAX_SURF_POINTS = 500


class ReferenceTracker:
    """`pair_motion` as FlowTracker's; `stage` times its parts. SURF is computed once for each frame."""

    def __init__(self, stage: Stage, *, remove_camera: bool = True) -> None:
        self._stage, self._remove_camera = stage, remove_camera
        self._recipe = load_recipe("mme")  # RANSAC at 1 px
        self._solver = cv2.optflow.DualTVL1OpticalFlow_create()
        self._surf: WeakKeyDictionary[TrackedFrame, Features] = WeakKeyDictionary()

    def pair_motion(self, a: TrackedFrame, b: TrackedFrame) -> PairMotion:
        """The motion from frame a to frame b."""
        gray_a, gray_b = a.gray.astype(np.float32), b.gray.astype(np.float32)
        with self._stage("flow"):
            first_flow = flow = self._flow(gray_a, gray_b)
        camera = CameraMotion(np.eye(3), estimated=False)
        if self._remove_camera:
            with self._stage("camera"):
                pairs = [match_features(self._features(a), self._features(b)), carry_corners(a.gray, flow)]
                camera = estimate_camera(pairs, (a.gray.shape[0], a.gray.shape[1]), self._recipe)
        measured = np.ones(a.gray.shape, dtype=np.bool_)
        if camera.estimated:
            with self._stage("warp"):
                rectified, measured = rectify(gray_b, camera.homography)
            with self._stage("flow"):
                flow = self._flow(gray_a, rectified)
        with self._stage("median"):
            return PairMotion(median_filter(flow), measured, camera, first_flow)

    def _flow(self, a: Gray, b: Gray) -> FlowField:
        scaled = a / np.float32(255), b / np.float32(255)  # DualTVL1 takes floating point within 0 ... 1
        return np.asarray(self._solver.calc(*scaled, None), dtype=np.float32)

    def _features(self, frame: TrackedFrame) -> Features:
        if frame not in self._surf:
            if min(frame.gray.shape) < 32:  # mahotas reads beyond smaller images
                return Features(np.zeros((0, 2), np.float32), np.zeros((0, 64), np.float32))
            found = mahotas_surf.surf(frame.gray, max_points=_MAX_SURF_POINTS)
            self._surf[frame] = Features(found[:, 1::-1].astype(np.float32), found[:, 6:].astype(np.float32))
        return self._surf[frame]
