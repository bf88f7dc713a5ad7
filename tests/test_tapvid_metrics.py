"""TAP-Vid's metrics: cases worked out by hand, and the co-tracker package's own implementation on random inputs."""

import numpy as np
import pytest

from extraction.evaluation.tapvid_metrics import TapVidMetrics, evaluated_frames, mean_metrics, tapvid_metrics

PACKAGE = (
    "is held against TAP-Vid's function in the co-tracker package, which is on no package index: clone "
    "https://github.com/facebookresearch/co-tracker (CC-BY-NC-4.0) and put its folder on PYTHONPATH"
)


def worked_example():
    """Two points in four frames. Off by: point 0, frames 1 to 3, 0.5, 3 and 0 px; point 1, frames 2 and 3, 1 and 20."""
    true_positions = np.arange(16.0).reshape(2, 4, 2)
    off = np.zeros((2, 4, 2))
    off[0, :, 0] = [0, 0.5, -3, 0]
    off[1, :, 0] = [0, 0, 1, 20]
    true_visible = np.array([[1, 1, 1, 0], [0, 1, 1, 1]], dtype=bool)
    visible = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], dtype=bool)
    return np.array([0, 1]), true_positions, true_visible, true_positions + off, visible


def test_first_by_hand():
    metrics = tapvid_metrics(*worked_example(), "first")
    # evaluated: point 0 in frames 1, 2, 3 and point 1 in frames 2, 3; four of the five are visible
    assert metrics.within == (1 / 4, 2 / 4, 3 / 4, 3 / 4, 3 / 4)
    assert metrics.occlusion_accuracy == 3 / 5
    # predicted visible and wrong: the hidden one, the one 20 px off, and, at a threshold of 1 px, the one 1 px off
    assert metrics.jaccard == (1 / (4 + 3), *[2 / (4 + 2)] * 4)
    assert metrics.average_within == pytest.approx((1 + 2 + 3 + 3 + 3) / 20)
    assert metrics.average_jaccard == pytest.approx((1 / 7 + 4 / 3) / 5)


def test_strided_by_hand():
    metrics = tapvid_metrics(*worked_example(), "strided")
    # and point 1 in frame 0, before its query: hidden, and predicted visible
    assert metrics.within == (1 / 4, 2 / 4, 3 / 4, 3 / 4, 3 / 4)
    assert metrics.occlusion_accuracy == 3 / 6
    assert metrics.jaccard == (1 / (4 + 4), *[2 / (4 + 3)] * 4)


def test_what_is_evaluated():
    frames = np.array([0, 2, 3])
    first = [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    strided = [[0, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    assert evaluated_frames(frames, 4, "first").astype(int).tolist() == first
    assert evaluated_frames(frames, 4, "strided").astype(int).tolist() == strided


def test_the_truth_scores_one_and_the_query_frame_does_not_count():
    query_frames, positions, visible, _, _ = worked_example()
    predicted = positions.copy()
    predicted[0, 0] = predicted[1, 1] = 1e6
    metrics = tapvid_metrics(query_frames, positions, visible, predicted, visible, "strided")
    assert set(metrics.named().values()) == {1.0}
    assert len(metrics.named()) == 13


def test_what_is_nowhere_is_a_miss_and_nothing_becomes_nan():
    query_frames, true_positions, true_visible, positions, visible = worked_example()
    for nowhere in (np.nan, np.inf):
        true, predicted = true_positions.copy(), positions.copy()
        true[0, 3] = nowhere  # hidden
        predicted[0, 1] = predicted[0, 3] = nowhere
        metrics = tapvid_metrics(query_frames, true, true_visible, predicted, visible, "first")
        assert metrics.within == (0, 1 / 4, 2 / 4, 2 / 4, 2 / 4)
        assert metrics.jaccard == (0 / (4 + 4), *[1 / (4 + 3)] * 4)


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_where_there_is_nothing_to_evaluate_there_are_no_metrics(mode):
    query_frames, positions, visible, _, _ = worked_example()
    nothing = visible & (np.arange(4) == query_frames[:, None])
    assert tapvid_metrics(query_frames, positions, nothing, positions, visible, mode) is None
    none = (
        np.zeros(0, dtype=int),
        np.zeros((0, 4, 2)),
        np.zeros((0, 4), bool),
        np.zeros((0, 4, 2)),
        np.zeros((0, 4), bool),
    )
    assert tapvid_metrics(*none, mode) is None
    assert (
        tapvid_metrics(
            query_frames[:1] * 0, positions[:1, :1], visible[:1, :1], positions[:1, :1], visible[:1, :1], mode
        )
        is None
    )


def test_each_video_counts_once():
    a = TapVidMetrics((1, 1, 1, 1, 1), 0.5, (0, 0, 0, 0, 0.5))
    b = TapVidMetrics((0, 0, 0.5, 0.5, 1), 1.0, (0, 0, 0, 0, 1))
    mean = mean_metrics([a, b])
    assert mean == TapVidMetrics((0.5, 0.5, 0.75, 0.75, 1), 0.75, (0, 0, 0, 0, 0.75))
    with pytest.raises(ValueError, match="no video"):
        mean_metrics([])


def test_what_does_not_go_together_is_refused():
    query_frames, true_positions, true_visible, positions, visible = worked_example()
    with pytest.raises(ValueError, match=r"must be \(N,\)"):
        tapvid_metrics(query_frames, true_positions, true_visible.T, positions, visible, "first")
    with pytest.raises(ValueError, match=r"within 0 \.\.\. 3"):
        tapvid_metrics(query_frames + 3, true_positions, true_visible, positions, visible, "first")
    with pytest.raises(ValueError, match="last"):
        tapvid_metrics(query_frames, true_positions, true_visible, positions, visible, "last")


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_they_are_the_co_tracker_package_s(mode):
    """One video at a time: with more the package divides each one's occlusion hits by the points of all."""
    package = pytest.importorskip("cotracker.evaluation.core.eval_utils", reason=PACKAGE)
    rng = np.random.default_rng(5)
    videos = []
    for points, frames in [(7, 11), (1, 2), (40, 23), (3, 60)]:
        query_frames = rng.integers(0, frames - 1, points)
        true_visible = rng.random((points, frames)) < 0.7
        true_visible[0, -1] = True
        true_positions = rng.random((points, frames, 2)) * 256
        positions = true_positions + rng.normal(size=(points, frames, 2)) * rng.choice([0.5, 2, 6, 12], (points, 1, 1))
        visible = true_visible ^ (rng.random((points, frames)) < 0.2)
        ours = tapvid_metrics(query_frames, true_positions, true_visible, positions, visible, mode)
        asked = np.stack([query_frames, *true_positions[np.arange(points), query_frames].T[::-1]], axis=1)
        theirs = package.compute_tapvid_metrics(
            asked[None], ~true_visible[None], true_positions[None], ~visible[None], positions[None], mode
        )
        assert set(theirs) == set(ours.named())
        for name, value in ours.named().items():
            assert value == pytest.approx(float(theirs[name][0]), abs=1e-12), name
        assert 0.05 < ours.average_jaccard < 0.95
        videos.append(ours)
    assert 0.05 < mean_metrics(videos).average_jaccard < 0.95
