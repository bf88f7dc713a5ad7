"""Trajectory fields seen through a view: closed forms on non-square grids, crops and views."""

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from data_specs.geometry import grid_points, grid_size
from data_specs.view import View
from training.reading.resampling import Resampler, mirrored_hof, mirrored_hog, mirrored_mbh, view_points
from training.reading.shard_reader import Runs

FRAME, STRIDE, STEPS = (150, 206), 8, 3
GRID = grid_size(FRAME, STRIDE)  # 18 x 25, with 6 pixels left over on either axis
POINTS = (10, 14)
VIEW = View(top=11, left=30, height=97, width=123, size=(80, 112))
FLIPPED = View(top=11, left=30, height=97, width=123, size=(80, 112), flip=True)


ONE = np.array([0])


def run(field):
    """A field (rows, columns, ...) as the only run of its points."""
    return Runs(field.reshape(-1, *field.shape[2:]), ONE)


def resample(view, field, measured, points=POINTS, stride=STRIDE):
    values = np.full((1, *points, *field.shape[2:]), np.nan, np.float32)
    valid = np.zeros((1, *points, field.shape[2]), np.bool_)
    resampler = Resampler(view, field.shape[:2], stride, points)
    resampler.resample_vectors(run(field.astype(np.float32)), run(measured), ONE, values, valid)
    return values[0], valid[0]


def resample_histograms(view, codes, scale, measured, mirror, points):
    values = np.full((1, *points, *codes.shape[2:]), np.nan, np.float32)
    valid = np.zeros((1, *points, codes.shape[2]), np.bool_)
    resampler = Resampler(view, codes.shape[:2], STRIDE, points)
    scales = np.array([scale], np.float32)
    resampler.resample_histograms(run(codes), scales, run(measured), mirror, ONE, values, valid)
    return values[0], valid[0]


def frame_grid():
    return grid_points(FRAME, STRIDE).reshape(*GRID, 2)


def test_points_are_the_centres_of_the_views_cells():
    points = view_points((80, 112), POINTS)
    assert points.shape == (10, 14, 2)
    np.testing.assert_allclose(points[2, 5], [5 * 8 + 3.5, 2 * 8 + 3.5])
    # four in a 16 x 16 patch, as the store's own grid has them
    np.testing.assert_allclose(points.reshape(-1, 2), grid_points((80, 112), 8))


