"""Flow, HOF and MBH of cells against closed forms, and against a slow implementation written from the definition."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from data_specs.geometry import grid_points
from data_specs.recipe import load_recipe
from data_specs.scene import Scene, Texture, moving, random_scene
from extraction.cuts import ShotFrames
from extraction.flow_descriptors import describe_flow, nothing_measured
from extraction.motion.flow_tracker import FlowTracker, TrackedFrame
from extraction.process_video import process_video
from extraction.stages import untimed

HEIGHT, WIDTH, STRIDE = 40, 58, 8
ROWS, COLUMNS = 5, 7
ALL = ("flow", "hof", "mbh")
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)


def field(u, v):
    return np.stack(np.broadcast_arrays(u, v, np.zeros((HEIGHT, WIDTH)))[:2], axis=-1).astype(np.float32)


def describe(flow, measured=None, stride=STRIDE, still=0.4):
    measured = np.ones(flow.shape[:2], bool) if measured is None else measured
    return describe_flow(flow, measured, stride, ALL, still)


def inner(values):
    """Those of the cells that do not touch the frame's border, where the mirrored gradients have no closed form."""
    return values.reshape(ROWS, COLUMNS, *values.shape[1:])[1:-1, 1:-1]


def random_flow(seed, height=HEIGHT, width=WIDTH, speed=3.0):
    noise = np.random.default_rng(seed).normal(size=(height, width, 2))
    return (speed * 5 * ndimage.gaussian_filter(noise, (2, 2, 0))).astype(np.float32)


def shares(degrees, magnitude, bins=8):
    """A magnitude shared out over two bins, from the definition of linear interpolation."""
    out = np.zeros((*np.shape(degrees), bins))
    place = np.asarray(degrees) % 360 / 45
    for k in range(8):
        distance = np.abs((place - k + 4) % 8 - 4)
        out[..., k] = magnitude * np.clip(1 - distance, 0, None)
    return out


def reference(flow, stride, still):
    """Every cell by itself, in double precision: numpy's arctan2, scipy's Sobel."""
    flow = flow.astype(np.float64)
    rows, columns = flow.shape[0] // stride, flow.shape[1] // stride
    length = np.hypot(flow[..., 0], flow[..., 1])
    hof = shares(np.degrees(np.arctan2(flow[..., 1], flow[..., 0])), np.where(length < still, 0, length), bins=9)
    hof[..., 8] = length < still
    mbh = []
    for c in (0, 1):
        dx, dy = (ndimage.sobel(flow[..., c], axis=axis, mode="mirror") / 8 for axis in (1, 0))
        mbh.append(shares(np.degrees(np.arctan2(dy, dx)), np.hypot(dx, dy)))
    cells = [
        (slice(i * stride, (i + 1) * stride), slice(j * stride, (j + 1) * stride))
        for i in range(rows)
        for j in range(columns)
    ]
    return (
        np.array([flow[cell].mean(axis=(0, 1)) for cell in cells]),
        np.array([hof[cell].sum(axis=(0, 1)) for cell in cells]),
        np.array([[component[cell].sum(axis=(0, 1)) for component in mbh] for cell in cells]),
    )


