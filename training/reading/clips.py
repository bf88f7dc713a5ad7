"""Clips and the motion that belongs to them: a PyTorch data set over a track store and the videos it was made from.

Which clips there are, in which order, and every random choice about them follow from (seed, epoch, video) alone, not
from ranks, workers or what was read before: see `clip_stream`. Axis legend: B clips, T frames, Nv visible tokens,
Np tokens to predict.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from data_specs.clip_frames import ClipFrames
from data_specs.video import VideoError
from data_specs.video_files import video_path
from data_specs.view import View
from training.interrupts import ignore_in_worker
from training.reading.clip_motion import Arrays, ClipMotion
from training.reading.clip_stream import ClipStream, RankBatches, StreamClip, choose_start, rng_for
from training.reading.masks import sample_tokens, token_counts
from training.reading.motion_masks import Motion
from training.reading.multi_scale_crop import multi_scale_crop
from training.reading.store_fit import StoreFitError, check_store_fits, with_dataset_defaults
from training.reading.track_reader import TrackReader, VideoRecord
from training.recipe import PretrainRecipe
from training.step_batches import Batch


@dataclasses.dataclass(frozen=True)
class Clip:
    """Which clip one of a batch is: of which video, from which frame, through which view."""

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


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """A clip with all that is random about it decided but its mask; nothing has been read."""

    video: VideoRecord
    clip: Clip
    times: list[int]
    rng: np.random.Generator
    """The clip's own; its mask is all that it still has to give."""


class StreamedClips(Dataset[Batch]):
    """Batches of clips by their positions in an endless `stream`; what `clip_loader` reads."""

    stream: ClipStream

    @property
    def clips_per_epoch(self) -> int:
        """Clips from one epoch's first to its last."""
        return self.stream.clips_per_epoch

    def __getitem__(self, position: int) -> Batch:
        """The clip at this position of the stream, as a batch of one; see `read_batch`."""
        return self.read_batch([position])

    def __getitems__(self, positions: list[int]) -> Batch:
        """What a DataLoader's worker calls."""
        return self.read_batch(positions)

    def read_batch(self, positions: Sequence[int]) -> Batch:
        """The clips at these positions."""
        raise NotImplementedError


