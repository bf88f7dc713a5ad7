"""Points through whole clips by chained flow, against the rendered truth and against what extraction itself tracks."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from data_specs.geometry import grid_points
from data_specs.recipe import load_recipe
from data_specs.scene import Disc, Scene, Texture, moving, random_scene, still
from extraction.evaluation.annotated_video import sample_queries
from extraction.evaluation.point_tracker import FLOWS, make_point_tracker, point_tracker_names
from extraction.evaluation.rendered import annotate_scene, rendered_scenes
from extraction.motion.flow_tracker import FlowTracker
from extraction.stages import untimed

SIZE, FRAMES = (96, 132), 11


def slow_scene():
    """A camera that pans, turns and zooms by about a pixel per frame, nothing hidden."""
    camera = moving((0.7, -0.4), about=(66, 48), turn=0.004, zoom=1.003)
    return Scene(size=SIZE, background=Texture(7), camera=camera, noise=2.0)


def queries_at(frame, stride=12):
    points = grid_points(SIZE, stride)
    return np.concatenate([np.full((len(points), 1), float(frame)), points], axis=1)


@pytest.fixture(scope="module")
def slow():
    scene = slow_scene()
    return scene, scene.frames(FRAMES)


@pytest.mark.parametrize(
    ("name", "median_px", "all_px"), [("tvl1", 0.1, 0.3), ("tvl1-pyramid", 0.1, 0.3), ("dis", 0.1, 0.3)]
)
def test_points_are_followed_both_ways_in_time(slow, name, median_px, all_px):
    """Asked for in the middle: the scene's own tracks, x and y each, in every frame of the clip."""
    scene, frames = slow
    middle = 5
    queries = queries_at(middle)
    positions, visible = make_point_tracker(name).track(frames, queries)
    assert positions.shape == (len(queries), FRAMES, 2)
    assert positions.dtype == np.float64
    assert visible.dtype == bool
    video = annotate_scene("slow", scene, FRAMES, 12, (middle,))
    np.testing.assert_allclose(video.positions[:, middle], queries[:, 1:], atol=1e-9)
    inside = ((video.positions > 4) & (video.positions < np.array(SIZE[::-1]) - 5)).all(axis=2)
    travelled = np.linalg.norm(video.positions[:, [0, -1]] - video.positions[:, [middle]], axis=2)
    assert np.median(travelled) > 3
    for frame in (0, 2, 8, FRAMES - 1):
        error = np.abs(positions - video.positions)[inside[:, frame], frame]
        assert len(error) > 40
        assert (np.median(error, axis=0) < median_px).all(), (frame, np.median(error, axis=0))
        assert np.percentile(error, 95) < all_px
    assert visible[inside].mean() > 0.97


def test_points_move_as_recipe_mme_object_moves_them(slow):
    """Extraction's row of the same clip, to the bit: begun in frame 0, ten steps of one frame."""
    _, frames = slow
    recipe = replace(load_recipe("mme-object"), flow="tvl1-fast", length=FRAMES - 1).resolved(FRAMES)
    tracker = FlowTracker(recipe, untimed)
    (row,) = [row for frame in frames for row in tracker.push(frame)]
    queries = queries_at(0, recipe.grid_stride)
    positions, visible = make_point_tracker("tvl1-fast").track(frames, queries)
    np.testing.assert_array_equal(positions, row.positions)
    np.testing.assert_array_equal(visible, row.valid)
    assert not visible.all()


def occluded_clip():
    """A disc passes over a still plane from left to right at 6 px per frame."""
    disc = Disc(texture=Texture(11, shortest=4, longest=25), centre=(10, 48), radius=20, motion=moving((6.0, 0.5)))
    scene = Scene(size=SIZE, background=Texture(12), camera=still, discs=(disc,), noise=1.5)
    return annotate_scene("covered", scene, 20, 8, (0, 10))


@pytest.mark.parametrize(("name", "found", "missed"), [("tvl1", 0.85, 0.03), ("dis", 0.4, 0.05)])
def test_covered_points_are_not_visible_and_stay_so(name, found, missed):
    video = occluded_clip()
    queries = sample_queries(video.positions, video.visible, "strided")
    truth, seen = video.positions[queries.tracks], video.visible[queries.tracks]
    positions, visible = make_point_tracker(name).track(video.frames, queries.points)
    # true visibility until it ends for the first time, away from the query both ways
    frames = np.arange(20)
    lasting = np.array([
        [seen[n, min(q, t) : max(q, t) + 1].all() for t in frames] for n, q in enumerate(queries.frames)
    ])  # fmt: skip
    hidden = ~seen
    assert hidden.sum() > 500
    assert (~visible)[hidden].mean() > found
    assert (~visible)[lasting].mean() < missed
    error = np.linalg.norm(positions - truth, axis=2)[lasting & visible]
    assert np.median(error) < 0.3
    own = frames == queries.frames[:, None]
    assert visible[own].all()
    after, before = frames > queries.frames[:, None], frames < queries.frames[:, None]
    lost = ~visible[:, :-1] & after[:, 1:] & ~before[:, :-1]
    assert lost.sum() > 500
    assert not visible[:, 1:][lost].any()
    assert (positions[:, 1:] == positions[:, :-1])[lost].all(), "a lost point stays where it was lost"
    lost_before = ~visible[:, 1:] & before[:, :-1]
    assert not visible[:, :-1][lost_before].any()
    assert (positions[:, 1:] == positions[:, :-1])[lost_before].all()


