"""Track stores of rendered scenes in which the tracker is the truth, and all around it is the real thing."""

from pathlib import Path

import numpy as np
import pytest

from data_specs.demo_clips import write_clip
from data_specs.geometry import grid_points
from extraction.motion.tracker import RowTracks

TRACKMAE = {"length": 7, "frame_step": 8, "start_stride": 4, "remove_camera": "false", "detect_cuts": "false"}
"""The trajectories of TrackMAE's clips of 16 frames at stride 4, one step for each tubelet, camera and all."""


def plain(points):
    """A surface of one grey, where only motion counts."""
    return np.full((*points.shape[:-1], 3), 128.0)


class TruthTracker:
    """Knows where the points go. `change` may falsify a row's (positions, valid), both in place."""

    def __init__(self, recipe, scene, change=None, queries=None):
        self.lookback, self._recipe, self._scene = recipe.span, recipe, scene
        self._points = grid_points(scene.size, recipe.grid_stride)
        self._asked = self._points if queries is None else queries
        self._change, self._pushed = change, 0

    def push(self, _frame, begins_shot=False):
        assert not begins_shot
        start, self._pushed = self._pushed - self._recipe.span, self._pushed + 1
        return [] if start < 0 or start % self._recipe.start_stride else [self._row(start)]

    def finish(self):
        return []

    def _row(self, start):
        length, step = self._recipe.length, self._recipe.frame_step
        positions, valid = self._scene.track(self._asked, start, length, step)
        positions += (self._points - self._asked)[:, None]  # a store has no other first positions than its grid's
        if self._change is not None:
            self._change(positions, valid)
        times = start + step * np.arange(length)
        cameras = [self._scene.homography(t, t + step) if self._recipe.remove_camera else np.eye(3) for t in times]
        return RowTracks(
            start=start,
            positions=positions,
            valid=valid,
            homographies=np.stack(cameras),
            estimated=np.full(length, self._recipe.remove_camera),
        )


def truth_store(folder: Path, name: str, scenes, change=None, queries=None, **fields) -> Path:
    """Extract `scenes`, {file name: (scene, number of frames)}; their videos are in `folder`, and so is the store.

    fields: of the recipe, as YAML has them. queries: where the points are in truth that pass for the grid's.
    """
    from extraction.cli import main

    for file, (scene, frames) in scenes.items():
        if not (folder / file).exists():
            write_clip(folder / file, scene, frames)
    (folder / "list.txt").write_text("\n".join(scenes), encoding="utf-8")
    recipe = folder / f"{name}.yaml"
    lines = {"extends": "mme-object", "name": name, "hog": "false", **TRACKMAE, **fields}
    recipe.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()), encoding="utf-8")
    in_order = iter(scenes.values())  # one shard, whose videos are extracted one after the other

    def make_tracker(recipe, *_, **__):
        return TruthTracker(recipe, next(in_order)[0], change, queries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("extraction.process_video.make_tracker", make_tracker)
        patch.setattr("extraction.cli.compile_kernels", lambda _: None)  # by a clip that would be one scene too many
        status = main(
            ["--dataset", str(folder / "list.txt"), "--root", str(folder), "--shards", "1", "--recipe", str(recipe),
             "--out", str(folder / f"{name}.tracks"), "--executor", "local"]
        )  # fmt: skip
    assert status == 0
    return folder / f"{name}.tracks"
