"""The homography against rendered truth."""

import cv2
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from data_specs.geometry import apply_homography, grid_points
from data_specs.recipe import load_recipe
from data_specs.scene import Scene, Texture, moving, random_scene, still
from extraction.camera import carry_corners, detect_features, estimate_camera, is_plausible, match_features

RECIPE = load_recipe("mme-object")


def gray(frame):
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def camera_error(estimate, truth, size):
    points = grid_points(size, 8)
    return np.linalg.norm(apply_homography(estimate, points) - apply_homography(truth, points), axis=1).mean()


@pytest.mark.parametrize(("kind", "localised_to"), [("surf", 0.12), ("sift", 0.1), ("orb", 0.8)])
def test_matched_features_move_with_the_camera(kind, localised_to):
    camera = moving((2.3, -1.1), about=(90, 60), turn=0.01)
    scene = Scene(size=(200, 280), background=Texture(4, shortest=8), camera=camera, noise=1)
    a, b = (detect_features(gray(scene.render(t)), kind) for t in (0, 1))
    in_a, in_b = match_features(a, b)
    off = np.linalg.norm(apply_homography(scene.homography(0, 1), in_a) - in_b, axis=1)
    assert (off < 3).mean() > 0.6, "most matches are right"
    assert np.median(off[off < 3]) < localised_to
    assert np.linalg.norm(in_b - in_a, axis=1)[off < 3].mean() > 2


@pytest.mark.parametrize("kind", ["surf", "sift"])
def test_matched_features_alone_find_the_camera(kind):
    camera = moving((2.3, -1.1), about=(90, 60), turn=0.01)
    scene = Scene(size=(136, 184), background=Texture(4), camera=camera, noise=1)
    pairs = match_features(*(detect_features(gray(scene.render(t)), kind) for t in (0, 1)))
    estimate = estimate_camera([pairs], scene.size, RECIPE)
    assert estimate.estimated
    assert camera_error(estimate.homography, scene.homography(0, 1), scene.size) < 0.1


def test_surf_points_are_x_y_and_at_the_centre_of_their_blob():
    """A half-pixel shift or swapped axes do not show in matches between two frames of one size."""
    y, x = np.mgrid[0:160, 0:220]
    blob = 40 + 180 * np.exp(-((x - 113.0) ** 2 + (y - 71.0) ** 2) / (2 * 2.5**2))
    points = detect_features(blob.astype(np.uint8), "surf").points
    assert np.abs(points - [113.0, 71.0]).max(axis=1).min() < 0.1


def test_corners_are_carried_by_the_flow_at_their_own_place():
    """dense_flow samples the y component at a wrong column: a field that differs everywhere tells."""
    frame = gray(random_scene(0, 1.0).render(0))
    y, x = np.mgrid[0 : frame.shape[0], 0 : frame.shape[1]].astype(np.float32)
    corners, carried = carry_corners(frame, np.stack([0.01 * x + 0.1 * y, 0.05 * x - 0.02 * y], axis=-1))
    assert len(corners) > 100
    cx, cy = corners.T
    np.testing.assert_allclose(
        carried - corners, np.stack([0.01 * cx + 0.1 * cy, 0.05 * cx - 0.02 * cy], axis=-1), atol=1e-4
    )


def test_corners_are_spread_over_the_frame():
    """Fine texture in one half has the strongest corners by far; the other half gets some nevertheless."""
    size = (240, 320)
    fine, coarse = (Scene(size=size, background=Texture(1, shortest=s, longest=s + 20), camera=still) for s in (4, 40))
    frame = gray(fine.render(0))
    frame[:, 160:] = gray(coarse.render(0))[:, 160:]
    corners, _ = carry_corners(frame, np.zeros((*size, 2), np.float32))
    distances = cdist(corners, corners) + 1e3 * np.eye(len(corners))
    assert distances.min() >= np.sqrt(240 * 320 / 1000) - 1e-3
    assert (corners[:, 0] > 164).sum() > 15
    assert len(carry_corners(frame[:40, :50], np.zeros((40, 50, 2), np.float32))[0]) > 25, "small frames get enough"


