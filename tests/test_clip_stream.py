"""The order of the clips: nothing is lost or doubled, whoever asks, however it is cut up, wherever it goes on."""

from itertools import chain, islice
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import DataLoader, Dataset

from training.reading.clip_stream import ClipStream, RankBatches, StreamClip, choose_start, rng_for

streams = st.builds(
    ClipStream, num_videos=st.integers(1, 40), seed=st.integers(0, 2**70), clips_per_video=st.integers(1, 4)
)


def global_batches(stream, batch_size, world_size, count, position=0):
    """For each micro-batch the ranks' positions, one rank after the other."""
    ranks = [islice(RankBatches(stream, batch_size, rank, world_size, position), count) for rank in range(world_size)]
    return [list(chain.from_iterable(batches)) for batches in zip(*ranks, strict=True)]


@given(streams, st.integers(0, 5))
def test_an_epoch_shows_every_clip_once(stream, epoch):
    clips = stream.slice(epoch * stream.clips_per_epoch, stream.clips_per_epoch)
    assert {clip.epoch for clip in clips} == {epoch}
    assert sorted((clip.video, clip.repeat) for clip in clips) == [
        (video, repeat) for video in range(stream.num_videos) for repeat in range(stream.clips_per_video)
    ]


@given(streams)
def test_a_videos_clips_follow_one_another(stream):
    clips = stream.slice(0, 2 * stream.clips_per_epoch)
    for first in range(0, len(clips), stream.clips_per_video):
        group = clips[first : first + stream.clips_per_video]
        assert len({(clip.epoch, clip.video) for clip in group}) == 1
        assert [clip.repeat for clip in group] == list(range(stream.clips_per_video))