def test_queries_do_not_see_each_other(slow):
    _, frames = slow
    queries = np.concatenate([queries_at(2, 24), queries_at(6, 32), queries_at(10, 40)])
    tracker = make_point_tracker("dis")
    positions, visible = tracker.track(frames, queries)
    for part in (slice(0, 1), slice(7, None, 3)):
        alone = tracker.track(frames, queries[part])
        np.testing.assert_array_equal(alone[0], positions[part])
        np.testing.assert_array_equal(alone[1], visible[part])


def test_each_pair_is_measured_once_in_each_direction_and_only_where_needed(slow, monkeypatch):
    _, frames = slow
    numbers = {cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).tobytes(): t for t, frame in enumerate(frames)}
    measured = []
    original = FlowTracker.pair_motion

    def pair_motion(self, a, b):
        measured.append((numbers[a.gray.tobytes()], numbers[b.gray.tobytes()]))
        return original(self, a, b)

    monkeypatch.setattr(FlowTracker, "pair_motion", pair_motion)
    tracker = make_point_tracker("dis")
    tracker.track(frames, np.concatenate([queries_at(4, 24), queries_at(8, 32)]))
    forward, backward = [(t, t + 1) for t in range(4, 10)], [(t, t - 1) for t in range(8, 0, -1)]
    assert measured == forward + backward
    measured.clear()
    _, visible = tracker.track(frames, queries_at(8, 24), both_ways=False)
    assert measured == [(8, 9), (9, 10)]
    assert not visible[:, :8].any()
    assert visible[:, 8].all()


def test_no_point_crosses_a_cut():
    first, second = (Scene(size=SIZE, background=Texture(seed), camera=still).frames(6) for seed in (3, 4))
    _, visible = make_point_tracker("dis").track(first + second, np.concatenate([queries_at(2), queries_at(9)]))
    half = len(visible) // 2
    assert visible[:half, :6].mean() > 0.95
    assert visible[half:, 6:].mean() > 0.95
    assert not visible[:half, 6:].any()
    assert not visible[half:, :6].any()


def test_the_frame_s_outer_half_pixel_is_asked_for_too():
    """TAP-Vid's (0, 0) is half a pixel outside the outermost centres: it moves as the nearest one does."""
    frames = Scene(size=SIZE, background=Texture(3), camera=still).frames(3)
    queries = np.array([[1, -0.5, -0.5], [1, 131.4, 95.5], [1, 60.25, -0.3], [0, 30, 40]])
    positions, visible = make_point_tracker("tvl1").track(frames, queries)
    np.testing.assert_allclose(positions, np.repeat(queries[:, None, 1:], 3, axis=1), atol=0.1)
    np.testing.assert_array_equal(positions[:3, 1], queries[:3, 1:])
    assert visible[3].all()


def test_odd_requests():
    frames = Scene(size=SIZE, background=Texture(3), camera=still).frames(2)
    tracker = make_point_tracker("dis")
    positions, visible = tracker.track(frames, np.zeros((0, 3)))
    assert positions.shape == (0, 2, 2)
    assert visible.shape == (0, 2)
    positions, visible = tracker.track(frames[:1], np.array([[0, 5.0, 6.0]]))
    assert positions.tolist() == [[[5, 6]]]
    assert visible.tolist() == [[True]]
    for bad in ([[2, 1, 1]], [[-1, 1, 1]], [[0.5, 1, 1]], [[0, np.nan, 1]], [[0, 1]]):
        with pytest.raises(ValueError, match=r"quer(y|ies)"):
            tracker.track(frames, np.array(bad, dtype=float))


def test_every_flow_of_the_recipes_is_a_tracker():
    assert set(FLOWS) == {"tvl1", "tvl1-fast", "tvl1-pyramid", "tvl1-opencv", "dis"}
    assert set(FLOWS) <= set(point_tracker_names())
    for name in FLOWS:
        make_point_tracker(name)
    with pytest.raises(ValueError, match="--tracker raft: unknown; known are tvl1, "):
        make_point_tracker("raft")


def test_still_points_stay(slow):
    _, frames = slow
    queries = np.concatenate([queries_at(0, 40), queries_at(7, 40)])
    for both_ways in (True, False):
        positions, visible = make_point_tracker("still").track(frames, queries, both_ways=both_ways)
        np.testing.assert_array_equal(positions, np.repeat(queries[:, None, 1:], FRAMES, axis=1))
        assert visible[queries[:, 0] == 0].all()
        assert visible[queries[:, 0] == 7, 7:].all()
        assert (visible[queries[:, 0] == 7, :7] == both_ways).all()


def test_rendered_truth_covers_what_appears_later_and_nothing_twice():
    sizes = [scene.size for scene in rendered_scenes().values()]
    assert len(set(sizes)) == len(sizes)
    assert all(height != width for height, width in sizes)
    scene = random_scene(3, 7.0, (80, 112))
    video = annotate_scene("fast", scene, 9, 8, (0, 4, 8))
    first = video.visible.argmax(axis=1)
    assert video.visible.any(axis=1).all()
    assert (first == 0).sum() > 50
    assert (first > 0).sum() > 20
    seeds = np.select([video.visible[:, 0], video.visible[:, 4]], [0, 4], 8)
    for seed in (0, 4, 8):
        own = video.positions[seeds == seed, seed]
        assert len(own)
        np.testing.assert_allclose((own - 3.5) / 8, np.rint((own - 3.5) / 8), atol=1e-9)
    # backward in time too: positions in frame 6 of what the last frame gave are on the way to the others
    clear = video.visible[:, 6] & (seeds == 8)
    assert clear.sum() > 5
    moved, seen = scene.track(video.positions[clear, 6], 6, 2)
    np.testing.assert_allclose(moved, video.positions[clear, 6:], atol=1e-6)
    np.testing.assert_array_equal(seen, video.visible[clear, 6:])