@pytest.mark.parametrize("view", [VIEW, FLIPPED], ids=["plain", "flipped"])
def test_a_linear_field_is_carried_over_exactly(view):
    """Displacement = A x + b in the tracked frame becomes S (A x' + b) at the view's points, with S the resize."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(STEPS, 2, 2)) * 0.05, rng.normal(size=(STEPS, 2))
    field = np.einsum("kcd,ijd->ijkc", a, frame_grid()) + b
    values, valid = resample(view, field, np.ones((*GRID, STEPS), np.bool_))
    assert valid.all()
    where = view.to_frame(view_points(view.size, POINTS))
    expected = np.einsum("kcd,ijd->ijkc", a, where) + b
    # a displacement is the difference of two points, and `to_view` is how points go
    ends = view.to_view(where[:, :, None] + expected)
    starts = view.to_view(where)[:, :, None]
    np.testing.assert_allclose(values, ends - starts, atol=2e-5)


def test_against_scipys_interpolation():
    field = np.random.default_rng(1).normal(size=(*GRID, STEPS, 2))
    values, _ = resample(VIEW, field, np.ones((*GRID, STEPS), np.bool_))
    axes = [np.arange(n) * STRIDE + (STRIDE - 1) / 2 for n in GRID]
    where = VIEW.to_frame(view_points(VIEW.size, POINTS))[..., ::-1]
    expected = RegularGridInterpolator(axes, field)(where) * np.array(VIEW.scale)
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_only_valid_neighbours_count_and_validity_is_the_nearest_points():
    """Numbers at invalid points never show; what is left is the weighted mean of the valid ones."""
    rng = np.random.default_rng(2)
    measured = rng.random((*GRID, STEPS)) < 0.6
    field = np.where(measured[..., None], [5.0, -2.0], 1e6)
    values, valid = resample(VIEW, field, measured)
    scale = np.array(VIEW.scale)
    np.testing.assert_allclose(values[valid], np.broadcast_to([5.0, -2.0] * scale, values[valid].shape), rtol=1e-6)
    assert (values[~valid] == 0).all()
    where = VIEW.to_frame(view_points(VIEW.size, POINTS))
    for i, j in np.ndindex(*POINTS):
        distances = np.abs(frame_grid() - where[i, j]).sum(-1)
        nearest = np.unravel_index(distances.argmin(), GRID)
        np.testing.assert_array_equal(valid[i, j], measured[nearest])
    assert 0.4 < valid.mean() < 0.8


def test_a_point_further_than_a_stride_from_the_grid_is_not_valid():
    field, measured = np.ones((3, 4, 1, 2)), np.ones((3, 4, 1), np.bool_)
    # the tracked frame is 48 x 64 with a grid of stride 8 that covers 24 x 32 of it only
    view = View(top=0, left=0, height=48, width=64, size=(48, 64))
    _, valid = resample(view, field, measured, points=(6, 8))
    expected = np.zeros((6, 8), np.bool_)
    expected[:4, :5] = True  # the grid itself and one stride more
    np.testing.assert_array_equal(valid[..., 0], expected)


@settings(max_examples=30, deadline=None)
@given(
    top=st.integers(0, 60),
    left=st.integers(0, 90),
    height=st.integers(16, 90),
    width=st.integers(16, 116),
    flip=st.booleans(),
)
def test_a_view_and_its_inverse(top, left, height, width, flip):
    view = View(top=top, left=left, height=height, width=width, size=(80, 112), flip=flip)
    points = np.random.default_rng(top).uniform(0, 100, (7, 2))
    np.testing.assert_allclose(view.to_frame(view.to_view(points)), points, atol=1e-9)
    corners = view.to_frame(np.array([[-0.5, -0.5], [111.5, 79.5]]))
    np.testing.assert_allclose(np.sort(corners[:, 0]), [left - 0.5, left + width - 0.5], atol=1e-9)
    np.testing.assert_allclose(corners[:, 1], [top - 0.5, top + height - 0.5], atol=1e-9)


def test_a_view_goes_where_opencv_puts_pixels():
    """A bright spot of the frame is found in the resized crop where `to_view` says, to a twentieth of a pixel."""
    y, x = np.mgrid[: FRAME[0], : FRAME[1]].astype(np.float64)
    for centre in [(60.0, 50.0), (91.3, 77.8), (133.0, 40.4)]:
        spot = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 6.0**2))
        crop = spot[VIEW.top : VIEW.top + VIEW.height, VIEW.left : VIEW.left + VIEW.width]
        seen = cv2.resize(crop, VIEW.size[::-1], interpolation=cv2.INTER_LINEAR)[:, ::-1]
        v, u = np.mgrid[: VIEW.size[0], : VIEW.size[1]]
        found = [(u * seen**4).sum() / (seen**4).sum(), (v * seen**4).sum() / (seen**4).sum()]
        np.testing.assert_allclose(found, FLIPPED.to_view(np.array(centre)), atol=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_hog_mirrors_and_keeps_its_values(channels):
    """One direction at a time: a gradient at angle θ is one at π - θ in the mirror."""
    bins = 9 * channels
    grid = (5, 6)
    codes = np.zeros((*grid, 2, bins), np.uint8)
    for k in range(bins):
        codes[:] = 0
        codes[..., k] = 127
        for flip, expected in [(False, k), (True, k // 9 * 9 + round((180 - 20 * (k % 9)) % 180 / 20))]:
            view = View(top=0, left=0, height=40, width=48, size=(40, 48), flip=flip)
            measured = np.ones((*grid, 2), np.bool_)
            values, valid = resample_histograms(view, codes, 7.0, measured, mirrored_hog(channels), grid)
            assert valid.all()
            np.testing.assert_allclose(values[..., expected], 7.0 * 0.25, rtol=1e-6)
            assert np.delete(values, expected, axis=-1).max() == 0


def test_flow_histograms_mirror():
    """Bin k of HOF is the direction k * 45° from +x to +y; in the mirror x is negated, and so is MBH's x part."""
    angles = np.arange(8) * np.pi / 4
    directions = np.stack([np.cos(angles), np.sin(angles)], -1)

    def bin_of(vector):
        return int(np.argmax(directions @ vector))

    hof = mirrored_hof()
    mbh = mirrored_mbh()
    assert hof[8] == 8
    for k, (dx, dy) in enumerate(directions):
        assert hof[k] == bin_of([-dx, dy])
        # gradient of v: ∂v/∂x changes its sign; gradient of u, with u itself negated: ∂u/∂y does instead
        assert mbh[8 + k] == 8 + bin_of([-dx, dy])
        assert mbh[k] == bin_of([dx, -dy])


