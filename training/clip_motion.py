"""The stored motion of clips, in their views: start rows of a track store, resampled into the arrays of a batch.

Axis legend: B clips, t tubelets, (Gh, Gw) points of the view's grid, L steps, C colour channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_specs.geometry import grid_size
from data_specs.schema import FLOW_BINS, HOG_BINS
from data_specs.view import View
from training.recipe import PretrainRecipe
from training.resampling import Resampler, mirrored_hof, mirrored_hog, mirrored_mbh
from training.store_fit import predicted_steps
from training.track_reader import TrackField, TrackReader, VideoRecord

Arrays = dict[str, NDArray[Any]]

_DESCRIPTORS = {"flow": (2,), "hof": (FLOW_BINS + 1,), "mbh": (2, FLOW_BINS)}


class ClipMotion:
    """Reads what a recipe's stored heads need of a track store, for one clip at a time."""

    def __init__(self, reader: TrackReader, recipe: PretrainRecipe) -> None:
        self._reader, self._recipe, self._stored = reader, recipe, reader.info.recipe
        self.steps = predicted_steps(recipe, reader.info)
        self._descriptors = [name for name in _DESCRIPTORS if name in recipe.heads]

    def empty(self, clips: int) -> Arrays:
        """Arrays of so many clips, with nothing valid in them.

        `displacement` float32 (B, t, Gh, Gw, L, 2), x and y in pixels of the view per step; `trajectory_hog` float32
        (B, t, Gh, Gw, L, 9 C), per pixel of its window; each with `…_valid`, bool (B, t, Gh, Gw, L). `flow` float32
        (B, t, Gh, Gw, 2) in pixels of the view, `hof` (…, 9) and `mbh` (…, 2, 8), per pixel of their cell, with
        `cell_valid`, bool (B, t, Gh, Gw). Anchored at the clip, tubelet t has step t alone: L is 1.
        """
        return self._empty((clips, self._recipe.token_grid[0]), self.steps)

    def fill(self, arrays: Arrays, video: VideoRecord, times: Sequence[int], view: View) -> None:
        """Fill the arrays of one clip, (t, Gh, Gw, …), which shows the video's frames `times` (T,) through `view`.

        Trajectories begin in the frames that the clip asks for: for those past the video's end there are none.
        """
        recipe, stored = self._recipe, self._stored
        by_clip = recipe.anchoring == "clip"
        fields = self._reader.rows(
            video,
            list(times[:: len(times) if by_clip else recipe.tubelet]),
            hog="trajectory_hog" in recipe.heads,
            descriptors=self._descriptors,
            remove_camera=recipe.remove_camera,
            length=stored.length if by_clip else self.steps,
        )
        grid = grid_size(video.frame_size, stored.grid_stride)
        resampler = Resampler(view, grid, stored.grid_stride, recipe.point_grid)
        rows = self._empty((1,), stored.length) if by_clip else arrays
        for t, field in enumerate(fields):
            if field is not None:
                self._resample(resampler, field, {name: values[t] for name, values in rows.items()})
        if by_clip:  # the token of tubelet t takes step t; past the last step there is nothing
            for name, values in rows.items():
                steps = np.moveaxis(values[0], 2, 0)[: len(arrays[name]), :, :, None]
                arrays[name][: len(steps)] = steps

    def _empty(self, rows: tuple[int, ...], length: int) -> Arrays:
        recipe, grid = self._recipe, (*rows, *self._recipe.point_grid)
        arrays: Arrays = {}
        if "displacement" in recipe.heads or ("trajectory_hog" in recipe.heads and recipe.merge == "longest"):
            arrays["displacement"] = np.zeros((*grid, length, 2), np.float32)
            arrays["displacement_valid"] = np.zeros((*grid, length), np.bool_)
        if "trajectory_hog" in recipe.heads:
            arrays["trajectory_hog"] = np.zeros((*grid, length, HOG_BINS * self._stored.hog_channels), np.float32)
            arrays["trajectory_hog_valid"] = np.zeros((*grid, length), np.bool_)
        for name in self._descriptors:
            arrays[name] = np.zeros((*grid, *_DESCRIPTORS[name]), np.float32)
            arrays["cell_valid"] = np.zeros(grid, np.bool_)
        return arrays

    def _resample(self, resampler: Resampler, field: TrackField, arrays: Arrays) -> None:
        """Fill the arrays (Gh, Gw, …) of one start row. Histograms are divided by the area that they are sums over."""
        if "displacement" in arrays:
            steps = field.valid[:, :, :-1] & field.valid[:, :, 1:]
            resampler.resample_vectors(field.displacement, steps, arrays["displacement"], arrays["displacement_valid"])
        if field.hog_codes is not None and field.hog_scale is not None:
            values, valid = arrays["trajectory_hog"], arrays["trajectory_hog_valid"]
            mirror = mirrored_hog(values.shape[-1] // HOG_BINS)
            scale = field.hog_scale / self._stored.hog_window**2
            resampler.resample_histograms(field.hog_codes, scale, field.valid[:, :, :-1], mirror, values, valid)
        if field.cell_measured is None:
            return
        measured, valid = field.cell_measured[:, :, None], arrays["cell_valid"][:, :, None]
        if field.flow is not None:
            resampler.resample_vectors(field.flow[:, :, None], measured, arrays["flow"][:, :, None], valid)
        for name, codes, summed, mirror in [
            ("hof", field.hof_codes, field.hof_scale, mirrored_hof()),
            ("mbh", field.mbh_codes, field.mbh_scale, mirrored_mbh()),
        ]:
            if codes is not None and summed is not None:
                flat = codes.reshape(*codes.shape[:2], 1, len(mirror))
                values = arrays[name].reshape(*arrays[name].shape[:2], 1, len(mirror))
                scale = summed / self._stored.grid_stride**2
                resampler.resample_histograms(flat, scale, measured, mirror, values, valid)