@given(streams, st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_ranks_and_workers_share_the_stream_without_loss(stream, world_size, groups, workers):
    """A DataLoader hands batch m to worker m modulo the number of workers."""
    batch_size = groups * stream.clips_per_video
    count = -(-2 * stream.clips_per_epoch // (batch_size * world_size))
    seen = []
    for rank in range(world_size):
        batches = list(islice(RankBatches(stream, batch_size, rank, world_size), count))
        assert all(len(batch) == batch_size for batch in batches)
        for worker in range(workers):
            seen += [position for batch in batches[worker::workers] for position in batch]
    assert sorted(seen) == list(range(count * batch_size * world_size))
    for epoch in range(2):
        shown = [clip for clip in (stream[position] for position in seen) if clip.epoch == epoch]
        assert len(set(shown)) == len(shown) == stream.clips_per_epoch


@given(streams, st.integers(1, 3), st.integers(1, 3), st.integers(0, 9), st.integers(1, 9))
def test_a_resumed_stream_is_the_tail_of_the_original(stream, world_size, groups, done, more):
    batch_size = groups * stream.clips_per_video
    whole = global_batches(stream, batch_size, world_size, done + more)
    again = ClipStream(stream.num_videos, stream.seed, stream.clips_per_video)
    resumed = global_batches(again, batch_size, world_size, more, position=done * batch_size * world_size)
    assert [again[p] for batch in resumed for p in batch] == [stream[p] for batch in whole[done:] for p in batch]


@given(streams, st.integers(1, 2))
def test_world_sizes_agree_on_each_global_batch(stream, groups):
    total = 6 * groups * stream.clips_per_video
    one, two, three = (global_batches(stream, total // world, world, 7) for world in (1, 2, 3))
    assert one == two == three


@given(streams, st.integers(1, 3))
def test_a_video_is_opened_in_one_batch(stream, groups):
    where = {}
    for m, batch in enumerate(islice(RankBatches(stream, groups * stream.clips_per_video), 12)):
        for position in batch:
            clip = stream[position]
            where.setdefault((clip.epoch, clip.video), set()).add(m)
    assert all(len(batches) == 1 for batches in where.values())


def test_epochs_and_seeds_differ_in_their_order():
    stream = ClipStream(50, 3)
    epochs = [tuple(clip.video for clip in stream.slice(50 * e, 50)) for e in range(3)]
    other = tuple(clip.video for clip in ClipStream(50, 4).slice(0, 50))
    assert len({*epochs, other, tuple(range(50))}) == 5


def test_the_order_is_uniform():
    """Over 2,000 epochs of 6 videos, each comes as often in one place as in another."""
    stream = ClipStream(6, 1)
    counts = np.zeros((6, 6))
    for epoch in range(2000):
        videos = [clip.video for clip in stream.slice(6 * epoch, 6)]
        np.add.at(counts, (range(6), videos), 1)
    assert stats.chisquare(counts[0]).pvalue > 1e-3
    assert stats.chisquare(counts[3]).pvalue > 1e-3


def test_the_order_is_fixed_for_good():
    """A change here makes a run that is resumed with a new version show some videos twice."""
    assert [clip.video for clip in ClipStream(7, 0).slice(0, 14)] == [4, 1, 6, 0, 2, 3, 5, 4, 5, 3, 1, 0, 6, 2]
    assert ClipStream(7, 0, 3)[10] == StreamClip(0, 0, 1)
    assert rng_for(0, 1, 2, 3, "mask").integers(1000, size=4).tolist() == [584, 706, 314, 73]


class Positions(Dataset):
    def __getitem__(self, position):
        return position


def test_a_data_loader_takes_the_batches_as_they_are():
    """With workers: in order, endless, and without a length that it could stop at."""
    batches = RankBatches(ClipStream(5, 0, 2), 4, rank=1, world_size=3, position=8)
    loader = DataLoader(Positions(), batch_sampler=batches, num_workers=2, multiprocessing_context=get_context("fork"))
    seen = [batch.tolist() for batch in islice(iter(loader), 5)]
    assert seen == [list(range(first, first + 4)) for first in (12, 24, 36, 48, 60)]
    with pytest.raises(TypeError):
        len(batches)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"video": 1}, {"repeat": 1}, {"purpose": "view"}])
def test_each_clip_and_purpose_has_numbers_of_its_own(change):
    clip = {"seed": 0, "epoch": 0, "video": 0, "repeat": 0, "purpose": "mask"}
    numbers = rng_for(**clip).random(8)
    np.testing.assert_array_equal(rng_for(**clip).random(8), numbers)
    assert not np.isin(rng_for(**(clip | change)).random(8), numbers).any()


def test_numbers_of_neighbouring_clips_are_uniform_and_unrelated():
    first = np.array([rng_for(0, 0, video, 0, "view").random() for video in range(4000)])
    assert stats.kstest(first, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 4 / np.sqrt(len(first))


def test_numpy_integers_are_integers():
    keys = (0, 1, 2, 3), tuple(np.arange(4)), (np.uint64(0), np.int8(1), 2, np.int32(3))
    assert len({rng_for(*key, "mask").random() for key in keys}) == 1


def test_large_fields_do_not_run_into_each_other():
    """numpy's SeedSequence([2**32, 1]) and SeedSequence([0, 1, 1]) are one and the same."""
    assert rng_for(2**32, 1, 0, 0, "a").random() != rng_for(0, 1, 1, 0, "a").random()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 5}, "batch_size is 5, must be a multiple of clips_per_video, 2"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 4, "position": 3}, "position is 3, must be a multiple of clips_per_video, 2"),
        ({"batch_size": 4, "position": -2}, "position is -2"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank is 2, must be 0 or more and less than world_size, 2"),
    ],
)
def test_batches_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RankBatches(ClipStream(6, 0, 2), **arguments)


def test_streams_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_videos is 0, clips_per_video is 1"):
        ClipStream(0, 0)
    with pytest.raises(ValueError, match="clips_per_video is 0"):
        ClipStream(1, 0, 0)
    with pytest.raises(IndexError, match="position -1"):
        ClipStream(1, 0)[-1]


@given(st.integers(1, 200), st.integers(1, 100), st.integers(1, 12), st.integers(0, 9))
def test_a_clip_starts_where_it_fits(num_frames, span, stride, seed):
    start = choose_start(num_frames, span, stride, np.random.default_rng(seed))
    assert start % stride == 0
    assert start == 0 or start + span <= num_frames


def test_every_start_is_as_likely():
    """The 61 frames of a 16-frame clip at stride 4 fit into 97 from 0, 4, … and 36; from there up to the last frame."""
    generator = np.random.default_rng(0)
    starts = [choose_start(97, 61, 4, generator) for _ in range(5000)]
    values, counts = np.unique(starts, return_counts=True)
    assert values.tolist() == list(range(0, 37, 4))
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("num_frames", "span"), [(60, 61), (1, 61), (61, 61), (64, 61)])
def test_short_videos_start_at_their_first_frame(num_frames, span):
    assert {choose_start(num_frames, span, 4, np.random.default_rng(seed)) for seed in range(20)} == {0}