def test_histograms_are_interpolated_by_value_not_by_code():
    codes = np.zeros((1, 2, 1, 9), np.uint8)
    codes[0, 1, 0, 4] = 254
    view = View(
        top=0, left=2, height=8, width=8, size=(8, 8)
    )  # its centre is a quarter of a stride past the first point
    values, _ = resample_histograms(view, codes, 12.0, np.ones((1, 2, 1), np.bool_), mirrored_hog(1), (1, 1))
    np.testing.assert_allclose(values[0, 0, 0, 4], 12.0 * 0.25, rtol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_histograms_are_the_vectors_of_their_bins(flip):
    """Both kernels follow one rule: bins, two by two, as x and y of a field, some of it not measured.

    Bit by bit they are not the same: histograms are mixed in single precision."""
    rng = np.random.default_rng(7)
    view = dataclasses.replace(VIEW, flip=flip)
    codes = rng.integers(0, 255, (*GRID, STEPS, 9), dtype=np.uint8)
    measured = rng.random((*GRID, STEPS)) < 0.8
    measured[4:12, 5:14] = True
    values, valid = resample_histograms(view, codes, 3.0, measured, mirrored_hog(1), POINTS)
    decoded = 3.0 * (codes / 254.0) ** 2
    straight = View(top=11, left=30, height=97, width=123, size=(97, 123), flip=flip)  # no change of lengths
    for k in range(9):
        field = np.stack([-decoded[..., k] if flip else decoded[..., k], decoded[..., k]], axis=-1)
        # the crop in another size has the same points
        expected, expected_valid = resample(straight, field, measured)
        np.testing.assert_array_equal(valid, expected_valid)
        for c in range(2):
            np.testing.assert_allclose(values[..., mirrored_hog(1)[k] if flip else k], expected[..., c], atol=1e-6)
    assert 0.5 < valid.mean() < 0.95


def test_runs_in_any_place_and_order_and_more_steps_than_asked_for():
    """Fields lie anywhere among the points that were read, with numbers of no meaning between them."""
    rng = np.random.default_rng(8)
    points, rows_by_columns = 3 * GRID[0] * GRID[1], GRID[0] * GRID[1]
    first = np.array([901, 30, 466 + 450])
    field = rng.normal(size=(points + 80, STEPS, 2)).astype(np.float32)
    codes = rng.integers(0, 255, (points + 80, STEPS + 1, 9), dtype=np.uint8)
    measured = rng.random((points + 200, STEPS + 1)) < 0.9
    first_measured, to = first + 70, np.array([3, 0, 1])
    scales = np.array([1.5, 2.5, 0.5], np.float32)
    values = np.full((4, *POINTS, STEPS, 2), np.nan, np.float32)
    histograms = np.full((4, *POINTS, STEPS, 9), np.nan, np.float32)
    valid, valid_too = np.zeros((2, 4, *POINTS, STEPS), np.bool_)
    resampler = Resampler(FLIPPED, GRID, STRIDE, POINTS)
    flags, mirror = Runs(measured, first_measured), mirrored_hog(1)
    resampler.resample_vectors(Runs(field, first), flags, to, values, valid)
    resampler.resample_histograms(Runs(codes, first), scales, flags, mirror, to, histograms, valid_too)
    for r in range(3):
        own, own_codes = (a[first[r] :][:rows_by_columns].reshape(*GRID, *a.shape[1:]) for a in (field, codes))
        own_flags = measured[first_measured[r] :][:rows_by_columns].reshape(*GRID, -1)[:, :, :STEPS]
        alone, alone_valid = resample(FLIPPED, own, own_flags.copy())
        np.testing.assert_array_equal(values[to[r]], alone)
        np.testing.assert_array_equal(valid[to[r]], alone_valid)
        alone, _ = resample_histograms(
            FLIPPED, own_codes[:, :, :STEPS].copy(), scales[r], own_flags.copy(), mirror, POINTS
        )
        np.testing.assert_array_equal(histograms[to[r]], alone)
    np.testing.assert_array_equal(valid_too, valid)
    assert np.isnan(values[2]).all()
    assert np.isnan(histograms[2]).all()


def test_what_is_outside_of_its_array_is_an_error():
    """Compiled code would read or write whatever lies there."""
    points = GRID[0] * GRID[1]
    for *runs, steps in [
        ([1], [0], [0], STEPS), ([-1], [0], [0], STEPS), ([0], [1], [0], STEPS), ([0], [0], [2], STEPS),
        ([0], [0], [-1], STEPS), ([0], [0], [0], STEPS - 1), ([0, 0], [0], [0], STEPS), ([0], [0], [0, 1], STEPS),
    ]:  # fmt: skip
        first, first_measured, to = (np.array(places) for places in runs)
        measured = Runs(np.ones((points, steps), np.bool_), first_measured)
        valid = np.zeros((2, *POINTS, STEPS), np.bool_)
        resampler, scales = Resampler(VIEW, GRID, STRIDE, POINTS), np.ones(len(first))
        with pytest.raises(IndexError):
            field = Runs(np.zeros((points, STEPS, 2), np.float32), first)
            values = np.zeros((2, *POINTS, STEPS, 2), np.float32)
            resampler.resample_vectors(field, measured, to, values, valid)
        with pytest.raises(IndexError):
            codes = Runs(np.zeros((points, STEPS, 9), np.uint8), first)
            values = np.zeros((2, *POINTS, STEPS, 9), np.float32)
            resampler.resample_histograms(codes, scales, measured, mirrored_hog(1), to, values, valid)


@pytest.mark.parametrize("view", [VIEW, FLIPPED], ids=["plain", "flipped"])
def test_nothing_outside_of_the_window_is_looked_at(view):
    rng = np.random.default_rng(9)
    field, measured = rng.normal(size=(*GRID, STEPS, 2)), np.ones((*GRID, STEPS), np.bool_)
    rows, columns = Resampler(view, GRID, STRIDE, POINTS).window
    inside = np.zeros(GRID, np.bool_)
    inside[rows.start : rows.stop, columns.start : columns.stop] = True
    assert 0.2 < inside.mean() < 0.6
    for a, b in zip(
        resample(view, field, measured),
        resample(view, np.where(inside[..., None, None], field, np.nan), measured & inside[..., None]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