@pytest.mark.parametrize(("height", "width", "stride"), [(40, 58, 8), (35, 26, 5), (33, 64, 16)])
def test_descriptors_are_those_of_the_definition(height, width, stride):
    flow = random_flow(height, height, width)
    ours = describe(flow, stride=stride, still=1.5)
    mean, hof, mbh = reference(flow, stride, 1.5)
    assert ours.measured.all()
    assert ours.flow.shape == ((height // stride) * (width // stride), 2)
    assert 0.05 < hof[:, 8].sum() / (hof.shape[0] * stride**2) < 0.95
    np.testing.assert_allclose(ours.flow, mean, atol=1e-5)
    np.testing.assert_allclose(ours.hof, hof, rtol=1e-5, atol=1e-5 * hof.max())
    np.testing.assert_allclose(ours.mbh, mbh, rtol=1e-5, atol=1e-5 * mbh.max())


@pytest.mark.parametrize("k", range(8))
def test_a_uniform_flow_fills_one_bin_and_has_no_boundary(k):
    u, v = 2.5 * np.cos(np.radians(45 * k)), 2.5 * np.sin(np.radians(45 * k))
    ours = describe(field(u, v))
    np.testing.assert_allclose(ours.flow, np.tile([u, v], (ROWS * COLUMNS, 1)), atol=1e-6)
    expected = np.zeros(9)
    expected[k] = 64 * 2.5
    np.testing.assert_allclose(ours.hof, np.tile(expected, (ROWS * COLUMNS, 1)), atol=1e-4)
    assert np.abs(ours.mbh).max() < 1e-5


@pytest.mark.parametrize("degrees", [9, 100.5, 222, 359])
def test_length_is_shared_in_proportion_to_the_angle_and_none_is_lost(degrees):
    ours = describe(field(3 * np.cos(np.radians(degrees)), 3 * np.sin(np.radians(degrees)))).hof
    low, share = int(degrees // 45), degrees % 45 / 45
    np.testing.assert_allclose(ours[:, low], 64 * 3 * (1 - share), rtol=1e-4)
    np.testing.assert_allclose(ours[:, (low + 1) % 8], 64 * 3 * share, rtol=1e-4)
    np.testing.assert_allclose(ours.sum(axis=1), 64 * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("u", "v", "bin_x", "bin_y"),
    [
        (0.25 * (X - 20), 0.25 * (Y - 11), 0, 2),  # expansion: du/dx > 0, dv/dy > 0
        (-0.25 * (X - 20), -0.25 * (Y - 11), 4, 6),  # contraction
        (-0.25 * (Y - 11), 0.25 * (X - 20), 6, 0),  # rotation from x to y: du/dy < 0, dv/dx > 0
        (0.25 * (Y - 11), -0.25 * (X - 20), 2, 4),  # rotation from y to x
    ],
)
def test_boundaries_of_linear_fields_have_the_orientation_of_their_gradient(u, v, bin_x, bin_y):
    mbh = inner(describe(field(u, v)).mbh)
    expected = np.zeros((2, 8))
    expected[0, bin_x] = expected[1, bin_y] = 64 * 0.25
    np.testing.assert_allclose(mbh, np.broadcast_to(expected, mbh.shape), atol=1e-3)


def test_a_step_edge_in_one_component_is_found_where_it_is():
    """u rises by 3 px between columns 19 and 20: half of it at each of the two, all in cells of the third column."""
    mbh = describe(field(np.where(X >= 20, 3.0, 0.0), 1.0)).mbh.reshape(ROWS, COLUMNS, 2, 8)
    expected = np.zeros((ROWS, COLUMNS, 2, 8))
    expected[:, 2, 0, 0] = 8 * 3.0
    np.testing.assert_allclose(mbh, expected, atol=1e-4)
    # v falls by 3 px between rows 15 and 16, which are two cells'
    mbh = describe(field(1.0, np.where(Y >= 16, -3.0, 0.0))).mbh.reshape(ROWS, COLUMNS, 2, 8)
    expected = np.zeros((ROWS, COLUMNS, 2, 8))
    expected[1:3, :, 1, 6] = 8 * 1.5
    np.testing.assert_allclose(mbh, expected, atol=1e-4)


def test_slow_pixels_are_counted_in_the_ninth_bin():
    u = np.where(X % 8 < 3, 0.39, 0.41)
    hof = describe(field(u, 0.0)).hof
    np.testing.assert_allclose(hof[:, 8], 8 * 3)
    np.testing.assert_allclose(hof[:, 0], 8 * 5 * 0.41, rtol=1e-5)
    np.testing.assert_allclose(describe(field(0.0, 0.0)).hof, np.tile([0] * 8 + [64], (ROWS * COLUMNS, 1)))


def test_a_flip_permutes_bins():
    flow = random_flow(3, 40, 56)
    ours = describe(flow)
    flipped = describe(np.ascontiguousarray(flow[:, ::-1] * np.float32([-1, 1])))
    cells = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)[:, ::-1].ravel()
    in_hof = [(4 - k) % 8 for k in range(8)]
    in_mbh_x, in_mbh_y = [-k % 8 for k in range(8)], in_hof
    np.testing.assert_allclose(flipped.flow, ours.flow[cells] * [-1, 1], atol=1e-6)
    np.testing.assert_allclose(flipped.hof, ours.hof[cells][:, [*in_hof, 8]], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(flipped.mbh[:, 0], ours.mbh[cells, 0][:, in_mbh_x], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(flipped.mbh[:, 1], ours.mbh[cells, 1][:, in_mbh_y], rtol=1e-5, atol=1e-4)


def test_cells_that_are_not_wholly_measured_are_marked_and_others_do_not_feel_it():
    flow = random_flow(4)
    measured = np.ones((HEIGHT, WIDTH), bool)
    measured[9, 14] = False  # inside cell (1, 1), not next to another
    measured[24:30, 31] = (
        False  # the last column of cell (3, 3): the gradients of cell (3, 4), and of (2, ...), read it
    )
    measured[:, 57] = False  # two columns past the last cell's: next to no cell's pixels
    expected = np.ones((ROWS, COLUMNS), bool)
    expected[1, 1] = expected[2:4, 3:5] = False
    wild = np.where(measured[..., None], flow, np.float32(300))
    ours, clean = describe(wild, measured), describe(flow)
    np.testing.assert_array_equal(ours.measured, expected.ravel())
    for kind in ALL:
        values = getattr(ours, kind)
        assert not values[~ours.measured].any()
        np.testing.assert_array_equal(values[ours.measured], getattr(clean, kind)[ours.measured])


def test_a_flow_too_long_for_the_store_is_not_measured():
    ours = describe(field(np.where(X < 8, -600.0, 1.0), 2.0))
    np.testing.assert_array_equal(ours.measured.reshape(ROWS, COLUMNS)[:, 0], False)
    assert ours.measured.reshape(ROWS, COLUMNS)[:, 1:].all()
    assert np.abs(ours.flow).max() == 2


def test_only_what_is_asked_for_is_computed():
    flow = random_flow(5)
    for kind in ALL:
        ours = describe_flow(flow, np.ones((HEIGHT, WIDTH), bool), STRIDE, (kind,), 0.4)
        nothing = nothing_measured(ROWS * COLUMNS, (kind,))
        for other in ALL:
            assert (getattr(ours, other) is not None) == (getattr(nothing, other) is not None) == (other == kind)
        assert getattr(nothing, kind).shape == getattr(ours, kind).shape
        assert not nothing.measured.any()


def track(frames, recipe):
    tracker = FlowTracker(recipe, untimed)
    return [row for frame in frames for row in tracker.push(frame)]


def test_the_camera_s_motion_is_out_of_the_descriptors():
    """A pan by 2 px over a still scene: almost no motion; the same without camera removal: all of it, and one bin."""
    scene = Scene(size=(136, 184), background=Texture(3), camera=moving((2.0, 0.0)), noise=1)
    recipe = replace(load_recipe("mme-object").resolved(4), flow="dis", descriptors=ALL)
    frames = scene.frames(7)
    (row,) = track(frames, recipe)
    good = row.descriptors.measured
    assert 0.8 < good.mean() < 1, "the pan uncovers a border that is not measured"
    assert np.abs(row.descriptors.flow[good]).mean() < 0.1
    assert row.descriptors.hof[good, 8].mean() > 62
    (row,) = track(frames, replace(recipe, remove_camera=False))
    truth, visible = scene.track(grid_points(scene.size, 8), 0, 1)
    step = truth[:, 1] - truth[:, 0]
    seen = visible.all(axis=1)
    assert np.abs(row.descriptors.flow - step)[seen].mean() < 0.1
    assert np.abs(step[:, 0]).min() == pytest.approx(2)
    k = 0 if step[0, 0] > 0 else 4
    assert (row.descriptors.hof[seen].argmax(axis=1) == k).mean() > 0.95


def test_each_row_has_the_flow_of_its_own_first_step():
    """Rows that overlap in time, with frame_step 2: a row's descriptors are those of frames start and start + 2."""
    scene = random_scene(2, 1.5, (72, 104))
    frames = scene.frames(9)
    recipe = replace(load_recipe("mme-object"), flow="dis", descriptors=ALL, frame_step=2, length=3, start_stride=1)
    rows = track(frames, recipe)
    assert [row.start for row in rows] == [0, 1, 2]
    grey = [TrackedFrame(frame) for frame in frames]
    for row in rows:
        motion = FlowTracker(recipe, untimed).pair_motion(grey[row.start], grey[row.start + 2])
        expected = describe_flow(motion.flow, motion.measured, 8, ALL, 0.4)
        for kind in ("measured", *ALL):
            np.testing.assert_array_equal(getattr(row.descriptors, kind), getattr(expected, kind))
    assert not np.array_equal(rows[0].descriptors.flow, rows[1].descriptors.flow)


def test_a_recipe_without_descriptors_stores_none():
    frames = random_scene(2, 1.5, (72, 104)).frames(7)
    recipe = replace(load_recipe("mme-object").resolved(4), flow="dis", hog=False)
    (plain,) = process_video(ShotFrames(frames, False, untimed), recipe, untimed)
    (with_hof,) = process_video(ShotFrames(frames, False, untimed), replace(recipe, descriptors=("hof",)), untimed)
    assert set(with_hof) - set(plain) == {"cell_measured", "hof", "start/hof_scale"}
    for name in plain:
        np.testing.assert_array_equal(plain[name], with_hof[name])
