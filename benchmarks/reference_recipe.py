"""The reference that speed and accuracy are compared with: warped TV-L1 put together from public libraries.

OpenCV's DualTVL1 with its defaults; mahotas' SURF matched between these two frames, and corners carried by the flow;
RANSAC at 1 px; the second frame rectified; DualTVL1 again (MME, appendix A; Wang & Schmid 2013). It uses none of the
project's own flows or detectors, so it stays what it is while those change.
"""

from weakref import WeakKeyDictionary

import cv2
import mahotas.features.surf as mahotas_surf
import numpy as np
from numpy.typing import NDArray

from extraction.camera import CameraMotion, is_plausible
from extraction.motion.dense_flow import median_filter
from extraction.motion.fields import FlowField, Gray
from extraction.motion.flow_tracker import PairMotion, TrackedFrame
from extraction.motion.rectification import rectify
from extraction.stages import Stage

_MAX_SURF_POINTS = 500
_MAX_CORNERS, _CORNER_QUALITY, _CORNER_DISTANCE = 1000, 0.001, 3
_RANSAC_PX, _LEAST_INLIERS = 1.0, 25

Points = NDArray[np.float32]


class ReferenceTracker:
    """`pair_motion` as FlowTracker's; `stage` times its parts. SURF is computed once for each frame."""

    def __init__(self, stage: Stage, *, remove_camera: bool = True) -> None:
        self._stage, self._remove_camera = stage, remove_camera
        self._solver = cv2.optflow.DualTVL1OpticalFlow_create()
        self._surf: WeakKeyDictionary[TrackedFrame, tuple[Points, Points]] = WeakKeyDictionary()

    def pair_motion(self, a: TrackedFrame, b: TrackedFrame) -> PairMotion:
        """The motion from frame a to frame b."""
        gray_a, gray_b = a.gray.astype(np.float32), b.gray.astype(np.float32)
        with self._stage("flow"):
            first_flow = flow = self._flow(gray_a, gray_b)
        camera = CameraMotion(np.eye(3), estimated=False)
        if self._remove_camera:
            with self._stage("camera"):
                camera = self._camera(a, b, flow)
        measured = np.ones(a.gray.shape, dtype=np.bool_)
        if camera.estimated:
            with self._stage("warp"):
                rectified, measured = rectify(gray_b, camera.homography)
            with self._stage("flow"):
                flow = self._flow(gray_a, rectified)
        with self._stage("median"):
            return PairMotion(median_filter(flow), measured, np.ones_like(measured), camera, first_flow)

    def _flow(self, a: Gray, b: Gray) -> FlowField:
        scaled = a / np.float32(255), b / np.float32(255)  # DualTVL1 takes floating point within 0 ... 1
        return np.asarray(self._solver.calc(*scaled, None), dtype=np.float32)

    def _camera(self, a: TrackedFrame, b: TrackedFrame, flow: FlowField) -> CameraMotion:
        (points_a, descriptors_a), (points_b, descriptors_b) = self._features(a), self._features(b)
        matches = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(descriptors_a, descriptors_b)
        corners = cv2.goodFeaturesToTrack(a.gray, _MAX_CORNERS, _CORNER_QUALITY, _CORNER_DISTANCE)
        corners = np.zeros((0, 2), np.float32) if corners is None else corners.reshape(-1, 2)
        x, y = np.rint(corners).astype(np.int64).T
        in_a = np.concatenate([points_a[[m.queryIdx for m in matches]], corners])
        in_b = np.concatenate([points_b[[m.trainIdx for m in matches]], corners + flow[y, x]])
        nothing = CameraMotion(np.eye(3), estimated=False)
        if len(in_a) < _LEAST_INLIERS:
            return nothing
        homography, inliers = cv2.findHomography(in_a, in_b, cv2.RANSAC, _RANSAC_PX, maxIters=1000, confidence=0.999)
        size = a.gray.shape[0], a.gray.shape[1]
        if homography is None or inliers.sum() < _LEAST_INLIERS or not is_plausible(homography, size):
            return nothing
        return CameraMotion(np.asarray(homography, dtype=np.float64), estimated=True)

    def _features(self, frame: TrackedFrame) -> tuple[Points, Points]:
        if frame not in self._surf:
            if min(frame.gray.shape) < 32:  # mahotas reads beyond smaller images
                return np.zeros((0, 2), np.float32), np.zeros((0, 64), np.float32)
            found = mahotas_surf.surf(frame.gray, max_points=_MAX_SURF_POINTS)
            self._surf[frame] = found[:, 1::-1].astype(np.float32), found[:, 6:].astype(np.float32)
        return self._surf[frame]
