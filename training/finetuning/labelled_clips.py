"""Clips of labelled videos for training: a PyTorch data set over a list, without a track store.

Which clips there are, in which order, and every random choice about them follow from (seed, epoch, video, repeat)
alone, as in pretraining. Axis legend: B clips, T frames.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from data_specs.clip_frames import ClipFrames
from data_specs.labels import LabelledVideos
from data_specs.video import VideoError
from data_specs.video_files import video_path
from data_specs.view import View
from training.finetuning.augmentation import RandAugment, training_view
from training.finetuning.recipe import FinetuneRecipe
from training.finetuning.sampling import training_times
from training.reading.clip_stream import ClipStream, StreamClip, rng_for
from training.reading.clips import Skipped, StreamedClips
from training.step_batches import Batch


@dataclasses.dataclass(frozen=True)
class LabelledClip:
    """Which clip one of a batch is: of which video, which of its frames, through which view."""

    index: int
    """Position of the video in the list."""
    id: str
    epoch: int
    repeat: int
    times: tuple[int, ...]
    """The T frames of the video, in the order in which they are shown."""
    view: View
    """In pixels of the video's own frames; RandAugment comes after it."""


class LabelledClips(StreamedClips):
    """Batches of clips of labelled videos, by positions in `stream`, as a recipe asks for.

    recipe: what it leaves to the data set is taken from the list; the resolved one is the attribute `recipe`. seed: of
    everything random. follow_links: whether symbolic links below the root may lead out of it.

    A clip whose video cannot be read is left out of its batch, and named there.
    Raises ValueError for a list without videos.
    """

    def __init__(
        self, labelled: LabelledVideos, recipe: FinetuneRecipe, *, seed: int = 0, follow_links: bool = False
    ) -> None:
        self.labelled, self.seed, self.follow_links = labelled, seed, follow_links
        videos = labelled.videos
        self.recipe = recipe.resolved(clip_stride=videos.clip_stride, flip=videos.flip)
        self.stream = ClipStream(len(videos.entries), seed, recipe.clips_per_video)
        # of each video, once it is known; the loader's workers share it, and all of them find the same
        known = torch.zeros(len(videos.entries), dtype=torch.int32)
        self._num_frames = known.share_memory_()  # type: ignore[no-untyped-call]
        self._augment = RandAugment(recipe.rand_augment, recipe.input_size) if recipe.rand_augment else None

    def read_batch(self, positions: Sequence[int]) -> Batch:
        """The clips at these positions; one video's, where they follow each other, are decoded together.

        `frames` uint8 (B, T, H, W, 3), RGB at the view's size; `label` int64 (B,); `clip`: a list of B `LabelledClip`;
        `skipped`: a list of the clips that could not be read, which take part in none of the others, so that B is
        smaller for them. With B = 0 the two lists are all there is.
        """
        recipe, wanted = self.recipe, [self.stream[position] for position in positions]
        frames = np.empty((len(wanted), recipe.frames, recipe.input_size, recipe.input_size, 3), np.uint8)
        read: dict[int, LabelledClip] = {}
        skipped: dict[int, Skipped] = {}
        for _, group in itertools.groupby(range(len(wanted)), lambda b: (wanted[b].video, wanted[b].epoch)):
            read |= self._read_or_skip(list(group), wanted, frames, skipped)
        batch: Batch = {"clip": list(read.values()), "skipped": list(skipped.values())}
        if read:
            labels = self.labelled.labels[[clip.index for clip in read.values()]]
            batch["frames"] = torch.from_numpy(frames[list(read)] if skipped else frames)
            batch["label"] = torch.from_numpy(labels.astype(np.int64))
        return batch

    def _read_or_skip(
        self,
        of_video: Sequence[int],
        wanted: Sequence[StreamClip],
        frames: NDArray[np.uint8],
        skipped: dict[int, Skipped],
    ) -> dict[int, LabelledClip]:
        """As `_read`; clips that cannot be read are added to `skipped`."""
        try:
            return self._read(of_video, wanted, frames)
        except VideoError as error:
            if len(of_video) == 1:
                name = self.labelled.videos.entries[wanted[of_video[0]].video].id
                skipped[of_video[0]] = Skipped(name, f"{type(error).__name__}: {error}")
                return {}
        # each is as it would be alone: another one's frames may be all that is damaged
        alone = [self._read_or_skip([b], wanted, frames, skipped) for b in of_video]
        return {b: clip for read in alone for b, clip in read.items()}

    def _read(
        self, of_video: Sequence[int], wanted: Sequence[StreamClip], frames: NDArray[np.uint8]
    ) -> dict[int, LabelledClip]:
        """Draw the clips `of_video`, all of one video, and fill their `frames` (B, T, H, W, 3). Raises VideoError."""
        videos, index = self.labelled.videos, wanted[of_video[0]].video
        entry = videos.entries[index]
        drawn: dict[int, LabelledClip] = {}
        rngs: dict[int, np.random.Generator] = {}
        path = video_path(videos.root, entry.path, follow_links=self.follow_links)
        with ClipFrames(path, counted=int(self._num_frames[index])) as opened:
            self._num_frames[index] = opened.num_frames
            for b in of_video:
                clip = wanted[b]
                rng = rngs[b] = rng_for(self.seed, clip.epoch, index, clip.repeat, "labelled clip")
                times = training_times(opened.num_frames, self.recipe, rng)
                view = training_view(opened.frame_size, self.recipe, rng)
                drawn[b] = LabelledClip(index, entry.id, clip.epoch, clip.repeat, tuple(times), view)
            shown = [(clip.times, clip.view) for clip in drawn.values()]
            opened.read_clips(shown, out=[frames[b] for b in of_video])
        if self._augment is not None:
            for b in of_video:
                self._augment(frames[b], rngs[b])
        return drawn
