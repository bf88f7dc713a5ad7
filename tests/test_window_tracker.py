"""CoTracker3's windows over a video: rendered motion, by a stand-in for its network that follows what it sees."""

import dataclasses

import numpy as np
import pytest
import torch
from cotracker_stand_in import stand_in_model

from data_specs.geometry import apply_homography
from data_specs.recipe import load_recipe
from data_specs.scene import Disc, Scene, Texture, moving, still
from extraction.motion.cotracker3.network import CoTracker3, FrameFeatures, WindowTracks
from extraction.motion.cotracker3.window_tracker import WindowTracker, support_points, windows_at_a_time
from extraction.stages import untimed

SIZE = (104, 168)


def recipe(**changes):
    options = {"start_stride": 4, "frame_step": 2, "length": 5, **changes}
    return dataclasses.replace(load_recipe("trackmae"), **options)


def scene(camera=still, disc=still, radius=40.0):
    return Scene(
        size=SIZE,
        background=Texture(1, shortest=9),
        camera=camera,
        discs=(Disc(texture=Texture(2, shortest=9), centre=(96, 50), radius=radius, motion=disc),),
    )


def network():
    return CoTracker3(stand_in_model(), torch.device("cpu"))


def track(frames, options, *, cuts=(), windows=None, net=None):
    tracker = WindowTracker(options, net or network(), untimed, windows)
    rows = [row for index, frame in enumerate(frames) for row in tracker.push(frame, index in cuts)]
    return rows + tracker.finish()


def errors(row, truth, options):
    positions, visible = truth.track(row.positions[:, 0], row.start, options.length, options.frame_step)
    return np.linalg.norm(row.positions - positions, axis=-1), visible


@pytest.fixture(scope="module")
def panned():
    """A camera that pans over a scene in which a disc moves another way; 21 frames, and their rows."""
    truth, options = scene(moving((0.9, -0.5)), moving((0.4, 1.1))), recipe()
    frames = truth.frames(21)
    return truth, options, frames, track(frames, options)


def test_points_follow_what_moves(panned):
    truth, options, _, rows = panned
    assert [row.start for row in rows] == [0, 4, 8]
    for row in rows:
        error, visible = errors(row, truth, options)
        on_disc = truth.layers(row.positions[:, 0], row.start) == 1
        assert on_disc.sum() >= 15
        for part in (on_disc, ~on_disc):
            counted = (row.valid & visible)[part]
            assert counted.mean() > 0.7
            assert np.median(error[part][counted]) < 0.8, "pixels of the frame"
        assert np.linalg.norm(row.positions[:, -1] - row.positions[:, 0], axis=-1)[~on_disc].mean() > 8


def test_points_begin_at_the_centres_of_the_grid(panned):
    rows = panned[3]
    y, x = np.mgrid[0:6, 0:10] * 16 + 7.5
    expected = np.stack([x.ravel(), y.ravel()], axis=-1)
    for row in rows:
        np.testing.assert_array_equal(row.positions[:, 0], expected)
        assert row.valid[:, 0].all()


@pytest.mark.parametrize(("windows", "stride", "step"), [(2, 4, 2), (3, 3, 4), (5, 6, 4), (1, 5, 3)])
def test_batches_of_windows_are_the_windows_alone(windows, stride, step):
    """Whichever frames rows share: a batch's rows are those of videos that hold one window each."""
    truth, options = scene(disc=moving((0.8, 0.6))), recipe(start_stride=stride, frame_step=step, length=3)
    frames, net = truth.frames(40), network()
    rows = track(frames, options, windows=windows, net=net)
    assert [row.start for row in rows] == list(range(0, 40 - 3 * step, stride))
    for row in rows:
        (alone,) = track(
            frames[row.start : row.start + 3 * step + 1], dataclasses.replace(options, start_stride=99), net=net
        )
        np.testing.assert_allclose(row.positions, alone.positions, atol=1e-3)
        np.testing.assert_allclose(row.visibility, alone.visibility, atol=1e-4)


