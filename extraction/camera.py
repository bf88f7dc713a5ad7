"""The camera's motion between two frames a and b: the homography G under which a still point at x in a is at G x in b.

Point pairs come from features matched between *these two* frames and from corners of a carried by the flow a -> b
(Wang & Schmid 2013, section 3.1; MME appendix A); RANSAC takes the motion that most of them agree on.
"""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from data_specs.geometry import apply_homography
from data_specs.recipe import CameraFeature, Recipe
from extraction.matching import mutual_nearest
from extraction.motion.fields import FlowField
from extraction.surf import surf

Points = NDArray[np.float32]
"""float32 (N, 2): x, y in pixels."""

_MAX_FEATURES = 500
MAX_CORNERS = 1000
CORNER_QUALITY = 0.001
_LEAST_CORNER_DISTANCE = 3
_RANSAC_ITERATIONS, _RANSAC_CONFIDENCE = 1000, 0.999
# A camera that moves a corner of the frame by more than this share of the diagonal from one frame to the next shows
# next to nothing of the same scene; estimates beyond it are wild.
LARGEST_SHIFT = 0.5


@dataclasses.dataclass(frozen=True)
class Features:
    """Interest points of one frame: `points` (N, 2) and `descriptors` (N, D), float32 or packed bits (uint8)."""

    points: Points
    descriptors: NDArray[np.float32] | NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class CameraMotion:
    """`homography`: float64 (3, 3). `estimated`: false where support was too weak, and then it is the identity."""

    homography: NDArray[np.float64]
    estimated: bool


def detect_features(gray: NDArray[np.uint8], kind: CameraFeature) -> Features:
    """SURF (Bay et al. 2008), SIFT or ORB points and descriptors of a grey frame; at most 500 points."""
    if kind == "surf":
        found, _, upright = surf(gray, _MAX_FEATURES)
        return Features(found, upright)
    detector = cv2.SIFT_create(_MAX_FEATURES) if kind == "sift" else cv2.ORB_create(_MAX_FEATURES)
    keypoints, descriptors = detector.detectAndCompute(gray, None)
    points = np.array([k.pt for k in keypoints], dtype=np.float32).reshape(-1, 2)
    if descriptors is None:
        descriptors = np.zeros((0, 1), np.float32 if kind == "sift" else np.uint8)
    return Features(points, descriptors)


def match_features(a: Features, b: Features) -> tuple[Points, Points]:
    """The pairs of points that are each other's nearest by descriptor: (M, 2) in a and (M, 2) in b."""
    if not len(a.points) or not len(b.points):
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
    if np.uint8 not in (a.descriptors.dtype, b.descriptors.dtype):
        in_a, in_b = mutual_nearest(np.asarray(a.descriptors, np.float32), np.asarray(b.descriptors, np.float32))
        return a.points[in_a], b.points[in_b]
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(a.descriptors, b.descriptors)
    return a.points[[m.queryIdx for m in matches]], b.points[[m.trainIdx for m in matches]]


def corner_distance(height: int, width: int) -> float:
    """How far corners keep from each other, px: so that a thousand would fill the frame.

    The strongest ones alone tend to lie together on one object, and outvote the background.
    """
    return max(_LEAST_CORNER_DISTANCE, math.sqrt(height * width / MAX_CORNERS))


def carry_corners(gray: NDArray[np.uint8], flow: FlowField) -> tuple[Points, Points]:
    """Corners of the first frame (Shi & Tomasi) and where the flow, sampled *at those corners*, takes them."""
    corners = cv2.goodFeaturesToTrack(gray, MAX_CORNERS, CORNER_QUALITY, corner_distance(gray.shape[0], gray.shape[1]))
    if corners is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
    corners = corners.reshape(-1, 2)
    x, y = np.rint(corners).astype(np.int64).T
    return corners, corners + flow[y, x]


def estimate_camera(
    pairs: Sequence[tuple[Points, Points]], frame_size: tuple[int, int], recipe: Recipe
) -> CameraMotion:
    """RANSAC over all point pairs (in a, in b), refined by least squares on its inliers.

    Support is too weak where fewer than `recipe.min_inliers` pairs agree to within `recipe.ransac_px`, or where the
    result turns the frame over or throws a corner of it half its diagonal away.
    """
    nothing = CameraMotion(np.eye(3), estimated=False)
    in_a = np.concatenate([a for a, _ in pairs])
    in_b = np.concatenate([b for _, b in pairs])
    if len(in_a) < recipe.min_inliers:
        return nothing
    homography, inliers = cv2.findHomography(in_a, in_b, _ransac(recipe.ransac_px))
    if homography is None or int(inliers.sum()) < recipe.min_inliers or not is_plausible(homography, frame_size):
        return nothing
    return CameraMotion(np.asarray(homography, dtype=np.float64), estimated=True)


def _ransac(threshold: float) -> cv2.UsacParams:
    """RANSAC of a fixed seed; a hypothesis is judged by how near its inliers are (MSAC, Torr & Zisserman 2000).

    OpenCV's plain RANSAC counts inliers, which is slower and less exact. Local optimisation of the hypotheses, which
    USAC offers too, gained nothing.
    """
    parameters = cv2.UsacParams()
    parameters.threshold = threshold
    parameters.maxIterations, parameters.confidence = _RANSAC_ITERATIONS, _RANSAC_CONFIDENCE
    parameters.score = cv2.SCORE_METHOD_MSAC
    parameters.sampler = cv2.SAMPLING_UNIFORM
    parameters.loMethod = cv2.LOCAL_OPTIM_NULL
    parameters.final_polisher, parameters.final_polisher_iterations = cv2.LSQ_POLISHER, 5
    parameters.isParallel, parameters.randomGeneratorState = False, 0
    return parameters


def is_plausible(homography: NDArray[np.float64], frame_size: tuple[int, int]) -> bool:
    """Whether a homography keeps the frame's orientation and moves no corner by half its diagonal or more."""
    height, width = frame_size
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], dtype=np.float64)
    if not (np.isfinite(homography).all() and np.linalg.det(homography) > 0):
        return False
    for g in (homography, np.linalg.inv(homography)):  # neither frame may reach beyond the other's horizon
        if not (corners @ g[2, :2] + g[2, 2] > 0).all():
            return False
    shift = np.linalg.norm(apply_homography(homography, corners) - corners, axis=1)
    return bool(shift.max() < LARGEST_SHIFT * np.hypot(height, width))