class ClipDataset(StreamedClips):
    """Batches of clips of a track store's videos, by positions in `stream`, with the targets that a recipe asks for.

    store: the track store; root: the folder of its videos. seed: of everything random. clips_per_video: clips that are
    taken from a video each time it is opened (repeated sampling). allow_incomplete: train on a store of which shards
    are missing. follow_links: whether symbolic links below the root may lead out of it.

    Videos that failed in extraction are not part of it: they are in `reader.failed`. A clip that cannot be read now is
    left out of its batch, and named there.

    Raises StoreError for a store that cannot be read, StoreFitError for one without what the recipe asks for,
    ValueError for a mask that leaves no token to see or to predict.
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
        follow_links: bool = False,
    ) -> None:
        self.reader = TrackReader(store)
        self.root, self.follow_links = Path(root), follow_links
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
        # a mask that leaves no token is refused here, not in a worker
        token_counts(self.recipe.token_grid, self.recipe.mask, self.recipe.mask_ratio, self.recipe.drop_tokens)
        self.stream = ClipStream(len(self.reader.videos), seed, clips_per_video)
        self.motion = ClipMotion(self.reader, self.recipe)

    def read_batch(self, positions: Sequence[int]) -> Batch:
        """The clips at these positions; one video's, where they follow each other, are decoded together.

        `frames` uint8 (B, T, H, W, 3), RGB at the view's size; `visible`, `predict` int64 (B, Nv), (B, Np): indices of
        tokens, ascending; what `ClipMotion.empty` says of motion; `clip`: a list of B `Clip`; `skipped`: a list of the
        clips that could not be read, which take part in none of the others, so that B is smaller for them. With B = 0
        the two lists are all there is.
        Raises StoreError where the track store is damaged.
        """
        recipe = self.recipe
        drawn = [self._draw(self.stream[position]) for position in positions]
        arrays: Arrays = {
            "frames": np.empty((len(drawn), recipe.frames, recipe.input_size, recipe.input_size, 3), np.uint8),
            **self.motion.empty(len(drawn)),
        }
        # the store is read while the videos are decoded: what takes time there is waiting for a file system
        with ThreadPoolExecutor(1) as beside:
            reading = beside.submit(self._read_motion, drawn, arrays)
            skipped = self._read_frames(drawn, arrays["frames"])
            motion = reading.result()
        read = [b for b in range(len(drawn)) if b not in skipped]
        batch: Batch = {"clip": [drawn[b].clip for b in read], "skipped": list(skipped.values())}
        if read:
            kept = {name: values[read] if skipped else values for name, values in arrays.items()}
            masks = [sample_tokens(recipe, drawn[b].rng, motion[b]) for b in read]
            kept["visible"], kept["predict"] = (np.stack(tokens) for tokens in zip(*masks, strict=True))
            batch |= {name: torch.from_numpy(values) for name, values in kept.items()}
        return batch

    def _draw(self, clip: StreamClip) -> _Drawn:
        recipe, video = self.recipe, self.reader.videos[clip.video]
        rng = rng_for(self.seed, clip.epoch, video.index, clip.repeat, "clip")
        stride = recipe.clip_stride or 1
        span = (recipe.frames - 1) * stride + 1
        start = choose_start(video.num_frames, span, self.reader.info.recipe.start_stride or 1, rng)
        size = (recipe.input_size, recipe.input_size)
        view = multi_scale_crop(video.frame_size, size, recipe.crop_scales, bool(recipe.flip), rng)
        times = start + stride * np.arange(recipe.frames)
        if recipe.shuffle_frames:
            times = rng.permutation(times)
        chosen = Clip(video.index, video.id, clip.epoch, clip.repeat, start, view)
        return _Drawn(video, chosen, times.tolist(), rng)

    def _read_frames(self, drawn: list[_Drawn], frames: NDArray[np.uint8]) -> dict[int, Skipped]:
        """Fill `frames` (B, T, H, W, 3); returns which clips could not be read."""
        skipped: dict[int, Skipped] = {}
        for _, group in itertools.groupby(range(len(drawn)), lambda b: (drawn[b].clip.index, drawn[b].clip.epoch)):
            of_video = list(group)
            video = drawn[of_video[0]].video
            last = video.num_frames - 1  # a clip that reaches past the end of its video repeats it
            shown = [([min(time, last) for time in drawn[b].times], drawn[b].clip.view) for b in of_video]
            try:
                with ClipFrames(
                    video_path(self.root, video.path, follow_links=self.follow_links),
                    source_size=video.source_size,
                    num_frames=video.num_frames,
                    short_side=self.reader.info.recipe.short_side,
                    file_bytes=video.file_bytes,
                ) as opened:
                    opened.read_clips(shown, out=[frames[b] for b in of_video])
            except VideoError as error:
                skipped |= {b: Skipped(video.id, f"{type(error).__name__}: {error}") for b in of_video}
        return skipped

    def _read_motion(self, drawn: list[_Drawn], arrays: Arrays) -> list[Motion | None]:
        """Fill the arrays of motion; returns what each clip's mask is drawn from, where it is drawn from motion."""
        if not self.recipe.reads_tracks:
            return [None] * len(drawn)
        motion = []
        for b, clip in enumerate(drawn):
            of_clip = {name: values[b] for name, values in arrays.items() if name != "frames"}
            motion.append(self.motion.fill(of_clip, clip.video, clip.times, clip.clip.view))
        return motion


def clip_loader(
    dataset: StreamedClips,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    position: int = 0,
    pin_memory: bool = False,
) -> Iterable[Batch]:
    """Endless batches of one rank: the m-th begins at position + (m * world_size + rank) * batch_size of the stream.

    workers: processes that read ahead; 0 reads in this one. They are started by `forkserver`, so that nothing that is
    open here is shared with them; take their batches through `StepBatches`, which ends them whatever happens.
    """
    return DataLoader(
        dataset,
        batch_sampler=RankBatches(dataset.stream, batch_size, rank, world_size, position),
        num_workers=workers,
        collate_fn=as_it_is,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=start_worker if workers else None,
        pin_memory=pin_memory,
    )


def as_it_is(batch: Any) -> Any:
    """`read_batch` has made a batch of the clips already."""
    return batch


def start_worker(_: int) -> None:
    """One thread for each worker: there are as many workers as the machine is to be loaded with."""
    ignore_in_worker()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