def test_features_are_computed_once_for_a_frame_and_only_where_rows_step():
    net, seen = network(), []
    pyramid = net.pyramid
    net.pyramid = lambda frames: seen.append(len(frames)) or pyramid(frames)
    options = recipe(start_stride=4, frame_step=6, length=2)
    rows = track(scene().frames(33), options, net=net)
    assert len(rows) == 6, "of 3 frames each"
    stepped_on = {start + k * 6 for start in range(0, 33, 4) for k in range(3) if start + k * 6 < 33}
    assert sum(seen) == len(stepped_on) < 33


def test_a_row_is_back_when_its_batch_is(panned):
    _, options, frames, _ = panned
    tracker = WindowTracker(options, network(), untimed, 2)
    for index, frame in enumerate(frames):
        for row in tracker.push(frame):
            assert index - row.start <= tracker.lookback
    assert tracker.lookback == 10 + 4
    assert [row.start for row in tracker.finish()] == [8]


def test_a_covered_point_is_not_valid_and_comes_back():
    """A disc crosses the frame: the background's points behind it are hidden for some steps, and found again."""
    truth = scene(disc=moving((7.0, 0.0)), radius=26.0)
    truth = dataclasses.replace(truth, discs=(dataclasses.replace(truth.discs[0], centre=(30, 52)),))
    options = recipe(frame_step=2, length=9, start_stride=40)
    (row,) = track(truth.frames(19), options)
    _, visible = truth.track(row.positions[:, 0], 0, options.length, options.frame_step)
    comes_back = (np.diff(visible.astype(int), axis=1) > 0).any(axis=1) & visible[:, -1]
    assert comes_back.sum() >= 4
    assert (row.valid[comes_back] == visible[comes_back]).mean() > 0.8
    found_again = (np.diff(row.valid[comes_back].astype(int), axis=1) > 0).any(axis=1)
    assert found_again.mean() > 0.7


def test_valid_follows_from_the_threshold_and_the_frame(panned):
    _, options, frames, rows = panned
    for above in (0.3, 0.9):
        for row in track(frames, dataclasses.replace(options, visible_above=above)):
            x, y = row.positions[..., 0], row.positions[..., 1]
            inside = (x >= 0) & (x <= SIZE[1] - 1) & (y >= 0) & (y <= SIZE[0] - 1)
            expected = inside & (row.visibility * row.confidence > above)
            expected[:, 0] = True
            np.testing.assert_array_equal(row.valid, expected)
    assert any(not row.valid.all() for row in rows)


def test_nothing_is_tracked_across_a_cut():
    before, behind = scene(moving((1.0, 0.5))), Scene(size=SIZE, background=Texture(7, shortest=9), camera=still)
    options = recipe(frame_step=2, length=5, start_stride=4, remove_camera=True)
    frames = before.frames(7) + behind.frames(14)
    rows = track(frames, options, cuts=(7,))
    first, second = rows[0], rows[1]
    assert first.valid[:, :4].mean() > 0.7, "frames 0 to 6"
    assert not first.valid[:, 4:].any()
    assert not first.visibility[:, 4:].any(), "and none is claimed to be seen"
    assert not first.confidence[:, 4:].any()
    np.testing.assert_array_equal(first.positions[:, 4:], np.repeat(first.positions[:, 3:4], 2, axis=1))
    assert first.estimated.tolist() == [True] * 3 + [False] * 2
    np.testing.assert_array_equal(first.homographies[3:], np.tile(np.eye(3), (2, 1, 1)))
    assert second.start == 4
    assert not second.valid[:, 2:].any(), "frame 8 is behind the cut"
    assert rows[2].start == 8
    assert rows[2].valid.mean() > 0.9, "a row behind the cut knows nothing of it"
    # what lies behind the cut does not even reach the network
    other = track(before.frames(7) + scene().frames(14), options, cuts=(7,))[0]
    np.testing.assert_array_equal(first.positions, other.positions)


