"""The stored motion of clips, in their views: start rows of a track store, resampled into the arrays of a batch.

Axis legend: B clips, t tubelets, (Gh, Gw) points of the view's grid, L steps, C colour channels.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_specs.encoding import decode_flow
from data_specs.schema import FLOW_BINS, HOG_BINS
from data_specs.view import View
from training.reading.motion_masks import Motion, patch_motion
from training.reading.resampling import Resampler, compile_resampling, mirrored_hof, mirrored_hog, mirrored_mbh
from training.reading.shard_reader import Runs
from training.reading.store_fit import predicted_steps
from training.reading.stored_rows import StoredRows
from training.reading.track_reader import TrackReader, VideoRecord
from training.recipe import PretrainRecipe

Arrays = dict[str, NDArray[Any]]

_DESCRIPTORS = {"flow": (2,), "hof": (FLOW_BINS + 1,), "mbh": (2, FLOW_BINS)}


class ClipMotion:
    """Reads what a recipe's stored heads and its mask need of a track store, for one clip at a time."""

    def __init__(self, reader: TrackReader, recipe: PretrainRecipe) -> None:
        self._reader, self._recipe, self._stored = reader, recipe, reader.info.recipe
        self.steps = predicted_steps(recipe, reader.info)
        self._descriptors = [name for name in _DESCRIPTORS if name in recipe.heads]
        if recipe.reads_tracks:  # here, once, what the workers would all compile at the same time
            compile_resampling()

    def empty(self, clips: int) -> Arrays:
        """Arrays of so many clips, to be filled; what is in them has no meaning.

        `displacement` float32 (B, t, Gh, Gw, L, 2), x and y in pixels of the view per step; `trajectory_hog` float32
        (B, t, Gh, Gw, L, 9 C), per pixel of its window; each with `…_valid`, bool (B, t, Gh, Gw, L). `flow` float32
        (B, t, Gh, Gw, 2) in pixels of the view, `hof` (…, 9) and `mbh` (…, 2, 8), per pixel of their cell, with
        `cell_valid`, bool (B, t, Gh, Gw). Anchored at the clip, tubelet t has step t alone: L is 1. What only the mask
        needs is not among them.
        """
        rows, displacement = (clips, self._recipe.token_grid[0]), self._recipe.heads_need_displacements
        return self._empty(rows, self.steps, displacement=displacement)

    def fill(self, arrays: Arrays, video: VideoRecord, times: Sequence[int], view: View) -> Motion | None:
        """Fill the arrays of one clip, (t, Gh, Gw, …), which shows the video's frames `times` (T,) through `view`.

        Trajectories begin in the frames that the clip asks for: for those past the video's end there are none.
        Returns what each patch moves by, (h, w), where the mask is drawn from it; see `motion_masks.patch_motion`.
        """
        recipe = self._recipe
        if not recipe.has_motion_mask:
            self._fill(arrays, video, times, view)
            return None
        if not recipe.heads_need_displacements:  # the batch does without
            arrays = arrays | self._empty_displacements((recipe.token_grid[0],), self.steps)
        self._fill(arrays, video, times, view)
        return patch_motion(arrays["displacement"], arrays["displacement_valid"], recipe.points_per_side)

    def _fill(self, arrays: Arrays, video: VideoRecord, times: Sequence[int], view: View) -> None:
        recipe, stored = self._recipe, self._stored
        by_clip = recipe.anchoring == "clip"
        frames = times[:: len(times) if by_clip else recipe.tubelet]
        begun = self._reader.stored_rows(
            video,
            frames,
            hog="trajectory_hog" in recipe.heads,
            descriptors=self._descriptors,
            displacement="displacement" in arrays,
            remove_camera=recipe.remove_camera,
        )
        if begun is None:
            _clear(arrays, slice(None))
            return
        rows = self._empty((1,), stored.length, displacement="displacement" in arrays) if by_clip else arrays
        if len(begun.asked) < len(frames):
            _clear(rows, np.setdiff1d(np.arange(len(frames)), begun.asked))
        self._resample(Resampler(view, begun.grid, stored.grid_stride, recipe.point_grid), begun, rows)
        if by_clip:  # the token of tubelet t takes step t; past the last step there is nothing
            for name, values in rows.items():
                steps = np.moveaxis(values[0], 2, 0)[: len(arrays[name]), :, :, None]
                arrays[name][: len(steps)] = steps
            _clear(arrays, slice(stored.length, None))

    def _empty_displacements(self, rows: tuple[int, ...], length: int) -> Arrays:
        each = (*rows, *self._recipe.point_grid, length)
        return {"displacement": np.empty((*each, 2), np.float32), "displacement_valid": np.empty(each, np.bool_)}

    def _empty(self, rows: tuple[int, ...], length: int, *, displacement: bool) -> Arrays:
        recipe, grid = self._recipe, (*rows, *self._recipe.point_grid)
        arrays = self._empty_displacements(rows, length) if displacement else {}
        if "trajectory_hog" in recipe.heads:
            arrays["trajectory_hog"] = np.empty((*grid, length, HOG_BINS * self._stored.hog_channels), np.float32)
            arrays["trajectory_hog_valid"] = np.empty((*grid, length), np.bool_)
        for name in self._descriptors:
            arrays[name] = np.empty((*grid, *_DESCRIPTORS[name]), np.float32)
            arrays["cell_valid"] = np.empty(grid, np.bool_)
        return arrays

    def _resample(self, resampler: Resampler, rows: StoredRows, arrays: Arrays) -> None:
        """Fill the arrays (t, Gh, Gw, …) of start rows. Histograms are divided by the area that they are sums over."""
        if "displacement" in arrays:
            steps = arrays["displacement"].shape[3]
            moved, measured = rows.steps(steps, resampler.window)
            resampler.resample_vectors(
                moved, measured, rows.asked, arrays["displacement"], arrays["displacement_valid"]
            )
        if "hog" in rows.points:
            values, valid = arrays["trajectory_hog"], arrays["trajectory_hog_valid"]
            mirror = mirrored_hog(values.shape[-1] // HOG_BINS)
            scales = rows.scales["hog"] / self._stored.hog_window**2
            resampler.resample_histograms(rows.points["hog"], scales, rows.valid, mirror, rows.asked, values, valid)
        if not self._descriptors:
            return
        measured, valid = _as_one_step(rows.points["cell_measured"]), arrays["cell_valid"][..., None]
        if "flow" in rows.points:
            codes, first = _as_one_step(rows.points["flow"])
            flow = Runs(decode_flow(codes), first)
            resampler.resample_vectors(flow, measured, rows.asked, arrays["flow"][..., None, :], valid)
        for name, mirror in ("hof", mirrored_hof()), ("mbh", mirrored_mbh()):
            if name in rows.points:
                codes, first = rows.points[name]
                flat = Runs(codes.reshape(len(codes), 1, len(mirror)), first)
                values = arrays[name].reshape(*arrays[name].shape[:3], 1, len(mirror))
                scales = rows.scales[name] / self._stored.grid_stride**2
                resampler.resample_histograms(flat, scales, measured, mirror, rows.asked, values, valid)
                if name == "hof":  # lengths of flow, but for the last bin, which counts
                    values[..., :FLOW_BINS] *= np.float32(math.sqrt(math.prod(resampler.view.scale)))


def _clear(arrays: Arrays, tubelets: slice | NDArray[np.int64]) -> None:
    """Leave nothing valid, and zeros everywhere, in these tubelets of a clip's arrays."""
    for values in arrays.values():
        values[tubelets] = 0


def _as_one_step(runs: Runs) -> Runs:
    """What points have, (P, …), as what they have at their one step, (P, 1, …)."""
    return Runs(runs.values[:, None], runs.first)
