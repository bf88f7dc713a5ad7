"""Clips and the motion that belongs to them: a PyTorch data set over a track store and the videos it was made from.

Which clips there are, in which order, and every random choice about them follow from (seed, epoch, video) alone, not
from ranks, workers or what was read before: see `clip_stream`. Axis legend: T frames, t tubelets, (Gh, Gw) points of
the view's grid, L steps, C colour channels.
"""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from data_specs.clip_frames import ClipFrames
from data_specs.geometry import grid_size
from data_specs.schema import FLOW_BINS, HOG_BINS
from data_specs.video import VideoError
from data_specs.view import View
from training.clip_stream import ClipStream, RankBatches, StreamClip, choose_start, rng_for
from training.interrupts import ignore_in_worker
from training.masks import sample_tokens
from training.multi_scale_crop import multi_scale_crop
from training.recipe import PretrainRecipe
from training.resampling import Resampler, mirrored_hof, mirrored_hog, mirrored_mbh
from training.store_fit import StoreFitError, check_store_fits, predicted_steps, with_dataset_defaults
from training.track_reader import TrackField, TrackReader, VideoRecord

logger = logging.getLogger(__name__)

Sample = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Clip:
    """Which clip a sample is: of which video, from which frame, through which view."""

    index: int
    """Position of the video in the data set's list."""
    id: str
    epoch: int
    repeat: int
    start: int
    view: View


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A clip that could not be read, and why."""

    id: str
    reason: str


class ClipDataset(Dataset[Sample | Skipped]):
    """Clips of the videos of a track store, by their positions in `stream`, with the targets that a recipe asks for.

    store: the track store; root: the folder of its videos. seed: of everything random. clips_per_video: clips that are
    taken from a video each time it is opened (repeated sampling). allow_incomplete: train on a store of which shards
    are missing.

    Videos that failed in extraction are not part of it: they are in `reader.failed`. A video that cannot be read now
    gives `Skipped` in the place of its clips.

    Raises StoreError for a store that cannot be read, StoreFitError for one without what the recipe asks for.
    """

    def __init__(
        self,
        store: str | Path,
        root: str | Path,
        recipe: PretrainRecipe,
        *,
        seed: int = 0,
        clips_per_video: int = 1,
        allow_incomplete: bool = False,
    ) -> None:
        self.reader = TrackReader(store)
        self.root = Path(root)
        self.seed = seed
        self.recipe = with_dataset_defaults(recipe, self.reader.info)
        check_store_fits(self.recipe, self.reader.info, str(store))
        if self.reader.missing_shards and not allow_incomplete:
            raise StoreFitError(
                f"store {store}: {len(self.reader.missing_shards)} of its {self.reader.info.num_shards} shards are not "
                "complete; run extract-tracks again, or train on the complete ones with --allow-incomplete"
            )
        if not len(self.reader.videos):
            raise StoreFitError(f"store {store}: has no video; inspect-tracks {store} --failures says what failed")
        self.stream = ClipStream(len(self.reader.videos), seed, clips_per_video)

    @property
    def steps(self) -> int:
        """L, the steps of a trajectory that a token predicts."""
        return predicted_steps(self.recipe, self.reader.info)

    @property
    def clips_per_epoch(self) -> int:
        """Clips from one epoch's first to its last."""
        return self.stream.clips_per_epoch

    def __getitem__(self, position: int) -> Sample | Skipped:
        """The clip at this position of the stream; see `collate` for what a sample holds."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Sample | Skipped]:
        """The clips at these positions; one video's, where they follow each other, are read from one opened file."""
        clips = [self.stream[position] for position in positions]
        found: list[Sample | Skipped] = []
        first = 0
        while first < len(clips):
            last = first
            while last < len(clips) and (clips[last].video, clips[last].epoch) == (
                clips[first].video,
                clips[first].epoch,
            ):
                last += 1
            found += self._clips_of(self.reader.videos[clips[first].video], clips[first:last])
            first = last
        return found

    def _clips_of(self, video: VideoRecord, clips: Sequence[StreamClip]) -> list[Sample | Skipped]:
        drawn = [self._draw(video, clip) for clip in clips]
        try:
            with ClipFrames(
                self.root / video.path,
                source_size=video.source_size,
                num_frames=video.num_frames,
                short_side=self.reader.info.recipe.short_side,
            ) as opened:
                # a clip that reaches past the end of its video repeats the last frame
                shown = [
                    (np.minimum(times, video.num_frames - 1).tolist(), sample["clip"].view) for sample, times in drawn
                ]
                frames = opened.read_clips(shown)
        except VideoError as error:
            return [Skipped(video.id, f"{type(error).__name__}: {error}")] * len(clips)
        return [
            {**sample, "frames": images, **self._motion(video, self._start_frames(times), sample["clip"].view)}
            for (sample, times), images in zip(drawn, frames, strict=True)
        ]

    def _draw(self, video: VideoRecord, clip: StreamClip) -> tuple[Sample, NDArray[np.int64]]:
        """What is random about a clip: its start, view and tokens; and the frames of the video (T,) that it shows."""
        recipe = self.recipe
        rng = rng_for(self.seed, clip.epoch, video.index, clip.repeat, "clip")
        stride = recipe.clip_stride or 1
        span = (recipe.frames - 1) * stride + 1
        start = choose_start(video.num_frames, span, self.reader.info.recipe.start_stride or 1, rng)
        size = (recipe.input_size, recipe.input_size)
        view = multi_scale_crop(video.frame_size, size, recipe.crop_scales, bool(recipe.flip), rng)
        times = start + stride * np.arange(recipe.frames)
        if recipe.shuffle_frames:
            times = rng.permutation(times)
        visible, predict = sample_tokens(recipe, rng)
        sample: Sample = {
            "visible": visible,
            "predict": predict,
            "index": np.int64(video.index),
            "clip": Clip(video.index, video.id, clip.epoch, clip.repeat, start, view),
        }
        return sample, times

    def _start_frames(self, times: NDArray[np.int64]) -> list[int]:
        """The frames in which the trajectories begin that a clip's tokens predict; there are none past its end."""
        every = self.recipe.tubelet if self.recipe.anchoring == "tubelet" else len(times)
        return [int(time) for time in times[::every]]

    def _motion(self, video: VideoRecord, first_frames: list[int], view: View) -> Sample:
        """The stored targets of trajectories that start in these frames, in the view; nothing without stored heads."""
        if not self.recipe.stored_heads:
            return {}
        recipe, stored = self.recipe, self.reader.info.recipe
        by_clip = recipe.anchoring == "clip"
        tubelets, length = recipe.token_grid[0], stored.length if by_clip else self.steps
        fields = self.reader.rows(
            video,
            first_frames,
            hog="trajectory_hog" in recipe.heads,
            descriptors=[name for name in ("flow", "hof", "mbh") if name in recipe.heads],
            remove_camera=recipe.remove_camera,
            length=length,
        )
        motion = _empty_motion(recipe, len(fields), length, stored.hog_channels)
        resampler = Resampler(
            view, grid_size(video.frame_size, stored.grid_stride), stored.grid_stride, recipe.point_grid
        )
        for t, field in enumerate(fields):
            if field is not None:
                of_row = {name: values[t] for name, values in motion.items()}
                _resample(resampler, field, of_row, stored.grid_stride**2, stored.hog_window**2)
        return {name: _steps_as_tubelets(values, tubelets) for name, values in motion.items()} if by_clip else motion


