import numpy as np
import pytest

from data_specs.geometry import (
    apply_homography,
    compensated_displacements,
    grid_points,
    grid_size,
    inside_frame,
    start_frames,
    tracked_size,
)


@pytest.mark.parametrize(
    ("source", "tracked"),
    [
        ((1080, 1920), (256, 455)),
        ((1920, 1080), (455, 256)),
        ((272, 640), (256, 602)),
        ((144, 176), (144, 176)),  # smaller videos are left as they are
        ((257, 321), (256, 320)),
        ((241, 321), (241, 321)),
    ],
)
def test_short_side_is_256_and_nothing_is_enlarged(source, tracked):
    assert tracked_size(source, 256) == tracked


def test_grid_points_are_the_centres_of_their_cells():
    points = grid_points((27, 42), 8)
    assert grid_size((27, 42), 8) == (3, 5)
    assert points.shape == (15, 2)
    assert points[0].tolist() == [3.5, 3.5]
    assert points[1].tolist() == [11.5, 3.5], "row-major: x runs first"
    assert points[5].tolist() == [3.5, 11.5]


@pytest.mark.parametrize(("stride", "count"), [(16, 1), (8, 4), (4, 16)])
def test_a_patch_holds_its_points_symmetrically(stride, count):
    """CoTracker's built-in grid is up to 4.4 px off the patch centres; ours is centred in every patch."""
    points = grid_points((224, 160), stride)
    for top, left in [(0, 0), (208, 144), (96, 32)]:
        patch = points[
            (points[:, 0] > left - 0.5)
            & (points[:, 0] < left + 15.5)
            & (points[:, 1] > top - 0.5)
            & (points[:, 1] < top + 15.5)
        ]
        assert len(patch) == count
        assert patch.mean(axis=0).tolist() == [left + 7.5, top + 7.5]


@pytest.mark.parametrize(
    ("frames", "step", "stride", "expected"),
    [(7, 1, 4, [0]), (6, 1, 4, []), (15, 1, 4, [0, 4, 8]), (14, 1, 4, [0, 4]), (13, 2, 4, [0]), (12, 2, 4, [])],
)
def test_start_rows_are_those_with_all_their_steps(frames, step, stride, expected):
    assert list(start_frames(frames, length=6, frame_step=step, start_stride=stride)) == expected


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (0, []),
        (1, []),
        (6, []),
        (7, [0]),
        (18, [0]),
        (19, [0]),
        (20, [0]),
        (21, [0, 2]),
        (22, [0, 2]),
        (25, [0, 2, 4, 6]),
    ],
)
def test_a_short_video_that_is_kept_has_one_start_row(frames, expected):
    """3 steps of 6 frames need 19; from 7 on there is room for one."""
    kept = list(start_frames(frames, length=3, frame_step=6, start_stride=2, keep_short=True))
    assert kept == expected
    if frames not in range(7, 19):
        assert list(start_frames(frames, length=3, frame_step=6, start_stride=2)) == expected


def test_inside_includes_the_border_itself():
    """MME eq. 7: 0 <= x <= width - 1, 0 <= y <= height - 1, on a frame whose axes differ."""
    points = np.array([[0, 0], [41, 26], [41.01, 26], [41, 26.01], [-0.01, 3], [3, -0.01], [26, 26], [np.nan, 3]])
    assert inside_frame(points, (27, 42)).tolist() == [True, True, False, False, False, False, True, False]


def test_a_still_point_has_no_compensated_displacement():
    rng = np.random.default_rng(0)
    homographies = np.eye(3) + rng.normal(size=(4, 3, 3)) * [[0.01, 0.01, 3], [0.01, 0.01, 3], [1e-5, 1e-5, 0]]
    positions = [rng.random((7, 2)) * [90, 60]]
    for g in homographies:
        positions.append(apply_homography(g, positions[-1]))
    steps = compensated_displacements(np.stack(positions, axis=1), homographies)
    assert steps.shape == (7, 4, 2)
    np.testing.assert_allclose(steps, 0, atol=1e-10)


def test_compensation_takes_the_camera_out_before_the_step_is_measured():
    """A point that moves by d in the scene while the camera zooms by 2: G^-1 p' - p is d, not 2 d."""
    zoom = np.diag([2.0, 2.0, 1.0])
    position, step = np.array([10.0, 6.0]), np.array([1.5, -0.5])
    positions = np.stack([position, 2 * (position + step)])[None]
    np.testing.assert_allclose(compensated_displacements(positions, zoom[None])[0, 0], step)
