"""Integration against closed forms. `published` is what the released code does, and fails each of these."""

import numpy as np
import pytest
from published import integrate

from data_specs.geometry import grid_points
from extraction.motion.dense_flow import median_filter
from extraction.trajectories import advance

SIZE = (48, 72)
IDENTITY = np.eye(3)


def track(flow, points, steps=6, measured=None, homography=IDENTITY):
    measured = np.ones(SIZE, bool) if measured is None else measured
    positions, valid = [points], [np.ones(len(points), bool)]
    for _ in range(steps):
        moved, alive = advance(
            positions[-1], valid[-1], flow.astype(np.float32), measured, np.ones_like(measured), homography
        )
        positions.append(moved)
        valid.append(alive)
    return np.stack(positions, axis=1), np.stack(valid, axis=1)


def constant(x, y):
    return np.broadcast_to(np.float32([x, y]), (*SIZE, 2)).copy()


def test_a_third_of_a_pixel_a_frame_is_two_pixels_after_six():
    points = grid_points(SIZE, 8)
    positions, valid = track(constant(1 / 3, -0.25), points)
    assert valid.all()
    np.testing.assert_allclose(positions[:, 6], points + np.array([2.0, -1.5]), atol=1e-6)
    published = integrate([constant(1 / 3, -0.25)] * 6, points)
    assert np.abs(published[:, 6] - published[:, 0]).max() == 0, "whole pixels never leave"


def test_fast_motion_is_not_clipped_at_20_px():
    points = np.array([[3.5, 3.5]])
    positions, valid = track(constant(30, 0), points, steps=2)
    assert valid.all()
    assert positions[0, 2].tolist() == [63.5, 3.5]
    assert integrate([constant(30, 0)] * 2, points)[0, 2, 0] < 45


def test_flow_is_sampled_bilinearly_at_x_and_y():
    """Bilinear sampling of a field that is linear in x and y is exact, at any sub-pixel place; axes are told apart."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    field = np.stack([0.02 * x + 0.01 * y + 0.3, -0.015 * x + 0.005 * y - 0.1], axis=-1)
    points = np.random.default_rng(0).random((50, 2)) * [50, 30] + 8
    positions, _ = track(field, points, steps=1)
    expected = points + np.stack(
        [0.02 * points[:, 0] + 0.01 * points[:, 1] + 0.3, -0.015 * points[:, 0] + 0.005 * points[:, 1] - 0.1], axis=-1
    )
    np.testing.assert_allclose(positions[:, 1], expected, atol=1e-5)


def test_the_median_removes_single_wrong_pixels_and_keeps_fractions():
    """The released code has the filter commented out."""
    flow = constant(0.4, -0.3)
    rng = np.random.default_rng(0)
    for y, x in zip(range(4, 44, 4), rng.permutation(range(4, 68, 6))[:10], strict=True):
        flow[y, x] = [15, -15]
    np.testing.assert_allclose(median_filter(flow), constant(0.4, -0.3), atol=1e-7)
    step = constant(0, 0)
    step[:, 30:] = [2.25, 0]
    np.testing.assert_array_equal(median_filter(step), step)


@pytest.mark.parametrize(
    ("point", "flow", "is_valid"),
    [
        ([70.5, 10], (0.5, 0), True),  # x = width - 1 is inside (eq. 7)
        ([70.5, 10], (0.502, 0), False),
        ([10, 46.5], (0, 0.5), True),
        ([10, 46.5], (0, 0.502), False),
        ([0.5, 10], (-0.5, 0), True),
        ([0.5, 10], (-0.502, 0), False),
        ([10, 0.5], (0, -0.5), True),
        ([50, 10], (0, 36.9), True),  # y may reach what is inside for it, x what is inside for x
        ([50, 10], (0, 37.1), False),
    ],
)
def test_validity_at_the_borders(point, flow, is_valid):
    positions, valid = track(constant(*flow), np.array([point], float), steps=1)
    assert valid[0, 1] == is_valid
    if not is_valid:
        assert positions[0, 1].tolist() == point, "an invalid step moves nothing"


def test_a_point_on_the_last_row_and_column_is_still_sampled():
    flow = constant(-0.5, -0.25)
    positions, valid = track(flow, np.array([[71.0, 47.0]]), steps=2)
    assert valid.all()
    assert positions[0, 2].tolist() == [70.0, 46.5]


def test_lost_points_stay_lost():
    flow = constant(3, 0)
    flow[:, 60:] = [-30, 0]
    positions, valid = track(flow, np.array([[66.0, 10.0], [30.0, 10.0]]), measured=np.ones(SIZE, bool))
    assert valid[1].all()
    outside, lost = track(constant(3, 0), np.array([[66.0, 10.0]]))
    assert lost.tolist() == [[True, True, False, False, False, False, False]]
    np.testing.assert_array_equal(outside[0, 2:], outside[0, 1][None].repeat(5, 0))
    assert positions.shape == (2, 7, 2)


def test_what_was_not_measured_is_not_valid():
    measured = np.ones(SIZE, bool)
    measured[:, 40:] = False
    points = np.array([[39.0, 10.0], [39.5, 10.0], [38.999, 10.0], [20.0, 10.0]])
    _, valid = track(constant(0, 0), points, steps=1, measured=measured)
    assert valid[:, 1].tolist() == [True, False, True, True], "a sample that touches an unmeasured pixel is none"


def test_a_flow_that_is_not_a_number_or_too_long_to_store_is_not_valid():
    flow = constant(0, 0)
    flow[20, 30] = np.nan
    _, valid = track(flow, np.array([[30.0, 20.0], [29.5, 20.0], [50.0, 20.0]]), steps=1)
    assert valid[:, 1].tolist() == [False, False, True]
    wide = np.full((20, 1200, 2), [600.0, 0.0], np.float32)
    _, valid = advance(np.array([[3.0, 3.0]]), np.ones(1, bool), wide, *2 * [np.ones((20, 1200), bool)], IDENTITY)
    assert not valid[0]


def test_points_follow_the_object_through_the_camera():
    """p' = G (p + r(p)): first the residual, then the camera."""
    g = np.array([[1.02, 0.01, -1.0], [-0.01, 1.02, 0.5], [1e-4, 0, 1.0]])
    point, residual = np.array([20.0, 15.0]), np.array([1.5, -0.5])
    positions, _ = track(constant(*residual), point[None], steps=1, homography=g)
    u = g @ [*(point + residual), 1]
    np.testing.assert_allclose(positions[0, 1], u[:2] / u[2], atol=1e-6)
