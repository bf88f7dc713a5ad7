"""Pairs of frames measured in batches give the rows that they give one by one."""

from dataclasses import replace

import numpy as np
import pytest

from data_specs.recipe import load_recipe
from data_specs.scene import random_scene
from extraction.motion.flow_tracker import FlowTracker
from extraction.stages import untimed

RECIPE = replace(load_recipe("mme-object"), flow="dis", camera_features=("corners",), descriptors=("hof",))


@pytest.fixture(scope="module")
def frames():
    return random_scene(3, 1.5, size=(72, 105)).frames(33)


class Batches:
    """A tracker that measures in batches, by the CPU's method."""

    def __init__(self, recipe, batch):
        self.sizes = []
        alone = FlowTracker(recipe, untimed)

        def measure(pairs):
            self.sizes.append(len(pairs))
            return [alone.pair_motion(a, b) for a, b in pairs]

        self.tracker = FlowTracker(recipe, untimed, batch=batch, measure_pairs=measure)


def rows_of(tracker, frames):
    """The rows, and after how many frames each came back."""
    found = []
    for index, frame in enumerate(frames):
        found += [(row, index) for row in tracker.push(frame)]
    return found + [(row, len(frames) - 1) for row in tracker.finish()]


def contents(row):
    arrays = [row.positions, row.valid, row.homographies, row.estimated]
    arrays += [row.descriptors.measured, row.descriptors.hof] if row.descriptors else []
    return [row.start, *(array.tobytes() for array in arrays)]


@pytest.mark.parametrize(
    "changes",
    [
        {"start_stride": 4},
        {"start_stride": 1, "length": 2},
        {"start_stride": 3, "frame_step": 2, "length": 3},
        {"start_stride": 11, "length": 4},  # between rows there are frames that no trajectory crosses
        {"start_stride": 40},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_rows_are_byte_for_byte_those_of_single_pairs(frames, changes, batch):
    recipe = replace(RECIPE, **changes)
    expected = rows_of(FlowTracker(recipe, untimed), frames)
    batches = Batches(recipe, batch)
    found = rows_of(batches.tracker, frames)
    assert [contents(row) for row, _ in found] == [contents(row) for row, _ in expected]
    assert len(found) > 0
    assert max(batches.sizes) <= batch
    lookback = batches.tracker.lookback
    assert lookback == recipe.span + batch - 1
    assert all(index - row.start <= lookback for row, index in found)


def test_batches_are_full_and_the_last_holds_the_rest(frames):
    batches = Batches(replace(RECIPE, start_stride=4), 5)
    rows_of(batches.tracker, frames)
    assert batches.sizes == [5, 5, 5, 5, 5, 5, 2], "32 pairs"


def test_the_last_pairs_need_no_full_batch(frames):
    """Rows that only finish() completes are not lost, and those that the video cuts short are not made up."""
    batches = Batches(replace(RECIPE, start_stride=4), 64)
    tracker = batches.tracker
    assert [row for frame in frames[:15] for row in tracker.push(frame)] == []
    assert [row.start for row in tracker.finish()] == [0, 4, 8]
    assert tracker.finish() == []


def test_few_frames_are_held(frames):
    """However rarely trajectories cross a pair, no frame is kept for longer than a batch takes to fill."""
    batches = Batches(replace(RECIPE, start_stride=30, length=2), 8)
    arrived = {}
    for index, frame in enumerate(frames):
        for row in batches.tracker.push(frame):
            arrived[row.start] = index
    assert arrived == {0: 8}, "the pair of frames 0 and 1 waits for 7 more"
    np.testing.assert_array_equal([row.start for row in batches.tracker.finish()], [30])