def _empty_motion(recipe: PretrainRecipe, rows: int, length: int, hog_channels: int) -> Sample:
    """Arrays (rows, Gh, Gw, …) of what the recipe's stored heads need, with nothing valid."""
    grid = (rows, *recipe.point_grid)
    motion: Sample = {}
    if "displacement" in recipe.heads or recipe.merge == "longest":
        motion["displacement"] = np.zeros((*grid, length, 2), np.float32)
        motion["displacement_valid"] = np.zeros((*grid, length), np.bool_)
    if "trajectory_hog" in recipe.heads:
        motion["trajectory_hog"] = np.zeros((*grid, length, HOG_BINS * hog_channels), np.float32)
        motion["trajectory_hog_valid"] = np.zeros((*grid, length), np.bool_)
    for name, inner in [("flow", (2,)), ("hof", (FLOW_BINS + 1,)), ("mbh", (2, FLOW_BINS))]:
        if name in recipe.heads:
            motion[name] = np.zeros((*grid, *inner), np.float32)
            motion["cell_valid"] = np.zeros(grid, np.bool_)
    return motion


def _resample(resampler: Resampler, field: TrackField, motion: Sample, cell_area: int, hog_area: int) -> None:
    """Fill the arrays (Gh, Gw, …) of one start row. Histograms are divided by the area that they were summed over."""
    if "displacement" in motion:
        steps = field.valid[:, :, :-1] & field.valid[:, :, 1:]
        resampler.resample_vectors(field.displacement, steps, motion["displacement"], motion["displacement_valid"])
    if field.hog_codes is not None and field.hog_scale is not None:
        values, valid = motion["trajectory_hog"], motion["trajectory_hog_valid"]
        mirror = mirrored_hog(values.shape[-1] // HOG_BINS)
        scale = field.hog_scale / hog_area
        resampler.resample_histograms(field.hog_codes, scale, field.valid[:, :, :-1], mirror, values, valid)
    if field.cell_measured is None:
        return
    measured, valid = field.cell_measured[:, :, None], motion["cell_valid"][:, :, None]
    if field.flow is not None:
        resampler.resample_vectors(field.flow[:, :, None], measured, motion["flow"][:, :, None], valid)
    for name, codes, summed, mirror in [
        ("hof", field.hof_codes, field.hof_scale, mirrored_hof()),
        ("mbh", field.mbh_codes, field.mbh_scale, mirrored_mbh()),
    ]:
        if codes is not None and summed is not None:
            flat = codes.reshape(*codes.shape[:2], 1, len(mirror))
            values = motion[name].reshape(*motion[name].shape[:2], 1, len(mirror))
            resampler.resample_histograms(flat, summed / cell_area, measured, mirror, values, valid)


def _steps_as_tubelets(values: NDArray[Any], tubelets: int) -> NDArray[Any]:
    """(1, Gh, Gw, L, …) to (tubelets, Gh, Gw, 1, …): tubelet t takes step t; past the last step there is nothing."""
    steps = np.moveaxis(values[0], 2, 0)[:tubelets, :, :, None]
    found = np.zeros((tubelets, *steps.shape[1:]), values.dtype)
    found[: len(steps)] = steps
    return found


def collate(samples: Sequence[Sample | Skipped]) -> dict[str, Any]:
    """Stack what could be read into tensors with a leading axis B; `clip` and `skipped` are lists.

    Keys: `frames` uint8 (B, T, H, W, 3); `visible`, `predict` int64 (B, Nv), (B, Np): indices of tokens; `index` int64
    (B,); and of the stored heads those that the recipe has: `displacement` float32 (B, t, Gh, Gw, L, 2), in pixels of
    the view per step, `trajectory_hog` float32 (B, t, Gh, Gw, L, 9 C), per pixel of its window, each with its
    `…_valid` bool (B, t, Gh, Gw, L); `flow` (B, t, Gh, Gw, 2) in pixels, `hof` (…, 9), `mbh` (…, 2, 8), per pixel of
    their cell, with `cell_valid` bool (B, t, Gh, Gw).
    """
    read = [sample for sample in samples if not isinstance(sample, Skipped)]
    batch: dict[str, Any] = {"skipped": [sample for sample in samples if isinstance(sample, Skipped)]}
    batch["clip"] = [sample["clip"] for sample in read]
    for name in read[0] if read else ():
        if name != "clip":
            batch[name] = torch.from_numpy(np.stack([sample[name] for sample in read]))
    return batch


def clip_loader(
    dataset: ClipDataset,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    position: int = 0,
    pin_memory: bool = False,
) -> Iterable[dict[str, Any]]:
    """Endless batches of one rank: the m-th begins at position + (m * world_size + rank) * batch_size of the stream.

    workers: processes that read ahead; 0 reads in this one. They are started by `forkserver`, so that nothing that is
    open here is shared with them.
    """
    return DataLoader(
        dataset,
        batch_sampler=RankBatches(dataset.stream, batch_size, rank, world_size, position),
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=_start_worker if workers else None,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )


def _start_worker(_: int) -> None:
    """One thread for each worker: there are as many workers as the machine is to be loaded with."""
    ignore_in_worker()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
