"""Videos stream through: what is held does not grow with their length."""

import tracemalloc
import weakref
from pathlib import Path

import pytest

from data_specs.dataset import VideoEntry
from data_specs.demo_clips import write_clip
from data_specs.recipe import load_recipe
from data_specs.scene import random_scene
from extraction.cuts import LOOKAHEAD, ShotFrames
from extraction.job_records import ShardJob, VideoJob
from extraction.jobs import run_job
from extraction.process_video import process_video
from extraction.stages import untimed


def test_only_the_frames_of_one_trajectory_are_held():
    scene = random_scene(0, 1.0, size=(40, 56))
    pictures = scene.frames(8)
    alive: set[int] = set()
    most = 0

    def frames():
        nonlocal most
        for t in range(60):
            frame = pictures[t % 8].copy()
            alive.add(t)
            weakref.finalize(frame, alive.discard, t)
            most = max(most, len(alive))
            yield frame

    recipe = load_recipe("mme-object").resolved(1)
    recipe = recipe.from_json({**recipe.to_json(), "flow": "dis"}, "test")
    rows = sum(1 for _ in process_video(ShotFrames(frames(), True, untimed), recipe, untimed))
    assert rows == 54
    assert most <= recipe.span + LOOKAHEAD + 3


@pytest.mark.parametrize("stage", ["extract", "assemble"])
def test_memory_does_not_grow_with_the_length_of_the_video(tmp_path: Path, monkeypatch, stage):
    """Six times the frames, the same peak: rows leave in blocks, and the shard is written file by file."""
    monkeypatch.setattr("extraction.partial._BLOCK_BYTES", 128 << 10)
    monkeypatch.setattr("extraction.shard_writer._ZARR_SHARD_BYTES", 128 << 10)
    recipe = load_recipe("mme-object").resolved(1)
    recipe = recipe.from_json({**recipe.to_json(), "flow": "dis"}, "test")
    peaks = []
    for frames in (40, 40, 240):  # the first warms up caches
        store = tmp_path / f"{len(peaks)}"
        write_clip(tmp_path / f"{frames}.avi", random_scene(0, 1.0, size=(80, 112)), frames)
        entry = VideoEntry(0, f"{frames}.avi", f"{frames}.avi")
        video = VideoJob(
            store=store, shard=0, place=0, entry=entry, root=tmp_path, recipe=recipe, attempts=0, stall_seconds=600
        )
        shard = ShardJob(store=store, shard=0, entries=(entry,), recipe=recipe, software={}, settings_sha256="")
        if stage == "assemble":
            run_job(video)
        tracemalloc.start()
        run_job(video if stage == "extract" else shard)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    more_bytes = 200 * (10 * 14) * (24 + 7 + 54)
    assert peaks[2] - peaks[1] < 0.15 * more_bytes, peaks
