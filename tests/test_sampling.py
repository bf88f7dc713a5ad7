"""Which frames a clip of a labelled video shows, against indices computed by hand."""

from collections import Counter

import numpy as np
import pytest

from training.finetuning.recipe import FinetuneRecipe
from training.finetuning.sampling import in_order, spread_times, training_times


def dense(frames, stride, **fields):
    return FinetuneRecipe(name="test", frames=frames, tubelet=1, clip_stride=stride, **fields)


def segment(frames, **fields):
    return FinetuneRecipe(name="test", frames=frames, tubelet=1, sampling="segment", **fields)


class Fixed:
    """A generator that gives these fractions."""

    def __init__(self, fractions):
        self.fractions = np.array(fractions)

    def random(self, size):
        assert size == len(self.fractions)
        return self.fractions


def test_a_dense_clip_starts_wherever_it_fits():
    starts = Counter()
    rng = np.random.default_rng(0)
    for _ in range(600):
        times = training_times(15, dense(5, 3), rng)  # 13 frames from first to last
        assert np.diff(times).tolist() == [3, 3, 3, 3]
        starts[times[0]] += 1
    assert sorted(starts) == [0, 1, 2]
    assert min(starts.values()) > 150, "200 of each on average, deviation 12"


@pytest.mark.parametrize(("frames", "expected"), [(10, [0, 4, 8, 9, 9, 9]), (1, [0] * 6), (21, [0, 4, 8, 12, 16, 20])])
def test_a_dense_clip_of_a_short_video_repeats_its_last_frame(frames, expected):
    rng = np.random.default_rng(0)
    assert training_times(frames, dense(6, 4), rng) == expected
    assert spread_times(frames, dense(6, 4), 3) == [expected] * 3


def test_dense_clips_of_a_test_are_spread_evenly():
    """VideoMAE's: of the 75 frames that are 4 apart, 16 from 0, 14.75, 29.5, 44.25 and 59, rounded down."""
    times = spread_times(300, dense(16, 4), 5)
    assert [clip[0] for clip in times] == [0, 4 * 14, 4 * 29, 4 * 44, 4 * 59]
    assert all(np.diff(clip).tolist() == [4] * 15 for clip in times)
    assert times[-1][-1] == 296
    assert [clip[0] for clip in spread_times(300, dense(16, 4), 1)] == [4 * 29]
    assert [clip[0] for clip in spread_times(62, dense(16, 4), 3)] == [0, 0, 0], "16 strides fit once only"


def test_segments_in_training():
    half = training_times(32, segment(8), Fixed([0, 0.25, 0.49, 0.5, 0.74, 0.75, 0.999, 0]))
    # parts of 4 frames: 0, 4 + 1, 8 + 1, 12 + 2, 16 + 2, 20 + 3, 24 + 3, 28
    assert half == [0, 5, 9, 14, 18, 23, 27, 28]
    # parts of 2.5 frames: 0 + 2.25, 2.5 + 0, 5 + 1.25, 7.5 + 2.4
    assert training_times(10, segment(4), Fixed([0.9, 0.0, 0.5, 0.96])) == [2, 2, 6, 9]
    # parts of 5/8 of a frame: 0.625 * (k + 0.5)
    assert training_times(5, segment(8), Fixed([0.5] * 8)) == [0, 0, 1, 2, 2, 3, 4, 4]
    assert training_times(1, segment(3), Fixed([0, 0.5, 1 - 1e-16])) == [0, 0, 0]


def test_every_frame_can_be_drawn_and_equally_often():
    rng = np.random.default_rng(1)
    drawn = Counter(time for _ in range(800) for time in training_times(11, segment(4), rng))
    assert sorted(drawn) == list(range(11))
    assert max(abs(count - 800 * 4 / 11) for count in drawn.values()) < 75, "deviation 16"


def test_segments_of_a_test():
    """VideoMAE's two: beginnings and middles of the parts, rounded down; here parts of 2.5 frames."""
    beginnings, middles = spread_times(40, segment(16), 2)
    assert beginnings == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37]
    assert middles == [1, 3, 6, 8, 11, 13, 16, 18, 21, 23, 26, 28, 31, 33, 36, 38]
    assert spread_times(40, segment(16), 1) == [middles]
    assert spread_times(24, segment(4), 3) == [[0, 6, 12, 18], [2, 8, 14, 20], [4, 10, 16, 22]]
    assert spread_times(3, segment(6), 2) == [[0, 0, 1, 1, 2, 2]] * 2
    # 0.7 * 10 is 7 and not 6.99…
    assert spread_times(7, segment(10), 1) == [[0, 1, 1, 2, 3, 3, 4, 5, 5, 6]]


def test_frame_orders():
    times, rng = [3, 7, 7, 11, 15, 19, 23, 27], np.random.default_rng(2)
    assert in_order(times, segment(8), rng) == times
    shuffled = [tuple(in_order(times, segment(8, frame_order="shuffled"), rng)) for _ in range(20)]
    assert all(sorted(one) == times for one in shuffled)
    assert len(set(shuffled)) > 15
    single = [in_order(times, segment(8, frame_order="single"), rng) for _ in range(300)]
    assert all(len(one) == 8 and len(set(one)) == 1 for one in single)
    assert {one[0] for one in single} == set(times)
    drawn = training_times(300, dense(8, 4, frame_order="single"), rng)
    assert len(drawn) == 8
    assert len(set(drawn)) == 1