class Recorder:
    """In place of the network: says for each window's frames which ones they are, as their confidence."""

    resolution = (32, 48)

    def __init__(self, device):
        self.device = torch.device(device)

    def new_features(self, places):
        return FrameFeatures(places, [(1, 1)], 1, torch.empty(0))

    def pyramid(self, frames):
        return [frames[:, :1, :1, :1].float() / 256]

    def track(self, features, places, queries):
        windows, points = queries.shape[:2]
        seen = features.levels[0][places.flatten()].view(windows, 1, -1).expand(-1, points, -1)
        still = queries[:, :, None, 1:].expand(-1, -1, places.shape[1], -1)
        return WindowTracks(still, torch.ones_like(seen), seen)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("length", "step", "stride", "windows"), [(7, 8, 4, 3), (3, 5, 2, 4), (4, 1, 7, 2), (2, 6, 9, 1), (1, 3, 3, 5)]
)
def test_windows_have_their_own_frames_up_to_the_first_cut(device, length, step, stride, windows):
    """Cuts on a window's first frame, its last, between two of its frames, twice in one; a video of one window too, and
    videos that are shorter than one.

    On a device frames are held back for a batch, so the places that they are kept in are others.
    """
    options, span = recipe(length=length, frame_step=step, start_stride=stride, visible_above=0.0), length * step
    for count in (step, step + 1, span - 1, span, span + 1, span + stride + 1, 3 * span + 2 * stride + 5):
        frames = [np.full((16, 24, 3), number, np.uint8) for number in range(count)]
        for cuts in [
            (),
            (1,),
            (span,),
            (span + 1,),
            (stride,),
            (stride + step, stride + 2 * step + 1),
            range(3, count, 4),
        ]:
            rows = track(frames, options, cuts=cuts, windows=windows, net=Recorder(device))
            whole = [t for t in range(0, count, stride) if t + span < count]
            assert [row.start for row in rows] == (whole or [0] * (count > step))  # a short video is kept
            for row in rows:
                times = [row.start + step * k for k in range(length + 1)]
                own = np.array([time < count and not any(row.start < cut <= time for cut in cuts) for time in times])
                np.testing.assert_array_equal(row.confidence[0], np.where(own, times, 0) / 256)
                np.testing.assert_array_equal(row.visibility[0], own)
                np.testing.assert_array_equal(row.valid[0, 1:], (own & (np.array(times) > 0))[1:])


@pytest.mark.parametrize("features", [("surf", "tracks"), ("tracks",)])
def test_the_camera_is_estimated_from_matches_and_tracks(features):
    truth = scene(moving((0.9, -0.5)), moving((-1.2, 1.3)), radius=27.0)
    options = recipe(remove_camera=True, camera_features=features)
    for row in track(truth.frames(15), options):
        assert row.estimated.all()
        for k, g in enumerate(row.homographies):
            t = row.start + k * options.frame_step
            expected = apply_homography(truth.homography(t, t + options.frame_step), [[80, 50]])
            np.testing.assert_allclose(apply_homography(g, [[80, 50]]), expected, atol=0.4)


def test_support_points_are_seen_by_the_network_and_not_returned(panned):
    _, options, frames, rows = panned
    asked = []
    net = network()
    inner = net.track
    net.track = lambda features, places, queries: asked.append(queries) or inner(features, places, queries)
    supported = track(frames, dataclasses.replace(options, support_grid=3), net=net)
    assert asked[0].shape[1] == 60 + 9
    assert supported[0].positions.shape == rows[0].positions.shape
    np.testing.assert_allclose(asked[0][0, 60:, 1:], support_points(3, net.resolution), rtol=1e-6)
    # a 64th of the network's width from its edges
    assert support_points(3, (384, 512))[[0, -1]].tolist() == [[8, 8], [504, 376]]
    assert support_points(0, (384, 512)).shape == (0, 2)


def test_batches_fit_the_device():
    assert windows_at_a_time(recipe(), "cpu") == 1
    assert windows_at_a_time(recipe(), "cuda") == 12
    assert windows_at_a_time(recipe(grid_stride=8), "cuda") == 3
    assert windows_at_a_time(recipe(grid_stride=2), "cuda") == 1