def test_the_same_pairs_give_the_same_bytes():
    scene = random_scene(3, 2.0, (136, 184))
    a, b = (detect_features(gray(scene.render(t)), "surf") for t in (0, 1))
    estimates = [estimate_camera([match_features(a, b)], scene.size, RECIPE) for _ in range(3)]
    assert estimates[0].estimated
    assert len({e.homography.tobytes() for e in estimates}) == 1


def test_moving_objects_are_outliers_even_when_slow():
    """At a fixed threshold of 1 px RANSAC takes slow objects for background; at 0.25 px the camera is three times
    as exact."""
    errors = {1.0: [], 0.25: []}
    rng = np.random.default_rng(0)
    for _ in range(20):
        a = (rng.random((600, 2)) * [184, 136]).astype(np.float32)
        b = a + rng.normal(0, 0.08, a.shape).astype(np.float32) + np.float32([0.3, -0.2])
        on_object = (np.abs(a - [60, 50]) < 35).all(axis=1)
        b[on_object] += np.float32([0.8, 0.4])
        for threshold, found in errors.items():
            recipe = RECIPE.from_json({**RECIPE.to_json(), "ransac_px": threshold}, "test")
            truth = np.array([[1, 0, 0.3], [0, 1, -0.2], [0, 0, 1]])
            found.append(camera_error(estimate_camera([(a, b)], (136, 184), recipe).homography, truth, (136, 184)))
    assert np.mean(errors[0.25]) < 0.05
    assert np.mean(errors[1.0]) > 3 * np.mean(errors[0.25])


def test_weak_support_gives_the_identity_and_says_so():
    flat = np.full((136, 184), 90, np.uint8)
    features = detect_features(flat, "surf")
    pairs = [match_features(features, features), carry_corners(flat, np.zeros((136, 184, 2), np.float32))]
    camera = estimate_camera(pairs, flat.shape, RECIPE)
    assert not camera.estimated
    np.testing.assert_array_equal(camera.homography, np.eye(3))
    rng = np.random.default_rng(0)
    noise = (rng.random((300, 2)).astype(np.float32) * 130, rng.random((300, 2)).astype(np.float32) * 130)
    assert not estimate_camera([noise], (136, 184), RECIPE).estimated, "nothing agrees"


@pytest.mark.parametrize("kind", ["surf", "sift", "orb"])
def test_tiny_frames_have_no_features_and_do_not_crash(kind):
    features = detect_features(np.zeros((9, 12), np.uint8), kind)
    assert features.points.shape == (0, 2)
    assert [len(side) for side in match_features(features, features)] == [0, 0]


@pytest.mark.parametrize(
    ("homography", "plausible"),
    [
        (np.eye(3), True),
        (np.array([[1, 0, 60.0], [0, 1, 0], [0, 0, 1]]), True),
        (np.array([[1, 0, 150.0], [0, 1, 0], [0, 0, 1]]), False),  # most of the frame is gone
        (np.diag([-1.0, 1.0, 1.0]), False),  # mirrored
        (np.array([[1, 0, 0], [0, 1, 0], [-0.01, 0, 1.0]]), False),  # the horizon runs through the frame
        (np.full((3, 3), np.nan), False),
    ],
)
def test_wild_homographies_are_refused(homography, plausible):
    assert is_plausible(homography, (136, 184)) is plausible


def test_a_camera_whose_inverse_has_its_horizon_in_the_frame_is_refused():
    """G's own denominator is positive at every corner of the frame, its inverse's is not."""
    homography = np.array([[1.5, 0, 0], [0, 1.5, 0], [0.012, 0, 1.5]])
    corners = np.array([[0, 0], [159, 0], [159, 119], [0, 119]], float)
    inverse = np.linalg.inv(homography)
    assert (corners @ homography[2, :2] + homography[2, 2] > 0).all()
    assert not (corners @ inverse[2, :2] + inverse[2, 2] > 0).all()
    assert np.abs(apply_homography(homography, corners) - corners).max() < 100, "it is not refused for its shift"
    assert not is_plausible(homography, (120, 160))
