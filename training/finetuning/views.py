"""The views of a video that a classifier is tested on: clips spread over its time, crops along its longer side."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data_specs.clip_frames import ClipFrames
from data_specs.labels import LabelledVideos
from data_specs.video import VideoError
from data_specs.video_files import video_path
from training.finetuning.augmentation import spread_views
from training.finetuning.recipe import FinetuneRecipe
from training.finetuning.sampling import in_order, spread_times
from training.reading.clip_stream import rng_for
from training.reading.clips import Skipped, as_it_is, start_worker


class VideoViews(Dataset[dict[str, Any]]):
    """The views of each video of a list, by its position there.

    clips, crops: of each video; without them the recipe's. recipe: what it leaves to the data set is taken from the
    list; the resolved one is the attribute `recipe`. Of its settings those of the training's augmentation play no part;
    `frame_order` does: what it draws depends on the video and the clip alone. follow_links: whether symbolic links
    below the root may lead out of it.
    """

    def __init__(
        self,
        labelled: LabelledVideos,
        recipe: FinetuneRecipe,
        *,
        clips: int | None = None,
        crops: int | None = None,
        follow_links: bool = False,
    ) -> None:
        self.labelled, self.follow_links = labelled, follow_links
        self.clips = recipe.test_clips if clips is None else clips
        self.crops = recipe.test_crops if crops is None else crops
        if min(self.clips, self.crops) < 1:
            raise ValueError(f"clips is {self.clips}, crops is {self.crops}: must be 1 or more")
        self.recipe = recipe.resolved(clip_stride=labelled.videos.clip_stride, flip=labelled.videos.flip)

    def __len__(self) -> int:
        return len(self.labelled.videos.entries)

    def __getitem__(self, video: int) -> dict[str, Any]:
        """The video at this position of the list: its `index`, `id` and `label`, and its `frames`, uint8
        (clips * crops, T, H, W, 3), RGB, clip by clip; or, where it cannot be read, `skipped` in their place.
        """
        entry = self.labelled.videos.entries[video]  # IndexError ends an iteration
        known = {"index": video, "id": entry.id, "label": int(self.labelled.labels[video])}
        try:
            return known | {"frames": self._read(video, entry.path)}
        except VideoError as error:
            return known | {"skipped": Skipped(entry.id, f"{type(error).__name__}: {error}")}

    def _read(self, video: int, path: str) -> torch.Tensor:
        recipe = self.recipe
        with ClipFrames(video_path(self.labelled.videos.root, path, follow_links=self.follow_links)) as opened:
            views = spread_views(opened.frame_size, recipe.input_size, self.crops)
            clips = [
                in_order(times, recipe, rng_for(0, 0, video, clip, "order in the test"))
                for clip, times in enumerate(spread_times(opened.num_frames, recipe, self.clips))
            ]
            shown = [(times, view) for times in clips for view in views]
            side = recipe.input_size
            frames = torch.empty((len(shown), recipe.frames, side, side, 3), dtype=torch.uint8)
            opened.read_clips(shown, out=list(frames.numpy()))
        return frames


def views_loader(
    dataset: VideoViews, *, rank: int = 0, world_size: int = 1, workers: int = 0
) -> Iterable[dict[str, Any]]:
    """The videos of one rank, each once and in the order of the list: rank, rank + world_size, …

    workers: processes that read ahead, started as those of `clip_loader`; 0 reads in this one.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}, must be 0 or more and less than world_size, {world_size}")
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=range(rank, len(dataset), world_size),
        num_workers=workers,
        collate_fn=as_it_is,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=start_worker if workers else None,
    )
